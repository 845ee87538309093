"""The CPU kernels of the gradient, on the same tiles as the norm's.

With g = dy * weight and n elements in a set, dx = rstd * (g - sum(g) / n - x_hat * sum(g * x_hat) / (n - correction)):
Ioffe and Szegedy, Batch Normalization (2015), section 3, with the parts collected. What is the same for a whole set, a
weight too, is taken out as `gain`. Sums over the sets of a parameter are the same sums: there the centre changes from
position to position, and the weight is one.
"""

from __future__ import annotations

from typing import Any

from .buffers import GAIN, SET_GAIN, SET_RSTD, SET_SHIFT, SET_SLOPE, WEIGHT, WORK_ROWS
from .column_gradients import pull_columns
from .compile import jit, jit_inline
from .finish import skipped
from .geometry import (
    APPLY_ROWS,
    COLUMNS_KEPT,
    DY,
    LANE,
    PER_CHUNK,
    REDUCED,
    ROW,
    ROWS,
    ROWS_KEPT,
    SIZE,
    TILE_WIDTH,
    W,
    X,
    Y,
)
from .indexing import entry, innermost, tile_of, tiles_of
from .kernels import skip_all
from .partials import fewer, partials_of
from .rows import add_rows, clear_rows, copy_rows, multiply_run, spread_lanes
from .standardize import apply_tile, lay_affine, load_sets
from .sums import chunk_products, collect_lanes
from .vectors import fence, on_its_own, out_of_line, release, scratch


@jit_inline
def _keep(own: Any, sums: Any, first: int, count: int, todo: Any, work: Any) -> None:
    """The sums of a tile's sets put among all; in float64 only those of sets that are marked, if it is not for all."""
    if work.itemsize == 4 or todo.shape[0] == 0:
        copy_rows(own, 0, 0, sums, 0, first, 2, count)
    else:
        for k in range(count):
            if not skipped(todo, first + k, work):
                sums[0, first + k], sums[1, first + k] = own[0, k], own[1, k]


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
    apart: Any,
    begin: int,
    end: int,
) -> int:
    """The sums of each set, (2, sets), and its dx while it is in cache.

    sets: (3, sets), or (4, sets) with their gain. Shift and slope are sums * shares. totals: (tasks, 2, n), sums of dy and
    dy * x_hat of a task for each element of the weight, or (tasks, 2, 0).
    """
    out_of_line()
    work, part, own = scratch(WORK_ROWS, ROW, real), scratch(2, TILE_WIDTH, sets), scratch(6, TILE_WIDTH, sets)
    for task in range(begin, end):
        start, stop = tiles_of(geo, task, task + 1)
        for index in range(start, stop):
            tile = tile_of(geo, index)
            first, count, at = tile
            if skip_all(todo, first, count, work):
                continue
            copy_rows(sets, 0, first, own, 0, 0, SET_RSTD + 1, count)
            copy_rows(sets, sets.shape[0] - 1, first, own, SET_GAIN, 0, 1, count)
            clear_rows(own, SET_SHIFT, 0, 2, count)
            for chunk in range(-(-entry(geo, 1, ROWS) // entry(geo, 0, PER_CHUNK))):
                load_sets(sets, first, count, entry(geo, LANE, SIZE), False, work)
                chunk_products(x, dy, (w,), geo, at, chunk, count, work, part, apart, totals[task])
                add_rows(part, 0, 0, own, SET_SHIFT, 0, 2, count)
            _keep(own[SET_SHIFT:], sums, first, count, todo, work)
            multiply_run(own[SET_SHIFT], shares[0], count)
            multiply_run(own[SET_SLOPE], shares[1], count)
            apply_tile(x, dy, dx, w, None, geo, tile, 0, entry(geo, 2, APPLY_ROWS), own, todo, work, apart)
    release(work)
    release(part)
    release(own)
    fence()
    return 0


@jit
def backward_columns(
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
    apart: Any,
    begin: int,
    end: int,
) -> int:
    """`backward` in float32 where sets side by side are small and none waits for float64: the same bits."""
    on_its_own()
    work, kept = scratch(WORK_ROWS, ROW, real), scratch(ROWS_KEPT, COLUMNS_KEPT, real)
    n, lanes, laid = entry(geo, 1, ROWS), entry(geo, LANE, SIZE), (-1, -1)
    inner, partials = innermost(geo, REDUCED) - (lanes > 1), fewer(partials_of(lanes), n)
    steps = (entry(geo, inner, X), entry(geo, inner, DY), entry(geo, inner, Y))
    for task in range(begin, end):
        start, stop = tiles_of(geo, task, task + 1)
        for index in range(start, stop):
            first, count, at = tile_of(geo, index)
            load_sets(sets, first, count, lanes, False, work)
            copy_rows(sets, sets.shape[0] - 1, first, work, GAIN, 0, 1, count)
            if lanes > 1:
                spread_lanes(work, GAIN, 1, count, lanes)
            if (at[2], count) != laid:
                laid = (at[2], count)
                lay_affine(w, geo, at[2], count, W, work[WEIGHT])
            sizes = (n, count, lanes, partials)
            pull_columns(x, dy, dx, kept, work, (at[0], at[3], at[1]), steps, sizes, shares, sums, first)
            if totals.shape[2] > 0:
                collect_lanes(work, geo, at[2], count, totals[task])
    release(work)
    release(kept)
    fence()
    return 0


@jit
def partial_products(
    x: Any,
    dy: Any,
    moving: Any,
    sets: Any,
    partials: Any,
    totals: Any,
    todo: Any,
    geo: Any,
    real: Any,
    apart: Any,
    begin: int,
    end: int,
) -> int:
    """The two sums over one chunk of a few tiles per task. partials: (chunks, 2, sets); totals as in `backward`.

    moving = (weight,): sums of the norm's own sets. moving = (high, low, rstd): sums over the sets of a parameter.
    """
    out_of_line()
    work, part = scratch(WORK_ROWS, ROW, real), scratch(2, TILE_WIDTH, sets)
    chunks = partials.shape[0]
    for task in range(begin, end):
        group, chunk = task // chunks, task % chunks
        start, stop = tiles_of(geo, group, group + 1)
        for index in range(start, stop):
            first, count, at = tile_of(geo, index)
            if skip_all(todo, first, count, work):
                continue
            if len(moving) == 1:
                load_sets(sets, first, count, entry(geo, LANE, SIZE), False, work)
            chunk_products(x, dy, moving, geo, at, chunk, count, work, part, apart, totals[task])
            _keep(part, partials[chunk], first, count, todo, work)
    release(work)
    release(part)
    return 0
