"""The CPU kernels: sets are summed and standardized tile by tile. They know nothing of norms, axes or frameworks.

A *tile* is `count` sets that are neighbours along K1, and a set is seen as `rows` positions of `lanes` neighbouring
elements (`lanes` > 1 only where the innermost reduced segment is short). Positions are summed in blocks of BLOCK, blocks
are merged to chunks of CHUNK, chunks to sets, always in that order: it follows from the set's own shape, so any split
of tiles or chunks over threads gives the same bits. Geometry comes packed in one integer array, see `geometry.py`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from .geometry import (
    AFFINE_VARIES,
    APPLY_LANES,
    APPLY_ROWS,
    BLOCK,
    CENTER,
    CHUNK,
    HEADER,
    KEPT,
    LANE_X,
    PER_TASK,
    REDUCED,
    ROWS,
    SET_LANES,
    SIZE,
    STREAM,
    TILE,
    TILE_WIDTH,
    WALK,
    B,
    W,
    X,
    Y,
)
from .threads import jit, jit_parallel
from .vectors import (
    LANES,
    STRIP,
    accumulate,
    accumulate_rows,
    apply_lanes,
    apply_run,
    copy_run,
    flush,
    out_of_line,
    read,
    sum_run,
    write,
)

PIVOT, SUM, SQUARE, TOTAL, TOTAL_SQUARE = range(5)  # rows of `work` while a block is summed
HIGH, LOW, RSTD, WEIGHT, BIAS, BUFFER, WORK_ROWS = range(7)  # and while a tile is standardized
MEAN, MEAN_LOW, M2 = range(3)  # rows of the moments of sets; the mean has two parts
ROW = LANES * TILE_WIDTH  # length of a row of `work`

# Outside these bounds float32 loses digits (squares underflow below 1e-38, overflow above 3e38). A kernel that works in
# float32 leaves such sets alone and marks them in `todo`; the same kernel in float64, given `todo`, does only those.
TINY_VARIANCE, HUGE = 1e-28, 1e38
RSTD_LIMIT = 2.0**64
STILL = 1e-10  # a set of this magnitude whose float32 squares are all 0 is constant: none can have underflowed


# ------------------------------------------------------------------------------------------------------- where things are
@jit
def _outer_offset(segments: Any, index: int, column: int) -> Any:
    """Offset of the index-th position over segments[:-1], the outer ones, for one operand."""
    offset = 0
    for d in range(len(segments) - 2, -1, -1):
        size = segments[d, SIZE]
        offset += (index % size) * segments[d, column]
        index //= size
    return offset


@jit
def _segments(geo: Any, kind: int) -> Any:
    """The segments of one kind: rows of (size, x, y, weight, bias strides)."""
    start = HEADER
    for k in range(kind):
        start += geo[0, k]
    return geo[start : start + geo[0, kind]]


@jit
def _inner(segments: Any) -> Any:
    """(length, x, y, weight, bias strides) of the innermost segment."""
    inner = segments[-1]
    return inner[SIZE], inner[X], inner[Y], inner[W], inner[B]


@jit
def _tile_origin(geo: Any, tile: int) -> Any:
    """(index of the first set, number of sets, offsets of x, y, weight, bias) of a tile."""
    kept = _segments(geo, KEPT)
    inner = kept[-1]
    per_row = -(-inner[SIZE] // geo[1, TILE])
    outer, first = tile // per_row, (tile % per_row) * geo[1, TILE]
    count = min(geo[1, TILE], inner[SIZE] - first)
    x = geo[2, X] + first * inner[X] + _outer_offset(kept, outer, X)
    y = geo[2, Y] + first * inner[Y] + _outer_offset(kept, outer, Y)
    w = geo[2, W] + first * inner[W] + _outer_offset(kept, outer, W)
    b = geo[2, B] + first * inner[B] + _outer_offset(kept, outer, B)
    return outer * inner[SIZE] + first, count, (x, y, w, b)


@jit
def tile_count(geo: Any) -> Any:
    kept = _segments(geo, KEPT)
    tiles = -(-kept[-1, SIZE] // geo[1, TILE])
    for d in range(len(kept) - 1):
        tiles *= kept[d, SIZE]
    return tiles


# ------------------------------------------------------------------------------------------------------------- statistics
@jit
def merge(mean: float, m2: float, n: float, mean_b: float, m2_b: float, n_b: float) -> Any:
    """Mean and M2 of two parts together (Chan, Golub and LeVeque 1983, eq. 2.1)."""
    delta = mean_b - mean
    share = n_b / (n + n_b)
    if n == 0:
        return mean_b, m2_b
    return mean + delta * share, m2 + (m2_b + delta * delta * (n * share))


@jit
def _strip(x: Any, o: int, m: int, i: int, work: Any) -> None:
    """Add m neighbouring elements of one set, the first of them position i, to their lanes."""
    out_of_line()
    head = min(m, -i % LANES)
    accumulate(x, o, head, work[PIVOT], work[SUM], work[SQUARE], i % LANES)
    rows = (m - head) // LANES
    accumulate_rows(x, o + head, rows, work[PIVOT], work[SUM], work[SQUARE])
    done = head + rows * LANES
    accumulate(x, o + done, m - done, work[PIVOT], work[SUM], work[SQUARE], 0)


@jit
def _gather(x: Any, o: int, positions: int, step: int, sets: int, set_step: int, lanes: int, lane_step: int, to: Any) -> None:
    """to[position, set, lane] = x there, in the accumulator's dtype; `to` is flat. The nearest neighbours go innermost."""
    out_of_line()
    width = sets * lanes
    if width == 1 and step == 1:
        copy_run(x, o, positions, to, 0)
        return
    for i in range(positions):
        for k in range(sets):
            start, at = o + i * step + k * set_step, i * width + k * lanes
            for r in range(lanes):
                to[at + r] = read(x, start + r * lane_step, to.dtype.type)


