"""The kernels of the norm: a set held by its team, sets in chunks (partial, merge, apply), or all chunks in one block.

Every kernel has the same parameters: the addresses of x, y, weight, bias (dy in a gradient), of the numbers of the sets, of
their sums and of partial sums, then the geometry and some numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .._formulas import RSTD_LIMIT
from .access import affine_of, put_at
from .package import cuda, device, types
from .spec import CHUNKS, PLANE, POSITIONS, SETS, SIZE, Spec
from .statistics import M2, MEAN, MEAN_LOW, inverse_of, merge_of, moments_of, partial_of, statistics_of
from .teams import Tools, tools_of
from .vectors import Primitive, normalized, read, write

SHARE, EPS = 0, 1  # 1 / (elements of a set - correction), and what is added to the variance
_LIMIT, _SMALL = types.float64(RSTD_LIMIT), types.float64(1 / RSTD_LIMIT)


@device
def scale_of(m2: float, divisor: float, eps: float) -> float:
    """1 / sqrt(var + eps); 0 where that is 1 / 0, so that a constant set gives exactly its bias."""
    v = m2 / divisor + eps
    return 0.0 if v == 0 else 1.0 / math.sqrt(v)


def store_of(spec: Spec, tools: Tools) -> Primitive:
    """store(...): the norm of the batch that is held.

    ends: addresses of y, w, b; numbers: (high, low, rstd, scale) of a thread's sets; affine: room for weight, bias, result.
    """
    vectors, width, each, team = spec.vectors, spec.width, spec.each, spec.team

    @device
    def nothing(ends: Any, geo: Any, at: Any, span: Any, held: Any, numbers: Any, affine: Any) -> None:
        pass

    if spec.y is None:
        return nothing  # type: ignore[no-any-return]
    unit, put = 1 if spec.lanes else spec.width, put_at(spec, tools)
    _, weight_of = affine_of(spec, tools, spec.w, 2, 1.0)
    _, bias_of = affine_of(spec, tools, spec.b, 3, 0.0)

    @device
    def store(ends: Any, geo: Any, at: Any, span: Any, held: Any, numbers: Any, affine: Any) -> None:
        (y, w, b), (first, stop, member, valid) = ends, span
        (high, low, rstd, _), (weight, bias, out) = numbers, affine
        for j in range(vectors):
            i = first + member + j * team
            if valid and i < stop:
                weight_of(w, geo, at[2], i * unit, weight)
                bias_of(b, geo, at[3], i * unit, bias)
                for k in range(width):
                    m = k * each
                    out[k] = normalized((held[j * width + k], high[m], low[m], rstd[m], weight[k], bias[k]))
                put(y, geo, at[1], i * unit, out)

    return store  # type: ignore[no-any-return]


@device
def apply_scale(rstd: Any) -> Any:
    """A power of two to scale the data by, so that x - mean and x_hat stay in float32's range, and its inverse."""
    one = types.float64(1)
    if abs(rstd) > _LIMIT:
        return _LIMIT, _SMALL
    return (_SMALL, _LIMIT) if rstd != 0 and abs(rstd) < _SMALL else (one, one)


def centre_of(tools: Tools) -> Primitive:
    """centre(mean, low, rstd, scale): the same for data times `scale` in the accumulator's type, the mean in two parts."""
    real = tools.real

    @device
    def centre(mean: Any, low: Any, rstd: Any, scale: Any, inverse: Any) -> Any:
        mean, low = mean * scale, low * scale
        high = real(mean)
        return high, real((mean - types.float64(high)) + low), real(rstd * inverse)

    return centre  # type: ignore[no-any-return]


