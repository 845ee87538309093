"""The tasks that the sets of a `SetView` are done in, and where results go; and all that kernels are told of it, packed."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from math import prod

import numpy as np

from .._dtypes import Array
from .._layout import SetView, ceil_div, even_share
from . import arrangement
from .geometry import (
    BLOCK,
    BYTES_KEPT,
    CHUNK,
    CHUNK_LEAST,
    COLUMNS,
    FAR,
    HEADER,
    LANE,
    NEAR,
    PAST,
    ROW,
)

# Elements of a task that writes rows of known statistics. Shares of a row are slow to write, a kilobyte here and there: as
# whole rows apply takes, in ms on two threads, for batch norm of 6272 x 1024 1.2, in tiles of 256 it took 2.4, of 25,088 x 512
# 2.9 and 4.6, of 1568 x 2048 0.48 and 0.77; as much with half or twice as many elements to a task (Zen 4, 2026-11).
_APPLY_ELEMENTS = 1 << 17
# Bytes of x and result from which on statistics of such a share are a pass of their own, and from which on half as many are
# enough, since no cache keeps the arrays. Instance norm of channels-last in two passes and in one, in ms: (4, 3136, 320) 0.99 /
# 1.5, (2, 2000, 1024) 0.85 / 0.94, (8, 784, 512) 0.60 / 0.82, (4, 1200, 1024) 1.2 / 1.6, but (2, 1200, 1024) 0.44 / 0.39, (4,
# 800, 512) 0.26 / 0.22, (32, 196, 1024) 2.4 / 2.1; the gradient of batch norm of 6272 x 1024 3.5 / 4.2. Not where rows are in
# line anyway, (8, 3136, 256) 1.4 / 1.2, nor where they never are: layer norm over channels of (2, 1000, 5000) 3.7 / 2.9.
_SHARE_BYTES, _MANY_BYTES = 3 << 20, 24 << 20
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
    geo[0, :6] = [*starts, chunk_rows(view, view.rows), apply_chunk_rows(view)]
    moves = any(strides[2] != 0 for _, strides in view.walk)
    geo[1] = [view.tile, view.rows, center, tiles_per_task(view), view.apply_lanes, view.affine_varies, moves]
    geo[2] = [view.apply_rows, *view.offsets, _memory(view, fresh, itemsize), view.tiles]
    geo[LANE] = [view.lane[0], *view.lane[1], arrangement.mode(view) if moves else 0, piece(view)]
    for row, (size, strides) in enumerate((segment for kind in kinds for segment in kind), HEADER):
        geo[row, :5] = [size, *strides]
    return geo


def _memory(view: SetView, fresh: bool, itemsize: int) -> int:
    """Where results lie: NEAR, FAR or PAST."""
    if not fresh and streams(view, itemsize):
        return PAST
    far = BYTES_KEPT // 2 if arrangement.in_columns(view, itemsize) else _FAR_BYTES
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
    runs = view.set_size // view.reduced[-1][0] if arrangement.in_runs(view) else 0
    return view.set_size * (1 + view.gradient) + _RUN_ELEMENTS * runs


def collects(view: SetView, tasks: int, fused: bool) -> bool:
    """Whether each task can add up dy and dy * x_hat for each element of the weight, while it sums the sets.

    The gradient of a weight that changes within a set, without reading x and dy again: where it goes along a run, or stands
    still in runs, in lanes or in the positions of a tile.
    """
    most = _collecting_tasks(view)
    if arrangement.in_runs(view) and _along(view) and not fused:
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
    if not view.gradient or size == 1 or (arrangement.apart(view) and not arrangement.in_runs(view)):
        return 0
    moves = any(strides[2] != 0 for _, strides in view.walk)
    if moves and not arrangement.in_runs(view) and (size > _COLLECT_LENGTH or arrangement.mode(view) != 1):
        return 0
    if arrangement.in_runs(view) and _along(view) and _repeats(view) > 1:  # its sums are float32 for some sets
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
    alone = arrangement.in_runs(view) and len(view.walk) == len(view.reduced) == 1 and view.walk[-1][1][2] == 1
    if not (view.gradient and alone and view.set_size == _weights(view)):
        return 0
    share = ceil_div(view.set_size, _PIECES)
    return min(CHUNK, ceil_div(share, BLOCK) * BLOCK)


def tile_groups(view: SetView) -> int:
    """Tasks along the sets."""
    return ceil_div(view.tiles, tiles_per_task(view))


def chunk_rows(view: SetView, rows: int) -> int:
    """Positions of a chunk of `rows` of a set. In the statistics that follows from the set alone, since bits do from that."""
    if view.set_lanes == 1 and arrangement.in_line(view):
        return CHUNK
    return min(CHUNK, max(CHUNK_LEAST, 1 << (ceil_div(rows, 8) - 1).bit_length()))


def apply_chunk_rows(view: SetView) -> int:
    """The same of the apply pass, where no bits depend on it."""
    rows = chunk_rows(view, view.apply_rows)
    return min(rows, max(1, _APPLY_ELEMENTS // (view.tile * view.apply_lanes))) if view.apply_lanes else rows


def in_rows(view: SetView) -> SetView:
    """The view of the apply pass alone, where statistics are known: tiles of whole rows of sets, or as wide as buffers are."""
    if view.tile == 1 or view.apply_lanes == 0:
        return view
    return replace(view, tile=even_share(view.kept[-1][0], view.apply_lanes, ROW))


def outgrows_cache(view: SetView, itemsize: int) -> bool:
    """Whether a share of a row, of so many bytes for each element of x and result, is too large to be read twice."""
    share, most = view.tile < view.kept[-1][0] == in_rows(view).tile, view.n_sets * view.set_size * itemsize
    return share and view.set_size * view.tile * itemsize >= (_SHARE_BYTES if most < _MANY_BYTES else _SHARE_BYTES // 2)
