"""The inner loops, as explicit SIMD: what touches every element is written here, once, in LLVM vectors.

Plain Numba loops would leave the order of a sum to the compiler (with `reassoc`) or leave it scalar (without), and would
check pointers for overlap before each run. Here the lanes are part of the definition: a sum is LANES partial sums, element
i of a set belongs to lane i % LANES, and no fast-math flag is set anywhere. So a set gives the same bits in every kernel,
schedule, thread count and vector width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .simd import STEP, Elements, loop, splat, store_loop

LANES = 32  # partial sums per set: two AVX-512 registers or four of AVX2 hide the latency of an addition
STRIP = 8 * LANES  # positions summed in one go; strips add up to a block: 16 roundings in a row at most, not 64

_primitive: Callable[[Callable[..., Any]], Any] = intrinsic


@_primitive
def out_of_line(typingctx: Any) -> Any:
    """Compile the calling function once, for size: not again wherever it is called, and no loop of it unrolled.

    All its speed is in the explicit loops of this module. First call of a forward: 28 s without, 10 s with both.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        for attribute in ("noinline", "optsize"):
            builder.function.attributes.add(attribute)
        return context.get_dummy_value()

    return types.void(), codegen


@_primitive
def read(typingctx: Any, a: Any, i: Any, real: Any) -> Any:
    """One element of flat array `a` as a number of type `real`."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide = context.get_value_type(sig.return_type)
        return Elements(context, builder, sig.args[0], args[0], wide).load(args[1], 1)

    return real.instance_type(a, types.intp, real), codegen


@_primitive
def write(typingctx: Any, a: Any, i: Any, value: Any) -> Any:
    """Store one number into flat array `a`, rounded to its dtype."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        Elements(context, builder, sig.args[0], args[0], args[2].type).store(args[1], args[2])
        return context.get_dummy_value()

    return types.void(a, types.intp, value), codegen


@_primitive
def copy_run(typingctx: Any, x: Any, o: Any, m: Any, y: Any, p: Any) -> Any:
    """y[p + j] = x[o + j] for j in [0, m), converted; one of the two is in the accumulator's dtype."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        kinds = (sig.args[0].dtype, sig.args[3].dtype)
        double = types.float64 in kinds or any(isinstance(kind, types.Integer) and kind.bitwidth > 16 for kind in kinds)
        wide = ir.DoubleType() if double else ir.FloatType()
        source = Elements(context, builder, sig.args[0], args[0], wide).at(args[1])
        result = Elements(context, builder, sig.args[3], args[3], wide).at(args[4])
        loop(builder, args[2], lambda j, count: result.store(j, source.load(j, count)))
        return context.get_dummy_value()

    return types.void(x, types.intp, types.intp, y, types.intp), codegen


@_primitive
def accumulate(typingctx: Any, x: Any, o: Any, m: Any, rows: Any, pivot: Any, s: Any, q: Any, at: Any) -> Any:
    """s[at + j] += d and q[at + j] += d * d, d = x[o + r m + j] - pivot[at + j], for j in [0, m), row by row r < rows."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide = context.get_value_type(sig.args[5].dtype)
        first = Elements(context, builder, sig.args[0], args[0], wide).at(args[1])
        pivots, sums, squares = (Elements(context, builder, sig.args[k], args[k], wide).at(args[7]) for k in (4, 5, 6))
        zero, one = (ir.Constant(args[1].type, k) for k in (0, 1))
        with cgutils.for_range_slice(builder, zero, args[3], one, zero.type) as (row, _):
            source = first.at(builder.mul(row, args[2]))

            def emit(j: ir.Value, count: int) -> None:
                d = builder.fsub(source.load(j, count), pivots.load(j, count))
                sums.store(j, builder.fadd(sums.load(j, count), d))
                squares.store(j, builder.fadd(squares.load(j, count), builder.fmul(d, d)))

            loop(builder, args[2], emit)
        return context.get_dummy_value()

    index = types.intp
    return types.void(x, index, index, index, pivot, s, q, index), codegen


@_primitive
def fill(typingctx: Any, a: Any, m: Any) -> Any:
    """a[j] = 0 for j in [0, m)."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide = context.get_value_type(sig.args[0].dtype)
        values = Elements(context, builder, sig.args[0], args[0], wide)
        loop(builder, args[1], lambda j, count: values.store(j, splat(builder, ir.Constant(wide, 0.0), count)))
        return context.get_dummy_value()

    return types.void(a, types.intp), codegen


@_primitive
def add_run(typingctx: Any, a: Any, m: Any) -> Any:
    """a[j] += a[m + j] for j in [0, m)."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide = context.get_value_type(sig.args[0].dtype)
        low = Elements(context, builder, sig.args[0], args[0], wide)
        high = low.at(args[1])
        loop(builder, args[1], lambda j, count: low.store(j, builder.fadd(low.load(j, count), high.load(j, count))))
        return context.get_dummy_value()

    return types.void(a, types.intp), codegen


