"""The second half: the numbers of every set, applied to a tile of sets. With dy, the gradient; without, the norm."""

from __future__ import annotations

from typing import Any

from .._formulas import HUGE, RSTD_LIMIT
from .affine import apply_lanes, apply_runs
from .buffers import (
    BIAS,
    BUFFER,
    BUFFER_DY,
    GAIN,
    HIGH,
    LOW,
    ROW,
    RSTD,
    SET_SHIFT,
    SHIFT,
    SLOPE,
    WEIGHT,
)
from .compile import jit_inline, jit_part
from .finish import skipped, some_marked
from .gathering import gather
from .geometry import AFFINE_VARIES, APPLY_LANES, BLOCK, DY, KEPT, MEMORY, NEAR, PAST, REDUCED, B, W, X, Y
from .indexing import advance, entry, innermost, position, stands_still
from .periods import apply_period, side_by_side
from .rows import copy_rows, lay_centres, repeat, spread_lanes
from .vectors import beside, copy_run, least, most, out_of_line, pick, write


@jit_part
def wild(mean: float, rstd: float) -> bool:
    """Whether float32 cannot hold this centre and scale (given moments may be anything)."""
    return abs(mean) > HUGE or (rstd != 0 and not (1 / RSTD_LIMIT <= abs(rstd) <= RSTD_LIMIT))


@jit_part
def load_sets(sets: Any, first: int, count: int, lanes: int, gradient: bool, work: Any) -> None:
    """The numbers of `count` sets, for each of their lanes."""
    out_of_line()
    more = GAIN + 1 - SHIFT if gradient else 0
    lay_centres(sets, first, count, work)
    copy_rows(sets, SET_SHIFT, first, work, SHIFT, 0, more, count)
    if lanes > 1:
        spread_lanes(work, HIGH, RSTD + 1 - HIGH, count, lanes)
        spread_lanes(work, SHIFT, more, count, lanes)


@jit_part
def _apply_set(x: Any, dy: Any, y: Any, w: Any, b: Any, geo: Any, at: Any, i: int, m: int, work: Any) -> None:
    """The result for elements [i, i + m) of the set that starts at offsets `at`; its numbers are in work[:, 0].

    Numba drops a branch on `is None` before it types it, but only where the argument is None: one of dy and b is.
    """
    out_of_line()
    centre = (work[HIGH, 0], work[LOW, 0], work[RSTD, 0])
    rest = (work[SHIFT, 0], work[SLOPE, 0], work[GAIN, 0])
    inner = innermost(geo, REDUCED)
    line = work[BUFFER]
    done = 0
    while done < m:
        (ox, oy, ow, ob), left = position(geo, REDUCED, inner, at, i + done)
        run = least(least(m - done, left), ROW)
        gather(x, ox, 1, 0, run, entry(geo, inner, X), line)
        gather(w, ow, 1, 0, run, entry(geo, inner, W), work[WEIGHT])
        if b is not None:
            gather(b, ob, 1, 0, run, entry(geo, inner, B), work[BIAS])
        if dy is not None:
            gather(dy, ob, 1, 0, run, entry(geo, inner, DY), work[BUFFER_DY])
        line_dy, affine = beside(dy, work[BUFFER_DY]), (work[WEIGHT], beside(b, work[BIAS]))
        apply_runs(line, line_dy, line, affine, (0, 0, 0, 0), (0, 0, 0, 0), run, 1, centre, rest, True, False)
        if entry(geo, inner, Y) == 1:
            copy_run(line, 0, run, y, oy)
        else:
            for j in range(run):
                write(y, oy + j * entry(geo, inner, Y), work[BUFFER, j])
        done += run


@jit_part
def lay_affine(array: Any, geo: Any, o: int, count: int, column: int, to: Any) -> None:
    """The weights (or biases) of one position of a tile."""
    out_of_line()
    step, along = entry(geo, innermost(geo, KEPT), column), entry(geo, innermost(geo, REDUCED), column)
    gather(array, o, count, step, entry(geo, 1, APPLY_LANES), along, to)


