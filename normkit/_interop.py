"""The one door: foreign arrays in, results out. Nothing reaches a kernel that did not pass here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._dtypes import RESULTS, SUPPORTED, Array, DType, name_of, result_name

_KINDS = "float16, bfloat16, float32, float64, integers and bool"


@dataclass(frozen=True, slots=True)
class Incoming:
    """An argument as the engine sees it, and how a result of its library is made."""

    array: Array
    emit: Callable[[Array], Any]
    shape: tuple[int, ...]  # of the argument itself; the array may be laid along the axes of x

    def laid(self, shape: Sequence[int]) -> Incoming:
        """The same argument with its array in another shape."""
        return Incoming(self.array.reshape(shape), self.emit, self.shape)


def _identity(result: Array) -> Any:
    return result


def ingest(value: Any, name: str) -> Incoming:
    """An array argument, checked, without a copy (but for misaligned memory)."""
    if type(value) is np.ndarray:
        return _incoming(value, name, _identity)
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, and its mask would be ignored; pass {name}.filled(...) or its valid part")
    if hasattr(value, "__dlpack__") and not isinstance(value, (np.ndarray, np.generic)):
        return _incoming(_from_dlpack(value, name), name, _emitter(value))
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} cannot be read as an array: {error}") from error
    return _incoming(array, name, _identity)


def _incoming(array: Array, name: str, emit: Callable[[Array], Any]) -> Incoming:
    return Incoming(_checked(array, name), emit, array.shape)


def _from_dlpack(value: Any, name: str) -> Array:
    try:
        array: Array = np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(f"{name} is a {kind} that cannot be read through __dlpack__: {error}") from error
    return array


def _emitter(value: Any) -> Callable[[Array], Any]:
    """What turns a NumPy result into an array of the library that `value` comes from."""
    if hasattr(value, "__array_namespace__"):
        namespace = value.__array_namespace__()
    else:
        namespace = sys.modules[type(value).__module__.partition(".")[0]]
    if not hasattr(namespace, "from_dlpack"):
        raise TypeError(f"{namespace.__name__} has no from_dlpack to take a result of normkit; pass np.from_dlpack(x)")
    emit: Callable[[Array], Any] = namespace.from_dlpack
    return emit


def _checked(array: Array, name: str) -> Array:
    """Refuse dtypes that no kernel reads; copy what is misaligned."""
    dtype = array.dtype
    if name_of(dtype) not in SUPPORTED:
        remedy = "; normalize real and imaginary part by themselves" if dtype.kind == "c" else ""
        raise TypeError(f"{name} has dtype {dtype}, expected one of {_KINDS}{remedy}")
    if not dtype.isnative:
        raise TypeError(f"{name} has byte-swapped dtype {dtype.str!r}; pass {name}.astype({name}.dtype.newbyteorder('='))")
    uneven = any(step % dtype.itemsize for step, n in zip(array.strides, array.shape, strict=True) if n > 1)
    return array.copy() if uneven or not array.flags.aligned else array


def number(value: Any, name: str) -> float:
    """A finite real scalar argument."""
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must be a real number, not {value!r}")
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a real number, not {value!r}") from None
    if not np.isfinite(result):
        raise ValueError(f"{name} must be finite, not {result}")
    return result


def epsilon(value: Any) -> float:
    """`eps`: finite and not negative."""
    eps = number(value, "eps")
    if eps < 0:
        raise ValueError(f"eps must not be negative, it is added to a variance; got {eps}")
    return eps


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


def result_array(out: Any, dtype: Any, x: Array, inputs: Mapping[str, Array]) -> Array:
    """Where the result goes: `out`, checked, or new memory in x's memory order."""
    if out is None:
        return np.empty_like(x, dtype=result_dtype(dtype, x), order="K", subok=False)
    array = out if isinstance(out, np.ndarray) else _out_from(out)
    if name_of(array.dtype) not in RESULTS or not array.dtype.isnative:
        raise TypeError(f"out has dtype {array.dtype}, which cannot hold a normalized array; expected {', '.join(RESULTS)}")
    if dtype is not None and result_dtype(dtype, x) != array.dtype:
        raise TypeError(
            f"dtype={result_dtype(dtype, x)} and out of dtype {array.dtype} contradict each other; give one of them"
        )
    if array.shape != x.shape:
        raise ValueError(f"out has shape {array.shape}, expected the shape of x, {x.shape}")
    if not array.flags.writeable:
        raise ValueError("out is read-only, expected memory that can be written")
    if not array.flags.aligned:
        raise ValueError("out is misaligned, expected memory aligned to its dtype")
    if _overlaps_itself(array):
        raise ValueError(f"out has strides {array.strides} for shape {array.shape}: some of its elements share memory")
    for name, given in inputs.items():
        if _clashes(array, given, exactly_allowed=name == "x"):
            remedy = "; pass out=x itself, or memory of its own" if name == "x" else "; pass memory of its own"
            raise ValueError(f"out overlaps {name}, which would be overwritten while it is read{remedy}")
    return array


