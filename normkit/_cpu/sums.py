"""Statistics of the sets of a tile: blocks about a pivot, merged to chunks and sets in a fixed order.

Positions are summed in blocks, blocks are merged to chunks of CHUNK, chunks to sets. The order follows from the
set's own shape, so any split of tiles or chunks over threads gives the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._formulas import HUGE, STILL, TINY_VARIANCE
from .blocks import sum_block
from .buffers import M2, MEAN, MEAN_LOW, ORIGIN, PIVOT, TOTAL, TOTAL_OF_PRODUCTS, WEIGHT
from .geometry import CENTER, CHUNK, HEAD, KEPT, LANE, MOVES, PARTIALS, ROWS, SIZE, TILE_BLOCK, W, X
from .threads import jit_inline, jit_part
from .vectors import on_its_own, out_of_line, read


@jit_inline
def merge(mean: float, m2: float, n: float, mean_b: float, m2_b: float, n_b: float) -> Any:
    """Mean and M2 of two parts together (Chan, Golub and LeVeque 1983, eq. 2.1)."""
    if n == 0:
        return mean_b, m2_b
    delta = mean_b - mean
    share = n_b / (n + n_b)
    return mean + delta * share, m2 + (m2_b + delta * delta * (n * share))


@jit_inline
def about_pivot(s: Any, q: Any, share: float, pivot: Any, origin: float) -> Any:
    """Mean (relative to origin) and M2 of 1 / share elements from their sums about a pivot."""
    total = np.float64(s)
    m2 = np.float64(q) - total * (total * share)
    return (np.float64(pivot) - origin) + total * share, 0.0 if m2 < 0 else m2


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
    lanes, kept, still = geo[LANE, SIZE], geo[0, KEPT + 1] - 1, geo[1, MOVES] == 0
    last = min(geo[1, ROWS], (chunk + 1) * CHUNK)
    for k in range(count):
        sums[0, k], sums[1, k] = 0.0, 0.0
    for i in range(chunk * CHUNK, last, TILE_BLOCK):
        sum_block(x, dy, moving, geo, at, i, min(TILE_BLOCK, last - i), count, PARTIALS, work, apart, own)
        for k in range(count):
            for r in range(lanes):
                s, q = np.float64(work[TOTAL, k * lanes + r]), np.float64(work[TOTAL_OF_PRODUCTS, k * lanes + r])
                weight = np.float64(work[WEIGHT, k * lanes + r]) if still and len(moving) == 1 else 1.0
                sums[0, k] += s * weight
                sums[1, k] += q * weight
                if still and own.shape[1] > 0:
                    o = at[2] + k * geo[kept, W] + r * geo[LANE, W]
                    own[0, o] += s
                    own[1, o] += q


@jit_inline
def cancels(s: Any, q: Any, m: int) -> Any:
    """Whether the sums about a pivot lost more than a bit to its distance from the mean."""
    total = np.float64(s)
    return total * total > 0.5 * m * np.float64(q)


@jit_inline
def _first_elements(x: Any, geo: Any, o: int, count: int, to: Any) -> None:
    """The first element of its set, for every lane."""
    lanes, step = geo[LANE, SIZE], geo[geo[0, KEPT + 1] - 1, X]
    for k in range(count):
        first = read(x, o + k * step, to.dtype.type)
        for j in range(k * lanes, (k + 1) * lanes):
            to[j] = first


@jit_inline
def _set_pivots(work: Any, mean: Any, width: int) -> None:
    """Pivots at the means so far."""
    for j in range(width):
        work[PIVOT, j] = np.float64(work[ORIGIN, j]) + mean[j]


@jit_inline
def _move_pivots(work: Any, width: int, m: int) -> Any:
    """Pivots that lie too far off moved to the mean of the block they were for. Returns whether there were any."""
    moved = False
    for j in range(width):
        if cancels(work[TOTAL, j], work[TOTAL_OF_PRODUCTS, j], m):
            work[PIVOT, j] = np.float64(work[PIVOT, j]) + np.float64(work[TOTAL, j]) / m
            moved = True
    return moved


@jit_part
def _merge_block(work: Any, mean: Any, m2: Any, width: int, n: float, m: int) -> None:
    """The moments of a block of m positions merged with those of the n before it."""
    on_its_own()
    share = m / (n + m)
    for j in range(width):
        total, pivot = np.float64(work[TOTAL, j]), np.float64(work[PIVOT, j])
        mean_b = (pivot - np.float64(work[ORIGIN, j])) + total / m
        m2_b = max(0.0, np.float64(work[TOTAL_OF_PRODUCTS, j]) - total * total / m)
        delta = mean_b - mean[j]
        m2[j] = m2[j] + (m2_b + delta * delta * (n * share)) if n > 0 else m2_b
        mean[j] = mean[j] + delta * share if n > 0 else mean_b


@jit_part
def _sum_chunk(x: Any, geo: Any, at: Any, chunk: int, count: int, work: Any, mean: Any, m2: Any, apart: Any) -> Any:
    """Mean (relative to the set's first element) and M2 of each lane's part of a chunk; returns its positions.

    Each block is summed about a pivot near its mean: the first block about the mean of its first positions, or if that turns
    out to cancel, once more about its own; every other about the mean of what came before it. That is at least as many
    elements, so cancellation costs a factor of 3 at most, whatever the data: n_b (pivot - mean_b)^2 <= 2 M2 of both together.
    """
    on_its_own()
    width = count * geo[LANE, SIZE]
    first, last = chunk * CHUNK, min(geo[1, ROWS], (chunk + 1) * CHUNK)
    for j in range(width):
        mean[j], m2[j], work[PIVOT, j] = 0.0, 0.0, 0.0
    if not geo[1, CENTER]:
        for i in range(first, last, TILE_BLOCK):
            sum_block(x, None, None, geo, at, i, min(TILE_BLOCK, last - i), count, PARTIALS, work, apart, None)
            for j in range(width):
                m2[j] += work[TOTAL_OF_PRODUCTS, j]
        return last - first
    _first_elements(x, geo, at[0], count, work[ORIGIN])
    i, m = first, min(HEAD, last - first)
    phase = 0  # the head; the first block; once more, if its pivot was far off; the other blocks
    while i < last:
        if phase != 2:
            _set_pivots(work, mean, width)
        sum_block(x, None, None, geo, at, i, m, count, 1 if phase == 0 else PARTIALS, work, apart, None)
        if phase == 0:
            for j in range(width):
                mean[j] = np.float64(work[TOTAL, j]) / m
            phase, m = 1, min(TILE_BLOCK, last - i)
        elif phase == 1 and _move_pivots(work, width, m):
            phase = 2
        else:
            if i == first:  # near the mean, whatever the first element is
                for j in range(width):
                    work[ORIGIN, j] = work[PIVOT, j]
            _merge_block(work, mean, m2, width, i - first, m)
            i += m
            phase, m = 3, min(TILE_BLOCK, last - i)
    _first_elements(x, geo, at[0], count, work[PIVOT])
    for j in range(width):
        mean[j] = (np.float64(work[ORIGIN, j]) - np.float64(work[PIVOT, j])) + mean[j]
    return last - first


@jit_part
def chunk_moments(x: Any, geo: Any, at: Any, chunk: int, count: int, work: Any, mean: Any, m2: Any, apart: Any) -> float:
    """As `_sum_chunk`, with the lanes of a set merged. Returns the elements per set."""
    out_of_line()
    lanes = geo[LANE, SIZE]
    positions = _sum_chunk(x, geo, at, chunk, count, work, mean, m2, apart)
    if lanes > 1:
        for k in range(count):
            part, centre, squares = mean[k * lanes : (k + 1) * lanes], mean[k * lanes], 0.0
            for _ in range(2):  # the second time takes out the roundings of the first
                total = 0.0
                for r in range(lanes):
                    total += part[r] - centre
                centre += total / lanes
            for r in range(lanes):
                off = part[r] - centre
                squares += m2[k * lanes + r] + positions * (off * off)
            mean[k], m2[k] = centre, squares  # k <= k * lanes: the parts ahead are still whole
    return float(positions * lanes)


@jit_inline
def loses_digits(mean: float, m2: float, n: float, center: bool) -> Any:
    """Whether float32 was too narrow for this set (or it holds NaN or infinity, which float64 confirms).

    A kernel in float32 leaves such sets alone and marks them in `todo`; the same kernel in float64, given `todo`, does those.
    """
    if TINY_VARIANCE * n <= m2 < np.inf:
        return not abs(mean) <= HUGE
    constant = center and m2 == 0 and (n == 1 or abs(mean) >= STILL)
    return not (constant and abs(mean) <= HUGE)


@jit_inline
def finish_set(x: Any, geo: Any, origin: int, mean: float, m2: float, moments: Any, k: int) -> None:
    """Store the moments of set k from its mean relative to its first element."""
    start = read(x, origin, np.float64) if geo[1, CENTER] else 0.0
    moments[MEAN, k] = start + mean
    moments[MEAN_LOW, k] = (start - moments[MEAN, k]) + mean
    moments[M2, k] = m2
