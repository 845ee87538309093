"""A result in lines that x does not have: x is put in order where the result goes, and normalized there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

import numpy as np

from .._dtypes import Array
from .._layout import Split, Strides, order_in_memory, set_size, set_view
from .._operands import Operands
from . import arrangement
from .plan import layout_of, strides_of
from .reorder import turning

# Elements from which on x is put in order first: three kernels take 15 us. In us, where it lies and so, layer norm over
# channels to channels last and batch norm back: of (4, 16, 7, 7) 17 / 20 and 9 / 15, of (8, 16, 8, 8) 39 / 28 and 13 / 17, of
# (8, 32, 8, 8) 48 / 30 and 23 / 20, of (32, 64, 16, 16) 1220 / 392 and 622 / 168 (two threads, Zen 4, 2026-11).
_LEAST = 1 << 13
# The least elements of a set: what is kept of each meanwhile takes up to 72 bytes, where 64 of float32 are 256.
_LEAST_OF_SET = 64


@dataclass(frozen=True, slots=True)
class Turned:
    """What is done to arrays of one form before they are normalized in place; it keeps none of them."""

    turn: Callable[[Array, Array], Array]
    first: bool  # whether statistics are those of y, in the order of sets whose neighbours lie apart; else they are those of x
    places: Array | None  # where the numbers of each set are among those of x; None if they lie in one order

    @staticmethod
    def of(op: Operands) -> Operands:
        """What is normalized then: x is y."""
        return replace(op, x=op.y)

    def in_order(self, sets: Array) -> Array:
        """Numbers of the sets of x, the last axis, as the sets lie in the result, in lines; none where there are none."""
        return sets if self.places is None or not sets.size else sets.take(self.places, axis=-1)


def turned(op: Operands) -> Turned | None:
    """How a result comes to lines that x does not have. None where x is read as it lies.

    Read and written where they lie, numbers would go one by one: instance norm of (8, 64, 256, 256) to channels last took 77 to
    127 ms, batch norm 165, and a copy of NumPy's to that order takes 118. With steps, layer norm of (8, 540, 960, 3)[..., ::-1]
    took 100 ms, instance norm 10; now 9.2 and 6.9 (two threads, Zen 4, 2026-11).
    """
    enough = op.x.size >= _LEAST and set_size(op.split) >= _LEAST_OF_SET
    turn = turning(op.x, op.y) if op.dy is None and enough else None
    if turn is None:
        return None
    x, y = (strides_of(layout_of(each), op.x.ndim) for each in (op.x, op.y))
    first, places = _sets(op.split, x, y)
    if not first and any(step == along == 1 for step, along in zip(x, y, strict=True)):
        return None  # lines of both
    return Turned(turn, first, places)


@lru_cache(maxsize=256)
def _sets(split: Split, x: Strides, y: Strides) -> tuple[bool, Array | None]:
    """Whether sets may be summed in y, for the same bits; and of every set, in the order of y, its place in the order of x."""
    before, after = (order_in_memory(split, steps) for steps in (x, y))
    if before == after:
        return _stepped(split, x, y), None
    sizes = [size for parts in split for size, reduced in parts if not reduced]
    places = np.arange(prod(sizes)).reshape([sizes[k] for k in before])
    return False, places.transpose([before.index(k) for k in after]).ravel()


def _stepped(split: Split, x: Strides, y: Strides) -> bool:
    """Whether neighbours of a set lie apart in x, and in its order in y, and sums read lines of y but not of x."""
    none, same = (0,) * len(split), order_in_memory(split, x, reduced=True) == order_in_memory(split, y, reduced=True)
    given, copied = set_view(split, x, x, none, none), set_view(split, y, y, none, none, stepped=True)
    lies_apart = given.set_lanes == 1 and not arrangement.sums_as_runs(given)
    return same and lies_apart and (arrangement.apart(given) or copied.tile > 1)
