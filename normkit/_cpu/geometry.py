"""How a `SetView` travels to the kernels: one integer array, since every argument of a Numba call costs time.

Row 0: how many segments of each kind follow. Row 1: the scalars named below. Row 2: the positions of the apply pass, the
offsets of the first element of x, y, weight and bias, whether to stream, and whether sets are short runs. Row 3: the lanes
of a set. Then the segments, a row each: (size, strides of x, y, weight, bias), kept ones first, then reduced ones, then
`walk`, the reduced ones as the sums walk them. In a gradient y is dx, and dy takes the place of bias.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .._dtypes import Array
from .._layout import TILE_WIDTH as TILE_WIDTH
from .._layout import SetView, ceil_div

KEPT, REDUCED, WALK = range(3)
TILE, ROWS, CENTER, PER_TASK, APPLY_LANES, AFFINE_VARIES, MOVES = COLUMNS = range(7)
APPLY_ROWS, STREAM, SHORT = 0, 5, 6
SIZE, X, Y, W, B = range(5)
DY = B
LANE = 3
HEADER = 4

ROW = 32 * TILE_WIDTH  # elements of a buffer row: LANES positions of a tile
BLOCK = 2048  # positions summed in one go: 8 KiB of float32, in L1 for the second pass over the first block
CHUNK = 8 * BLOCK  # positions per parallel piece of a set
_TASK_ELEMENTS = 1 << 15  # work worth handing to another thread: 10 us, where a parallel launch costs 2
# Results of this size go to memory past the caches, but never to fresh memory, whose pages the system has just put there:
# instance norm of 128 MiB takes 20 ms so, and 25 streamed. Layer norm into touched memory, in ms, streamed or not (2 cores,
# 2 MiB of L2 each, 2026-11): 16 MiB 0.95 / 0.82, 32 MiB 1.9 / 2.0, 64 MiB 4.2 / 7.4; and 64 MiB in runs of 256: 5.8 / 6.3, of
# 512: 4.3 / 6.5.
_STREAM_ELEMENTS = 1 << 23
_STREAM_RUN = 1 << 9
# Tasks that collect: at most so many, each over so many sets or more. Their rows of float64 are then 1/16 of x at most.
_COLLECT_TASKS, _COLLECT_SETS, _COLLECT_LENGTH = 128, 32, 8192


@lru_cache(maxsize=4096)
def pack(view: SetView, center: bool, fresh: bool) -> Array:
    """The geometry array of a view."""
    kinds = (view.kept, view.reduced, view.walk)
    geo = np.zeros((HEADER + sum(map(len, kinds)), len(COLUMNS)), np.int64)
    geo[0, :3] = [len(kind) for kind in kinds]
    moves = any(strides[2] != 0 for _, strides in view.walk)
    geo[1] = [view.tile, view.rows, center, tiles_per_task(view), view.apply_lanes, view.affine_varies, moves]
    geo[2, :7] = [view.apply_rows, *view.offsets, not fresh and streams(view), short(view)]
    geo[LANE, :5] = [view.lane[0], *view.lane[1]]
    for row, (size, strides) in enumerate((segment for kind in kinds for segment in kind), HEADER):
        geo[row, :5] = [size, *strides]
    geo.flags.writeable = False
    return geo


def streams(view: SetView) -> bool:
    """Whether results go to memory past the caches: large ones, in long runs."""
    if view.n_sets * view.set_size < _STREAM_ELEMENTS:
        return False
    if view.apply_lanes:
        lanes = view.tile * view.apply_lanes
        walk = view.reduced[:-1] if view.apply_lanes > 1 else view.reduced
        return walk[-1][1][:2] == (lanes, lanes) and walk[-1][0] * lanes >= _STREAM_RUN
    size, (x, y, *_) = view.reduced[-1]
    return x == y == 1 and size >= _STREAM_RUN


def short(view: SetView) -> bool:
    """Whether every set is one run and one block, in all that is read and written, affines along with it or still."""
    if view.tile > 1 or view.set_lanes > 1 or len(view.reduced) > 1 or len(view.walk) > 1 or view.rows > BLOCK:
        return False
    (x, y, weight, last), single = view.reduced[-1][1], view.set_size == 1
    along = last == 1 and weight in (0, 1) if view.gradient else weight == last and weight in (0, 1)
    return (x == y == 1 and along) or single


def tiles_per_task(view: SetView) -> int:
    """Neighbouring tiles that one task takes, so that it has work for some microseconds; and few sums if it collects them."""
    least = max(_COLLECT_SETS, ceil_div(view.tiles, _COLLECT_TASKS)) if collects(view) else 1
    return max(least, _TASK_ELEMENTS // max(1, view.set_size * view.tile))


def collects(view: SetView) -> bool:
    """Whether each task can add up dy and dy * x_hat of each position over its sets, while it sums the sets.

    The gradient of a weight that lies along a set, without reading x and dy again: for runs, short enough for L2, many
    enough to be worth a row of sums per task.
    """
    if not view.gradient or view.tile > 1 or view.set_lanes > 1 or len(view.walk) > 1:
        return False
    (x, _, weight, dy), n = view.walk[-1][1], view.set_size
    return x == weight == dy == 1 and n <= _COLLECT_LENGTH and view.n_sets >= 16 * _COLLECT_SETS


def tile_groups(view: SetView) -> int:
    """Tasks along the sets."""
    return ceil_div(view.tiles, tiles_per_task(view))


def chunk_count(rows: int) -> int:
    """Tasks along one set of `rows` positions."""
    return ceil_div(rows, CHUNK)
