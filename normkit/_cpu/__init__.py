"""The CPU backend: forward, moments and apply on NumPy arrays. Arguments come checked; nothing is copied but small affines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .._dtypes import Array, accumulator, name_of
from .._layout import SetView, Split, Strides, set_view
from . import geometry, kernels, threads
from .halves import as_storage

# Few tiles cannot keep many cores busy: with fewer than this, long sets are split into chunks (two passes over x).
_FUSED_TILES = 64
# Affines up to this size are converted to the accumulator's dtype; larger ones are read in their own.
_CAST_ELEMENTS = 1 << 16
_ALL = np.empty(0, np.uint8)  # `todo` that leaves nothing out
_NO_MOMENTS = np.empty((3, 0))


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


@dataclass(frozen=True, slots=True)
class _Job:
    """What the kernels need of a call, whatever the accumulator: flat arrays, packed geometry, numbers of tasks."""

    view: SetView
    geo: Array
    x: Array
    groups: int
    chunks: int

    @property
    def elements(self) -> int:
        return self.view.n_sets * self.view.set_size


@lru_cache(maxsize=8)
def _real(wide: bool) -> Array:
    """An empty array that carries the accumulator's dtype into a kernel."""
    return np.empty(0, np.float64 if wide else np.float32)


def _strides(array: Array, ndim: int) -> Strides:
    """Strides in elements, as broadcast to `ndim` axes: 0 for an axis of length 1."""
    size = array.itemsize
    own = tuple(step // size if n > 1 else 0 for step, n in zip(array.strides, array.shape, strict=True))
    return (0,) * (ndim - array.ndim) + own


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


def _affine(given: Array | None, other: Array | None, neutral: float, wide: bool) -> Array:
    """Weight or bias in a dtype for the kernels; where it is absent but the other varies, spelled out, if that is small."""
    real = _real(wide).dtype
    if given is None:
        spelled = other is not None and other.size <= _CAST_ELEMENTS
        return np.full(other.shape if spelled and other is not None else (), neutral, real)
    return given.astype(real) if given.dtype != real and given.size <= _CAST_ELEMENTS else given


def _job(op: Operands, weight: Array, bias: Array) -> _Job:
    ndim = op.x.ndim
    operands = [_strides(array, ndim) for array in (op.x, op.y, weight, bias)]
    view = set_view(op.split, *operands)
    geo = geometry.pack(view, op.center)
    return _Job(view, geo, _flat(op.x), geometry.tile_groups(view), geometry.chunk_count(view.rows))


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
    weight = _affine(op.weight, op.bias, 1.0, op.wide)
    bias = _affine(op.bias, op.weight, 0.0, op.wide)
    job = _job(op, weight, bias)
    if job.chunks > 1 and job.view.tiles < _FUSED_TILES:
        own = moments(op.x, op.split, op.center, op.wide)
        apply(op, own, eps, job.view.set_size - correction)
        return own if want_moments else None
    own = np.empty((3, job.view.n_sets)) if want_moments else _NO_MOMENTS
    y, flat_weight, flat_bias = _flat(op.y, readonly=False), _flat(weight), _flat(bias)
    scale = (float(job.view.set_size - correction), eps)

    def run(real: Array, todo: Array) -> Any:
        arguments = (job.x, y, flat_weight, flat_bias, own, todo, job.geo, scale, real)
        return threads.launch(job.elements, kernels.forward, kernels.forward_parallel, arguments, job.groups)

    _narrow_then_wide(op.wide, job.view.n_sets, run)
    return own if want_moments else None


def moments(x: Array, split: Split, center: bool, wide: bool) -> Array:
    """Moments (mean, its low part, M2) of every set of x, in the order of the sets."""
    none = np.ones(())
    job = _job(Operands(x, x, none, none, split, center), none, none)
    result = np.empty((3, job.view.n_sets))
    partials = np.empty((job.view.n_sets, job.chunks, 2))

    def run(real: Array, todo: Array) -> Any:
        tasks = job.groups * job.chunks
        arguments = (job.x, partials, job.geo, real)
        threads.launch(job.elements, kernels.partial_moments, kernels.partial_moments_parallel, arguments, tasks)
        return kernels.finish(job.x, partials, result, todo, job.geo, real)

    _narrow_then_wide(wide, job.view.n_sets, run)
    return result


def apply(op: Operands, own: Array, eps: float, divisor: float) -> None:
    """Normalize x into y by moments (mean, low part, M2) of every set; var = M2 / divisor."""
    weight = _affine(op.weight, op.bias, 1.0, op.wide)
    bias = _affine(op.bias, op.weight, 0.0, op.wide)
    job = _job(op, weight, bias)
    y, flat_weight, flat_bias = _flat(op.y, readonly=False), _flat(weight), _flat(bias)
    scale = (float(divisor), eps)

    def run(real: Array, todo: Array) -> Any:
        marked = kernels.mark_wild(own, todo, scale) if real.itemsize == 4 else 0
        arguments = (job.x, y, flat_weight, flat_bias, own, todo, job.geo, scale, real)
        tasks = job.groups * geometry.chunk_count(job.view.apply_rows)
        threads.launch(job.elements, kernels.apply, kernels.apply_parallel, arguments, tasks)
        return marked

    _narrow_then_wide(op.wide, job.view.n_sets, run)
