"""The elementwise loops, as explicit SIMD: the formulas of a normalized element and of its gradient, in runs or lanes.

Where `dy` is None the result is the norm, else the gradient. The numbers of an element are high, low, rstd (the centre has
two parts, DESIGN section 5), then weight and bias, or weight, shift, slope and gain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .._formulas import element
from .loops import each_run, loop, store_loop
from .registers import splat
from .simd import STEP, Elements, Mask, Table, elements_of, primitive

# Rows and columns side by side, by the number of sources, where results are far and where they are near: the numbers of a
# column are loaded once for all rows, and all is read before any is written. A store looks to the processor as if a load after
# it needed it, where the last 12 bits of their addresses agree, as where arrays of 2^k bytes follow one another, and it waits.
# Instance norm of channels-last (16, 208, 1153) on one thread, in ms: 1.14 in 4 rows, 1.20 in 3 or 6, 1.30 in 2 or 8, 1.42 in
# 1; the gradient of (16, 200, 30, 30) 1.7 in 6, 1.9 in 8, 2.1 in 4; that of group norm of (32, 512, 7, 7), which is near, 0.35
# in 3 rows and two columns, 0.43 to 0.48 in 6, in which layer norm over the channels of NCHW takes a tenth less (Zen 4).
_FAR, _NEAR = {1: (4, 1), 2: (6, 1)}, {1: (4, 1), 2: (3, 2)}


class _Rows:
    """What `apply_lanes` was given, and its loops."""

    def __init__(self, context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> None:
        wide = context.get_value_type(sig.args[8].dtype)
        self.builder, self.m, self.count, self.fetched = builder, args[6], args[7], args[10]
        self.offsets, self.strides = (cgutils.unpack_tuple(builder, args[k], 4) for k in (4, 5))
        present = [k for k, kind in enumerate(sig.args[:2]) if not isinstance(kind, types.NoneType)]
        self.sources = [(Elements(context, builder, sig.args[k], args[k], wide), 3 * k) for k in present]
        self.result = Elements(context, builder, sig.args[2], args[2], wide)
        self.movers = elements_of(context, builder, sig.args[3], args[3], wide)
        table = Table(context, builder, sig.args[8], args[8])
        self.numbers = [table.row(self.m.type(k)) for k in range(5 if len(self.sources) == 1 else 7)]

    def emit(self, varying: bool) -> None:
        """All rows; where `varying` is set, with the weight and bias of each."""
        far, near = (blocks[len(self.sources)] for blocks in (_FAR, _NEAR))
        if far == near:
            self._emit_blocks(*far, varying)
            return
        with self.builder.if_else(cgutils.is_true(self.builder, self.fetched)) as branches:
            for block, branch in zip((far, near), branches, strict=True):
                with branch:
                    self._emit_blocks(*block, varying)

    def _emit_blocks(self, several: int, columns: int, varying: bool) -> None:
        """All rows, in blocks of so many rows and columns."""
        builder, intp = self.builder, self.m.type
        whole = builder.sub(self.count, builder.srem(self.count, intp(several)))
        for begin, end, rows in ((intp(0), whole, several), (whole, self.count, 1)):
            with cgutils.for_range_slice(builder, begin, end, intp(rows), intp) as (row, _):
                self._emit_rows([builder.add(row, intp(k)) for k in range(rows)], columns, varying)

    def _emit_rows(self, rows: list[ir.Value], columns: int, varying: bool) -> None:
        """A few rows side by side."""
        places = [self._place(row) for row in rows]
        movers = self.movers if varying else []
        moved = [[mover.load(here[2 + k], 1) for k, mover in enumerate(movers)] for here in places]

        def emit(j: ir.Value, count: int, mask: Mask) -> None:
            fixed = [row.load(j, count) for row in self.numbers]
            self._fetch(places, j, count)
            read = [[array.at(here[k]).load(j, count, mask) for array, k in self.sources] for here in places]
            for here, own, values in zip(places, moved, read, strict=True):
                along = [splat(self.builder, number, count) for number in own]
                found = element(self.builder, values, [*fixed[:3], *along, *fixed[3 + len(along) :]])
                self.result.at(here[1]).store(j, found, mask=mask)

        loop(self.builder, self.m, emit, (columns * STEP, STEP) if columns > 1 else (STEP,))

    def _place(self, row: ir.Value) -> list[ir.Value]:
        """Offsets of a row in x, y, weight, and bias or dy."""
        pairs = zip(self.offsets, self.strides, strict=True)
        return [self.builder.add(start, self.builder.mul(row, step)) for start, step in pairs]

    def _fetch(self, places: list[list[ir.Value]], j: ir.Value, count: int) -> None:
        """Ask for some columns of the rows after these; of rows that lie apart for the next tile's too, but not for x again."""
        builder = self.builder
        with builder.if_then(cgutils.is_true(builder, self.fetched)):
            self._ask(self.result, 1, places, j, count)
            apart = builder.icmp_signed("!=", self.strides[1], self.m)
            with builder.if_else(apart) as (tiles, in_line):
                with tiles:
                    for here in places:
                        self.result.at(here[1]).prefetch(builder.add(j, self.m), count)
                with in_line:
                    for array, k in self.sources:
                        self._ask(array, k, places, j, count)

    def _ask(self, array: Elements, k: int, places: list[list[ir.Value]], j: ir.Value, count: int) -> None:
        """Ask for the columns of one array, as many rows on."""
        ahead = self.builder.add(j, self.builder.mul(self.strides[k], j.type(len(places))))
        for here in places:
            array.at(here[k]).prefetch(ahead, count)


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
    fetch: Any,
) -> Any:
    """Set y to the result of x (and dy) for m neighbouring elements, every lane with its numbers, and so for `rows` rows.

    at, steps: offsets in x, y, weight, and bias or dy, and how far the next row is. The numbers are the rows of work; where
    `vary` is set, weight and bias come from `moving`, (weight, bias) or (weight, None), one of each for a row. Where `fetch`
    is set, results are asked for before they are written, and in line x too: layer norm over the channels of NCHW (16, 96, 56,
    56) on one thread takes 2.3 ms so, 2.9 without. That is as if to read them: of asking to write a prototype had nothing (1.6
    ms to read, 2.9 to write, 2.7 neither; Zen 4, 2026-11). Stores past the caches gain nothing here: instance norm of
    channels-last (8, 80, 256, 256) takes 13 ms so, and 17 with them.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        given = _Rows(context, builder, sig, args)
        with builder.if_else(cgutils.is_true(builder, args[9])) as branches:
            for varying, branch in zip((True, False), branches, strict=True):
                with branch:
                    given.emit(varying)
        return context.get_dummy_value()

    index, four, flag = types.intp, types.UniTuple(types.intp, 4), types.boolean
    return types.void(x, dy, y, moving, four, four, index, index, work, flag, flag), codegen


def each_way(builder: ir.IRBuilder, vary: ir.Value, stream: ir.Value, write: Callable[[bool, bool], None]) -> None:
    """write(varying, streaming), once for whatever the two flags are: no loop over runs within it asks for them again."""
    with builder.if_else(cgutils.is_true(builder, vary)) as ways:
        for varying, way in zip((True, False), ways, strict=True):
            with way, builder.if_else(cgutils.is_true(builder, stream)) as stores:
                for streaming, store in zip((True, False), stores, strict=True):
                    with store:
                        write(varying, streaming)


def write_run(
    builder: ir.IRBuilder,
    m: ir.Value,
    arrays: Any,
    movers: list[Elements],
    before: Any,
    after: Any,
    varying: bool,
    streaming: bool,
) -> None:
    """The result of m neighbouring elements of a set. arrays: (sources, result); before, after: its centre, and the rest."""
    sources, result = arrays
    fixed = [] if varying else [mover.load(m.type(0), 1) for mover in movers]

    def values_at(j: ir.Value, count: int, mask: Mask) -> ir.Value:
        first, still, last = ([splat(builder, v, count) for v in part] for part in (before, fixed, after))
        along = [mover.load(j, count, mask) for mover in movers] if varying else still
        values = [source.load(j, count, mask) for source in sources]
        return element(builder, values, [*first, *along, *last])

    store_loop(builder, m, values_at, result, streaming)


@primitive
def apply_runs(
    typingctx: Any,
    x: Any,
    dy: Any,
    y: Any,
    moving: Any,
    at: Any,
    steps: Any,
    m: Any,
    count: Any,
    centre: Any,
    rest: Any,
    vary: Any,
    stream: Any,
) -> Any:
    """Set y to the result of x (and dy) for m neighbouring elements of one set, and so for `count` runs of it.

    at, steps: offsets in x, y, weight, and bias or dy, and how far the next run is. centre = (high, low, rstd); moving =
    (weight, bias) or (weight, None), arrays, read at their offset, + j where `vary` is set; rest = (shift, slope, gain), of a
    gradient.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide = context.get_value_type(sig.args[8][0])
        offsets, steps = (cgutils.unpack_tuple(builder, args[k], 4) for k in (4, 5))
        present = [k for k, kind in enumerate(sig.args[:2]) if not isinstance(kind, types.NoneType)]
        before = cgutils.unpack_tuple(builder, args[8], 3)
        after = [] if len(present) == 1 else cgutils.unpack_tuple(builder, args[9], 3)

        def write(varying: bool, streaming: bool) -> None:
            with each_run(builder, args[7], offsets, steps) as here:
                sources = [Elements(context, builder, sig.args[n], args[n], wide).at(here[3 * n]) for n in present]
                result = Elements(context, builder, sig.args[2], args[2], wide).at(here[1])
                movers = elements_of(context, builder, sig.args[3], args[3], wide)
                movers = [mover.at(offset) for mover, offset in zip(movers, here[2:], strict=False)]
                write_run(builder, args[6], (sources, result), movers, before, after, varying, streaming)

        each_way(builder, args[10], args[11], write)
        return context.get_dummy_value()

    index, four, flag = types.intp, types.UniTuple(types.intp, 4), types.boolean
    return types.void(x, dy, y, moving, four, four, index, index, centre, rest, flag, flag), codegen
