"""The sums of tiles, as explicit SIMD: what adds up every element is written here and in `strips.py`, in LLVM vectors.

Plain Numba loops would leave the order of a sum to the compiler (with `reassoc`) or leave it scalar (without), and would
check pointers for overlap before each run. Here the lanes are part of the definition: the elements of a run are summed in
strips of STRIP, element i of a strip in lane i % LANES (those of a tile: i % PARTIALS), strips are added up lane by lane, lanes
as a tree. No fast-math flag is set anywhere. So a set gives the same bits in every kernel, schedule, thread count and vector
width.

Every sum comes in two kinds. Where `dy` is None, statistics: d = x - pivot and d * d. Else a gradient's: g and g * x_hat. There
g is dy * weight where the weight changes from element to element of the sum, else dy: such a weight belongs to the sum. The
numbers that go with an element (pivot, or centre and scale) lie in the first rows of `work`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .._formulas import add_terms
from .buffers import TOTAL, TOTAL_OF_PRODUCTS
from .geometry import STRIP_ROWS
from .registers import first_lanes, fold, smaller, splat
from .simd import STEP, Elements, Integers, Mask, Table, elements_of, primitive

TABLE, SPLAT, ALONG = range(3)  # where numbers that move come from
# Columns summed side by side, in registers (a gradient has more numbers per column: not 64), and those that lie apart.
_COLUMNS, _COLUMNS_APART = (64, 32, STEP), (8, 1)


class _Operand:
    """One array of `accumulate`: where a row of columns starts, and how the next row and column are found."""

    def __init__(self, builder: ir.IRBuilder, array: Elements, start: ir.Value, step: ir.Value, places: Any) -> None:
        self.builder, self.array, self.start, self.step, self.places = builder, array, start, step, places

    def load(self, row: ir.Value, column: ir.Value, count: int, mask: Mask) -> ir.Value:
        """`count` columns of a row."""
        line = self.array.at(self.start, self.builder.mul(row, self.step))
        if self.places is None:
            return line.load(column, count, mask)
        lanes = [line.load(self.places(self.builder.add(column, column.type(k))), 1) for k in range(count)]
        if count == 1:
            return lanes[0]
        vector = ir.Constant(ir.VectorType(lanes[0].type, count), ir.Undefined)
        for k, value in enumerate(lanes):
            vector = self.builder.insert_element(vector, value, ir.IntType(32)(k))
        return vector

    def prefetch(self, row: ir.Value, column: ir.Value, count: int, rows: ir.Value, ahead: ir.Value) -> None:
        """Ask for the columns of the same row of the next strip, or those `ahead` in this row."""
        builder = self.builder
        strip = builder.select(builder.icmp_signed("==", ahead, ahead.type(0)), builder.mul(rows, self.step), ahead)
        line = self.array.at(self.start, builder.mul(row, self.step), strip)
        line.prefetch(column, count)

    def load_still(self, row: ir.Value, count: int) -> ir.Value:
        """The one number of a row, for `count` columns."""
        line = self.array.at(self.start, self.builder.mul(row, self.step))
        return splat(self.builder, line.load(self.start.type(0), 1), count)


class _Sums:
    """What `accumulate` was given, and its loops."""

    def __init__(self, context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> None:
        self.builder, self.wide, self.intp = builder, context.get_value_type(sig.args[7].dtype), args[5].type
        self.at, self.steps = (cgutils.unpack_tuple(builder, args[k], 4) for k in (3, 4))
        self.rows, (self.begin, self.end), self.ahead = args[5], cgutils.unpack_tuple(builder, args[6], 2), args[12]
        self.resume = cgutils.is_true(builder, args[13])
        self.offsets = None if isinstance(sig.args[10], types.NoneType) else Integers(context, builder, sig.args[10], args[10])
        self.owned = None if isinstance(sig.args[11], types.NoneType) else Table(context, builder, sig.args[11], args[11])
        pair = elements_of(context, builder, types.Tuple(sig.args[:2]), cgutils.pack_struct(builder, args[:2]), self.wide)
        self.sources = [self._operand(array, k) for array, k in zip(pair, (0, 3), strict=False)]
        self.movers = [self._operand(array, 2) for array in elements_of(context, builder, sig.args[2], args[2], self.wide)]
        table = Table(context, builder, sig.args[7], args[7])
        self.numbers = [table.row(self.intp(k)) for k in range(1 if len(self.sources) == 1 else 3)]  # pivot; high, low, rstd
        self.totals = [table.row(self.intp(k)).at(args[8]) for k in (TOTAL, TOTAL_OF_PRODUCTS)]

    def _operand(self, array: Elements, k: int) -> _Operand:
        places = None if self.offsets is None else self.offsets.row(k)
        return _Operand(self.builder, array, self.at[k], self.steps[k], places)

    def each(self, start: ir.Value, stop: ir.Value, step: int) -> Any:
        """A loop over integers."""
        return cgutils.for_range_slice(self.builder, start, stop, self.intp(step), self.intp)

    def all_columns(self, kind: int) -> None:
        """As many at once as there is room for."""
        apart, builder, start = self.offsets is not None, self.builder, self.begin
        for size in _COLUMNS_APART if apart else _COLUMNS if len(self.sources) == 1 else _COLUMNS[1:]:
            stop = builder.add(start, builder.and_(builder.sub(self.end, start), self.intp(-size)))
            with self.each(start, stop, size) as (column, _):
                self._some_columns(kind, column, size)
            start = stop
        if not apart:
            with builder.if_then(builder.icmp_signed("<", start, self.end)):
                self._some_columns(kind, start, STEP, first_lanes(builder, builder.sub(self.end, start), STEP))

    def _some_columns(self, kind: int, column: ir.Value, count: int, mask: Mask = None) -> None:
        builder = self.builder
        still = [part.load(column, count) for part in self.numbers]
        zero = splat(builder, ir.Constant(self.wide, 0.0), count)
        strip, total = ([cgutils.alloca_once(builder, zero.type) for _ in self.totals] for _ in range(2))
        for slot, line in zip(total, self.totals, strict=True):
            builder.store(line.load(column, count), slot)
        with self.each(self.intp(0), self.rows, STRIP_ROWS) as (first, _):
            for slot, before in zip(strip, total, strict=True):
                builder.store(builder.select(self.resume, builder.load(before), zero), slot)
            with self.each(first, smaller(builder, builder.add(first, self.intp(STRIP_ROWS)), self.rows), 1) as (row, _):
                self._add_row(kind, row, column, count, mask, still, strip)
            for slot, before in zip(strip, total, strict=True):
                held = builder.select(self.resume, zero, builder.load(before))
                builder.store(builder.fadd(held, builder.load(slot)), before)
        for slot, line in zip(total, self.totals, strict=True):
            line.store(column, builder.load(slot), mask=mask)

    def _add_row(
        self, kind: int, row: ir.Value, column: ir.Value, count: int, mask: Mask, still: list[ir.Value], sums: list[ir.Value]
    ) -> None:
        builder, own = self.builder, still
        moved = [m.load_still(row, count) if kind == SPLAT else m.load(row, column, count, mask) for m in self.movers]
        if kind != TABLE:
            own = [*still, *moved] if len(moved) == 1 else moved
        values = [source.load(row, column, count, mask) for source in self.sources]
        if self.offsets is None:
            for source in self.sources:
                source.prefetch(row, column, count, self.rows, self.ahead)
        before = [builder.load(slot) for slot in sums]
        for slot, after in zip(sums, add_terms(builder, before, values, own), strict=True):
            builder.store(after, slot)
        if self.owned is not None and self.offsets is None and kind == SPLAT and len(self.movers) == 1:
            with builder.if_then(builder.icmp_signed(">", self.owned.length, self.intp(0))):
                self._collect(self.owned, row, values, still, mask)

    def _collect(self, owned: Table, row: ir.Value, values: list[ir.Value], still: list[ir.Value], mask: Mask) -> None:
        """The sums over the columns of a row."""
        builder, none = self.builder, ir.Constant(values[0].type, None)
        place = builder.add(self.at[2], builder.mul(row, self.steps[2]))
        for k, term in enumerate(add_terms(builder, [none, none], values, still)):
            if mask is not None:
                term = builder.select(mask, term, none)
            line, more = owned.row(self.intp(k)), fold(builder, term)
            if line.wide != self.wide:
                more = builder.fpext(more, line.wide)
            line.store(place, builder.fadd(line.load(place, 1), more))


@primitive
def accumulate(
    typingctx: Any,
    x: Any,
    dy: Any,
    moving: Any,
    at: Any,
    steps: Any,
    rows: Any,
    columns: Any,
    work: Any,
    lane: Any,
    mode: Any,
    places: Any,
    own: Any,
    ahead: Any,
    resume: Any,
) -> Any:
    """Sum `rows` rows down each of the columns [columns[0], columns[1]), and add that to the columns from `lane` on in work.

    Every STRIP_ROWS of the rows are summed by themselves first. With `resume` the rows, no more than these, go on the sums in
    work one by one instead: as if they had followed the last ones in one call.

    at, steps: offsets in x, -, moving and dy, and how far the next row is. Neighbouring columns are neighbours in memory, or
    lie where `places`, rows of offsets of the columns in the same order, has them. The numbers of the columns are in the first
    rows of work; in mode SPLAT those in `moving`, (weight,) or (high, low, rstd), come from there, one for each row, in mode
    ALONG one for each element. Where a weight does, mode SPLAT, and `own`, None or 2 x n, is not empty, the sums of dy and
    dy * x_hat over the columns of a row are added to its rows, at the weight's offset. What is asked for meanwhile are the next
    rows, or if `ahead` is not 0 the columns so far on.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        sums = _Sums(context, builder, sig, args)
        if not sums.movers:
            sums.all_columns(TABLE)
            return context.get_dummy_value()
        choice = builder.switch(builder.trunc(args[9], ir.IntType(32)), done := builder.append_basic_block("done"))
        for kind in (TABLE, SPLAT, ALONG):
            block = builder.append_basic_block(f"mode{kind}")
            choice.add_case(ir.Constant(ir.IntType(32), kind), block)
            builder.position_at_end(block)
            sums.all_columns(kind)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    index, four = types.intp, types.UniTuple(types.intp, 4)
    return types.void(
        x, dy, moving, four, four, index, types.UniTuple(index, 2), work, index, index, places, own, index, types.boolean
    ), codegen
