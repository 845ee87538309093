"""Statistics: a chunk about a pivot near its mean, in registers; chunks merged in float64, in a fixed order."""

from __future__ import annotations

from typing import Any

from .._formulas import HUGE, STILL, TINY_VARIANCE
from .package import cuda, device, types
from .spec import CHUNKS, POSITIONS, SETS, SIZE, Operand, Spec
from .teams import EVERY_LANE, Tools
from .vectors import Primitive, add_deviation, fetch_of, read, write

# Where float32 is too narrow, the data are scaled by a power of two, which rounds nothing: squares of values below 1e-14
# underflow and of values above 1e17 may overflow; times 2**100 or 2**-100 both lie well inside.
GROW, SHRINK = 2.0**100, 2.0**-100
MEAN, MEAN_LOW, M2, RSTD = range(4)  # rows of the numbers of sets


@device
def inverse_of(scale: Any) -> Any:
    """1 / scale, a power of two, exactly."""
    if scale == types.float32(1):
        return types.float64(1)
    return types.float64(SHRINK) if scale > types.float32(1) else types.float64(GROW)


@device
def warp_sum(value: Any) -> Any:
    """The sum over the lanes of a warp, in every lane."""
    for distance in (16, 8, 4, 2, 1):
        value += cuda.shfl_xor_sync(EVERY_LANE, value, distance)
    return value


def _scale_for(spec: Spec) -> Primitive:
    """scale_for(q, pivot, n): what to scale the data by, of which n squares about a pivot sum up to q; 1 if float32 holds q."""
    center = spec.center

    @device
    def scale_for(q: Any, pivot: Any, n: Any) -> Any:
        one = types.float32(1)
        if q < types.float32(TINY_VARIANCE) * n:
            still = center and q == types.float32(0) and (n == one or abs(pivot) >= types.float32(STILL))
            return one if still else types.float32(GROW)
        return one if q < types.float32(HUGE) else types.float32(SHRINK)

    return scale_for  # type: ignore[no-any-return]


def statistics_of(spec: Spec, tools: Tools) -> Primitive:
    """Sums over positions [first, stop) of a set: of d and d * d, d = x * scale - pivot, into sums, by every member.

    numbers: (pivot, scale) of a thread's sets; team_sums: (sums, shared memory to add them up in).

    The first batch stays in `held`, scaled. A constant set has d = 0 exactly: the pivot starts as its first element.
    """
    vectors, width, own, team, center, real = spec.vectors, spec.width, spec.own, spec.team, spec.center, tools.real
    each = spec.each
    batch, unit, rounds, step = team * vectors, 1 if spec.lanes else spec.width, spec.rounds, tools.steps[1]
    load, reduce, along, vote = tools.load, tools.reduce, tools.along, tools.vote
    leader, fetch_first, scale_for = tools.leader, fetch_of(Operand(spec.x.storage), own), _scale_for(spec)

    @device
    def add(held: Any, span: Any, pivot: Any, sums: Any) -> None:
        first, stop, member, valid = span
        for j in range(vectors):
            if valid and first + member + j * team < stop:
                for k in range(width):
                    held_sums = sums[k], sums[width + k]
                    sums[k], sums[width + k] = add_deviation((*held_sums, held[j * width + k], pivot[k * each]))

    @device
    def clear(sums: Any) -> None:
        for k in range(2 * width):
            sums[k] = real(0)

    @device
    def rest_of_chunk(x: Any, geo: Any, at: Any, span: Any, held: Any, numbers: Any, sums: Any) -> None:
        (first, stop, member, valid), (pivot, scale) = span, numbers
        for index in range(1, rounds):
            start = first + index * batch
            if start < stop:
                load(x, geo, at, (start, stop, member, valid), held, scale)
                add(held, (start, stop, member, valid), pivot, sums)

    @device
    def attempt(x: Any, geo: Any, at: Any, span: Any, held: Any, numbers: Any, team_sums: Any) -> None:
        (first, stop, _, valid), (pivot, scale), (sums, shared) = span, numbers, team_sums
        load(x, geo, at, span, held, scale)
        for k in range(own):
            pivot[k] = real(0)
        if center:
            source = leader()
            if valid and source == cuda.threadIdx.x % 32:
                fetch_first(x, at + along(geo, first * unit)[0], geo[step], pivot, 0)
            for k in range(own):
                pivot[k] = cuda.shfl_sync(EVERY_LANE, pivot[k], source)
            for k in range(own):
                pivot[k] *= scale[k]
            clear(sums)
            add(held, span, pivot, sums)
            reduce(sums, shared)
            share = real(types.float32(1) / types.float32(min(stop - first, types.int64(batch)) * unit))
            for k in range(own):
                pivot[k] += sums[k] * share
        clear(sums)
        add(held, span, pivot, sums)
        rest_of_chunk(x, geo, at, span, held, numbers, sums)
        reduce(sums, shared)

    @device
    def narrow(x: Any, geo: Any, at: Any, span: Any, held: Any, numbers: Any, team_sums: Any) -> None:
        (first, stop, _, valid), (pivot, scale), (sums, _) = span, numbers, team_sums
        for k in range(own):
            scale[k] = real(1)
        last = False
        while True:
            attempt(x, geo, at, span, held, numbers, team_sums)
            if last:
                break
            wild = False
            for k in range(own):
                scale[k] = scale_for(sums[width + k], pivot[k], real((stop - first) * unit))
                wild = wild or (valid and scale[k] != real(1))
            if not vote(wild):
                break
            last = True

    @device
    def wide(x: Any, geo: Any, at: Any, span: Any, held: Any, numbers: Any, team_sums: Any) -> None:
        _, scale = numbers
        for k in range(own):
            scale[k] = real(1)
        attempt(x, geo, at, span, held, numbers, team_sums)

    return wide if spec.wide else narrow  # type: ignore[no-any-return]


