"""Memory and arithmetic of a kernel in LLVM IR: `width` elements in or out of registers at once, and the shared formulas.

No spelling in Python makes the compiler read 16 bytes at once. Addresses are plain integers: a kernel has one signature.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from .._formulas import add_terms, element
from .._storage import decode, encode, memory_type
from .package import intrinsic, types
from .spec import Operand

_GLOBAL = 1  # the address space: a generic pointer is slower
_I32, _I64 = ir.IntType(32), ir.IntType(64)
Primitive = Callable[..., Any]


def _slot(context: Any, builder: ir.IRBuilder, kind: Any, array: Any, at: ir.Value, k: int = 0) -> ir.Value:
    """Pointer to element at + k of a thread's own array."""
    data = context.make_array(kind)(context, builder, value=array).data
    return builder.gep(data, [builder.add(at, ir.Constant(_I64, k))])


def _memory(builder: ir.IRBuilder, address: ir.Value, offset: ir.Value, kind: ir.Type, size: int) -> ir.Value:
    """Pointer to `kind` at element `offset` of the array at `address`, whose elements have `size` bytes."""
    place = builder.add(address, builder.mul(offset, ir.Constant(_I64, size)))
    return builder.inttoptr(place, kind.as_pointer(_GLOBAL))


def _size(storage: str) -> int:
    kind = memory_type(storage)
    return kind.width // 8 if isinstance(kind, ir.IntType) else 4 if isinstance(kind, ir.FloatType) else 8


