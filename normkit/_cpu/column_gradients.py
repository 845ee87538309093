"""Gradients of small sets side by side, as `columns`: the same bits as of `gradients.backward`."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .._formulas import element
from .buffers import (
    GAIN,
    LANE_HIGH,
    LANE_LOW,
    LANE_PRODUCTS,
    LANE_RSTD,
    LANE_SUM,
    LANE_WEIGHT,
    TOTAL,
    TOTAL_OF_PRODUCTS,
)
from .column_sums import SETS, Columns, ColumnSums, Vectors
from .geometry import COLUMNS_KEPT
from .registers import double, narrow, splat
from .simd import STEP, Table, primitive

_WIDTH = COLUMNS_KEPT // 2  # columns at once: of x and of dy, and their numbers have room in registers


class _Given(Columns):
    """What `pull_columns` was given."""

    def __init__(self, context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> None:
        super().__init__(context, builder, sig.args[3:5], args[3:5], args[7])
        at, self.steps = (cgutils.unpack_tuple(builder, args[k], 3) for k in (5, 6))
        self.x, self.dy, self.dx = (self.elements(sig.args[k], args[k], at[k]) for k in range(3))
        self.shares, self.first = cgutils.unpack_tuple(builder, args[8], 2), args[10]
        self.sums = Table(context, builder, sig.args[9], args[9])


class _Block(ColumnSums):
    """Some vectors of columns, from their sums to the gradient."""

    given: _Given

    def pull(self) -> None:
        """The sums of all lanes, those of the sets, the gradient."""
        given, builder = self.given, self.builder
        centre = [self.along(row) for row in (LANE_HIGH, LANE_LOW, LANE_RSTD)]
        self.add_rows(given.rows, given.partials, list(zip(*centre, strict=True)), self.read_and_keep)
        weights, found = self.along(LANE_WEIGHT), []
        for row, total in ((LANE_SUM, TOTAL), (LANE_PRODUCTS, TOTAL_OF_PRODUCTS)):
            lanes = self.vectors(row)
            for place, value in zip(self.places, lanes, strict=True):
                given.row(total).at(self.column).store(place, value, mask=self.mask)
            weighed = [builder.fmul(value, weight) for value, weight in zip(lanes, weights, strict=True)]
            found.append(self.folded(weighed))
            self.put(row, found[-1])
        self.keep_sums()
        shared = []
        for values, share in zip(found, given.shares, strict=True):
            parts = (builder.fmul(double(builder, value), splat(builder, share, value.type.count)) for value in values)
            shared.append([narrow(builder, part, given.wide) for part in parts])
        self.write(list(zip(*centre, weights, *shared, self.along(GAIN), strict=True)))

    def along(self, row: int) -> list[ir.Value]:
        """The numbers of these lanes in a row of work that has those of all."""
        line = self.given.row(row).at(self.column)
        return [line.load(place, STEP) for place in self.places]

    def read_and_keep(self, row: ir.Value) -> Vectors:
        """A row of x and dy, which is kept."""
        given, held = self.given, self.given.kept.row(row)
        found = [self.read(array, row, step) for array, step in zip((given.x, given.dy), given.steps, strict=False)]
        for k, values in enumerate(found):
            for place, value in zip(self.places, values, strict=True):
                held.at(row.type(k * _WIDTH)).store(place, value)
        return list(zip(*found, strict=True))

    def keep_sums(self) -> None:
        """Store the sums of every set."""
        given, builder = self.given, self.builder
        with given.each(self.count, SETS) as (k, _):
            first = builder.add(builder.add(given.first, self.first), k)
            for row, values in enumerate(self.of_sets(k, (LANE_SUM, LANE_PRODUCTS))):
                given.sums.row(k.type(row)).store(first, double(builder, values), mask=self.there(k))

    def write(self, numbers: Vectors) -> None:
        """The gradient, from the numbers of every lane."""
        given, builder = self.given, self.builder
        with given.each(given.rows) as (row, _):
            to, held = self.line(given.dx, row, given.steps[2]), given.kept.row(row)
            pairs = [[held.at(row.type(k * _WIDTH)).load(place, STEP) for k in range(2)] for place in self.places]
            for pair, place, own in zip(pairs, self.places, numbers, strict=True):
                to.store(place, element(builder, pair, own), mask=self.mask)


@primitive
def pull_columns(
    typingctx: Any,
    x: Any,
    dy: Any,
    dx: Any,
    kept: Any,
    work: Any,
    at: Any,
    steps: Any,
    sizes: Any,
    shares: Any,
    sums: Any,
    first: Any,
) -> Any:
    """Set dx, and `sums` of dy * weight and of that times x_hat, for small sets side by side from the first one on.

    at, steps: offsets of set `first` in x, dy and dx, and how far the next row is. sizes: rows of a set, sets, lanes of each, a
    power of 2 up to STEP, partial sums. Shift and slope are the sums * shares. The numbers HIGH to WEIGHT and GAIN are in work,
    of every lane; in its rows TOTAL and TOTAL_OF_PRODUCTS come the sums of dy and of dy * x_hat of every lane.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        given = _Given(context, builder, sig, args)
        given.each_block(_WIDTH, lambda *block: _Block(given, *block).pull())
        return context.get_dummy_value()

    index = types.intp
    three, four, pair = types.UniTuple(index, 3), types.UniTuple(index, 4), types.UniTuple(types.float64, 2)
    return types.void(x, dy, dx, kept, work, three, three, four, pair, sums, index), codegen
