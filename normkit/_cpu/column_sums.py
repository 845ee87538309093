"""What kernels of small sets side by side have in common: the sums of a few vectors of columns, in their lanes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .._formulas import add_terms
from .buffers import LANE_PRODUCTS, LANE_SUM
from .geometry import COLUMNS_KEPT, PARTIALS, STRIP_ROWS
from .registers import first_lanes, splat, vector
from .simd import STEP, Elements, Mask, Table

SETS = 8  # whose numbers are found at once: a register of float64
Vectors = Sequence[Sequence[ir.Value]]  # one for each source, of each vector


class Columns:
    """Small sets side by side: what both kernels are given. Rows of work hold numbers of lanes, of all or of a block."""

    def __init__(self, context: Any, builder: ir.IRBuilder, kinds: Any, buffers: Any, sizes: ir.Value) -> None:
        """buffers: (kept, work); sizes: rows of a set, sets, lanes of each, partial sums."""
        self.context, self.builder, self.wide = context, builder, context.get_value_type(kinds[1].dtype)
        self.kept, self.work = (Table(context, builder, *each) for each in zip(kinds, buffers, strict=True))
        self.rows, self.sets, self.lanes, self.partials = cgutils.unpack_tuple(builder, sizes, 4)
        self.single = builder.icmp_signed("==", self.lanes, self.lanes.type(1))
        self.power = builder.cttz(self.lanes, cgutils.true_bit)
        self.width = builder.mul(self.sets, self.lanes)

    def elements(self, kind: types.Array, array: ir.Value, at: ir.Value) -> Elements:
        """One of the arrays, from the first of the sets on."""
        return Elements(self.context, self.builder, kind, array, self.wide).at(at)

    def row(self, k: int) -> Elements:
        """A row of work."""
        return self.work.row(self.rows.type(k))

    def each(self, stop: ir.Value, step: ir.Value | int = 1, start: ir.Value | int = 0) -> Any:
        """A loop over integers."""
        intp = self.rows.type
        bounds = (each if isinstance(each, ir.Value) else intp(each) for each in (start, stop, step))
        return cgutils.for_range_slice(self.builder, *bounds, intp)

    def each_block(self, width: int, block: Callable[[ir.Value, int, Mask], None]) -> None:
        """block(column, columns, mask) for all columns: `width` at once, then the others."""
        whole = self.builder.and_(self.width, self.width.type(-width))
        with self.each(whole, width) as (column, _):
            block(column, width, None)
        with self.each(self.width, STEP, whole) as (column, _):
            block(column, STEP, first_lanes(self.builder, self.builder.sub(self.width, column), STEP))


class ColumnSums:
    """The sums of the sets of some vectors of columns."""

    def __init__(self, given: Columns, column: ir.Value, width: int, mask: Mask) -> None:
        self.given, self.builder, self.column, self.width, self.mask = given, given.builder, column, width, mask
        self.places = [given.rows.type(k) for k in range(0, width, STEP)]
        builder, self.first = self.builder, self.builder.lshr(column, given.power)
        left, count = builder.sub(given.sets, self.first), builder.lshr(column.type(width), given.power)
        self.count = builder.select(builder.icmp_signed("<", left, count), left, count)

    def line(self, array: Elements, row: ir.Value, step: ir.Value) -> Elements:
        """These columns of a row of an array."""
        return array.at(self.column, self.builder.mul(row, step))

    def read(self, array: Elements, row: ir.Value, step: ir.Value) -> list[ir.Value]:
        """All vectors of them."""
        line = self.line(array, row, step)
        return [line.load(place, STEP, self.mask) for place in self.places]

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

    def add_rows(
        self,
        rows: ir.Value,
        partials: ir.Value,
        numbers: Sequence[Sequence[ir.Value]],
        read: Callable[[ir.Value], Vectors],
    ) -> None:
        """The two sums of every lane over so many rows, as of `blocks.sum_block`; each partial sum has COLUMNS_KEPT columns.

        numbers: those that go with the elements of each vector; read: what gives these, of a row.
        """
        given, builder, count = self.given, self.builder, len(numbers)
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
                    for k, values in enumerate(read(row)):
                        slots = strip[2 * k : 2 * k + 2]
                        before = [builder.load(slot) for slot in slots]
                        for slot, after in zip(slots, add_terms(builder, before, values, numbers[k]), strict=True):
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

    def of_sets(self, k: ir.Value, rows: Sequence[int]) -> list[ir.Value]:
        """Numbers of sets [k, k + SETS) from their lanes, in some rows of work."""
        given, builder = self.given, self.builder
        lines = [given.row(row) for row in rows]
        slots = [cgutils.alloca_once(builder, ir.VectorType(given.wide, SETS)) for _ in rows]
        with builder.if_else(given.single) as (near, apart):
            with near:
                for line, slot in zip(lines, slots, strict=True):
                    builder.store(line.load(k, SETS), slot)
            with apart:
                places = [builder.mul(builder.add(k, k.type(j)), given.lanes) for j in range(SETS)]
                for line, slot in zip(lines, slots, strict=True):
                    builder.store(vector(builder, [line.load(place, 1) for place in places]), slot)
        return [builder.load(slot) for slot in slots]

    def there(self, k: ir.Value) -> ir.Value:
        """Which of sets [k, k + SETS) there are."""
        return first_lanes(self.builder, self.builder.sub(self.count, k), SETS)
