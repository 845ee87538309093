"""The affine pair and the result, position by position: device functions for one Spec."""

from __future__ import annotations

from typing import Any

from .package import device, types
from .spec import Operand, Spec
from .teams import Tools
from .vectors import Primitive, fetch_of, put_of


def affine_of(spec: Spec, tools: Tools, operand: Operand | None, column: int, neutral: float) -> tuple[Primitive, Primitive]:
    """(before, during), each (address, geo, at, index, values): set `values` once for a set, or for each position anew."""
    width, real, step, along = spec.width, tools.real, tools.steps[column + 1], tools.along

    @device
    def nothing(address: Any, geo: Any, at: Any, index: Any, values: Any) -> None:
        pass

    if operand is None:

        @device
        def fill(address: Any, geo: Any, at: Any, index: Any, values: Any) -> None:
            for k in range(width):
                values[k] = real(neutral)

        return fill, nothing
    fetch, fetch_one = fetch_of(operand, width), fetch_of(Operand(operand.storage), 1)

    @device
    def of_set(address: Any, geo: Any, at: Any, index: Any, values: Any) -> None:
        for k in range(width):
            fetch_one(address, at, types.int64(0), values, k)

    @device
    def of_lanes(address: Any, geo: Any, at: Any, index: Any, values: Any) -> None:
        fetch(address, at, geo[step], values, 0)

    @device
    def even(address: Any, geo: Any, at: Any, index: Any, values: Any) -> None:
        fetch(address, at + along(geo, index)[column], geo[step], values, 0)

    @device
    def apart(address: Any, geo: Any, at: Any, index: Any, values: Any) -> None:
        for k in range(width):
            fetch_one(address, at + along(geo, index + k)[column], types.int64(0), values, k)

    if operand.still:
        return (of_lanes if spec.lanes else of_set), nothing
    return nothing, (apart if operand.apart else even)


def put_at(spec: Spec, tools: Tools) -> Primitive:
    """put(address, geo, at, index, values): store a position of the result."""
    assert spec.y is not None
    width, step, along = spec.width, tools.steps[2], tools.along
    whole, one = put_of(spec.y, width), put_of(Operand(spec.y.storage), 1)

    @device
    def even(address: Any, geo: Any, at: Any, index: Any, values: Any) -> None:
        whole(address, at + along(geo, index)[1], geo[step], values, 0)

    @device
    def apart(address: Any, geo: Any, at: Any, index: Any, values: Any) -> None:
        for k in range(width):
            one(address, at + along(geo, index + k)[1], types.int64(0), values, k)

    return apart if spec.y.apart else even  # type: ignore[no-any-return]
