"""Spec: all that a kernel is compiled for. Geometry: the numbers that it is given. Chosen here from a SetView, integers only.

A *position* is what one thread reads at once: `width` neighbouring elements of a set (set-major), or one element each of
`width` neighbouring sets (lane-major). A *team* of threads takes the positions of a set in turn, position i goes to member
i % team. Width, team and chunk follow from the set and its layout alone, so a set gives the same bits in every batch; how
an operand is addressed (by vectors or one by one) changes no bits.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from math import prod

from .._layout import Segment, SetView, ceil_div

BLOCK = 256  # threads; a larger team is a block of its own
VECTOR_BYTES = 16
HELD_BYTES = 128  # of a thread's registers, for elements
# (members, positions each) of the teams that hold a whole set, the smallest that fits. Not yet measured on a device.
SET_TEAMS = ((1, 2), (8, 4), (32, 8), (256, 8), (512, 8))
LANE_TEAMS = ((1, 8), (32, 8))
# Sets too long for these go in chunks: of as many positions as 256 members hold, or of 1024 positions (lane-major, in rounds of
# 32 members with 4 each: a member has the numbers of `width` sets to hold besides).
CHUNK_TEAM = {False: 256, True: 32}
LANE_POSITIONS, LANE_CHUNK = 4, 1024
# From this many tiles on, a block takes all chunks of its sets, and reads them again while L2 has them: one launch.
LOOPED_TILES = 256
X, Y, W, B = range(1, 5)  # strides in a segment, after its size; in a gradient Y is dx, B is dy


@dataclass(frozen=True, slots=True)
class Operand:
    """How a kernel reads or writes one array."""

    storage: str  # a dtype's name
    vector: bool = False  # `width` neighbours in one access
    apart: bool = False  # the elements of a position do not lie evenly
    still: bool = False  # the same along a set


@dataclass(frozen=True)
class Spec:
    """What a kernel is compiled for. Its hash is kept: to compute it takes 5 us, as long as a launch."""

    kernel: str
    lanes: bool
    team: int
    vectors: int  # positions that a member holds
    rounds: int  # and how often, in a chunk
    width: int
    kept: int  # segments
    reduced: int
    x: Operand
    y: Operand | None
    w: Operand | None
    b: Operand | None
    wide: bool
    big: bool  # more than 2**31 sets, or elements in one
    center: bool
    wanted: bool = False  # whether statistics are written

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, each.name) for each in fields(self)))

    @property
    def block(self) -> int:
        """Threads of a block: a multiple of the team, and of 8 teams side by side where these read neighbouring sets."""
        return max(BLOCK, self.team * (8 if self.lanes else 1))

    @property
    def across(self) -> int:
        """Threads side by side: neighbouring sets (lane-major), or whole teams."""
        return self.block // self.team

    @property
    def own(self) -> int:
        """Sets of one thread."""
        return self.width if self.lanes else 1

    @property
    def each(self) -> int:
        """Step from set to set for the elements of a position: 0 where all are of one."""
        return int(self.lanes)

    @property
    def held(self) -> int:
        """Elements that a thread holds."""
        return self.vectors * self.width

    @property
    def chunk(self) -> int:
        """Positions of a chunk."""
        return self.team * self.vectors * self.rounds


@lru_cache(maxsize=4096)
def named(spec: Spec, kernel: str) -> Spec:
    """The Spec of another kernel."""
    return replace(spec, kernel=kernel)


# The numbers at the head of a geometry; segments follow, (size, strides of x, y, w, b) each.
SETS, POSITIONS, SIZE, INNER, TILES, CHUNKS, PLANE = range(7)
HEADER = 7


@dataclass(frozen=True, slots=True)
class Shape:
    """How a kernel meets the sets: schedule, and what the geometry holds."""

    lanes: bool
    width: int
    view: SetView
    walk: tuple[Segment, ...]

    @property
    def positions(self) -> int:
        """Of one set."""
        return self.view.set_size // (1 if self.lanes else self.width)

    def tiles(self, across: int) -> int:
        """Blocks that it takes to meet every set once."""
        if not self.lanes:
            return ceil_div(self.view.n_sets, across)
        inner = self.view.kept[-1][0]
        return self.view.n_sets // inner * ceil_div(inner, across * self.width)


@lru_cache(maxsize=4096)
def shape_of(view: SetView, itemsize: int, wide: bool) -> Shape:
    """The schedule of sets whose widest operand has elements of this size."""
    walk = view.walk if view.lane[0] == 1 else (*view.walk, view.lane)
    lanes = walk[-1][1][0] != 1 and view.kept[-1][1][0] == 1 and view.kept[-1][0] > 1
    widest = min(VECTOR_BYTES // itemsize, 2 if wide else 4 if lanes else 8)
    run = view.kept[-1][0] if lanes else walk[-1][0]
    width = next(w for w in (8, 4, 2, 1) if w <= widest and run % w == 0)
    return Shape(lanes, width, view, walk)


def elements_held(wide: bool, arrays: int) -> int:
    """Of each of `arrays`, by one thread."""
    return HELD_BYTES // (8 if wide else 4) // arrays


def team_that_holds(shape: Shape, wide: bool, arrays: int) -> tuple[int, int] | None:
    """(members, positions each) of the team that holds a whole set of `arrays`, if there is one."""
    most = elements_held(wide, arrays) // shape.width
    for team, positions in LANE_TEAMS if shape.lanes else SET_TEAMS:
        if shape.positions <= team * min(most, positions):
            return team, 1 << (ceil_div(max(1, shape.positions), team) - 1).bit_length()
    return None


def chunk_team(shape: Shape, wide: bool, arrays: int) -> tuple[int, int, int]:
    """(members, positions each, rounds) of a chunk."""
    team = CHUNK_TEAM[shape.lanes]
    if shape.lanes:
        vectors = LANE_POSITIONS // arrays
        return team, vectors, LANE_CHUNK // team // vectors
    return team, min(8, elements_held(wide, arrays) // shape.width), 1


def operand(shape: Shape, column: int, storage: str, itemsize: int, pointer: int, may_be_still: bool) -> Operand:
    """How the operand of this column of the segments is to be addressed. Elements of `itemsize` bytes."""
    k, view, width = column - X, shape.view, shape.width
    moving = any(strides[k] for size, strides in view.reduced if size > 1)
    still = may_be_still and not moving
    if shape.lanes:
        inner, outer = view.kept[-1][1][k], [s[k] for _, s in (*view.kept[:-1], *view.reduced)]
        apart = False
    else:
        run, inner, outer = _own_run(view.reduced, k)
        outer += [s[k] for _, s in view.kept]
        apart = run % width != 0
    dense = inner == 1 and not apart and all(step % width == 0 for step in outer)
    vector = dense and width > 1 and pointer % (width * itemsize) == 0 and not (still and not shape.lanes)
    return Operand(storage, vector, apart and not still, still)


def _own_run(segments: tuple[Segment, ...], k: int) -> tuple[int, int, list[int]]:
    """(elements, stride) of the innermost run as one operand sees it, and the strides outside of it."""
    run, stride = segments[-1][0], segments[-1][1][k]
    for index in range(len(segments) - 2, -1, -1):
        size, strides = segments[index]
        if strides[k] != run * stride:
            return run, stride, [s[k] for _, s in segments[: index + 1]]
        run *= size
    return run, stride, []


def geometry(shape: Shape, spec: Spec, chunks: int, plane: int) -> tuple[int, ...]:
    """The numbers that a kernel is given."""
    view = shape.view
    inner = view.kept[-1][0]
    tiles = ceil_div(inner, spec.across * spec.width)
    head = (view.n_sets, shape.positions, view.set_size, inner, tiles, chunks, plane)
    return head + tuple(n for size, strides in (*view.kept, *view.reduced) for n in (size, *strides))


def elements(view: SetView) -> int:
    """Of all sets."""
    return prod(size for size, _ in (*view.kept, *view.reduced))
