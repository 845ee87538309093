"""The sums of small sets side by side, a few vectors of columns at a time, whose rows are kept in L1 meanwhile."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from .._formulas import add_terms
from . import formulas
from .buffers import LANE_PIVOT, LANE_PRODUCTS, LANE_SUM
from .geometry import COLUMNS_KEPT, PARTIALS, STRIP_ROWS
from .registers import double, narrow, some, splat
from .simd import STEP, Elements, Mask, Table


class Columns:
    """What `normalize_columns` was given. Rows of work hold the numbers of lanes: of all, or of those of a block."""

    def __init__(self, context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> None:
        self.builder, self.wide = builder, context.get_value_type(sig.args[3].dtype)
        at, self.steps = (cgutils.unpack_tuple(builder, args[k], 2) for k in (4, 5))
        self.x, self.y = (Elements(context, builder, sig.args[k], args[k], self.wide).at(at[k]) for k in range(2))
        self.kept, self.work = (Table(context, builder, sig.args[k], args[k]) for k in (2, 3))
        self.rows, self.sets, self.lanes, self.partials, self.head = cgutils.unpack_tuple(builder, args[6], 5)
        self.shares, self.eps, self.center = cgutils.unpack_tuple(builder, args[7], 3), args[8], args[9]
        self.moments, self.first, self.far = Table(context, builder, sig.args[10], args[10]), args[12], args[13]
        self.marks = Elements(context, builder, sig.args[11], args[11], ir.DoubleType()).at(self.first)
        self.marked = cgutils.alloca_once_value(builder, self.rows.type(0))
        self.single = builder.icmp_signed("==", self.lanes, self.lanes.type(1))
        self.power = builder.cttz(self.lanes, cgutils.true_bit)
        self.n = builder.sitofp(builder.mul(self.rows, self.lanes), ir.DoubleType())
        self.width = builder.mul(self.sets, self.lanes)

    def row(self, k: int) -> Elements:
        """A row of work."""
        return self.work.row(self.rows.type(k))

    def each(self, stop: ir.Value, step: ir.Value | int = 1, start: ir.Value | int = 0) -> Any:
        """A loop over integers."""
        intp = self.rows.type
        bounds = (each if isinstance(each, ir.Value) else intp(each) for each in (start, stop, step))
        return cgutils.for_range_slice(self.builder, *bounds, intp)


class ColumnSums:
    """The sums of the sets of some vectors of columns, in their lanes."""

    def __init__(self, given: Columns, column: ir.Value, width: int, mask: Mask) -> None:
        self.given, self.builder, self.column, self.width, self.mask = given, given.builder, column, width, mask
        self.places = [given.rows.type(k) for k in range(0, width, STEP)]
        self.line = given.x.at(column)

    def vectors(self, row: int) -> list[ir.Value]:
        """The numbers of these lanes in a row of work."""
        return [self.given.row(row).load(place, STEP) for place in self.places]

    def put(self, row: int, values: Sequence[ir.Value]) -> None:
        """Set them."""
        for place, value in zip(self.places, values, strict=True):
            self.given.row(row).store(place, value)

    def in_sets(self, values: Sequence[ir.Value], from_lane: Callable[[int, int], int], add: bool) -> list[ir.Value]:
        """For each distance below the lanes of a set, from the largest: the numbers of other lanes, or the sums with them."""
        given, builder = self.given, self.builder
        slots = [cgutils.alloca_once_value(builder, value) for value in values]
        with builder.if_then(builder.not_(given.single)):
            for distance in (STEP >> k for k in range(1, STEP.bit_length())):
                order = ir.Constant(ir.VectorType(ir.IntType(32), STEP), [from_lane(j, distance) for j in range(STEP)])
                far = builder.icmp_signed(">", given.lanes, given.rows.type(distance))
                for slot in slots:
                    here = builder.load(slot)
                    moved = builder.shuffle_vector(here, ir.Constant(here.type, ir.Undefined), order)
                    builder.store(builder.select(far, builder.fadd(here, moved) if add else moved, here), slot)
        return [builder.load(slot) for slot in slots]

    def folded(self, values: Sequence[ir.Value]) -> list[ir.Value]:
        """In every lane of a set the sum of all, which is that of `registers.fold`."""
        return self.in_sets(values, lambda j, distance: j ^ distance, True)

    def read(self, row: ir.Value) -> list[ir.Value]:
        """A row of x."""
        line = self.line.at(self.builder.mul(row, self.given.steps[0]))
        return [line.load(place, STEP, self.mask) for place in self.places]

    def find_pivots(self) -> None:
        """The mean of the first elements of every set; 0 without `center`."""
        given, builder = self.given, self.builder
        zero = splat(builder, ir.Constant(given.wide, 0.0), STEP)
        self.put(LANE_PIVOT, [zero] * len(self.places))
        with builder.if_then(given.center):
            origins = self.in_sets(self.read(given.rows.type(0)), lambda j, distance: j & ~distance, False)
            self.add_rows(given.head, given.rows.type(1), origins, self.read)
            share, found = splat(builder, given.shares[0], STEP), []
            for origin, s in zip(origins, self.folded(self.vectors(LANE_SUM)), strict=True):
                mean = builder.fmul(double(builder, s), share)
                found.append(narrow(builder, builder.fadd(double(builder, origin), mean), given.wide))
            self.put(LANE_PIVOT, found)

    def add_rows(
        self,
        rows: ir.Value,
        partials: ir.Value,
        pivots: Sequence[ir.Value],
        read: Callable[[ir.Value], list[ir.Value]],
    ) -> None:
        """The two sums of every lane over so many rows, as of `blocks.sum_block`; each partial sum has COLUMNS_KEPT columns."""
        given, builder, count = self.given, self.builder, len(pivots)
        zero = splat(builder, ir.Constant(given.wide, 0.0), STEP)
        strip, total = ([cgutils.alloca_once(builder, zero.type) for _ in range(2 * count)] for _ in range(2))
        stride = builder.mul(partials, partials.type(STRIP_ROWS))
        with given.each(partials) as (j, _):
            for slot in total:
                builder.store(zero, slot)
            with given.each(rows, stride, j) as (start, _):
                for slot in strip:
                    builder.store(zero, slot)
                stop = builder.add(start, stride)
                stop = builder.select(builder.icmp_signed("<", stop, rows), stop, rows)
                with given.each(stop, partials, start) as (row, _):
                    for k, value in enumerate(read(row)):
                        slots = strip[2 * k : 2 * k + 2]
                        before = [builder.load(slot) for slot in slots]
                        for slot, after in zip(slots, add_terms(builder, before, [value], [pivots[k]]), strict=True):
                            builder.store(after, slot)
                for part, slot in zip(strip, total, strict=True):
                    builder.store(builder.fadd(builder.load(slot), builder.load(part)), slot)
            for k in range(count):
                for row_of, slot in zip((LANE_SUM, LANE_PRODUCTS), total[2 * k : 2 * k + 2], strict=True):
                    place = builder.add(builder.mul(j, j.type(COLUMNS_KEPT)), self.places[k])
                    given.row(row_of).store(place, builder.load(slot))
        self.add_partials(partials)

    def add_partials(self, partials: ir.Value) -> None:
        """The tree over the partial sums."""
        given, builder, intp, level = self.given, self.builder, partials.type, PARTIALS // 2
        while level:
            with builder.if_then(builder.icmp_signed(">", partials, intp(level))), given.each(intp(level)) as (j, _):
                for row in (LANE_SUM, LANE_PRODUCTS):
                    one = given.row(row).at(builder.mul(j, intp(COLUMNS_KEPT)))
                    other = one.at(intp(level * COLUMNS_KEPT))
                    for place in self.places:
                        one.store(place, builder.fadd(one.load(place, STEP), other.load(place, STEP)))
            level //= 2

    def sum_up(self) -> None:
        """The sums of every set about pivots near the means: where one turns out to be far off, once more about the mean."""
        given, builder = self.given, self.builder
        first = cgutils.alloca_once(builder, given.center.type)
        builder.store(given.center, first)
        again, move, done = (builder.append_basic_block(name) for name in ("sum", "move", "summed"))
        builder.branch(again)
        builder.position_at_end(again)
        pivots = self.vectors(LANE_PIVOT)
        self.add_rows(given.rows, given.partials, pivots, self.read_and_keep)
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

    def read_and_keep(self, row: ir.Value) -> list[ir.Value]:
        """A row of x, which is kept; that of the result is asked for where it is far."""
        given, builder, held = self.given, self.builder, self.given.kept.row(row)
        with builder.if_then(given.far):
            given.y.at(self.column, builder.mul(row, given.steps[1])).prefetch(row.type(0), self.width)
        values = self.read(row)
        for place, value in zip(self.places, values, strict=True):
            held.store(place, value)
        return values
