"""Small sets side by side: summed in registers and kept in L1 until they are written. The same bits as of `kernels.forward`.

There a tile goes through L2 twice, and what is done once for it takes as long as a small set.
"""

from __future__ import annotations

import functools
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
from .column_sums import SETS, Columns, ColumnSums, Vectors
from .finish import keep, mark
from .geometry import COLUMNS_KEPT
from .registers import double, narrow, some, splat
from .simd import STEP, Elements, Table, primitive


class _Given(Columns):
    """What `normalize_columns` was given."""

    def __init__(self, context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> None:
        super().__init__(context, builder, sig.args[2:4], args[2:4], args[6])
        at, self.steps = (cgutils.unpack_tuple(builder, args[k], 2) for k in (4, 5))
        self.x, self.y = (self.elements(sig.args[k], args[k], at[k]) for k in range(2))
        self.head, self.shares, self.eps, self.center = args[7], cgutils.unpack_tuple(builder, args[8], 3), args[9], args[10]
        self.moments, self.first, self.far = Table(context, builder, sig.args[11], args[11]), args[13], args[14]
        self.marks = Elements(context, builder, sig.args[12], args[12], ir.DoubleType()).at(self.first)
        self.marked = cgutils.alloca_once_value(builder, self.rows.type(0))
        self.n = builder.sitofp(builder.mul(self.rows, self.lanes), ir.DoubleType())


class _Block(ColumnSums):
    """Some vectors of columns, from their sums to the result."""

    given: _Given

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

    def read_x(self, row: ir.Value) -> list[ir.Value]:
        """A row of x."""
        return self.read(self.given.x, row, self.given.steps[0])

    def find_pivots(self) -> None:
        """The mean of the first elements of every set; 0 without `center`."""
        given, builder = self.given, self.builder
        zero = splat(builder, ir.Constant(given.wide, 0.0), STEP)
        self.put(LANE_PIVOT, [zero] * len(self.places))
        with builder.if_then(given.center):
            origins = self.in_sets(self.read_x(given.rows.type(0)), lambda j, distance: j & ~distance, False)
            self.add_rows(given.head, given.rows.type(1), list(zip(origins)), lambda row: list(zip(self.read_x(row))))
            share, found = splat(builder, given.shares[0], STEP), []
            for origin, s in zip(origins, self.folded(self.vectors(LANE_SUM)), strict=True):
                mean = builder.fmul(double(builder, s), share)
                found.append(narrow(builder, builder.fadd(double(builder, origin), mean), given.wide))
            self.put(LANE_PIVOT, found)

    def sum_up(self) -> None:
        """The sums of every set about pivots near the means: where one turns out to be far off, once more about the mean."""
        given, builder = self.given, self.builder
        first = cgutils.alloca_once(builder, given.center.type)
        builder.store(given.center, first)
        again, move, done = (builder.append_basic_block(name) for name in ("sum", "move", "summed"))
        builder.branch(again)
        builder.position_at_end(again)
        pivots = self.vectors(LANE_PIVOT)
        self.add_rows(given.rows, given.partials, list(zip(pivots)), self.read_and_keep)
        sums = [self.folded(self.vectors(row)) for row in (LANE_SUM, LANE_PRODUCTS)]
        for row, values in zip((LANE_SUM, LANE_PRODUCTS), sums, strict=True):
            self.put(row, values)
        n, far_off = splat(builder, given.n, STEP), []
        for s, q in zip(*sums, strict=True):
            far_off.append(formulas.is_cancelled(builder, double(builder, s), double(builder, q), n))
        any_off = functools.reduce(builder.or_, [some(builder, lanes) for lanes in far_off])
        builder.cbranch(builder.and_(any_off, builder.load(first)), move, done)
        builder.position_at_end(move)
        builder.store(cgutils.false_bit, first)
        for k, (pivot, s, lanes) in enumerate(zip(pivots, sums[0], far_off, strict=True)):
            mean = builder.fadd(double(builder, pivot), builder.fdiv(double(builder, s), n))
            moved = builder.select(lanes, narrow(builder, mean, given.wide), pivot)
            given.row(LANE_PIVOT).store(self.places[k], moved)
        builder.branch(again)
        builder.position_at_end(done)

    def read_and_keep(self, row: ir.Value) -> Vectors:
        """A row of x, which is kept; that of the result is asked for where it is far."""
        given, builder, held = self.given, self.builder, self.given.kept.row(row)
        with builder.if_then(given.far):
            self.line(given.y, row, given.steps[1]).prefetch(row.type(0), self.width)
        values = self.read_x(row)
        for place, value in zip(self.places, values, strict=True):
            held.store(place, value)
        return list(zip(values))

    def find_numbers(self) -> None:
        """The centre in two parts and the scale of every set; what is kept of them, and which wait for float64."""
        given, builder = self.given, self.builder
        n, part, share, eps, center = (
            splat(builder, value, SETS) for value in (given.n, *given.shares[1:], given.eps, given.center)
        )
        with given.each(self.count, SETS) as (k, _):
            sums = self.of_sets(k, (LANE_SUM, LANE_PRODUCTS, LANE_PIVOT))
            total, low, m2 = formulas.moments_of_set(builder, sums, part, center)
            there, first = self.there(k), builder.add(self.first, k)
            lost = builder.and_(formulas.too_narrow(builder, total, m2, n, center), there)
            mark(builder, given.marks, first, lost, given.marked)
            keep(builder, given.moments, builder.add(given.first, first), (total, low, m2), there)
            scale = formulas.inverse_deviation(builder, m2, share, eps)
            numbers = formulas.in_accumulator(builder, total, low, scale, given.wide)
            self.to_lanes(k, dict(zip((LANE_HIGH, LANE_LOW, LANE_RSTD), numbers, strict=True)))

    def to_lanes(self, k: ir.Value, numbers: dict[int, ir.Value]) -> None:
        """Set rows of work to numbers of sets [k, k + SETS), in all of their lanes: the next set overwrites what is beyond."""
        given, builder = self.given, self.builder
        with builder.if_else(given.single) as (near, apart):
            with near:
                for row, values in numbers.items():
                    given.row(row).store(k, values)
            with apart:
                for j in range(SETS):
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
        with given.each(given.rows) as (row, _):
            to, held = self.line(given.y, row, given.steps[1]), given.kept.row(row)
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
    head: Any,
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
    power of 2 up to STEP, partial sums. head: rows whose mean is the first pivot. shares: 1 / the elements of these, 1 / those
    of a set, 1 / the divisor of the variance. far: whether results are asked for. Weights and biases are in work, of every
    lane; kept has room for ROWS_KEPT x COLUMNS_KEPT.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        given = _Given(context, builder, sig, args)
        given.each_block(COLUMNS_KEPT, lambda *block: _Block(given, *block).normalize())
        return builder.load(given.marked)

    index, number, flag = types.intp, types.float64, types.boolean
    pair, four, three = types.UniTuple(index, 2), types.UniTuple(index, 4), types.UniTuple(number, 3)
    return index(x, y, kept, work, pair, pair, four, index, three, number, flag, moments, todo, index, flag), codegen
