"""The formulas of a set's numbers, in float64: in LLVM IR, on scalars and on vectors alike, and as functions of kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .._formulas import HUGE, STILL, TINY_VARIANCE
from .registers import double, narrow
from .simd import primitive

_NUMBER = types.float64


def _same(like: ir.Value, value: float) -> ir.Constant:
    """A constant, in every lane where `like` is a vector."""
    return ir.Constant(like.type, [value] * like.type.count if isinstance(like.type, ir.VectorType) else value)


def _of_one(builder: ir.IRBuilder, name: str, value: ir.Value) -> ir.Value:
    """A function of LLVM of one number, such as "sqrt"."""
    suffix = f"v{value.type.count}f64" if isinstance(value.type, ir.VectorType) else "f64"
    kind = ir.FunctionType(value.type, [value.type])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.{suffix}"), [value])


def moments_about_pivot(
    builder: ir.IRBuilder, s: ir.Value, q: ir.Value, share: ir.Value, pivot: ir.Value, origin: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """`about_pivot`."""
    part, zero = builder.fmul(s, share), _same(s, 0.0)
    m2 = builder.fsub(q, builder.fmul(s, part))
    mean = builder.fadd(builder.fsub(pivot, origin), part)
    return mean, builder.select(builder.fcmp_ordered("<", m2, zero), zero, m2)


def is_cancelled(builder: ir.IRBuilder, s: ir.Value, q: ir.Value, n: ir.Value) -> ir.Value:
    """`cancels`."""
    return builder.fcmp_ordered(">", builder.fmul(s, s), builder.fmul(builder.fmul(_same(s, 0.5), n), q))


def in_two_parts(builder: ir.IRBuilder, origin: ir.Value, mean: ir.Value) -> tuple[ir.Value, ir.Value]:
    """`two_parts`."""
    total = builder.fadd(origin, mean)
    return total, builder.fadd(builder.fsub(origin, total), mean)


def too_narrow(builder: ir.IRBuilder, mean: ir.Value, m2: ir.Value, n: ir.Value, center: ir.Value) -> ir.Value:
    """`loses_digits`."""
    size = _of_one(builder, "fabs", mean)
    wide = builder.fcmp_ordered("<=", builder.fmul(_same(n, TINY_VARIANCE), n), m2)
    wide = builder.and_(wide, builder.fcmp_ordered("<", m2, _same(m2, float("inf"))))
    sure = builder.or_(builder.fcmp_ordered("==", n, _same(n, 1.0)), builder.fcmp_ordered(">=", size, _same(size, STILL)))
    constant = builder.and_(center, builder.and_(builder.fcmp_ordered("==", m2, _same(m2, 0.0)), sure))
    return builder.not_(builder.and_(builder.or_(wide, constant), builder.fcmp_ordered("<=", size, _same(size, HUGE))))


def inverse_deviation(builder: ir.IRBuilder, m2: ir.Value, share: ir.Value, eps: ir.Value) -> ir.Value:
    """`scale_of`."""
    v, zero = builder.fadd(builder.fmul(m2, share), eps), _same(m2, 0.0)
    scale = builder.fdiv(_same(v, 1.0), _of_one(builder, "sqrt", v))
    return builder.select(builder.fcmp_ordered("==", v, zero), zero, scale)


def moments_of_set(
    builder: ir.IRBuilder, sums: Sequence[ir.Value], share: ir.Value, center: ir.Value
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The mean in two parts and M2 from (s, q, pivot), the two sums and what they are about; without `center` that is 0."""
    s, q, pivot = (double(builder, values) for values in sums)
    mean, m2 = moments_about_pivot(builder, s, q, share, pivot, pivot)
    mean, m2 = builder.select(center, mean, _same(mean, 0.0)), builder.select(center, m2, q)
    return *in_two_parts(builder, pivot, mean), m2


def in_accumulator(builder: ir.IRBuilder, mean: ir.Value, low: ir.Value, scale: ir.Value, number: ir.Type) -> list[ir.Value]:
    """The centre in two parts and the scale in the type of the accumulator: x - high is exact near the mean."""
    high = narrow(builder, mean, number)
    rest = builder.fadd(builder.fsub(mean, double(builder, high)), low)
    return [high, *(narrow(builder, values, number) for values in (rest, scale))]


@primitive
def merge(typingctx: Any, mean: Any, m2: Any, n: Any, mean_b: Any, m2_b: Any, n_b: Any) -> Any:
    """Mean and M2 of two parts together, the first of which may be empty (Chan, Golub and LeVeque 1983, eq. 2.1)."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        mean, m2, n, mean_b, m2_b, n_b = args
        delta, share = builder.fsub(mean_b, mean), builder.fdiv(n_b, builder.fadd(n, n_b))
        more = builder.fmul(builder.fmul(delta, delta), builder.fmul(n, share))
        both = [builder.fadd(mean, builder.fmul(delta, share)), builder.fadd(m2, builder.fadd(m2_b, more))]
        empty = builder.fcmp_ordered("==", n, n.type(0.0))
        return cgutils.pack_array(builder, [builder.select(empty, *pair) for pair in zip((mean_b, m2_b), both, strict=True)])

    return types.UniTuple(_NUMBER, 2)(*[_NUMBER] * 6), codegen


@primitive
def about_pivot(typingctx: Any, s: Any, q: Any, share: Any, pivot: Any, origin: Any) -> Any:
    """Mean (relative to origin) and M2 of 1 / share elements from their sums about a pivot."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return cgutils.pack_array(builder, moments_about_pivot(builder, *args))

    return types.UniTuple(_NUMBER, 2)(*[_NUMBER] * 5), codegen


@primitive
def cancels(typingctx: Any, s: Any, q: Any, n: Any) -> Any:
    """Whether the sums about a pivot lost more than a bit to its distance from the mean."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return is_cancelled(builder, *args)

    return types.boolean(*[_NUMBER] * 3), codegen


@primitive
def two_parts(typingctx: Any, origin: Any, mean: Any) -> Any:
    """The sum of an origin and a mean relative to it: high part and low part."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return cgutils.pack_array(builder, in_two_parts(builder, *args))

    return types.UniTuple(_NUMBER, 2)(_NUMBER, _NUMBER), codegen


@primitive
def loses_digits(typingctx: Any, mean: Any, m2: Any, n: Any, center: Any) -> Any:
    """Whether float32 was too narrow for this set (or it holds NaN or infinity, which float64 confirms).

    A kernel in float32 leaves such sets alone and marks them in `todo`; the same kernel in float64, given `todo`, does those.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return too_narrow(builder, *args)

    return types.boolean(*[_NUMBER] * 3, types.boolean), codegen


@primitive
def scale_of(typingctx: Any, m2: Any, share: Any, eps: Any) -> Any:
    """1 / sqrt(M2 * share + eps); 0 where that is 1 / 0, so that a constant set gives exactly its bias."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return inverse_deviation(builder, *args)

    return _NUMBER(*[_NUMBER] * 3), codegen
