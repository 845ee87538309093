"""What is done to vectors in registers: the same number in all lanes, sums of lanes, masks."""

from __future__ import annotations

from llvmlite import ir

from .. import _storage

_DOUBLE = ir.DoubleType()


def splat(builder: ir.IRBuilder, value: ir.Value, count: int) -> ir.Value:
    """The same number in `count` lanes."""
    if count == 1:
        return value
    kind = ir.VectorType(value.type, count)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    order = ir.Constant(ir.VectorType(ir.IntType(32), count), [0] * count)
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), order)


def halve(builder: ir.IRBuilder, lanes: ir.Value) -> ir.Value:
    """The two halves of a vector added."""
    half = lanes.type.count // 2
    return builder.fadd(*(_storage.part_of(builder, lanes, start, half) for start in (0, half)))


def fold(builder: ir.IRBuilder, lanes: ir.Value) -> ir.Value:
    """The lanes of a vector added in halves: the same tree as in `blocks.sum_block`."""
    while lanes.type.count > 1:
        lanes = halve(builder, lanes)
    return builder.extract_element(lanes, ir.Constant(ir.IntType(32), 0))


def fold_each(builder: ir.IRBuilder, rows: list[ir.Value]) -> ir.Value:
    """`fold` of each of some vectors, 2^k: as long as there are two, they take the place of one. A lane for every vector."""
    half = rows[0].type.count
    while half > 1:
        half //= 2
        pairs = list(zip(rows[::2], rows[1::2] or rows, strict=True))  # of one, the second is not read
        lanes = rows[0].type.count * min(len(rows), 2)
        first = [start + k for start in range(0, lanes, 2 * half) for k in range(half)]
        order = ir.VectorType(ir.IntType(32), len(first))
        picks = [ir.Constant(order, [k + shift for k in first]) for shift in (0, half)]
        rows = [builder.fadd(*(builder.shuffle_vector(*pair, pick) for pick in picks)) for pair in pairs]
    return rows[0]


def first_lanes(builder: ir.IRBuilder, m: ir.Value, count: int) -> ir.Value:
    """The mask of the first m of `count` lanes, m below 2^31: in 32 bits two comparisons make what took four in 64."""
    number = ir.IntType(32)
    lanes = ir.Constant(ir.VectorType(number, count), list(range(count)))
    return builder.icmp_signed("<", lanes, splat(builder, builder.trunc(m, number), count))


def bits_of(builder: ir.IRBuilder, lanes: ir.Value) -> ir.Value:
    """A mask as an integer."""
    return builder.bitcast(lanes, ir.IntType(lanes.type.count))


def vector(builder: ir.IRBuilder, values: list[ir.Value]) -> ir.Value:
    """Numbers as one vector."""
    found = ir.Constant(ir.VectorType(values[0].type, len(values)), ir.Undefined)
    for k, value in enumerate(values):
        found = builder.insert_element(found, value, ir.IntType(32)(k))
    return found


def double(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """A number, or a vector of them, in float64."""
    kind = ir.VectorType(_DOUBLE, value.type.count) if isinstance(value.type, ir.VectorType) else _DOUBLE
    return value if value.type == kind else builder.fpext(value, kind)


def narrow(builder: ir.IRBuilder, value: ir.Value, number: ir.Type) -> ir.Value:
    """Float64, a number or a vector of them, in the accumulator's type."""
    kind = ir.VectorType(number, value.type.count) if isinstance(value.type, ir.VectorType) else number
    return value if value.type == kind else builder.fptrunc(value, kind)


def some(builder: ir.IRBuilder, lanes: ir.Value) -> ir.Value:
    """Whether a mask has any lane."""
    bits = bits_of(builder, lanes)
    return builder.icmp_unsigned("!=", bits, bits.type(0))


def smaller(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """The smaller of two integers."""
    return builder.select(builder.icmp_signed("<", a, b), a, b)


def larger(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """The larger of two integers."""
    return builder.select(builder.icmp_signed(">", a, b), a, b)
