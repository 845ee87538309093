"""The recipe, for any backend: checked arrays and a split in; forward, moments, apply or backward chosen; Moments out.

Statistics of sets are arrays of the moments' shape here, rows of numbers in memory order for the kernels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from . import _cpu
from ._dtypes import Array, accumulator, name_of, result_name
from ._interop import library_of, native, new_like
from ._layout import Split, kept_order
from ._moments import Moments
from ._operands import Operands
from .sets import moments_shape


@dataclass(frozen=True, slots=True)
class Options:
    """The numbers of a norm."""

    eps: float
    center: bool = True
    correction: float = 0.0


def _backend(x: Array) -> Any:
    """The kernels for an array: where its memory is."""
    if isinstance(x, np.ndarray):
        return _cpu
    from . import _cuda

    return _cuda


def set_size(split: Split) -> int:
    """Elements of one set."""
    return prod(size for parts in split for size, reduced in parts if reduced)


def normalize(op: Operands, options: Options, given: Moments | None, wanted: bool) -> Any:
    """Normalize op.x into op.y by `given` moments or its own. Returns the statistics used, if wanted.

    (mean, its low part, M2) of own statistics, (mean, 0, variance) of given ones: 3 x the shape of the moments.
    """
    n, library = set_size(op.split), library_of(op.x)
    if given is not None:
        used = _spread(given, op, options)
        if op.x.size:
            _backend(op.x).apply(op, library.scaled(_to_rows(used, op.x, op.split), 1.0, options.eps))
        return used
    if op.x.size == 0:
        return library.zeros((3, *moments_shape(op.split)))
    if not options.correction < n:
        raise ValueError(f"correction={options.correction:g} must be below the size of a set, which is {n}")
    own = _backend(op.x).forward(op, options.eps, options.correction, wanted)
    return None if own is None else _from_rows(own, op.x, op.split)


def prepared(op: Operands, options: Options, wanted: bool) -> Any:
    """What normalizes arrays of the form of `op` by their own statistics."""
    return _cpu.forward_for(op, options.eps, options.correction, wanted)


def moments_from(rows: Any, x: Array, split: Split) -> Moments:
    """Rows of the kernels as Moments."""
    return moments_of(_from_rows(rows, x, split), split)


def statistics(x: Array, split: Split, center: bool) -> Any:
    """Own statistics of x: (mean, its low part, M2), 3 x the shape of the moments."""
    if x.size == 0:
        return library_of(x).zeros((3, *moments_shape(split)))
    wide = accumulator(name_of(x.dtype), result_name(name_of(x.dtype))) == "float64"
    return _from_rows(_backend(x).moments(x, split, center, wide), x, split)


def moments_of(own: Any, split: Split) -> Moments:
    """Own statistics as Moments."""
    return Moments._from_m2(float(set_size(split)), own[0], own[2])


def _strides(x: Array) -> tuple[int, ...]:
    return tuple(step // x.itemsize if n > 1 else 0 for step, n in zip(x.strides, x.shape, strict=True))


@lru_cache(maxsize=4096)
def _lying(split: Split, strides: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """How the sets lie in memory: (their sizes along x's axes, the same in memory order, axes to memory order and back).

    Each has an axis in front, for the rows.
    """
    sizes = [size for parts in split for size, reduced in parts if not reduced]
    order = kept_order(split, strides)
    back = sorted(range(len(order)), key=order.__getitem__)
    to, fro = ((0, *(k + 1 for k in axes)) for axes in (order, back))
    return (-1, *sizes), (-1, *(sizes[k] for k in order)), to, fro


def _from_rows(rows: Any, x: Array, split: Split) -> Any:
    """Rows of the kernels, whose sets lie as in x, as arrays of the moments' shape."""
    _, lying, _, fro = _lying(split, _strides(x))
    library, shape = library_of(x), (-1, *moments_shape(split))
    return library.reshape(library.permute(library.reshape(rows, lying), fro), shape)


def _to_rows(values: Any, x: Array, split: Split) -> Any:
    """Arrays of the moments' shape as rows for the kernels, the sets lying as in x."""
    sizes, _, to, _ = _lying(split, _strides(x))
    library = library_of(x)
    return library.reshape(library.permute(library.reshape(values, sizes), to), (values.shape[0], -1))


def _spread(given: Moments, op: Operands, options: Options) -> Any:
    """Given moments as (mean, 0, variance) of every set."""
    library = library_of(op.x)
    if options.correction > 0 and op.x.size and given.least_count() <= options.correction:
        raise ValueError(f"correction={options.correction:g} must be below the count of moments, which is {given.count}")
    used = library.zeros((3, *moments_shape(op.split)))
    var = given._variance(options.correction)
    for row, name, values in ((0, "mean", given.mean if options.center else 0.0), (2, "var", var)):
        own, shape = np.shape(values), tuple(used.shape[1:])
        if len(own) > len(shape) or any(m not in (1, n) for m, n in zip(own[::-1], shape[::-1], strict=False)):
            raise ValueError(f"moments have {name} of shape {own}, expected {shape} or what broadcasts to it")
        used[row] = library.hold(values)
    return used


def blend(weight: Array, bias: Array, own: Moments, alpha: float, eps: float) -> tuple[Array, Array]:
    """Alpha (weight x_hat + bias) + (1 - alpha) x as an affine of x_hat, since x = x_hat sqrt(var + eps) + mean."""
    rest = 1.0 - alpha
    return alpha * weight + rest * library_of(own.var).sqrt(own.var + eps), alpha * bias + rest * own.mean


# --------------------------------------------------------------------------------------------------------------- gradients
@dataclass(frozen=True, slots=True)
class Fit:
    """What a gradient needs of a forward pass: x, weight, and the centre and scale of every set."""

    x: Array
    weight: Array | None  # broadcasts against x
    split: Split
    options: Options
    sets: Array  # mean, its low part, rstd: 3 x the shape of the moments
    constant: bool  # whether these were given, and so do not follow x


def fit(x: Array, weight: Array | None, split: Split, options: Options, used: Array, constant: bool) -> Fit:
    """The fit of a forward pass that used these statistics."""
    divisor = 1.0 if constant else set_size(split) - options.correction
    return Fit(x, weight, split, options, library_of(x).scaled(used, divisor, options.eps) if x.size else used, constant)


def backward(of: Fit, dy: Array, dx: Array, shape: tuple[int, ...] | None) -> Any:
    """Set dx, newly allocated, for dy.

    Returns the sums of dy and of dy * x_hat over a parameter of `shape` (that of x, or 1, in every axis), if that is given.
    """
    library, backend = library_of(of.x), _backend(of.x)
    if of.x.size == 0:
        return None if shape is None else library.zeros((2, *shape))
    moving = of.weight is not None and _varies_within(of.split, of.weight.shape)
    weight = of.weight if moving else None
    rstd = of.sets[2]
    gain = rstd if moving or of.weight is None else rstd * library.hold(native(of.weight))
    if of.constant:  # dx is dy, scaled
        sets = library.zeros((3, *rstd.shape))
        sets[2] = gain
        as_norm = Operands(dy, dx, weight, None, of.split, of.options.center, fresh=True)
        backend.apply(as_norm, _to_rows(sets, dy, of.split))
    else:
        sets = of.sets
        if gain is not rstd:
            sets = library.empty((4, *rstd.shape), np.dtype(np.float64))
            sets[:3], sets[3] = of.sets, gain
        n = set_size(of.split)
        op = Operands(of.x, dx, weight, None, of.split, of.options.center, dy, fresh=True)
        shares = (1.0 / n if of.options.center else 0.0, 1.0 / (n - of.options.correction))
        collect = weight is not None and shape is not None and _squeezed(shape) == _squeezed(tuple(weight.shape))
        sums, collected = backend.backward(op, _to_rows(sets, of.x, of.split), shares, collect)
        if collected is not None:
            return library.reshape(collected, (2, *(shape or ())))
        if shape is not None and not _varies_within(of.split, shape):
            return sum_to(_from_rows(sums, of.x, of.split), (2, *shape))
    return None if shape is None else _parameter_sums(of, dy, shape)


@lru_cache(maxsize=4096)
def _varies_within(split: Split, shape: tuple[int, ...]) -> bool:
    """Whether a parameter of this shape changes within a set."""
    pairs = zip(split[len(split) - len(shape) :], shape, strict=True)
    return any(n != 1 and any(reduced and size > 1 for size, reduced in parts) for parts, n in pairs)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes that are longer than 1."""
    return tuple(n for n in shape if n != 1)


def _parameter_sums(of: Fit, dy: Array, shape: tuple[int, ...]) -> Any:
    """Sums of dy and of dy * x_hat over all that shares an element of a parameter: the sets, with the roles swapped."""
    split = tuple(((prod(size for size, _ in axis), n == 1),) for axis, n in zip(of.split, shape, strict=True))
    op = Operands(of.x, of.x, None, None, split, of.options.center, dy)
    library, backend, (mean, low, rstd) = library_of(of.x), _backend(of.x), of.sets
    wide = op.wide or not backend.float32_holds(library.reshape(of.sets, (3, -1)))
    kind, double = np.dtype(np.float64 if wide else np.float32), np.dtype(np.float64)
    high = library.cast(mean, kind)
    rows = (high, library.cast((mean - library.cast(high, double)) + low, kind), library.cast(rstd, kind))
    centre = tuple(_along_axes(row, of.split) for row in rows)
    return _from_rows(backend.sums_over(op, centre, None, wide), of.x, split)


def _along_axes(values: Any, split: Split) -> Any:
    """Values of sets, of the moments' shape, with the axes of x that are split at full length: they broadcast to x."""
    sizes = [size if not reduced else 1 for axis in split for size, reduced in axis]
    whole = [size if not reduced or len(axis) > 1 else 1 for axis in split for size, reduced in axis]
    lengths = [prod(size if not reduced or len(axis) > 1 else 1 for size, reduced in axis) for axis in split]
    library = library_of(values)
    return library.reshape(library.broadcast_to(library.reshape(values, tuple(sizes)), whole), tuple(lengths))


def sum_to(values: Array, shape: tuple[int, ...]) -> Array:
    """Sums of values over the axes (leading ones, and those of length 1 in `shape`) that broadcasting added."""
    if tuple(values.shape) == shape:
        return values
    library = library_of(values)
    total: Array = library.reshape(library.sum(values, _added(tuple(values.shape), shape)), shape)
    return total


@lru_cache(maxsize=4096)
def _added(shape: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of `shape` over which `wanted` was repeated."""
    padded = (1,) * (len(shape) - len(wanted)) + wanted
    return tuple(axis for axis, (n, m) in enumerate(zip(shape, padded, strict=True)) if m == 1 != n)


def tangent(of: Fit, dx: Array | None, dweight: Array | None, dbias: Array | None, dy: Array) -> None:
    """Set dy, in the accumulator's dtype, to the derivative of x_hat * weight + bias along dx, dweight and dbias."""
    library, total = library_of(of.x), native(dy)
    total[...] = 0
    if of.x.size == 0:
        return
    if dx is not None:  # the Jacobian of x_hat is symmetric: its product with dx is a gradient without weight
        backward(replace(of, weight=None), dx, dy, None)
        if of.weight is not None:
            total *= library.cast(native(of.weight), dy.dtype)
    if dweight is not None:
        scaled = new_like(dy, dy.dtype, aligned=False)
        standardize(of, dweight, None, scaled)
        total += native(scaled)
    if dbias is not None:
        total += library.cast(native(dbias), dy.dtype)


def set_products(of: Fit, dx: Array) -> tuple[Array, Array]:
    """The means of dx and of dx * x_hat over every set."""
    shape = tuple(of.sets.shape[1:])
    dy, products = _parameter_sums(of, dx, shape) if of.x.size else library_of(of.x).zeros((2, *shape))
    n = max(1, set_size(of.split))
    return dy / n, products / n


def standardize(of: Fit, weight: Array | None, bias: Array | None, y: Array) -> None:
    """Set y to x_hat * weight + bias."""
    if of.x.size:
        op = Operands(of.x, y, weight, bias, of.split, of.options.center, fresh=True)
        _backend(of.x).apply(op, _to_rows(of.sets, of.x, of.split))
