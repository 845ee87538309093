"""The elementwise loop over positions so short that the numbers of a few of them are held in registers.

The numbers of an element are those of `affine.py`, and all is read before any is written, as there.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .._formulas import element
from .geometry import AFFINE_VARIES, APPLY_LANES, DY, REDUCED, X, Y
from .indexing import innermost_of
from .registers import first_lanes, larger, smaller
from .simd import STEP, Elements, Integers, Mask, Table, primitive

PERIODS = (64, 48)  # numbers of 5 x 64 elements fill 20 of the 32 registers of AVX-512
PERIOD_LENGTH = PERIODS[0] + 2 * STEP
# Elements of short positions that are written as one row: their numbers stay in L1 beside what streams through it. Instance
# norm of channels-last (16, 208, 1153) on one thread: 1.15 ms so, 1.33 of 1024 (Zen 4, 32 KiB of L1, 2026-11).
_TOGETHER = 512


def _period_of(builder: ir.IRBuilder, width: ir.Value) -> ir.Value:
    """The number of elements of whole positions of `width` that `apply_period` takes; 0 where there is none."""
    found, zero = (width.type(0),) * 2
    for size in reversed(PERIODS):
        fits = builder.icmp_signed("==", builder.urem(zero.type(size), width), zero)
        found = builder.select(fits, zero.type(size), found)
    return found


@primitive
def side_by_side(typingctx: Any, geo: Any, count: Any, m: Any, dy: Any) -> Any:
    """How m positions of `count` sets are written: (segment, width, together, period).

    The segment they follow one another along, the elements of a position, how many of them are written as one row, and the
    period that their numbers repeat with, 0 where `apply_period` takes none.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        geo, (_, count, m, _) = Integers(context, builder, sig.args[0], args[0]), args
        zero, one = (m.type(k) for k in range(2))
        lanes = geo.at(one, m.type(APPLY_LANES))
        width, several = builder.mul(count, lanes), builder.icmp_signed(">", lanes, one)
        segment = builder.sub(innermost_of(builder, geo, m.type(REDUCED)), builder.zext(several, m.type))
        plain = builder.icmp_signed("==", geo.at(one, m.type(AFFINE_VARIES)), zero)
        for column in (X, Y) if isinstance(sig.args[3], types.NoneType) else (X, Y, DY):
            plain = builder.and_(plain, builder.icmp_signed("==", geo.at(segment, m.type(column)), width))
        long = builder.icmp_signed(">=", builder.mul(m, width), m.type(4 * PERIOD_LENGTH))
        period = builder.select(builder.and_(plain, long), _period_of(builder, width), zero)
        filling = builder.udiv(builder.add(width, m.type(PERIOD_LENGTH - 1)), width)
        few = smaller(builder, builder.udiv(m.type(_TOGETHER), width), builder.udiv(m, m.type(8)))
        together = builder.select(builder.icmp_signed(">", period, zero), filling, larger(builder, few, one))
        return cgutils.pack_array(builder, [segment, width, builder.select(plain, together, one), period])

    return types.UniTuple(types.intp, 4)(geo, types.intp, types.intp, dy), codegen


@primitive
def apply_period(typingctx: Any, x: Any, dy: Any, y: Any, at: Any, m: Any, period: Any, work: Any, stream: Any) -> Any:
    """Set y to the result of x (and dy) for m neighbouring elements, whose numbers, the rows of work, repeat with a period.

    It is one of PERIODS: so few that all are held in registers. PERIOD_LENGTH of them lie in the rows. at: offsets in x, y, -,
    dy. Instance norm of channels-last (8, 64, 256, 256): 6.0 ms for results so, 9.2 in `apply_lanes`.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide, intp = context.get_value_type(sig.args[6].dtype), args[4].type
        offsets = cgutils.unpack_tuple(builder, args[3], 4)
        present = [k for k, kind in enumerate(sig.args[:2]) if not isinstance(kind, types.NoneType)]
        sources = [Elements(context, builder, sig.args[k], args[k], wide).at(offsets[3 * k]) for k in present]
        result, table = (
            Elements(context, builder, sig.args[2], args[2], wide).at(offsets[1]),
            Table(context, builder, sig.args[6], args[6]),
        )
        rows = [table.row(intp(k)) for k in range(5 if len(sources) == 1 else 7)]

        def numbers(start: ir.Value) -> list[ir.Value]:
            return [row.load(start, STEP) for row in rows]

        def value(j: ir.Value, own: list[ir.Value], mask: Mask = None) -> ir.Value:
            return element(builder, [source.load(j, STEP, mask) for source in sources], own)

        def emit(j: ir.Value, own: list[ir.Value], mask: Mask = None, streaming: bool = False) -> None:
            result.store(j, value(j, own, mask), streaming, mask)

        gap = builder.select(cgutils.is_true(builder, args[7]), result.until_aligned(), intp(0))
        head = builder.select(builder.icmp_signed("<", gap, args[4]), gap, args[4])
        with builder.if_then(builder.icmp_signed(">", head, intp(0))):
            emit(intp(0), numbers(intp(0)), first_lanes(builder, head, STEP))
        tail = cgutils.alloca_once_value(builder, head)
        for size in PERIODS:
            with builder.if_then(builder.icmp_signed("==", args[5], intp(size))):
                held = [numbers(builder.add(head, intp(k))) for k in range(0, size, STEP)]
                whole = builder.udiv(builder.sub(args[4], head), intp(size))
                stop = builder.add(head, builder.mul(whole, intp(size)))
                builder.store(stop, tail)
                with builder.if_else(cgutils.is_true(builder, args[7])) as branches:
                    for streaming, branch in zip((True, False), branches, strict=True):
                        with branch, cgutils.for_range_slice(builder, head, stop, intp(size), intp) as (j, _):
                            places = [builder.add(j, intp(k * STEP)) for k in range(len(held))]
                            found = [value(place, own) for place, own in zip(places, held, strict=True)]
                            for place, values in zip(places, found, strict=True):  # after all is read
                                result.store(place, values, streaming)
        start = builder.load(tail)
        with cgutils.for_range_slice(builder, start, args[4], intp(STEP), intp) as (j, _):
            place = builder.add(head, builder.sub(j, start))
            emit(j, numbers(place), first_lanes(builder, builder.sub(args[4], j), STEP))
        return context.get_dummy_value()

    index, four, flag = types.intp, types.UniTuple(types.intp, 4), types.boolean
    return types.void(x, dy, y, four, index, index, work, flag), codegen
