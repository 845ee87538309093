"""The sums, as explicit SIMD: what adds up every element is written here, once, in LLVM vectors.

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

from .._formulas import terms_of
from .buffers import TOTAL, TOTAL_OF_PRODUCTS
from .geometry import STRIP_ROWS
from .simd import (
    CACHE_LINE,
    STEP,
    Elements,
    Integers,
    Mask,
    Table,
    elements_of,
    first_lanes,
    loop,
    primitive,
    sources_of,
    splat,
)

TABLE, SPLAT, ALONG = range(3)  # where numbers that move come from
LANES = 32  # partial sums of a run: two AVX-512 registers or four of AVX2 hide the latency of an addition
STRIP = STRIP_ROWS * LANES
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
        for k in range(0, count, CACHE_LINE // line.size):
            line.prefetch(self.builder.add(column, column.type(k)), write=0)

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
) -> Any:
    """Sum `rows` rows down each of the columns [columns[0], columns[1]), and add that to the columns from `lane` on in work.

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
            for k, term in enumerate(terms_of(builder, values, own)):
                if mask is not None:
                    term = builder.select(mask, term, ir.Constant(term.type, None))
                line, more = owned.row(intp(k)), _fold(builder, term)
                if line.wide != wide:
                    more = builder.fpext(more, line.wide)
                line.store(place, builder.fadd(line.load(place, 1), more))

        def sum_columns(kind: int, column: ir.Value, count: int, mask: Mask = None) -> None:
            still = [part.load(column, count) for part in numbers]
            zero = splat(builder, ir.Constant(wide, 0.0), count)
            sums = [cgutils.alloca_once(builder, zero.type) for _ in totals]
            for slot in sums:
                builder.store(zero, slot)
            with cgutils.for_range_slice(builder, intp(0), args[5], intp(1), intp) as (row, _):
                moved = [m.load_still(row, count) if kind == SPLAT else m.load(row, column, count, mask) for m in movers]
                own = still
                if kind != TABLE:
                    own = [*still, *moved] if len(moved) == 1 else moved
                values = [source.load(row, column, count, mask) for source in sources]
                if offsets is None:
                    for source in sources:
                        source.prefetch(row, column, count, args[5], args[12])
                for slot, term in zip(sums, terms_of(builder, values, own), strict=True):
                    builder.store(builder.fadd(builder.load(slot), term), slot)
                if owned is not None and offsets is None and kind == SPLAT and len(movers) == 1:
                    with builder.if_then(builder.icmp_signed(">", owned.length, intp(0))):
                        collect(row, values, still, mask)
            for total, slot in zip(totals, sums, strict=True):
                total.store(column, builder.fadd(total.load(column, count), builder.load(slot)), mask=mask)

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
        x, dy, moving, four, four, index, types.UniTuple(index, 2), work, index, index, places, own, index
    ), codegen


def _numbers_per_element(sources: Sequence[Any]) -> int:
    """How many rows of `work` go with an element: the pivot; or high, low and rstd."""
    return 1 if len(sources) == 1 else 3


@primitive
def add_run(typingctx: Any, a: Any, o: Any, to: Any, p: Any, m: Any) -> Any:
    """to[p + j] += a[o + j] for j in [0, m); `to` may be the wider of the two."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide = context.get_value_type(sig.args[2].dtype)
        parts, totals = (Elements(context, builder, sig.args[k], args[k], wide).at(args[k + 1]) for k in (0, 2))

        def emit(j: ir.Value, count: int, mask: Mask) -> None:
            totals.store(j, builder.fadd(totals.load(j, count, mask), parts.load(j, count, mask)), mask=mask)

        loop(builder, args[4], emit)
        return context.get_dummy_value()

    return types.void(a, types.intp, to, types.intp, types.intp), codegen


@primitive
def multiply_run(typingctx: Any, a: Any, by: Any, m: Any) -> Any:
    """a[j] *= by[j] for j in [0, m)."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide = context.get_value_type(sig.args[0].dtype)
        values, factors = (Elements(context, builder, sig.args[k], args[k], wide) for k in range(2))

        def emit(j: ir.Value, count: int, mask: Mask) -> None:
            values.store(j, builder.fmul(values.load(j, count, mask), factors.load(j, count, mask)), mask=mask)

        loop(builder, args[2], emit)
        return context.get_dummy_value()

    return types.void(a, by, types.intp), codegen


@primitive
def fold_lanes(typingctx: Any, a: Any, sets: Any, lanes: Any) -> Any:
    """a[k] = the sum of a[k * lanes : (k + 1) * lanes] for k in [0, sets): vectors of them are added up, then their lanes."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide, intp = context.get_value_type(sig.args[0].dtype), args[1].type
        values = Elements(context, builder, sig.args[0], args[0], wide)
        slot = cgutils.alloca_once(builder, ir.VectorType(wide, STEP))
        with cgutils.for_range_slice(builder, intp(0), args[1], intp(1), intp) as (k, _):
            own = values.at(builder.mul(k, args[2]))
            builder.store(splat(builder, ir.Constant(wide, 0.0), STEP), slot)

            def emit(j: ir.Value, count: int, mask: Mask) -> None:
                builder.store(builder.fadd(builder.load(slot), own.load(j, count, mask)), slot)

            loop(builder, args[2], emit)
            values.store(k, _fold(builder, builder.load(slot)))
        return context.get_dummy_value()

    return types.void(a, types.intp, types.intp), codegen


@primitive
def spread_lanes(typingctx: Any, a: Any, sets: Any, lanes: Any) -> Any:
    """a[k * lanes : (k + 1) * lanes] = a[k] for k in [0, sets), the last one first."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide, intp = context.get_value_type(sig.args[0].dtype), args[1].type
        values = Elements(context, builder, sig.args[0], args[0], wide)
        with cgutils.for_range_slice(builder, intp(0), args[1], intp(1), intp) as (back, _):
            k = builder.sub(builder.sub(args[1], back), intp(1))
            number, own = values.load(k, 1), values.at(builder.mul(k, args[2]))
            loop(builder, args[2], lambda j, count, mask: own.store(j, splat(builder, number, count), mask=mask))
        return context.get_dummy_value()

    return types.void(a, types.intp, types.intp), codegen


