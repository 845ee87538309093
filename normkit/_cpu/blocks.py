"""The two sums of a block of positions of a tile: of sets side by side, in lanes, or wherever they lie."""

from __future__ import annotations

from typing import Any

from .buffers import BUFFER, HIGH, PIVOT, RSTD, TOTAL, WEIGHT
from .compile import jit_inline, jit_part
from .gathering import gather
from .geometry import DY, KEPT, LANE, MODE, MOVES, PARTIALS, ROWS, SIZE, STRIP_ROWS, TILE_WIDTH, WALK, W, X
from .indexing import advance, entry, innermost, position
from .lanes import ALONG, TABLE, accumulate
from .partials import fewer
from .rows import add_rows, clear_rows, copy_rows, repeat
from .vectors import beside, least, most, out_of_line, release, scratch

_SHORT = 256  # positions of sets so short that the next tile is worth asking for, not the next positions
# Columns of which all strips of a block are added up in one go: 32 KiB of float32. Instance norm of channels-last
# (8, 50000, 2) takes 0.11 ms so, 0.19 strip by strip, of a picture of (224, 224, 3) 0.039 and 0.047, of (8, 12500, 16) 0.144
# and 0.158; of 32 and 64 channels the same (two threads, Zen 4, 2026-11).
_NARROW = 128


@jit_inline
def _lay_still(moving: Any, geo: Any, o: int, count: int, work: Any) -> None:
    """The numbers of a position of `count` sets from `moving`, (weight,) or (high, low, rstd): all positions share them."""
    step = entry(geo, innermost(geo, KEPT), W)
    first = WEIGHT if len(moving) == 1 else HIGH
    for k in range(len(moving)):
        gather(moving[k], o, count, step, entry(geo, LANE, SIZE), entry(geo, LANE, W), work[first + k])


@jit_part
def _find_places(geo: Any, count: int, partials: int, places: Any) -> None:
    """Offsets of the columns of a row of `partials` positions of `count` sets: in x, -, the numbers that move, and dy."""
    lanes = entry(geo, LANE, SIZE)
    kept, inner = innermost(geo, KEPT), innermost(geo, WALK)
    for q in range(4):
        c = 0
        for j in range(partials):
            for k in range(count):
                for r in range(lanes):
                    places[q, c] = j * entry(geo, inner, X + q) + k * entry(geo, kept, X + q) + r * entry(geo, LANE, X + q)
                    c += 1


@jit_part
def _sum_run(
    x: Any,
    dy: Any,
    moving: Any,
    geo: Any,
    at: Any,
    i: int,
    m: int,
    width: int,
    partials: int,
    work: Any,
    places: Any,
    own: Any,
    piece: bool,
) -> None:
    """Add m positions of a run, the first of them at `at`: position i of a block to the partial sums of i % partials.

    They are strips, the last one maybe shorter, or a piece of one: then they are added to those before them one by one.
    """
    out_of_line()
    inner, mode = innermost(geo, WALK), entry(geo, LANE, MODE)
    x_step, w_step, dy_step = entry(geo, inner, X), entry(geo, inner, W), entry(geo, inner, DY)
    steps = (partials * x_step, 0, partials * w_step, partials * dy_step)
    whole, rest, ahead = m // partials, m % partials, width if entry(geo, 1, ROWS) <= _SHORT else 0
    even = i % partials == 0
    if places is None and partials > 1:
        even &= x_step == width
        if dy is not None:
            even &= dy_step == width and (mode == TABLE or w_step == (width if mode == ALONG else 0))
    for j in range(2 if even else least(partials, m)):
        columns, rows, lane, here = (0, width), whole + (j < rest), (i + j) % partials * width, at
        if even:  # positions follow one another: `partials` of them are one row, and the last row is shorter
            columns = (rest * width, partials * width) if j else (0, rest * width)
            rows, lane = whole + 1 - j, 0
        else:
            here = advance(geo, inner, at, j)
        accumulate(x, dy, moving, here, steps, rows, columns, work, lane, mode, places, own, ahead, piece)


@jit_inline
def _sum_strips(
    x: Any, dy: Any, moving: Any, geo: Any, at: Any, i: int, m: int, width: int, partials: int, work: Any, places: Any, own: Any
) -> None:
    """Add positions [i, i + m) to the partial sums, strip by strip; one that is not in one run is added up by itself first.

    So the order of a sum is the same wherever runs end.
    """
    done, strip, length = 0, STRIP_ROWS * partials, partials * width
    while done < m:
        stop = least(m, done + strip)
        here, left = position(geo, WALK, innermost(geo, WALK), at, i + done)
        if length <= _NARROW:
            stop = m if m - done <= left else most(stop, done + left // strip * strip)
        apart = left < stop - done
        if apart:
            copy_rows(work, TOTAL, 0, work, BUFFER, 0, 2, length)
            clear_rows(work, TOTAL, 0, 2, length)
        while done < stop:
            run = least(stop - done, left)
            _sum_run(x, dy, moving, geo, here, done, run, width, partials, work, places, own, apart)
            done += run
            if done < stop:
                here, left = position(geo, WALK, innermost(geo, WALK), at, i + done)
        if apart:
            add_rows(work, BUFFER, 0, work, TOTAL, 0, 2, length)


@jit_part
def sum_block(
    x: Any, dy: Any, moving: Any, geo: Any, at: Any, i: int, m: int, count: int, partials: int, work: Any, apart: Any, own: Any
) -> None:
    """The two sums over positions [i, i + m) of `count` sets, into TOTAL and TOTAL_OF_PRODUCTS, by 2^k partial sums at most.

    The numbers of the lanes (PIVOT, or HIGH to RSTD) are in work, for one position. own: None, or see `accumulate`.
    """
    out_of_line()
    partials = fewer(partials, m)
    width, rows = count * entry(geo, LANE, SIZE), PIVOT + 1
    if dy is not None:
        rows = RSTD + 1
        if not entry(geo, 1, MOVES):
            _lay_still(moving, geo, at[2], count, work)
    repeat(work, rows, width, partials * width)
    clear_rows(work, TOTAL, 0, 2, partials * width)
    places = scratch(4, PARTIALS * TILE_WIDTH, beside(apart, geo))
    if apart is not None:
        _find_places(geo, count, partials, places)
    _sum_strips(x, dy, moving, geo, at, i, m, width, partials, work, places, own)
    release(places)
    while partials > 1:  # a tree, the same for every width
        partials //= 2
        add_rows(work, TOTAL, partials * width, work, TOTAL, 0, 2, partials * width)
