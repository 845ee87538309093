"""Statistics of sets: blocks about a pivot, merged to chunks and sets in a fixed order.

Positions are summed in blocks of BLOCK, blocks are merged to chunks of CHUNK, chunks to sets. The order follows from the
set's own shape, so any split of tiles or chunks over threads gives the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .geometry import BLOCK, CENTER, CHUNK, KEPT, LANE_X, ROW, ROWS, SET_LANES, SIZE, WALK, X
from .indexing import gather, outer_offset, segments_of
from .lanes import LANES, STRIP, accumulate, accumulate_rows, add_run, flush, sum_run
from .threads import jit
from .vectors import copy_run, fill, out_of_line, prefetch, read

PIVOT, SUM, SQUARE, TOTAL, TOTAL_SQUARE = range(5)  # rows of `work` while a block is summed
AHEAD = 6  # positions fetched early where they lie far apart. No gain measured: 3.2 ms with, 3.1 without (ConvNeXt, NC*)
BUFFER = 5  # and for strided data in both halves
MEAN, MEAN_LOW, M2 = range(3)  # rows of the moments of sets; the mean has two parts

# Outside these bounds float32 loses digits (squares underflow below 1e-38, overflow above 3e38). A kernel that works in
# float32 leaves such sets alone and marks them in `todo`; the same kernel in float64, given `todo`, does only those.
TINY_VARIANCE, HUGE = 1e-28, 1e38
STILL = 1e-10  # a set of this magnitude whose float32 squares are all 0 is constant: none can have underflowed


@jit
def merge(mean: float, m2: float, n: float, mean_b: float, m2_b: float, n_b: float) -> Any:
    """Mean and M2 of two parts together (Chan, Golub and LeVeque 1983, eq. 2.1)."""
    delta = mean_b - mean
    share = n_b / (n + n_b)
    if n == 0:
        return mean_b, m2_b
    return mean + delta * share, m2 + (m2_b + delta * delta * (n * share))


@jit
def about_pivot(s: Any, q: Any, m: int, pivot: Any, start: float) -> Any:
    """Mean (relative to start) and M2 of m elements from their sums about a pivot."""
    total = np.float64(s)
    m2 = np.float64(q) - total * total / m
    return (np.float64(pivot) - start) + total / m, 0.0 if m2 < 0 else m2


@jit
def _strip(x: Any, o: int, m: int, i: int, work: Any, row: int) -> None:
    """Add m neighbouring elements of one set, the first of them position i, to their lanes."""
    out_of_line()
    head = min(m, -i % LANES)
    accumulate(x, o, head, 1, work[PIVOT], work[row], work[row + 1], i % LANES)
    rows = (m - head) // LANES
    accumulate_rows(x, o + head, rows, work[PIVOT], work[row], work[row + 1])
    done = head + rows * LANES
    accumulate(x, o + done, m - done, 1, work[PIVOT], work[row], work[row + 1], 0)


@jit
def _sum_run(x: Any, geo: Any, o: int, m: int, step: int, i: int, count: int, work: Any, row: int) -> None:
    """Add m positions, `step` apart, of `count` sets to the lanes in work[row]; the first of them is position i."""
    out_of_line()
    lanes, lane_step, set_step = geo[1, SET_LANES], geo[1, LANE_X], segments_of(geo, KEPT)[-1, X]
    width = count * lanes
    if width == 1 and step == 1:
        _strip(x, o, m, i, work, row)
    elif width > 1 and (lanes == 1 or lane_step == 1) and (count == 1 or set_step == lanes):
        done = 0
        while done < m:
            lane, rows, group = (i + done) % LANES, 1, 1
            if step != width:
                prefetch(x, o + (done + AHEAD) * step, width * (done + AHEAD < m), False)
            else:  # dense: many positions in one run
                whole = lane == 0 and m - done >= LANES
                rows, group = ((m - done) // LANES, LANES) if whole else (1, min(m - done, LANES - lane))
            accumulate(x, o + done * step, group * width, rows, work[PIVOT], work[row], work[row + 1], lane * width)
            done += rows * group
    else:
        done = 0
        while done < m:
            lane = (i + done) % LANES
            group = min(m - done, ROW if width == 1 else LANES - lane)
            gather(x, o + done * step, group, step, count, set_step, lanes, lane_step, work[BUFFER])
            if width == 1:
                _strip(work[BUFFER], 0, group, i + done, work, row)
            else:
                accumulate(work[BUFFER], 0, group * width, 1, work[PIVOT], work[row], work[row + 1], lane * width)
            done += group


@jit
def _sum_block(x: Any, geo: Any, origin: int, i: int, m: int, count: int, work: Any) -> None:
    """Sums of d and d * d, d = x - pivot, over positions [i, i + m) of `count` sets, into TOTAL and TOTAL_SQUARE."""
    out_of_line()
    width = count * geo[1, SET_LANES]
    walk = segments_of(geo, WALK)
    length, step = walk[-1, SIZE], walk[-1, X]
    if width == 1 and step == 1 and i % length + m <= length:
        start = origin + i % length + outer_offset(walk, i // length, X)
        work[TOTAL, 0], work[TOTAL_SQUARE, 0] = sum_run(x, start, m, work[PIVOT, 0])
        return
    lanes = LANES
    while lanes // 2 >= m:  # of a few positions, most lanes would only add zeros
        lanes //= 2
    for lane in range(1, lanes):
        copy_run(work[PIVOT], 0, width, work[PIVOT], lane * width)
    first = TOTAL if m <= STRIP else SUM  # a single strip is the block
    for row in range(first, TOTAL_SQUARE + 1):
        fill(work[row], lanes * width)
    done = 0
    while done < m:
        at = (i + done) % length
        run = min(m - done, length - at, STRIP - done % STRIP)
        start = origin + at * step + outer_offset(walk, (i + done) // length, X)
        _sum_run(x, geo, start, run, step, done, count, work, first)
        done += run
        if first == SUM and (done % STRIP == 0 or done == m):
            flush(work[SUM], work[TOTAL], lanes * width)
            flush(work[SQUARE], work[TOTAL_SQUARE], lanes * width)
    while lanes > 1:  # lanes fold in halves: a tree, the same for every width
        lanes //= 2
        add_run(work[TOTAL], lanes * width)
        add_run(work[TOTAL_SQUARE], lanes * width)


@jit
def _sum_chunk(x: Any, geo: Any, origin: int, chunk: int, count: int, work: Any, mean: Any, m2: Any) -> Any:
    """Mean (relative to the set's first element) and M2 of each lane's part of a chunk; returns its positions.

    Each block is summed about a pivot near its mean: the first block about its own mean, found in a pass of its own, every
    other about the mean of what came before it. That is at least as many elements, so cancellation costs a factor of 3 at
    most, whatever the data: n_b (pivot - mean_b)^2 <= 2 M2 of both together.
    """
    out_of_line()
    lanes, set_step = geo[1, SET_LANES], segments_of(geo, KEPT)[-1, X]
    width = count * lanes
    first, last = chunk * CHUNK, min(geo[1, ROWS], (chunk + 1) * CHUNK)
    mean[:width] = 0
    m2[:width] = 0
    if not geo[1, CENTER]:
        work[PIVOT, :width] = 0
        for i in range(first, last, BLOCK):
            _sum_block(x, geo, origin, i, min(BLOCK, last - i), count, work)
            for j in range(width):
                m2[j] += work[TOTAL_SQUARE, j]
        return last - first
    for i in range(first, last, BLOCK):
        m = min(BLOCK, last - i)
        if i == first:
            for j in range(width):
                work[PIVOT, j] = read(x, origin + j // lanes * set_step, work.dtype.type)
            _sum_block(x, geo, origin, i, m, count, work)
            for j in range(width):
                mean[j] = np.float64(work[TOTAL, j]) / m
        for j in range(width):
            start = read(x, origin + j // lanes * set_step, work.dtype.type)
            work[PIVOT, j] = np.float64(start) + mean[j]
        _sum_block(x, geo, origin, i, m, count, work)
        for j in range(width):
            start = np.float64(read(x, origin + j // lanes * set_step, work.dtype.type))
            mean_b, m2_b = about_pivot(work[TOTAL, j], work[TOTAL_SQUARE, j], m, work[PIVOT, j], start)
            mean[j], m2[j] = merge(mean[j], m2[j], i - first, mean_b, m2_b, m)
    return last - first


@jit
def chunk_moments(x: Any, geo: Any, origin: int, chunk: int, count: int, work: Any, mean: Any, m2: Any) -> float:
    """As `_sum_chunk`, with the lanes of a set merged. Returns the elements per set."""
    out_of_line()
    lanes = geo[1, SET_LANES]
    positions = _sum_chunk(x, geo, origin, chunk, count, work, mean, m2)
    if lanes > 1:
        for k in range(count):
            part, centre, squares = mean[k * lanes : (k + 1) * lanes], mean[k * lanes], 0.0
            for _ in range(2):  # the second time takes out the roundings of the first
                total = 0.0
                for r in range(lanes):
                    total += part[r] - centre
                centre += total / lanes
            for r in range(lanes):
                squares += m2[k * lanes + r] + positions * (part[r] - centre) ** 2
            mean[k], m2[k] = centre, squares  # k <= k * lanes: the parts ahead are still whole
    return float(positions * lanes)


@jit
def loses_digits(mean: float, m2: float, n: float, center: bool) -> Any:
    """Whether float32 was too narrow for this set (or it holds NaN or infinity, which float64 confirms)."""
    constant = center and m2 == 0 and (n == 1 or abs(mean) >= STILL)
    return not (abs(mean) <= HUGE and (constant or TINY_VARIANCE * n <= m2 < np.inf))


@jit
def finish_set(x: Any, geo: Any, origin: int, mean: float, m2: float, moments: Any, k: int) -> None:
    """Store the moments of set k from its mean relative to its first element."""
    start = read(x, origin, np.float64) if geo[1, CENTER] else 0.0
    moments[MEAN, k] = start + mean
    moments[MEAN_LOW, k] = (start - moments[MEAN, k]) + mean
    moments[M2, k] = m2
