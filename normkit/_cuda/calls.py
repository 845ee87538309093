"""The operations of the backend, as those of `_cpu`: forward, moments, apply and backward, and a parameter's sums.

Statistics are arrays of x's library, rows over the sets. Nothing is checked, and nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from .._dtypes import name_of
from .._interop.libraries import DeviceArray, library_of
from .._layout import Split, Strides, ceil_div, set_view
from .._operands import Operands
from . import launch
from . import spec as sp
from .spec import Operand, Shape, Spec

Layout = tuple[tuple[int, ...], tuple[int, ...], int, str, int]  # shape, strides in bytes, itemsize, storage, alignment
_NONE: Layout = ((), (), 1, "", 0)
Backward = Callable[..., tuple[Any, None]]
_ALIGNMENT = 64  # what an address is taken modulo: more than any vector has


@dataclass(frozen=True, slots=True)
class Plan:
    """What follows from sets, layouts and dtypes: kernels, their grids and geometry."""

    spec: Spec
    held: bool  # a team holds a whole set, in one chunk
    tiles: int
    chunks: int
    n_sets: int
    set_size: int
    geometry: tuple[int, ...]
    looped: bool  # a block takes all chunks of its sets


@lru_cache(maxsize=4096)
def _plan(
    split: Split,
    flags: tuple[bool, bool, bool, bool],
    x: Layout,
    y: Layout,
    w: Layout,
    b: Layout,
    plane: int,
    looped_tiles: int,
) -> Plan:
    """The plan of a call. flags: center, wide, gradient, whether statistics are wanted."""
    center, wide, gradient, wanted = flags
    ndim = len(x[0])
    view = set_view(split, *(_strides(layout, ndim) for layout in (x, y, w, b)), gradient)
    large = (x, y, b) if gradient else (x, y)
    shape = sp.shape_of(view, max(layout[2] for layout in large), wide)
    operands = [
        _operand(shape, column, layout, may_be_still=column == sp.W or (column == sp.B and not gradient))
        for column, layout in zip((sp.X, sp.Y, sp.W, sp.B), (x, y, w, b), strict=True)
    ]
    assert operands[0] is not None
    arrays = 2 if gradient else 1
    team, vectors, rounds = sp.chunk_team(shape, wide, arrays)
    big = max(view.n_sets, view.set_size) >= 1 << 31
    base = Spec(
        "", shape.lanes, team, vectors, rounds, shape.width, len(view.kept), len(view.reduced),
        operands[0], operands[1], operands[2], operands[3], wide, big, center, wanted,
    )  # fmt: skip
    held = sp.team_that_holds(shape, wide, arrays)
    if held is not None:
        base = replace(base, team=held[0], vectors=held[1], rounds=1)
    chunks = max(1, ceil_div(shape.positions, base.chunk))
    tiles = shape.tiles(base.across)
    return Plan(
        base, held is not None, tiles, chunks, view.n_sets, view.set_size, sp.geometry(shape, base, chunks, plane),
        looped=tiles >= looped_tiles,
    )  # fmt: skip


def _operand(shape: Shape, column: int, layout: Layout, may_be_still: bool) -> Operand | None:
    return sp.operand(shape, column, layout[3], layout[2], layout[4], may_be_still) if layout[3] else None


def _strides(layout: Layout, ndim: int) -> Strides:
    """Strides in elements, as broadcast to `ndim` axes: 0 for an axis of length 1."""
    shape, steps, size = layout[:3]
    own = tuple(step // size if n > 1 else 0 for step, n in zip(steps, shape, strict=True))
    return (0,) * (ndim - len(shape)) + own


def _layout(array: DeviceArray | None, also: int = 0) -> Layout:
    if array is None:
        return _NONE
    return array.shape, array.strides, array.itemsize, name_of(array.dtype), (array.pointer | also) % _ALIGNMENT


def _address(array: DeviceArray | None) -> int:
    return 0 if array is None else array.pointer


class _Call:
    """The arrays of one call, and the plan by which they are met."""

    def __init__(
        self, op: Operands, wide: bool, wanted: bool = False, moving: tuple[DeviceArray, ...] = (), result: bool = True
    ) -> None:
        self.x = op.x
        weight, last, y = moving[0] if moving else op.weight, op.bias if op.dy is None else op.dy, op.y if result else None
        plane = (moving[1].pointer - moving[0].pointer) // moving[0].itemsize if moving else 0
        flags = (op.center, wide, op.dy is not None, wanted)
        layouts = (_layout(op.x), _layout(y), _layout(weight, plane * 8), _layout(last))
        self.plan = _plan(op.split, flags, *layouts, plane, sp.LOOPED_TILES)
        self._addresses = tuple(map(_address, (op.x, y, weight, last)))

    def new(self, *shape: int) -> DeviceArray:
        """Memory of x's library for numbers of the sets."""
        library: Any = library_of(self.x)
        made: DeviceArray = library.view(library.empty((*shape, self.plan.n_sets), np.dtype(np.float64)))
        return made

    def launch(
        self, kernel: str, grid: int, numbers: tuple[float, float] = (0.0, 0.0), sets: DeviceArray | None = None,
        sums: DeviceArray | None = None, parts: DeviceArray | None = None, rstd_row: int = 2,
    ) -> None:  # fmt: skip
        """Enqueue one kernel."""
        plan = self.plan
        geometry = plan.geometry
        if geometry[sp.PLANE] == 0:
            geometry = (*geometry[: sp.PLANE], rstd_row * plan.n_sets, *geometry[sp.PLANE + 1 :])
        addresses = (*self._addresses, _address(sets), _address(sums), _address(parts))
        arguments = (*addresses, *geometry, float(numbers[0]), float(numbers[1]))
        launch.driver.launch(sp.named(plan.spec, kernel), grid, self.x.device, self.x.stream, arguments)

    def launch_all(self, kernel: str, **options: Any) -> None:
        """Enqueue a kernel over every chunk of every tile."""
        self.launch(kernel, self.plan.tiles * self.plan.chunks, **options)

    def launch_merge(self, kernel: str, **options: Any) -> None:
        """Enqueue a kernel that merges the chunks of every set: a warp each."""
        self.launch(kernel, ceil_div(self.plan.n_sets * 32, self.plan.spec.block), **options)


