"""The CPU kernels of the norm, in tasks: forward, moments, apply. They know nothing of norms, axes or frameworks.

A *tile* is `count` sets that are neighbours along K1, and a set is seen as `rows` positions of `lanes` neighbouring
elements (`lanes` > 1 only where the innermost reduced segment is short). Geometry comes packed in one integer array, see
`geometry.py`. A task is a few tiles, or a chunk of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from .affine import apply_run
from .buffers import M2, MEAN, MEAN_LOW, SET_RSTD, WORK_ROWS
from .geometry import (
    APPLY_ROWS,
    CENTER,
    CHUNK,
    KEPT,
    LANE,
    PER_TASK,
    REDUCED,
    ROW,
    ROWS,
    SHORT,
    SIZE,
    STREAM,
    TILE_WIDTH,
    W,
    X,
)
from .indexing import segments_of, short_origin, tile_count, tile_origin
from .lanes import sum_run
from .standardize import apply_tile, scale_of, skipped, wild
from .sums import about_pivot, chunk_moments, finish_set, loses_digits, merge
from .threads import jit, jit_parallel
from .vectors import fence, out_of_line, read


@jit
def skip_all(todo: Any, first: int, count: int, work: Any) -> Any:
    for k in range(first, first + count):
        if not skipped(todo, k, work):
            return False
    return True


@jit
def _marked(todo: Any) -> Any:
    """How many sets wait for float64."""
    marked = 0
    for k in range(todo.shape[0]):
        marked += todo[k]
    return marked


@jit
def _short_moments(x: Any, geo: Any, o: int, n: int, real: Any) -> Any:
    """What `_sum_chunk` and `_finish_set` give for a set that is one run and one block: (mean, its low part, M2)."""
    if not geo[1, CENTER]:
        zero = real.dtype.type(0)
        _, q = sum_run(x, o, None, 0, n, (zero, zero, zero), None, 0, False, None, 0)
        return 0.0, 0.0, np.float64(q)
    first = read(x, o, real.dtype.type)
    start = np.float64(first)
    s, _ = sum_run(x, o, None, 0, n, (first, first, first), None, 0, False, None, 0)
    pivot = real.dtype.type(start + np.float64(s) / n)
    s, q = sum_run(x, o, None, 0, n, (pivot, pivot, pivot), None, 0, False, None, 0)
    rest, m2 = about_pivot(s, q, n, pivot, start)
    mean = start + rest
    return mean, (start - mean) + rest, m2


@jit
def _forward_short(
    x: Any, y: Any, w: Any, b: Any, moments: Any, todo: Any, geo: Any, scale: Any, real: Any, begin: int, end: int
) -> Any:
    """`forward` without the bookkeeping of tiles, for sets that are one short run: the same operations, the same bits.

    A set of 256 takes 110 ns here and 440 ns as a tile (one core of a Xeon, 2026-11).
    """
    out_of_line()
    n, marked = geo[1, ROWS], 0
    inner = segments_of(geo, REDUCED)[-1]
    kept, vary, stream = segments_of(geo, KEPT), inner[W] != 0, geo[2, STREAM] != 0
    for k in range(begin * geo[1, PER_TASK], min(end * geo[1, PER_TASK], tile_count(geo))):
        if real.itemsize == 8 and skipped(todo, k, real):
            continue
        at = short_origin(geo, kept, k)
        mean, low, m2 = _short_moments(x, geo, at[0], n, real)
        if real.itemsize == 4 and loses_digits(mean, m2, n, geo[1, CENTER] != 0):
            todo[k] = 1
            marked += 1
            continue
        if moments.shape[1] > 0:
            moments[MEAN, k], moments[MEAN_LOW, k], moments[M2, k] = mean, low, m2
        high = real.dtype.type(mean)
        low = real.dtype.type((mean - np.float64(high)) + low)
        centre = (high, low, real.dtype.type(scale_of(m2, scale[0], scale[1])))
        apply_run(x, at[0], None, 0, y, at[1], n, centre, (w, b), (at[2], at[3]), centre, vary, stream)
    fence()
    return marked


@jit
def forward(
    x: Any, y: Any, w: Any, b: Any, moments: Any, todo: Any, geo: Any, scale: Any, real: Any, begin: int, end: int
) -> Any:
    """Statistics and result of each tile while it is in cache. Returns how many sets wait for float64."""
    out_of_line()
    if geo[2, SHORT]:
        return _forward_short(x, y, w, b, moments, todo, geo, scale, real, begin, end)
    work = np.empty((WORK_ROWS, ROW), real.dtype)
    mean, m2 = np.empty(TILE_WIDTH), np.empty(TILE_WIDTH)
    own = np.empty((3, TILE_WIDTH))
    step, marked = segments_of(geo, KEPT)[-1, X], 0
    for index in range(begin * geo[1, PER_TASK], min(end * geo[1, PER_TASK], tile_count(geo))):
        tile = tile_origin(geo, index)
        first, count, at = tile
        if work.itemsize == 8 and skip_all(todo, first, count, work):
            continue
        n = 0.0
        for chunk in range(-(-geo[1, ROWS] // CHUNK)):
            n_b = chunk_moments(x, geo, at, chunk, count, work, mean, m2)
            for k in range(count):
                own[MEAN, k], own[M2, k] = merge(own[MEAN, k], own[M2, k], n, mean[k], m2[k], n_b)
            n += n_b
        for k in range(count):
            finish_set(x, geo, at[0] + k * step, own[MEAN, k], own[M2, k], own, k)
            if work.itemsize == 4 and loses_digits(own[MEAN, k], own[M2, k], n, geo[1, CENTER] != 0):
                todo[first + k] = 1
                marked += 1
            elif moments.shape[1] > 0 and not skipped(todo, first + k, work):
                for row in range(3):
                    moments[row, first + k] = own[row, k]
            own[SET_RSTD, k] = scale_of(own[M2, k], scale[0], scale[1])
        apply_tile(x, None, y, w, b, geo, tile, 0, geo[2, APPLY_ROWS], own, todo, work)
    fence()
    return marked


@jit
def partial_moments(x: Any, partials: Any, geo: Any, real: Any, begin: int, end: int) -> None:
    """Moments of one chunk of a few tiles per task. partials: (sets, chunks, 2)."""
    out_of_line()
    work = np.empty((WORK_ROWS, ROW), real.dtype)
    mean, m2 = np.empty(TILE_WIDTH), np.empty(TILE_WIDTH)
    chunks, per_task = partials.shape[1], geo[1, PER_TASK]
    for task in range(begin, end):
        group, chunk = task // chunks, task % chunks
        for index in range(group * per_task, min((group + 1) * per_task, tile_count(geo))):
            first, count, at = tile_origin(geo, index)
            chunk_moments(x, geo, at, chunk, count, work, mean, m2)
            for k in range(count):
                partials[first + k, chunk, 0] = mean[k]
                partials[first + k, chunk, 1] = m2[k]


@jit
def finish(x: Any, partials: Any, moments: Any, todo: Any, geo: Any, real: Any) -> Any:
    """Merge the chunks of every set, in order. Returns how many sets wait for float64."""
    out_of_line()
    step, marked = segments_of(geo, KEPT)[-1, X], 0
    for tile in range(tile_count(geo)):
        first, count, at = tile_origin(geo, tile)
        for k in range(count):
            if real.itemsize == 8 and skipped(todo, first + k, real):
                continue
            mean, m2, n = 0.0, 0.0, 0.0
            for chunk in range(partials.shape[1]):
                n_b = float((min(geo[1, ROWS], (chunk + 1) * CHUNK) - chunk * CHUNK) * geo[LANE, SIZE])
                mean, m2 = merge(mean, m2, n, partials[first + k, chunk, 0], partials[first + k, chunk, 1], n_b)
                n += n_b
            finish_set(x, geo, at[0] + k * step, mean, m2, moments, first + k)
            if real.itemsize == 4 and loses_digits(moments[MEAN, first + k], m2, n, geo[1, CENTER] != 0):
                todo[first + k] = 1
                marked += 1
    return marked


@jit
def mark_wild(sets: Any, todo: Any) -> Any:
    """Mark the sets whose centre or scale float32 cannot hold."""
    for k in range(todo.shape[0]):
        if wild(sets[MEAN, k], sets[SET_RSTD, k]):
            todo[k] = 1
    return _marked(todo)


@jit
def apply(x: Any, dy: Any, y: Any, w: Any, b: Any, sets: Any, todo: Any, geo: Any, real: Any, begin: int, end: int) -> None:
    """The result of one chunk of a few tiles per task, from the numbers of its sets: of the norm, or with dy its gradient."""
    out_of_line()
    work = np.empty((WORK_ROWS, ROW), real.dtype)
    chunks, per_task = -(-geo[2, APPLY_ROWS] // CHUNK), geo[1, PER_TASK]
    for task in range(begin, end):
        group, i = task // chunks, (task % chunks) * CHUNK
        for index in range(group * per_task, min((group + 1) * per_task, tile_count(geo))):
            tile = tile_origin(geo, index)
            first, count = tile[0], tile[1]
            if not skip_all(todo, first, count, work):
                m = min(CHUNK, geo[2, APPLY_ROWS] - i)
                apply_tile(x, dy, y, w, b, geo, tile, i, m, sets[:, first : first + count], todo, work)
    fence()


@jit_parallel
def forward_parallel(
    x: Any, y: Any, w: Any, b: Any, moments: Any, todo: Any, geo: Any, scale: Any, real: Any, tasks: int
) -> Any:
    for task in prange(tasks):
        forward(x, y, w, b, moments, todo, geo, scale, real, task, task + 1)
    return _marked(todo) if real.itemsize == 4 else 0


@jit_parallel
def partial_moments_parallel(x: Any, partials: Any, geo: Any, real: Any, tasks: int) -> None:
    for task in prange(tasks):
        partial_moments(x, partials, geo, real, task, task + 1)


@jit_parallel
def apply_parallel(x: Any, dy: Any, y: Any, w: Any, b: Any, sets: Any, todo: Any, geo: Any, real: Any, tasks: int) -> None:
    for task in prange(tasks):
        apply(x, dy, y, w, b, sets, todo, geo, real, task, task + 1)
