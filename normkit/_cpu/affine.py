"""The apply loops, as explicit SIMD: the one formula of a normalized element, along a run or across lanes."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .simd import STEP, Elements, primitive, splat, store_loop


def _standardize(builder: ir.IRBuilder, x: ir.Value, operands: tuple[ir.Value, ...]) -> ir.Value:
    """((x - high) - low) * rstd * weight + bias: the one formula; the centre has two parts (DESIGN section 5)."""
    high, low, rstd, weight, bias = operands
    x_hat = builder.fmul(builder.fsub(builder.fsub(x, high), low), rstd)
    return builder.fadd(builder.fmul(x_hat, weight), bias)


@primitive
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


@primitive
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