def _fold(builder: ir.IRBuilder, lanes: ir.Value) -> ir.Value:
    """The lanes of a vector added in halves: the same tree as in `blocks.sum_block`."""
    while lanes.type.count > 1:
        half = lanes.type.count // 2
        index = ir.VectorType(ir.IntType(32), half)
        low, high = (
            builder.shuffle_vector(lanes, lanes, ir.Constant(index, list(range(start, start + half)))) for start in (0, half)
        )
        lanes = builder.fadd(low, high)
    return builder.extract_element(lanes, ir.Constant(ir.IntType(32), 0))


_AHEAD = 2048  # bytes asked for ahead: statistics of 128 MiB take 4.2 ms so, 7.4 without (2 cores, 2026-11)


@primitive
def sum_run(
    typingctx: Any, x: Any, o: Any, dy: Any, p: Any, m: Any, numbers: Any, moving: Any, at: Any, vary: Any, own: Any
) -> Any:
    """The two sums over m neighbouring elements of one set, all lanes in registers.

    numbers: (high, low, rstd), or a pivot for high. moving: the arrays of numbers that change along a set, None, (weight,)
    or (high, low, rstd), read at + j where `vary` is set, else at `at` for the whole run; but a weight that does not vary is
    left out. Where it varies and own, None or 2 x n, is not empty, dy and dy * x_hat of each element are added to its rows
    too, from `at` on.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide = context.get_value_type(sig.args[5][0])
        table = None if isinstance(own, types.NoneType) else Table(context, builder, sig.args[9], args[9])
        rows = [] if table is None else [table.row(ir.Constant(args[4].type, k)).at(args[7]) for k in range(2)]
        sources = sources_of(context, builder, sig, args, wide)
        intp = args[4].type
        zero, lanes = (ir.Constant(intp, k) for k in (0, LANES))
        row_type = ir.VectorType(wide, LANES)
        none = ir.Constant(row_type, [0.0] * LANES)
        totals = [cgutils.alloca_once_value(builder, none) for _ in range(2)]
        strip = [cgutils.alloca_once(builder, row_type) for _ in range(2)]
        movers = elements_of(context, builder, sig.args[6], args[6], wide)
        movers = [mover.at(args[7]) for mover in movers]
        needed = 1 if len(sources) == 1 else 0 if len(movers) == 3 else 3
        fixed = cgutils.unpack_tuple(builder, args[5], 3)[:needed]

        def add(terms: Any, to: list[ir.Value]) -> None:
            for slot, term in zip(to, terms, strict=True):
                builder.store(builder.fadd(builder.load(slot), term), slot)

        def run(varying: bool, collecting: bool = False) -> None:
            moved = [] if varying or len(movers) == 1 else [mover.load(zero, 1) for mover in movers]
            still = [*fixed, *moved]
            splats = [splat(builder, v, LANES) for v in still]

            def terms(j: ir.Value, mask: Mask = None) -> list[ir.Value]:
                """What LANES elements add; 0 for those that are not in the mask."""
                along = [mover.load(j, LANES, mask) for mover in movers] if varying else []
                values, numbers = [source.load(j, LANES, mask) for source in sources], [*splats, *along]
                for source in sources:
                    for line in range(0, LANES, CACHE_LINE // source.size):
                        source.prefetch(builder.add(j, intp(_AHEAD // source.size + line)), write=0)
                if collecting:
                    for part, term in zip(rows, terms_of(builder, values, numbers[:3]), strict=True):
                        part.store(j, builder.fadd(part.load(j, LANES, mask), term), mask=mask)
                found = terms_of(builder, values, numbers)
                return [term if mask is None else builder.select(mask, term, none) for term in found]

            whole = builder.and_(args[4], ir.Constant(intp, -LANES))
            with cgutils.for_range_slice(builder, zero, args[4], ir.Constant(intp, STRIP), intp) as (start, _):
                for slot in strip:
                    builder.store(none, slot)
                end = builder.add(start, ir.Constant(intp, STRIP))
                stop = builder.select(builder.icmp_signed("<", end, whole), end, whole)
                with cgutils.for_range_slice(builder, start, stop, lanes, intp) as (j, _):
                    add(terms(j), strip)
                with (
                    builder.if_then(builder.icmp_signed(">", end, args[4])),
                    builder.if_then(builder.icmp_signed("<", whole, args[4])),
                ):
                    add(terms(whole, first_lanes(builder, builder.sub(args[4], whole), LANES)), strip)
                add([builder.load(slot) for slot in strip], totals)

        if movers:
            with builder.if_else(cgutils.is_true(builder, args[8])) as (then, otherwise):
                with then:
                    if table is None:
                        run(varying=True)
                    else:
                        wanted = builder.icmp_signed(">", table.length, zero)
                        with builder.if_else(wanted) as (collect, pass_by):
                            with collect:
                                run(varying=True, collecting=True)
                            with pass_by:
                                run(varying=True)
                with otherwise:
                    run(varying=False)
        else:
            run(varying=False)
        return cgutils.pack_array(builder, [_fold(builder, builder.load(slot)) for slot in totals])

    index = types.intp
    flag = types.boolean
    return types.UniTuple(numbers[0], 2)(x, index, dy, index, index, numbers, moving, index, flag, own), codegen
