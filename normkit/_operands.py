"""The arrays of one call, as a backend takes them: of NumPy, or in the memory of a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ._dtypes import accumulator, name_of
from ._layout import Split


@dataclass(frozen=True, slots=True)
class Operands:
    """The arrays of one call. `weight` and `bias` broadcast against x, or are None; y and dy have x's shape.

    With dy the call is one of the gradient: y is dx, and there is no bias. y is `fresh` if it is newly allocated.
    """

    x: Any
    y: Any
    weight: Any
    bias: Any
    split: Split
    center: bool
    dy: Any = None
    fresh: bool = False

    @property
    def wide(self) -> bool:
        """Whether the arithmetic is in float64."""
        x, y = name_of(self.x.dtype), name_of(self.y.dtype)
        return accumulator(x, y) == "float64" or (self.dy is not None and name_of(self.dy.dtype) == "float64")
