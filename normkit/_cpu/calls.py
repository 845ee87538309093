"""The operations of the backend but gradients: forward, moments and apply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .._dtypes import Array
from .._interop.libraries import NUMPY
from .._layout import Split
from .._operands import Operands
from . import kernels, runs, threads
from .plan import ALL, REAL, Plan, affine_for, flat, flat_for, narrow_then_wide, plan_of
from .turned import Turned, turned

_NO_MOMENTS = np.empty((3, 0))
NONE = np.ones(())  # stands for an affine that a kernel does not read
Run = Callable[[Array, Array, Any, Any], Any]


def forward_for(op: Operands, eps: float, correction: float, want_moments: bool) -> Run:
    """What normalizes arrays of the form of `op` by their own statistics; what follows from the form is decided here, once.

    It is given x, y, weight and bias, normalizes x into y and returns moments (mean, its low part, M2) x sets, if wanted.
    """
    other = turned(op)
    first = other if other is not None and other.first else None
    if first is not None:
        op, other = first.of(op), None
    weight, bias, takes = _laid(op)
    plan = plan_of(op, weight, bias, stepped=first is not None)
    divisor = plan.set_size - correction
    if plan.fused and other is None:
        run = _in_one(plan, takes, 1.0 / divisor, eps, op.wide, want_moments)
    else:
        statistics = _Statistics(op.x, op.split, op.center, op.wide, stepped=first is not None)
        plan = plan_of(op if other is None else other.of(op), weight, bias)
        run = _in_two(statistics, other, plan, takes, divisor, eps, want_moments)
    return run if first is None else _in_place(first.turn, run)


def _laid(op: Operands) -> tuple[Array, Array, Any]:
    """Weight and bias as kernels read them, and what gives the memory of x, y, weight and bias of the form of `op` to these."""
    lays = affine_for(op.weight, op.bias, 1.0, op.wide), affine_for(op.bias, op.weight, 0.0, op.wide)
    weight, bias = (lay(given) for lay, given in zip(lays, (op.weight, op.bias), strict=True))
    takes = taking(lays[0], op.weight, weight), taking(lays[1], op.bias, bias)
    return weight, bias, (flat_for(op.x), flat_for(op.y), *takes)


def _in_place(turn: Callable[[Array, Array], Array], run: Run) -> Run:
    """`run` on x as `turn` puts it in order in y."""

    def turned_first(x: Array, y: Array, weight: Array | None, bias: Array | None) -> Any:
        turn(x, y)
        return run(y, y, weight, bias)

    return turned_first


def _in_one(plan: Plan, takes: Any, share: float, eps: float, wide: bool, want_moments: bool) -> Run:
    """`forward_for` by one kernel, as `narrow_then_wide` has it, but with all at hand: a call of 3 us would take 1.5 more."""
    n_sets, (take_x, take_y, take_weight, take_bias) = plan.n_sets, takes
    serial = runs.forward_short if plan.short else runs.forward if plan.in_runs else kernels.forward
    first = kernels.forward_columns if plan.in_columns and not wide else serial
    launch, launch_again = (threads.Launcher(kernel, plan.work) for kernel in (first, serial))
    narrow, again = ((plan.geo, share, eps, REAL[kind], plan.apart, 0, plan.groups) for kind in (wide, True))

    def run(x: Array, y: Array, weight: Array | None, bias: Array | None) -> Array | None:
        own = np.empty((3, n_sets)) if want_moments else _NO_MOMENTS
        todo = ALL if wide else np.zeros(n_sets, ALL.dtype)
        arrays = take_x(x), take_y(y), take_weight(weight), take_bias(bias), own, todo
        if launch(*arrays, *narrow) and not wide:
            launch_again(*arrays, *again)
        return own if want_moments else None

    return run


def _in_two(
    statistics: _Statistics, other: Turned | None, plan: Plan, takes: Any, divisor: float, eps: float, want_moments: bool
) -> Run:
    """`forward_for` by kernels for the statistics and for the result."""
    write, take_x = _writing(other, Apply(plan, statistics.wide), takes), takes[0]

    def run(x: Array, y: Array, weight: Array | None, bias: Array | None) -> Array | None:
        own, marked = statistics.of(take_x(x))
        write(x, y, weight, bias, NUMPY.scaled(own, divisor, eps), marked)
        return own if want_moments else None

    return run


def _writing(other: Turned | None, apply_to: Apply, takes: Any) -> Callable[..., None]:
    """What writes y by the numbers of the sets of x (mean, its low part, rstd), and which of them needed float64, if known."""
    take_x, take_y, take_weight, take_bias = takes

    def write(x: Array, y: Array, weight: Any, bias: Any, sets: Array, marked: Array | None = None) -> None:
        line, to = take_x(x), take_y(y)
        if other is not None:
            other.turn(x, y)
            line, sets, marked = to, other.in_order(sets), None if marked is None else other.in_order(marked)
        apply_to((line, None, to, take_weight(weight), take_bias(bias)), sets, marked)

    return write


def taking(lay: Callable[[Array | None], Array], given: Array | None, like: Array) -> Callable[[Any], Array]:
    """What gives the memory of weights or biases of this form to a kernel."""
    flatten = flat_for(like)
    if given is None:
        constant = flatten(like)
        return lambda _: constant
    return flatten if lay is np.asarray else lambda values: flatten(lay(values))


def forward(op: Operands, eps: float, correction: float, want_moments: bool) -> Array | None:
    """Normalize x into y by its own statistics. Returns moments (mean, its low part, M2) x sets, if wanted."""
    own: Array | None = forward_for(op, eps, correction, want_moments)(op.x, op.y, op.weight, op.bias)
    return own


def moments(x: Array, split: Split, center: bool, wide: bool) -> Array:
    """Moments (mean, its low part, M2) of every set of x, in the order of the sets."""
    return _Statistics(x, split, center, wide).of(flat(x))[0]


class _Statistics:
    """The moments of arrays of one form."""

    __slots__ = ("launch", "plan", "tasks", "wide")

    def __init__(self, like: Array, split: Split, center: bool, wide: bool, stepped: bool = False) -> None:
        self.plan, self.wide = plan_of(Operands(like, like, None, None, split, center), NONE, NONE, stepped), wide
        self.tasks = self.plan.groups * self.plan.chunks
        self.launch = launchers(runs.partial_moments if self.plan.sums_in_runs else kernels.partial_moments, self.plan)

    def of(self, x: Array) -> tuple[Array, Array]:
        """Moments from the memory of x, and which sets needed float64."""
        plan = self.plan
        result, partials = np.empty((3, plan.n_sets)), np.empty((plan.n_sets, plan.chunks, 3))

        def run(kind: Array, todo: Array) -> Any:
            self.launch[kind.itemsize](x, partials, plan.geo, kind, plan.apart, 0, self.tasks)
            return kernels.finish(partials, result, todo, plan.geo, kind)

        return result, narrow_then_wide(self.wide, plan.n_sets, run)


def launchers(kernel: Any, plan: Plan) -> dict[int, threads.Launcher]:
    """What launches a kernel, by the bytes of its accumulator."""
    return {real.itemsize: threads.Launcher(kernel, plan.work) for real in REAL.values()}


def mark_sets(sets: Array, kind: Array, todo: Array) -> Any:
    """How many sets wait for float64, marked in a pass of float32."""
    return kernels.mark_wild(sets, todo) if kind.itemsize == 4 else 0


def float32_holds(sets: Array) -> bool:
    """Whether float32 can hold the centre and scale of every set."""
    return not kernels.mark_wild(sets, np.zeros(sets.shape[1], np.uint8))


class Apply:
    """The result of arrays of one form, from the numbers of their sets."""

    __slots__ = ("launch", "plan", "wide")

    def __init__(self, plan: Plan, wide: bool) -> None:
        self.plan, self.wide = plan, wide
        self.launch = launchers(runs.apply if plan.in_runs else kernels.apply, plan)

    def __call__(self, arrays: tuple[Any, ...], sets: Array, marked: Array | None) -> None:
        """arrays: the memory of x, dy or None, y, weight, and bias or None.

        marked: the sets whose statistics needed float64, and so do their results, as where one kernel does both.
        """
        plan = self.plan

        def run(kind: Array, todo: Array) -> Any:
            marked = mark_sets(sets, kind, todo)
            self.launch[kind.itemsize](*arrays, sets, todo, plan.apply_geo, kind, plan.apart, 0, plan.apply_tasks)
            return marked

        narrow_then_wide(self.wide, plan.n_sets, run, marked)


def apply_for(op: Operands) -> Callable[..., None]:
    """What normalizes arrays of the form of `op`: it is given x, y, weight, bias and the numbers of the sets of x."""
    other, (weight, bias, takes) = turned(op), _laid(op)
    return _writing(other, Apply(plan_of(op if other is None else other.of(op), weight, bias), op.wide), takes)


def apply(op: Operands, sets: Array) -> None:
    """The norm of x into y by the numbers of its sets (mean, its low part, rstd)."""
    apply_for(op)(op.x, op.y, op.weight, op.bias, sets)
