"""How the sets of a `SetView` lie in memory, which decides what kernel takes them."""

from __future__ import annotations

from .._layout import VECTOR, SetView
from .geometry import BLOCK, BYTES_KEPT, COLUMNS_KEPT, ROWS_KEPT, WIDTH_KEPT


def _columns(view: SetView, operand: int) -> tuple[bool, bool]:
    """(whether the elements of a position are neighbours, whether they are all the same one) in one operand."""
    (lanes, lane), (_, kept) = view.lane, view.kept[-1]
    if lanes * view.tile == 1:
        step = view.walk[-1][1][operand]
        return step == 1, step == 0
    in_line = (lanes == 1 or lane[operand] == 1) and (view.tile == 1 or kept[operand] == lanes)
    return in_line, (lanes == 1 or lane[operand] == 0) and (view.tile == 1 or kept[operand] == 0)


def mode(view: SetView) -> int:
    """Where the numbers of a position come from that change along a set, a mode of `lanes.accumulate`."""
    return 1 if _columns(view, 2)[1] and not apart(view) else 2


def apart(view: SetView) -> bool:
    """Whether neighbours in a run or tile are not neighbours in memory, in some operand; but dy of a run may lie anywhere."""
    if view.set_size == 1:
        return view.tile > 1 and view.apply_lanes == 0
    runs = view.tile * view.set_lanes == 1
    near = all(_columns(view, k)[0] for k in ((0, 3) if view.gradient and not runs else (0,)))
    if any(strides[2] != 0 for _, strides in view.walk):
        near &= any(_columns(view, 2))
    if not runs:
        return not (near and view.apply_lanes > 0)
    _, (x, y, weight, last) = view.reduced[-1]
    return not (near and x == y == 1 and weight in (0, 1) and (view.gradient or last == weight))


def in_runs(view: SetView) -> bool:
    """Whether every set lies in runs, in x and in what is written, affines along with it or still."""
    return view.tile * view.set_lanes == 1 and not apart(view)


def is_short(view: SetView) -> bool:
    """Whether every set lies in one run, of a block."""
    return in_runs(view) and view.set_size <= BLOCK and len(view.walk) == len(view.reduced) == 1


def in_columns(view: SetView, itemsize: int) -> bool:
    """Whether small sets lie side by side, to be kept in L1 while they are normalized; their weights change along rows only."""
    lanes, one = view.set_lanes, len(view.walk) == 1 and len(view.reduced) == 1 + (view.set_lanes > 1)
    beside = view.tile > 1 and view.apply_lanes == lanes and VECTOR % lanes == 0 and not apart(view)
    if not beside or not one or view.rows > ROWS_KEPT or view.affine_varies:
        return False
    width, arrays = view.kept[-1][0] * lanes, 2 + view.gradient
    small = arrays * view.n_sets * view.set_size * itemsize < BYTES_KEPT
    return width <= COLUMNS_KEPT // (1 + view.gradient) or (width <= WIDTH_KEPT and small)


def sums_as_runs(view: SetView) -> bool:
    """Whether the statistics are those of runs, wherever results and affines lie: bits depend on x alone."""
    return view.tile * view.set_lanes == 1 and (in_line(view) or view.set_size == 1)


def in_line(view: SetView) -> bool:
    """Whether neighbours of a set are summed as such, not in the order of those that lie apart."""
    return view.walk[-1][1][0] == 1 and not view.stepped
