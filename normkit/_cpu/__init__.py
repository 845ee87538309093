"""The CPU backend: forward, moments and apply on NumPy arrays. Arguments come checked; nothing is copied but small affines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .._dtypes import Array, accumulator, name_of
from .._layout import Split, Strides, set_view
from . import geometry, kernels, threads
from .halves import as_storage

# Few tiles cannot keep many cores busy: with fewer than this, long sets are split into chunks (two passes over x).
_FUSED_TILES = 64
# Affines up to this size are converted to the accumulator's dtype; larger ones are read in their own.
_CAST_ELEMENTS = 1 << 16
_ALL = np.empty(0, np.uint8)  # `todo` that leaves nothing out
_NO_MOMENTS = np.empty((3, 0))
_NONE = np.ones(())  # stands for an affine that the statistics do not read


@dataclass(frozen=True, slots=True)
class Operands:
    """The arrays of one call. `weight` and `bias` broadcast against x, or are None; y has x's shape."""

    x: Array
    y: Array
    weight: Array | None
    bias: Array | None
    split: Split
    center: bool

    @property
    def wide(self) -> bool:
        """Whether the arithmetic is in float64."""
        return accumulator(name_of(self.x.dtype), name_of(self.y.dtype)) == "float64"


Layout = tuple[tuple[int, ...], tuple[int, ...], int]  # shape, strides in bytes, itemsize


@dataclass(frozen=True, slots=True)
class _Plan:
    """What follows from sets and layouts alone: packed geometry, numbers of sets and tasks."""

    geo: Array
    n_sets: int
    set_size: int
    groups: int  # tasks along the sets
    chunks: int  # and along a set, in the statistics
    apply_chunks: int  # and in the apply pass
    fused: bool  # statistics and result in one kernel

    @property
    def elements(self) -> int:
        return self.n_sets * self.set_size


@lru_cache(maxsize=4096)
def _plan(split: Split, center: bool, x: Layout, y: Layout, weight: Layout, bias: Layout, few: int) -> _Plan:
    """The plan of a call; `few` tiles are split into chunks."""
    operands = [_strides(layout, len(x[0])) for layout in (x, y, weight, bias)]
    view = set_view(split, *operands)
    chunks = geometry.chunk_count(view.rows)
    return _Plan(
        geo=geometry.pack(view, center),
        n_sets=view.n_sets,
        set_size=view.set_size,
        groups=geometry.tile_groups(view),
        chunks=chunks,
        apply_chunks=geometry.chunk_count(view.apply_rows),
        fused=chunks == 1 or view.tiles >= few,
    )


def _layout(array: Array) -> Layout:
    return array.shape, array.strides, array.itemsize


def _plan_of(op: Operands, weight: Array, bias: Array) -> _Plan:
    return _plan(op.split, op.center, _layout(op.x), _layout(op.y), _layout(weight), _layout(bias), _FUSED_TILES)


@lru_cache(maxsize=8)
def _real(wide: bool) -> Array:
    """An empty array that carries the accumulator's dtype into a kernel."""
    return np.empty(0, np.float64 if wide else np.float32)


