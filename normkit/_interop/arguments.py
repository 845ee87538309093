"""The other arguments of a call: numbers, and arrays that belong to x or to its axes."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._dtypes import RESULTS, Array, name_of
from .doors import Incoming, ingest
from .libraries import NUMPY, DeviceArray, library_of, native


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


def beside(x: Incoming, given: Incoming | None, name: str) -> Incoming | None:
    """Another argument of a call with x: on the device of x. A number goes there by itself."""
    if given is None or type(given.array) is type(x.array) is np.ndarray:
        return given
    here, there = library_of(x.array), library_of(given.array)
    if here == there:
        return given
    if there is NUMPY and given.array.ndim == 0 and isinstance(x.array, DeviceArray):
        array = here.view(here.from_host(given.array))
        return Incoming(array, native, given.shape)
    where = ["cpu" if library is NUMPY else str(library) for library in (there, here)]
    raise ValueError(f"{name} is on {where[0]} and x on {where[1]}; all arrays of a call must be on one device")


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


def gradient(value: Any, name: str, shape: tuple[int, ...], of: str, x: Array) -> Array:
    """`dy` or a tangent: a float array of the shape of what it belongs to, on the device of x."""
    given = beside(Incoming(x, native, x.shape), ingest(value, name), name)
    assert given is not None
    array: Array = given.array
    if name_of(array.dtype) not in RESULTS:
        raise TypeError(f"{name} has dtype {array.dtype}, which cannot hold a gradient; expected {', '.join(RESULTS)}")
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}, the shape of {of}")
    return array
