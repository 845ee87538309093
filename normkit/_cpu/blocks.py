"""The two sums of a block of positions, wherever these lie: in one run, in pieces of runs, side by side with other sets."""

from __future__ import annotations

from typing import Any

from .buffers import (
    BUFFER,
    BUFFER_DY,
    HIGH,
    LOW,
    PIVOT,
    RSTD,
    SUM,
    SUM_OF_PRODUCTS,
    TOTAL,
    TOTAL_OF_PRODUCTS,
    WEIGHT,
)
from .geometry import DY, KEPT, LANE, MOVES, SIZE, WALK, W, X
from .indexing import advance, gather, outer_offset, segments_of, steps_of
from .lanes import ALONG, LANES, SPLAT, STRIP, TABLE, accumulate, accumulate_rows, add_run, flush, sum_run
from .threads import jit
from .vectors import beside, copy_run, fill, out_of_line

GATHER = ALONG + 1  # a mode of `accumulate` too: numbers that lie apart are gathered into the table, position by position


@jit
def _strip(x: Any, o: int, dy: Any, p: int, m: int, i: int, work: Any, row: int) -> None:
    """Add m neighbouring elements of one set, the first of them position i, to their lanes."""
    out_of_line()
    still = (0, 0, 0, 0)
    head = min(m, -i % LANES)
    accumulate(x, dy, None, (o, 0, 0, p), still, head, 1, work, 0, (row, i % LANES, 0), TABLE)
    rows = (m - head) // LANES
    accumulate_rows(x, o + head, dy, p + head, rows, work, head, row)
    done = head + rows * LANES
    accumulate(x, dy, None, (o + done, 0, 0, p + done), still, m - done, 1, work, done, (row, 0, 0), TABLE)


@jit
def _in_line(geo: Any, count: int, column: int) -> Any:
    """Whether the elements of a position of `count` sets (of one set: of a run) are neighbours in one operand."""
    lane, step = geo[LANE], segments_of(geo, KEPT)[-1, column]
    if count * lane[SIZE] == 1:
        return segments_of(geo, WALK)[-1, column] == 1
    return (lane[SIZE] == 1 or lane[column] == 1) and (count == 1 or step == lane[SIZE])


@jit
def _lay(array: Any, geo: Any, at: Any, m: int, count: int, column: int, to: Any) -> None:
    """M positions of `count` sets in line."""
    lane, step = geo[LANE], segments_of(geo, KEPT)[-1, column]
    inner = segments_of(geo, WALK)[-1, column]
    gather(array, at[column - X], m, inner, count, step, lane[SIZE], lane[column], to)


@jit
def _lay_moving(moving: Any, geo: Any, at: Any, m: int, count: int, work: Any) -> None:
    """The numbers of m positions from `moving`, (weight,) or (high, low, rstd)."""
    first = WEIGHT if len(moving) == 1 else HIGH
    for k in range(len(moving)):
        _lay(moving[k], geo, at, m, count, W, work[first + k])


@jit
def _sum_positions(x: Any, dy: Any, moving: Any, geo: Any, at: Any, m: int, i: int, count: int, work: Any, row: int) -> None:
    """Add m positions along the innermost segment to the lanes in work[row]; the first of them is position i, at `at`."""
    out_of_line()
    inner, width = segments_of(geo, WALK)[-1], count * geo[LANE, SIZE]
    changes, dense = geo[1, MOVES] != 0, inner[X] == width
    direct = _in_line(geo, count, X)
    if dy is not None:
        direct &= _in_line(geo, count, DY)
        dense &= inner[DY] == width
        if changes and (width == 1 or inner[W] == 0):
            _lay_moving(moving, geo, at, m if width == 1 else 1, count, work)
    if width == 1:
        if direct:
            _strip(x, at[0], dy, at[3], m, i, work, row)
            return
        _lay(x, geo, at, m, 1, X, work[BUFFER])
        if dy is not None:
            _lay(dy, geo, at, m, 1, DY, work[BUFFER_DY])
        _strip(work[BUFFER], 0, beside(dy, work[BUFFER_DY]), 0, m, i, work, row)
        return
    mode = _mode(geo, count)
    together = not changes and (dense or not direct)  # many positions at once: their numbers are there for every lane
    done = 0
    while done < m:
        here, lane = advance(at, inner, done), (i + done) % LANES
        group = min(m - done, LANES - lane)
        if mode == GATHER:
            group = 1
            if dy is not None:
                _lay_moving(moving, geo, here, 1, count, work)
        span, rows, lane_step = width, group, width
        if together:
            span, rows, lane_step = group * width, 1, 0
            if direct and group == LANES:
                rows = (m - done) // LANES
        to, kind = (row, lane * width, lane_step), TABLE if mode == GATHER else mode
        if direct:
            steps = (span, 0, 0, span) if together else steps_of(inner)
            accumulate(x, dy, moving, here, steps, span, rows, work, 0, to, kind)
        else:
            _lay(x, geo, here, group, count, X, work[BUFFER])
            if dy is not None:
                _lay(dy, geo, here, group, count, DY, work[BUFFER_DY])
            line_dy, steps = beside(dy, work[BUFFER_DY]), (span, 0, inner[W], span)
            accumulate(work[BUFFER], line_dy, moving, (0, 0, here[2], 0), steps, span, rows, work, 0, to, kind)
        done += group * rows if together else group


