"""The recipe, for any backend: checked arrays and a split in; forward, moments or apply chosen; Moments out.

Statistics of sets are arrays of the moments' shape here, rows of numbers in memory order for the kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from . import _cpu
from ._dtypes import Array, accumulator, name_of, result_name
from ._interop import Library, library_of
from ._layout import Split, order_in_memory, set_size
from ._moments import Moments
from ._operands import Operands
from .sets import moments_shape


@dataclass(frozen=True, slots=True)
class Options:
    """The numbers of a norm."""

    eps: float
    center: bool = True
    correction: float = 0.0


def backend_of(x: Array) -> Any:
    """The kernels for an array: where its memory is."""
    if isinstance(x, np.ndarray):
        return _cpu
    from . import _cuda

    return _cuda


def normalize(op: Operands, options: Options, given: Moments | None, wanted: bool) -> Any:
    """Normalize op.x into op.y by `given` moments or its own. Returns the statistics used, if wanted.

    (mean, its low part, M2) of own statistics, (mean, 0, variance) of given ones: 3 x the shape of the moments.
    """
    library = library_of(op.x)
    if given is not None:
        _check_shapes(given, op.split, options)
        _check_counts(given, op.split, options)
        used = _spread(given, moments_shape(op.split), options, library)
        if op.x.size:
            backend_of(op.x).apply(op, library.scaled(order_of(op.x, op.split).rows(used), 1.0, options.eps))
        return used
    if op.x.size == 0:
        return library.zeros((3, *moments_shape(op.split)))
    _check(options, op.split)
    own = backend_of(op.x).forward(op, options.eps, options.correction, wanted)
    return None if own is None else order_of(op.x, op.split).arrays(own)


def _check(options: Options, split: Split) -> None:
    n = set_size(split)
    if not options.correction < n:
        raise ValueError(f"correction={options.correction:g} must be below the size of a set, which is {n}")


def prepared(op: Operands, options: Options, wanted: bool) -> Any:
    """What normalizes arrays of the form of `op` by their own statistics."""
    _check(options, op.split)
    return _cpu.forward_for(op, options.eps, options.correction, wanted)


def prepared_by_given(op: Operands, options: Options, like: Moments) -> Any:
    """What normalizes arrays of the form of `op` by given moments of the form of `like`, which come last and are returned."""
    _check_shapes(like, op.split, options)
    apply_to, order = _cpu.apply_for(op), order_of(op.x, op.split)
    library, split, shape = library_of(op.x), op.split, moments_shape(op.split)

    def run(x: Array, y: Array, weight: Any, bias: Any, given: Moments) -> Moments:
        _check_counts(given, split, options)
        used = _spread(given, shape, options, library)
        apply_to(x, y, weight, bias, library.scaled(order.rows(used), 1.0, options.eps))
        return given

    return run


def moments_from(rows: Any, x: Array, split: Split) -> Moments:
    """Rows of the kernels as Moments."""
    return moments_of(order_of(x, split).arrays(rows), split)


def statistics(x: Array, split: Split, center: bool) -> Any:
    """Own statistics of x: (mean, its low part, M2), 3 x the shape of the moments."""
    if x.size == 0:
        return library_of(x).zeros((3, *moments_shape(split)))
    wide = accumulator(name_of(x.dtype), result_name(name_of(x.dtype))) == "float64"
    return order_of(x, split).arrays(backend_of(x).moments(x, split, center, wide))


def moments_of(own: Any, split: Split) -> Moments:
    """Own statistics as Moments."""
    return Moments._from_m2(float(set_size(split)), own[0], own[2])


@dataclass(frozen=True, slots=True)
class Order:
    """How the sets lie in memory: numbers of theirs are rows in that order for kernels, else arrays of the moments' shape."""

    sizes: tuple[int, ...]  # of the sets along x's axes, with an axis in front, for the rows
    lying: tuple[int, ...]  # the same in memory order
    to: tuple[int, ...]  # axes to memory order
    back: tuple[int, ...]
    straight: bool  # whether these are the same order
    shape: tuple[int, ...]  # of the moments, with the axis in front

    def arrays(self, rows: Any) -> Any:
        """Rows of the kernels as arrays of the moments' shape."""
        library = library_of(rows)
        if not self.straight:
            rows = library.permute(library.reshape(rows, self.lying), self.back)
        return library.reshape(rows, self.shape)

    def rows(self, arrays: Any) -> Any:
        """Arrays of the moments' shape as rows for the kernels."""
        library = library_of(arrays)
        if not self.straight:
            arrays = library.permute(library.reshape(arrays, self.sizes), self.to)
        return library.reshape(arrays, (arrays.shape[0], -1))


def order_of(x: Array, split: Split) -> Order:
    """How the sets of x lie in memory."""
    return _order(split, tuple(step // x.itemsize if n > 1 else 0 for step, n in zip(x.strides, x.shape, strict=True)))


@lru_cache(maxsize=4096)
def _order(split: Split, strides: tuple[int, ...]) -> Order:
    sizes = [size for parts in split for size, reduced in parts if not reduced]
    order = order_in_memory(split, strides)
    back = sorted(range(len(order)), key=order.__getitem__)
    to, fro = ((0, *(k + 1 for k in axes)) for axes in (order, back))
    lying = tuple(sizes[k] for k in order)
    return Order((-1, *sizes), (-1, *lying), to, fro, to == tuple(sorted(to)), (-1, *moments_shape(split)))


def _check_shapes(given: Moments, split: Split, options: Options) -> None:
    """They must broadcast to the sets: the mean if it is used, and the variance, to which a correction adds the counts."""
    shape, var = moments_shape(split), tuple(given.var.shape)
    if options.correction != 0:
        var = np.broadcast_shapes(var, tuple(given.m2.shape))
    for name, own in (("mean", tuple(given.mean.shape) if options.center else ()), ("var", var)):
        if len(own) > len(shape) or any(m not in (1, n) for m, n in zip(own[::-1], shape[::-1], strict=False)):
            raise ValueError(f"moments have {name} of shape {own}, expected {shape} or what broadcasts to it")


def _check_counts(given: Moments, split: Split, options: Options) -> None:
    """They must be above the correction, where there is anything to correct."""
    if options.correction <= 0 or not set_size(split):
        return
    if 0 not in moments_shape(split) and given.least_count() <= options.correction:
        raise ValueError(f"correction={options.correction:g} must be below the count of moments, which is {given.count}")


def _spread(given: Moments, shape: tuple[int, ...], options: Options, library: Library) -> Any:
    """Given moments as (mean, 0, variance) of every set."""
    used = library.zeros((3, *shape))
    if options.center:
        used[0] = library.hold(given.mean)
    used[2] = library.hold(given._variance(options.correction))
    return used


def blend(weight: Array, bias: Array, own: Moments, alpha: float, eps: float) -> tuple[Array, Array]:
    """Alpha (weight x_hat + bias) + (1 - alpha) x as an affine of x_hat, since x = x_hat sqrt(var + eps) + mean."""
    rest = 1.0 - alpha
    return alpha * weight + rest * library_of(own.var).sqrt(own.var + eps), alpha * bias + rest * own.mean
