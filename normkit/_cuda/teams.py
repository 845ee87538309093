"""Where a thread is, what it reads, and how a team adds up: device functions for one Spec."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .package import cuda, device, types
from .spec import CHUNKS, HEADER, INNER, SETS, TILES, Operand, Spec
from .vectors import Primitive, fetch_of, quotient_of, tree_of

EVERY_LANE = 0xFFFFFFFF
_WARP = 32


@dataclass(frozen=True)
class Tools:
    """Device functions and constants of a Spec; `real` is the accumulator's type."""

    real: Any
    locate: Primitive  # (geo, tile) -> (first set, member, valid)
    sets: Primitive  # (geo, tile) -> (first set, one past the last)
    task: Primitive  # (geo) -> (tile, chunk) of this block
    kept: Primitive  # (geo, set) -> offsets of x, y, w, b
    along: Primitive  # (geo, position) -> offsets from those
    load: Primitive
    leader: Primitive  # () -> the first lane of this warp that is in the same team, for the same sets
    reduce: Primitive
    vote: Primitive
    steps: tuple[int, ...]  # where the geometry has the steps from element to element of a position
    scratch: int  # elements of shared memory


def _place_of(first: int, count: int, quotient: Primitive) -> Primitive:
    """place(geo, index): the offsets of x, y, w and b at `index` of `count` segments, the first of them at geo[first]."""
    size, x, y, w, b = (first + 5 * (count - 1) + k for k in range(5))
    if count == 1:

        @device
        def innermost(geo: Any, index: Any) -> Any:
            return index * geo[x], index * geo[y], index * geo[w], index * geo[b]

        return innermost  # type: ignore[no-any-return]
    outer = _place_of(first, count - 1, quotient)

    @device
    def place(geo: Any, index: Any) -> Any:
        rest = quotient(index, geo[size])
        ox, oy, ow, ob = outer(geo, rest)
        index -= rest * geo[size]
        return ox + index * geo[x], oy + index * geo[y], ow + index * geo[w], ob + index * geo[b]

    return place  # type: ignore[no-any-return]


def _locate_of(spec: Spec, quotient: Primitive) -> Primitive:
    team, across, width, lanes = spec.team, spec.across, spec.width, spec.lanes
    tile_width, team_bits, across_bits = across * width, team.bit_length() - 1, across.bit_length() - 1

    @device
    def locate_sets(geo: Any, tile: Any) -> Any:
        thread = types.int64(cuda.threadIdx.x)
        first = tile * across + (thread >> team_bits)
        return first, thread & (team - 1), first < geo[SETS]

    @device
    def locate_lanes(geo: Any, tile: Any) -> Any:
        thread = types.int64(cuda.threadIdx.x)
        outer = quotient(tile, geo[TILES])
        column = (tile - outer * geo[TILES]) * tile_width + (thread & (across - 1)) * width
        return outer * geo[INNER] + column, thread >> across_bits, column < geo[INNER]

    return locate_lanes if lanes else locate_sets  # type: ignore[no-any-return]


def _sets_of(spec: Spec, quotient: Primitive) -> Primitive:
    across, tile_width = spec.across, spec.across * spec.width

    @device
    def sets(geo: Any, tile: Any) -> Any:
        return tile * across, min(geo[SETS], (tile + 1) * across)

    @device
    def sets_of_lanes(geo: Any, tile: Any) -> Any:
        outer = quotient(tile, geo[TILES])
        column = (tile - outer * geo[TILES]) * tile_width
        return outer * geo[INNER] + column, outer * geo[INNER] + min(geo[INNER], column + tile_width)

    return sets_of_lanes if spec.lanes else sets  # type: ignore[no-any-return]


def _task_of(quotient: Primitive) -> Primitive:
    @device
    def task(geo: Any) -> Any:
        index = types.int64(cuda.blockIdx.x)
        tile = quotient(index, geo[CHUNKS])
        return tile, index - tile * geo[CHUNKS]

    return task  # type: ignore[no-any-return]


