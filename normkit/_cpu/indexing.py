"""Where things are: tiles, sets and positions from the packed geometry."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .compile import jit_inline
from .geometry import APPLY_LANES, KEPT, PER_CHUNK, PER_TASK, REDUCED, ROWS, SIZE, TILE, TILES, B, W, X, Y
from .registers import smaller
from .simd import Integers, primitive
from .vectors import least

_FOUR = types.UniTuple(types.intp, 4)  # offsets in x, y, weight, and bias or dy
_PAIR = types.UniTuple(types.intp, 2)


def _further(builder: ir.IRBuilder, geo: Integers, at: list[ir.Value], row: ir.Value, steps: ir.Value) -> list[ir.Value]:
    """Offsets of the four operands, `steps` further along a segment."""
    strides = (geo.at(row, at[0].type(column)) for column in (X, Y, W, B))
    return [builder.add(o, builder.mul(steps, stride)) for o, stride in zip(at, strides, strict=True)]


def _placed(
    builder: ir.IRBuilder, geo: Integers, kind: ir.Value, inner: ir.Value, at: list[ir.Value], index: ir.Value
) -> tuple[list[ir.Value], ir.Value]:
    """Offsets `index` positions on from `at`, along the segments of a kind up to `inner`, and what is left of the run.

    In LLVM, as it is part of every kernel: in Python it is 100 statements, of which each takes 1 ms of a first call.
    """
    intp, first, run = index.type, geo.at(kind.type(0), kind), geo.at(inner, inner.type(SIZE))
    within, *offsets = (cgutils.alloca_once_value(builder, value) for value in (index, *at))
    with builder.if_then(builder.icmp_signed(">=", index, run)):  # a division costs as much as a short set
        outer = cgutils.alloca_once_value(builder, _divided(builder, index, run, within))
        steps = cgutils.alloca_once(builder, intp)

        def go(row: ir.Value, steps: ir.Value) -> None:
            here = _further(builder, geo, [builder.load(slot) for slot in offsets], row, steps)
            for slot, offset in zip(offsets, here, strict=True):
                builder.store(offset, slot)

        with cgutils.for_range_slice(builder, intp(1), builder.sub(inner, first), intp(1), intp) as (k, _):
            row = builder.sub(inner, k)
            builder.store(_divided(builder, builder.load(outer), geo.at(row, intp(SIZE)), steps), outer)
            go(row, builder.load(steps))
        go(first, builder.load(outer))
    steps = builder.load(within)
    return _further(builder, geo, [builder.load(slot) for slot in offsets], inner, steps), builder.sub(run, steps)


def _set_origin(builder: ir.IRBuilder, geo: Integers, k: ir.Value) -> list[ir.Value]:
    """Offsets of x, y, weight and bias at the first element of set k."""
    intp = k.type
    start, inner = [geo.at(intp(2), intp(column)) for column in (X, Y, W, B)], innermost_of(builder, geo, intp(KEPT))
    return _placed(builder, geo, intp(KEPT), inner, start, k)[0]


def innermost_of(builder: ir.IRBuilder, geo: Integers, kind: ir.Value) -> ir.Value:
    """The row of the innermost segment of a kind: before the first one of the next."""
    one = kind.type(1)
    return builder.sub(geo.at(kind.type(0), builder.add(kind, one)), one)


def _divided(builder: ir.IRBuilder, number: ir.Value, by: ir.Value, remainder: ir.Value) -> ir.Value:
    """The quotient of two numbers that are not negative; what remains goes to a slot."""
    quotient = builder.udiv(number, by)
    builder.store(builder.sub(number, builder.mul(quotient, by)), remainder)
    return quotient


@primitive
def entry(typingctx: Any, geo: Any, row: Any, column: Any) -> Any:
    """geo[row, column]. That itself, which asks whether they are negative, costs 4 ms of a first call wherever it stands."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return Integers(context, builder, sig.args[0], args[0]).at(args[1], args[2])

    return types.intp(geo, types.intp, types.intp), codegen


@primitive
def innermost(typingctx: Any, geo: Any, kind: Any) -> Any:
    """The row of the innermost segment of a kind."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return innermost_of(builder, Integers(context, builder, sig.args[0], args[0]), args[1])

    return types.intp(geo, types.intp), codegen


@primitive
def position(typingctx: Any, geo: Any, kind: Any, inner: Any, at: Any, index: Any) -> Any:
    """Offsets of all operands `index` positions on from `at`, and what is left of the run.

    Along the segments of a kind, up to that of row `inner`.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        table, start = Integers(context, builder, sig.args[0], args[0]), cgutils.unpack_tuple(builder, args[3], 4)
        here, left = _placed(builder, table, args[1], args[2], start, args[4])
        return context.make_tuple(builder, sig.return_type, [context.make_tuple(builder, _FOUR, here), left])

    return types.Tuple([_FOUR, types.intp])(geo, types.intp, types.intp, _FOUR, types.intp), codegen


