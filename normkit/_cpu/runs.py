"""The kernels for sets whose elements lie in runs: neighbours in memory, in x and in what is written.

Instance, layer, group, batch and RMS norm of an array in NC* order. A set is summed in blocks, each within a run, all its
numbers in registers; what lies otherwise goes to the tiles of `kernels.py`. Both have the same arguments. The gradient is in
`run_gradients.py` and `run_products.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .abreast import ABREAST, ABREAST_BYTES, normalize_abreast
from .affine import apply_runs
from .buffers import M2, MEAN, MEAN_LOW, SET_GAIN, SET_RSTD, SET_SHIFT, SET_SLOPE
from .compile import jit, jit_inline
from .finish import skipped
from .formulas import about_pivot, cancels, loses_digits, merge, scale_of, two_parts
from .gathering import lined_up
from .geometry import APPLY_ROWS, BLOCK, CENTER, CHUNK, DY, HEAD_OF_RUN, KEPT, MEMORY, PAST, REDUCED, ROWS, WALK, B, W, X, Y
from .indexing import entry, innermost, next_runs, position, set_origin, sets_at, steps_of, tiles_of
from .strips import LONG, head_of_run, sum_run
from .vectors import fence, least, on_its_own, out_of_line, read, release, scratch


@jit_inline
def _block_sums(x: Any, o: int, size: int, pivot: Any, first: Any, center: Any, kind: Any) -> Any:
    """The two sums of a block about a pivot near its mean, 1 / size, and that pivot.

    For the first block of a chunk it is the mean of its own first elements. Where it turns out to be far off, they are summed
    once more about the block's own mean: so at most a bit is lost.
    """
    m = size
    if center and first:
        if size > LONG:
            m = HEAD_OF_RUN
        else:
            pivot = head_of_run(x, o, size, kind)
    s, q, share = kind(0), kind(0), 1.0
    for attempt in range(3):
        s, q = sum_run(x, o, None, 0, m, (pivot, pivot, pivot), None, 0, False, None, 0)
        share = 1.0 / m
        if not center or attempt == 2 or (m == size and not cancels(s, q, m)):
            break
        pivot, m = kind(np.float64(pivot) + np.float64(s) * share), size
    return s, q, share, pivot


@jit_inline
def _moments(x: Any, geo: Any, at: Any, chunk: int, real: Any) -> Any:
    """Mean (relative to an origin), M2 and that origin of a chunk of a set: the pivot of the first block.

    The pivot of a block is near its mean: the mean of what came before it, for the first one see `_block_sums`.
    """
    kind, center = real.dtype.type, entry(geo, 1, CENTER) != 0
    begin, end = chunk * CHUNK, least(entry(geo, 1, ROWS), (chunk + 1) * CHUNK)
    pivot = read(x, at[0], kind) if center else kind(0)
    origin, mean, m2, i = 0.0, 0.0, 0.0, begin
    while i < end:
        here, left = position(geo, WALK, innermost(geo, WALK), at, i)
        size = least(least(BLOCK, left), end - i)
        s, q, share, pivot = _block_sums(x, here[0], size, pivot, i == begin, center, kind)
        if center:
            if i == begin:
                origin = np.float64(pivot)
            mean_b, m2_b = about_pivot(s, q, share, pivot, origin)
            mean, m2 = merge(mean, m2, float(i - begin), mean_b, m2_b, float(size))
            pivot = kind(origin + mean)
        else:
            m2 += q
        i += size
    return mean, m2, origin


@jit_inline
def apply_set(
    x: Any, dy: Any, y: Any, w: Any, b: Any, geo: Any, at: Any, first: int, last: int, centre: Any, rest: Any, line: Any
) -> None:
    """The result for elements [first, last) of the set that starts at offsets `at`. line: room for a block of dy."""
    inner = innermost(geo, REDUCED)
    vary, stream = entry(geo, inner, W) != 0, entry(geo, 2, MEMORY) == PAST
    steps, i, given = steps_of(geo, REDUCED), first, dy
    while i < last:
        here, run, count = next_runs(geo, REDUCED, at, i, last, last)
        go = steps
        if dy is not None:
            given, here, go, run, count = lined_up(dy, here, steps, entry(geo, inner, DY), run, count, line)
        apply_runs(x, given, y, (w, b), here, go, run, count, centre, rest, vary, stream)
        i += run * count


@jit_inline
def centre_of(mean: float, low: float, rstd: float, real: Any) -> Any:
    """The numbers of a set in the accumulator: the mean in two parts, x - high is exact near it."""
    high = real.dtype.type(mean)
    return high, real.dtype.type((mean - np.float64(high)) + low), real.dtype.type(rstd)


@jit_inline
def _finished(origin: float, mean: float, m2: float, n: int, k: int, center: Any, moments: Any, todo: Any, real: Any) -> Any:
    """The mean of set k, in two parts, from that relative to an origin; and whether the set waits for float64."""
    total, low = two_parts(origin, mean)
    if real.itemsize == 4 and loses_digits(total, m2, n, center):
        todo[k] = 1
        return total, low, True
    if moments.shape[1] > 0:
        moments[MEAN, k], moments[MEAN_LOW, k], moments[M2, k] = total, low, m2
    return total, low, False


@jit
def forward(
    x: Any,
    y: Any,
    w: Any,
    b: Any,
    moments: Any,
    todo: Any,
    geo: Any,
    share: float,
    eps: float,
    real: Any,
    apart: Any,
    begin: int,
    end: int,
) -> Any:
    """Statistics and result of each set while it is in cache. Returns how many sets wait for float64."""
    on_its_own()
    n, center, marked = entry(geo, 1, ROWS), entry(geo, 1, CENTER) != 0, 0
    first, last = tiles_of(geo, begin, end)
    for k in range(first, last):
        if real.itemsize == 8 and skipped(todo, k, real):
            continue
        at, mean, m2, origin = set_origin(geo, k), 0.0, 0.0, 0.0
        for chunk in range(-(-n // CHUNK)):
            mean_b, m2_b, origin_b = _moments(x, geo, at, chunk, real)
            if chunk == 0:
                origin = origin_b
            size = least(CHUNK, n - chunk * CHUNK)
            mean, m2 = merge(mean, m2, float(chunk * CHUNK), (origin_b - origin) + mean_b, m2_b, float(size))
        mean, low, waits = _finished(origin, mean, m2, n, k, center, moments, todo, real)
        if waits:
            marked += 1
        else:
            centre = centre_of(mean, low, scale_of(m2, share, eps), real)
            apply_set(x, None, y, w, b, geo, at, 0, entry(geo, 2, APPLY_ROWS), centre, centre, None)
    fence()
    return marked


@jit_inline
def _normalize_run(
    x: Any, y: Any, w: Any, b: Any, moments: Any, todo: Any, geo: Any, k: int, shares: Any, real: Any, vary: Any, stream: Any
) -> Any:
    """Set k, of one run and one block. Returns whether it waits for float64."""
    n, center, kind, at = entry(geo, 1, ROWS), entry(geo, 1, CENTER) != 0, real.dtype.type, set_origin(geo, k)
    pivot = read(x, at[0], kind) if center else kind(0)
    s, q, part, pivot = _block_sums(x, at[0], n, pivot, True, center, kind)
    mean, m2 = about_pivot(s, q, part, pivot, pivot) if center else (0.0, np.float64(q))
    mean, low, waits = _finished(np.float64(pivot), mean, m2, n, k, center, moments, todo, real)
    if not waits:
        centre = centre_of(mean, low, scale_of(m2, *shares), real)
        apply_runs(x, None, y, (w, b), at, at, n, 1, centre, centre, vary, stream)
    return waits


@jit
def forward_short(
    x: Any,
    y: Any,
    w: Any,
    b: Any,
    moments: Any,
    todo: Any,
    geo: Any,
    share: float,
    eps: float,
    real: Any,
    apart: Any,
    begin: int,
    end: int,
) -> Any:
    """`forward` where every set is one run and one block: the same bits. Layer norm of 64 x 64 takes 2.2 us so, 2.9 there."""
    on_its_own()
    n, center, marked, inner = entry(geo, 1, ROWS), entry(geo, 1, CENTER) != 0, 0, innermost(geo, KEPT)
    vary, stream = entry(geo, innermost(geo, REDUCED), W) != 0, entry(geo, 2, MEMORY) == PAST
    steps = (entry(geo, inner, X), entry(geo, inner, Y), entry(geo, inner, W), entry(geo, inner, B))
    abreast = n * y.itemsize <= ABREAST_BYTES
    abreast &= real.itemsize == 4 or todo.shape[0] == 0  # else only those that are marked are to be done
    k, last = tiles_of(geo, begin, end)
    while k < last:
        at, left = sets_at(geo, k)
        stop = k + (ABREAST if abreast and least(left, last - k) >= ABREAST else 1)
        if stop > k + 1 and normalize_abreast(
            x, y, (w, b), at, steps, n, k, (1.0 / n, share), eps, center, moments, real, vary, stream
        ):
            k = stop
        while k < stop:
            if not (real.itemsize == 8 and skipped(todo, k, real)):
                marked += _normalize_run(x, y, w, b, moments, todo, geo, k, (share, eps), real, vary, stream)
            k += 1
    fence()
    return marked


@jit
def partial_moments(x: Any, partials: Any, geo: Any, real: Any, apart: Any, begin: int, end: int) -> int:
    """Moments of one chunk of a few sets per task. partials: (sets, chunks, 3)."""
    out_of_line()
    chunks = partials.shape[1]
    for task in range(begin, end):
        group, chunk = task // chunks, task % chunks
        first, last = tiles_of(geo, group, group + 1)
        for k in range(first, last):
            mean, m2, origin = _moments(x, geo, set_origin(geo, k), chunk, real)
            partials[k, chunk, 0], partials[k, chunk, 1], partials[k, chunk, 2] = mean, m2, origin
    return 0


@jit
def apply(
    x: Any, dy: Any, y: Any, w: Any, b: Any, sets: Any, todo: Any, geo: Any, real: Any, apart: Any, begin: int, end: int
) -> int:
    """The result of one chunk of a few sets per task, from the numbers of the sets: of the norm, or with dy its gradient."""
    out_of_line()
    n, kind, line = entry(geo, 2, APPLY_ROWS), real.dtype.type, scratch(1, BLOCK, dy)
    chunks = -(-n // CHUNK)
    for task in range(begin, end):
        group, chunk = task // chunks, task % chunks
        first, last = tiles_of(geo, group, group + 1)
        for k in range(first, last):
            if not skipped(todo, k, real):
                centre = centre_of(sets[MEAN, k], sets[MEAN_LOW, k], sets[SET_RSTD, k], real)
                rest = centre
                if dy is not None:
                    rest = (kind(sets[SET_SHIFT, k]), kind(sets[SET_SLOPE, k]), kind(sets[SET_GAIN, k]))
                stop = least(n, (chunk + 1) * CHUNK)
                apply_set(x, dy, y, w, b, geo, set_origin(geo, k), chunk * CHUNK, stop, centre, rest, line)
    release(line)
    fence()
    return 0
