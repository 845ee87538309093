"""Compiling and launching: which kernels run in parallel, and that no launch can take the process down."""

from __future__ import annotations

import contextlib
import hashlib
import pathlib
import threading
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numba
import numpy as np

from .._num_threads import limit
from .._process import forked
from .._trust import untrusted

# Two threads win from about here on. Instance norm of 32 x 32, us on one thread and on two (2026-11): 65536 elements 11 / 19,
# 131072 25 / 28, 262144 53 / 40. Layer norm of 64: 65536 elements 31 / 34, 131072 62 / 50.
PARALLEL_ELEMENTS = 1 << 17

_SAFE_LAYERS = ("omp", "tbb")  # workqueue aborts the process when two threads launch at once
_state: dict[str, bool] = {}
_addresses: dict[tuple[Any, ...], int] = {}
_lock = threading.Lock()


def jit(function: Callable[..., Any], **options: Any) -> Any:
    """The one place that sets the flags of a kernel. No fast-math: the order of every sum is part of the result.

    References to arrays are not counted (`_nrt`), which took half the time of a small call: the caller holds them all, and
    what a kernel needs for itself comes from `vectors.scratch`.
    """
    flags = {"nogil": True, "error_model": "numpy", "_nrt": False, "no_cfunc_wrapper": True, **options}
    try:
        kernel = numba.njit(cache=True, **flags)(function)
        reason = untrusted(pathlib.Path(kernel._cache.cache_path))
    except RuntimeError as error:
        if "cache" not in str(error):
            raise
        reason = str(error)
    if reason:
        _warn_uncached(reason)
        return numba.njit(**flags)(function)
    return _widened(_guarded(_stamped(kernel)))


def _widened(kernel: Any) -> Any:
    """A cached kernel that another calls with constants and with variables as the same code: Numba would compile it for each.

    The first strided call took 10 s so, now 8.
    """
    template = kernel.get_call_template
    kernel.get_call_template = lambda args, kws: template(tuple(map(numba.types.unliteral, args)), kws)
    return kernel


def _guarded(kernel: Any) -> Any:
    """A cached kernel that is compiled anew where the files of its cache are damaged: Numba would raise what reading raises."""
    index = kernel._cache._cache_file
    load = index.load

    def load_whole(key: Any) -> Any:
        try:
            return load(key)
        except Exception:  # noqa: BLE001 - unpickling garbage may raise anything
            with contextlib.suppress(OSError):  # a folder that cannot be written keeps its damaged files
                index.flush()
            return None

    index.load = load_whole
    return kernel


def _stamped(kernel: Any) -> Any:
    """A cached kernel that is compiled anew when any file of this package changes.

    Numba itself looks at the kernel's own file, and kernels inline what stands in others: after an upgrade the old code of
    those would go on running.
    """
    index = kernel._cache._cache_file
    index._source_stamp = (index._source_stamp, _digest())
    return kernel


@lru_cache(maxsize=1)
def _digest() -> str:
    """Of the source of all kernels."""
    here = pathlib.Path(__file__).parent
    inlined = (here.parent / name for name in ("_formulas.py", "_layout.py", "_storage.py"))
    sources = [*sorted(here.glob("*.py")), *inlined]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def jit_part(function: Callable[..., Any]) -> Any:
    """`jit` for what only kernels call: nothing is compiled for calls from Python."""
    return jit(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def jit_inline(function: Callable[..., Any]) -> Any:
    """`jit` for what becomes part of its callers: not compiled by itself, which takes 100 ms, and no call."""
    return numba.njit(inline="always", nogil=True, error_model="numpy", _nrt=False)(function)


def jit_parallel(function: Callable[..., Any]) -> Any:
    """`jit` for the functions that spread tasks of a kernel over threads.

    They take the kernel's address: were it called by name, Numba would optimize it once more for each of them, 8 s for 0.3.
    """
    return jit(function, parallel=True, _nrt=True)


def _warn_uncached(reason: str) -> None:
    if "warned" not in _state:
        _state["warned"] = True
        message = (
            "normkit found no folder that it can keep compiled kernels in and trust, so every process compiles them anew; "
            f"set NUMBA_CACHE_DIR to a folder of your own ({reason})"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=2)


def may_run_parallel() -> bool:
    """Whether a parallel launch is safe here and has more than one thread to use."""
    if forked() or limit() == 1:  # GNU OpenMP kills a forked child that launches: children stay serial, with the same bits
        return False
    if "layer" not in _state:
        with _lock:
            _state["layer"] = _layer_is_safe()
    return _state["layer"] and numba.get_num_threads() > 1


def _layer_is_safe() -> bool:
    try:
        numba.get_num_threads()  # starts the layer, launches nothing
    except ValueError as error:
        message = f"Numba has no working threading layer, so normkit runs on one thread: {error}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return False
    return numba.threading_layer() in _SAFE_LAYERS


def launch(elements: int, serial: Any, parallel: Any, arguments: tuple[Any, ...]) -> Any:
    """Run tasks [0, tasks), the last two arguments, on this thread or on all of them: the same machine code and bits."""
    if elements >= PARALLEL_ELEMENTS and arguments[-1] > 1 and may_run_parallel():
        *first, _, tasks = arguments
        return _spread(parallel, (_address(serial, first), *first, tasks))
    return serial(*arguments)


def _spread(parallel: Any, arguments: tuple[Any, ...]) -> Any:
    """Launch on as many threads as are wanted; the caller's own number in Numba stays as it is."""
    mask = numba.get_num_threads()
    if limit() >= mask:
        return parallel(*arguments)
    numba.set_num_threads(limit())
    try:
        return parallel(*arguments)
    finally:
        numba.set_num_threads(mask)


def _kind(argument: Any) -> Any:
    """All that decides the Numba type of an argument."""
    if isinstance(argument, np.ndarray):
        return argument.dtype, argument.ndim, argument.flags.num
    return tuple(map(_kind, argument)) if isinstance(argument, tuple) else type(argument)


def _address(kernel: Any, arguments: list[Any]) -> int:
    """Where the machine code of a kernel for such arguments is."""
    key = (kernel, *map(_kind, arguments))
    if key not in _addresses:
        signature = (*map(numba.typeof, arguments), numba.int64, numba.int64)
        kernel.compile(signature)
        compiled = kernel.overloads[signature]
        _addresses[key] = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    return _addresses[key]
