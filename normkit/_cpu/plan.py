"""What a call on the CPU hands to its kernels: flat arrays, packed geometry, tasks. Cached by sets and layouts."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .._dtypes import Array, name_of
from .._layout import Split, Strides, ceil_div, set_view
from .._operands import Operands
from . import arrangement, schedule, threads
from .geometry import CHUNK

# Few tiles cannot keep many cores busy: with fewer than this, or than so many for each thread, long sets are split into chunks
# (two passes over x), if there is work for more: so many elements each. Group norm of (1, 320, 64, 64) in 32 groups takes 0.14
# ms in one pass, 0.17 in two, its gradient 0.31 and 0.59 (two threads). Sets of less than a chunk of runs have shorter chunks
# where they lie in no runs, and wait for fewer tiles yet: batch norm of (32, 512, 7, 7) in channels-last, of two tiles, takes
# 0.23 ms, and 0.25 in two passes, of 4096 x 256, of one, 0.33 and 0.25 (Zen 4, 2026-11).
_FUSED_TILES, _FUSED_TILES_PER_THREAD, _FUSED_ELEMENTS, _SHORTER = 64, 4, 1 << 15, 12
# Affines up to this size are converted to the accumulator's dtype; larger ones are read in their own.
_CAST_ELEMENTS = 1 << 16
# Numba's CPU types have neither float16 nor bfloat16: they travel as records of one uint16, named by their field.
_TAGGED = {name: np.dtype([(name, np.uint16)]) for name in ("float16", "bfloat16")}
ALL = np.empty(0, np.uint8)  # `todo` that leaves nothing out
REAL = {wide: np.empty(0, np.float64 if wide else np.float32) for wide in (False, True)}  # carry the accumulator's dtype


Layout = tuple[tuple[int, ...], tuple[int, ...], int]  # shape, strides in bytes, itemsize


@dataclass(frozen=True, slots=True)
class Plan:
    """What follows from sets and layouts alone: packed geometry, numbers of sets and tasks."""

    geo: Array
    apply_geo: Array  # of the apply pass
    n_sets: int
    set_size: int
    work: int  # of all sets, in elements
    groups: int  # tasks along the sets
    chunks: int  # and along a set, in the statistics
    apply_tasks: int  # in the apply pass
    fused: bool  # statistics and result in one kernel
    collects: bool  # and the sums over sets of each position too
    piece: int  # positions of all sets for which one task can add these up while it sums the sets; or 0
    in_runs: bool  # for the kernels of `runs`
    sums_in_runs: bool  # and for those of statistics alone
    short: bool  # and each set in one run, of a block
    in_columns: bool  # or small ones side by side, for their kernel
    apart: bool | None  # what the others are compiled for: True or None


@lru_cache(maxsize=4096)
def _plan(
    split: Split, flags: tuple[bool, bool, bool, bool], x: Layout, y: Layout, weight: Layout, last: Layout, few: int, most: int
) -> Plan:
    """The plan of a call; fewer tiles than both `few` and `most` are split into chunks. `last` is bias, or dy.

    flags: center, fresh, gradient, stepped (see `SetView`).
    """
    center, fresh, gradient, stepped = flags
    operands = [strides_of(layout, len(x[0])) for layout in (x, y, weight, last)]
    view = set_view(split, *operands, gradient, stepped)
    rows, chunks = schedule.in_rows(view), ceil_div(view.rows, schedule.chunk_rows(view, view.rows))
    groups, in_runs = schedule.tile_groups(view), arrangement.in_runs(view)
    sums_in_runs = arrangement.sums_as_runs(view)
    few = few // _SHORTER if view.rows <= CHUNK else few
    fused = chunks == 1 or view.tiles >= min(few, most)
    fused &= not schedule.outgrows_cache(view, x[2] + y[2]) and (gradient or sums_in_runs == in_runs)
    return Plan(
        geo=schedule.pack(view, center, fresh, y[2]),
        apply_geo=schedule.pack(rows, center, fresh, y[2]),
        n_sets=view.n_sets,
        set_size=view.set_size,
        work=schedule.work(view),
        groups=groups,
        chunks=chunks,
        apply_tasks=schedule.tile_groups(rows) * ceil_div(rows.apply_rows, schedule.apply_chunk_rows(rows)),
        fused=fused,
        collects=schedule.collects(view, groups if fused else groups * chunks, fused),
        piece=schedule.piece(view),
        in_runs=in_runs,
        sums_in_runs=sums_in_runs,
        short=arrangement.is_short(view),
        in_columns=arrangement.in_columns(view, y[2]),
        apart=arrangement.apart(view) or None,
    )


def layout_of(array: Array) -> Layout:
    """What decides where the elements of an array are."""
    return array.shape, array.strides, array.itemsize


def plan_of(op: Operands, weight: Array, bias: Array, stepped: bool = False) -> Plan:
    """The plan of a call with these affine arrays. `stepped`: see `SetView`."""
    last, flags = bias if op.dy is None else op.dy, (op.center, op.fresh, op.dy is not None, stepped)
    few = min(_FUSED_TILES, op.x.size // _FUSED_ELEMENTS) if op.x.size >= threads.PARALLEL_ELEMENTS else 0
    most = _FUSED_TILES_PER_THREAD * threads.count()
    return _plan(op.split, flags, layout_of(op.x), layout_of(op.y), layout_of(weight), layout_of(last), few, most)


def strides_of(layout: Layout, ndim: int) -> Strides:
    """Strides in elements, as broadcast to `ndim` axes: 0 for an axis of length 1."""
    shape, steps, size = layout
    own = tuple(step // size if n > 1 else 0 for step, n in zip(steps, shape, strict=True))
    return (0,) * (ndim - len(shape)) + own


Flatten = Callable[[Array], Array]


def flat_for(like: Array) -> Flatten:
    """What gives the memory of arrays of this form, from first to last element, as one dimension, in storage dtype.

    It may be written to, as far as Numba knows: of what may and what may not it would make kernels each.
    """
    dtype = _TAGGED.get(name_of(like.dtype), np.dtype(np.uint8) if like.dtype.kind == "b" else like.dtype)
    straight, stored = like.flags.c_contiguous, dtype == like.dtype
    if straight and stored and like.flags.writeable:
        return np.ndarray.ravel  # most calls, and the least time
    order = tuple(sorted(range(like.ndim), key=lambda axis: (-abs(like.strides[axis]), axis)))
    dense = straight or like.transpose(order).flags.c_contiguous

    def flat(array: Array) -> Array:
        line = array.ravel() if straight else array.transpose(order).reshape(-1) if dense else _extent(array)
        if not stored:
            line = line.view(dtype)
        return line if line.flags.writeable else _unlocked(line)

    return flat


def _unlocked(line: Array) -> Array:
    """The same memory without NumPy's lock on it; who holds the array holds the memory."""
    memory = memoryview((ctypes.c_byte * line.nbytes).from_address(line.ctypes.data))
    return np.frombuffer(memory, line.dtype)