def forward_held(spec: Spec) -> Callable[..., None]:
    """Statistics and result, from one read of x."""
    tools = tools_of(spec)
    statistics, moments, centre = statistics_of(spec, tools), moments_of(spec), centre_of(tools)
    store = store_of(spec, tools)
    (weight_before, _), (bias_before, _) = affine_of(spec, tools, spec.w, 2, 1.0), affine_of(spec, tools, spec.b, 3, 0.0)
    locate, kept, real, wanted = tools.locate, tools.kept, tools.real, spec.wanted
    size, width, doubled, own, scratch = spec.held, spec.width, 2 * spec.width, spec.own, tools.scratch

    def kernel(x: Any, y: Any, w: Any, b: Any, sets: Any, sums_out: Any, parts: Any, geo: Any, numbers: Any) -> None:
        held, sums = cuda.local.array(size, real), cuda.local.array(doubled, real)
        pivot, scale = cuda.local.array(own, real), cuda.local.array(own, real)
        low, rstd = cuda.local.array(own, real), cuda.local.array(own, real)
        weight, bias, out = cuda.local.array(width, real), cuda.local.array(width, real), cuda.local.array(width, real)
        shared = cuda.shared.array(scratch, real)
        first_set, member, valid = locate(geo, types.int64(cuda.blockIdx.x))
        at = kept(geo, first_set if valid else types.int64(0))
        stop = geo[POSITIONS]
        span = (types.int64(0), stop, member, valid)
        statistics(x, geo, at[0], span, held, (pivot, scale), (sums, shared))
        one_nth = 1 / types.float64(geo[SIZE])
        for k in range(own):
            start, shift, m2 = moments(pivot[k], sums[k], sums[width + k], one_nth, scale[k])
            mean = start + shift
            rest = shift - (mean - start)
            if wanted and valid and member == 0:
                write(sets, MEAN * geo[SETS] + first_set + k, mean)
                write(sets, MEAN_LOW * geo[SETS] + first_set + k, rest)
                write(sets, M2 * geo[SETS] + first_set + k, m2)
            spread = scale_of(m2 * numbers[SHARE], types.float64(1), numbers[EPS])
            inverse = inverse_of(types.float32(scale[k]))
            pivot[k], low[k], rstd[k] = centre(mean, rest, spread, types.float64(scale[k]), inverse)
        if valid:
            weight_before(w, geo, at[2], types.int64(0), weight)
            bias_before(b, geo, at[3], types.int64(0), bias)
        store((y, w, b), geo, at, span, held, (pivot, low, rstd, scale), (weight, bias, out))

    return kernel


def _apply_of(spec: Spec, tools: Tools) -> Primitive:
    """apply(...): the norm of one chunk of the sets of a tile, by their numbers."""
    store, centre = store_of(spec, tools), centre_of(tools)
    (weight_before, _), (bias_before, _) = affine_of(spec, tools, spec.w, 2, 1.0), affine_of(spec, tools, spec.b, 3, 0.0)
    locate, kept, load, real = tools.locate, tools.kept, tools.load, tools.real
    own, chunk_length, batch, rounds = spec.own, spec.chunk, spec.team * spec.vectors, spec.rounds

    @device
    def apply(x: Any, ends: Any, sets: Any, geo: Any, task: Any, held: Any, numbers: Any, affine: Any) -> None:
        (_, w, b), (tile, chunk) = ends, task
        (high, low, rstd, scale), (weight, bias, _) = numbers, affine
        first_set, member, valid = locate(geo, tile)
        at = kept(geo, first_set if valid else types.int64(0))
        for k in range(own):
            high[k], low[k], rstd[k], scale[k] = real(0), real(0), real(0), real(1)
            if valid:
                number = first_set + k
                mean, rest = read(sets, MEAN * geo[SETS] + number), read(sets, MEAN_LOW * geo[SETS] + number)
                spread = read(sets, geo[PLANE] + number)
                by, inverse = apply_scale(spread)
                scale[k] = real(by)
                high[k], low[k], rstd[k] = centre(mean, rest, spread, by, inverse)
        if valid:
            weight_before(w, geo, at[2], types.int64(0), weight)
            bias_before(b, geo, at[3], types.int64(0), bias)
        first = chunk * chunk_length
        stop = min(first + chunk_length, geo[POSITIONS])
        for index in range(rounds):
            start = first + index * batch
            if start < stop:
                span = (start, stop, member, valid)
                load(x, geo, at[0], span, held, scale)
                store(ends, geo, at, span, held, numbers, affine)

    return apply  # type: ignore[no-any-return]


