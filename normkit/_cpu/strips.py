"""The sums of `lanes`, over a run: neighbours of one set, in strips, all partial sums in registers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .._formulas import add_terms
from .geometry import HEAD_OF_RUN, STRIP_ROWS
from .loops import each_run
from .registers import first_lanes, fold, fold_each, halve, splat
from .simd import Elements, Mask, Table, elements_of, primitive, sources_of

LANES = 32  # partial sums of a run: two AVX-512 registers or four of AVX2 hide the latency of an addition
STRIP = STRIP_ROWS * LANES
SIDE = LANES // 2  # runs whose lanes are added up side by side
FEW = 8  # elements whose mean is within a deviation of that of all, but for 1 set of 200; the first, but for 1 of 3
LONG = 4 * HEAD_OF_RUN  # elements of a block whose first pivot is the mean of its head
_AHEAD = 2048  # bytes asked for ahead: statistics of 128 MiB take 4.2 ms so, 7.4 without (2 cores, 2026-11)


def mean_of_few(builder: ir.IRBuilder, run: Elements, m: ir.Value) -> ir.Value:
    """The mean of the first FEW of m elements, or 4, 2 or 1 of fewer: of equal ones exactly that. Neighbours are added."""
    count, share = m.type(1), run.wide(1)
    for power in (2, 4, FEW):
        enough = builder.icmp_signed(">=", m, m.type(power))
        count, share = builder.select(enough, m.type(power), count), builder.select(enough, run.wide(1 / power), share)
    lanes = run.load(m.type(0), FEW, first_lanes(builder, count, FEW))
    while lanes.type.count > 1:
        order, none = ir.VectorType(ir.IntType(32), lanes.type.count // 2), ir.Constant(lanes.type, ir.Undefined)
        picks = (ir.Constant(order, list(range(odd, lanes.type.count, 2))) for odd in (0, 1))
        lanes = builder.fadd(*(builder.shuffle_vector(lanes, none, pick) for pick in picks))
    return builder.fmul(builder.extract_element(lanes, ir.IntType(32)(0)), share)


@primitive
def head_of_run(typingctx: Any, x: Any, o: Any, m: Any, kind: Any) -> Any:
    """`mean_of_few`, of the run of m at o."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        wide = context.get_value_type(sig.return_type)
        return mean_of_few(builder, Elements(context, builder, sig.args[0], args[0], wide).at(args[1]), args[2])

    return kind.instance_type(x, types.intp, types.intp, kind), codegen