def _out_from(out: Any) -> Array:
    if not hasattr(out, "__dlpack__"):
        raise TypeError(f"out must be an array, not {type(out).__qualname__}")
    return _from_dlpack(out, "out")


def _overlaps_itself(array: Array) -> bool:
    """Whether two elements may share memory: an axis steps less far than the axes inside it reach."""
    reach = array.itemsize
    for step, n in sorted((abs(step), n) for step, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if step < reach:
            return array.size > 0
        reach += step * (n - 1)
    return False


def _clashes(out: Array, given: Array, exactly_allowed: bool) -> bool:
    """Whether writing `out` would change `given` before it is read."""
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


def broadcastable(value: Any, name: str, shape: tuple[int, ...]) -> Incoming | None:
    """`weight` or `bias` of `normalize`: broadcasts against x by NumPy's rules."""
    if value is None:
        return None
    given = ingest(value, name)
    own = given.shape
    if len(own) > len(shape) or not all(m in (1, n) for m, n in zip(own[::-1], shape[::-1], strict=False)):
        raise ValueError(f"{name} has shape {own}, which does not broadcast to the shape of x, {shape}")
    return given


def on_axes(value: Any, name: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> Incoming | None:
    """`weight` or `bias` of `layer_norm` and `rms_norm`: the shape of the normalized axes, or a scalar."""
    if value is None:
        return None
    given = ingest(value, name)
    wanted = tuple(shape[axis] for axis in axes)
    if given.shape not in (wanted, ()):
        raise ValueError(f"{name} has shape {given.shape}, expected {wanted}, the normalized axes of x of shape {shape}")
    return given.laid([n if axis in axes else 1 for axis, n in enumerate(shape)]) if given.shape else given


def on_channels(value: Any, name: str, shape: tuple[int, ...], channel: int) -> Incoming | None:
    """`weight` or `bias` per channel (C,), or per sample and channel (N, C), or a scalar."""
    if value is None:
        return None
    given = ingest(value, name)
    wanted: list[tuple[int, ...]] = [(shape[channel],)]
    if channel != 0:
        wanted += [(shape[0], shape[channel]), (1, shape[channel])]
    if given.shape not in (*wanted, ()):
        expected = " or ".join(map(str, wanted[:2]))
        raise ValueError(
            f"{name} has shape {given.shape}, expected {expected} for x of shape {shape} with channel axis {channel}"
        )
    target = [1] * len(shape)
    if given.shape:
        target[channel] = shape[channel]
        target[0] = given.shape[0] if len(given.shape) == 2 else target[0]
    return given.laid(target) if given.shape else given


def gradient(value: Any, name: str, shape: tuple[int, ...], of: str) -> Array:
    """`dy` or a tangent: a float array of the shape of what it belongs to."""
    array = ingest(value, name).array
    if name_of(array.dtype) not in RESULTS:
        raise TypeError(f"{name} has dtype {array.dtype}, which cannot hold a gradient; expected {', '.join(RESULTS)}")
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}, the shape of {of}")
    return array


def gradient_dtype(of: DType, y: DType) -> DType:
    """A gradient has the dtype of its argument, or of y where that is integer."""
    return of if name_of(of) in RESULTS else y
