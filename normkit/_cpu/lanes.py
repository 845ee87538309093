"""The sums, as explicit SIMD: what adds up every element is written here, once, in LLVM vectors.

Plain Numba loops would leave the order of a sum to the compiler (with `reassoc`) or leave it scalar (without), and would
check pointers for overlap before each run. Here the lanes are part of the definition: a sum is LANES partial sums, element
i of a set belongs to lane i % LANES, and no fast-math flag is set anywhere. So a set gives the same bits in every kernel,
schedule, thread count and vector width.

Every sum comes in two kinds. Where `dy` is None, statistics: d = x - pivot and d * d. Else a gradient's: g = dy * weight and
g * x_hat. The numbers that go with an element (pivot, or centre, scale and weight) lie in the first rows of `work`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .._formulas import terms_of
from .simd import STEP, Elements, Table, elements_of, loop, primitive, sources_of, splat

TABLE, SPLAT, ALONG = range(3)  # where numbers that move come from
LANES = 32  # partial sums per set: two AVX-512 registers or four of AVX2 hide the latency of an addition
STRIP = 8 * LANES  # positions summed in one go; strips add up to a block: 16 roundings in a row at most, not 64


def _numbers_per_element(sources: list[Elements]) -> int:
    """How many rows of `work` go with an element: the pivot; or high, low, rstd and weight."""
    return 1 if len(sources) == 1 else 4


@primitive
def accumulate(
    typingctx: Any,
    x: Any,
    dy: Any,
    moving: Any,
    at: Any,
    steps: Any,
    m: Any,
    rows: Any,
    work: Any,
    first: Any,
    to: Any,
    mode: Any,
) -> Any:
    """Add m neighbouring elements to lanes of the sums, and so for `rows` rows of them.

    at, steps: offsets in x, -, moving and dy, and how far the next row is. to = (row of work with the first sum, lane there,
    lanes on to the next row). The numbers of the elements start at `first` in work; in mode SPLAT those in `moving`,
    (weight,) or (high, low, rstd), come from there, one for each row, in mode ALONG one for each element.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide = context.get_value_type(sig.args[7].dtype)
        offsets, strides = (cgutils.unpack_tuple(builder, args[k], 4) for k in (3, 4))
        row, lane, lane_step = cgutils.unpack_tuple(builder, args[9], 3)
        arrays = [
            Elements(context, builder, kind, arg, wide)
            for kind, arg in zip(sig.args[:2], args[:2], strict=True)
            if not isinstance(kind, types.NoneType)
        ]
        places = [(offsets[k], strides[k]) for k in (0, 3)]
        movers, table = elements_of(context, builder, sig.args[2], args[2], wide), Table(context, builder, sig.args[7], args[7])
        intp = args[5].type
        zero, one = (ir.Constant(intp, k) for k in (0, 1))
        fixed = [table.row(ir.Constant(intp, k)).at(args[8]) for k in range(_numbers_per_element(arrays))]
        sums = [table.row(builder.add(row, ir.Constant(intp, k))).at(lane) for k in range(2)]

        def emit_rows(kind: int) -> None:
            with cgutils.for_range_slice(builder, zero, args[6], one, intp) as (r, _):
                here = [array.at(start, builder.mul(r, step)) for array, (start, step) in zip(arrays, places, strict=False)]
                own = [part.at(builder.mul(r, lane_step)) for part in sums]
                moved = [mover.at(offsets[2], builder.mul(r, strides[2])) for mover in movers] if kind else []
                still = [mover.load(zero, 1) for mover in moved] if kind == SPLAT else []
                splats = {count: [splat(builder, v, count) for v in still] for count in (1, STEP)}

                def emit(j: ir.Value, count: int) -> None:
                    numbers = (
                        [part.load(j, count) for part in fixed]
                        if not moved or len(moved) == 1
                        else [None] * 3 + [fixed[3].load(j, count)]
                    )
                    if moved:
                        along = splats[count] if kind == SPLAT else [mover.load(j, count) for mover in moved]
                        numbers = [*numbers[:3], *along] if len(moved) == 1 else [*along, numbers[3]]
                    values = [source.load(j, count) for source in here]
                    for part, term in zip(own, terms_of(builder, values, numbers), strict=True):
                        part.store(j, builder.fadd(part.load(j, count), term))

                loop(builder, args[5], emit)

        if not movers:
            emit_rows(TABLE)
            return context.get_dummy_value()
        choice = builder.switch(builder.trunc(args[10], ir.IntType(32)), end := builder.append_basic_block("end"))
        for kind in (TABLE, SPLAT, ALONG):
            block = builder.append_basic_block(f"mode{kind}")
            choice.add_case(ir.Constant(ir.IntType(32), kind), block)
            builder.position_at_end(block)
            emit_rows(kind)
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    index, four = types.intp, types.UniTuple(types.intp, 4)
    return types.void(x, dy, moving, four, four, index, index, work, index, types.UniTuple(index, 3), index), codegen


