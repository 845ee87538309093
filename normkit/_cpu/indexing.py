"""Where things are: tiles, sets and positions from the packed geometry, and reading strided elements into a buffer."""

from __future__ import annotations

from typing import Any

from .geometry import KEPT, PER_TASK, SIZE, TILE, TILES, B, W, X, Y
from .threads import jit_inline, jit_part
from .vectors import copy_run, fill, out_of_line, read


@jit_inline
def position(geo: Any, first: int, last: int, at: Any, index: int) -> Any:
    """Offsets of all operands `index` positions on from `at`, along segments [first, last); and what is left of the run."""
    left = geo[last - 1, SIZE]
    within, outer = index, 0
    if index >= left:  # a division costs as much as a short set
        outer = index // left
        within = index - outer * left
    left -= within
    x, y = at[0] + within * geo[last - 1, X], at[1] + within * geo[last - 1, Y]
    w, b = at[2] + within * geo[last - 1, W], at[3] + within * geo[last - 1, B]
    for row in range(last - 2, first - 1, -1):
        rest = outer // geo[row, SIZE]
        k = outer - rest * geo[row, SIZE]
        x, y, w, b = x + k * geo[row, X], y + k * geo[row, Y], w + k * geo[row, W], b + k * geo[row, B]
        outer = rest
    return (x, y, w, b), left


@jit_inline
def advance(geo: Any, row: int, at: Any, steps: int) -> Any:
    """Offsets for x, y, weight and bias, `steps` further along a segment."""
    x, y = at[0] + steps * geo[row, X], at[1] + steps * geo[row, Y]
    return x, y, at[2] + steps * geo[row, W], at[3] + steps * geo[row, B]


@jit_inline
def set_origin(geo: Any, k: int) -> Any:
    """Offsets of x, y, weight and bias at the first element of set k."""
    return position(geo, geo[0, KEPT], geo[0, KEPT + 1], (geo[2, X], geo[2, Y], geo[2, W], geo[2, B]), k)[0]


@jit_inline
def tile_of(geo: Any, tile: int) -> Any:
    """(index of the first set, number of sets, offsets of x, y, weight, bias) of a tile."""
    width, inner = geo[1, TILE], geo[geo[0, KEPT + 1] - 1, SIZE]
    per_row = -(-inner // width)
    outer = tile // per_row
    start = (tile - outer * per_row) * width
    return outer * inner + start, min(width, inner - start), set_origin(geo, outer * inner + start)


@jit_inline
def tiles_of(geo: Any, begin: int, end: int) -> Any:
    """The tiles of tasks [begin, end): first and one past the last."""
    return begin * geo[1, PER_TASK], min(end * geo[1, PER_TASK], geo[2, TILES])


@jit_part
def gather(x: Any, o: int, positions: int, step: int, sets: int, set_step: int, lanes: int, lane_step: int, to: Any) -> None:
    """to[position, set, lane] = x there, in the accumulator's dtype; `to` is flat. The nearest neighbours go innermost."""
    out_of_line()
    width = sets * lanes
    if width == 1 and step == 1:
        copy_run(x, o, positions, to, 0)
        return
    if (positions == 1 or step == 0) and (sets == 1 or set_step == 0) and (lanes == 1 or lane_step == 0):
        fill(to, positions * width, read(x, o, to.dtype.type))
        return
    if (lanes == 1 or lane_step == 1) and (sets == 1 or set_step == lanes):
        for i in range(positions):
            copy_run(x, o + i * step, width, to, i * width)
        return
    for i in range(positions):
        for k in range(sets):
            start, at = o + i * step + k * set_step, i * width + k * lanes
            for r in range(lanes):
                to[at + r] = read(x, start + r * lane_step, to.dtype.type)
