"""The gradients of the backend: backward, and the sums over a parameter's sets."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from .._dtypes import Array
from .._operands import Operands
from . import gradients, run_gradients
from .calls import NONE, apply, launchers, mark_sets, taking
from .plan import Plan, affine_for, flat, flat_for, narrow_then_wide, plan_of

_NO_SETS = np.empty((6, 0))
Found = tuple[Array, "Array | None"]
Backward = Callable[[Array, Array, Array, Any, Array], Found]


def backward_for(op: Operands, shares: tuple[float, float], collect: bool) -> Backward:
    """What computes gradients of the form of `op`; what follows from the form is decided here, once.

    It is given x, dy, dx, weight and `sets`: the centre and scale of every set, 3 rows, and its gain in a fourth one where
    that is not the scale. It sets dx and returns the sums of dy * weight and of that times x_hat, 2 x sets; shift and slope are
    these times `shares`. With `collect`, the sums of dy and of dy * x_hat for each element of the weight come too, 2 x
    elements, where they cost no pass of their own.
    """
    assert op.dy is not None
    lay = affine_for(op.weight, None, 1.0, op.wide)
    weight = lay(op.weight)
    plan = plan_of(op, weight, NONE)
    collect &= plan.collects and weight.flags.c_contiguous
    if not plan.fused:
        return _in_two(op, lay, shares, collect)
    takes = (flat_for(op.x), flat_for(op.dy), flat_for(op.y), taking(lay, op.weight, weight))
    return _in_one(plan, takes, shares, op.wide, weight.size if collect else 0)


def _in_one(plan: Plan, takes: Any, shares: tuple[float, float], wide: bool, collected: int) -> Backward:
    """`backward_for` by one kernel, which collects sums for so many elements of the weight."""
    n_sets, groups, (take_x, take_dy, take_dx, take_weight) = plan.n_sets, plan.groups, takes
    in_runs = run_gradients.backward_short if plan.short else run_gradients.backward
    launch = launchers(in_runs if plan.in_runs else gradients.backward, plan)

    def run(x: Array, dy: Array, dx: Array, weight: Any, sets: Array) -> Found:
        sums = np.empty((2, n_sets))
        arrays = (take_x(x), take_dy(dy), take_dx(dx), take_weight(weight), sets, sums)

        def sum_and_write(kind: Array, todo: Array, totals: Array) -> None:
            launch[kind.itemsize](*arrays, totals, todo, plan.geo, shares, kind, plan.apart, 0, groups)

        return sums, _collected(wide, n_sets, sets, (groups, 2, collected), sum_and_write)

    return run


def _in_two(op: Operands, lay: Any, shares: tuple[float, float], collect: bool) -> Backward:
    """`backward_for` by kernels for the sums and for the result."""
    weighed, split, center, wide, factors = op.weight is not None, op.split, op.center, op.wide, np.reshape(shares, (2, 1))

    def run(x: Array, dy: Array, dx: Array, weight: Any, sets: Array) -> Found:
        given = Operands(x, dx, weight if weighed else None, None, split, center, dy, fresh=True)
        sums, collected = _sums_over(given, (lay(weight),), sets, wide, collect)
        apply(given, np.concatenate([sets[:3], sums * factors, sets[-1:]]))
        return sums, collected

    return run


def _collected(
    wide: bool, n_sets: int, sets: Array | None, shape: tuple[int, int, int], run: Callable[[Array, Array, Array], Any]
) -> Array | None:
    """run(kind, todo, totals) in the passes of `narrow_then_wide`, and the sum of the totals, (tasks, 2, n), if there are any.

    Sums over all sets are taken in one pass, or not here: where a set waits for float64, there are none.
    """
    totals = np.zeros(shape)

    def run_pass(kind: Array, todo: Array) -> Any:
        nonlocal totals
        marked = 0 if sets is None else mark_sets(sets, kind, todo)
        if todo.size and kind.itemsize == 8:
            totals = np.zeros((*shape[:2], 0))
        run(kind, todo, totals)
        return marked

    narrow_then_wide(wide, n_sets, run_pass)
    return totals.sum(0) if totals.size else None


def sums_over(op: Operands, moving: tuple[Array, ...], sets: Array | None, wide: bool) -> Array:
    """The sums of dy * weight and of that times x_hat over the sets of op.split, 2 x sets.

    moving = (weight,) with `sets`, the numbers of these sets; or moving = (high, low, rstd), which change along a set, as
    over the sets of a parameter.
    """
    return _sums_over(op, moving, sets, wide, collect=False)[0]


def _sums_over(
    op: Operands, moving: tuple[Array, ...], sets: Array | None, wide: bool, collect: bool
) -> tuple[Array, Array | None]:
    """The same, and with `collect` those of `backward`."""
    assert op.dy is not None
    plan = plan_of(op, moving[0], NONE)
    partials = np.empty((plan.chunks, 2, plan.n_sets))
    arrays = (flat(op.x), flat(op.dy), tuple(map(flat, moving)), _NO_SETS if sets is None else sets, partials)
    tasks = plan.groups * plan.chunks
    launch = launchers(run_gradients.partial_products if plan.in_runs else gradients.partial_products, plan)

    def sum_up(kind: Array, todo: Array, totals: Array) -> None:
        launch[kind.itemsize](*arrays, totals, todo, plan.geo, kind, plan.apart, 0, tasks)

    totals = _collected(wide, plan.n_sets, sets, (tasks, 2, moving[0].size if collect else 0), sum_up)
    return functools.reduce(np.add, partials), totals  # in order
