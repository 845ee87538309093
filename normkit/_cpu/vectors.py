"""Primitives that move elements: read, write, copy, fill, prefetch; and how a kernel is compiled."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .simd import Elements, loop, primitive, splat


@primitive
def out_of_line(typingctx: Any) -> Any:
    """Compile the calling function once, for size: not again wherever it is called, and no loop of it unrolled.

    All its speed is in the explicit loops of this module. First call of a forward: 28 s without, 10 s with both.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        for attribute in ("noinline", "optsize"):
            builder.function.attributes.add(attribute)
        return context.get_dummy_value()

    return types.void(), codegen


@primitive
def read(typingctx: Any, a: Any, i: Any, real: Any) -> Any:
    """One element of flat array `a` as a number of type `real`."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide = context.get_value_type(sig.return_type)
        return Elements(context, builder, sig.args[0], args[0], wide).load(args[1], 1)

    return real.instance_type(a, types.intp, real), codegen


@primitive
def write(typingctx: Any, a: Any, i: Any, value: Any) -> Any:
    """Store one number into flat array `a`, rounded to its dtype."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        Elements(context, builder, sig.args[0], args[0], args[2].type).store(args[1], args[2])
        return context.get_dummy_value()

    return types.void(a, types.intp, value), codegen


@primitive
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


@primitive
def fill(typingctx: Any, a: Any, m: Any) -> Any:
    """a[j] = 0 for j in [0, m)."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide = context.get_value_type(sig.args[0].dtype)
        values = Elements(context, builder, sig.args[0], args[0], wide)
        loop(builder, args[1], lambda j, count: values.store(j, splat(builder, ir.Constant(wide, 0.0), count)))
        return context.get_dummy_value()

    return types.void(a, types.intp), codegen


@primitive
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


@primitive
def fence(typingctx: Any) -> Any:
    """Order streamed stores, which are weakly ordered, before what follows."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen
