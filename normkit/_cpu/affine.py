"""The elementwise loops, as explicit SIMD: the formulas of a normalized element and of its gradient, in runs or lanes.

Where `dy` is None the result is the norm, else the gradient. The numbers of an element are high, low, rstd (the centre has
two parts, DESIGN section 5), then weight and bias, or weight, shift, slope and gain.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .._formulas import element
from .simd import (
    STEP,
    Elements,
    Mask,
    Table,
    elements_of,
    loop,
    primitive,
    sources_of,
    splat,
    store_loop,
    stream_loop,
)

_COLUMNS = {1: (64, STEP), 2: (32, STEP)}  # whose numbers are held in registers, by the number of sources: 20 and 14 of 32
# Rows that these are held for, before the next columns: memory is read and written nearly in line. Group norm of channels-last
# (32, 512, 7, 7) on one thread takes 0.21 ms so, 0.30 down all rows (Zen 4, 2026-11).
_ROWS = 8


class _Rows:
    """What `apply_lanes` was given, and its loops."""

    def __init__(self, context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> None:
        wide = context.get_value_type(sig.args[8].dtype)
        self.builder, self.m, self.count = builder, args[6], args[7]
        self.offsets, self.strides = (cgutils.unpack_tuple(builder, args[k], 4) for k in (4, 5))
        present = [k for k, kind in enumerate(sig.args[:2]) if not isinstance(kind, types.NoneType)]
        self.sources = [(Elements(context, builder, sig.args[k], args[k], wide), 3 * k) for k in present]
        self.result = Elements(context, builder, sig.args[2], args[2], wide)
        self.movers = elements_of(context, builder, sig.args[3], args[3], wide)
        table = Table(context, builder, sig.args[8], args[8])
        self.numbers = [table.row(self.m.type(k)) for k in range(5 if len(self.sources) == 1 else 7)]

    def emit(self, varying: bool, streaming: bool) -> None:
        """All rows; where `varying` is set, with the weight and bias of each."""
        if streaming:
            with self._each_row(self.m.type(0), self.count) as here:
                to = self.result.at(here[1])

                def emit(j: ir.Value, count: int, mask: Mask, streaming: bool) -> None:
                    to.store(j, self._element(here, j, count, mask, varying, self._fixed(j, count)), streaming, mask)

                stream_loop(self.builder, self.m, emit, to)
        else:
            builder, intp = self.builder, self.m.type
            with cgutils.for_range_slice(builder, intp(0), self.count, intp(_ROWS), intp) as (first, _):
                end = builder.add(first, intp(_ROWS))
                end = builder.select(builder.icmp_signed("<", end, self.count), end, self.count)

                def emit_columns(column: ir.Value, count: int, mask: Mask) -> None:
                    self._emit_columns(varying, first, end, column, count, mask)

                loop(builder, self.m, emit_columns, _COLUMNS[len(self.sources)])

    def _emit_columns(self, varying: bool, first: ir.Value, end: ir.Value, column: ir.Value, count: int, mask: Mask) -> None:
        """Some columns of rows [first, end): what they share is in registers meanwhile."""
        builder, fixed = self.builder, self._fixed(column, count)
        apart = builder.icmp_signed("!=", self.strides[1], self.m)
        with self._each_row(first, end) as here:
            to = self.result.at(here[1], column)
            with builder.if_then(apart):
                to.prefetch(self.m, count)
            to.store(column.type(0), self._element(here, column, count, mask, varying, fixed), mask=mask)

    @contextlib.contextmanager
    def _each_row(self, first: ir.Value, end: ir.Value) -> Iterator[list[ir.Value]]:
        """Offsets in x, y, weight, and bias or dy of each of the rows [first, end) in turn."""
        builder, intp = self.builder, self.m.type
        with cgutils.for_range_slice(builder, first, end, intp(1), intp) as (r, _):
            yield [builder.add(start, builder.mul(r, step)) for start, step in zip(self.offsets, self.strides, strict=True)]

    def _fixed(self, column: ir.Value, count: int) -> list[ir.Value]:
        """The numbers of some columns."""
        return [row.load(column, count) for row in self.numbers]

    def _element(
        self, here: list[ir.Value], column: ir.Value, count: int, mask: Mask, varying: bool, numbers: list[ir.Value]
    ) -> ir.Value:
        """The results of some columns of a row."""
        movers = self.movers if varying else []
        moved = [splat(self.builder, mover.load(here[2 + k], 1), count) for k, mover in enumerate(movers)]
        values = [array.at(here[k]).load(column, count, mask) for array, k in self.sources]
        return element(self.builder, values, [*numbers[:3], *moved, *numbers[3 + len(moved) :]])


@primitive
def apply_lanes(
    typingctx: Any,
    x: Any,
    dy: Any,
    y: Any,
    moving: Any,
    at: Any,
    steps: Any,
    m: Any,
    rows: Any,
    work: Any,
    vary: Any,
    stream: Any,
) -> Any:
    """Set y to the result of x (and dy) for m neighbouring elements, every lane with its numbers, and so for `rows` rows.

    at, steps: offsets in x, y, weight, and bias or dy, and how far the next row is. The numbers are the rows of work; where
    `vary` is set, weight and bias come from `moving`, (weight, bias) or (weight, None), one of each for a row. Where rows lie
    apart, the neighbours of the results, which the next tile writes, are fetched: layer norm over the channels of NCHW (16, 96,
    56, 56) on one thread takes 3.0 ms so, 4.4 without. They are fetched as if to be read: of fetching to write a prototype had
    nothing (1.6 ms to read, 2.9 to write, 2.7 neither; Zen 4, 2026-11). The same for x costs time.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        given = _Rows(context, builder, sig, args)
        with builder.if_else(cgutils.is_true(builder, args[9])) as branches:
            for varying, branch in zip((True, False), branches, strict=True):
                with branch, builder.if_else(cgutils.is_true(builder, args[10])) as (stream, keep):
                    with stream:
                        given.emit(varying, streaming=True)
                    with keep:
                        given.emit(varying, streaming=False)
        return context.get_dummy_value()

    index, four, flag = types.intp, types.UniTuple(types.intp, 4), types.boolean
    return types.void(x, dy, y, moving, four, four, index, index, work, flag, flag), codegen


@primitive
def apply_run(
    typingctx: Any,
    x: Any,
    o: Any,
    dy: Any,
    p: Any,
    y: Any,
    q: Any,
    m: Any,
    centre: Any,
    moving: Any,
    at: Any,
    rest: Any,
    vary: Any,
    stream: Any,
) -> Any:
    """y[q + j] = the result of x[o + j] (and dy[p + j]) for j in [0, m) of one set; its numbers are centre, moving, rest.

    centre = (high, low, rstd); moving = (weight, bias) or (weight, None), arrays, read at their offset in `at`, + j where
    `vary` is set; rest = (shift, slope, gain), of a gradient.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide = context.get_value_type(sig.args[7][0])
        sources = sources_of(context, builder, sig, args, wide)
        result = Elements(context, builder, sig.args[4], args[4], wide).at(args[5])
        offsets = cgutils.unpack_tuple(builder, args[9], 2)
        movers = elements_of(context, builder, sig.args[8], args[8], wide)
        movers = [mover.at(offset) for mover, offset in zip(movers, offsets, strict=False)]
        before = cgutils.unpack_tuple(builder, args[7], 3)
        after = [] if len(sources) == 1 else cgutils.unpack_tuple(builder, args[10], 3)
        zero = ir.Constant(args[1].type, 0)

        def run(varying: bool) -> None:
            fixed = [] if varying else [mover.load(zero, 1) for mover in movers]

            def emit(j: ir.Value, count: int, mask: Mask, streaming: bool) -> None:
                first, still, last = ([splat(builder, v, count) for v in part] for part in (before, fixed, after))
                along = [mover.load(j, count, mask) for mover in movers] if varying else still
                values = [source.load(j, count, mask) for source in sources]
                result.store(j, element(builder, values, [*first, *along, *last]), streaming, mask)

            store_loop(builder, args[6], emit, result, args[12])

        with builder.if_else(cgutils.is_true(builder, args[11])) as (then, otherwise):
            with then:
                run(varying=True)
            with otherwise:
                run(varying=False)
        return context.get_dummy_value()

    index, flag = types.intp, types.boolean
    return types.void(x, index, dy, index, y, index, index, centre, moving, at, rest, flag, flag), codegen
