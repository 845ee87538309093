"""Numbers copied to memory of another order: squares of them are read in lines, turned in registers and written in lines.

What is too narrow for a square goes one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from .. import _storage
from .._dtypes import Array, accumulator, name_of
from .._layout import Strides, ceil_div, set_view
from .compile import jit, jit_inline
from .geometry import COLUMNS, HEADER, KEPT, SIZE, X, Y
from .indexing import entry, set_origin
from .plan import flat_for, layout_of, strides_of
from .simd import Elements, primitive
from .threads import Launcher
from .vectors import least, out_of_line

# Numbers that are copied one by one in a pass of a loop, all read before any is written: pictures, uint8 of channels-last
# (4, 3, 512, 512), to float32 planes take 0.7 ms so, 2.0 by one at a time, where NumPy's copy takes 1.3 to 2.0.
_ABREAST = 8
_SQUARE = 16  # numbers of a side: a cache line of float32
# A block: so many numbers of a line of what is read, by so many of one of what is written; the last one up to twice as many.
# (4, 320, 64, 64) to channels last and back takes 1.7 and 2.1 ms so, 1.9 and 2.4 of 64 in a line, 2.3 and 2.5 of 32, while a
# copy takes 0.74 (two threads, Zen 4, 2026-11).
_WIDTH, _HEIGHT = 128, 1024
_TASK = 1 << 15  # numbers
# Lines up to this length are copied, though they are lines in both: instance norm of the first 2 of 16 channels of pictures,
# (8, 128, 128, 16), takes 0.20 ms so, of 4 0.34, 8 0.69, and 0.40, 0.39 and 0.45 where they lie (two threads, Zen 4, 2026-11).
_SHORT = 4
# The geometry is that of `geometry.py`: blocks are its sets, X is read and Y is written. Row 1: blocks of a task, side by side,
# below each other, and all of them; and the width of one. Last, the two segments of a block: that read in line, if one is, and
# that written in line.
_PER_TASK, _BESIDE, _BELOW, _BLOCKS, _WIDE = range(5)


def _turned(builder: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """Rows and columns exchanged: pairs of rows exchange every other 1, 2, 4, ... of their columns."""
    rows, side, step = list(rows), len(rows), 1
    order = ir.VectorType(ir.IntType(32), side)
    while step < side:
        low = [k if not k & step else side + k - step for k in range(side)]
        high = [k + step if not k & step else side + k for k in range(side)]
        for k in (k for k in range(side) if not k & step):
            pair = rows[k], rows[k + step]
            rows[k], rows[k + step] = (builder.shuffle_vector(*pair, ir.Constant(order, pick)) for pick in (low, high))
        step *= 2
    return rows


class _Block:
    """Numbers that are read in lines `step` apart, maybe with gaps, and written in lines `row` apart, across those."""

    def __init__(self, context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> None:
        kinds = [sig.args[k].dtype for k in (0, 3)]
        wide = context.get_value_type(kinds[1])
        self.builder, self.converts, (_, start, self.step, _, end, self.row, *_) = builder, kinds[0] != kinds[1], args
        self.source = Elements(context, builder, sig.args[0], args[0], wide).at(start)
        self.to = Elements(context, builder, sig.args[3], args[3], wide).at(end)

    def read(self, line: ir.Value, column: ir.Value, count: int) -> ir.Value:
        """Neighbours in a line of the source, as numbers of the result."""
        found = self.builder.load(self._place(self.source, line, self.step, column, count), align=self.source.align)
        return _storage.decode(self.builder, found, self.source.storage, self.source.wide) if self.converts else found

    def write(self, column: ir.Value, line: ir.Value, values: ir.Value, count: int) -> None:
        """Neighbours in a line of the result."""
        self.builder.store(values, self._place(self.to, column, self.row, line, count), align=self.to.align)

    def along(self, index: ir.Value, *steps: ir.Value) -> _Block:
        """The block from there on, so many steps further in each of the two."""
        moved = copy(self)
        moved.source, moved.to = (
            each.at(self.builder.mul(index, step)) for each, step in zip((self.source, self.to), steps, strict=True)
        )
        return moved

    def copy(self, count: ir.Value, *steps: ir.Value) -> None:
        """So many numbers, one by one."""
        builder = self.builder
        whole = builder.and_(count, count.type(-_ABREAST))
        for start, stop, abreast in ((count.type(0), whole, _ABREAST), (whole, count, 1)):
            with cgutils.for_range_slice(builder, start, stop, count.type(abreast), count.type) as (j, _):
                here, zero = self.along(j, *steps), count.type(0)
                parts = [here.along(count.type(k), *steps) for k in range(abreast)]
                values = [part.read(zero, zero, 1) for part in parts]
                for part, value in zip(parts, values, strict=True):
                    part.write(zero, zero, value, 1)

    def _place(self, of: Elements, line: ir.Value, step: ir.Value, at: ir.Value, count: int) -> ir.Value:
        kind = of.memory if count == 1 else ir.VectorType(of.memory, count)
        return self.builder.bitcast(of.at(self.builder.mul(line, step), at).data, kind.as_pointer())


@primitive
def _turn(typingctx: Any, source: Any, o: Any, step: Any, to: Any, p: Any, row: Any) -> Any:
    """to[p + j * row + k] = source[o + k * step + j] for j and k in [0, _SQUARE)."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        block, index = _Block(context, builder, sig, args), args[1].type
        lines = [block.read(index(k), index(0), _SQUARE) for k in range(_SQUARE)]
        for k, values in enumerate(_turned(builder, lines)):
            block.write(index(k), index(0), values, _SQUARE)
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, to, types.intp, types.intp), codegen


