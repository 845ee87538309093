"""The recipe, for any backend: checked arrays and a split in; forward, moments or apply chosen; Moments out."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from . import _cpu
from ._cpu import Operands
from ._dtypes import Array, accumulator, name_of, result_name
from ._layout import Split, kept_order
from ._moments import Moments
from .sets import moments_shape


@dataclass(frozen=True, slots=True)
class Options:
    """The numbers of a norm."""

    eps: float
    center: bool = True
    correction: float = 0.0


def set_size(split: Split) -> int:
    """Elements of one set."""
    return prod(size for parts in split for size, reduced in parts if reduced)


def normalize(op: Operands, options: Options, given: Moments | None, want_moments: bool) -> Moments | None:
    """Normalize op.x into op.y, by `given` moments or its own, which are returned if wanted."""
    n = set_size(op.split)
    if given is not None:
        rows = _rows_of(given, op, options)
        if op.x.size:
            _cpu.apply(op, rows, options.eps, 1.0)
        return given if want_moments else None
    if op.x.size == 0:
        return empty_moments(op.split) if want_moments else None
    if not options.correction < n:
        raise ValueError(f"correction={options.correction:g} must be below the size of a set, which is {n}")
    own = _cpu.forward(op, options.eps, options.correction, want_moments)
    return None if own is None else _moments_of(own, op.x, op.split)


def moments(x: Array, split: Split, center: bool) -> Moments:
    """The moments of x."""
    if x.size == 0:
        return empty_moments(split)
    wide = accumulator(name_of(x.dtype), result_name(name_of(x.dtype))) == "float64"
    return _moments_of(_cpu.moments(x, split, center, wide), x, split)


def empty_moments(split: Split) -> Moments:
    """Moments of sets without elements, or of no sets."""
    shape = moments_shape(split)
    return Moments(float(set_size(split)) if 0 in shape else 0.0, np.zeros(shape), np.zeros(shape))


def _strides(x: Array) -> tuple[int, ...]:
    return tuple(step // x.itemsize if n > 1 else 0 for step, n in zip(x.strides, x.shape, strict=True))


def _kept_sizes(split: Split) -> list[int]:
    return [size for parts in split for size, reduced in parts if not reduced]


def _moments_of(rows: Array, x: Array, split: Split) -> Moments:
    """Rows of the kernels as arrays with every axis of x."""
    order, sizes, shape = kept_order(split, _strides(x)), _kept_sizes(split), moments_shape(split)

    def in_axis_order(row: Array) -> Array:
        return row.reshape([sizes[k] for k in order]).transpose(np.argsort(order)).reshape(shape)

    return Moments._from_m2(float(set_size(split)), in_axis_order(rows[0]), in_axis_order(rows[2]))


def _rows_of(given: Moments, op: Operands, options: Options) -> Array:
    """Given moments as rows of the kernels: mean, no low part, the variance in place of M2."""
    order, sizes, shape = kept_order(op.split, _strides(op.x)), _kept_sizes(op.split), moments_shape(op.split)
    if np.any(np.asarray(given.count) <= options.correction) and options.correction > 0 and op.x.size:
        raise ValueError(f"correction={options.correction:g} must be below the count of moments, which is {given.count}")
    var = given.var if options.correction == 0 else given.m2 / (given.count - options.correction)

    def in_memory_order(values: Any, name: str) -> Array:
        try:
            spread = np.broadcast_to(values, shape)
        except ValueError:
            message = f"moments have {name} of shape {np.shape(values)}, expected {shape} or what broadcasts to it"
            raise ValueError(message) from None
        return spread.reshape(sizes).transpose(order).reshape(-1)

    rows = np.zeros((3, prod(shape)))
    rows[0] = in_memory_order(given.mean, "mean") if options.center else 0.0
    rows[2] = in_memory_order(var, "var")
    return rows


def blend(weight: Array, bias: Array, own: Moments, alpha: float, eps: float) -> tuple[Array, Array]:
    """Alpha (weight x_hat + bias) + (1 - alpha) x as an affine of x_hat, since x = x_hat sqrt(var + eps) + mean."""
    rest = 1.0 - alpha
    return alpha * weight + rest * np.sqrt(own.var + eps), alpha * bias + rest * own.mean
