"""Reading strided elements into a buffer, where they are neighbours."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .compile import jit_inline
from .geometry import BLOCK
from .loops import loop
from .registers import splat
from .simd import Elements, primitive
from .vectors import least


def _read_row(builder: ir.IRBuilder, line: Elements, step: ir.Value, length: ir.Value, to: Elements) -> None:
    """to[j] = line[j * step] for j in [0, length), at least one."""
    zero, one = (step.type(k) for k in range(2))
    with builder.if_else(builder.icmp_signed("==", step, one)) as (near, otherwise):
        with near:
            loop(builder, length, lambda j, count, mask: to.store(j, line.load(j, count, mask), mask=mask))
        with otherwise, builder.if_else(builder.icmp_signed("==", step, zero)) as (still, apart):
            with still:
                same = line.load(zero, 1)
                loop(builder, length, lambda j, count, mask: to.store(j, splat(builder, same, count), mask=mask))
            with apart, cgutils.for_range_slice(builder, zero, length, one, length.type) as (j, _):
                to.store(j, line.load(builder.mul(j, step), 1))


@primitive
def gather(typingctx: Any, x: Any, o: Any, sets: Any, set_step: Any, lanes: Any, lane_step: Any, to: Any) -> Any:
    """to[set, lane] = x there, in the accumulator's dtype; `to` is flat. What follows on in memory is read in one go."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide = context.get_value_type(sig.args[6].dtype)
        source, result = (Elements(context, builder, sig.args[k], args[k], wide) for k in (0, 6))
        _, o, sets, set_step, lanes, lane_step, _ = args
        zero, one = (o.type(k) for k in range(2))
        single = builder.icmp_signed("==", lanes, one)
        joined = builder.or_(single, builder.icmp_signed("==", set_step, builder.mul(lanes, lane_step)))
        step = builder.select(single, set_step, lane_step)
        length = builder.select(joined, builder.mul(sets, lanes), lanes)
        rows = builder.select(joined, one, sets)
        with cgutils.for_range_slice(builder, zero, rows, one, o.type) as (k, _):
            line, row = source.at(o, builder.mul(k, set_step)), result.at(builder.mul(k, length))
            _read_row(builder, line, step, length, row)
        return context.get_dummy_value()

    index = types.intp
    return types.void(x, index, index, index, index, index, to), codegen


@primitive
def line_up(typingctx: Any, x: Any, o: Any, step: Any, m: Any, line: Any, p: Any) -> Any:
    """line[p + j] = x[o + j * step] for j in [0, m), of the same dtype."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide = ir.DoubleType() if sig.args[0].dtype == types.float64 else ir.FloatType()
        source, to = (Elements(context, builder, sig.args[k], args[k], wide) for k in (0, 4))
        _read_row(builder, source.at(args[1]), args[2], args[3], to.at(args[5]))
        return context.get_dummy_value()

    return types.void(x, types.intp, types.intp, types.intp, line, types.intp), codegen


@jit_inline
def lined_up(dy: Any, here: Any, steps: Any, step: int, run: int, count: int, line: Any) -> Any:
    """Runs whose elements of dy are neighbours: dy, offsets, steps, the length of a run, and how many.

    Where those of dy lie apart, or are all the same one, as many runs as have room are copied to `line`, 1 x BLOCK.
    """
    if step == 1:
        return dy, here, steps, run, count
    run = least(run, BLOCK)
    count = least(count, BLOCK // run)
    for k in range(count):
        line_up(dy, here[3] + k * steps[3], step, run, line, k * run)
    return line[0], (here[0], here[1], here[2], 0), (steps[0], steps[1], steps[2], run), run, count
