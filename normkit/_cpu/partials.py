"""In how many partial sums the lanes of a tile are added up, and how many positions its first pivot is the mean of."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .geometry import HEAD, PARTIALS, STRIP_ROWS
from .registers import larger, smaller
from .simd import primitive


def _share(builder: ir.IRBuilder, most: int, lanes: ir.Value) -> ir.Value:
    """A share of `most` for each of the lanes, at least 1."""
    return larger(builder, builder.udiv(lanes.type(most), lanes), lanes.type(1))


@primitive
def partials_of(typingctx: Any, lanes: Any) -> Any:
    """Partial sums of a lane: a set of many lanes has as many sums already."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return _share(builder, PARTIALS, args[0])

    return types.intp(types.intp), codegen


@primitive
def head_of(typingctx: Any, lanes: Any, rows: Any) -> Any:
    """Positions of a set whose mean is the first pivot."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return smaller(builder, _share(builder, HEAD, args[0]), args[1])

    return types.intp(types.intp, types.intp), codegen


@primitive
def fewer(typingctx: Any, partials: Any, m: Any) -> Any:
    """Few positions take few partial sums, 2^k of at most `partials`: as many as add STRIP_ROWS each.

    Instance norm of channels-last (64, 256, 3, 3) takes 89 us so, 120 in 8; batch norm of 16 x 40,000 232 and 298 (two threads,
    Zen 4, 2026-11).
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        partials, m = args
        one = m.type(1)
        full = builder.udiv(builder.sub(m, one), m.type(STRIP_ROWS))  # strips before the last
        bits = builder.sub(m.type(m.type.width), builder.ctlz(full, cgutils.false_bit))
        return smaller(builder, partials, builder.shl(one, bits))

    return types.intp(types.intp, types.intp), codegen