@_primitive
def prefetch(typingctx: Any, a: Any, o: Any, m: Any, write: Any) -> Any:
    """Ask for the cache lines of a[o : o + m]; `write` is a literal."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        elements = Elements(context, builder, sig.args[0], args[0], ir.FloatType()).at(args[1])
        byte, i32, intp = ir.IntType(8).as_pointer(), ir.IntType(32), args[1].type
        kind = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
        ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        line = ir.Constant(intp, max(1, 64 // elements.size))
        with cgutils.for_range_slice(builder, ir.Constant(intp, 0), args[2], line, intp) as (j, _):
            pointer = builder.bitcast(builder.gep(elements.data, [j]), byte)
            builder.call(ask, [pointer, i32(int(write.literal_value)), i32(3), i32(1)])
        return context.get_dummy_value()

    if not isinstance(write, types.Literal):
        return None
    return types.void(a, types.intp, types.intp, write), codegen


@_primitive
def fence(typingctx: Any) -> Any:
    """Order streamed stores, which are weakly ordered, before what follows."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@_primitive
def flush(typingctx: Any, s: Any, total: Any, m: Any) -> Any:
    """total[j] += s[j], then s[j] = 0, for j in [0, m)."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide = context.get_value_type(sig.args[0].dtype)
        sums, totals = (Elements(context, builder, sig.args[k], args[k], wide) for k in range(2))

        def emit(j: ir.Value, count: int) -> None:
            totals.store(j, builder.fadd(totals.load(j, count), sums.load(j, count)))
            sums.store(j, splat(builder, ir.Constant(wide, 0.0), count))

        loop(builder, args[2], emit)
        return context.get_dummy_value()

    return types.void(s, total, types.intp), codegen


@_primitive
def accumulate_rows(typingctx: Any, x: Any, o: Any, rows: Any, pivot: Any, s: Any, q: Any) -> Any:
    """`accumulate` over `rows` neighbouring rows of LANES elements of one set, the sums held in registers."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide = context.get_value_type(sig.args[4].dtype)
        arrays = (Elements(context, builder, sig.args[k], args[k], wide) for k in (0, 3, 4, 5))
        source, pivots, sums, squares = arrays
        intp = args[1].type
        zero, one, lanes = (ir.Constant(intp, k) for k in (0, 1, LANES))
        pivot_row = splat(builder, pivots.load(zero, 1), LANES)
        held = [cgutils.alloca_once_value(builder, part.load(zero, LANES)) for part in (sums, squares)]
        with cgutils.for_range_slice(builder, zero, args[2], one, intp) as (row, _):
            d = builder.fsub(source.at(args[1]).load(builder.mul(row, lanes), LANES), pivot_row)
            for slot, term in zip(held, (d, builder.fmul(d, d)), strict=True):
                builder.store(builder.fadd(builder.load(slot), term), slot)
        for part, slot in zip((sums, squares), held, strict=True):
            part.store(zero, builder.load(slot))
        return context.get_dummy_value()

    return types.void(x, types.intp, types.intp, pivot, s, q), codegen


def _fold(builder: ir.IRBuilder, lanes: ir.Value) -> ir.Value:
    """The lanes of a vector added in halves: the same tree as in `kernels._sum_block`."""
    while lanes.type.count > 1:
        half = lanes.type.count // 2
        index = ir.VectorType(ir.IntType(32), half)
        low, high = (
            builder.shuffle_vector(lanes, lanes, ir.Constant(index, list(range(start, start + half)))) for start in (0, half)
        )
        lanes = builder.fadd(low, high)
    return builder.extract_element(lanes, ir.Constant(ir.IntType(32), 0))


