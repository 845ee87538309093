"""The CPU kernels of the gradient, on the same tiles as the norm's.

With g = dy * weight and n elements in a set, dx = rstd * (g - sum(g) / n - x_hat * sum(g * x_hat) / (n - correction)):
Ioffe and Szegedy, Batch Normalization (2015), section 3, with the parts collected. What is the same for a whole set, a
weight too, is taken out as `gain`. Sums over the sets of a parameter are the same sums: there the centre changes from
position to position, and the weight is one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from .affine import apply_run
from .buffers import MEAN, MEAN_LOW, SET_GAIN, SET_RSTD, SET_SHIFT, SET_SLOPE, WEIGHT, WORK_ROWS
from .geometry import APPLY_ROWS, CHUNK, KEPT, LANE, PER_TASK, REDUCED, ROW, ROWS, SHORT, SIZE, STREAM, TILE_WIDTH, W
from .indexing import segments_of, short_origin, tile_count, tile_origin
from .kernels import skip_all
from .lanes import flush, sum_run
from .standardize import apply_tile, load_sets, skipped
from .sums import chunk_products
from .threads import jit, jit_parallel
from .vectors import fence, fill, out_of_line

FLUSH_SETS = 16  # roundings in a row of float32 sums over sets, before they are added up in float64


@jit
def _backward_short(
    x: Any,
    dy: Any,
    dx: Any,
    w: Any,
    sets: Any,
    sums: Any,
    totals: Any,
    todo: Any,
    geo: Any,
    shares: Any,
    real: Any,
    begin: int,
    end: int,
) -> None:
    """`backward` for sets that are one short run, without the bookkeeping of tiles: the same operations, the same bits."""
    out_of_line()
    collected = np.zeros((2, totals.shape[2]), real.dtype)
    kind, n = real.dtype.type, geo[1, ROWS]
    kept, stream = segments_of(geo, KEPT), geo[2, STREAM] != 0
    vary = segments_of(geo, REDUCED)[-1, W] != 0
    for k in range(begin * geo[1, PER_TASK], min(end * geo[1, PER_TASK], tile_count(geo))):
        if not skipped(todo, k, real):
            at, mean = short_origin(geo, kept, k), sets[MEAN, k]
            high = kind(mean)
            centre = (high, kind((mean - np.float64(high)) + sets[MEAN_LOW, k]), kind(sets[SET_RSTD, k]))
            s, q = sum_run(x, at[0], dy, at[3], n, centre, (w,), at[2], vary, collected, 0)
            sums[0, k], sums[1, k] = s, q
            rest = (kind(sums[0, k] * shares[0]), kind(sums[1, k] * shares[1]), kind(sets[SET_GAIN, k]))
            apply_run(x, at[0], dy, at[3], dx, at[1], n, centre, (w, None), (at[2], 0), rest, vary, stream)
        _flush(collected, totals, k, geo)
    fence()


@jit
def _flush(collected: Any, totals: Any, k: int, geo: Any) -> None:
    """After set k: add what a task has collected to its totals, every few sets and at its end."""
    task = k // geo[1, PER_TASK]
    if (k + 1) % FLUSH_SETS == 0 or (k + 1) % geo[1, PER_TASK] == 0 or k + 1 == tile_count(geo):
        for row in range(2 if totals.shape[2] > 0 else 0):
            flush(collected[row], totals[task, row], totals.shape[2])


@jit
def backward(
    x: Any,
    dy: Any,
    dx: Any,
    w: Any,
    sets: Any,
    sums: Any,
    totals: Any,
    todo: Any,
    geo: Any,
    shares: Any,
    real: Any,
    begin: int,
    end: int,
) -> None:
    """The sums of each set, (2, sets), and its dx while it is in cache.

    sets: (6, sets), of which shift and slope are found here: sums * shares. totals: (tasks, 2, n), sums of dy and dy * x_hat
    of each position over the sets of a task, or (tasks, 2, 0).
    """
    out_of_line()
    if geo[2, SHORT]:
        _backward_short(x, dy, dx, w, sets, sums, totals, todo, geo, shares, real, begin, end)
        return
    collected = np.zeros((2, totals.shape[2]), real.dtype)
    work = np.empty((WORK_ROWS, ROW), real.dtype)
    part = np.empty((2, TILE_WIDTH))
    own = np.empty((6, TILE_WIDTH))
    for index in range(begin * geo[1, PER_TASK], min(end * geo[1, PER_TASK], tile_count(geo))):
        tile = tile_origin(geo, index)
        first, count, at = tile
        if skip_all(todo, first, count, work):
            _flush(collected, totals, first, geo)
            continue
        for row in range(6):
            for k in range(count):
                own[row, k] = sets[row, first + k]
        for k in range(count):
            own[SET_SHIFT, k], own[SET_SLOPE, k] = 0.0, 0.0
        for chunk in range(-(-geo[1, ROWS] // CHUNK)):
            load_sets(sets, first, count, geo[LANE, SIZE], False, work)
            chunk_products(x, dy, (w,), geo, at, chunk, count, work, part, collected)
            for k in range(count):
                own[SET_SHIFT, k] += part[0, k]
                own[SET_SLOPE, k] += part[1, k]
        for k in range(count):
            if not skipped(todo, first + k, work):
                sums[0, first + k], sums[1, first + k] = own[SET_SHIFT, k], own[SET_SLOPE, k]
            own[SET_SHIFT, k] *= shares[0]
            own[SET_SLOPE, k] *= shares[1]
        apply_tile(x, dy, dx, w, None, geo, tile, 0, geo[2, APPLY_ROWS], own, todo, work)
        _flush(collected, totals, first, geo)
    fence()


@jit
def partial_products(
    x: Any, dy: Any, moving: Any, sets: Any, partials: Any, todo: Any, geo: Any, real: Any, begin: int, end: int
) -> None:
    """The two sums over one chunk of a few tiles per task. partials: (sets, chunks, 2).

    moving = (weight,): sums of the norm's own sets. moving = (high, low, rstd): sums over the sets of a parameter.
    """
    out_of_line()
    work = np.empty((WORK_ROWS, ROW), real.dtype)
    part = np.empty((2, TILE_WIDTH))
    chunks, per_task = partials.shape[1], geo[1, PER_TASK]
    for task in range(begin, end):
        group, chunk = task // chunks, task % chunks
        for index in range(group * per_task, min((group + 1) * per_task, tile_count(geo))):
            first, count, at = tile_origin(geo, index)
            if skip_all(todo, first, count, work):
                continue
            if len(moving) == 1:
                load_sets(sets, first, count, geo[LANE, SIZE], False, work)
            else:
                fill(work[WEIGHT], count * geo[LANE, SIZE], real.dtype.type(1))
            chunk_products(x, dy, moving, geo, at, chunk, count, work, part, np.zeros((2, 0), real.dtype))
            for k in range(count):
                if not skipped(todo, first + k, work):
                    partials[first + k, chunk, 0] = part[0, k]
                    partials[first + k, chunk, 1] = part[1, k]


@jit
def merge_products(partials: Any, sums: Any) -> None:
    """The chunks of every set added, in order."""
    for k in range(partials.shape[0]):
        for row in range(2):
            total = 0.0
            for chunk in range(partials.shape[1]):
                total += partials[k, chunk, row]
            sums[row, k] = total


@jit_parallel
def backward_parallel(
    x: Any, dy: Any, dx: Any, w: Any, sets: Any, sums: Any, totals: Any, todo: Any, geo: Any, shares: Any, real: Any, tasks: int
) -> None:
    for task in prange(tasks):
        backward(x, dy, dx, w, sets, sums, totals, todo, geo, shares, real, task, task + 1)


@jit_parallel
def partial_products_parallel(
    x: Any, dy: Any, moving: Any, sets: Any, partials: Any, todo: Any, geo: Any, real: Any, tasks: int
) -> None:
    for task in prange(tasks):
        partial_products(x, dy, moving, sets, partials, todo, geo, real, task, task + 1)
