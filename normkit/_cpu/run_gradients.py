"""The kernels of the gradient for sets in runs that do all at once; the sums are those of `gradients.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

from .affine import apply_runs
from .buffers import MEAN, MEAN_LOW, SET_RSTD
from .compile import jit, jit_inline
from .finish import skipped
from .gathering import lined_up
from .geometry import APPLY_ROWS, BLOCK, CHUNK, DY, LANE, MEMORY, MODE, PAST, REDUCED, ROWS, WALK, W
from .indexing import entry, innermost, set_origin, tiles_of
from .lanes import ALONG
from .rows import add_rows
from .run_products import FLUSH_SETS, clear, sum_products, weighed
from .runs import apply_set, centre_of
from .strips import SIDE, sum_run
from .vectors import fence, least, out_of_line, release, scratch


@jit_inline
def _rest_of(sets: Any, k: int, s: float, q: float, shares: Any, real: Any) -> Any:
    """The shift, slope and gain of set k, in the accumulator."""
    kind = real.dtype.type
    return kind(s * shares[0]), kind(q * shares[1]), kind(sets[sets.shape[0] - 1, k])


@jit_inline
def _flush(collected: Any, total: Any) -> None:
    """Add what float32 has collected to the totals."""
    add_rows(collected, 0, 0, total, 0, 0, 2, collected.shape[1])
    clear(collected)


@jit
def backward(
    x: Any,
    dy: Any,
    dx: Any,
    w: Any,
    sets: Any,
    sums: Any,
    totals: Any,
    todo: Any,
    geo: Any,
    shares: Any,
    real: Any,
    apart: Any,
    begin: int,
    end: int,
) -> int:
    """The sums of each set, (2, sets), and its dx while it is in cache.

    sets: (3, sets), or (4, sets) with their gain. Shift and slope are sums * shares. totals: (tasks, 2, n), sums of dy and
    dy * x_hat of a task for each element of the weight, or (tasks, 2, 0).
    """
    out_of_line()
    collected, part = scratch(2, totals.shape[2] if entry(geo, LANE, MODE) == ALONG else 0, real), scratch(2, SIDE, real)
    line, n = scratch(1, BLOCK, dy), entry(geo, 1, ROWS)
    clear(collected)
    for task in range(begin, end):
        first, last = tiles_of(geo, task, task + 1)
        for k in range(first, last):
            if not skipped(todo, k, real):
                at, s, q = set_origin(geo, k), 0.0, 0.0
                centre = centre_of(sets[MEAN, k], sets[MEAN_LOW, k], sets[SET_RSTD, k], real)
                for i in range(0, n, CHUNK):
                    s_b, q_b = sum_products(
                        x, dy, (w,), geo, at, i, least(n, i + CHUNK), centre, collected, 0, totals[task], part, line
                    )
                    s += s_b
                    q += q_b
                sums[0, k], sums[1, k] = s, q
                rest = _rest_of(sets, k, s, q, shares, real)
                apply_set(x, dy, dx, w, None, geo, at, 0, entry(geo, 2, APPLY_ROWS), centre, rest, line)
            if (k + 1) % FLUSH_SETS == 0 or k + 1 == last:
                _flush(collected, totals[task])
    release(collected)
    release(part)
    release(line)
    fence()
    return 0


@jit
def backward_short(
    x: Any,
    dy: Any,
    dx: Any,
    w: Any,
    sets: Any,
    sums: Any,
    totals: Any,
    todo: Any,
    geo: Any,
    shares: Any,
    real: Any,
    apart: Any,
    begin: int,
    end: int,
) -> int:
    """`backward` where every set is one run and one block: the same bits.

    Layer norm over the channels of channels-last (16, 96, 56, 56) on one thread: 2.3 ms so, 2.8 there (Zen 4, 2026-11).
    """
    out_of_line()
    along = entry(geo, LANE, MODE) == ALONG
    n, vary, stream = entry(geo, 1, ROWS), entry(geo, innermost(geo, REDUCED), W) != 0, entry(geo, 2, MEMORY) == PAST
    step, line = entry(geo, innermost(geo, WALK), DY), scratch(1, BLOCK, dy)
    collected = scratch(2, totals.shape[2] if along else 0, real)
    clear(collected)
    for task in range(begin, end):
        first, last = tiles_of(geo, task, task + 1)
        for k in range(first, last):
            if not skipped(todo, k, real):
                at = set_origin(geo, k)
                centre = centre_of(sets[MEAN, k], sets[MEAN_LOW, k], sets[SET_RSTD, k], real)
                given, here, _, _, _ = lined_up(dy, at, at, step, n, 1, line)
                s, q = sum_run(x, at[0], given, here[3], n, centre, (w,), at[2], along, collected, 0)
                if totals.shape[2] > 0 and not along:
                    totals[task, 0, at[2]] += np.float64(s)
                    totals[task, 1, at[2]] += np.float64(q)
                s, q = weighed((w,), at[2], along, s, q)
                sums[0, k], sums[1, k] = s, q
                rest = _rest_of(sets, k, s, q, shares, real)
                apply_runs(x, given, dx, (w, None), here, here, n, 1, centre, rest, vary, stream)
            if (k + 1) % FLUSH_SETS == 0 or k + 1 == last:
                _flush(collected, totals[task])
    release(collected)
    release(line)
    fence()
    return 0
