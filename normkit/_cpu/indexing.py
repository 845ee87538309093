"""Where things are: segments, tiles and offsets from the packed geometry, and reading strided elements into a buffer."""

from __future__ import annotations

from typing import Any

from .geometry import HEADER, KEPT, SIZE, TILE, B, W, X, Y
from .threads import jit
from .vectors import copy_run, fill, out_of_line, read


@jit
def outer_offset(segments: Any, index: int, column: int) -> Any:
    """Offset of the index-th position over segments[:-1], the outer ones, for one operand."""
    offset = 0
    for d in range(len(segments) - 2, -1, -1):
        size = segments[d, SIZE]
        offset += (index % size) * segments[d, column]
        index //= size
    return offset


@jit
def segments_of(geo: Any, kind: int) -> Any:
    """The segments of one kind: rows of (size, x, y, weight, bias strides)."""
    start = HEADER
    for k in range(kind):
        start += geo[0, k]
    return geo[start : start + geo[0, kind]]


@jit
def advance(at: Any, segment: Any, steps: int) -> Any:
    """Offsets for x, y, weight and bias, `steps` further along a segment."""
    x, y = at[0] + steps * segment[X], at[1] + steps * segment[Y]
    return x, y, at[2] + steps * segment[W], at[3] + steps * segment[B]


@jit
def steps_of(segment: Any) -> Any:
    """The strides of a segment, for x, y, weight and bias."""
    return segment[X], segment[Y], segment[W], segment[B]


@jit
def position(segments: Any, at: Any, index: int) -> Any:
    """Offsets of the index-th position from offsets `at`, for x, y, weight and bias; and what is left of its run."""
    inner = segments[-1]
    within, outer = index % inner[SIZE], index // inner[SIZE]
    x, y = at[0] + outer_offset(segments, outer, X), at[1] + outer_offset(segments, outer, Y)
    w, b = at[2] + outer_offset(segments, outer, W), at[3] + outer_offset(segments, outer, B)
    return advance((x, y, w, b), inner, within), inner[SIZE] - within


@jit
def tile_origin(geo: Any, tile: int) -> Any:
    """(index of the first set, number of sets, offsets of x, y, weight, bias) of a tile."""
    kept = segments_of(geo, KEPT)
    inner = kept[-1]
    per_row = -(-inner[SIZE] // geo[1, TILE])
    outer, first = tile // per_row, (tile % per_row) * geo[1, TILE]
    count = min(geo[1, TILE], inner[SIZE] - first)
    x = geo[2, X] + first * inner[X] + outer_offset(kept, outer, X)
    y = geo[2, Y] + first * inner[Y] + outer_offset(kept, outer, Y)
    w = geo[2, W] + first * inner[W] + outer_offset(kept, outer, W)
    b = geo[2, B] + first * inner[B] + outer_offset(kept, outer, B)
    return outer * inner[SIZE] + first, count, (x, y, w, b)


@jit
def short_origin(geo: Any, kept: Any, k: int) -> Any:
    """Offsets of set k, where every tile is one set: without divisions where one segment holds all sets."""
    if kept.shape[0] > 1:
        return tile_origin(geo, k)[2]
    return advance((geo[2, X], geo[2, Y], geo[2, W], geo[2, B]), kept[0], k)


@jit
def tile_count(geo: Any) -> Any:
    kept = segments_of(geo, KEPT)
    tiles = -(-kept[-1, SIZE] // geo[1, TILE])
    for d in range(len(kept) - 1):
        tiles *= kept[d, SIZE]
    return tiles


@jit
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