def load_of(spec: Spec, operand: Operand, column: int, along: Primitive, step: int) -> Primitive:
    """load(address, geo, at, span, held, scale): a member's positions of a batch, zero where none is.

    span: (first position, one past the last, member, whether it has sets at all).
    """
    vectors, width, team = spec.vectors, spec.width, spec.team
    unit, each = 1 if spec.lanes else spec.width, spec.each
    fetch, fetch_one = fetch_of(operand, width), fetch_of(Operand(operand.storage), 1)
    real = types.float64 if spec.wide else types.float32

    @device
    def fetch_apart(address: Any, geo: Any, at: Any, index: Any, held: Any, slot: Any) -> None:
        for k in range(width):
            fetch_one(address, at + along(geo, index + k)[column], types.int64(0), held, slot + k)

    @device
    def fetch_even(address: Any, geo: Any, at: Any, index: Any, held: Any, slot: Any) -> None:
        fetch(address, at + along(geo, index)[column], geo[step], held, slot)

    get = fetch_apart if operand.apart else fetch_even

    @device
    def load(address: Any, geo: Any, at: Any, span: Any, held: Any, scale: Any) -> None:
        first, stop, member, valid = span
        for j in range(vectors):
            i = first + member + j * team
            if valid and i < stop:
                get(address, geo, at, i * unit, held, j * width)
                for k in range(width):
                    held[j * width + k] *= scale[k * each]
            else:
                for k in range(width):
                    held[j * width + k] = real(0)

    return load  # type: ignore[no-any-return]


def _reduce_of(spec: Spec) -> tuple[Primitive, int]:
    """reduce(sums, shared): two sums of each of a thread's sets, over its team, in every member. And the shared elements.

    sums: (2 * width,), a partial sum for each element of a position; the results are at k and width + k, k a set.
    """
    width, own = spec.width, spec.own
    lanes_of_warp = min(spec.across, _WARP) if spec.lanes else 1  # threads of a warp with other sets, in the same team
    nearest = lanes_of_warp  # the distance to the next member of a team; twice that to the one after the next
    exchanges = (min(spec.team, _WARP // nearest)).bit_length() - 1
    fold = tree_of(1 if spec.lanes else width, 1)  # of a thread's own partial sums
    warps = spec.block // _WARP if spec.team * lanes_of_warp > _WARP else 1
    stride = 2 * own * lanes_of_warp
    tree = tree_of(warps, stride)

    @device
    def exchange(sums: Any, at: Any) -> None:
        value = fold(sums, at)
        for index in range(exchanges):
            value += cuda.shfl_xor_sync(EVERY_LANE, value, nearest << index)
        sums[at] = value

    @device
    def within_warp(sums: Any) -> None:
        for k in range(own):
            exchange(sums, k)  # the second row apart: a loop over rows as well is not unrolled for devices of 10.0
            exchange(sums, width + k)

    @device
    def across_warps(sums: Any, shared: Any) -> None:
        within_warp(sums)
        lane, warp = cuda.threadIdx.x % _WARP, cuda.threadIdx.x // _WARP
        cuda.syncthreads()  # all are done with the last sums
        if lane < lanes_of_warp:
            for row in range(2):
                for k in range(own):
                    shared[warp * stride + (row * own + k) * lanes_of_warp + lane] = sums[row * width + k]
        cuda.syncthreads()
        for row in range(2):
            for k in range(own):
                sums[row * width + k] = tree(shared, (row * own + k) * lanes_of_warp + lane % lanes_of_warp)

    @device
    def in_warp(sums: Any, shared: Any) -> None:
        within_warp(sums)

    return (across_warps, warps * stride) if warps > 1 else (in_warp, 1)


def _leader_of(spec: Spec) -> Primitive:
    keep = min(spec.across, _WARP) - 1 if spec.lanes else _WARP - min(spec.team, _WARP)

    @device
    def leader() -> Any:
        return types.int32(cuda.threadIdx.x) & keep

    return leader  # type: ignore[no-any-return]


def _vote_of(spec: Spec, spans_warps: bool) -> Primitive:
    """vote(p): whether p holds for any thread that must go the same way: all that meet at the next shuffle or barrier."""

    @device
    def block(p: Any) -> Any:
        return cuda.syncthreads_or(types.int32(p)) != 0

    @device
    def warp(p: Any) -> Any:
        return cuda.any_sync(EVERY_LANE, p)

    return block if spans_warps else warp  # type: ignore[no-any-return]


@lru_cache(maxsize=256)
def tools_of(spec: Spec) -> Tools:
    """The device functions of a Spec."""
    quotient = quotient_of(spec.big)
    reduced = HEADER + 5 * spec.kept
    inner = HEADER + 5 * (spec.kept - 1) if spec.lanes else reduced + 5 * (spec.reduced - 1)
    steps = tuple(inner + k for k in range(5))
    along = _place_of(reduced, spec.reduced, quotient)
    reduce, scratch = _reduce_of(spec)
    return Tools(
        real=types.float64 if spec.wide else types.float32,
        locate=_locate_of(spec, quotient),
        sets=_sets_of(spec, quotient),
        task=_task_of(quotient),
        kept=_place_of(HEADER, spec.kept, quotient),
        along=along,
        load=load_of(spec, spec.x, 0, along, steps[1]),
        leader=_leader_of(spec),
        reduce=reduce,
        vote=_vote_of(spec, scratch > 1),
        steps=steps,
        scratch=scratch,
    )
