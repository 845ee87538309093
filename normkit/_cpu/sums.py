"""Statistics of the sets of a tile: blocks about a pivot, merged to chunks and sets in a fixed order.

Positions are summed in blocks, blocks are merged to chunks, chunks to sets. The order follows from the
set's own shape, so any split of tiles or chunks over threads gives the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .blocks import sum_block
from .buffers import ORIGIN, PIVOT, SET_PIVOT, TOTAL, TOTAL_OF_PRODUCTS, WEIGHT
from .compile import jit_inline, jit_part
from .finish import some_cancel
from .formulas import about_pivot, cancels
from .gathering import gather
from .geometry import BLOCK_STRIPS, CENTER, KEPT, LANE, MOVES, SIZE, STRIP_ROWS, W, X
from .indexing import chunk_of, entry, innermost
from .partials import head_of, partials_of
from .rows import add_rows, clear_rows, copy_rows, fold_lanes, multiply_run, spread_lanes
from .vectors import least, on_its_own, out_of_line


@jit_inline
def collect_lanes(work: Any, geo: Any, o: int, count: int, own: Any) -> None:
    """Add the sums of every lane to those of its element of the weight, the first at o."""
    lanes, step, lane_step = entry(geo, LANE, SIZE), entry(geo, innermost(geo, KEPT), W), entry(geo, LANE, W)
    if (count == 1 or step == lanes) and (lanes == 1 or lane_step == 1):
        add_rows(work, TOTAL, 0, own, 0, o, 2, count * lanes)
    else:
        for row in range(2):
            for k in range(count):
                for r in range(lanes):
                    own[row, o + k * step + r * lane_step] += np.float64(work[TOTAL + row, k * lanes + r])


@jit_part
def chunk_products(
    x: Any,
    dy: Any,
    moving: Any,
    geo: Any,
    at: Any,
    chunk: int,
    count: int,
    work: Any,
    sums: Any,
    apart: Any,
    own: Any,
) -> None:
    """Sums of g and g * x_hat, g = dy * weight, over a chunk of `count` sets. sums: (2, >= count).

    own: 2 x n for sums of dy and dy * x_hat for each element of the weight, or 2 x 0.
    """
    out_of_line()
    lanes, still = entry(geo, LANE, SIZE), entry(geo, 1, MOVES) == 0
    partials = partials_of(lanes)
    (first, last), block = chunk_of(geo, chunk), partials * STRIP_ROWS * BLOCK_STRIPS
    clear_rows(sums, 0, 0, 2, count)
    for i in range(first, last, block):
        sum_block(x, dy, moving, geo, at, i, least(block, last - i), count, partials, work, apart, own)
        if still and own.shape[1] > 0:
            collect_lanes(work, geo, at[2], count, own)
        if still and len(moving) == 1:
            for row in range(2):
                multiply_run(work[TOTAL + row], work[WEIGHT], count * lanes)
        if lanes > 1:
            fold_lanes(work, TOTAL, 2, count, lanes)
        add_rows(work, TOTAL, 0, sums, 0, 0, 2, count)


@jit_inline
def _first_elements(x: Any, geo: Any, o: int, count: int, to: Any) -> None:
    """The first element of every set."""
    gather(x, o, count, entry(geo, innermost(geo, KEPT), X), 1, 0, to)


@jit_part
def _set_pivots(work: Any, mean: Any, count: int) -> None:
    """Pivots at the means so far."""
    on_its_own()
    for k in range(count):
        work[SET_PIVOT, k] = np.float64(work[ORIGIN, k]) + mean[k]


@jit_inline
def _move_pivots(work: Any, count: int, n: int) -> Any:
    """Pivots that lie too far off moved to the mean of the block they were for. Returns whether there were any."""
    if not some_cancel(work, count, n):
        return False
    for k in range(count):
        if cancels(work[TOTAL, k], work[TOTAL_OF_PRODUCTS, k], n):
            work[SET_PIVOT, k] = np.float64(work[SET_PIVOT, k]) + np.float64(work[TOTAL, k]) / n
    return True


@jit_part
def _merge_block(work: Any, mean: Any, m2: Any, count: int, n: float, n_b: float) -> None:
    """The moments of blocks of n_b elements merged with those of the n before them."""
    on_its_own()
    share, part = n_b / (n + n_b), 1.0 / n_b
    for k in range(count):
        s, q = work[TOTAL, k], work[TOTAL_OF_PRODUCTS, k]
        mean_b, m2_b = about_pivot(s, q, part, work[SET_PIVOT, k], work[ORIGIN, k])
        delta = mean_b - mean[k]
        m2[k] = m2[k] + (m2_b + delta * delta * (n * share)) if n > 0 else m2_b
        mean[k] = mean[k] + delta * share if n > 0 else mean_b


@jit_part
def chunk_moments(x: Any, geo: Any, at: Any, chunk: int, count: int, work: Any, mean: Any, m2: Any, apart: Any) -> float:
    """Mean (relative to an origin, in work) and M2 of a chunk of `count` sets; returns its elements per set.

    Each block is summed about a pivot near its mean: the first block about the mean of its first positions, or if that turns
    out to cancel, once more about its own; every other about the mean of what came before it. That is at least as many
    elements, so cancellation costs a factor of 3 at most, whatever the data: n_b (pivot - mean_b)^2 <= 2 M2 of both together.
    """
    out_of_line()
    lanes, center = entry(geo, LANE, SIZE), entry(geo, 1, CENTER) != 0
    partials = partials_of(lanes)
    (first, last), block = chunk_of(geo, chunk), partials * STRIP_ROWS * BLOCK_STRIPS
    clear_rows(mean, 0, 0, 1, count)
    clear_rows(m2, 0, 0, 1, count)
    clear_rows(work, ORIGIN, 0, 1, count)
    if center:
        _first_elements(x, geo, at[0], count, work[ORIGIN])
    i, m = first, least(block, last - first)
    phase = 3  # the head; the first block; once more, if its pivot was far off; the other blocks
    if center:
        phase, m = 0, head_of(lanes, last - first)
    while i < last:
        if phase != 2:
            _set_pivots(work, mean, count)
        copy_rows(work, SET_PIVOT, 0, work, PIVOT, 0, 1, count)
        if lanes > 1:
            spread_lanes(work, PIVOT, 1, count, lanes)
        sum_block(x, None, None, geo, at, i, m, count, 1 if phase == 0 else partials, work, apart, None)
        if lanes > 1:
            fold_lanes(work, TOTAL, 2, count, lanes)
        if phase == 0:
            copy_rows(work, TOTAL, 0, mean, 0, 0, 1, count)
            multiply_run(mean, 1.0 / (m * lanes), count)
            phase, m = 1, least(block, last - i)
        elif phase == 1 and _move_pivots(work, count, m * lanes):
            phase = 2
        elif not center:
            add_rows(work, TOTAL_OF_PRODUCTS, 0, m2, 0, 0, 1, count)
            i += m
            m = least(block, last - i)
        else:
            if i == first:  # near the mean, whatever the first element is
                copy_rows(work, SET_PIVOT, 0, work, ORIGIN, 0, 1, count)
            _merge_block(work, mean, m2, count, (i - first) * lanes, m * lanes)
            i += m
            phase, m = 3, least(block, last - i)
    return float((last - first) * lanes)
