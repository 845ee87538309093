"""Storage formats in LLVM IR: how an element in memory becomes a number of the accumulator, and back.

Numba's CPU types have neither float16 nor bfloat16. They need no arithmetic here, only conversion, so arrays of them
travel as records of one uint16 whose field name is the format (`STORAGE`), and every other dtype as itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from .._dtypes import Array, name_of

STORAGE = {name: np.dtype([(name, np.uint16)]) for name in ("float16", "bfloat16")}
_FLOAT = ir.FloatType()
_DOUBLE = ir.DoubleType()


def as_storage(array: Array) -> Array:
    """The same memory in a dtype that Numba can take: bool as uint8, float16 and bfloat16 as tagged records."""
    if array.dtype.kind == "b":
        return array.view(np.uint8)
    tagged = STORAGE.get(name_of(array.dtype))
    return array if tagged is None else array.view(tagged)


def storage_name(element: types.Type) -> str:
    """'float16' or 'bfloat16' for a tagged record, else ''."""
    return next(iter(element.fields)) if isinstance(element, types.Record) else ""


def memory_type(context: Any, element: types.Type) -> ir.Type:
    """The LLVM type of one element in memory."""
    return ir.IntType(16) if storage_name(element) else context.get_data_type(element)


def _lift(kind: ir.Type, like: ir.Value) -> ir.Type:
    """`kind`, as a vector when `like` is one: every conversion below works on scalars and vectors alike."""
    return ir.VectorType(kind, like.type.count) if isinstance(like.type, ir.VectorType) else kind


def _constant(kind: ir.Type, value: int) -> ir.Constant:
    if isinstance(kind, ir.VectorType):
        return ir.Constant(kind, [value] * kind.count)
    return ir.Constant(kind, value)


def decode(builder: ir.IRBuilder, value: ir.Value, element: types.Type, target: ir.Type) -> ir.Value:
    """An element as loaded -> the accumulator type `target` (float or double)."""
    name = storage_name(element)
    wide = _lift(target, value)
    if name == "bfloat16":  # the upper half of a float32
        i32 = _lift(ir.IntType(32), value)
        bits = builder.shl(builder.zext(value, i32), _constant(i32, 16))
        value = builder.bitcast(bits, _lift(_FLOAT, value))
    elif name == "float16":
        value = builder.fpext(builder.bitcast(value, _lift(ir.HalfType(), value)), _lift(_FLOAT, value))
    elif isinstance(element, types.Integer):
        convert = builder.sitofp if element.signed else builder.uitofp
        return convert(value, wide)
    return _resize(builder, value, wide)


def encode(builder: ir.IRBuilder, value: ir.Value, element: types.Type) -> ir.Value:
    """An accumulator value -> the element to store, rounded once (to nearest, ties to even)."""
    name = storage_name(element)
    if not name:
        kind = _FLOAT if element == types.float32 else _DOUBLE
        return _resize(builder, value, _lift(kind, value))
    if _scalar(value.type) == _DOUBLE:
        value = _round_to_odd(builder, value)
    i16 = _lift(ir.IntType(16), value)
    if name == "float16":
        return builder.bitcast(builder.fptrunc(value, _lift(ir.HalfType(), value)), i16)
    i32 = _lift(ir.IntType(32), value)
    bits = builder.bitcast(value, i32)
    odd = builder.and_(builder.lshr(bits, _constant(i32, 16)), _constant(i32, 1))
    rounded = builder.add(bits, builder.add(odd, _constant(i32, 0x7FFF)))
    quiet_nan = builder.or_(bits, _constant(i32, 0x400000))  # rounding could carry a NaN over into infinity
    is_nan = builder.fcmp_unordered("uno", value, value)
    kept = builder.select(is_nan, quiet_nan, rounded)
    return builder.trunc(builder.lshr(kept, _constant(i32, 16)), i16)


def _scalar(kind: ir.Type) -> ir.Type:
    return kind.element if isinstance(kind, ir.VectorType) else kind


def _resize(builder: ir.IRBuilder, value: ir.Value, target: ir.Type) -> ir.Value:
    """Float to float: widened, rounded or left alone."""
    if value.type == target:
        return value
    return (builder.fpext if _scalar(target) == _DOUBLE else builder.fptrunc)(value, target)


def _round_to_odd(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """float64 -> float32 such that rounding the result once more, to 16 bits, equals rounding `value` directly.

    The inexact result is moved to its neighbour with an odd last bit (Boldo and Melquiond, 2008), so the second
    rounding can never meet a tie that the first one made.
    """
    single = _lift(_FLOAT, value)
    i32 = _lift(ir.IntType(32), value)
    near = builder.fptrunc(value, single)
    back = builder.fpext(near, value.type)
    bits = builder.bitcast(near, i32)
    magnitude = builder.and_(bits, _constant(i32, 0x7FFFFFFF))
    negative = builder.icmp_signed("<", bits, _constant(i32, 0))
    above = builder.fcmp_ordered(">", back, value)
    below = builder.fcmp_ordered("<", back, value)
    away = builder.select(negative, below, above)  # |near| > |value|: one step back towards zero
    sign = builder.xor(bits, magnitude)
    cut = builder.sub(magnitude, builder.zext(away, i32))
    inexact = builder.zext(builder.or_(above, below), i32)
    return builder.bitcast(builder.or_(sign, builder.or_(cut, inexact)), single)