@jit
def _sum_run(x: Any, geo: Any, o: int, m: int, step: int, i: int, count: int, work: Any) -> None:
    """Add m positions, `step` apart, of `count` sets to their lanes; the first of them is position i."""
    out_of_line()
    lanes, lane_step, set_step = geo[1, SET_LANES], geo[1, LANE_X], _segments(geo, KEPT)[-1, X]
    width = count * lanes
    if width == 1 and step == 1:
        _strip(x, o, m, i, work)
    elif width > 1 and (lanes == 1 or lane_step == 1) and (count == 1 or set_step == lanes):
        together = LANES if step == width else 1  # dense: many positions in one run
        done = 0
        while done < m:
            lane = (i + done) % LANES
            group = min(m - done, together, LANES - lane)
            accumulate(x, o + done * step, group * width, work[PIVOT], work[SUM], work[SQUARE], lane * width)
            done += group
    else:
        done = 0
        while done < m:
            lane = (i + done) % LANES
            group = min(m - done, ROW if width == 1 else LANES - lane)
            _gather(x, o + done * step, group, step, count, set_step, lanes, lane_step, work[BUFFER])
            if width == 1:
                _strip(work[BUFFER], 0, group, i + done, work)
            else:
                accumulate(work[BUFFER], 0, group * width, work[PIVOT], work[SUM], work[SQUARE], lane * width)
            done += group


