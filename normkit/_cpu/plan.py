"""What a call on the CPU hands to its kernels: flat arrays, packed geometry, tasks. Cached by sets and layouts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .._dtypes import Array, name_of
from .._layout import Split, Strides, set_view
from .._operands import Operands
from . import geometry

# Few tiles cannot keep many cores busy: with fewer than this, long sets are split into chunks (two passes over x).
_FUSED_TILES = 64
# Affines up to this size are converted to the accumulator's dtype; larger ones are read in their own.
_CAST_ELEMENTS = 1 << 16
# Numba's CPU types have neither float16 nor bfloat16: they travel as records of one uint16, named by their field.
_TAGGED = {name: np.dtype([(name, np.uint16)]) for name in ("float16", "bfloat16")}
_ALL = np.empty(0, np.uint8)  # `todo` that leaves nothing out


Layout = tuple[tuple[int, ...], tuple[int, ...], int]  # shape, strides in bytes, itemsize


@dataclass(frozen=True, slots=True)
class Plan:
    """What follows from sets and layouts alone: packed geometry, numbers of sets and tasks."""

    geo: Array
    n_sets: int
    set_size: int
    groups: int  # tasks along the sets
    chunks: int  # and along a set, in the statistics
    apply_chunks: int  # and in the apply pass
    fused: bool  # statistics and result in one kernel
    collects: bool  # and the sums over sets of each position too
    in_runs: bool  # for the kernels of `runs`
    apart: bool | None  # what the others are compiled for: True or None

    @property
    def elements(self) -> int:
        return self.n_sets * self.set_size


@lru_cache(maxsize=4096)
def _plan(split: Split, flags: tuple[bool, bool, bool], x: Layout, y: Layout, weight: Layout, last: Layout, few: int) -> Plan:
    """The plan of a call; `few` tiles are split into chunks. `last` is bias, or dy; flags: center, fresh, gradient."""
    center, fresh, gradient = flags
    operands = [_strides(layout, len(x[0])) for layout in (x, y, weight, last)]
    view = set_view(split, *operands, gradient)
    chunks, in_runs = geometry.chunk_count(view.rows), geometry.in_runs(view)
    return Plan(
        geo=geometry.pack(view, center, fresh),
        n_sets=view.n_sets,
        set_size=view.set_size,
        groups=geometry.tile_groups(view),
        chunks=chunks,
        apply_chunks=geometry.chunk_count(view.apply_rows),
        fused=(chunks == 1 or view.tiles >= few) and (gradient or geometry.sums_as_runs(view) == in_runs),
        collects=geometry.collects(view),
        in_runs=in_runs,
        apart=geometry.apart(view) or None,
    )


def _layout(array: Array) -> Layout:
    return array.shape, array.strides, array.itemsize


def plan_of(op: Operands, weight: Array, bias: Array) -> Plan:
    """The plan of a call with these affine arrays."""
    last, flags = bias if op.dy is None else op.dy, (op.center, op.fresh, op.dy is not None)
    return _plan(op.split, flags, _layout(op.x), _layout(op.y), _layout(weight), _layout(last), _FUSED_TILES)


@lru_cache(maxsize=8)
def real(wide: bool) -> Array:
    """An empty array that carries the accumulator's dtype into a kernel."""
    return np.empty(0, np.float64 if wide else np.float32)


def _strides(layout: Layout, ndim: int) -> Strides:
    """Strides in elements, as broadcast to `ndim` axes: 0 for an axis of length 1."""
    shape, steps, size = layout
    own = tuple(step // size if n > 1 else 0 for step, n in zip(steps, shape, strict=True))
    return (0,) * (ndim - len(shape)) + own


def flat(array: Array, readonly: bool = True) -> Array:
    """The memory between an array's first and last element, as one dimension, in storage dtype."""
    if array.flags.c_contiguous:
        line = array.reshape(-1)
    else:
        forward = array[tuple(slice(None, None, -1) if step < 0 else slice(None) for step in array.strides)]
        extent = 1 + sum((n - 1) * step // array.itemsize for n, step in zip(forward.shape, forward.strides, strict=True))
        line = as_strided(forward, (extent,), (array.itemsize,))
    line = line.view(_TAGGED.get(name_of(line.dtype), np.uint8 if line.dtype.kind == "b" else line.dtype))
    if readonly:
        line.flags.writeable = False  # a kernel that wrote to it would not compile
    return line


@lru_cache(maxsize=8)
def _neutral(value: float, wide: bool) -> Array:
    return np.full(1, value, real(wide).dtype)


def affine(given: Array | None, other: Array | None, neutral: float, wide: bool) -> Array:
    """Weight or bias in a dtype for the kernels; where it is absent but the other varies, spelled out, if that is small."""
    if given is None:
        if other is None or other.size > _CAST_ELEMENTS:
            return _neutral(neutral, wide)
        return np.full(other.shape, neutral, real(wide).dtype)
    dtype = real(wide).dtype
    return given.astype(dtype) if given.dtype != dtype and given.size <= _CAST_ELEMENTS else given


def narrow_then_wide(wide: bool, n_sets: int, run: Callable[[Array, Array], Any]) -> None:
    """run(real, todo) in the accumulator; sets that float32 is too narrow for come back marked and go in float64."""
    if wide:
        run(real(True), _ALL)
        return
    todo = np.zeros(n_sets, np.uint8)
    if run(real(False), todo):
        run(real(True), todo)