@primitive
def set_origin(typingctx: Any, geo: Any, k: Any) -> Any:
    """Offsets of x, y, weight and bias at the first element of set k."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return context.make_tuple(
            builder, _FOUR, _set_origin(builder, Integers(context, builder, sig.args[0], args[0]), args[1])
        )

    return _FOUR(geo, types.intp), codegen


@jit_inline
def sets_at(geo: Any, k: int) -> Any:
    """`set_origin`, and how many sets from k on follow one another evenly."""
    start = entry(geo, 2, X), entry(geo, 2, Y), entry(geo, 2, W), entry(geo, 2, B)
    return position(geo, KEPT, innermost(geo, KEPT), start, k)


@primitive
def advance(typingctx: Any, geo: Any, row: Any, at: Any, steps: Any) -> Any:
    """Offsets for x, y, weight and bias, `steps` further along a segment."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        table, start = Integers(context, builder, sig.args[0], args[0]), cgutils.unpack_tuple(builder, args[2], 4)
        return context.make_tuple(builder, _FOUR, _further(builder, table, start, args[1], args[3]))

    return _FOUR(geo, types.intp, _FOUR, types.intp), codegen


@jit_inline
def next_runs(geo: Any, kind: int, at: Any, i: int, end: int, most: int) -> Any:
    """From element i of a set on: offsets, the length of a run, and how many of it follow one another evenly, before `end`.

    At most so many. Of a run that is cut, at the one end or the other, it is what is left.
    """
    inner = innermost(geo, kind)
    here, left = position(geo, kind, inner, at, i)
    run, count = least(left, end - i), 1
    if run == entry(geo, inner, SIZE) and inner > entry(geo, 0, kind):
        beside = entry(geo, inner - 1, SIZE)
        count = least(least(most, (end - i) // run), beside - i // run % beside)
    return here, run, count


@jit_inline
def steps_of(geo: Any, kind: int) -> Any:
    """How far the next run is in all operands."""
    row = innermost(geo, kind) - 1
    return entry(geo, row, X), entry(geo, row, Y), entry(geo, row, W), entry(geo, row, B)


@primitive
def chunk_of(typingctx: Any, geo: Any, chunk: Any) -> Any:
    """The positions of a chunk of a set, from the first to that after the last."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        table, intp = Integers(context, builder, sig.args[0], args[0]), args[1].type
        size, rows = table.at(intp(0), intp(PER_CHUNK)), table.at(intp(1), intp(ROWS))
        first = builder.mul(args[1], size)
        return cgutils.pack_array(builder, [first, smaller(builder, rows, builder.add(first, size))])

    return _PAIR(geo, types.intp), codegen


@primitive
def tile_of(typingctx: Any, geo: Any, tile: Any) -> Any:
    """(index of the first set, number of sets, offsets of x, y, weight, bias) of a tile."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        table, tile = Integers(context, builder, sig.args[0], args[0]), args[1]
        intp = tile.type
        width, inner = table.at(intp(1), intp(TILE)), table.at(innermost_of(builder, table, intp(KEPT)), intp(SIZE))
        per_row = builder.udiv(builder.add(inner, builder.sub(width, intp(1))), width)
        outer = builder.udiv(tile, per_row)
        start = builder.mul(builder.sub(tile, builder.mul(outer, per_row)), width)
        first = builder.add(builder.mul(outer, inner), start)
        at = context.make_tuple(builder, _FOUR, _set_origin(builder, table, first))
        return context.make_tuple(builder, sig.return_type, [first, smaller(builder, width, builder.sub(inner, start)), at])

    return types.Tuple([types.intp, types.intp, _FOUR])(geo, types.intp), codegen


@primitive
def tiles_of(typingctx: Any, geo: Any, begin: Any, end: Any) -> Any:
    """The tiles of tasks [begin, end): first and one past the last."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        table, intp = Integers(context, builder, sig.args[0], args[0]), args[1].type
        size, tiles = table.at(intp(1), intp(PER_TASK)), table.at(intp(2), intp(TILES))
        first, last = (builder.mul(task, size) for task in args[1:])
        return cgutils.pack_array(builder, [first, smaller(builder, last, tiles)])

    return _PAIR(geo, types.intp, types.intp), codegen


@primitive
def stands_still(typingctx: Any, geo: Any, count: Any, column: Any) -> Any:
    """Whether a weight or bias is the same for all lanes of a position of `count` sets."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        table, (_, count, column) = Integers(context, builder, sig.args[0], args[0]), args
        intp = count.type
        step, along = (table.at(innermost_of(builder, table, intp(kind)), column) for kind in (KEPT, REDUCED))
        alone = [builder.icmp_signed("==", n, intp(1)) for n in (count, table.at(intp(1), intp(APPLY_LANES)))]
        stays = [builder.icmp_signed("==", stride, intp(0)) for stride in (step, along)]
        return builder.and_(*(builder.or_(*pair) for pair in zip(alone, stays, strict=True)))

    return types.boolean(geo, types.intp, types.intp), codegen