def moments_of(spec: Spec) -> Primitive:
    """moments(pivot, s, q, share, scale): (pivot, mean - pivot, M2) in float64, of the data before they were scaled."""
    center = spec.center

    @device
    def moments(pivot: Any, s: Any, q: Any, share: Any, scale: Any) -> Any:
        inverse, total = inverse_of(types.float32(scale)), types.float64(s)
        low = total * share if center else types.float64(0)
        m2 = types.float64(q) - total * low
        return types.float64(pivot) * inverse, low * inverse, (types.float64(0) if m2 < 0 else m2) * inverse * inverse

    return moments  # type: ignore[no-any-return]


def partial_of(spec: Spec, tools: Tools) -> Primitive:
    """partial(x, parts, geo, (tile, chunk), ...): the moments of one chunk of the sets of a tile, into parts."""
    statistics, moments, locate, kept = statistics_of(spec, tools), moments_of(spec), tools.locate, tools.kept
    chunk_length, own, width, unit = spec.chunk, spec.own, spec.width, 1 if spec.lanes else spec.width

    @device
    def partial(x: Any, parts: Any, geo: Any, task: Any, held: Any, numbers: Any, team_sums: Any) -> None:
        (tile, chunk), (pivot, scale), (sums, _) = task, numbers, team_sums
        first_set, member, valid = locate(geo, tile)
        at = kept(geo, first_set if valid else types.int64(0))[0]
        first = chunk * chunk_length
        stop = min(first + chunk_length, geo[POSITIONS])
        statistics(x, geo, at, (first, stop, member, valid), held, numbers, team_sums)
        if valid and member == 0:
            rows = geo[CHUNKS] * geo[SETS]
            share = 1 / types.float64((stop - first) * unit)
            for k in range(own):
                mean, low, m2 = moments(pivot[k], sums[k], sums[width + k], share, scale[k])
                to = chunk * geo[SETS] + first_set + k
                write(parts, to, mean)
                write(parts, rows + to, low)
                write(parts, 2 * rows + to, m2)

    return partial  # type: ignore[no-any-return]


def merge_of(spec: Spec, scale_of: Primitive) -> Primitive:
    """merge(parts, sets, geo, k, share, eps): the numbers of set k, by all lanes of a warp, from the moments of its chunks.

    Chan, Golub and LeVeque (1983), eq. 2.1 for any number of parts, about the pivot of the first.
    """
    chunk_length, unit = spec.chunk, 1 if spec.lanes else spec.width

    @device
    def merge(parts: Any, sets: Any, geo: Any, k: Any, share: Any, eps: Any) -> None:
        lane = types.int64(cuda.threadIdx.x) % 32
        n_sets, chunks = geo[SETS], geo[CHUNKS]
        rows = chunks * n_sets
        start, shift, m2 = read(parts, k), types.float64(0), types.float64(0)
        for chunk in range(lane, chunks, 32):
            at = chunk * n_sets + k
            n = min(types.int64(chunk_length), geo[POSITIONS] - chunk * chunk_length) * unit
            shift += n * ((read(parts, at) - start) + read(parts, rows + at))
        shift = warp_sum(shift) / geo[SIZE]
        for chunk in range(lane, chunks, 32):
            at = chunk * n_sets + k
            n = min(types.int64(chunk_length), geo[POSITIONS] - chunk * chunk_length) * unit
            delta = ((read(parts, at) - start) + read(parts, rows + at)) - shift
            m2 += read(parts, 2 * rows + at) + n * delta * delta
        m2 = warp_sum(m2)
        if lane == 0:
            mean = start + shift
            write(sets, MEAN * n_sets + k, mean)
            write(sets, MEAN_LOW * n_sets + k, shift - (mean - start))
            write(sets, M2 * n_sets + k, m2)
            write(sets, RSTD * n_sets + k, scale_of(m2 * share, types.float64(1), eps))

    return merge  # type: ignore[no-any-return]
