"""Plumbing of explicit SIMD: arrays inside an intrinsic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from llvmlite import binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .. import _storage

STEP = 16  # elements per vector operation of the elementwise loops
CACHE_LINE = 64  # bytes
_SHORT = {"float": "f32", "double": "f64", **{f"i{bits}": f"i{bits}" for bits in (8, 16, 32, 64)}}  # LLVM's names of types

primitive: Callable[[Callable[..., Any]], Any] = intrinsic  # a function of a kernel that is written in LLVM IR
Mask: TypeAlias = "ir.Value | None"


def storage_name(element: types.Type) -> str:
    """The format of an array's elements: the field of a tagged record (see `plan`), else the dtype itself."""
    return next(iter(element.fields)) if isinstance(element, types.Record) else str(element)


def _has(context: Any, feature: str, elsewhere: bool) -> bool:
    """Whether the x86 processor that code is made for has a feature; what is so for other processors."""
    if not llvm.get_process_triple().startswith(("x86", "i386", "i686")):
        return elsewhere
    return f"+{feature}" in context.codegen()._tm_features.split(",")


class Elements:
    """A flat array inside an intrinsic: loads decode to the accumulator type, stores encode from it."""

    def __init__(self, context: Any, builder: ir.IRBuilder, kind: types.Array, value: ir.Value, wide: ir.Type) -> None:
        self.builder, self.storage, self.wide = builder, storage_name(kind.dtype), wide
        if self.storage == "float16" and not _has(context, "f16c", elsewhere=True):
            self.storage = _storage.SOFT_HALF
        elif self.storage == "bfloat16" and _has(context, "avx512bf16", elsewhere=False):
            self.storage = _storage.FAST_BFLOAT16
        self.fuses = _has(context, "avx", elsewhere=False)
        self.memory = _storage.memory_type(self.storage)
        data = context.make_array(kind)(context, builder, value).data
        self.data = builder.bitcast(data, self.memory.as_pointer())
        self.align = self.size = int(context.get_abi_sizeof(self.memory))

    def at(self, *offsets: ir.Value) -> Elements:
        """The same array, starting at the sum of `offsets`."""
        moved = object.__new__(Elements)
        moved.__dict__.update(self.__dict__)
        for offset in offsets:
            moved.data = self.builder.gep(moved.data, [offset])
        return moved

    def load(self, index: ir.Value, count: int, mask: Mask = None) -> ir.Value:
        """`count` elements; only those of the mask are read, and the others 0."""
        kind = self.memory if count == 1 else ir.VectorType(self.memory, count)
        pointer = self.builder.bitcast(self.builder.gep(self.data, [index]), kind.as_pointer())
        if mask is None:
            value = self.builder.load(pointer, align=self.align)
        else:
            value = self._masked("load", kind, [pointer, ir.IntType(32)(self.align), mask, ir.Constant(kind, None)])
        return _storage.decode(self.builder, value, self.storage, self.wide)

    def store(self, index: ir.Value, value: ir.Value, streaming: bool = False, mask: Mask = None) -> None:
        """Set as many elements as `value` has; only those of the mask are touched."""
        encoded = _storage.encode(self.builder, value, self.storage)
        pointer = self.builder.bitcast(self.builder.gep(self.data, [index]), encoded.type.as_pointer())
        if mask is not None:
            self._masked("store", ir.VoidType(), [encoded, pointer, ir.IntType(32)(self.align), mask])
            return
        if not streaming:
            self.builder.store(encoded, pointer, align=self.align)
            return
        mark = self.builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        for start in range(0, encoded.type.count, STEP):
            part = self._in_register(_storage.part_of(self.builder, encoded, start, STEP))
            place = self.builder.gep(self.data, [self.builder.add(index, index.type(start))])
            place = self.builder.bitcast(place, part.type.as_pointer())
            self.builder.store(part, place, align=self._vector_bytes).set_metadata("nontemporal", mark)

    def _in_register(self, value: ir.Value) -> ir.Value:
        """The same value, of which LLVM knows nothing: it would convert to 16 bits and store in one instruction of x86, which
        leaves out that the store is to go past the caches. Instance norm of 64 MiB of float16: 4.5 ms so, 6.3 without.
        """
        if self.size != 2 or not self.fuses:
            return value
        same = ir.FunctionType(value.type, [value.type])
        return self.builder.asm(same, "", "=v,0", [value], side_effect=False)

    def _masked(self, what: str, result: ir.Type, args: list[ir.Value]) -> ir.Value:
        vector = args[0].type if what == "store" else result
        name = f"llvm.masked.{what}.v{vector.count}{_SHORT[str(vector.element)]}.p0"
        kind = ir.FunctionType(result, [arg.type for arg in args])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), args)

    def mark(self, index: ir.Value, mask: ir.Value) -> None:
        """Set bytes of the mask to 1."""
        ones = ir.Constant(ir.VectorType(self.memory, mask.type.count), [1] * mask.type.count)
        pointer = self.builder.bitcast(self.builder.gep(self.data, [index]), ones.type.as_pointer())
        self._masked("store", ir.VoidType(), [ones, pointer, ir.IntType(32)(self.align), mask])

    @property
    def steps(self) -> tuple[int, ...]:
        """Elements of a store in a loop over many, from most to least: what takes one check for all is done for more."""
        return (4 * STEP, STEP) if self.storage == _storage.FAST_BFLOAT16 else (STEP,)

    @property
    def _vector_bytes(self) -> int:
        return STEP * self.size

    def until_aligned(self) -> ir.Value:
        """How many elements from here until a whole vector can be streamed."""
        intp = ir.IntType(64)
        address = self.builder.ptrtoint(self.data, intp)
        gap = self.builder.and_(self.builder.neg(address), ir.Constant(intp, self._vector_bytes - 1))
        return self.builder.udiv(gap, ir.Constant(intp, self.size))

    def prefetch(self, index: ir.Value, count: int) -> None:
        """Ask for the cache lines of `count` elements."""
        byte, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
        ask = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        for line in range(0, count, CACHE_LINE // self.size):
            place = self.builder.gep(self.data, [self.builder.add(index, index.type(line))])
            self.builder.call(ask, [self.builder.bitcast(place, byte), i32(0), i32(2), i32(1)])  # to read, into L2, data


class Table:
    """The rows of an array, inside an intrinsic, in its own dtype or as numbers of type `wide`; of a flat one there is one."""

    def __init__(
        self, context: Any, builder: ir.IRBuilder, kind: types.Array, value: ir.Value, wide: ir.Type | None = None
    ) -> None:
        self.builder = builder
        self.start = Elements(context, builder, kind, value, wide or context.get_value_type(kind.dtype))
        array = context.make_array(kind)(context, builder, value)
        self.length = self.step = cgutils.unpack_tuple(builder, array.shape, kind.ndim)[-1]
        if kind.layout != "C":  # some columns of a wider one
            stride = cgutils.unpack_tuple(builder, array.strides, kind.ndim)[0]
            self.step = builder.sdiv(stride, stride.type(self.start.size))

    def row(self, index: ir.Value) -> Elements:
        return self.start.at(self.builder.mul(self.step, index))


class Integers:
    """The rows of a two-dimensional integer array, inside an intrinsic."""

    def __init__(self, context: Any, builder: ir.IRBuilder, kind: types.Array, value: ir.Value) -> None:
        array = context.make_array(kind)(context, builder, value)
        self.context, self.builder, self.data = context, builder, array.data
        self.shape = cgutils.unpack_tuple(builder, array.shape, 2)
        self.length = self.shape[1]

    def at(self, row: ir.Value, column: ir.Value) -> ir.Value:
        """One element; with NUMBA_BOUNDSCHECK, which Numba asks for itself elsewhere, it must be there."""
        if self.context.enable_boundscheck:
            for axis, index in enumerate((row, column)):
                cgutils.do_boundscheck(self.context, self.builder, index, self.shape[axis], axis)
        return self.builder.load(self.builder.gep(self.data, [self.builder.add(self.builder.mul(self.length, row), column)]))

    def row(self, index: int) -> Callable[[ir.Value], ir.Value]:
        """What reads an element of a row."""
        return lambda k: self.at(self.length.type(index), k)


def elements_of(context: Any, builder: ir.IRBuilder, kinds: Any, value: ir.Value, wide: ir.Type) -> list[Elements]:
    """The flat arrays of a tuple, those that are None left out; none of None."""
    if isinstance(kinds, types.NoneType):
        return []
    parts = zip(kinds, cgutils.unpack_tuple(builder, value, len(kinds)), strict=True)
    return [Elements(context, builder, kind, part, wide) for kind, part in parts if not isinstance(kind, types.NoneType)]


def sources_of(context: Any, builder: ir.IRBuilder, sig: Any, args: Any, wide: ir.Type) -> list[Elements]:
    """The first four arguments of a sum or an elementwise loop: x at its offset, and dy at its own unless it is None."""
    present = [k for k in (0, 2) if not isinstance(sig.args[k], types.NoneType)]
    return [Elements(context, builder, sig.args[k], args[k], wide).at(args[k + 1]) for k in present]
