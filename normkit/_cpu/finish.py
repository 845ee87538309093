"""From the sums of a tile's sets to their numbers, a vector of sets at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from . import formulas
from .buffers import CHUNK_ORIGIN, M2, MEAN, MEAN_LOW, TOTAL, TOTAL_OF_PRODUCTS
from .loops import loop
from .registers import bits_of, first_lanes, some, splat
from .simd import STEP, Elements, Mask, Table, primitive

_DOUBLE = ir.DoubleType()


def _is_marked(builder: ir.IRBuilder, marks: ir.Value) -> ir.Value:
    """Which of some marks, read as numbers, are set."""
    return builder.fcmp_ordered("!=", marks, ir.Constant(marks.type, None))


def _some(builder: ir.IRBuilder, m: ir.Value, test: Callable[[ir.Value, int, Mask], ir.Value]) -> ir.Value:
    """Whether a test on the elements of [0, m) holds for some; those beyond a mask are to fail it."""
    found = cgutils.alloca_once_value(builder, cgutils.false_bit)

    def emit(j: ir.Value, count: int, mask: Mask) -> None:
        builder.store(builder.or_(builder.load(found), some(builder, test(j, count, mask))), found)

    loop(builder, m, emit)
    return builder.load(found)


@primitive
def some_cancel(typingctx: Any, work: Any, m: Any, n: Any) -> Any:
    """Whether the pivot of one of m sets turned out to be far off, by their sums over n elements (`formulas.cancels`)."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        table = Table(context, builder, sig.args[0], args[0], _DOUBLE)
        sums = [table.row(args[1].type(row)) for row in (TOTAL, TOTAL_OF_PRODUCTS)]

        def test(j: ir.Value, count: int, mask: Mask) -> ir.Value:
            s, q = (row.load(j, count, mask) for row in sums)
            return formulas.is_cancelled(builder, s, q, splat(builder, args[2], count))

        return _some(builder, args[1], test)

    return types.boolean(work, types.intp, types.float64), codegen


@primitive
def some_marked(typingctx: Any, todo: Any, first: Any, m: Any) -> Any:
    """Whether one of m sets is marked."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        marks = Elements(context, builder, sig.args[0], args[0], _DOUBLE).at(args[1])
        return _some(builder, args[2], lambda j, count, mask: _is_marked(builder, marks.load(j, count, mask)))

    return types.boolean(todo, types.intp, types.intp), codegen


@primitive
def skipped(typingctx: Any, todo: Any, k: Any, work: Any) -> Any:
    """Whether set k is not for this pass: marked, in float32; not marked, in float64."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        marks = context.make_array(sig.args[0])(context, builder, args[0])
        found = cgutils.alloca_once_value(builder, cgutils.false_bit)
        with builder.if_then(builder.icmp_signed(">", marks.nitems, args[1].type(0))):
            if context.enable_boundscheck:
                cgutils.do_boundscheck(context, builder, args[1], marks.nitems)
            mark = builder.load(builder.gep(marks.data, [args[1]]))
            builder.store(builder.icmp_signed("!=" if sig.args[2].dtype == types.float32 else "==", mark, mark.type(0)), found)
        return builder.load(found)

    return types.boolean(todo, types.intp, work), codegen


def mark(builder: ir.IRBuilder, marks: Elements, j: ir.Value, lost: ir.Value, marked: ir.Value) -> None:
    """Mark the sets, from j on, of a mask, and count them."""
    bits = bits_of(builder, lost)
    with cgutils.if_unlikely(builder, builder.icmp_unsigned("!=", bits, bits.type(0))):
        marks.mark(j, lost)
        more = builder.zext(builder.ctpop(bits), marked.type.pointee)
        builder.store(builder.add(builder.load(marked), more), marked)


def keep(builder: ir.IRBuilder, moments: Table, first: ir.Value, numbers: Sequence[ir.Value], mask: Mask = None) -> None:
    """Store the moments of sets, the first one of which it is, if they are wanted: mean, its low part, M2."""
    with builder.if_then(builder.icmp_signed(">", moments.length, first.type(0))):
        for row, values in zip((MEAN, MEAN_LOW, M2), numbers, strict=True):
            moments.row(first.type(row)).store(first, values, mask=mask)


class _Tile:
    """What `finish_tile` was given."""

    def __init__(self, context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> None:
        self.builder, self.first, self.narrow = builder, args[8], sig.args[9].dtype == types.float32
        own, self.moments = (Table(context, builder, sig.args[k], args[k]) for k in (0, 6))
        self.origin, self.mean, self.low, self.m2 = (own.row(args[2].type(k)) for k in (CHUNK_ORIGIN, MEAN, MEAN_LOW, M2))
        self.marks = Elements(context, builder, sig.args[7], args[7], _DOUBLE).at(self.first)
        count = context.make_array(sig.args[7])(context, builder, args[7]).nitems
        self.every = builder.icmp_signed("==", count, count.type(0))
        self.n, self.share, self.eps, self.center = (args[k] for k in (1, 3, 4, 5))
        self.marked = cgutils.alloca_once_value(builder, ir.IntType(64)(0))

    def emit(self, j: ir.Value, count: int, mask: Mask) -> None:
        """Some sets."""
        builder = self.builder
        n, share, eps, center = (splat(builder, value, count) for value in (self.n, self.share, self.eps, self.center))
        m2 = self.m2.load(j, count, mask)
        total, low = formulas.in_two_parts(builder, self.origin.load(j, count, mask), self.mean.load(j, count, mask))
        if self.narrow:
            lost = formulas.too_narrow(builder, total, m2, n, center)
            mark(builder, self.marks, j, lost if mask is None else builder.and_(lost, mask), self.marked)
        kept = mask if self.narrow else self._kept(j, mask)
        keep(builder, self.moments, builder.add(self.first, j), (total, low, m2), kept)
        scale = formulas.inverse_deviation(builder, m2, share, eps)
        for row, values in ((self.mean, total), (self.low, low), (self.m2, scale)):
            row.store(j, values, mask=mask)

    def _kept(self, j: ir.Value, mask: Mask) -> ir.Value:
        """The sets that are marked, or all where there are no marks."""
        builder, every = self.builder, splat(self.builder, self.every, STEP)
        there = mask or first_lanes(builder, j.type(STEP), STEP)
        marked = _is_marked(builder, self.marks.load(j, STEP, builder.and_(there, builder.not_(every))))
        return builder.and_(there, builder.or_(marked, every))


@primitive
def finish_tile(
    typingctx: Any,
    own: Any,
    n: Any,
    m: Any,
    share: Any,
    eps: Any,
    center: Any,
    moments: Any,
    todo: Any,
    first: Any,
    real: Any,
) -> Any:
    """Mean in two parts and scale of m sets of n elements, in place of mean (relative to CHUNK_ORIGIN) and M2.

    The moments, if wanted, go to those of sets [first, first + m). Returns how many of them wait for float64, and marks them.
    Layer norm over the channels of NCHW (16, 96, 56, 56) on one thread takes 1.9 ms so, 2.1 set by
    set (Zen 4, 2026-11).
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        tile = _Tile(context, builder, sig, args)
        loop(builder, args[2], tile.emit)
        return builder.load(tile.marked)

    index, number = types.intp, types.float64
    return index(own, number, index, number, number, types.boolean, moments, todo, index, real), codegen
