"""Where results go: their dtype and memory, and that `out` clashes with no input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .._dtypes import RESULTS, Array, DType, name_of, result_name
from .doors import Incoming, ingest_out
from .libraries import DeviceArray, library_of

_ALIGNMENT = 64  # bytes; JAX copies what is aligned to less


def result_dtype(dtype: Any, x: Array) -> DType:
    """The dtype of a result: `dtype` if given, else x's own or float64 for integers."""
    if dtype is None:
        name = result_name(name_of(x.dtype))
        return x.dtype if name == name_of(x.dtype) else np.dtype(name)
    try:
        found: DType = np.dtype(dtype)
    except TypeError as error:
        raise TypeError(f"dtype={dtype!r} is no dtype: {error}") from error
    if name_of(found) not in RESULTS or not found.isnative:
        raise TypeError(f"dtype={found} cannot hold a normalized array, expected one of {', '.join(RESULTS)}")
    return found


def new_like(given: Array, dtype: DType, aligned: bool) -> Array:
    """New memory in the memory order of an argument, as its library wants it."""
    if isinstance(given, DeviceArray):
        return given.library.new_like(given, dtype)
    if given.flags.c_contiguous:
        like = np.empty(given.shape, dtype)
    else:
        like = np.empty_like(given, dtype=dtype, order="K", subok=False)
    if not aligned or like.ctypes.data % _ALIGNMENT == 0:
        return like
    raw = np.empty(like.nbytes + _ALIGNMENT, np.uint8)
    return np.ndarray(like.shape, dtype, raw.data, -raw.ctypes.data % _ALIGNMENT, like.strides)


def result_array(out: Any, dtype: Any, given: Incoming, inputs: Mapping[str, Array]) -> Array:
    """Where the result goes: `out`, checked, or new memory in x's memory order."""
    x = given.array
    if out is None:
        return new_like(x, result_dtype(dtype, x), given.aligned)
    array = _out_beside(x, out)
    if name_of(array.dtype) not in RESULTS or not array.dtype.isnative:
        raise TypeError(f"out has dtype {array.dtype}, which cannot hold a normalized array; expected {', '.join(RESULTS)}")
    if dtype is not None and result_dtype(dtype, x) != array.dtype:
        raise TypeError(
            f"dtype={result_dtype(dtype, x)} and out of dtype {array.dtype} contradict each other; give one of them"
        )
    if array.shape != x.shape:
        raise ValueError(f"out has shape {array.shape}, expected the shape of x, {x.shape}")
    writeable, aligned = (
        (array.writeable, True) if isinstance(array, DeviceArray) else (array.flags.writeable, array.flags.aligned)
    )
    if not writeable:
        raise ValueError("out is read-only, expected memory that can be written")
    if not aligned:
        raise ValueError("out is misaligned, expected memory aligned to its dtype")
    if _overlaps_itself(array):
        raise ValueError(f"out has strides {array.strides} for shape {array.shape}: some of its elements share memory")
    refuse_overlap(array, inputs)
    return array


def refuse_overlap(out: Array, inputs: Mapping[str, Array]) -> None:
    """Refuse an `out` whose memory is that of an input, unless it is x itself."""
    for name, other in inputs.items():
        if _clashes(out, other, exactly_allowed=name == "x"):
            remedy = "; pass out=x itself, or memory of its own" if name == "x" else "; pass memory of its own"
            raise ValueError(f"out overlaps {name}, which would be overwritten while it is read{remedy}")


def _out_beside(x: Array, out: Any) -> Array:
    array = out if isinstance(out, np.ndarray) else ingest_out(out)
    if library_of(array) != library_of(x):
        where = ["cpu" if isinstance(each, np.ndarray) else str(library_of(each)) for each in (array, x)]
        raise ValueError(f"out is on {where[0]} and x on {where[1]}; all arrays of a call must be on one device")
    return array


def _overlaps_itself(array: Array) -> bool:
    """Whether two elements may share memory: an axis steps less far than the axes inside it reach."""
    reach = array.itemsize
    for step, n in sorted((abs(step), n) for step, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if step < reach:
            return array.size > 0
        reach += step * (n - 1)
    return False


def overlap(a: Array, b: Array) -> bool:
    """Whether the memory of two arrays may overlap."""
    return bool(np.may_share_memory(_place(a), _place(b)))


def same_memory(a: Any, b: Array) -> bool:
    """Whether two arrays are the same elements in the same places."""
    return isinstance(a, np.ndarray) and a.ctypes.data == b.ctypes.data and (a.shape, a.strides) == (b.shape, b.strides)


def _place(array: Array) -> Array:
    return array.footprint() if isinstance(array, DeviceArray) else array


def _clashes(out: Array, given: Array, exactly_allowed: bool) -> bool:
    """Whether writing `out` would change `given` before it is read."""
    if out.size == 0 or given.size == 0:
        return False
    out, given = _place(out), _place(given)
    if not np.may_share_memory(out, given):
        return False
    same_place = out.__array_interface__["data"][0] == given.__array_interface__["data"][0]
    if exactly_allowed and same_place and out.itemsize == given.itemsize and _same_steps(out, given):
        return False
    try:
        return bool(np.shares_memory(out, given, max_work=10_000))  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def _same_steps(a: Array, b: Array) -> bool:
    return all(s == t for s, t, n in zip(a.strides, b.strides, a.shape, strict=True) if n > 1)


def gradient_dtype(of: DType, y: DType) -> DType:
    """A gradient has the dtype of its argument, or of y where that is integer."""
    return of if name_of(of) in RESULTS else y
