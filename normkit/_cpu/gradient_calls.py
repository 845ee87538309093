"""The gradients of the backend: backward, and the sums over a parameter's sets."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from .._dtypes import Array
from .._layout import ceil_div
from .._operands import Operands
from . import gradients, run_gradients, run_products, threads
from .calls import NONE, Apply, launchers, mark_sets, taking
from .geometry import BLOCK, CHUNK
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
    collect &= weight.flags.c_contiguous and (plan.collects or plan.piece > 0)
    collected, pieces = weight.size if collect else 0, collect and not plan.collects
    takes = (flat_for(op.x), flat_for(op.dy), flat_for(op.y), taking(lay, op.weight, weight))
    if plan.fused and not pieces:
        return _in_one(plan, takes, shares, op.wide, collected)
    return _in_two(_Products(plan, op.wide, collected, pieces), takes, shares)


def _in_one(plan: Plan, takes: Any, shares: tuple[float, float], wide: bool, collected: int) -> Backward:
    """`backward_for` by one kernel, which collects sums for so many elements of the weight."""
    n_sets, groups, (take_x, take_dy, take_dx, take_weight) = plan.n_sets, plan.groups, takes
    in_runs = run_gradients.backward_short if plan.short else run_gradients.backward
    launch = launchers(in_runs if plan.in_runs else gradients.backward, plan)
    small = threads.Launcher(gradients.backward_columns, plan.work) if plan.in_columns and not wide else None

    def run(x: Array, dy: Array, dx: Array, weight: Any, sets: Array) -> Found:
        sums = np.empty((2, n_sets))
        arrays = (take_x(x), take_dy(dy), take_dx(dx), take_weight(weight), sets, sums)

        def sum_and_write(kind: Array, todo: Array, totals: Array, marked: Any) -> None:
            alone = small if kind.itemsize == 4 and not marked else None
            (alone or launch[kind.itemsize])(*arrays, totals, todo, plan.geo, shares, kind, plan.apart, 0, groups)

        return sums, _collected(wide, n_sets, sets, (groups, 2, collected), sum_and_write)

    return run


def _in_two(products: _Products, takes: Any, shares: tuple[float, float]) -> Backward:
    """`backward_for` by kernels for the sums and for the result."""
    apply_to, factors = Apply(products.plan, products.wide), np.reshape(shares, (2, 1))
    take_x, take_dy, take_dx, take_weight = takes

    def run(x: Array, dy: Array, dx: Array, weight: Any, sets: Array) -> Found:
        line, line_dy, line_weight = take_x(x), take_dy(dy), take_weight(weight)
        sums, collected = products.of(line, line_dy, (line_weight,), sets)
        arrays = (line, line_dy, take_dx(dx), line_weight, None)
        apply_to(arrays, np.concatenate([sets[:3], sums * factors, sets[-1:]]), None)
        return sums, collected

    return run


def _collected(
    wide: bool,
    n_sets: int,
    sets: Array | None,
    shape: tuple[int, int, int],
    run: Callable[[Array, Array, Array, Any], Any],
    dtype: Any = np.float64,
) -> Array | None:
    """run(kind, todo, totals, marked) in the passes of `narrow_then_wide`, and the sum of the totals, (tasks, 2, n), if any.

    Sums over all sets are taken in one pass, or not here: where a set waits for float64, there are none.
    """
    totals = np.zeros(shape, dtype)

    def run_pass(kind: Array, todo: Array) -> Any:
        nonlocal totals
        marked = 0 if sets is None else mark_sets(sets, kind, todo)
        if todo.size and kind.itemsize == 8:
            totals = np.zeros((*shape[:2], 0), dtype)
        run(kind, todo, totals, marked)
        return marked

    narrow_then_wide(wide, n_sets, run_pass)
    if not totals.size:
        return None
    collected: Array = totals[0] if len(totals) == 1 else np.add.reduce(totals)
    return collected


def sums_over(op: Operands, moving: tuple[Array, ...], sets: Array | None, wide: bool) -> Array:
    """The sums of dy * weight and of that times x_hat over the sets of op.split, 2 x sets.

    moving = (weight,) with `sets`, the numbers of these sets; or moving = (high, low, rstd), which change along a set, as
    over the sets of a parameter.
    """
    assert op.dy is not None
    products = _Products(plan_of(op, moving[0], NONE), wide, 0, pieces=False)
    return products.of(flat(op.x), flat(op.dy), tuple(map(flat, moving)), sets)[0]


class _Products:
    """The sums of gradients of one form, and with `collected` those for so many elements of the weight."""

    __slots__ = ("launch", "parts", "plan", "tasks", "totals", "wide")

    def __init__(self, plan: Plan, wide: bool, collected: int, pieces: bool) -> None:
        self.plan, self.wide = plan, wide
        self.parts, self.tasks = 1, plan.groups * plan.chunks
        self.totals: Any = (self.tasks, 2, collected), np.float64
        kernel = run_products.partial_products if plan.in_runs else gradients.partial_products
        if pieces:
            kernel, self.parts, self.tasks = run_products.partial_pieces, CHUNK // BLOCK, ceil_div(plan.set_size, plan.piece)
            few = not wide and plan.n_sets <= run_products.FLUSH_SETS  # what they add up to is float32 as it is
            self.totals = (1, 2, collected), np.float32 if few else np.float64
        self.launch = launchers(kernel, plan)

    def of(self, x: Array, dy: Array, moving: tuple[Array, ...], sets: Array | None) -> Found:
        """Those of the memory of x and dy. For `moving` and `sets` see `sums_over`."""
        plan, (shape, dtype) = self.plan, self.totals
        partials = np.zeros((plan.chunks * self.parts, 2, plan.n_sets))
        arrays = (x, dy, moving, _NO_SETS if sets is None else sets, partials)

        def sum_up(kind: Array, todo: Array, totals: Array, _: Any) -> None:
            self.launch[kind.itemsize](*arrays, totals, todo, plan.geo, kind, plan.apart, 0, self.tasks)

        collected = _collected(self.wide, plan.n_sets, sets, shape, sum_up, dtype)
        chunks = functools.reduce(np.add, partials.reshape(-1, self.parts, *partials.shape[1:]).swapaxes(0, 1))
        return functools.reduce(np.add, chunks), collected  # in order