@jit
def _mode(geo: Any, count: int) -> int:
    """Where the numbers of a position come from that change along the innermost segment."""
    if segments_of(geo, WALK)[-1, W] == 0:
        return TABLE
    lane, step = geo[LANE], segments_of(geo, KEPT)[-1, W]
    if (count == 1 or step == 0) and (lane[SIZE] == 1 or lane[W] == 0):
        return SPLAT
    return ALONG if _in_line(geo, count, W) else GATHER


@jit
def _spread(work: Any, rows: int, width: int, length: int) -> None:
    """Repeat the first `width` numbers of some rows up to `length`."""
    for row in range(rows):
        if width == 1:
            fill(work[row], length, work[row, 0])
        else:
            for start in range(width, length, width):
                copy_run(work[row], 0, width, work[row], start)


@jit
def _walk(walk: Any, at: Any, index: int) -> Any:
    """Offsets of position `index` of the sums from those of the set, for x, y, weight, dy; and what is left of its run."""
    inner = walk[-1]
    within, outer = index % inner[SIZE], index // inner[SIZE]
    x, w, dy = (outer_offset(walk, outer, X), outer_offset(walk, outer, W), outer_offset(walk, outer, DY))
    return advance((at[0] + x, at[1], at[2] + w, at[3] + dy), inner, within), inner[SIZE] - within


@jit
def sum_block(x: Any, dy: Any, moving: Any, geo: Any, at: Any, i: int, m: int, count: int, work: Any, collected: Any) -> None:
    """The two sums over positions [i, i + m) of `count` sets, into TOTAL and TOTAL_OF_PRODUCTS.

    The numbers of the lanes (PIVOT, or HIGH to WEIGHT) are in work, for one position.
    """
    out_of_line()
    width = count * geo[LANE, SIZE]
    walk = segments_of(geo, WALK)
    here, left = _walk(walk, at, i)
    one_run = width == 1 and m <= left and _in_line(geo, 1, X)
    if dy is not None:
        one_run &= _in_line(geo, 1, DY) and 0 <= walk[-1, W] <= 1
    if one_run:
        numbers = (work[HIGH, 0], work[LOW, 0], work[RSTD, 0])
        sums = sum_run(x, here[0], dy, here[3], m, numbers, moving, here[2], walk[-1, W] != 0, collected, i)
        work[TOTAL, 0], work[TOTAL_OF_PRODUCTS, 0] = sums
        return
    lanes = LANES
    while lanes // 2 >= m:  # of a few positions, most lanes would only add zeros
        lanes //= 2
    rows = PIVOT + 1
    if dy is not None:
        rows = WEIGHT + 1
        if not geo[1, MOVES]:
            _lay_moving(moving, geo, at, 1, count, work)
    if width == 1 or not geo[1, MOVES]:
        _spread(work, rows, width, lanes * width if width > 1 else STRIP)
    first = TOTAL if m <= STRIP else SUM  # a single strip is the block
    for row in range(first, TOTAL_OF_PRODUCTS + 1):
        fill(work[row], lanes * width, work.dtype.type(0))
    done = 0
    while done < m:
        here, left = _walk(walk, at, i + done)
        run = min(m - done, left, STRIP - done % STRIP)
        _sum_positions(x, dy, moving, geo, here, run, done, count, work, first)
        done += run
        if first == SUM and (done % STRIP == 0 or done == m):
            flush(work[SUM], work[TOTAL], lanes * width)
            flush(work[SUM_OF_PRODUCTS], work[TOTAL_OF_PRODUCTS], lanes * width)
    while lanes > 1:  # lanes fold in halves: a tree, the same for every width
        lanes //= 2
        add_run(work[TOTAL], lanes * width)
        add_run(work[TOTAL_OF_PRODUCTS], lanes * width)
