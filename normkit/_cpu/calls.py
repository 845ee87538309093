"""The four operations of the backend: forward, moments, apply and backward, with the sums over a parameter's sets."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._dtypes import Array
from .._interop.libraries import NUMPY
from .._layout import Split
from .._operands import Operands
from . import gradients, kernels, runs, threads
from .plan import affine, flat, narrow_then_wide, plan_of

_NO_MOMENTS = np.empty((3, 0))
_NO_SETS = np.empty((6, 0))
_NONE = np.ones(())  # stands for an affine that a kernel does not read


def _affines(op: Operands, wide: bool) -> tuple[Array, Array]:
    """Weight and bias in dtypes for the kernels."""
    return affine(op.weight, op.bias, 1.0, wide), affine(op.bias, op.weight, 0.0, wide)


def forward(op: Operands, eps: float, correction: float, want_moments: bool) -> Array | None:
    """Normalize x into y by its own statistics. Returns moments (mean, its low part, M2) x sets, if wanted."""
    wide = op.wide
    weight, bias = _affines(op, wide)
    plan = plan_of(op, weight, bias)
    if not plan.fused:
        own = moments(op.x, op.split, op.center, wide)
        apply(op, NUMPY.scaled(own, plan.set_size - correction, eps))
        return own if want_moments else None
    own = np.empty((3, plan.n_sets)) if want_moments else _NO_MOMENTS
    arrays = (flat(op.x), flat(op.y, readonly=False), flat(weight), flat(bias), own)
    scale = (float(plan.set_size - correction), eps)

    def run(kind: Array, todo: Array) -> Any:
        arguments = (*arrays, todo, plan.geo, scale, kind, plan.apart)
        serial = runs.forward if plan.in_runs else kernels.forward
        return threads.launch(plan.elements, serial, kernels.forward_parallel, arguments, plan.groups)

    narrow_then_wide(wide, plan.n_sets, run)
    return own if want_moments else None


def moments(x: Array, split: Split, center: bool, wide: bool) -> Array:
    """Moments (mean, its low part, M2) of every set of x, in the order of the sets."""
    plan = plan_of(Operands(x, x, None, None, split, center), _NONE, _NONE)
    result = np.empty((3, plan.n_sets))
    partials = np.empty((plan.n_sets, plan.chunks, 2))
    source, tasks = flat(x), plan.groups * plan.chunks

    def run(kind: Array, todo: Array) -> Any:
        arguments = (source, partials, plan.geo, kind, plan.apart)
        serial = runs.partial_moments if plan.in_runs else kernels.partial_moments
        threads.launch(plan.elements, serial, kernels.partial_moments_parallel, arguments, tasks)
        return kernels.finish(source, partials, result, todo, plan.geo, kind)

    narrow_then_wide(wide, plan.n_sets, run)
    return result


def _marked(sets: Array, kind: Array, todo: Array) -> Any:
    """How many sets wait for float64, marked in a pass of float32."""
    return kernels.mark_wild(sets, todo) if kind.itemsize == 4 else 0


def float32_holds(sets: Array) -> bool:
    """Whether float32 can hold the centre and scale of every set."""
    return not kernels.mark_wild(sets, np.zeros(sets.shape[1], np.uint8))


def apply(op: Operands, sets: Array) -> None:
    """The norm of x into y by the numbers of its sets (mean, its low part, rstd); with dy, the gradient by six rows."""
    wide = op.wide
    weight, bias = _affines(op, wide)
    plan = plan_of(op, weight, bias)
    sources = (flat(op.x), None if op.dy is None else flat(op.dy), flat(op.y, readonly=False), flat(weight))
    last, tasks = flat(bias) if op.dy is None else None, plan.groups * plan.apply_chunks

    def run(kind: Array, todo: Array) -> Any:
        marked = _marked(sets, kind, todo)
        arguments = (*sources, last, sets, todo, plan.geo, kind, plan.apart)
        serial = runs.apply if plan.in_runs else kernels.apply
        threads.launch(plan.elements, serial, kernels.apply_parallel, arguments, tasks)
        return marked

    narrow_then_wide(wide, plan.n_sets, run)


def backward(op: Operands, sets: Array, shares: tuple[float, float], collect: bool) -> tuple[Array, Array | None]:
    """The gradient dx into y, for dy; returns the sums of dy * weight and of that times x_hat, 2 x sets.

    sets: 6 rows, of which shift and slope are set here to the sums times `shares`. With `collect`, the sums of dy and of
    dy * x_hat of each position over all sets come too, 2 x positions, where they cost no pass of their own.
    """
    assert op.dy is not None
    weight = affine(op.weight, None, 1.0, op.wide)
    plan = plan_of(op, weight, _NONE)
    if not plan.fused:
        sums = sums_over(op, (weight,), sets, op.wide)
        sets[3:5] = sums * np.reshape(shares, (2, 1))
        apply(op, sets)
        return sums, None
    sums = np.empty((2, plan.n_sets))
    collect &= plan.collects
    totals = np.zeros((plan.groups, 2, plan.set_size if collect else 0))
    arrays = (flat(op.x), flat(op.dy), flat(op.y, readonly=False), flat(weight), sets, sums, totals)

    def run(kind: Array, todo: Array) -> Any:
        marked = _marked(sets, kind, todo)
        arguments = (*arrays, todo, plan.geo, shares, kind, plan.apart)
        serial = runs.backward if plan.in_runs else gradients.backward
        threads.launch(plan.elements, serial, gradients.backward_parallel, arguments, plan.groups)
        return marked

    narrow_then_wide(op.wide, plan.n_sets, run)
    return sums, totals.sum(0) if collect else None


def sums_over(op: Operands, moving: tuple[Array, ...], sets: Array | None, wide: bool) -> Array:
    """The sums of dy * weight and of that times x_hat over the sets of op.split, 2 x sets.

    moving = (weight,) with `sets`, the numbers of these sets; or moving = (high, low, rstd), which change along a set, as
    over the sets of a parameter.
    """
    assert op.dy is not None
    plan = plan_of(op, moving[0], _NONE)
    sums, partials = np.empty((2, plan.n_sets)), np.empty((plan.n_sets, plan.chunks, 2))
    arrays = (flat(op.x), flat(op.dy), tuple(map(flat, moving)))
    tasks = plan.groups * plan.chunks

    def run(kind: Array, todo: Array) -> Any:
        marked = 0 if sets is None else _marked(sets, kind, todo)
        arguments = (*arrays, _NO_SETS if sets is None else sets, partials, todo, plan.geo, kind, plan.apart)
        serial = runs.partial_products if plan.in_runs else gradients.partial_products
        threads.launch(plan.elements, serial, gradients.partial_products_parallel, arguments, tasks)
        return marked

    narrow_then_wide(wide, plan.n_sets, run)
    gradients.merge_products(partials, sums)
    return sums
