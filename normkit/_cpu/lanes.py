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

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .._formulas import add_terms
from .buffers import TOTAL, TOTAL_OF_PRODUCTS
from .registers import first_lanes, fold, splat
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

    With `resume` the rows go on the sums in work one by one instead: as if they had followed the last ones in one call.

    at, steps: offsets in x, -, moving and dy, and how far the next row is. Neighbouring columns are neighbours in memory, or
    lie where `places`, rows of offsets of the columns in the same order, has them. The numbers of the columns are in the first
    rows of work; in mode SPLAT those in `moving`, (weight,) or (high, low, rstd), come from there, one for each row, in mode
    ALONG one for each element. Where a weight does, mode SPLAT, and `own`, None or 2 x n, is not empty, the sums of dy and
    dy * x_hat over the columns of a row are added to its rows, at the weight's offset. What is asked for meanwhile are the next
    rows, or if `ahead` is not 0 the columns so far on.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide = context.get_value_type(sig.args[7].dtype)
        intp = args[5].type
        at, steps = (cgutils.unpack_tuple(builder, args[k], 4) for k in (3, 4))
        begin, end = cgutils.unpack_tuple(builder, args[6], 2)
        resume = cgutils.is_true(builder, args[13])
        offsets = None if isinstance(sig.args[10], types.NoneType) else Integers(context, builder, sig.args[10], args[10])

        def operand(array: Elements, k: int) -> _Operand:
            return _Operand(builder, array, at[k], steps[k], None if offsets is None else offsets.row(k))

        pair = elements_of(context, builder, types.Tuple(sig.args[:2]), cgutils.pack_struct(builder, args[:2]), wide)
        sources = [operand(array, k) for array, k in zip(pair, (0, 3), strict=False)]
        movers = [operand(array, 2) for array in elements_of(context, builder, sig.args[2], args[2], wide)]
        table = Table(context, builder, sig.args[7], args[7])
        numbers = [table.row(intp(k)) for k in range(_numbers_per_element(sources))]
        totals = [table.row(intp(k)).at(args[8]) for k in (TOTAL, TOTAL_OF_PRODUCTS)]
        owned = None if isinstance(sig.args[11], types.NoneType) else Table(context, builder, sig.args[11], args[11])

        def collect(row: ir.Value, values: list[ir.Value], own: list[ir.Value], mask: Mask) -> None:
            assert owned is not None
            place = builder.add(at[2], builder.mul(row, steps[2]))
            none = ir.Constant(values[0].type, None)
            for k, term in enumerate(add_terms(builder, [none, none], values, own)):
                if mask is not None:
                    term = builder.select(mask, term, none)
                line, more = owned.row(intp(k)), fold(builder, term)
                if line.wide != wide:
                    more = builder.fpext(more, line.wide)
                line.store(place, builder.fadd(line.load(place, 1), more))

        def sum_columns(kind: int, column: ir.Value, count: int, mask: Mask = None) -> None:
            still = [part.load(column, count) for part in numbers]
            zero = splat(builder, ir.Constant(wide, 0.0), count)
            sums = [cgutils.alloca_once(builder, zero.type) for _ in totals]
            for slot, total in zip(sums, totals, strict=True):
                builder.store(builder.select(resume, total.load(column, count), zero), slot)
            with cgutils.for_range_slice(builder, intp(0), args[5], intp(1), intp) as (row, _):
                moved = [m.load_still(row, count) if kind == SPLAT else m.load(row, column, count, mask) for m in movers]
                own = still
                if kind != TABLE:
                    own = [*still, *moved] if len(moved) == 1 else moved
                values = [source.load(row, column, count, mask) for source in sources]
                if offsets is None:
                    for source in sources:
                        source.prefetch(row, column, count, args[5], args[12])
                before = [builder.load(slot) for slot in sums]
                for slot, after in zip(sums, add_terms(builder, before, values, own), strict=True):
                    builder.store(after, slot)
                if owned is not None and offsets is None and kind == SPLAT and len(movers) == 1:
                    with builder.if_then(builder.icmp_signed(">", owned.length, intp(0))):
                        collect(row, values, still, mask)
            for total, slot in zip(totals, sums, strict=True):
                held = builder.select(resume, zero, total.load(column, count))
                total.store(column, builder.fadd(held, builder.load(slot)), mask=mask)

        def sum_all(kind: int) -> None:
            sizes = _COLUMNS_APART if offsets is not None else _COLUMNS if len(sources) == 1 else _COLUMNS[1:]
            start = begin
            for size in sizes:
                stop = builder.add(start, builder.and_(builder.sub(end, start), intp(-size)))
                with cgutils.for_range_slice(builder, start, stop, intp(size), intp) as (column, _):
                    sum_columns(kind, column, size)
                start = stop
            if offsets is None:
                with builder.if_then(builder.icmp_signed("<", start, end)):
                    sum_columns(kind, start, STEP, first_lanes(builder, builder.sub(end, start), STEP))

        if not movers:
            sum_all(TABLE)
            return context.get_dummy_value()
        choice = builder.switch(builder.trunc(args[9], ir.IntType(32)), done := builder.append_basic_block("done"))
        for kind in (TABLE, SPLAT, ALONG):
            block = builder.append_basic_block(f"mode{kind}")
            choice.add_case(ir.Constant(ir.IntType(32), kind), block)
            builder.position_at_end(block)
            sum_all(kind)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    index, four = types.intp, types.UniTuple(types.intp, 4)
    return types.void(
        x, dy, moving, four, four, index, types.UniTuple(index, 2), work, index, index, places, own, index, types.boolean
    ), codegen


def _numbers_per_element(sources: Sequence[Any]) -> int:
    """How many rows of `work` go with an element: the pivot; or high, low and rstd."""
    return 1 if len(sources) == 1 else 3