def forward(op: Operands, eps: float, correction: float, want_moments: bool) -> Any:
    """Normalize x into y by its own statistics. Returns moments (mean, its low part, M2) x sets, if wanted."""
    call = _Call(op, op.wide, want_moments)
    plan, numbers = call.plan, (1.0 / (call.plan.set_size - correction), eps)
    if plan.held:
        own = call.new(3) if want_moments else None
        call.launch("forward_held", plan.tiles, numbers, own)
        return None if own is None else own.native
    sets, parts = call.new(4), call.new(3, plan.chunks)  # the fourth row: rstd
    if plan.looped:
        call.launch("forward_looped", plan.tiles, numbers, sets, parts=parts, rstd_row=3)
    else:
        _moments_of_chunks(call, numbers, sets, parts)
        call.launch_all("apply", sets=sets, rstd_row=3)
    return sets.native[:3] if want_moments else None


def _moments_of_chunks(call: _Call, numbers: tuple[float, float], sets: DeviceArray, parts: DeviceArray) -> None:
    call.launch_all("partial_moments", parts=parts)
    call.launch_merge("merge_moments", numbers=numbers, sets=sets, parts=parts)


def moments(x: DeviceArray, split: Split, center: bool, wide: bool) -> Any:
    """Moments (mean, its low part, M2) of every set of x, in the order of the sets."""
    call = _Call(Operands(x, x, None, None, split, center), wide, wanted=True, result=False)
    if call.plan.held:
        own = call.new(3)
        call.launch("forward_held", call.plan.tiles, (1.0, 0.0), own)
        return own.native
    sets = call.new(4)
    _moments_of_chunks(call, (1.0, 0.0), sets, call.new(3, call.plan.chunks))
    return sets.native[:3]


def float32_holds(sets: Any) -> bool:
    """Whether float32 can hold the centre and scale of every set. To ask would wait for the device: it is taken to."""
    return True


def _rows(sets: Any) -> DeviceArray:
    library: Any = library_of(sets)
    rows: DeviceArray = library.view(library.rows(sets))
    return rows


def apply(op: Operands, sets: Any) -> None:
    """The norm of x into y by the numbers of its sets (mean, its low part, rstd)."""
    _Call(op, op.wide).launch_all("apply", sets=_rows(sets))


def backward_for(op: Operands, shares: tuple[float, float], collect: bool) -> Backward:
    """What computes gradients of the form of `op`, as that of `_cpu`."""
    del collect  # sums of positions over all sets have a pass of their own
    split, center = op.split, op.center

    def run(x: DeviceArray, dy: DeviceArray, dx: DeviceArray, weight: Any, sets: Any) -> tuple[Any, None]:
        return _backward(Operands(x, dx, weight, None, split, center, dy, fresh=True), sets, shares), None

    return run


def _backward(op: Operands, sets: Any, shares: tuple[float, float]) -> Any:
    """The gradient dx into y, for dy; returns the sums of dy * weight and of that times x_hat, 2 x sets.

    sets: 3 rows, or 4 with the gain, to which shift and slope are added here: the sums times `shares`.
    """
    call = _Call(op, op.wide, wanted=True)
    plan, rows, sums = call.plan, call.new(6), call.new(2)
    rows.native[:3], rows.native[5] = sets[:3], sets[-1]
    if plan.held:
        call.launch("backward_held", plan.tiles, shares, rows, sums)
        return sums.native
    parts = call.new(2, plan.chunks)
    if plan.looped:
        call.launch("backward_looped", plan.tiles, shares, rows, sums, parts)
    else:
        call.launch_all("partial_products", sets=rows, parts=parts)
        call.launch_merge("merge_products", numbers=shares, sets=rows, sums=sums, parts=parts)
        call.launch_all("apply_gradient", sets=rows)
    return sums.native


def sums_over(op: Operands, moving: tuple[Any, ...], sets: None, wide: bool) -> Any:
    """The sums of dy and of dy * x_hat over the sets of op.split, 2 x sets: moving = (high, low, rstd) change along a set."""
    library: Any = library_of(op.x)
    planes = library.stack([library.broadcast_to(part, moving[0].shape) for part in moving])
    call = _Call(op, wide, moving=tuple(library.view(planes[k]) for k in range(3)), result=False)
    sums, parts = call.new(2), call.new(2, call.plan.chunks)
    call.launch_all("moving_products", parts=parts)
    call.launch_merge("merge_products", sums=sums, parts=parts)
    return sums.native
