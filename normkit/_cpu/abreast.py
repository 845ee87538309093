"""Short sets some at a time: what follows their sums one step after the other is computed for all of them at once."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from . import formulas
from .affine import each_way, write_run
from .finish import keep
from .geometry import HEAD_OF_RUN
from .registers import double, fold, fold_each, halve, narrow, some, splat, vector
from .simd import Elements, Table, elements_of, primitive
from .strips import LONG, STRIP, RunSums, mean_of_few

# Layer norm of 682 x 96 on one thread, in ns for a set: 22 to 24 of 4 at a time, 22 to 25 of 8, 25 to 27 of 2, 31 to 33 one by
# one; of float16 23 to 28, 27 to 34, 38 to 43, 39 (Zen 4, 2026-11).
ABREAST = 4
# A run of theirs has at most so many bytes. In ms on two threads, so or one by one: 50000 x 192 of float32 1.5 / 1.6, 40000 x
# 240 1.5 / 1.4, 32000 x 300 1.7 / 1.5, and of float16 1.3 / 1.5 (the same).
ABREAST_BYTES = 768
_DOUBLE = ir.DoubleType()


def _first_pivot(builder: ir.IRBuilder, run: Elements, n: ir.Value, center: ir.Value) -> ir.Value:
    """The pivot of a run, that of `runs._block_sums`; 0 without `center`."""
    pivot = cgutils.alloca_once_value(builder, ir.Constant(run.wide, 0.0))
    with builder.if_then(center), builder.if_else(builder.icmp_signed(">", n, n.type(LONG))) as (long, short):
        with long:
            start = run.load(n.type(0), 1)
            head = builder.fsub(run.load(n.type(0), HEAD_OF_RUN), splat(builder, start, HEAD_OF_RUN))
            share = builder.fmul(double(builder, fold(builder, head)), _DOUBLE(1.0 / HEAD_OF_RUN))
            builder.store(narrow(builder, builder.fadd(double(builder, start), share), run.wide), pivot)
        with short:
            builder.store(mean_of_few(builder, run, n), pivot)
    return builder.load(pivot)


class _Abreast:
    """What `normalize_abreast` was given, and its steps. No loop of LLVM's goes over the sets: it would take a fifth more."""

    def __init__(self, context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> None:
        wide = context.get_value_type(sig.args[11].dtype)
        self.builder, self.n, self.k, self.eps = builder, args[5], args[6], args[8]
        self.vary, self.stream = args[12:14]
        offsets, self.steps = (cgutils.unpack_tuple(builder, args[j], 4) for j in (3, 4))
        arrays = (Elements(context, builder, sig.args[j], args[j], wide).at(offsets[j]) for j in range(2))
        self.source, self.result = arrays
        movers = elements_of(context, builder, sig.args[2], args[2], wide)
        self.movers = [mover.at(offset) for mover, offset in zip(movers, offsets[2:], strict=True)]
        self.shares = cgutils.unpack_tuple(builder, args[7], 2)
        self.center, self.row = cgutils.is_true(builder, args[9]), ir.VectorType(wide, ABREAST)
        self.moments = Table(context, builder, sig.args[10], args[10])

    def spread(self, value: ir.Value) -> ir.Value:
        """The same for every set."""
        return splat(self.builder, value, ABREAST)

    def sums(self) -> tuple[ir.Value, ...]:
        """The two sums of every set and its pivot."""
        builder, none = self.builder, self.n.type(0)
        one = STRIP * self.result.size >= ABREAST_BYTES
        add_up = RunSums(builder, self.n, self.row.element, [self.source], [], None, None, one)
        found: list[list[ir.Value]] = []
        for r in range(ABREAST):
            on = builder.mul(self.steps[0], none.type(r))
            run = self.source.at(on)
            pivot = _first_pivot(builder, run, self.n, self.center)
            lanes = [halve(builder, half) for half in add_up.lanes([pivot], [on, none, none])]
            found.append([*lanes, pivot])
        s, q, pivots = map(list, zip(*found, strict=True))
        return fold_each(builder, s), fold_each(builder, q), vector(builder, pivots)

    def moments_of(self) -> tuple[ir.Value, ...]:
        """The mean of every set in two parts and its M2; and whether they are good for all of them."""
        builder, sums = self.builder, self.sums()
        n, centred = self.spread(builder.sitofp(self.n, _DOUBLE)), self.spread(self.center)
        total, low, m2 = formulas.moments_of_set(builder, sums, self.spread(self.shares[0]), centred)
        s, q = (double(builder, values) for values in sums[:2])
        left = builder.and_(centred, formulas.is_cancelled(builder, s, q, n))
        if self.row.element != _DOUBLE:
            left = builder.or_(left, formulas.too_narrow(builder, total, m2, n, centred))
        return total, low, m2, builder.not_(some(builder, left))

    def write(self, total: ir.Value, low: ir.Value, m2: ir.Value) -> None:
        """The results, from the moments."""
        builder = self.builder
        scale = formulas.inverse_deviation(builder, m2, self.spread(self.shares[1]), self.spread(self.eps))
        numbers = formulas.in_accumulator(builder, total, low, scale, self.row.element)

        def write(varying: bool, streaming: bool) -> None:
            for r in range(ABREAST):
                x, y, *affine = (builder.mul(step, self.n.type(r)) for step in self.steps)
                own = [builder.extract_element(values, ir.IntType(32)(r)) for values in numbers]
                movers = [mover.at(on) for mover, on in zip(self.movers, affine, strict=True)]
                write_run(builder, self.n, ([self.source.at(x)], self.result.at(y)), movers, own, [], varying, streaming)

        each_way(builder, self.vary, self.stream, write)


@primitive
def normalize_abreast(
    typingctx: Any,
    x: Any,
    y: Any,
    moving: Any,
    at: Any,
    steps: Any,
    n: Any,
    k: Any,
    shares: Any,
    eps: Any,
    center: Any,
    moments: Any,
    real: Any,
    vary: Any,
    stream: Any,
) -> Any:
    """Normalize sets [k, k + ABREAST), each a run of n elements, a block at most. The same bits as one by one.

    Returns whether it did: not where the pivot of one turned out to be far off, or one waits for float64. at, steps: offsets of
    set k in x, y, weight and bias, and how far the next set is. shares: 1 / n, and 1 / the divisor of the variance.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        sets = _Abreast(context, builder, sig, args)
        *moments, good = sets.moments_of()
        with builder.if_then(good):
            keep(builder, sets.moments, sets.k, moments)
            sets.write(*moments)
        return good

    index, four, flag, number = types.intp, types.UniTuple(types.intp, 4), types.boolean, types.float64
    shares = types.UniTuple(number, 2)
    return flag(x, y, moving, four, four, index, index, shares, number, flag, moments, real, flag, flag), codegen