@jit
def _sum_block(x: Any, geo: Any, origin: int, i: int, m: int, count: int, work: Any) -> None:
    """Sums of d and d * d, d = x - pivot, over positions [i, i + m) of `count` sets, into TOTAL and TOTAL_SQUARE."""
    out_of_line()
    width = count * geo[1, SET_LANES]
    walk = _segments(geo, WALK)
    length, step = walk[-1, SIZE], walk[-1, X]
    if width == 1 and step == 1 and i % length + m <= length:
        start = origin + i % length + _outer_offset(walk, i // length, X)
        work[TOTAL, 0], work[TOTAL_SQUARE, 0] = sum_run(x, start, m, work[PIVOT, 0])
        return
    for lane in range(1, LANES):
        for j in range(width):
            work[PIVOT, lane * width + j] = work[PIVOT, j]
    for row in range(SUM, TOTAL_SQUARE + 1):
        for j in range(LANES * width):
            work[row, j] = 0
    done = 0
    while done < m:
        at = (i + done) % length
        run = min(m - done, length - at, STRIP - done % STRIP)
        start = origin + at * step + _outer_offset(walk, (i + done) // length, X)
        _sum_run(x, geo, start, run, step, done, count, work)
        done += run
        if done % STRIP == 0 or done == m:
            flush(work[SUM], work[TOTAL], LANES * width)
            flush(work[SQUARE], work[TOTAL_SQUARE], LANES * width)
    half = LANES // 2
    while half > 0:  # lanes fold in halves: a tree, the same for every width
        for j in range(half * width):
            work[TOTAL, j] += work[TOTAL, half * width + j]
            work[TOTAL_SQUARE, j] += work[TOTAL_SQUARE, half * width + j]
        half //= 2


@jit
def _sum_chunk(x: Any, geo: Any, origin: int, chunk: int, count: int, work: Any, mean: Any, m2: Any) -> Any:
    """Mean (relative to the set's first element) and M2 of each lane's part of a chunk; returns its positions.

    Each block is summed about a pivot near its mean: the first block about its own mean, found in a pass of its own, every
    other about the mean of what came before it. That is at least as many elements, so cancellation costs a factor of 3 at
    most, whatever the data: n_b (pivot - mean_b)^2 <= 2 M2 of both together.
    """
    out_of_line()
    lanes, set_step = geo[1, SET_LANES], _segments(geo, KEPT)[-1, X]
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
            s, start = np.float64(work[TOTAL, j]), read(x, origin + j // lanes * set_step, work.dtype.type)
            mean_b = (np.float64(work[PIVOT, j]) - np.float64(start)) + s / m
            m2_b = np.float64(work[TOTAL_SQUARE, j]) - s * s / m
            mean[j], m2[j] = merge(mean[j], m2[j], i - first, mean_b, 0.0 if m2_b < 0 else m2_b, m)
    return last - first


@jit
def _chunk_moments(x: Any, geo: Any, origin: int, chunk: int, count: int, work: Any, mean: Any, m2: Any) -> float:
    """As `_sum_chunk`, with the lanes of a set merged. Returns the elements per set."""
    out_of_line()
    lanes = geo[1, SET_LANES]
    positions = _sum_chunk(x, geo, origin, chunk, count, work, mean, m2)
    if lanes > 1:
        for k in range(count):
            part, total, squares = mean[k * lanes : (k + 1) * lanes], 0.0, 0.0
            for r in range(lanes):
                total += part[r]
            centre = total / lanes
            for r in range(lanes):
                squares += m2[k * lanes + r] + positions * (part[r] - centre) ** 2
            mean[k], m2[k] = centre, squares  # k <= k * lanes: the parts ahead are still whole
    return float(positions * lanes)


@jit
def _loses_digits(mean: float, m2: float, n: float) -> Any:
    """Whether float32 was too narrow for this set (or it holds NaN or infinity, which float64 confirms)."""
    constant = m2 == 0 and (n == 1 or abs(mean) >= STILL)
    return not (abs(mean) <= HUGE and (constant or TINY_VARIANCE * n <= m2 < np.inf))


@jit
def _finish_set(x: Any, geo: Any, origin: int, mean: float, m2: float, moments: Any, k: int) -> None:
    """Store the moments of set k from its mean relative to its first element."""
    start = read(x, origin, np.float64) if geo[1, CENTER] else 0.0
    moments[MEAN, k] = start + mean
    moments[MEAN_LOW, k] = (start - moments[MEAN, k]) + mean
    moments[M2, k] = m2


@jit
def _skip(todo: Any, k: int, work: Any) -> Any:
    """Whether set k is not for this pass: marked, in float32; not marked, in float64."""
    return todo.shape[0] > 0 and (todo[k] != 0) == (work.itemsize == 4)


@jit
def _skip_all(todo: Any, first: int, count: int, work: Any) -> Any:
    for k in range(first, first + count):
        if not _skip(todo, k, work):
            return False
    return True


@jit
def _marked(todo: Any) -> Any:
    """How many sets wait for float64."""
    marked = 0
    for k in range(todo.shape[0]):
        marked += todo[k]
    return marked


# ------------------------------------------------------------------------------------------------------------- standardize
@jit
def _rstd(m2: float, divisor: float, eps: float) -> float:
    """1 / sqrt(var + eps); 0 where that is 1 / 0, so that a constant set gives exactly its bias."""
    v = m2 / divisor + eps
    return 0.0 if v == 0 else 1.0 / math.sqrt(v)


@jit
def _wild(mean: float, rstd: float) -> Any:
    """Whether float32 cannot hold this centre and scale (given moments may be anything)."""
    return abs(mean) > HUGE or (rstd != 0 and not (1 / RSTD_LIMIT <= rstd <= RSTD_LIMIT))


@jit
def _split_centre(mean: float, mean_low: float, rstd: float, work: Any, at: int) -> None:
    """Store a set's centre in two parts and its scale: x - high is exact near the mean, low brings the rest."""
    work[HIGH, at] = mean
    work[LOW, at] = (mean - np.float64(work[HIGH, at])) + mean_low
    work[RSTD, at] = rstd


@jit
def _apply_set(x: Any, y: Any, w: Any, b: Any, geo: Any, at: Any, i: int, m: int, work: Any) -> None:
    """Standardize elements [i, i + m) of the set that starts at offsets `at`; its centre is in work[:, 0]."""
    out_of_line()
    centre = (work[HIGH, 0], work[LOW, 0], work[RSTD, 0])
    segments = _segments(geo, REDUCED)
    length, sx, sy, sw, sb = _inner(segments)
    vary = sw != 0 or sb != 0
    direct = sx == 1 and sy == 1 and (not vary or (sw == 1 and sb == 1))
    stream = geo[2, STREAM] != 0
    done = 0
    while done < m:
        within, outer = (i + done) % length, (i + done) // length
        run = min(m - done, length - within)
        ox = at[0] + within * sx + _outer_offset(segments, outer, X)
        oy = at[1] + within * sy + _outer_offset(segments, outer, Y)
        ow = at[2] + within * sw + _outer_offset(segments, outer, W)
        ob = at[3] + within * sb + _outer_offset(segments, outer, B)
        if direct:
            apply_run(x, ox, y, oy, run, centre, (w, b), ow, ob, vary, stream)
        else:
            run = min(run, ROW)
            _gather(x, ox, run, sx, 1, 0, 1, 0, work[BUFFER])
            _gather(w, ow, run, sw, 1, 0, 1, 0, work[WEIGHT])
            _gather(b, ob, run, sb, 1, 0, 1, 0, work[BIAS])
            apply_run(work[BUFFER], 0, work[BUFFER], 0, run, centre, (work[WEIGHT], work[BIAS]), 0, 0, True, False)
            if sy == 1:
                copy_run(work[BUFFER], 0, run, y, oy)
            else:
                for j in range(run):
                    write(y, oy + j * sy, work[BUFFER, j])
        done += run


@jit
def _lane_affine(w: Any, b: Any, geo: Any, ow: int, ob: int, count: int, work: Any) -> None:
    """The weights and biases of one position of a tile, into work."""
    lanes, kept, reduced = geo[1, APPLY_LANES], _segments(geo, KEPT)[-1], _segments(geo, REDUCED)[-1]
    _gather(w, ow, 1, 0, count, kept[W], lanes, reduced[W], work[WEIGHT])
    _gather(b, ob, 1, 0, count, kept[B], lanes, reduced[B], work[BIAS])


@jit
def _apply_lanes(x: Any, y: Any, w: Any, b: Any, geo: Any, at: Any, i: int, m: int, count: int, work: Any) -> None:
    """Standardize positions [i, i + m) of a tile whose lanes are neighbours in x and y; its centres are in work's lanes."""
    out_of_line()
    lanes, varies = geo[1, APPLY_LANES], geo[1, AFFINE_VARIES]
    width = count * lanes
    walk = _segments(geo, REDUCED)
    if lanes > 1:
        walk = walk[:-1]
    length, sx, sy, sw, sb = _inner(walk)
    together = 1 if varies or sx != width or sy != width else LANES
    _lane_affine(w, b, geo, at[2], at[3], count, work)
    for row in range(BUFFER):
        for copy in range(1, together):
            for j in range(width):
                work[row, copy * width + j] = work[row, j]
    done = 0
    while done < m:
        within, outer = (i + done) % length, (i + done) // length
        run = min(m - done, length - within)
        ox = at[0] + within * sx + _outer_offset(walk, outer, X)
        oy = at[1] + within * sy + _outer_offset(walk, outer, Y)
        ow = at[2] + within * sw + _outer_offset(walk, outer, W)
        ob = at[3] + within * sb + _outer_offset(walk, outer, B)
        for p in range(0, run, together):
            if varies:
                _lane_affine(w, b, geo, ow + p * sw, ob + p * sb, count, work)
            apply_lanes(x, ox + p * sx, y, oy + p * sy, min(together, run - p) * width, work, geo[2, STREAM] != 0)
        done += run


@jit
def _apply_tile(
    x: Any, y: Any, w: Any, b: Any, geo: Any, tile: Any, i: int, m: int, moments: Any, todo: Any, scale: Any, work: Any
) -> None:
    """Standardize positions [i, i + m) of a tile. moments: (3, count) of its sets; scale: (divisor, eps)."""
    out_of_line()
    first, count, at = tile
    lanes, kept = geo[1, APPLY_LANES], _segments(geo, KEPT)[-1]
    whole = True
    for k in range(count):
        whole &= not _skip(todo, first + k, work)
    if lanes > 0 and whole:
        for k in range(count):
            rstd = _rstd(moments[M2, k], scale[0], scale[1])
            for r in range(lanes):
                _split_centre(moments[MEAN, k], moments[MEAN_LOW, k], rstd, work, k * lanes + r)
        _apply_lanes(x, y, w, b, geo, at, i, m, count, work)
        return
    elements = max(lanes, 1)
    begin, end = i * elements, (i + m) * elements
    size = BLOCK if count > 1 else m * elements  # sets side by side: block by block, while x is in cache
    for block in range(begin, end, size):
        for k in range(count):
            if _skip(todo, first + k, work):
                continue
            rstd = _rstd(moments[M2, k], scale[0], scale[1])
            _split_centre(moments[MEAN, k], moments[MEAN_LOW, k], rstd, work, 0)
            here = (at[0] + k * kept[X], at[1] + k * kept[Y], at[2] + k * kept[W], at[3] + k * kept[B])
            _apply_set(x, y, w, b, geo, here, block, min(size, end - block), work)


# --------------------------------------------------------- the kernels: tasks [begin, end), each a few tiles or a chunk of them
@jit
def forward(
    x: Any, y: Any, w: Any, b: Any, moments: Any, todo: Any, geo: Any, scale: Any, real: Any, begin: int, end: int
) -> Any:
    """Statistics and result of each tile while it is in cache. Returns how many sets wait for float64."""
    out_of_line()
    work = np.empty((WORK_ROWS, ROW), real.dtype)
    mean, m2 = np.empty(TILE_WIDTH), np.empty(TILE_WIDTH)
    own = np.empty((3, TILE_WIDTH))
    step, marked = _segments(geo, KEPT)[-1, X], 0
    for index in range(begin * geo[1, PER_TASK], min(end * geo[1, PER_TASK], tile_count(geo))):
        tile = _tile_origin(geo, index)
        first, count, at = tile
        if work.itemsize == 8 and _skip_all(todo, first, count, work):
            continue
        n = 0.0
        for chunk in range(-(-geo[1, ROWS] // CHUNK)):
            n_b = _chunk_moments(x, geo, at[0], chunk, count, work, mean, m2)
            for k in range(count):
                own[MEAN, k], own[M2, k] = merge(own[MEAN, k], own[M2, k], n, mean[k], m2[k], n_b)
            n += n_b
        for k in range(count):
            _finish_set(x, geo, at[0] + k * step, own[MEAN, k], own[M2, k], own, k)
            if work.itemsize == 4 and _loses_digits(own[MEAN, k], own[M2, k], n):
                todo[first + k] = 1
                marked += 1
            elif moments.shape[1] > 0 and not _skip(todo, first + k, work):
                moments[:, first + k] = own[:, k]
        _apply_tile(x, y, w, b, geo, tile, 0, geo[2, APPLY_ROWS], own, todo, scale, work)
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
            first, count, at = _tile_origin(geo, index)
            _chunk_moments(x, geo, at[0], chunk, count, work, mean, m2)
            for k in range(count):
                partials[first + k, chunk, 0] = mean[k]
                partials[first + k, chunk, 1] = m2[k]


@jit
def finish(x: Any, partials: Any, moments: Any, todo: Any, geo: Any, real: Any) -> Any:
    """Merge the chunks of every set, in order. Returns how many sets wait for float64."""
    out_of_line()
    step, marked = _segments(geo, KEPT)[-1, X], 0
    for tile in range(tile_count(geo)):
        first, count, at = _tile_origin(geo, tile)
        for k in range(count):
            if real.itemsize == 8 and _skip(todo, first + k, real):
                continue
            mean, m2, n = 0.0, 0.0, 0.0
            for chunk in range(partials.shape[1]):
                n_b = float((min(geo[1, ROWS], (chunk + 1) * CHUNK) - chunk * CHUNK) * geo[1, SET_LANES])
                mean, m2 = merge(mean, m2, n, partials[first + k, chunk, 0], partials[first + k, chunk, 1], n_b)
                n += n_b
            _finish_set(x, geo, at[0] + k * step, mean, m2, moments, first + k)
            if real.itemsize == 4 and _loses_digits(moments[MEAN, first + k], m2, n):
                todo[first + k] = 1
                marked += 1
    return marked


@jit
def mark_wild(moments: Any, todo: Any, scale: Any) -> Any:
    """Mark the sets whose given moments float32 cannot apply."""
    marked = 0
    for k in range(todo.shape[0]):
        if todo[k] == 0 and _wild(moments[MEAN, k], _rstd(moments[M2, k], scale[0], scale[1])):
            todo[k] = 1
        marked += todo[k]
    return marked


@jit
def apply(
    x: Any, y: Any, w: Any, b: Any, moments: Any, todo: Any, geo: Any, scale: Any, real: Any, begin: int, end: int
) -> None:
    """The result of one chunk of a few tiles per task, from given moments."""
    out_of_line()
    work = np.empty((WORK_ROWS, ROW), real.dtype)
    chunks, per_task = -(-geo[2, APPLY_ROWS] // CHUNK), geo[1, PER_TASK]
    for task in range(begin, end):
        group, i = task // chunks, (task % chunks) * CHUNK
        for index in range(group * per_task, min((group + 1) * per_task, tile_count(geo))):
            tile = _tile_origin(geo, index)
            first, count = tile[0], tile[1]
            if not _skip_all(todo, first, count, work):
                m = min(CHUNK, geo[2, APPLY_ROWS] - i)
                _apply_tile(x, y, w, b, geo, tile, i, m, moments[:, first : first + count], todo, scale, work)


# ------------------------------------------------------------------------------- the same kernels, tasks spread over threads
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
def apply_parallel(
    x: Any, y: Any, w: Any, b: Any, moments: Any, todo: Any, geo: Any, scale: Any, real: Any, tasks: int
) -> None:
    for task in prange(tasks):
        apply(x, y, w, b, moments, todo, geo, scale, real, task, task + 1)