@primitive
def accumulate_rows(typingctx: Any, x: Any, o: Any, dy: Any, p: Any, rows: Any, work: Any, first: Any, row: Any) -> Any:
    """`accumulate` over `rows` neighbouring rows of LANES elements of one set, each with its numbers, sums in registers."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide = context.get_value_type(sig.args[5].dtype)
        sources, table = sources_of(context, builder, sig, args, wide), Table(context, builder, sig.args[5], args[5])
        intp = args[1].type
        zero, one, lanes = (ir.Constant(intp, k) for k in (0, 1, LANES))
        numbers = [table.row(ir.Constant(intp, k)).at(args[6]) for k in range(_numbers_per_element(sources))]
        sums = [table.row(builder.add(args[7], ir.Constant(intp, k))) for k in range(2)]
        held = [cgutils.alloca_once_value(builder, part.load(zero, LANES)) for part in sums]
        with cgutils.for_range_slice(builder, zero, args[4], one, intp) as (step, _):
            j = builder.mul(step, lanes)
            values, own = ([part.load(j, LANES) for part in parts] for parts in (sources, numbers))
            for slot, term in zip(held, terms_of(builder, values, own), strict=True):
                builder.store(builder.fadd(builder.load(slot), term), slot)
        for part, slot in zip(sums, held, strict=True):
            part.store(zero, builder.load(slot))
        return context.get_dummy_value()

    index = types.intp
    return types.void(x, index, dy, index, index, work, index, index), codegen


@primitive
def flush(typingctx: Any, s: Any, total: Any, m: Any) -> Any:
    """total[j] += s[j], then s[j] = 0, for j in [0, m); total may be the wider of the two."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide = context.get_value_type(sig.args[1].dtype)
        sums, totals = (Elements(context, builder, sig.args[k], args[k], wide) for k in range(2))

        def emit(j: ir.Value, count: int) -> None:
            totals.store(j, builder.fadd(totals.load(j, count), sums.load(j, count)))
            sums.store(j, splat(builder, ir.Constant(wide, 0.0), count))

        loop(builder, args[2], emit)
        return context.get_dummy_value()

    return types.void(s, total, types.intp), codegen


@primitive
def add_run(typingctx: Any, a: Any, m: Any) -> Any:
    """a[j] += a[m + j] for j in [0, m)."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide = context.get_value_type(sig.args[0].dtype)
        low = Elements(context, builder, sig.args[0], args[0], wide)
        high = low.at(args[1])
        loop(builder, args[1], lambda j, count: low.store(j, builder.fadd(low.load(j, count), high.load(j, count))))
        return context.get_dummy_value()

    return types.void(a, types.intp), codegen


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


@primitive
def sum_run(
    typingctx: Any, x: Any, o: Any, dy: Any, p: Any, m: Any, numbers: Any, moving: Any, at: Any, vary: Any, own: Any, c: Any
) -> Any:
    """The two sums over m neighbouring elements of one set, all lanes in registers.

    numbers: (high, low, rstd), or a pivot for high. moving: the arrays of numbers that change along a set, None, (weight,)
    or (high, low, rstd), read at + j where `vary` is set, else at `at` for the whole run. Where they vary and own, None or
    2 x n, is not empty, dy and dy * x_hat of each element are added to its rows too, from c on.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide = context.get_value_type(sig.args[5][0])
        table = None if isinstance(own, types.NoneType) else Table(context, builder, sig.args[9], args[9])
        rows = [] if table is None else [table.row(ir.Constant(args[4].type, k)).at(args[10]) for k in range(2)]
        sources = sources_of(context, builder, sig, args, wide)
        intp = args[4].type
        zero, one, lanes = (ir.Constant(intp, k) for k in (0, 1, LANES))
        row_type = ir.VectorType(wide, LANES)
        none = ir.Constant(row_type, [0.0] * LANES)
        totals = [cgutils.alloca_once_value(builder, none) for _ in range(2)]
        strip = [cgutils.alloca_once(builder, row_type) for _ in range(2)]
        rest = [cgutils.alloca_once(builder, row_type) for _ in range(2)]  # the last row, filled up with zeros
        movers = elements_of(context, builder, sig.args[6], args[6], wide)
        movers = [mover.at(args[7]) for mover in movers]
        needed = 1 if len(sources) == 1 else 0 if len(movers) == 3 else 3
        fixed = cgutils.unpack_tuple(builder, args[5], 3)[:needed]

        def add(terms: Any, to: list[ir.Value]) -> None:
            for slot, term in zip(to, terms, strict=True):
                builder.store(builder.fadd(builder.load(slot), term), slot)

        def run(varying: bool, collecting: bool = False) -> None:
            still = [*fixed, *([] if varying else [mover.load(zero, 1) for mover in movers])]
            splats = {count: [splat(builder, v, count) for v in still] for count in (1, LANES)}

            def terms(j: ir.Value, count: int) -> tuple[ir.Value, ir.Value]:
                along = [mover.load(j, count) for mover in movers] if varying else []
                values, numbers = [source.load(j, count) for source in sources], [*splats[count], *along]
                if collecting:
                    for part, term in zip(rows, terms_of(builder, values, numbers[:3]), strict=True):
                        part.store(j, builder.fadd(part.load(j, count), term))
                return terms_of(builder, values, numbers)

            whole = builder.and_(args[4], ir.Constant(intp, -LANES))
            with cgutils.for_range_slice(builder, zero, args[4], ir.Constant(intp, STRIP), intp) as (start, _):
                for slot in strip:
                    builder.store(none, slot)
                end = builder.add(start, ir.Constant(intp, STRIP))
                stop = builder.select(builder.icmp_signed("<", end, whole), end, whole)
                with cgutils.for_range_slice(builder, start, stop, lanes, intp) as (j, _):
                    add(terms(j, LANES), strip)
                with (
                    builder.if_then(builder.icmp_signed(">", end, args[4])),
                    builder.if_then(builder.icmp_signed("<", whole, args[4])),
                ):
                    slots = [builder.bitcast(slot, wide.as_pointer()) for slot in rest]
                    for slot in rest:
                        builder.store(none, slot)
                    with cgutils.for_range_slice(builder, whole, args[4], one, intp) as (j, _):
                        for slot, term in zip(slots, terms(j, 1), strict=True):
                            builder.store(term, builder.gep(slot, [builder.sub(j, whole)]))
                    add([builder.load(slot) for slot in rest], strip)
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
    return types.UniTuple(numbers[0], 2)(x, index, dy, index, index, numbers, moving, index, flag, own, index), codegen
