"""The sums of the gradient for sets in runs: of g and of g * x_hat, and those for each element of a weight."""

from __future__ import annotations

from typing import Any

import numpy as np

from .buffers import MEAN, MEAN_LOW, SET_RSTD
from .compile import jit, jit_inline
from .finish import skipped
from .gathering import lined_up
from .geometry import BLOCK, CHUNK, DY, LANE, MODE, PIECE, ROWS, WALK
from .indexing import entry, innermost, next_runs, set_origin, steps_of, tiles_of
from .lanes import ALONG
from .rows import add_rows, clear_rows
from .runs import centre_of
from .strips import SIDE, sum_runs
from .vectors import least, out_of_line, read, release, scratch

FLUSH_SETS = 16  # roundings in a row of float32 sums over sets, before they are added up in float64


@jit_inline
def weighed(moving: Any, o: int, along: Any, s: Any, q: Any) -> Any:
    """The sums of a run, times its weight where that stands still along it."""
    plain, products = np.float64(s), np.float64(q)
    if not (along or len(moving) == 3):
        w = read(moving[0], o, np.float64)
        plain *= w
        products *= w
    return plain, products


@jit_inline
def _collect(sums: Any, count: int, o: int, step: int, total: Any) -> None:
    """Add the sums of `count` runs to those of their elements of the weight, at o and every `step` from there."""
    if step == 1:
        add_rows(sums, 0, 0, total, 0, o, 2, count)
    else:
        for row in range(2):
            for k in range(count):
                total[row, o + k * step] += np.float64(sums[row, k])


@jit_inline
def sum_products(
    x: Any,
    dy: Any,
    moving: Any,
    geo: Any,
    at: Any,
    i: int,
    end: int,
    centre: Any,
    collected: Any,
    base: int,
    total: Any,
    sums: Any,
    line: Any,
) -> Any:
    """The sums of g and g * x_hat, g = dy * weight, over positions [i, end) of a set.

    collected, total: 2 x n for sums of dy and dy * x_hat for each element of the weight, where it varies along a run and where
    it does not; not where they are None or 2 x 0. base: the element of the weight that is the first of `collected`. sums:
    2 x SIDE, for those of runs. line: room for a block of dy.
    """
    along, steps = entry(geo, LANE, MODE) == ALONG, steps_of(geo, WALK)
    plain, products, step = 0.0, 0.0, entry(geo, innermost(geo, WALK), DY)
    while i < end:
        here, run, count = next_runs(geo, WALK, at, i, end, SIDE)
        if run > BLOCK:
            run, count = BLOCK, 1
        given, here, go, run, count = lined_up(dy, here, steps, step, run, count, line)
        sum_runs(x, here[0], given, here[3], run, centre, moving, here[2], along, collected, base, go, count, sums)
        if total.shape[1] > 0 and not (along or len(moving) == 3):
            _collect(sums, count, here[2], steps[2], total)
        for k in range(count):
            s, q = weighed(moving, here[2] + k * steps[2], along, sums[0, k], sums[1, k])
            plain += s
            products += q
        i += run * count
    return plain, products


@jit_inline
def clear(collected: Any) -> None:
    """Set what is collected to zero."""
    clear_rows(collected, 0, 0, 2, collected.shape[1])


@jit
def partial_products(
    x: Any,
    dy: Any,
    moving: Any,
    sets: Any,
    partials: Any,
    totals: Any,
    todo: Any,
    geo: Any,
    real: Any,
    apart: Any,
    begin: int,
    end: int,
) -> int:
    """The two sums over one chunk of a few sets per task. partials: (chunks, 2, sets); totals as in `backward`.

    moving = (weight,): sums of the norm's own sets. moving = (high, low, rstd): sums over the sets of a parameter.
    """
    out_of_line()
    chunks, part, line = partials.shape[0], scratch(2, SIDE, real), scratch(1, BLOCK, dy)
    for task in range(begin, end):
        group, chunk = task // chunks, task % chunks
        i, end_of_chunk = chunk * CHUNK, least(entry(geo, 1, ROWS), (chunk + 1) * CHUNK)
        first, last = tiles_of(geo, group, group + 1)
        for k in range(first, last):
            if not skipped(todo, k, real):
                centre = centre_of(0.0, 0.0, 0.0, real)
                if len(moving) == 1:
                    centre = centre_of(sets[MEAN, k], sets[MEAN_LOW, k], sets[SET_RSTD, k], real)
                at = set_origin(geo, k)
                sums = sum_products(x, dy, moving, geo, at, i, end_of_chunk, centre, None, 0, totals[task], part, line)
                partials[chunk, 0, k], partials[chunk, 1, k] = sums
    release(part)
    release(line)
    return 0


@jit
def partial_pieces(
    x: Any,
    dy: Any,
    moving: Any,
    sets: Any,
    partials: Any,
    totals: Any,
    todo: Any,
    geo: Any,
    real: Any,
    apart: Any,
    begin: int,
    end: int,
) -> int:
    """The two sums over every block of a piece of all sets per task, and those for each element of the weight along it.

    partials: (blocks, 2, sets), which make the same bits as one block after another. totals: (1, 2, n), a piece for each task.
    """
    out_of_line()
    n, size = entry(geo, 1, ROWS), entry(geo, LANE, PIECE)
    collected, part, line = scratch(2, size if totals.shape[2] > 0 else 0, real), scratch(2, SIDE, real), scratch(1, BLOCK, dy)
    n_sets, total = partials.shape[2], totals[0]
    for task in range(begin, end):
        first, last = task * size, least(n, (task + 1) * size)
        base = set_origin(geo, 0)[2] + first
        clear(collected)
        for k in range(n_sets):
            if not skipped(todo, k, real):
                centre = centre_of(sets[MEAN, k], sets[MEAN_LOW, k], sets[SET_RSTD, k], real)
                at = set_origin(geo, k)
                for i in range(first, last, BLOCK):
                    stop = least(last, i + BLOCK)
                    sums = sum_products(x, dy, moving, geo, at, i, stop, centre, collected, base, total, part, line)
                    partials[i // BLOCK, 0, k], partials[i // BLOCK, 1, k] = sums
            if (k + 1) % FLUSH_SETS == 0 or k + 1 == n_sets:
                add_rows(collected, 0, 0, total, 0, base, 2, last - first if collected.shape[1] > 0 else 0)
                clear(collected)
    release(collected)
    release(part)
    release(line)
    return 0
