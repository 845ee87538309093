"""Primitives that move elements: read, write, copy; and how a kernel is compiled."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import impl_ret_borrowed
from numba.np.arrayobj import populate_array

from .loops import loop
from .registers import larger, smaller
from .simd import CACHE_LINE, Elements, Mask, primitive

_BYTES = ir.IntType(8).as_pointer()


@primitive
def out_of_line(typingctx: Any) -> Any:
    """Compile the calling function once, for size: not again wherever it is called, and no loop of it unrolled.

    All its speed is in the explicit loops of `simd`. First call for channels last: 4.2 s so, 4.8 without.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        for attribute in ("noinline", "optsize"):
            builder.function.attributes.add(attribute)
        return context.get_dummy_value()

    return types.void(), codegen


@primitive
def on_its_own(typingctx: Any) -> Any:
    """Compile the calling function once, for speed: Numba's own loops in it become SIMD."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), codegen


def _origin(builder: ir.IRBuilder, data: ir.Value) -> ir.Value:
    """Where `scratch` leaves what `malloc` gave: before the aligned memory."""
    return builder.gep(builder.bitcast(data, _BYTES.as_pointer()), [ir.IntType(64)(-1)])


@primitive
def scratch(typingctx: Any, rows: Any, columns: Any, like: Any) -> Any:
    """Memory for a two-dimensional array of the dtype of `like`, to be given back by `release`; None where that is None.

    It is aligned to cache lines: where rows are whole lines, every vector is in one.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        if isinstance(sig.return_type, types.NoneType):
            return context.get_dummy_value()
        intp = args[0].type
        array = context.make_array(sig.return_type)(context, builder)
        size = context.get_abi_sizeof(context.get_data_type(sig.return_type.dtype))
        step = builder.mul(args[1], intp(size))
        kind = ir.FunctionType(_BYTES, [intp])
        wanted = builder.add(builder.mul(args[0], step), intp(2 * CACHE_LINE))
        found = builder.call(cgutils.get_or_insert_function(builder.module, kind, "malloc"), [wanted])
        with cgutils.if_unlikely(builder, builder.icmp_unsigned("==", found, ir.Constant(_BYTES, None))):
            context.call_conv.return_user_exc(builder, MemoryError, ("normkit found no memory for the buffers of a kernel",))
        start = builder.add(builder.ptrtoint(found, intp), intp(2 * CACHE_LINE - 1))
        data = builder.inttoptr(builder.and_(start, intp(-CACHE_LINE)), array.data.type)
        builder.store(found, _origin(builder, data))
        populate_array(array, data, [args[0], args[1]], [step, intp(size)], intp(size), None)
        return array._getvalue()

    kind = types.none if isinstance(like, types.NoneType) else types.Array(like.dtype, 2, "C")
    return kind(types.intp, types.intp, like), codegen


@primitive
def release(typingctx: Any, array: Any) -> Any:
    """Give back the memory of `scratch`."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        if isinstance(sig.args[0], types.NoneType):
            return context.get_dummy_value()
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        kind = ir.FunctionType(ir.VoidType(), [_BYTES])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "free"), [builder.load(_origin(builder, data))])
        return context.get_dummy_value()

    return types.void(array), codegen


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

        def emit(j: ir.Value, count: int, mask: Mask) -> None:
            result.store(j, source.load(j, count, mask), mask=mask)

        loop(builder, args[2], emit)
        return context.get_dummy_value()

    return types.void(x, types.intp, types.intp, y, types.intp), codegen


@primitive
def least(typingctx: Any, a: Any, b: Any) -> Any:
    """The smaller of two integers. Python's `min` and `max`, which Numba compiles as functions, take 0.3 s of a first call."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return smaller(builder, *args)

    return types.intp(types.intp, types.intp), codegen


@primitive
def most(typingctx: Any, a: Any, b: Any) -> Any:
    """The larger of two integers."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return larger(builder, *args)

    return types.intp(types.intp, types.intp), codegen


@primitive
def beside(typingctx: Any, given: Any, buffer: Any) -> Any:
    """`buffer` for the elements of an optional array; None where that is None."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        if isinstance(sig.return_type, types.NoneType):
            return context.get_dummy_value()
        return impl_ret_borrowed(context, builder, sig.return_type, args[1])

    return (types.none if isinstance(given, types.NoneType) else buffer)(given, buffer), codegen


@primitive
def pick(typingctx: Any, given: Any, there: Any, absent: Any) -> Any:
    """The function `there` where an optional argument is given, else `absent`. The other one is not compiled."""
    kind = absent if isinstance(given, types.NoneType) else there

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return args[2 if isinstance(sig.args[0], types.NoneType) else 1]

    return kind(given, there, absent), codegen


@primitive
def fence(typingctx: Any) -> Any:
    """Order streamed stores, which are weakly ordered, before what follows."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen
