"""The sums of `lanes`, over a run: neighbours of one set, in strips, all partial sums in registers."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .._formulas import terms_of
from .geometry import STRIP_ROWS
from .simd import Mask, Table, elements_of, first_lanes, fold, primitive, sources_of, splat

LANES = 32  # partial sums of a run: two AVX-512 registers or four of AVX2 hide the latency of an addition
STRIP = STRIP_ROWS * LANES
_AHEAD = 2048  # bytes asked for ahead: statistics of 128 MiB take 4.2 ms so, 7.4 without (2 cores, 2026-11)


@primitive
def sum_run(
    typingctx: Any, x: Any, o: Any, dy: Any, p: Any, m: Any, numbers: Any, moving: Any, at: Any, vary: Any, own: Any
) -> Any:
    """The two sums over m neighbouring elements of one set, all lanes in registers.

    numbers: (high, low, rstd), or a pivot for high. moving: the arrays of numbers that change along a set, None, (weight,)
    or (high, low, rstd), read at + j where `vary` is set, else at `at` for the whole run; but a weight that does not vary is
    left out. Where it varies and own, None or 2 x n, is not empty, dy and dy * x_hat of each element are added to its rows
    too, from `at` on.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide = context.get_value_type(sig.args[5][0])
        table = None if isinstance(own, types.NoneType) else Table(context, builder, sig.args[9], args[9])
        rows = [] if table is None else [table.row(ir.Constant(args[4].type, k)).at(args[7]) for k in range(2)]
        sources = sources_of(context, builder, sig, args, wide)
        intp = args[4].type
        zero, lanes = (ir.Constant(intp, k) for k in (0, LANES))
        row_type = ir.VectorType(wide, LANES)
        none = ir.Constant(row_type, [0.0] * LANES)
        totals = [cgutils.alloca_once_value(builder, none) for _ in range(2)]
        strip = [cgutils.alloca_once(builder, row_type) for _ in range(2)]
        movers = elements_of(context, builder, sig.args[6], args[6], wide)
        movers = [mover.at(args[7]) for mover in movers]
        needed = 1 if len(sources) == 1 else 0 if len(movers) == 3 else 3
        fixed = cgutils.unpack_tuple(builder, args[5], 3)[:needed]

        def add(terms: Any, to: list[ir.Value]) -> None:
            for slot, term in zip(to, terms, strict=True):
                builder.store(builder.fadd(builder.load(slot), term), slot)

        def run(varying: bool, collecting: bool = False) -> None:
            moved = [] if varying or len(movers) == 1 else [mover.load(zero, 1) for mover in movers]
            still = [*fixed, *moved]
            splats = [splat(builder, v, LANES) for v in still]

            def terms(j: ir.Value, mask: Mask = None) -> list[ir.Value]:
                """What LANES elements add; 0 for those that are not in the mask."""
                along = [mover.load(j, LANES, mask) for mover in movers] if varying else []
                values, numbers = [source.load(j, LANES, mask) for source in sources], [*splats, *along]
                for source in sources:
                    source.prefetch(builder.add(j, intp(_AHEAD // source.size)), LANES)
                if collecting:
                    for part, term in zip(rows, terms_of(builder, values, numbers[:3]), strict=True):
                        part.store(j, builder.fadd(part.load(j, LANES, mask), term), mask=mask)
                found = terms_of(builder, values, numbers)
                return [term if mask is None else builder.select(mask, term, none) for term in found]

            whole = builder.and_(args[4], ir.Constant(intp, -LANES))
            with cgutils.for_range_slice(builder, zero, args[4], ir.Constant(intp, STRIP), intp) as (start, _):
                for slot in strip:
                    builder.store(none, slot)
                end = builder.add(start, ir.Constant(intp, STRIP))
                stop = builder.select(builder.icmp_signed("<", end, whole), end, whole)
                with cgutils.for_range_slice(builder, start, stop, lanes, intp) as (j, _):
                    add(terms(j), strip)
                with (
                    builder.if_then(builder.icmp_signed(">", end, args[4])),
                    builder.if_then(builder.icmp_signed("<", whole, args[4])),
                ):
                    add(terms(whole, first_lanes(builder, builder.sub(args[4], whole), LANES)), strip)
                add([builder.load(slot) for slot in strip], totals)

        if movers:
            with builder.if_else(cgutils.is_true(builder, args[8])) as (then, otherwise):
                with then:
                    if table is None:
                        run(varying=True)
                    else:
                        wanted = builder.icmp_signed(">", table.length, zero)
                        with builder.if_else(wanted) as (collect, pass_by):
                            with collect:
                                run(varying=True, collecting=True)
                            with pass_by:
                                run(varying=True)
                with otherwise:
                    run(varying=False)
        else:
            run(varying=False)
        return cgutils.pack_array(builder, [fold(builder, builder.load(slot)) for slot in totals])

    index = types.intp
    flag = types.boolean
    return types.UniTuple(numbers[0], 2)(x, index, dy, index, index, numbers, moving, index, flag, own), codegen