@_primitive
def sum_run(typingctx: Any, x: Any, o: Any, m: Any, pivot: Any) -> Any:
    """(sum of d, sum of d * d), d = x[o + j] - pivot, for j in [0, m) of one set: all lanes in registers."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide = context.get_value_type(sig.args[3])
        source = Elements(context, builder, sig.args[0], args[0], wide).at(args[1])
        intp = args[2].type
        zero, one, lanes = (ir.Constant(intp, k) for k in (0, 1, LANES))
        row_type = ir.VectorType(wide, LANES)
        pivot_row, none = splat(builder, args[3], LANES), ir.Constant(row_type, [0.0] * LANES)
        totals = [cgutils.alloca_once_value(builder, none) for _ in range(2)]
        strip = [cgutils.alloca_once(builder, row_type) for _ in range(2)]

        def add(terms: tuple[ir.Value, ir.Value], to: list[ir.Value]) -> None:
            for slot, term in zip(to, terms, strict=True):
                builder.store(builder.fadd(builder.load(slot), term), slot)

        def add_row(d: ir.Value) -> None:
            add((d, builder.fmul(d, d)), strip)

        whole = builder.and_(args[2], ir.Constant(intp, -LANES))
        with cgutils.for_range_slice(builder, zero, args[2], ir.Constant(intp, STRIP), intp) as (start, _):
            for slot in strip:
                builder.store(none, slot)
            end = builder.add(start, ir.Constant(intp, STRIP))
            stop = builder.select(builder.icmp_signed("<", end, whole), end, whole)
            with cgutils.for_range_slice(builder, start, stop, lanes, intp) as (j, _):
                add_row(builder.fsub(source.load(j, LANES), pivot_row))
            with (
                builder.if_then(builder.icmp_signed(">", end, args[2])),
                builder.if_then(builder.icmp_signed("<", whole, args[2])),
            ):
                rest = cgutils.alloca_once(builder, row_type)  # the last row, filled up with zero differences
                builder.store(none, rest)
                slots = builder.bitcast(rest, wide.as_pointer())
                with cgutils.for_range_slice(builder, whole, args[2], one, intp) as (j, _):
                    d = builder.fsub(source.load(j, 1), args[3])
                    builder.store(d, builder.gep(slots, [builder.sub(j, whole)]))
                add_row(builder.load(rest))
            add((builder.load(strip[0]), builder.load(strip[1])), totals)
        return cgutils.pack_array(builder, [_fold(builder, builder.load(slot)) for slot in totals])

    return types.UniTuple(pivot, 2)(x, types.intp, types.intp, pivot), codegen


def _standardize(builder: ir.IRBuilder, x: ir.Value, operands: tuple[ir.Value, ...]) -> ir.Value:
    """((x - high) - low) * rstd * weight + bias: the one formula; the centre has two parts (DESIGN section 5)."""
    high, low, rstd, weight, bias = operands
    x_hat = builder.fmul(builder.fsub(builder.fsub(x, high), low), rstd)
    return builder.fadd(builder.fmul(x_hat, weight), bias)


@_primitive
def apply_lanes(typingctx: Any, x: Any, o: Any, y: Any, p: Any, m: Any, operands: Any, stream: Any) -> Any:
    """y[p + j] = standardize(x[o + j]) for j in [0, m), every operand its own vector: rows of operands (5, >= m)."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide = context.get_value_type(sig.args[5].dtype)
        source = Elements(context, builder, sig.args[0], args[0], wide).at(args[1])
        result = Elements(context, builder, sig.args[2], args[2], wide).at(args[3])
        table = Elements(context, builder, sig.args[5], args[5], wide)
        length = cgutils.unpack_tuple(builder, context.make_array(sig.args[5])(context, builder, args[5]).shape, 2)[1]
        rows = [table.at(builder.mul(length, ir.Constant(length.type, k))) for k in range(5)]

        def emit(j: ir.Value, count: int, streaming: bool) -> None:
            values = tuple(row.load(j, count) for row in rows)
            result.store(j, _standardize(builder, source.load(j, count), values), streaming)

        store_loop(builder, args[4], emit, result, args[6])
        return context.get_dummy_value()

    return types.void(x, types.intp, y, types.intp, types.intp, operands, types.boolean), codegen


@_primitive
def apply_run(
    typingctx: Any, x: Any, o: Any, y: Any, p: Any, m: Any, centre: Any, affine: Any, w: Any, b: Any, vary: Any, stream: Any
) -> Any:
    """y[p + j] = standardize(x[o + j]) for j in [0, m) of one set, centre = (high, low, rstd).

    affine = (weight, bias): where `vary` is set, weight[w + j] and bias[b + j], else weight[w] and bias[b] for the whole run.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide = context.get_value_type(sig.args[5].dtype)
        source = Elements(context, builder, sig.args[0], args[0], wide).at(args[1])
        result = Elements(context, builder, sig.args[2], args[2], wide).at(args[3])
        pair = cgutils.unpack_tuple(builder, args[6], 2)
        affine_parts = [Elements(context, builder, sig.args[6][k], pair[k], wide).at(args[7 + k]) for k in range(2)]
        scalars = cgutils.unpack_tuple(builder, args[5], 3)
        zero = ir.Constant(args[1].type, 0)

        def run(varying: bool) -> None:
            fixed = [] if varying else [part.load(zero, 1) for part in affine_parts]
            splats = {count: [splat(builder, v, count) for v in (*scalars, *fixed)] for count in (1, STEP)}

            def emit(j: ir.Value, count: int, streaming: bool) -> None:
                moving = [part.load(j, count) for part in affine_parts] if varying else []
                operands = (*splats[count], *moving)
                result.store(j, _standardize(builder, source.load(j, count), operands), streaming)

            store_loop(builder, args[4], emit, result, args[10])

        with builder.if_else(cgutils.is_true(builder, args[9])) as (then, otherwise):
            with then:
                run(varying=True)
            with otherwise:
                run(varying=False)
        return context.get_dummy_value()

    index, flag = types.intp, types.boolean
    return types.void(x, index, y, index, index, centre, affine, index, index, flag, flag), codegen
