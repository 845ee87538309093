"""What is done to whole rows of a task's buffers, as explicit SIMD."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .loops import loop
from .registers import fold, splat
from .simd import STEP, Elements, Mask, Table, primitive


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
def subtract_high(typingctx: Any, mean: Any, low: Any, o: Any, high: Any, m: Any, to: Any) -> Any:
    """to[j] = (mean[o + j] - high[j]) + low[o + j] for j in [0, m), in float64: the low part of a centre."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide = ir.DoubleType()
        means, lows = (Elements(context, builder, sig.args[k], args[k], wide).at(args[2]) for k in (0, 1))
        highs, result = (Elements(context, builder, sig.args[k], args[k], wide) for k in (3, 5))

        def emit(j: ir.Value, count: int, mask: Mask) -> None:
            rest = builder.fsub(means.load(j, count, mask), highs.load(j, count, mask))
            result.store(j, builder.fadd(rest, lows.load(j, count, mask)), mask=mask)

        loop(builder, args[4], emit)
        return context.get_dummy_value()

    return types.void(mean, low, types.intp, high, types.intp, to), codegen


@primitive
def multiply_run(typingctx: Any, a: Any, by: Any, m: Any) -> Any:
    """a[j] *= by[j] for j in [0, m); or `by`, where that is a number."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide = context.get_value_type(sig.args[0].dtype)
        values = Elements(context, builder, sig.args[0], args[0], wide)
        factors = Elements(context, builder, sig.args[1], args[1], wide) if isinstance(sig.args[1], types.Array) else None

        def emit(j: ir.Value, count: int, mask: Mask) -> None:
            factor = splat(builder, args[1], count) if factors is None else factors.load(j, count, mask)
            values.store(j, builder.fmul(values.load(j, count, mask), factor), mask=mask)

        loop(builder, args[2], emit)
        return context.get_dummy_value()

    return types.void(a, by if isinstance(by, types.Array) else a.dtype, types.intp), codegen


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
            values.store(k, fold(builder, builder.load(slot)))
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


@primitive
def repeat(typingctx: Any, a: Any, rows: Any, width: Any, length: Any) -> Any:
    """a[row, j] = a[row, j % width] for j in [0, length), for the first rows of a: what is laid doubles each time."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        table, (_, rows, width, length) = Table(context, builder, sig.args[0], args[0]), args
        with cgutils.for_range_slice(builder, rows.type(0), rows, rows.type(1), rows.type) as (k, _):
            row, start = table.row(k), builder.block
            test, body, done = (builder.append_basic_block(name) for name in ("test", "body", "done"))
            builder.branch(test)
            builder.position_at_end(test)
            laid = builder.phi(width.type)
            laid.add_incoming(width, start)
            wanted = builder.sub(length, laid)
            builder.cbranch(builder.icmp_signed(">", wanted, width.type(0)), body, done)
            builder.position_at_end(body)
            more, to = builder.select(builder.icmp_signed("<", laid, wanted), laid, wanted), row.at(laid)
            loop(builder, more, lambda j, count, mask: to.store(j, row.load(j, count, mask), mask=mask))
            laid.add_incoming(builder.add(laid, more), builder.block)
            builder.branch(test)
            builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(a, types.intp, types.intp, types.intp), codegen
