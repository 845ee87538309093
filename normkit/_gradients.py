"""The recipe of derivatives, for any backend: what a forward pass leaves behind, and gradients and tangents from that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from ._dtypes import Array
from ._engine import Options, backend_of, order_of
from ._interop import library_of, memory_order, native, new_like
from ._layout import Split, set_size
from ._operands import Operands

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fit:
    """What a gradient needs of a forward pass: x, weight, and the centre and scale of every set."""

    x: Array
    weight: Array | None  # broadcasts against x
    split: Split
    options: Options
    sets: Array  # mean, its low part, rstd: 3 x the shape of the moments
    constant: bool  # whether these were given, and so do not follow x


Pull = Callable[[Fit, Any, Any], Any]
Spread = Callable[[Array, Array], Array]  # of dy and dx
# Where neighbours of x have numbers in dy that are none, and these repeat, as the one of y.sum(), or cannot be turned, a
# line of so many is copied, if that makes at most so many in all: 1 MiB of float32. Some kernels read lines, or else number by
# number. Gradient of channels-last (8, 64, 128, 128), dy one number, in ms: 5.8 so, 22 without; of group norm, dy channels
# first, which is turned, 6.6 to 8, and 73 without (Zen 4, 2026-11).
_LINE, _SPREAD = 256, 1 << 18


def fit(x: Array, weight: Array | None, split: Split, options: Options, used: Array, constant: bool) -> Fit:
    """The fit of a forward pass that used these statistics."""
    divisor = 1.0 if constant else set_size(split) - options.correction
    return Fit(x, weight, split, options, library_of(x).scaled(used, divisor, options.eps) if x.size else used, constant)


def pull_for(like: Fit, dy: Array, dx: Array, shape: Shape | None) -> Pull:
    """What pulls gradients of the form of `dy` back through fits of the form of `like`; what follows from that is decided here.

    It is given a fit, dy and dx, newly allocated, sets dx and returns the sums of dy and of dy * x_hat over a parameter of
    `shape` (that of x, or 1, in every axis), if that is given.
    """
    if like.x.size == 0:
        return lambda of, *_: None if shape is None else library_of(of.x).zeros((2, *shape))
    within = like.weight is not None and _varies_within(like.split, tuple(like.weight.shape))
    spread = spreading(dy, like.x, dx)
    pull = _scale_for(like, within) if like.constant else _own_for(like, spread(dy, dx), dx, shape, within)

    def run(of: Fit, dy: Array, dx: Array) -> Any:
        sums = pull(of, spread(dy, dx), dx)
        return _parameter_sums(of, dy, shape) if sums is None and shape is not None else sums

    return run


def spreading(dy: Array, x: Array, dx: Array) -> Spread:
    """What gives neighbours of x numbers that are neighbours, in arrays of the form of dy: a copy where they are not.

    One of all numbers lies in dx, where each is read before the gradient takes its place.
    """
    if not isinstance(dy, np.ndarray):  # threads of a GPU read numbers one by one as it is
        return _as_it_is
    order, back = memory_order(x.shape, x.strides)
    line, size, near = set(), 1, True
    for axis in reversed(order):
        if size < _LINE and dy.shape[axis] > 1:
            line.add(axis)
            near &= dy.strides[axis] in (size * dy.itemsize, x.strides[axis] // x.itemsize * dy.itemsize)
            size *= dy.shape[axis]
    if near:
        return _as_it_is
    repeats = [axis for axis in order if dy.strides[axis] == 0 and axis not in line]
    few = prod(n for axis, n in enumerate(dy.shape) if axis not in repeats) <= _SPREAD
    turn = None if few and repeats else backend_of(x).turning(dy, dx)
    if turn is not None or not few:
        return turn or _as_it_is
    once = tuple(slice(1 if axis in repeats else None) for axis in range(dy.ndim))
    return lambda dy, _: np.broadcast_to(np.ascontiguousarray(dy[once].transpose(order)).transpose(back), dy.shape)


def _as_it_is(dy: Array, _: Array) -> Array:
    return dy


def _gain(of: Fit, within: bool) -> Any:
    """The scale of every set, times its weight unless that changes `within` it."""
    rstd = of.sets[2]
    return rstd if within or of.weight is None else rstd * library_of(of.x).hold(native(of.weight))


def _scale_for(like: Fit, within: bool) -> Pull:
    """`pull_for` by statistics that were given: dx is dy, scaled."""
    backend, split, center = backend_of(like.x), like.split, like.options.center

    def scale(of: Fit, dy: Array, dx: Array) -> None:
        sets = library_of(of.x).zeros(of.sets.shape)
        sets[2] = _gain(of, within)
        weight = of.weight if within else None
        backend.apply(Operands(dy, dx, weight, None, split, center, fresh=True), order_of(dy, split).rows(sets))

    return scale


def _own_for(like: Fit, dy: Array, dx: Array, shape: Shape | None, within: bool) -> Pull:
    """`pull_for` by statistics of x's own. The sums are None where they take a pass of their own."""
    library, split, options, n = library_of(like.x), like.split, like.options, set_size(like.split)
    weight, weighed = (like.weight, False) if within else (None, like.weight is not None)
    collect = weight is not None and shape is not None and _squeezed(shape) == _squeezed(tuple(weight.shape))
    of_sets = shape is not None and not _varies_within(split, shape)
    op = Operands(like.x, dx, weight, None, split, options.center, dy, fresh=True)
    shares = (1.0 / n if options.center else 0.0, 1.0 / (n - options.correction))
    backward, order = backend_of(like.x).backward_for(op, shares, collect), order_of(like.x, split)
    both = (2, *(shape or ()))

    def pull(of: Fit, dy: Array, dx: Array) -> Any:
        sets = of.sets
        if weighed:
            sets = library.empty((4, *sets.shape[1:]), np.dtype(np.float64))
            sets[:3], sets[3] = of.sets, _gain(of, within)
        sums, collected = backward(of.x, dy, dx, of.weight if within else None, order.rows(sets))
        if collected is not None:
            return library.reshape(collected, both)
        return sum_to(order.arrays(sums), both) if of_sets else None

    return pull