def _strides(layout: Layout, ndim: int) -> Strides:
    """Strides in elements, as broadcast to `ndim` axes: 0 for an axis of length 1."""
    shape, steps, size = layout
    own = tuple(step // size if n > 1 else 0 for step, n in zip(steps, shape, strict=True))
    return (0,) * (ndim - len(shape)) + own


def _flat(array: Array, readonly: bool = True) -> Array:
    """The memory between an array's first and last element, as one dimension, in storage dtype."""
    if array.flags.c_contiguous:
        flat = array.reshape(-1)
    else:
        forward = array[tuple(slice(None, None, -1) if step < 0 else slice(None) for step in array.strides)]
        extent = 1 + sum((n - 1) * step // array.itemsize for n, step in zip(forward.shape, forward.strides, strict=True))
        flat = as_strided(forward, (extent,), (array.itemsize,))
    flat = as_storage(flat)
    if readonly:
        flat.flags.writeable = False  # a kernel that wrote to it would not compile
    return flat


@lru_cache(maxsize=8)
def _neutral(value: float, wide: bool) -> Array:
    return np.full((), value, _real(wide).dtype)


def _affine(given: Array | None, other: Array | None, neutral: float, wide: bool) -> Array:
    """Weight or bias in a dtype for the kernels; where it is absent but the other varies, spelled out, if that is small."""
    if given is None:
        if other is None or other.size > _CAST_ELEMENTS:
            return _neutral(neutral, wide)
        return np.full(other.shape, neutral, _real(wide).dtype)
    real = _real(wide).dtype
    return given.astype(real) if given.dtype != real and given.size <= _CAST_ELEMENTS else given


def _narrow_then_wide(wide: bool, n_sets: int, run: Any) -> None:
    """run(real, todo) in the accumulator; sets that float32 is too narrow for come back marked and go in float64."""
    if wide:
        run(_real(True), _ALL)
        return
    todo = np.zeros(n_sets, np.uint8)
    if run(_real(False), todo):
        run(_real(True), todo)


def forward(op: Operands, eps: float, correction: float, want_moments: bool) -> Array | None:
    """Normalize x into y by its own statistics. Returns moments (mean, its low part, M2) x sets, if wanted."""
    wide = op.wide
    weight = _affine(op.weight, op.bias, 1.0, wide)
    bias = _affine(op.bias, op.weight, 0.0, wide)
    plan = _plan_of(op, weight, bias)
    if not plan.fused:
        own = moments(op.x, op.split, op.center, wide)
        apply(op, own, eps, plan.set_size - correction)
        return own if want_moments else None
    own = np.empty((3, plan.n_sets)) if want_moments else _NO_MOMENTS
    arrays = (_flat(op.x), _flat(op.y, readonly=False), _flat(weight), _flat(bias), own)
    scale = (float(plan.set_size - correction), eps)

    def run(real: Array, todo: Array) -> Any:
        arguments = (*arrays, todo, plan.geo, scale, real)
        return threads.launch(plan.elements, kernels.forward, kernels.forward_parallel, arguments, plan.groups)

    _narrow_then_wide(wide, plan.n_sets, run)
    return own if want_moments else None


def moments(x: Array, split: Split, center: bool, wide: bool) -> Array:
    """Moments (mean, its low part, M2) of every set of x, in the order of the sets."""
    plan = _plan_of(Operands(x, x, None, None, split, center), _NONE, _NONE)
    result = np.empty((3, plan.n_sets))
    partials = np.empty((plan.n_sets, plan.chunks, 2))
    flat, tasks = _flat(x), plan.groups * plan.chunks

    def run(real: Array, todo: Array) -> Any:
        arguments = (flat, partials, plan.geo, real)
        threads.launch(plan.elements, kernels.partial_moments, kernels.partial_moments_parallel, arguments, tasks)
        return kernels.finish(flat, partials, result, todo, plan.geo, real)

    _narrow_then_wide(wide, plan.n_sets, run)
    return result


def apply(op: Operands, own: Array, eps: float, divisor: float) -> None:
    """Normalize x into y by moments (mean, low part, M2) of every set; var = M2 / divisor."""
    wide = op.wide
    weight = _affine(op.weight, op.bias, 1.0, wide)
    bias = _affine(op.bias, op.weight, 0.0, wide)
    plan = _plan_of(op, weight, bias)
    arrays = (_flat(op.x), _flat(op.y, readonly=False), _flat(weight), _flat(bias), own)
    scale, tasks = (float(divisor), eps), plan.groups * plan.apply_chunks

    def run(real: Array, todo: Array) -> Any:
        marked = kernels.mark_wild(own, todo, scale) if real.itemsize == 4 else 0
        arguments = (*arrays, todo, plan.geo, scale, real)
        threads.launch(plan.elements, kernels.apply, kernels.apply_parallel, arguments, tasks)
        return marked

    _narrow_then_wide(wide, plan.n_sets, run)
