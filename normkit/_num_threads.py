"""How many threads normkit uses: what the process may have, or what its user asked for. Needs no compiler."""

from __future__ import annotations

import contextlib
import math
import os
import pathlib
from collections.abc import Iterator
from contextvars import ContextVar
from functools import lru_cache

_chosen: dict[str, int] = {}
_within: ContextVar[int | None] = ContextVar("normkit_num_threads", default=None)


def set_num_threads(n: int) -> None:
    """
    Use at most n threads from now on, in this process.

    Results do not depend on it, bit for bit.

    Parameters
    ----------
    n : int
        At least 1. It takes the place of OMP_NUM_THREADS and of a container's quota; more than NUMBA_NUM_THREADS, or else the
        CPUs of this process, are never used.

    Raises
    ------
    TypeError, ValueError
        n is not an int, or below 1.

    See Also
    --------
    num_threads : The same for a block of code.

    Notes
    -----
    Like `torch.set_num_threads`; `numba.set_num_threads` is respected too, and never changed for the caller.

    Examples
    --------
    >>> import normkit as nk
    >>> nk.set_num_threads(1)
    >>> nk.get_num_threads()
    1
    >>> nk.set_num_threads(64)
    """
    _chosen["n"] = _checked(n)


@contextlib.contextmanager
def num_threads(n: int) -> Iterator[None]:
    """
    Use at most n threads within a `with` block, in this thread or task.

    Parameters
    ----------
    n : int
        At least 1.

    Yields
    ------
    None
        Nothing; leaving the block restores what was.

    Raises
    ------
    TypeError, ValueError
        n is not an int, or below 1.

    See Also
    --------
    set_num_threads : The same for the whole process.

    Examples
    --------
    >>> import normkit as nk
    >>> with nk.num_threads(1):
    ...     nk.get_num_threads()
    1
    """
    token = _within.set(_checked(n))
    try:
        yield
    finally:
        _within.reset(token)


def get_num_threads() -> int:
    """
    How many threads normkit uses at most.

    Returns
    -------
    int
        What was asked for, else the lesser of OMP_NUM_THREADS and the CPU quota of the process's control group; but at most
        NUMBA_NUM_THREADS, or where that is not set the CPUs this process may run on. A forked process uses one.

    See Also
    --------
    set_num_threads : Ask for fewer.

    Examples
    --------
    >>> import normkit as nk
    >>> nk.get_num_threads() >= 1
    True
    """
    return min(limit(), _allowed())


def limit() -> int:
    """What was asked for, or the environment asks for."""
    within = _within.get()
    return within if within is not None else _chosen.get("n", _from_environment())


def _checked(n: int) -> int:
    if not isinstance(n, int) or isinstance(n, bool):
        raise TypeError(f"n must be an int, the number of threads, not {n!r}")
    if n < 1:
        raise ValueError(f"n must be at least 1, the number of threads; got {n}")
    return n


def _allowed() -> int:
    """CPUs of this process, as Numba counts them."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("NUMBA_NUM_THREADS", "")
    return int(asked) if asked.isdigit() else cpus


@lru_cache(maxsize=1)
def _from_environment() -> int:
    """OMP_NUM_THREADS (its first level) and the quota, whichever is less."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return max(1, min(int(first) if first.isdigit() and int(first) > 0 else 1 << 30, quota()))


def quota(root: pathlib.Path = pathlib.Path("/sys/fs/cgroup"), own: pathlib.Path = pathlib.Path("/proc/self/cgroup")) -> int:
    """The CPUs that the control groups of this process grant it, rounded up; very many where there is no limit."""
    least = math.inf
    for line in _text(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root if not controllers else root / "cpu"
        folder = base / path.strip("/")
        for place in (folder, *folder.parents):
            if place != base and base not in place.parents:
                break
            older = f"{_text(place / 'cpu.cfs_quota_us')} {_text(place / 'cpu.cfs_period_us')}"
            granted = (_text(place / "cpu.max") or older).split()
            if len(granted) == 2 and granted[0].isdigit() and granted[1].isdigit() and int(granted[1]):
                least = min(least, int(granted[0]) / int(granted[1]))
    return 1 << 30 if math.isinf(least) else max(1, math.ceil(least))


def _text(path: pathlib.Path) -> str:
    """What a file of the system says; nothing where there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