def _packed(storage: str, width: int) -> ir.Type:
    """The type that one access of `width` elements has: words, where elements are smaller than these."""
    size = _size(storage)
    if size >= 4:
        return ir.VectorType(memory_type(storage), width)
    return ir.VectorType(_I32, size * width // 4) if size * width >= 4 else ir.IntType(8 * size * width)


def _unpacked(builder: ir.IRBuilder, whole: ir.Value, kind: ir.Type, size: int, k: int) -> ir.Value:
    """Element k of what one access read."""
    if not isinstance(whole.type, ir.VectorType):
        return builder.trunc(builder.lshr(whole, ir.Constant(whole.type, 8 * size * k)), kind)
    if size >= 4:
        return builder.extract_element(whole, ir.Constant(_I32, k))
    word = builder.extract_element(whole, ir.Constant(_I32, k * size // 4))
    return builder.trunc(builder.lshr(word, ir.Constant(_I32, 8 * size * k % 32)), kind)


def _pack(builder: ir.IRBuilder, values: list[ir.Value], packed: ir.Type, size: int) -> ir.Value:
    """Elements as one access writes them. Vectors of 16-bit elements would be cut into narrower stores."""
    each = isinstance(packed, ir.VectorType)
    word = packed.element if each else packed
    of_word = max(1, 4 // size) if each else len(values)
    words = []
    for start in range(0, len(values), of_word):
        joined = values[start]
        if of_word > 1:
            parts = [builder.shl(builder.zext(v, word), ir.Constant(word, 8 * size * k))
                     for k, v in enumerate(values[start : start + of_word])]  # fmt: skip
            joined = parts[0]
            for part in parts[1:]:
                joined = builder.or_(joined, part)
        words.append(joined)
    if not each:
        return words[0]
    whole = ir.Constant(packed, ir.Undefined)
    for k, value in enumerate(words):
        whole = builder.insert_element(whole, value, ir.Constant(_I32, k))
    return whole


def fetch_of(operand: Operand, width: int) -> Primitive:
    """fetch(address, offset, step, to, at): to[at + k] = element at offset + k * step, for k below width."""
    kind, size = memory_type(operand.storage), _size(operand.storage)

    @intrinsic
    def fetch(typingctx: Any, address: Any, offset: Any, step: Any, to: Any, at: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
            wide = context.get_value_type(sig.args[3].dtype)
            whole = None
            if operand.vector:
                packed = _packed(operand.storage, width)
                whole = builder.load(_memory(builder, args[0], args[1], packed, size), align=size * width)
            for k in range(width):
                if whole is None:
                    offset = builder.add(args[1], builder.mul(args[2], ir.Constant(_I64, k)))
                    value = builder.load(_memory(builder, args[0], offset, kind, size), align=size)
                else:
                    value = _unpacked(builder, whole, kind, size, k)
                number = decode(builder, value, operand.storage, wide)
                builder.store(number, _slot(context, builder, sig.args[3], args[3], args[4], k))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, to, types.int64), generate

    return fetch  # type: ignore[no-any-return]


def put_of(operand: Operand, width: int) -> Primitive:
    """put(address, offset, step, source, at): element at offset + k * step = source[at + k], rounded once."""
    kind, size = memory_type(operand.storage), _size(operand.storage)

    @intrinsic
    def put(typingctx: Any, address: Any, offset: Any, step: Any, source: Any, at: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
            values = []
            for k in range(width):
                number = builder.load(_slot(context, builder, sig.args[3], args[3], args[4], k))
                value = encode(builder, number, operand.storage)
                if operand.vector:
                    values.append(value)
                    continue
                offset = builder.add(args[1], builder.mul(args[2], ir.Constant(_I64, k)))
                builder.store(value, _memory(builder, args[0], offset, kind, size), align=size)
            if operand.vector:
                packed = _packed(operand.storage, width)
                pointer = _memory(builder, args[0], args[1], packed, size)
                builder.store(_pack(builder, values, packed, size), pointer, align=size * width)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, source, types.int64), generate

    return put  # type: ignore[no-any-return]


def quotient_of(big: bool) -> Primitive:
    """quotient(a, b): a // b of numbers that are not negative. 32 bits take a tenth of the time of 64."""

    @intrinsic
    def quotient(typingctx: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
            if big:
                return builder.udiv(*args)
            return builder.zext(builder.udiv(*(builder.trunc(value, _I32) for value in args)), _I64)

        return types.int64(types.int64, types.int64), generate

    return quotient  # type: ignore[no-any-return]


def tree_of(count: int, stride: int) -> Primitive:
    """tree(array, at): the sum of `count` elements, `stride` apart, in halves."""

    @intrinsic
    def tree(typingctx: Any, array: Any, at: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
            parts = [builder.load(_slot(context, builder, sig.args[0], args[0], args[1], k * stride)) for k in range(count)]
            while len(parts) > 1:
                half = len(parts) // 2
                parts = [builder.fadd(a, b) for a, b in zip(parts[:half], parts[half:], strict=True)]
            return parts[0]

        return array.dtype(array, types.int64), generate

    return tree  # type: ignore[no-any-return]


def _arithmetic(formula: Callable[..., Any], values: int, results: int) -> Primitive:
    """A shared formula as a function of plain numbers: the first `values` are those of an element."""

    @intrinsic
    def compute(typingctx: Any, numbers: Any) -> Any:
        kind = numbers.dtype

        def generate(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
            parts = [builder.extract_value(args[0], k) for k in range(sig.args[0].count)]
            result = formula(builder, parts[:values], parts[values:])
            return context.make_tuple(builder, sig.return_type, result) if results > 1 else result

        return (types.UniTuple(kind, results) if results > 1 else kind)(numbers), generate

    return compute  # type: ignore[no-any-return]


normalized = _arithmetic(element, 1, 1)  # of (x, high, low, rstd, weight, bias)
gradient = _arithmetic(element, 2, 1)  # of (x, dy, high, low, rstd, weight, shift, slope, gain)


def _add_terms(builder: ir.IRBuilder, values: list[Any], numbers: list[Any]) -> Any:
    """The shared formula, where the sums stand before the values."""
    return add_terms(builder, values[:2], values[2:], numbers)


add_deviation = _arithmetic(_add_terms, 3, 2)  # to sums, of (s, q, x, pivot)
add_products = _arithmetic(_add_terms, 4, 2)  # to sums, of (s, q, x, dy, high, low, rstd, weight)


@intrinsic
def read(typingctx: Any, address: Any, index: Any) -> Any:
    """One float64."""

    def generate(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return builder.load(_memory(builder, args[0], args[1], ir.DoubleType(), 8), align=8)

    return types.float64(types.int64, types.int64), generate


@intrinsic
def write(typingctx: Any, address: Any, index: Any, value: Any) -> Any:
    """Set one float64."""

    def generate(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        builder.store(args[2], _memory(builder, args[0], args[1], ir.DoubleType(), 8), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float64), generate