@primitive
def _copy_each(
    typingctx: Any, source: Any, o: Any, step: Any, to: Any, p: Any, row: Any, near: Any, width: Any, height: Any
) -> Any:
    """to[p + j * row + k] = source[o + k * step + j * near] for j in [0, width) and k in [0, height), one by one.

    In loops along lines of the result, unless these are short.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        block, one, (near, width, height) = _Block(context, builder, sig, args), args[1].type(1), args[6:]
        flat = builder.icmp_signed("<", height, height.type(_SQUARE))
        pairs = (height, width), (block.step, near), (one, block.row)
        lines, *apart = (builder.select(flat, *pair) for pair in pairs)
        many, *beside = (builder.select(flat, *reversed(pair)) for pair in pairs)
        with cgutils.for_range(builder, lines) as line:
            block.along(line.index, *apart).copy(many, *beside)
        return context.get_dummy_value()

    sizes = (types.intp,) * 2
    return types.void(source, *sizes, to, *sizes, types.intp, *sizes), codegen


@jit_inline
def _length(geo: Any, segment: int, block: int, blocks: int, size: int) -> Any:
    """How long a block is along a segment: the last one is what is left."""
    return size if block + 1 < blocks else entry(geo, segment, SIZE) - block * size


@jit
def turn(source: Any, to: Any, geo: Any, begin: int, end: int) -> int:
    """Some blocks per task. The last squares of a block lie over some of those before, so that all are whole."""
    out_of_line()
    across, along, beside, below = geo.shape[0] - 2, geo.shape[0] - 1, entry(geo, 1, _BESIDE), entry(geo, 1, _BELOW)
    step, row, near, wide = entry(geo, along, X), entry(geo, across, Y), entry(geo, across, X), entry(geo, 1, _WIDE)
    for k in range(begin * entry(geo, 1, _PER_TASK), least(end * entry(geo, 1, _PER_TASK), entry(geo, 1, _BLOCKS))):
        read, written, _, _ = set_origin(geo, k)
        width = _length(geo, across, k % beside, beside, wide)
        height = _length(geo, along, k // beside % below, below, _HEIGHT)
        if near != 1 or least(width, height) < _SQUARE:
            _copy_each(source, read, step, to, written, row, near, width, height)
            continue
        for i in range(0, height, _SQUARE):
            line = least(i, height - _SQUARE)
            for j in range(0, width, _SQUARE):
                c = least(j, width - _SQUARE)
                _turn(source, read + line * step + c, step, to, written + c * row + line, row)
    return 0


@lru_cache(maxsize=4096)
def _packed(shape: tuple[int, ...], read: Strides, written: Strides) -> Array | None:
    """The geometry, if there are lines in what is written, and not the same ones in what is read."""
    none = (0,) * len(shape)
    view = set_view(tuple(((n, False),) for n in shape), written, read, none, none)
    *outer, (lines, (on, step, *_)) = view.kept
    if on != 1 or (step == 1 and (lines > _SHORT or not outer)):
        return None
    outer = outer or [(1, (0, 0, 0, 0))]
    across = min(range(len(outer)), key=lambda k: abs(outer[k][1][1]) or np.inf)
    size, (row, near, *_) = outer.pop(across)
    wide = _WIDTH if lines >= _SQUARE else _HEIGHT
    below, beside = max(1, lines // _HEIGHT), max(1, size // wide)
    outer += [(below, (_HEIGHT, step * _HEIGHT, 0, 0)), (beside, (row * wide, near * wide, 0, 0))]
    geo = np.zeros((HEADER + len(outer) + 2, len(COLUMNS)), np.int64)
    geo[0, KEPT : KEPT + 2] = HEADER, HEADER + len(outer)
    per_task = max(1, _TASK // (min(lines, _HEIGHT) * min(size, wide)))
    geo[1, :5] = per_task, beside, below, prod(n for n, _ in outer), wide
    geo[2, [X, Y]] = view.offsets[1], view.offsets[0]
    for k, (n, (to, of, *_)) in enumerate(outer, HEADER):
        geo[k, [SIZE, X, Y]] = n, of, to
    geo[-2:, [SIZE, X, Y]] = (size, near, row), (lines, step, 1)
    return geo


def turning(like: Array, to: Array) -> Callable[[Array, Array], Array] | None:
    """What copies arrays of the form of `like` to those of the form of `to`, and returns these.

    None where numbers follow one another along the same axis in both, or along none in `to`; and where what a kernel reads of
    `like` is more than `to` holds.
    """
    same, kind = like.dtype == to.dtype, name_of(to.dtype)
    if not same and accumulator(name_of(like.dtype), kind) != kind:
        return None
    geo = _packed(like.shape, *(strides_of(layout_of(a), a.ndim) for a in (like, to)))
    if geo is None:
        return None
    bits, launch = np.dtype(f"u{like.itemsize}"), Launcher(turn, like.size)
    take, give, tasks = flat_for(like), flat_for(to), ceil_div(int(geo[1, _BLOCKS]), int(geo[1, _PER_TASK]))

    def run(values: Array, to: Array) -> Array:
        pair = take(values), give(to)
        launch(*(each.view(bits) if same else each for each in pair), geo, 0, tasks)
        return to

    return run
