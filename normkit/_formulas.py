"""The formulas, for both backends, in LLVM IR: of one element of the norm, its gradient and the sums.

They work on scalars and on vectors alike. The numbers of an element are high, low, rstd (the centre has two parts, DESIGN
section 5), then weight and bias, or weight, shift, slope and gain. No fast-math flag is set anywhere.
"""

from __future__ import annotations

from llvmlite import ir

# Outside these bounds float32 loses digits (squares underflow below 1e-38, overflow above 3e38).
TINY_VARIANCE, HUGE = 1e-28, 1e38
STILL = 1e-10  # a set of this magnitude whose float32 squares are all 0 is constant: none can have underflowed
RSTD_LIMIT = 2.0**64  # within it neither x - mean nor x_hat leaves float32's range


def x_hat(builder: ir.IRBuilder, x: ir.Value, high: ir.Value, low: ir.Value, rstd: ir.Value) -> ir.Value:
    """((x - high) - low) * rstd."""
    return builder.fmul(builder.fsub(builder.fsub(x, high), low), rstd)


def element(builder: ir.IRBuilder, values: list[ir.Value], numbers: list[ir.Value]) -> ir.Value:
    """x_hat * weight + bias of x; or, of x and dy, gain * ((dy * weight - shift) - x_hat * slope)."""
    standard = x_hat(builder, values[0], *numbers[:3])
    if len(values) == 1:
        weight, bias = numbers[3:]
        return builder.fadd(builder.fmul(standard, weight), bias)
    weight, shift, slope, gain = numbers[3:]
    centred = builder.fsub(builder.fmul(values[1], weight), shift)
    return builder.fmul(builder.fsub(centred, builder.fmul(standard, slope)), gain)


def terms_of(builder: ir.IRBuilder, values: list[ir.Value], numbers: list[ir.Value]) -> tuple[ir.Value, ir.Value]:
    """What one element adds to the two sums. values: x, or x and dy; numbers: the pivot, or high, low, rstd (and weight)."""
    if len(values) == 1:
        d = builder.fsub(values[0], numbers[0])
        return d, builder.fmul(d, d)
    g = builder.fmul(values[1], numbers[3]) if len(numbers) > 3 else values[1]
    return g, builder.fmul(g, x_hat(builder, values[0], *numbers[:3]))
