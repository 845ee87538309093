"""How a `SetView` travels to the kernels: one integer array, since every argument of a Numba call costs time.

Row 0: where the segments of each kind start, and the positions of a chunk in the sums and in the apply pass. Row 1: the
scalars named below. Row 2: the positions of the apply pass, the offsets of the first element of x, y, weight and bias, where
results lie, and how many tiles. Row 3: the lanes of a set, where numbers that move come from, and the positions of a piece.
Then the segments, a row each: (size, strides of x, y, weight, bias), kept ones first, then reduced ones, then `walk`, the
reduced ones as the sums walk them. In a gradient y is dx, and dy takes the place of bias.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

import numpy as np

from .._dtypes import Array
from .._layout import TILE_WIDTH as TILE_WIDTH
from .._layout import VECTOR, SetView, ceil_div

KEPT, REDUCED, WALK = range(3)
TILE, ROWS, CENTER, PER_TASK, APPLY_LANES, AFFINE_VARIES, MOVES = COLUMNS = range(7)
APPLY_ROWS, MEMORY, TILES = 0, 5, 6
NEAR, FAR, PAST = range(3)  # results are in the caches; or in memory; or go to memory past the caches, in runs and periods
SIZE, X, Y, W, B = range(5)
DY = B
PER_CHUNK, PER_APPLY = 4, 5
LANE = 3
MODE, PIECE = 5, 6
HEADER = 4

# A lane of a tile is summed in PARTIALS partial sums, of STRIP_ROWS elements at a time, and these added up BLOCK_STRIPS at a
# time: 16 roundings in a row at most, not 64. A set of many lanes takes fewer partial sums, and fewer positions for HEAD.
PARTIALS, STRIP_ROWS, BLOCK_STRIPS = 8, 8, 8
# Elements of a buffer row: PARTIALS positions of a tile or more, and one more, since rows that are 4 KiB apart lie in the same
# sets of an L1 cache: group norm of channels-last (32, 512, 7, 7) takes 0.164 ms on one thread so, 0.178 without (Zen 4,
# 2026-11).
ROW = (PARTIALS + 1) * TILE_WIDTH
# Columns of small sets side by side that are normalized at once, half as many in a gradient, and rows at most: 16 KiB of
# float32. In ms on two threads, so and as tiles: instance norm of channels-last (64, 256, 7, 7) 0.107 / 0.142, its gradient
# 0.24 / 0.31, (1000, 24, 5, 5) 0.15 / 0.27, 0.29 / 0.48, (3966, 3, 11) 0.42 / 1.4, 0.39 / 0.91, group norm of (128, 128, 7, 7)
# in 8 groups 0.098 / 0.124, 0.16 / 0.21, of (32, 512, 7, 7) in 32 0.095 / 0.10, 0.19 / 0.19. Wider rows, and arrays that have
# more bytes together, are better read in line: (16, 1024, 7, 7) 0.13 / 0.11, (80, 512, 7, 7) 0.37 / 0.28; but not rows of no
# more columns than these: instance norm of (8000, 64, 3, 3) 1.7 / 3.6 (Zen 4, 2026-11).
COLUMNS_KEPT, ROWS_KEPT = 64, 64
_WIDTH_KEPT, _BYTES_KEPT = 512, 12 << 20
HEAD, HEAD_OF_RUN = 16, 32  # positions of a tile, and elements of a run, whose mean is the first pivot
BLOCK = 2048  # positions of a run summed in one go: 8 KiB of float32, in L1 for the second pass over the first block
# Positions per parallel piece of a set, if it lies in runs; of one whose neighbours in a tile do, an eighth of it, if that is
# so many: batch norm of 4096 x 256 would else be one task.
CHUNK, CHUNK_LEAST = 8 * BLOCK, 1 << 10
_TASK_ELEMENTS = 1 << 15  # work worth handing to another thread: 10 us, where a parallel launch costs 5
_RUN_ELEMENTS = 64  # what a run costs beside its elements: 13 ns, where one of these takes 0.2
# Results of this size go to memory past the caches, but never to fresh memory, whose pages the system has just put there:
# instance norm of 128 MiB takes 20 ms so, and 25 streamed. Layer norm into touched memory, in ms, streamed or not (2 cores,
# 2 MiB of L2 each, 2026-11): 16 MiB 0.95 / 0.82, 32 MiB 1.9 / 2.0, 64 MiB 4.2 / 7.4; and 64 MiB in runs of 256: 5.8 / 6.3, of
# 512: 4.3 / 6.5.
_STREAM_BYTES = 1 << 25
_STREAM_RUN = 1 << 9
# Results of this size, and x, are asked for ahead where tiles are written. Instance norm of channels-last (n, 200, 30, 30) on
# one thread, in ms, so or not (Zen 4, 2026-11): 4 MiB 0.22 / 0.23, 6 MiB 0.31 / 0.33, 8 MiB 0.60 / 0.83, 11 MiB 0.85 / 1.25.
# Group norm of channels-last (32, 512, 7, 7), which has 3 MiB, would take a twentieth longer.
_FAR_BYTES = 1 << 22
# Tasks that collect sums of a weight's elements: at most and at least so many, or as many as have work, or some that have room.
# Their sums, in float64, are 1/16 of a float32 x at most, or 512 KiB.
# Where none collects, x and dy are read again: the gradient of layer norm of 197 x 768 takes 47 us so, and took 145 in two
# passes, of 781 x 256 58 and 155, of 128 x 8192 294 and 467 (two threads, Zen 4, 2026-11).
# Weights too long for that: a task takes a piece of all sets, _PIECES of them or more. Layer norm of 4 x 100,000 takes 0.25 ms
# so, and took 0.78 in a pass over columns, 64 x 32,768 1.3 and 1.9, 1 x 1,000,000 1.1 and 28. But x is read once for the sums
# and once for dx: tasks are better where 16 have room, 9.0 ms against 12.2 for 1024 x 10,240, and for sums that fit in L1.
_PIECES = 16
_COLLECT_TASKS, _COLLECT_LEAST, _COLLECT_FEW, _COLLECT_SHARE, _COLLECT_LENGTH, _COLLECT_ROOM = 128, 16, 4, 64, 1 << 13, 1 << 15


@lru_cache(maxsize=4096)
def pack(view: SetView, center: bool, fresh: bool, itemsize: int) -> Array:
    """The geometry array of a view; `itemsize` of its results."""
    kinds = (view.kept, view.reduced, view.walk)
    starts = [HEADER + sum(map(len, kinds[:k])) for k in range(4)]
    geo = np.zeros((starts[-1], len(COLUMNS)), np.int64)
    geo[0, :6] = [*starts, chunk_rows(view, view.rows), chunk_rows(view, view.apply_rows)]
    moves = any(strides[2] != 0 for _, strides in view.walk)
    geo[1] = [view.tile, view.rows, center, tiles_per_task(view), view.apply_lanes, view.affine_varies, moves]
    geo[2] = [view.apply_rows, *view.offsets, _memory(view, fresh, itemsize), view.tiles]
    geo[LANE] = [view.lane[0], *view.lane[1], _mode(view) if moves else 0, piece(view)]
    for row, (size, strides) in enumerate((segment for kind in kinds for segment in kind), HEADER):
        geo[row, :5] = [size, *strides]
    return geo


def _columns(view: SetView, operand: int) -> tuple[bool, bool]:
    """(whether the elements of a position are neighbours, whether they are all the same one) in one operand."""
    (lanes, lane), (_, kept) = view.lane, view.kept[-1]
    if lanes * view.tile == 1:
        step = view.walk[-1][1][operand]
        return step == 1, step == 0
    in_line = (lanes == 1 or lane[operand] == 1) and (view.tile == 1 or kept[operand] == lanes)
    return in_line, (lanes == 1 or lane[operand] == 0) and (view.tile == 1 or kept[operand] == 0)


def _mode(view: SetView) -> int:
    """Where the numbers of a position come from that change along a set, a mode of `lanes.accumulate`."""
    return 1 if _columns(view, 2)[1] and not apart(view) else 2


def apart(view: SetView) -> bool:
    """Whether neighbours in a run or tile are not neighbours in memory, in some operand; but dy of a run may lie anywhere."""
    if view.set_size == 1:
        return view.tile > 1 and view.apply_lanes == 0
    runs = view.tile * view.set_lanes == 1
    near = all(_columns(view, k)[0] for k in ((0, 3) if view.gradient and not runs else (0,)))
    if any(strides[2] != 0 for _, strides in view.walk):
        near &= any(_columns(view, 2))
    if not runs:
        return not (near and view.apply_lanes > 0)
    _, (x, y, weight, last) = view.reduced[-1]
    return not (near and x == y == 1 and weight in (0, 1) and (view.gradient or last == weight))


def in_runs(view: SetView) -> bool:
    """Whether every set lies in runs, in x and in what is written, affines along with it or still."""
    return view.tile * view.set_lanes == 1 and not apart(view)


def is_short(view: SetView) -> bool:
    """Whether every set lies in one run, of a block."""
    return in_runs(view) and view.set_size <= BLOCK and len(view.walk) == len(view.reduced) == 1


def in_columns(view: SetView, itemsize: int) -> bool:
    """Whether small sets lie side by side, to be kept in L1 while they are normalized; their weights change along rows only."""
    lanes, one = view.set_lanes, len(view.walk) == 1 and len(view.reduced) == 1 + (view.set_lanes > 1)
    beside = view.tile > 1 and view.apply_lanes == lanes and VECTOR % lanes == 0 and not apart(view)
    if not beside or not one or view.rows > ROWS_KEPT or view.affine_varies:
        return False
    width, arrays = view.kept[-1][0] * lanes, 2 + view.gradient
    small = arrays * view.n_sets * view.set_size * itemsize < _BYTES_KEPT
    return width <= COLUMNS_KEPT // (1 + view.gradient) or (width <= _WIDTH_KEPT and small)


def sums_as_runs(view: SetView) -> bool:
    """Whether the statistics are those of runs, wherever results and affines lie: bits depend on x alone."""
    return view.tile * view.set_lanes == 1 and (_in_line(view) or view.set_size == 1)


def _in_line(view: SetView) -> bool:
    """Whether neighbours of a set are summed as such, not in the order of those that lie apart."""
    return view.walk[-1][1][0] == 1 and not view.stepped


def _memory(view: SetView, fresh: bool, itemsize: int) -> int:
    """Where results lie: NEAR, FAR or PAST."""
    if not fresh and streams(view, itemsize):
        return PAST
    far = _BYTES_KEPT // 2 if in_columns(view, itemsize) else _FAR_BYTES
    return FAR if view.n_sets * view.set_size * itemsize >= far else NEAR


def streams(view: SetView, itemsize: int) -> bool:
    """Whether results go to memory past the caches: large ones, in long runs."""
    if view.n_sets * view.set_size * itemsize < _STREAM_BYTES:
        return False
    if view.apply_lanes:
        lanes = view.tile * view.apply_lanes
        walk = view.reduced[:-1] if view.apply_lanes > 1 else view.reduced
        return walk[-1][1][:2] == (lanes, lanes) and walk[-1][0] * lanes >= _STREAM_RUN
    size, (x, y, *_) = view.reduced[-1]
    return x == y == 1 and size >= _STREAM_RUN


def tiles_per_task(view: SetView) -> int:
    """Neighbouring tiles that one task takes, so that it has work for some microseconds; and few sums if it collects them."""
    tasks = _collecting_tasks(view)
    least = ceil_div(view.tiles, tasks) if tasks else 1
    return max(least, _TASK_ELEMENTS // max(1, _set_work(view) * view.tile))


def work(view: SetView) -> int:
    """What all sets cost, in elements of a norm of long ones."""
    return view.n_sets * _set_work(view)


def _set_work(view: SetView) -> int:
    """The same of one set."""
    runs = view.set_size // view.reduced[-1][0] if in_runs(view) else 0
    return view.set_size * (1 + view.gradient) + _RUN_ELEMENTS * runs


def collects(view: SetView, tasks: int, fused: bool) -> bool:
    """Whether each task can add up dy and dy * x_hat for each element of the weight, while it sums the sets.

    The gradient of a weight that changes within a set, without reading x and dy again: where it goes along a run, or stands
    still in runs, in lanes or in the positions of a tile.
    """
    most = _collecting_tasks(view)
    if in_runs(view) and _along(view) and not fused:
        return False
    return 0 < tasks <= most or (most > 0 and tasks * _COLLECT_SHARE * _weights(view) <= view.n_sets * view.set_size)


def _weights(view: SetView) -> int:
    """Elements of the weight."""
    return prod(n for n, strides in (*view.kept, *view.reduced) if strides[2] != 0)


def _along(view: SetView) -> bool:
    """Whether the weight changes along the innermost positions of a set."""
    return view.walk[-1][1][2] != 0


def _repeats(view: SetView) -> int:
    """How often an element of the weight that changes within a set comes in it."""
    return view.set_size // prod(n for n, strides in view.reduced if strides[2] != 0)


def _collecting_tasks(view: SetView) -> int:
    """The number of tasks that is best to collect in; 0 where it does not pay."""
    size = _weights(view)
    if not view.gradient or size == 1 or (apart(view) and not in_runs(view)):
        return 0
    moves = any(strides[2] != 0 for _, strides in view.walk)
    if moves and not in_runs(view) and (size > _COLLECT_LENGTH or _mode(view) != 1):
        return 0
    if in_runs(view) and _along(view) and _repeats(view) > 1:  # its sums are float32 for some sets
        return 0
    elements = view.n_sets * view.set_size
    if elements <= _TASK_ELEMENTS:
        return 1
    tasks = min(_COLLECT_TASKS, elements // (_COLLECT_SHARE * size))
    if tasks >= _COLLECT_LEAST:
        return tasks
    if _along(view) and size > _COLLECT_LENGTH:
        return 0
    busy = min(_COLLECT_LEAST, elements // _TASK_ELEMENTS)
    few = min(busy, _COLLECT_ROOM // size)
    return few if few == busy or few >= _COLLECT_FEW else 0


def piece(view: SetView) -> int:
    """Positions that one task takes of every set, to add up dy and dy * x_hat for each element of a weight along runs.

    For weights too long for each task to have its own sums; 0 where that cannot be done.
    """
    alone = in_runs(view) and len(view.walk) == len(view.reduced) == 1 and view.walk[-1][1][2] == 1
    if not (view.gradient and alone and view.set_size == _weights(view)):
        return 0
    share = ceil_div(view.set_size, _PIECES)
    return min(CHUNK, ceil_div(share, BLOCK) * BLOCK)


def tile_groups(view: SetView) -> int:
    """Tasks along the sets."""
    return ceil_div(view.tiles, tiles_per_task(view))


def chunk_rows(view: SetView, rows: int) -> int:
    """Positions of a chunk of `rows` of a set. That follows from the set alone, since bits do from that."""
    if view.set_lanes == 1 and _in_line(view):
        return CHUNK
    return min(CHUNK, max(CHUNK_LEAST, 1 << (ceil_div(rows, 8) - 1).bit_length()))


def chunk_count(view: SetView, rows: int) -> int:
    """Tasks along one set of `rows` positions."""
    return ceil_div(rows, chunk_rows(view, rows))
