"""SetView: a normalization set on strided memory, as kept and reduced segments. Integers only.

The axes of x (parts of them, where an axis is split) are ordered kept-first, reduced-last, each by falling stride, as a
view; neighbours whose strides agree become one segment. Two kept and two reduced segments describe every norm on a dense
array in either channel order; a crop or an exotic axis tuple has more outer ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

Strides = tuple[int, ...]
Segment = tuple[int, Strides]  # (size, strides of x, y, weight, bias or dy), in elements
Part = tuple[int, bool]  # (size, reduced?) of an axis or of a piece of a split axis
Split = tuple[tuple[Part, ...], ...]  # the parts of every axis, outermost first

# Lanes of a tile: a whole row of neighbouring sets if it has at most TILE_WIDTH, since memory is then read in line (layer norm
# of channels-last (64, 768, 197) takes 2.6 ms in tiles of 208, 4.5 of 112, 5.7 of 64), else an even share of the row: layer
# norm over the channels of (16, 96, 56, 56) 1.2 ms, 1.3 in tiles of 192, 1.5 of 128; its gradient for (4, 768, 56, 56) 8.9, 9.4
# and 11.7 (Zen 4, 2026-11). Sets of MANY_LANES take fewer partial sums each, and so no more memory in rows four times as wide
# (group norm of channels-last (32, 512, 7, 7) on one thread: 0.31 ms in tiles of 512, 0.41 of 128; of (8, 640, 16, 16) on two
# 0.15 in rows of 640, 0.24 in tiles of 220; but of (16, 2048, 7, 7) 0.30 in tiles of 256, 0.41 of 1024).
TILE_WIDTH, MANY_LANES = 256, 8
VECTOR = 16  # lanes
# A contiguous reduced segment shorter than SHORT_RUN is seen as lanes, if there are FEW_ROWS of it or more: group norm of
# channels-last (32, 512, 7, 7) in 32 groups takes 0.5 ms so, 2.4 ms in runs of 16. Where more than one, and at most GROUPS,
# would fit between two of them, they are groups of channels, whose rows follow one another in memory, and longer ones pay: the
# same of (16, 2048, 7, 7) takes 0.29 ms in lanes, 0.53 in runs of 64, of (8, 2048, 14, 14) in 16 groups 0.74 and 1.4; but
# instance norm of a crop to 256 x 256 7 and 4.4, the gradient of batch norm of (32, 512, 14, 14) in float16 0.78 and 0.60.
# Where no other set fits between them, as in a crop, gradients go by runs sooner: of instance norm of rows of 50 in 51 2.7 ms
# so, 3.6 in lanes; and where they follow one another, and only the weight changes between them, whatever their length: of group
# norm for (64, 512, 4, 4) in 32 groups 0.33 and 0.69, (100, 512, 2, 1) 0.48 and 1.0; but with a weight along them in lanes: the
# same in one group for channels-last (16, 256, 14, 14) 0.25, in runs 0.67 (Zen 4, 2026-11). Statistics do not: every run is a
# block there, and thousands of blocks of 5 that are merged lose 6 bits of float64.
SHORT_RUN, SHORT_RUN_IN_GROUPS, SHORT_RUN_IN_CROPS, SHORT_RUN_IN_LINE, GROUPS = 64, 2 * TILE_WIDTH + 1, 32, 24, 64
FEW_ROWS = 8


def ceil_div(a: int, b: int) -> int:
    """A / b, rounded up."""
    return -(-a // b)


@dataclass(frozen=True, slots=True)
class SetView:
    """Segments and schedule of one call; printable, cached by the strides it was made from."""

    kept: tuple[Segment, ...]
    reduced: tuple[Segment, ...]
    walk: tuple[Segment, ...]  # reduced ones as the sums see them: positions of the lanes
    lane: Segment  # neighbouring elements of one set side by side in the sums
    offsets: Strides  # of the first element of x, y, weight, bias in their flat arrays
    tile: int  # sets side by side
    apply_lanes: int  # as `lane`, in the apply pass; 0: set by set, along the innermost segment
    affine_varies: bool  # whether weight or bias changes from position to position of the lanes
    gradient: bool  # of a gradient: dy in the place of bias, read by the sums too
    stepped: bool  # whether sums are in the order of sets whose neighbours lie apart, though those of x do not

    @property
    def set_lanes(self) -> int:
        """Neighbouring elements of a set side by side in the sums."""
        return self.lane[0]

    @property
    def n_sets(self) -> int:
        """Number of sets."""
        return prod(size for size, _ in self.kept)

    @property
    def set_size(self) -> int:
        """Elements of a set."""
        return prod(size for size, _ in self.reduced)

    @property
    def rows(self) -> int:
        """Positions of a set in the statistics."""
        return self.set_size // self.set_lanes

    @property
    def apply_rows(self) -> int:
        """Positions of a set in the apply pass."""
        return self.set_size // max(1, self.apply_lanes)

    @property
    def tiles(self) -> int:
        """Tiles of all sets."""
        return ceil_div(self.kept[-1][0], self.tile) * prod(size for size, _ in self.kept[:-1])


def _merge(segments: list[Segment]) -> tuple[Segment, ...]:
    """Neighbours become one where every operand steps on evenly from one to the next."""
    merged: list[Segment] = []
    for size, strides in segments:
        if size == 1:  # such an axis may carry any stride
            continue
        if merged and all(outer == size * inner for outer, inner in zip(merged[-1][1], strides, strict=True)):
            merged[-1] = (merged[-1][0] * size, strides)
        else:
            merged.append((size, strides))
    return tuple(merged)


def _parts(split: Split, operands: tuple[Strides, ...]) -> list[tuple[int, bool, Strides]]:
    """(size, reduced?, strides of every operand) of every part of every axis, outermost first."""
    found = []
    for axis, parts in enumerate(split):
        step = prod(size for size, _ in parts)
        for size, reduced in parts:
            step //= size
            found.append((size, reduced, tuple(strides[axis] * step for strides in operands)))
    return found


def set_size(split: Split) -> int:
    """Elements of one set."""
    return prod(size for parts in split for size, reduced in parts if reduced)


@lru_cache(maxsize=4096)
def order_in_memory(split: Split, x: Strides, reduced: bool = False) -> tuple[int, ...]:
    """The kept parts, or the reduced ones, as they lie in memory: indices into these in axis order."""
    parts = [(size, strides) for size, of_set, strides in _parts(split, (x,)) if of_set == reduced]
    return tuple(sorted(range(len(parts)), key=lambda k: _rank(parts[k]), reverse=True))


def _rank(segment: Segment) -> float:
    """Sort key, by falling distance in x: what stands still (stride 0) is outermost, it can only repeat."""
    step = abs(segment[1][0])
    return float("inf") if step == 0 else step


@lru_cache(maxsize=4096)
def set_view(
    split: Split, x: Strides, y: Strides, weight: Strides, bias: Strides, gradient: bool = False, stepped: bool = False
) -> SetView:
    """The view of sets `split` on operands with these strides (in elements, one per axis of x; no axis is empty).

    Of a gradient, y is dx and dy stands in the place of bias. `stepped`: see `SetView`.
    """
    operands = (x, y, weight, bias)
    shape = [prod(size for size, _ in parts) for parts in split]
    offsets = tuple(sum(-s * (n - 1) for s, n in zip(strides, shape, strict=True) if s < 0) for strides in operands)
    parts = _parts(split, operands)
    by_stride = {
        wanted: sorted(((n, s) for n, reduced, s in parts if reduced == wanted), key=_rank, reverse=True)
        for wanted in (False, True)
    }
    kept, reduced = (_merge(by_stride[wanted]) or ((1, (0, 0, 0, 0)),) for wanted in (False, True))
    summed = (1, 0, 1, 1) if gradient else (1, 0, 0, 0)  # the operands that the sums read
    walk = _merge([(n, tuple(s * on for s, on in zip(steps, summed, strict=True))) for n, steps in by_stride[True]])
    return _schedule(kept, reduced, walk or ((1, (0, 0, 0, 0)),), offsets, gradient, stepped)


def even_share(sets: int, lanes: int, most: int) -> int:
    """How many sets of `lanes` lanes a tile of so many elements has: all, or an even share of them in whole vectors."""
    share, vector = ceil_div(sets, ceil_div(sets * lanes, most)), max(1, VECTOR // lanes)
    return max(1, min(sets, most // lanes, ceil_div(share, vector) * vector))


def _width(sets: int, lanes: int) -> int:
    """How many sets of `lanes` lanes a tile has."""
    whole = lanes >= MANY_LANES and sets * lanes <= 4 * TILE_WIDTH
    return sets if whole else even_share(sets, lanes, TILE_WIDTH)


def _short_run(length: int, step: int, gradient: bool, weighed: bool) -> int:
    """The length from which on segments that are `step` from one to the next, maybe with a weight along them, are runs."""
    if gradient and step < 2 * length:
        in_line = SHORT_RUN_IN_GROUPS if weighed else 0
        return in_line if step == length else SHORT_RUN_IN_CROPS
    if step == length:
        return SHORT_RUN_IN_LINE
    return SHORT_RUN_IN_GROUPS if 2 * length < step <= GROUPS * length else SHORT_RUN


def _schedule(
    kept: tuple[Segment, ...],
    reduced: tuple[Segment, ...],
    walk: tuple[Segment, ...],
    offsets: Strides,
    gradient: bool,
    stepped: bool,
) -> SetView:
    """Choose tile and lanes. Only `lane` changes bits, and it follows from the set alone."""
    sets, set_step = kept[-1][0], kept[-1][1][0]
    inner, (step, *_) = walk[-1]
    size = prod(n for n, _ in walk)
    lane: Segment = (1, (0, 0, 0, 0))
    if (
        len(walk) > 1
        and step == 1
        and not stepped
        and inner < _short_run(inner, abs(walk[-2][1][0]), gradient, walk[-1][1][2] != 0)
        and size >= FEW_ROWS * inner
    ):
        lane, walk = walk[-1], walk[:-1]
        tile = _width(sets, inner) if set_step == inner else 1
    else:
        tile = _width(sets, 1) if sets > 1 and set_step != 0 and (abs(set_step) < abs(step) or size == 1) else 1
    tile = max(1, min(tile, sets))
    apply_lanes = 0
    if lane[0] > 1 and reduced[-1][0] == lane[0]:
        apply_lanes = lane[0]
    elif tile > 1:
        apply_lanes = 1
    dense, affine = ((0, 1, 3), (2,)) if gradient else ((0, 1), (2, 3))
    neighbours = all(
        (apply_lanes <= 1 or reduced[-1][1][k] == 1) and (tile == 1 or kept[-1][1][k] == apply_lanes) for k in dense
    )
    if not neighbours:
        apply_lanes = 0
    outer = reduced[:-1] if apply_lanes > 1 else reduced
    varies = any(s[k] != 0 for _, s in outer for k in affine)
    return SetView(kept, reduced, walk, lane, offsets, tile, apply_lanes, varies, gradient, stepped)
