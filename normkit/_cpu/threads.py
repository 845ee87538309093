"""Launching: which kernels run in parallel, and that no launch can take the process down."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import numba
import numpy as np

from .._num_threads import limit
from .._process import forked

# Two threads win from about here on. Instance norm of 32 x 32, us on one thread and on two (2026-11): 65536 elements 11 / 19,
# 131072 25 / 28, 262144 53 / 40. Layer norm of 64: 65536 elements 31 / 34, 131072 62 / 50.
PARALLEL_ELEMENTS = 1 << 17

_SAFE_LAYERS = ("omp", "tbb")  # workqueue aborts the process when two threads launch at once
_state: dict[str, bool] = {}
_addresses: dict[tuple[Any, ...], int] = {}
_lock = threading.Lock()


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
