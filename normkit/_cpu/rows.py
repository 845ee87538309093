"""What is done to whole rows of a task's buffers, as explicit SIMD."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from . import formulas
from .buffers import HIGH, LOW, MEAN, MEAN_LOW, RSTD, SET_RSTD
from .loops import loop
from .registers import fold, splat
from .simd import STEP, Elements, Mask, Table, primitive


@contextmanager
def _each(builder: ir.IRBuilder, count: ir.Value) -> Iterator[ir.Value]:
    """A loop over [0, count)."""
    with cgutils.for_range_slice(builder, count.type(0), count, count.type(1), count.type) as (k, _):
        yield k


def _set_rows(context: Any, builder: ir.IRBuilder, sig: Any, args: Any, wide: ir.Type, value: Callable[..., ir.Value]) -> None:
    """Set all elements of some rows of a table to value(row, row to set, j, count, mask).

    args: the other table, row and offset; the same of the one to set; rows; elements of each.
    """
    tables = [(Table(context, builder, sig.args[k], args[k], wide), *args[k + 1 : k + 3]) for k in (0, 3)]
    with _each(builder, args[6]) as k:
        given, to = (table.row(builder.add(row, k)).at(offset) for table, row, offset in tables)
        loop(builder, args[7], lambda j, count, mask: to.store(j, value(given, to, j, count, mask), mask=mask))


@primitive
def add_rows(typingctx: Any, a: Any, row: Any, o: Any, to: Any, row_to: Any, p: Any, rows: Any, m: Any) -> Any:
    """to[row_to + k, p + j] += a[row + k, o + j] for k in [0, rows) and j in [0, m); `to` may be the wider of the two."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        def total(part: Elements, before: Elements, *at: Any) -> ir.Value:
            return builder.fadd(before.load(*at), part.load(*at))

        _set_rows(context, builder, sig, args, context.get_value_type(sig.args[3].dtype), total)
        return context.get_dummy_value()

    index = types.intp
    return types.void(a, index, index, to, index, index, index, index), codegen


@primitive
def copy_rows(typingctx: Any, a: Any, row: Any, o: Any, to: Any, row_to: Any, p: Any, rows: Any, m: Any) -> Any:
    """to[row_to + k, p + j] = a[row + k, o + j] for k in [0, rows) and j in [0, m), converted."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        double = types.float64 in (sig.args[0].dtype, sig.args[3].dtype)
        wide = ir.DoubleType() if double else ir.FloatType()
        _set_rows(context, builder, sig, args, wide, lambda given, _, *at: given.load(*at))
        return context.get_dummy_value()

    index = types.intp
    return types.void(a, index, index, to, index, index, index, index), codegen


@primitive
def clear_rows(typingctx: Any, a: Any, row: Any, o: Any, rows: Any, m: Any) -> Any:
    """a[row + k, o + j] = 0 for k in [0, rows) and j in [0, m)."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        table, (_, row, o, rows, m) = Table(context, builder, sig.args[0], args[0]), args
        zero = ir.Constant(table.start.wide, 0.0)
        with _each(builder, rows) as k:
            line = table.row(builder.add(row, k)).at(o)
            loop(builder, m, lambda j, count, mask: line.store(j, splat(builder, zero, count), mask=mask))
        return context.get_dummy_value()

    index = types.intp
    return types.void(a, index, index, index, index), codegen


@primitive
def lay_centres(typingctx: Any, sets: Any, first: Any, m: Any, work: Any) -> Any:
    """Rows HIGH, LOW and RSTD of work: the centre in two parts, and the scale, of m sets from `first` on."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        given, to = (Table(context, builder, sig.args[k], args[k]) for k in (0, 3))
        intp, wide = args[1].type, to.start.wide
        sources = [given.row(intp(row)).at(args[1]) for row in (MEAN, MEAN_LOW, SET_RSTD)]
        results = [to.row(intp(row)) for row in (HIGH, LOW, RSTD)]

        def emit(j: ir.Value, count: int, mask: Mask) -> None:
            mean, low, scale = (source.load(j, count, mask) for source in sources)
            for result, values in zip(results, formulas.in_accumulator(builder, mean, low, scale, wide), strict=True):
                result.store(j, values, mask=mask)

        loop(builder, args[2], emit)
        return context.get_dummy_value()

    return types.void(sets, types.intp, types.intp, work), codegen


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
def fold_lanes(typingctx: Any, a: Any, row: Any, rows: Any, sets: Any, lanes: Any) -> Any:
    """line[k] = the sum of line[k * lanes : (k + 1) * lanes] for k in [0, sets), in rows of a.

    Vectors of them are added up, then their lanes.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        table, (_, row, rows, sets, lanes) = Table(context, builder, sig.args[0], args[0]), args
        wide = table.start.wide
        slot = cgutils.alloca_once(builder, ir.VectorType(wide, STEP))
        with _each(builder, rows) as line, _each(builder, sets) as k:
            values = table.row(builder.add(row, line))
            own = values.at(builder.mul(k, lanes))
            builder.store(splat(builder, ir.Constant(wide, 0.0), STEP), slot)

            def emit(j: ir.Value, count: int, mask: Mask) -> None:
                builder.store(builder.fadd(builder.load(slot), own.load(j, count, mask)), slot)

            loop(builder, lanes, emit)
            values.store(k, fold(builder, builder.load(slot)))
        return context.get_dummy_value()

    index = types.intp
    return types.void(a, index, index, index, index), codegen


@primitive
def spread_lanes(typingctx: Any, a: Any, row: Any, rows: Any, sets: Any, lanes: Any) -> Any:
    """line[k * lanes : (k + 1) * lanes] = line[k] for k in [0, sets), the last one first, in rows of a."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        table, (_, row, rows, sets, lanes) = Table(context, builder, sig.args[0], args[0]), args
        with _each(builder, rows) as line, _each(builder, sets) as back:
            values, k = table.row(builder.add(row, line)), builder.sub(builder.sub(sets, back), sets.type(1))
            number, own = values.load(k, 1), values.at(builder.mul(k, lanes))
            loop(builder, lanes, lambda j, count, mask: own.store(j, splat(builder, number, count), mask=mask))
        return context.get_dummy_value()

    index = types.intp
    return types.void(a, index, index, index, index), codegen


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