def partial_moments(spec: Spec) -> Callable[..., None]:
    """The moments of every chunk."""
    tools = tools_of(spec)
    partial = partial_of(spec, tools)
    size, doubled, own, scratch, real = spec.held, 2 * spec.width, spec.own, tools.scratch, tools.real
    task = tools.task

    def kernel(x: Any, y: Any, w: Any, b: Any, sets: Any, sums_out: Any, parts: Any, geo: Any, numbers: Any) -> None:
        held, sums = cuda.local.array(size, real), cuda.local.array(doubled, real)
        pivot, scale = cuda.local.array(own, real), cuda.local.array(own, real)
        shared = cuda.shared.array(scratch, real)
        partial(x, parts, geo, task(geo), held, (pivot, scale), (sums, shared))

    return kernel


def merge_moments(spec: Spec) -> Callable[..., None]:
    """The numbers of every set from the moments of its chunks: a warp per set."""
    merge = merge_of(spec, scale_of)

    def kernel(x: Any, y: Any, w: Any, b: Any, sets: Any, sums_out: Any, parts: Any, geo: Any, numbers: Any) -> None:
        k = (types.int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x) // 32
        if k < geo[SETS]:
            merge(parts, sets, geo, k, numbers[SHARE], numbers[EPS])

    return kernel


def apply(spec: Spec) -> Callable[..., None]:
    """The norm of every chunk, by the numbers of its sets."""
    tools = tools_of(spec)
    apply_chunk = _apply_of(spec, tools)
    size, width, own, real, task = spec.held, spec.width, spec.own, tools.real, tools.task

    def kernel(x: Any, y: Any, w: Any, b: Any, sets: Any, sums_out: Any, parts: Any, geo: Any, numbers: Any) -> None:
        held, scale, rstd = cuda.local.array(size, real), cuda.local.array(own, real), cuda.local.array(own, real)
        high, low = cuda.local.array(own, real), cuda.local.array(own, real)
        weight, bias, out = cuda.local.array(width, real), cuda.local.array(width, real), cuda.local.array(width, real)
        apply_chunk(x, (y, w, b), sets, geo, task(geo), held, (high, low, rstd, scale), (weight, bias, out))

    return kernel


def forward_looped(spec: Spec) -> Callable[..., None]:
    """Partial, merge and apply by the block that has the sets; the last in reverse, since L2 holds what was read last."""
    tools = tools_of(spec)
    partial, merge, apply_chunk = partial_of(spec, tools), merge_of(spec, scale_of), _apply_of(spec, tools)
    size, width, doubled, own, real = spec.held, spec.width, 2 * spec.width, spec.own, tools.real
    scratch, sets_of_tile, warps = tools.scratch, tools.sets, spec.block // 32

    def kernel(x: Any, y: Any, w: Any, b: Any, sets: Any, sums_out: Any, parts: Any, geo: Any, numbers: Any) -> None:
        held, sums = cuda.local.array(size, real), cuda.local.array(doubled, real)
        pivot, scale = cuda.local.array(own, real), cuda.local.array(own, real)
        low, rstd = cuda.local.array(own, real), cuda.local.array(own, real)
        weight, bias, out = cuda.local.array(width, real), cuda.local.array(width, real), cuda.local.array(width, real)
        shared = cuda.shared.array(scratch, real)
        tile = types.int64(cuda.blockIdx.x)
        for chunk in range(geo[CHUNKS]):
            partial(x, parts, geo, (tile, chunk), held, (pivot, scale), (sums, shared))
        cuda.syncthreads()
        begin, end = sets_of_tile(geo, tile)
        for k in range(begin + cuda.threadIdx.x // 32, end, warps):
            merge(parts, sets, geo, k, numbers[SHARE], numbers[EPS])
        cuda.syncthreads()
        for index in range(geo[CHUNKS]):
            task = (tile, geo[CHUNKS] - 1 - index)
            apply_chunk(x, (y, w, b), sets, geo, task, held, (pivot, low, rstd, scale), (weight, bias, out))

    return kernel
