"""Launching: which kernels run in parallel, and that no launch can take the process down."""

from __future__ import annotations

import threading
import warnings
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from numba.np.ufunc import parallel

from .._num_threads import limit
from .._process import forked
from .tasks import LINE, pool, spread

# Two threads win from about here on, call after call: instance norm of 32 x 32, us on one thread and on two (2026-11): 65536
# elements 15 / 15, 131072 26 / 21, 262144 60 / 34; layer norm of 64: 31 / 22, 58 / 36, 119 / 65. After a pause of 10 ms the
# other thread sleeps, and waking it takes 50 us.
PARALLEL_ELEMENTS = 1 << 17

_SAFE_LAYERS = ("omp", "tbb")  # workqueue aborts the process when two threads launch at once
_state: dict[str, bool] = {}
_addresses: dict[tuple[Any, ...], int] = {}
_lock = threading.Lock()


def count() -> int:
    """How many threads a launch has, 1 where more are not safe."""
    return _threads()[0]


def may_run_parallel() -> bool:
    """Whether a parallel launch is safe here and has more than one thread to use."""
    return count() > 1


def _threads() -> tuple[int, int]:
    """How many threads a launch uses, 1 where more are not safe, and Numba's own number."""
    most = limit()
    if most == 1 or forked():  # GNU OpenMP kills a forked child that launches: children stay serial, with the same bits
        return 1, 1
    if "layer" not in _state:
        with _lock:
            _state["layer"] = _layer_is_safe()
    # `numba.get_num_threads` itself asks again, under a lock, whether its layer is started: 1.0 us, 0.15 so
    mask = parallel._get_num_threads() if _state["layer"] else 1
    return min(most, mask), mask


def _layer_is_safe() -> bool:
    try:
        numba.get_num_threads()  # starts the layer, launches nothing
    except ValueError as error:
        message = f"Numba has no working threading layer, so normkit runs on one thread: {error}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return False
    return numba.threading_layer() in _SAFE_LAYERS


class Launcher:
    """A kernel that is launched for so much work, in elements of a norm, always with arguments of the same types."""

    __slots__ = ("_address", "kernel", "work")

    def __init__(self, kernel: Any, work: int) -> None:
        self.kernel, self.work, self._address = kernel, work, 0

    def __call__(self, *arguments: Any) -> Any:
        """Run tasks [0, tasks), the last two arguments, on this thread or on several: the same machine code and bits.

        Returns what the kernel returned, the sum over its tasks.
        """
        tasks = arguments[-1]
        threads, mask = _threads() if self.work >= PARALLEL_ELEMENTS and tasks > 1 else (1, 1)
        if threads == 1:
            return self.kernel(*arguments)
        if not self._address:  # finding it takes as long as a launch
            self._address = _address(self.kernel, arguments)
        return _spread(self._address, arguments[:-2], tasks, threads, mask)


def _spread(kernel: int, arguments: tuple[Any, ...], tasks: int, threads: int, mask: int) -> Any:
    """Launch on fewer threads than Numba's own number or on all; that number stays the caller's."""
    given = (_pool(), kernel, arguments, tasks, np.zeros((threads, LINE), np.int64))
    if threads == mask:
        return spread(*given)
    numba.set_num_threads(threads)
    try:
        return spread(*given)
    finally:
        numba.set_num_threads(mask)


@lru_cache(maxsize=1)
def _pool() -> int:
    return _address(pool, (0, 0, 0))


def _kind(argument: Any) -> Any:
    """All that decides the Numba type of an argument."""
    if isinstance(argument, np.ndarray):
        dtype = argument.dtype
        return dtype.char, dtype.names, argument.ndim, argument.flags.num
    return tuple(map(_kind, argument)) if isinstance(argument, tuple) else type(argument)


def _address(kernel: Any, arguments: tuple[Any, ...]) -> int:
    """Where the machine code of a kernel for such arguments is."""
    key = (kernel, *map(_kind, arguments))
    if key not in _addresses:
        signature = tuple(map(numba.typeof, arguments))
        kernel.compile(signature)
        compiled = kernel.overloads[signature]
        _addresses[key] = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    return _addresses[key]
