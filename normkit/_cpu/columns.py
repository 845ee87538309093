"""Small sets side by side: summed in registers and kept in L1 until they are written. The same bits as of `kernels.forward`.

There a tile goes through L2 twice, and what is done once for it takes as long as a small set.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .._formulas import element
from . import formulas
from .buffers import (
    LANE_BIAS,
    LANE_HIGH,
    LANE_LOW,
    LANE_PIVOT,
    LANE_PRODUCTS,
    LANE_RSTD,
    LANE_SUM,
    LANE_WAITS,
    LANE_WEIGHT,
)
from .column_sums import Columns, ColumnSums
from .finish import keep, mark
from .geometry import COLUMNS_KEPT
from .registers import first_lanes, narrow, splat, vector
from .simd import STEP, Mask, primitive

_SETS = 8  # whose numbers are found at once: a register of float64


class _Block(ColumnSums):
    """Some vectors of columns, from their sums to the result."""

    def __init__(self, given: Columns, column: ir.Value, width: int, mask: Mask) -> None:
        super().__init__(given, column, width, mask)
        builder, self.first = self.builder, self.builder.lshr(column, given.power)
        left, count = builder.sub(given.sets, self.first), builder.lshr(column.type(width), given.power)
        self.count = builder.select(builder.icmp_signed("<", left, count), left, count)

    def normalize(self) -> None:
        """The sums, the numbers of the sets, the result."""
        given, builder = self.given, self.builder
        before = builder.load(given.marked)
        self.find_pivots()
        self.sum_up()
        self.find_numbers()
        waiting = builder.icmp_signed("!=", builder.load(given.marked), before)
        with builder.if_else(waiting, likely=False) as (some_wait, none_waits):
            with some_wait:
                self.lay_marks()
                self.write(True)
            with none_waits:
                self.write(False)

    def find_numbers(self) -> None:
        """The centre in two parts and the scale of every set; what is kept of them, and which wait for float64."""
        given, builder = self.given, self.builder
        n, part, share, eps, center = (
            splat(builder, value, _SETS) for value in (given.n, *given.shares[1:], given.eps, given.center)
        )
        with given.each(self.count, _SETS) as (k, _):
            total, low, m2 = formulas.moments_of_set(builder, self.of_sets(k), part, center)
            there, first = first_lanes(builder, builder.sub(self.count, k), _SETS), builder.add(self.first, k)
            lost = builder.and_(formulas.too_narrow(builder, total, m2, n, center), there)
            mark(builder, given.marks, first, lost, given.marked)
            keep(builder, given.moments, builder.add(given.first, first), (total, low, m2), there)
            scale = formulas.inverse_deviation(builder, m2, share, eps)
            numbers = formulas.in_accumulator(builder, total, low, scale, given.wide)
            self.to_lanes(k, dict(zip((LANE_HIGH, LANE_LOW, LANE_RSTD), numbers, strict=True)))

    def of_sets(self, k: ir.Value) -> list[ir.Value]:
        """The two sums and pivots of sets [k, k + _SETS), from their lanes."""
        given, builder = self.given, self.builder
        rows = [given.row(row) for row in (LANE_SUM, LANE_PRODUCTS, LANE_PIVOT)]
        slots = [cgutils.alloca_once(builder, ir.VectorType(given.wide, _SETS)) for _ in rows]
        with builder.if_else(given.single) as (near, apart):
            with near:
                for row, slot in zip(rows, slots, strict=True):
                    builder.store(row.load(k, _SETS), slot)
            with apart:
                places = [builder.mul(builder.add(k, k.type(j)), given.lanes) for j in range(_SETS)]
                for row, slot in zip(rows, slots, strict=True):
                    builder.store(vector(builder, [row.load(place, 1) for place in places]), slot)
        return [builder.load(slot) for slot in slots]

    def to_lanes(self, k: ir.Value, numbers: dict[int, ir.Value]) -> None:
        """Set rows of work to numbers of sets [k, k + _SETS), in all of their lanes: the next set overwrites what is beyond."""
        given, builder = self.given, self.builder
        with builder.if_else(given.single) as (near, apart):
            with near:
                for row, values in numbers.items():
                    given.row(row).store(k, values)
            with apart:
                for j in range(_SETS):
                    place = builder.mul(builder.add(k, k.type(j)), given.lanes)
                    for row, values in numbers.items():
                        number = builder.extract_element(values, ir.IntType(32)(j))
                        given.row(row).store(place, splat(builder, number, STEP))

    def lay_marks(self) -> None:
        """Which lanes are of sets that wait for float64: 1, else 0."""
        given, builder = self.given, self.builder
        with given.each(self.count) as (k, _):
            number = narrow(builder, given.marks.at(self.first).load(k, 1), given.wide)
            given.row(LANE_WAITS).store(builder.mul(k, given.lanes), splat(builder, number, STEP))

    def write(self, waiting: bool) -> None:
        """The result; where some sets wait, of the others."""
        given, builder = self.given, self.builder
        masks = [self.mask] * len(self.places)
        if waiting:
            marks = self.vectors(LANE_WAITS)
            masks = [builder.fcmp_ordered("==", each, ir.Constant(each.type, None)) for each in marks]
            masks = [each if self.mask is None else builder.and_(each, self.mask) for each in masks]
        numbers = [self.vectors(row) for row in (LANE_HIGH, LANE_LOW, LANE_RSTD)]
        for row in (LANE_WEIGHT, LANE_BIAS):
            affine = given.row(row).at(self.column)
            numbers.append([affine.load(place, STEP) for place in self.places])
        result = given.y.at(self.column)
        with given.each(given.rows) as (row, _):
            to, held = result.at(builder.mul(row, given.steps[1])), given.kept.row(row)
            values = [held.load(place, STEP) for place in self.places]
            for value, place, mask, own in zip(values, self.places, masks, zip(*numbers, strict=True), strict=True):
                to.store(place, element(builder, [value], own), mask=mask)


@primitive
def normalize_columns(
    typingctx: Any,
    x: Any,
    y: Any,
    kept: Any,
    work: Any,
    at: Any,
    steps: Any,
    sizes: Any,
    shares: Any,
    eps: Any,
    center: Any,
    moments: Any,
    todo: Any,
    first: Any,
    far: Any,
) -> Any:
    """Normalize small sets side by side, from the first one on. Returns how many of them wait for float64, and marks them.

    at, steps: offsets of set `first` in x and y, and how far the next row is. sizes: rows of a set, sets, lanes of each, a
    power of 2 up to STEP, partial sums, rows whose mean is the first pivot. shares: 1 / the elements of these, 1 / those of a
    set, 1 / the divisor of the variance. far: whether results are asked for. Weights and biases are in work, of every lane;
    kept has room for ROWS_KEPT x COLUMNS_KEPT.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        given = Columns(context, builder, sig, args)
        whole = builder.and_(given.width, given.width.type(-COLUMNS_KEPT))
        with given.each(whole, COLUMNS_KEPT) as (column, _):
            _Block(given, column, COLUMNS_KEPT, None).normalize()
        with given.each(given.width, STEP, whole) as (column, _):
            left = builder.sub(given.width, column)
            _Block(given, column, STEP, first_lanes(builder, left, STEP)).normalize()
        return builder.load(given.marked)

    index, number, flag = types.intp, types.float64, types.boolean
    pair, five, three = types.UniTuple(index, 2), types.UniTuple(index, 5), types.UniTuple(number, 3)
    return index(x, y, kept, work, pair, pair, five, three, number, flag, moments, todo, index, flag), codegen
