"""The sums, as explicit SIMD: what adds up every element is written here, once, in LLVM vectors.

Plain Numba loops would leave the order of a sum to the compiler (with `reassoc`) or leave it scalar (without), and would
check pointers for overlap before each run. Here the lanes are part of the definition: a sum is LANES partial sums, element
i of a set belongs to lane i % LANES, and no fast-math flag is set anywhere. So a set gives the same bits in every kernel,
schedule, thread count and vector width.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .simd import Elements, loop, primitive, splat

LANES = 32  # partial sums per set: two AVX-512 registers or four of AVX2 hide the latency of an addition
STRIP = 8 * LANES  # positions summed in one go; strips add up to a block: 16 roundings in a row at most, not 64


@primitive
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


@primitive
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


@primitive
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
    """The lanes of a vector added in halves: the same tree as in `kernels._sum_block`."""
    while lanes.type.count > 1:
        half = lanes.type.count // 2
        index = ir.VectorType(ir.IntType(32), half)
        low, high = (
            builder.shuffle_vector(lanes, lanes, ir.Constant(index, list(range(start, start + half)))) for start in (0, half)
        )
        lanes = builder.fadd(low, high)
    return builder.extract_element(lanes, ir.Constant(ir.IntType(32), 0))


@primitive
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