@jit_part
def _apply_lanes(x: Any, dy: Any, y: Any, w: Any, b: Any, geo: Any, at: Any, i: int, m: int, count: int, work: Any) -> None:
    """The result for positions [i, i + m) of `count` sets whose lanes are neighbours; their numbers are in work's lanes."""
    out_of_line()
    varies, memory = entry(geo, 1, AFFINE_VARIES) != 0, entry(geo, 2, MEMORY)
    inner, width, together, period = side_by_side(geo, count, m, dy)
    splat = stands_still(geo, count, W)
    lay_affine(w, geo, at[2], count, W, work[WEIGHT])
    rows = GAIN + 1
    if b is not None:
        splat &= stands_still(geo, count, B)
        rows = BIAS + 1
        lay_affine(b, geo, at[3], count, B, work[BIAS])
    repeat(work, rows, width, together * width)
    done = 0
    while done < m:
        here, left = position(geo, REDUCED, inner, at, i + done)
        run = least(m - done, left)
        if period > 0:
            apply_period(x, dy, y, here, run * width, period, work, memory == PAST)
            done += run
            continue
        # positions side by side, and how many times: one after another, if their weights are the same or one number each
        side = least(together, run)
        rows = run // side if splat or not varies else 1
        if rows == 1 and varies:
            lay_affine(w, geo, here[2], count, W, work[WEIGHT])
            if b is not None:
                lay_affine(b, geo, here[3], count, B, work[BIAS])
        span = side * width
        steps = (span, span, 0, span) if together > 1 else advance(geo, inner, (0, 0, 0, 0), 1)
        apply_lanes(x, dy, y, (w, b), here, steps, span, rows, work, varies and rows > 1, memory != NEAR)
        done += rows * side


@jit_part
def _apply_near(
    x: Any, dy: Any, y: Any, w: Any, b: Any, geo: Any, tile: Any, i: int, m: int, sets: Any, todo: Any, work: Any
) -> None:
    """`apply_tile` where neighbours in the tile are neighbours in memory."""
    out_of_line()
    first, count, at = tile
    k, whole = 0, todo.shape[0] == 0
    if work.itemsize == 4 and not whole:
        whole = not some_marked(todo, first, count)
    while k < count:  # neighbours that are for this pass
        end = count if whole else k
        while end < count and not skipped(todo, first + end, work):
            end += 1
        if end > k:
            load_sets(sets, k, end - k, entry(geo, 1, APPLY_LANES), dy is not None, work)
            _apply_lanes(x, dy, y, w, b, geo, advance(geo, innermost(geo, KEPT), at, k), i, m, end - k, work)
        k = end + 1


@jit_part
def _apply_apart(
    x: Any, dy: Any, y: Any, w: Any, b: Any, geo: Any, tile: Any, i: int, m: int, sets: Any, todo: Any, work: Any
) -> None:
    """`apply_tile` where they are not."""
    out_of_line()
    first, count, at = tile
    elements = most(entry(geo, 1, APPLY_LANES), 1)
    begin, end = i * elements, (i + m) * elements
    size = BLOCK if count > 1 else m * elements  # sets side by side: block by block, while x is in cache
    for block in range(begin, end, size):
        for k in range(count):
            if not skipped(todo, first + k, work):
                load_sets(sets, k, 1, 1, dy is not None, work)
                start = advance(geo, innermost(geo, KEPT), at, k)
                _apply_set(x, dy, y, w, b, geo, start, block, least(size, end - block), work)


@jit_inline
def apply_tile(
    x: Any,
    dy: Any,
    y: Any,
    w: Any,
    b: Any,
    geo: Any,
    tile: Any,
    i: int,
    m: int,
    sets: Any,
    todo: Any,
    work: Any,
    apart: Any,
) -> None:
    """The result for positions [i, i + m) of a tile. sets: the numbers of its sets, (3 or 6, count)."""
    pick(apart, _apply_apart, _apply_near)(x, dy, y, w, b, geo, tile, i, m, sets, todo, work)
