"""Storage formats in LLVM IR, for both backends: how an element in memory becomes a number of the accumulator, and back.

Formats go by the names of `_dtypes`. float16 and bfloat16 need no arithmetic, only conversion. A processor that has no
instruction for float16 reads and writes SOFT_HALF: the same format by integers. LLVM would call a function that is not there.
One that has an instruction for bfloat16 writes FAST_BFLOAT16.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils

_FLOAT = ir.FloatType()
_DOUBLE = ir.DoubleType()
_CONVERTED = 16  # numbers in a register of AVX-512
_SUBNORMAL = 0x20  # for VFPCLASSPS
SOFT_HALF = "float16 by integers"
FAST_BFLOAT16 = "bfloat16 by instruction"
_MEMORY = {"float32": _FLOAT, "float64": _DOUBLE}


def memory_type(name: str) -> ir.Type:
    """The LLVM type of one element in memory."""
    digits = "".join(filter(str.isdigit, name))
    return _MEMORY.get(name) or ir.IntType(int(digits or 8))  # bool is a byte


def _lift(kind: ir.Type, like: ir.Value) -> ir.Type:
    """`kind`, as a vector when `like` is one: every conversion below works on scalars and vectors alike."""
    return ir.VectorType(kind, like.type.count) if isinstance(like.type, ir.VectorType) else kind


def _constant(kind: ir.Type, value: int) -> ir.Constant:
    if isinstance(kind, ir.VectorType):
        return ir.Constant(kind, [value] * kind.count)
    return ir.Constant(kind, value)


def decode(builder: ir.IRBuilder, value: ir.Value, name: str, target: ir.Type) -> ir.Value:
    """An element as loaded -> the accumulator type `target` (float or double)."""
    wide = _lift(target, value)
    if name in ("bfloat16", FAST_BFLOAT16):  # the upper half of a float32
        i32 = _lift(ir.IntType(32), value)
        bits = builder.shl(builder.zext(value, i32), _constant(i32, 16))
        value = builder.bitcast(bits, _lift(_FLOAT, value))
    elif name == "float16":
        value = builder.fpext(builder.bitcast(value, _lift(ir.HalfType(), value)), _lift(_FLOAT, value))
    elif name == SOFT_HALF:
        value = _from_half(builder, value)
    elif name not in _MEMORY:
        convert = builder.sitofp if name.startswith("int") else builder.uitofp
        return convert(value, wide)
    return _resize(builder, value, wide)


def encode(builder: ir.IRBuilder, value: ir.Value, name: str) -> ir.Value:
    """An accumulator value -> the element to store, rounded once (to nearest, ties to even)."""
    if name in _MEMORY:
        return _resize(builder, value, _lift(_MEMORY[name], value))
    if _scalar(value.type) == _DOUBLE:
        value = _round_to_odd(builder, value)
    i16 = _lift(ir.IntType(16), value)
    if name == "float16":
        return builder.bitcast(builder.fptrunc(value, _lift(ir.HalfType(), value)), i16)
    i32 = _lift(ir.IntType(32), value)
    bits = builder.bitcast(value, i32)
    if name == SOFT_HALF:
        return builder.trunc(_to_half(builder, bits), i16)
    if name == FAST_BFLOAT16 and isinstance(i16, ir.VectorType) and i16.count % _CONVERTED == 0:
        return _convert_to_bfloat16(builder, value, bits)
    return _to_bfloat16(builder, value, bits)


def _convert_to_bfloat16(builder: ir.IRBuilder, value: ir.Value, bits: ir.Value) -> ir.Value:
    """As `_to_bfloat16`, by instructions, which take subnormal numbers for 0: where there is one, by integers after all.

    LLVM's own conversion would leave that out. The results of instance norm of channels-last (8, 64, 256, 256), on one thread:
    7.4 ms so, 13 by integers. First numbers with an exponent of 0 are looked for, then whether they are other than 0: layer
    norm of (64, 197, 768) takes 1.13 ms for 64 numbers at a time, 1.27 for 16.
    """
    lanes, i32 = ir.IntType(_CONVERTED), ir.VectorType(ir.IntType(32), _CONVERTED)
    parts = [part_of(builder, value, k, _CONVERTED) for k in range(0, value.type.count, _CONVERTED)]
    converted = _rounded(builder, parts)
    normal = ir.Constant(ir.VectorType(ir.IntType(1), _CONVERTED), [1] * _CONVERTED)
    for part in parts:
        exponent = builder.and_(builder.bitcast(part, i32), _constant(i32, 0x7F800000))
        normal = builder.and_(normal, builder.icmp_unsigned("!=", exponent, _constant(i32, 0)))
    before = builder.block
    with builder.if_then(builder.icmp_unsigned("!=", builder.bitcast(normal, lanes), lanes(-1)), likely=False):
        subnormal = lanes(0)
        for part in parts:
            found = _instruction(builder, "avx512.fpclass.ps", normal.type, part, ir.IntType(32)(_SUBNORMAL))
            subnormal = builder.or_(subnormal, builder.bitcast(found, lanes))
        exact = builder.select(builder.icmp_unsigned("!=", subnormal, lanes(0)), _to_bfloat16(builder, value, bits), converted)
        inside = builder.block
    result = builder.phi(converted.type)
    result.add_incoming(converted, before)
    result.add_incoming(exact, inside)
    return result


def _rounded(builder: ir.IRBuilder, parts: list[ir.Value]) -> ir.Value:
    """2^k vectors of _CONVERTED float32 as one of bfloat16, two at a time if there are more."""
    if len(parts) == 1:
        kind = ir.VectorType(ir.IntType(16), _CONVERTED)
        return _instruction(builder, "avx512bf16.cvtneps2bf16", kind, *parts)
    if len(parts) == 2:
        kind = ir.VectorType(ir.IntType(16), 2 * _CONVERTED)
        return _instruction(builder, "avx512bf16.cvtne2ps2bf16", kind, *reversed(parts))
    halves = [_rounded(builder, parts[: len(parts) // 2]), _rounded(builder, parts[len(parts) // 2 :])]
    order = list(range(2 * halves[0].type.count))
    return builder.shuffle_vector(*halves, ir.Constant(ir.VectorType(ir.IntType(32), len(order)), order))


def _instruction(builder: ir.IRBuilder, name: str, result: ir.Type, *values: ir.Value) -> ir.Value:
    """What one of AVX-512's instructions for whole registers makes of values."""
    kind = ir.FunctionType(result, [value.type for value in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}.512"), values)


def part_of(builder: ir.IRBuilder, value: ir.Value, start: int, count: int) -> ir.Value:
    """Neighbours in a vector."""
    order = ir.Constant(ir.VectorType(ir.IntType(32), count), list(range(start, start + count)))
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), order)


