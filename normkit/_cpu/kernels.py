"""The CPU kernels of the norm, in tasks: forward, moments, apply. They know nothing of norms, axes or frameworks.

A *tile* is `count` sets that are neighbours along K1, and a set is seen as `rows` positions of `lanes` neighbouring
elements (`lanes` > 1 only where the innermost reduced segment is short). Geometry comes packed in one integer array, see
`geometry.py`. A task is a few tiles, or a chunk of them. `apart` is None where neighbours in a tile are neighbours in memory,
and what that leaves out is not compiled: time of the first call. Sets that lie in runs have kernels of their own (`runs.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .buffers import (
    CHUNK_M2,
    CHUNK_MEAN,
    CHUNK_ORIGIN,
    LANE_BIAS,
    LANE_WEIGHT,
    M2,
    MEAN,
    MEAN_LOW,
    ORIGIN,
    SET_RSTD,
    WORK_ROWS,
)
from .columns import normalize_columns
from .compile import jit, jit_inline
from .finish import finish_tile, skipped
from .formulas import loses_digits, merge, two_parts
from .geometry import (
    APPLY_ROWS,
    CENTER,
    COLUMNS_KEPT,
    LANE,
    MEMORY,
    NEAR,
    PER_APPLY,
    PER_CHUNK,
    REDUCED,
    ROW,
    ROWS,
    ROWS_KEPT,
    SIZE,
    TILE_WIDTH,
    B,
    W,
    X,
    Y,
)
from .indexing import chunk_of, entry, innermost, tile_of, tiles_of
from .partials import fewer, head_of, partials_of
from .rows import copy_rows
from .standardize import apply_tile, lay_affine, wild
from .sums import chunk_moments
from .vectors import fence, least, on_its_own, out_of_line, release, scratch


@jit_inline
def skip_all(todo: Any, first: int, count: int, work: Any) -> Any:
    for k in range(first, first + count):
        if not skipped(todo, k, work):
            return False
    return True


@jit_inline
def _marked(todo: Any) -> Any:
    """How many sets wait for float64."""
    marked = 0
    for k in range(todo.shape[0]):
        marked += todo[k]
    return marked


@jit
def forward(
    x: Any,
    y: Any,
    w: Any,
    b: Any,
    moments: Any,
    todo: Any,
    geo: Any,
    share: float,
    eps: float,
    real: Any,
    apart: Any,
    begin: int,
    end: int,
) -> Any:
    """Statistics and result of each tile while it is in cache. Returns how many sets wait for float64."""
    out_of_line()
    work, own = scratch(WORK_ROWS, ROW, real), scratch(6, TILE_WIDTH, moments)
    marked = 0
    start, stop = tiles_of(geo, begin, end)
    for index in range(start, stop):
        tile = tile_of(geo, index)
        first, count, at = tile
        if work.itemsize == 8 and skip_all(todo, first, count, work):
            continue
        n = chunk_moments(x, geo, at, 0, count, work, own[MEAN], own[M2], apart)
        copy_rows(work, ORIGIN, 0, own, CHUNK_ORIGIN, 0, 1, count)
        for chunk in range(1, -(-entry(geo, 1, ROWS) // entry(geo, 0, PER_CHUNK))):
            n_b = chunk_moments(x, geo, at, chunk, count, work, own[CHUNK_MEAN], own[CHUNK_M2], apart)
            for k in range(count):
                mean_b = (np.float64(work[ORIGIN, k]) - own[CHUNK_ORIGIN, k]) + own[CHUNK_MEAN, k]
                own[MEAN, k], own[M2, k] = merge(own[MEAN, k], own[M2, k], n, mean_b, own[CHUNK_M2, k], n_b)
            n += n_b
        marked += finish_tile(own, n, count, share, eps, entry(geo, 1, CENTER) != 0, moments, todo, first, work)
        apply_tile(x, None, y, w, b, geo, tile, 0, entry(geo, 2, APPLY_ROWS), own, todo, work, apart)
    release(work)
    release(own)
    fence()
    return marked


@jit
def forward_columns(
    x: Any,
    y: Any,
    w: Any,
    b: Any,
    moments: Any,
    todo: Any,
    geo: Any,
    share: float,
    eps: float,
    real: Any,
    apart: Any,
    begin: int,
    end: int,
) -> Any:
    """`forward` in float32 where sets side by side are small: the same bits."""
    on_its_own()
    work, kept = scratch(WORK_ROWS, ROW, real), scratch(ROWS_KEPT, COLUMNS_KEPT, real)
    n, lanes, marked = entry(geo, 1, ROWS), entry(geo, LANE, SIZE), 0
    inner = innermost(geo, REDUCED) - (lanes > 1)
    head, steps = head_of(lanes, n), (entry(geo, inner, X), entry(geo, inner, Y))
    shares, partials = (1.0 / (head * lanes), 1.0 / (n * lanes), share), fewer(partials_of(lanes), n)
    center, far = entry(geo, 1, CENTER) != 0, entry(geo, 2, MEMORY) != NEAR
    start, stop = tiles_of(geo, begin, end)
    laid = (-1, -1, -1)
    for index in range(start, stop):
        first, count, at = tile_of(geo, index)
        if (at[2], at[3], count) != laid:
            laid = (at[2], at[3], count)
            lay_affine(w, geo, at[2], count, W, work[LANE_WEIGHT])
            lay_affine(b, geo, at[3], count, B, work[LANE_BIAS])
        sizes = (n, count, lanes, partials)
        marked += normalize_columns(
            x, y, kept, work, at[:2], steps, sizes, head, shares, eps, center, moments, todo, first, far
        )
    release(work)
    release(kept)
    fence()
    return marked


@jit
def partial_moments(x: Any, partials: Any, geo: Any, real: Any, apart: Any, begin: int, end: int) -> int:
    """Moments of one chunk of a few tiles per task. partials: (sets, chunks, 3)."""
    out_of_line()
    work, part = scratch(WORK_ROWS, ROW, real), scratch(2, TILE_WIDTH, partials)
    mean, m2 = part[0], part[1]
    chunks = partials.shape[1]
    for task in range(begin, end):
        group, chunk = task // chunks, task % chunks
        start, stop = tiles_of(geo, group, group + 1)
        for index in range(start, stop):
            first, count, at = tile_of(geo, index)
            chunk_moments(x, geo, at, chunk, count, work, mean, m2, apart)
            for k in range(count):
                partials[first + k, chunk, 0] = mean[k]
                partials[first + k, chunk, 1] = m2[k]
                partials[first + k, chunk, 2] = work[ORIGIN, k]
    release(work)
    release(part)
    return 0


@jit
def finish(partials: Any, moments: Any, todo: Any, geo: Any, real: Any) -> Any:
    """Merge the chunks of every set, in order. Returns how many sets wait for float64."""
    out_of_line()
    marked = 0
    for k in range(partials.shape[0]):
        if real.itemsize == 8 and skipped(todo, k, real):
            continue
        mean, m2, n, origin = 0.0, 0.0, 0.0, partials[k, 0, 2]
        for chunk in range(partials.shape[1]):
            begin, end = chunk_of(geo, chunk)
            n_b = float((end - begin) * entry(geo, LANE, SIZE))
            mean_b = (partials[k, chunk, 2] - origin) + partials[k, chunk, 0]
            mean, m2 = merge(mean, m2, n, mean_b, partials[k, chunk, 1], n_b)
            n += n_b
        moments[MEAN, k], moments[MEAN_LOW, k] = two_parts(origin, mean)
        moments[M2, k] = m2
        if real.itemsize == 4 and loses_digits(moments[MEAN, k], m2, n, entry(geo, 1, CENTER) != 0):
            todo[k] = 1
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
def apply(
    x: Any,
    dy: Any,
    y: Any,
    w: Any,
    b: Any,
    sets: Any,
    todo: Any,
    geo: Any,
    real: Any,
    apart: Any,
    begin: int,
    end: int,
) -> int:
    """The result of one chunk of a few tiles per task, from the numbers of its sets: of the norm, or with dy its gradient."""
    out_of_line()
    work = scratch(WORK_ROWS, ROW, real)
    size = entry(geo, 0, PER_APPLY)
    chunks = -(-entry(geo, 2, APPLY_ROWS) // size)
    for task in range(begin, end):
        group, i = task // chunks, (task % chunks) * size
        start, stop = tiles_of(geo, group, group + 1)
        for index in range(start, stop):
            tile = tile_of(geo, index)
            first, count = tile[0], tile[1]
            if not skip_all(todo, first, count, work):
                m = least(size, entry(geo, 2, APPLY_ROWS) - i)
                apply_tile(x, dy, y, w, b, geo, tile, i, m, sets[:, first : first + count], todo, work, apart)
    release(work)
    fence()
    return 0