def _extent(array: Array) -> Array:
    """The memory between the first and last element of an array that has gaps."""
    forward = array[tuple(slice(None, None, -1) if step < 0 else slice(None) for step in array.strides)]
    extent = 1 + sum((n - 1) * step // array.itemsize for n, step in zip(forward.shape, forward.strides, strict=True))
    return as_strided(forward, (extent,), (array.itemsize,))


def flat(array: Array) -> Array:
    """The memory of one array."""
    return flat_for(array)(array)


@lru_cache(maxsize=8)
def _neutral(value: float, wide: bool) -> Array:
    return np.full(1, value, REAL[wide].dtype)


def affine_for(like: Array | None, other: Array | None, neutral: float, wide: bool) -> Callable[[Array | None], Array]:
    """What gives weights or biases of this form in a dtype for the kernels.

    Where there is none but the other one varies, it is spelled out, if that is small.
    """
    dtype = REAL[wide].dtype
    if like is None:
        spelled = other is not None and other.size <= _CAST_ELEMENTS
        constant = np.full(other.shape, neutral, dtype) if spelled and other is not None else _neutral(neutral, wide)
        return lambda _: constant
    if like.dtype != dtype and like.size <= _CAST_ELEMENTS:
        return lambda given: np.asarray(given, dtype)
    return np.asarray


def narrow_then_wide(wide: bool, n_sets: int, run: Callable[[Array, Array], Any], marked: Array | None = None) -> Array:
    """run(real, todo) in the accumulator; sets that float32 is too narrow for come back marked and go in float64.

    Returns the marks; `marked` are those of an earlier pass over the same sets.
    """
    if wide:
        run(REAL[True], ALL)
        return ALL
    todo = np.zeros(n_sets, np.uint8) if marked is None else marked
    if run(REAL[False], todo):
        run(REAL[True], todo)
    return todo
