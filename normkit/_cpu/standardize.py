"""The second half: centre and scale of every set, applied to a tile of sets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .affine import apply_lanes, apply_run
from .geometry import AFFINE_VARIES, APPLY_LANES, BLOCK, KEPT, REDUCED, ROW, STREAM, B, W, X, Y
from .indexing import gather, innermost, position, segments_of
from .sums import AHEAD, BUFFER, HUGE, M2, MEAN, MEAN_LOW
from .threads import jit
from .vectors import copy_run, out_of_line, prefetch, write

HIGH, LOW, RSTD, WEIGHT, BIAS = range(5)  # rows of `work` while a tile is standardized
RSTD_LIMIT = 2.0**64  # within it neither x - mean nor x_hat leaves float32's range


@jit
def skipped(todo: Any, k: int, work: Any) -> Any:
    """Whether set k is not for this pass: marked, in float32; not marked, in float64."""
    return todo.shape[0] > 0 and (todo[k] != 0) == (work.itemsize == 4)


@jit
def scale_of(m2: float, divisor: float, eps: float) -> float:
    """1 / sqrt(var + eps); 0 where that is 1 / 0, so that a constant set gives exactly its bias."""
    v = m2 / divisor + eps
    return 0.0 if v == 0 else 1.0 / math.sqrt(v)


@jit
def wild(mean: float, rstd: float) -> Any:
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
    segments = segments_of(geo, REDUCED)
    _, sx, sy, sw, sb = innermost(segments)
    vary = sw != 0 or sb != 0
    direct = sx == 1 and sy == 1 and (not vary or (sw == 1 and sb == 1))
    stream = geo[2, STREAM] != 0
    done = 0
    while done < m:
        (ox, oy, ow, ob), rest = position(segments, at, i + done)
        run = min(m - done, rest)
        if direct:
            apply_run(x, ox, y, oy, run, centre, (w, b), ow, ob, vary, stream)
        else:
            run = min(run, ROW)
            gather(x, ox, run, sx, 1, 0, 1, 0, work[BUFFER])
            gather(w, ow, run, sw, 1, 0, 1, 0, work[WEIGHT])
            gather(b, ob, run, sb, 1, 0, 1, 0, work[BIAS])
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
    lanes, kept, reduced = geo[1, APPLY_LANES], segments_of(geo, KEPT)[-1], segments_of(geo, REDUCED)[-1]
    gather(w, ow, 1, 0, count, kept[W], lanes, reduced[W], work[WEIGHT])
    gather(b, ob, 1, 0, count, kept[B], lanes, reduced[B], work[BIAS])


@jit
def _apply_lanes(x: Any, y: Any, w: Any, b: Any, geo: Any, at: Any, i: int, m: int, count: int, work: Any) -> None:
    """Standardize positions [i, i + m) of a tile whose lanes are neighbours in x and y; its centres are in work's lanes."""
    out_of_line()
    lanes, varies = geo[1, APPLY_LANES], geo[1, AFFINE_VARIES]
    width = count * lanes
    walk = segments_of(geo, REDUCED)
    if lanes > 1:
        walk = walk[:-1]
    _, sx, sy, sw, sb = innermost(walk)
    together = 1 if varies or sx != width or sy != width else ROW // width
    _lane_affine(w, b, geo, at[2], at[3], count, work)
    for row in range(BUFFER):
        for copy in range(1, min(together, m)):
            copy_run(work[row], 0, width, work[row], copy * width)
    done = 0
    while done < m:
        (ox, oy, ow, ob), rest = position(walk, at, i + done)
        run = min(m - done, rest)
        for p in range(0, run, together):
            if varies:
                _lane_affine(w, b, geo, ow + p * sw, ob + p * sb, count, work)
            if together == 1:
                prefetch(y, oy + (p + AHEAD) * sy, width * (p + AHEAD < run), True)
            apply_lanes(x, ox + p * sx, y, oy + p * sy, min(together, run - p) * width, work, geo[2, STREAM] != 0)
        done += run


@jit
def apply_tile(
    x: Any, y: Any, w: Any, b: Any, geo: Any, tile: Any, i: int, m: int, moments: Any, todo: Any, scale: Any, work: Any
) -> None:
    """Standardize positions [i, i + m) of a tile. moments: (3, count) of its sets; scale: (divisor, eps)."""
    out_of_line()
    first, count, at = tile
    lanes, kept = geo[1, APPLY_LANES], segments_of(geo, KEPT)[-1]
    whole = True
    for k in range(count):
        whole &= not skipped(todo, first + k, work)
    if lanes > 0 and whole:
        for k in range(count):
            rstd = scale_of(moments[M2, k], scale[0], scale[1])
            for r in range(lanes):
                _split_centre(moments[MEAN, k], moments[MEAN_LOW, k], rstd, work, k * lanes + r)
        _apply_lanes(x, y, w, b, geo, at, i, m, count, work)
        return
    elements = max(lanes, 1)
    begin, end = i * elements, (i + m) * elements
    size = BLOCK if count > 1 else m * elements  # sets side by side: block by block, while x is in cache
    for block in range(begin, end, size):
        for k in range(count):
            if skipped(todo, first + k, work):
                continue
            rstd = scale_of(moments[M2, k], scale[0], scale[1])
            _split_centre(moments[MEAN, k], moments[MEAN_LOW, k], rstd, work, 0)
            here = (at[0] + k * kept[X], at[1] + k * kept[Y], at[2] + k * kept[W], at[3] + k * kept[B])
            _apply_set(x, y, w, b, geo, here, block, min(size, end - block), work)