def _to_bfloat16(builder: ir.IRBuilder, value: ir.Value, bits: ir.Value) -> ir.Value:
    """float32, and its bits, as those of a bfloat16, to nearest, ties to even."""
    i32 = bits.type
    odd = builder.and_(builder.lshr(bits, _constant(i32, 16)), _constant(i32, 1))
    rounded = builder.add(bits, builder.add(odd, _constant(i32, 0x7FFF)))
    quiet_nan = builder.or_(bits, _constant(i32, 0x400000))  # rounding could carry a NaN over into infinity
    is_nan = builder.fcmp_unordered("uno", value, value)
    kept = builder.select(is_nan, quiet_nan, rounded)
    return builder.trunc(builder.lshr(kept, _constant(i32, 16)), _lift(ir.IntType(16), value))


def _from_half(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """The 16 bits of a float16 as float32."""
    i32, single = (_lift(kind, value) for kind in (ir.IntType(32), _FLOAT))
    whole = builder.zext(value, i32)
    sign = builder.shl(builder.and_(whole, _constant(i32, 0x8000)), _constant(i32, 16))
    shifted = builder.shl(builder.and_(whole, _constant(i32, 0x7FFF)), _constant(i32, 13))
    scale = builder.bitcast(_constant(i32, 0x77800000), single)  # 2**112: the difference of the exponents' biases
    finite = builder.bitcast(builder.fmul(builder.bitcast(shifted, single), scale), i32)
    special = builder.icmp_unsigned(">=", shifted, _constant(i32, 0x7C00 << 13))  # infinity and NaN
    magnitude = builder.select(special, builder.or_(shifted, _constant(i32, 0x7F800000)), finite)
    return builder.bitcast(builder.or_(sign, magnitude), single)


def _to_half(builder: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    """The 32 bits of a float32 as those of a float16, to nearest, ties to even."""
    i32, single = bits.type, _lift(_FLOAT, bits)
    sign = builder.and_(builder.lshr(bits, _constant(i32, 16)), _constant(i32, 0x8000))
    a = builder.and_(bits, _constant(i32, 0x7FFFFFFF))
    odd = builder.and_(builder.lshr(a, _constant(i32, 13)), _constant(i32, 1))
    rounded = builder.lshr(builder.add(a, builder.add(odd, _constant(i32, 0xFFF))), _constant(i32, 13))
    normal = builder.sub(rounded, _constant(i32, 112 << 10))
    half = _constant(i32, 0x3F000000)  # 0.5, whose last bit is that of the subnormal numbers of float16
    placed = builder.bitcast(builder.fadd(builder.bitcast(a, single), builder.bitcast(half, single)), i32)
    small = builder.icmp_unsigned("<", a, _constant(i32, 0x38800000))  # 2**-14
    found = builder.select(small, builder.sub(placed, half), normal)
    found = builder.select(builder.icmp_unsigned(">=", a, _constant(i32, 0x47800000)), _constant(i32, 0x7C00), found)
    is_nan = builder.icmp_unsigned(">", a, _constant(i32, 0x7F800000))
    payload = builder.or_(builder.and_(builder.lshr(a, _constant(i32, 13)), _constant(i32, 0x3FF)), _constant(i32, 0x7E00))
    return builder.or_(sign, builder.select(is_nan, payload, found))


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