class RunSums:
    """The two sums over runs of m neighbouring elements, one run after another.

    sources: x, or x and dy; movers: the numbers that change along a set. For `vary` and `own` see `sum_run`. With `one`, a run
    has one strip at most, and that is its sum.
    """

    def __init__(
        self,
        builder: ir.IRBuilder,
        m: ir.Value,
        wide: ir.Type,
        sources: list[Elements],
        movers: list[Elements],
        vary: ir.Value,
        own: tuple[ir.Value, list[Elements]] | None,
        one: bool = False,
    ) -> None:
        self.builder, self.m, self.vary, self.sources, self.movers, self.collected = builder, m, vary, sources, movers, own
        self.whole = builder.and_(m, m.type(-LANES))
        self.rest = first_lanes(builder, builder.sub(m, self.whole), LANES)  # once for all runs
        self.none = ir.Constant(ir.VectorType(wide, LANES), [0.0] * LANES)
        self.strip, totals = ([cgutils.alloca_once(builder, self.none.type) for _ in range(2)] for _ in range(2))
        self.one, self.totals = one, self.strip if one else totals

    def lanes(self, numbers: list[ir.Value], on: list[ir.Value]) -> list[ir.Value]:
        """The two sums of a run in LANES partial ones; `numbers` are those of its set.

        on: how far it is from the first run in x, the numbers that move, and dy.
        """
        self.each_way(numbers, lambda add: add(on))
        return self.found()

    def found(self) -> list[ir.Value]:
        """The partial sums of the last run."""
        return [self.builder.load(slot) for slot in self.totals]

    def each_way(self, numbers: list[ir.Value], body: Callable[[Callable[[list[ir.Value]], None]], None]) -> None:
        """`body`, given what adds up a run (see `lanes`), once for either way in which numbers move along a set.

        A loop over runs within it has nothing else to keep at hand: a gradient's runs of 49 take 21 ns each so, 22.5 else.
        """
        if not self.movers:
            body(lambda on: self._add(on, numbers))
            return
        with self.builder.if_else(cgutils.is_true(self.builder, self.vary)) as (along, still):
            with along:
                body(lambda on: self._add_along(on, numbers))
            with still:
                body(lambda on: self._add(on, [*numbers, *self._still(on)]))

    def _still(self, on: list[ir.Value]) -> list[ir.Value]:
        """The numbers of a run that move from run to run only; but a weight is left to the caller."""
        return [] if len(self.movers) == 1 else [mover.at(on[1]).load(self.m.type(0), 1) for mover in self.movers]

    def _add_along(self, on: list[ir.Value], numbers: list[ir.Value]) -> None:
        """Add up a run along which the numbers that move do."""
        movers = [mover.at(on[1]) for mover in self.movers]
        if self.collected is None:
            self._add(on, numbers, movers)
            return
        length, rows = self.collected
        with self.builder.if_else(self.builder.icmp_signed(">", length, length.type(0))) as (collect, pass_by):
            with collect:
                self._add(on, numbers, movers, [row.at(on[1]) for row in rows])
            with pass_by:
                self._add(on, numbers, movers)

    def _add(
        self, on: list[ir.Value], numbers: list[ir.Value], movers: Sequence[Elements] = (), rows: Sequence[Elements] = ()
    ) -> None:
        """Add up a run, strip by strip, and what each element has to give to `rows`, where that is wanted."""
        builder, m, intp = self.builder, self.m, self.m.type
        splats = [splat(builder, number, LANES) for number in numbers]
        sources = [source.at(on[2 * k]) for k, source in enumerate(self.sources)]

        def add(j: ir.Value, mask: Mask = None) -> None:
            """Add LANES elements, or those of the mask."""
            along = [mover.load(j, LANES, mask) for mover in movers]
            values = [source.load(j, LANES, mask) for source in sources]
            for source in sources if mask is None else ():  # for a rest it would cost more than it gains
                source.prefetch(builder.add(j, intp(_AHEAD // source.size)), LANES)
            if rows:
                before = [row.load(j, LANES, mask) for row in rows]
                for row, total in zip(rows, add_terms(builder, before, values, splats), strict=True):
                    row.store(j, total, mask=mask)
            before = [builder.load(slot) for slot in self.strip]
            after = add_terms(builder, before, values, [*splats, *along])
            for slot, old, new in zip(self.strip, before, after, strict=True):
                builder.store(new if mask is None else builder.select(mask, new, old), slot)

        if self.one:
            self._add_strip(add, intp(0), self.whole, builder.icmp_signed("<", self.whole, m))
            return
        for slot in self.totals:
            builder.store(self.none, slot)
        with cgutils.for_range_slice(builder, intp(0), m, intp(STRIP), intp) as (start, _):
            end = builder.add(start, intp(STRIP))
            last = builder.and_(builder.icmp_signed(">", end, m), builder.icmp_signed("<", self.whole, m))
            stop = builder.select(builder.icmp_signed("<", end, self.whole), end, self.whole)
            self._add_strip(add, start, stop, last)
            for slot, strip in zip(self.totals, self.strip, strict=True):
                builder.store(builder.fadd(builder.load(slot), builder.load(strip)), slot)

    def _add_strip(self, add: Any, start: ir.Value, stop: ir.Value, last: ir.Value) -> None:
        """Sum [start, stop), whole rows of lanes, and if this strip is the last the rest of the run."""
        for slot in self.strip:
            self.builder.store(self.none, slot)
        with cgutils.for_range_slice(self.builder, start, stop, self.m.type(LANES), self.m.type) as (j, _):
            add(j)
        with self.builder.if_then(last):
            add(self.whole, self.rest)


def _given(context: Any, builder: ir.IRBuilder, sig: Any, args: Any, one: bool = False) -> tuple[RunSums, list[ir.Value]]:
    """What the primitives below have in common, in the order of their arguments: the sums, and the numbers of the set."""
    wide = context.get_value_type(sig.args[5][0])
    sources = sources_of(context, builder, sig, args, wide)
    movers = [mover.at(args[7]) for mover in elements_of(context, builder, sig.args[6], args[6], wide)]
    own = None
    if not isinstance(sig.args[9], types.NoneType):
        table = Table(context, builder, sig.args[9], args[9])
        own = table.length, [table.row(args[4].type(k)).at(builder.sub(args[7], args[10])) for k in range(2)]
    count = 1 if len(sources) == 1 else 0 if len(movers) == 3 else 3
    fixed = cgutils.unpack_tuple(builder, args[5], 3)[:count]
    return RunSums(builder, args[4], wide, sources, movers, args[8], own, one), fixed


@primitive
def sum_run(
    typingctx: Any, x: Any, o: Any, dy: Any, p: Any, m: Any, numbers: Any, moving: Any, at: Any, vary: Any, own: Any, base: Any
) -> Any:
    """The two sums over m neighbouring elements of one set, all lanes in registers.

    numbers: (high, low, rstd), or a pivot for high. moving: the arrays of numbers that change along a set, None, (weight,)
    or (high, low, rstd), read at + j where `vary` is set, else at `at` for the whole run; but a weight that does not vary is
    left out. Where it varies and own, None or 2 x n, is not empty, dy and dy * x_hat of each element are added to its rows
    too, from `at` on, of which `base` is the first.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        given, fixed = _given(context, builder, sig, args)
        found = given.lanes(fixed, [args[4].type(0)] * 3)
        return cgutils.pack_array(builder, [fold(builder, lanes) for lanes in found])

    index, flag = types.intp, types.boolean
    return types.UniTuple(numbers[0], 2)(x, index, dy, index, index, numbers, moving, index, flag, own, index), codegen


@primitive
def sum_runs(
    typingctx: Any,
    x: Any,
    o: Any,
    dy: Any,
    p: Any,
    m: Any,
    numbers: Any,
    moving: Any,
    at: Any,
    vary: Any,
    own: Any,
    base: Any,
    steps: Any,
    count: Any,
    to: Any,
) -> Any:
    """`sum_run` for each of `count` runs of a set, SIDE at most: the same sums, to the two rows of `to`.

    steps: from one run to the next in x, -, moving and dy. Runs of a strip at most have a loop of their own: the gradient of
    group norm of (64, 512, 4, 4) takes 0.213 ms so, 0.235 else (two threads, Zen 4, 2026-11).
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        table, intp = Table(context, builder, sig.args[13], args[13]), args[1].type
        steps, wide = cgutils.unpack_tuple(builder, args[11], 4), context.get_value_type(sig.args[5][0])
        half = ir.VectorType(wide, LANES // 2)
        laid = [cgutils.alloca_once(builder, half, intp(SIDE)) for _ in range(2)]

        def sum_each(given: RunSums, add: Any) -> None:
            walk = [intp(1), steps[0], steps[2], steps[3]]
            with each_run(builder, args[12], [intp(0)] * 4, walk) as (k, *on):
                add(on)
                for place, lanes in zip(laid, given.found(), strict=True):
                    builder.store(halve(builder, lanes), builder.gep(place, [k]))

        with builder.if_else(builder.icmp_signed("<=", args[4], intp(STRIP))) as ways:
            for one, way in zip((True, False), ways, strict=True):
                with way:
                    given, fixed = _given(context, builder, sig, args, one)
                    given.each_way(fixed, functools.partial(sum_each, given))
        for row, place in enumerate(laid):
            rows = [builder.load(builder.gep(place, [intp(k)])) for k in range(SIDE)]
            table.row(intp(row)).store(intp(0), fold_each(builder, rows))
        return context.get_dummy_value()

    index, flag, four = types.intp, types.boolean, types.UniTuple(types.intp, 4)
    return types.void(x, index, dy, index, index, numbers, moving, index, flag, own, index, four, index, to), codegen