@lru_cache(maxsize=4096)
def _varies_within(split: Split, shape: Shape) -> bool:
    """Whether a parameter of this shape changes within a set."""
    pairs = zip(split[len(split) - len(shape) :], shape, strict=True)
    return any(n != 1 and any(reduced and size > 1 for size, reduced in parts) for parts, n in pairs)


def _squeezed(shape: Shape) -> tuple[int, ...]:
    """The axes that are longer than 1."""
    return tuple(n for n in shape if n != 1)


def _parameter_sums(of: Fit, dy: Array, shape: Shape) -> Any:
    """Sums of dy and of dy * x_hat over all that shares an element of a parameter: the sets, with the roles swapped."""
    split = tuple(((prod(size for size, _ in axis), n == 1),) for axis, n in zip(of.split, shape, strict=True))
    op = Operands(of.x, of.x, None, None, split, of.options.center, dy)
    library, backend, (mean, low, rstd) = library_of(of.x), backend_of(of.x), of.sets
    wide = op.wide or not backend.float32_holds(library.reshape(of.sets, (3, -1)))
    kind, double = np.dtype(np.float64 if wide else np.float32), np.dtype(np.float64)
    high = library.cast(mean, kind)
    rows = (high, library.cast((mean - library.cast(high, double)) + low, kind), library.cast(rstd, kind))
    centre = tuple(_along_axes(row, of.split) for row in rows)
    return order_of(of.x, split).arrays(backend.sums_over(op, centre, None, wide))


def _along_axes(values: Any, split: Split) -> Any:
    """Values of sets, of the moments' shape, with the axes of x that are split at full length: they broadcast to x."""
    sizes = [size if not reduced else 1 for axis in split for size, reduced in axis]
    whole = [size if not reduced or len(axis) > 1 else 1 for axis in split for size, reduced in axis]
    lengths = [prod(size if not reduced or len(axis) > 1 else 1 for size, reduced in axis) for axis in split]
    library = library_of(values)
    return library.reshape(library.broadcast_to(library.reshape(values, tuple(sizes)), whole), tuple(lengths))


def sum_to(values: Array, shape: Shape) -> Array:
    """Sums of values over the axes (leading ones, and those of length 1 in `shape`) that broadcasting added."""
    if tuple(values.shape) == shape:
        return values
    library = library_of(values)
    total: Array = library.reshape(library.sum(values, _added(tuple(values.shape), shape)), shape)
    return total


@lru_cache(maxsize=4096)
def _added(shape: tuple[int, ...], wanted: Shape) -> tuple[int, ...]:
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
        plain = replace(of, weight=None)
        pull_for(plain, dx, dy, None)(plain, dx, dy)
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
        backend_of(of.x).apply(op, order_of(of.x, of.split).rows(of.sets))
