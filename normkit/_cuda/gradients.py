"""The kernels of the gradient: sums of g and g * x_hat over sets, g = dy * weight; and dx. Parameters as in `kernels`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .access import affine_of, put_at
from .kernels import apply_scale, centre_of
from .package import cuda, device, types
from .spec import CHUNKS, PLANE, POSITIONS, SETS, Spec
from .statistics import MEAN, MEAN_LOW, warp_sum
from .teams import Tools, load_of, tools_of
from .vectors import Primitive, add_products, gradient, read, write

SET_RSTD, SET_SHIFT, SET_SLOPE, SET_GAIN = range(2, 6)  # rows of the numbers of sets, after the centre


def _numbers_of(spec: Spec, tools: Tools) -> Primitive:
    """numbers(...): the centre and scale of a thread's sets, and what to scale the data by."""
    centre, own, real = centre_of(tools), spec.own, tools.real

    @device
    def numbers(sets: Any, geo: Any, first_set: Any, valid: Any, into: Any) -> None:
        high, low, rstd, scale = into
        for k in range(own):
            high[k], low[k], rstd[k], scale[k] = real(0), real(0), real(0), real(1)
            if valid:
                number = first_set + k
                mean, rest = read(sets, MEAN * geo[SETS] + number), read(sets, MEAN_LOW * geo[SETS] + number)
                spread = read(sets, SET_RSTD * geo[SETS] + number)
                by, inverse = apply_scale(spread)
                scale[k] = real(by)
                high[k], low[k], rstd[k] = centre(mean, rest, spread, by, inverse)

    return numbers  # type: ignore[no-any-return]


def _loads_of(spec: Spec, tools: Tools) -> Primitive:
    """load_dy, as `load` of x but unscaled."""
    assert spec.b is not None
    load, own, real = load_of(spec, spec.b, 3, tools.along, tools.steps[4]), spec.own, tools.real

    @device
    def load_dy(address: Any, geo: Any, at: Any, span: Any, held: Any) -> None:
        ones = cuda.local.array(own, real)
        for k in range(own):
            ones[k] = real(1)
        load(address, geo, at, span, held, ones)

    return load_dy  # type: ignore[no-any-return]


def _add_of(spec: Spec, tools: Tools) -> Primitive:
    """add(...): a batch that is held, to the sums."""
    vectors, width, each, team = spec.vectors, spec.width, spec.each, spec.team
    unit = 1 if spec.lanes else spec.width
    _, weight_of = affine_of(spec, tools, spec.w, 2, 1.0)

    @device
    def add(w: Any, geo: Any, at: Any, span: Any, both: Any, numbers: Any, weight: Any, sums: Any) -> None:
        (first, stop, member, valid), (held, steps), (high, low, rstd, _) = span, both, numbers
        for j in range(vectors):
            i = first + member + j * team
            if valid and i < stop:
                weight_of(w, geo, at[2], i * unit, weight)
                for k in range(width):
                    m, e = k * each, j * width + k
                    terms = held[e], steps[e], high[m], low[m], rstd[m], weight[k]
                    sums[k], sums[width + k] = add_products((sums[k], sums[width + k], *terms))

    return add  # type: ignore[no-any-return]


def _add_moving_of(spec: Spec, tools: Tools) -> Primitive:
    """add(...) where centre and scale change along a set: three arrays in the place of weight, PLANE elements apart."""
    assert spec.w is not None
    vectors, width, team = spec.vectors, spec.width, spec.team
    unit = 1 if spec.lanes else spec.width
    size = 8 if spec.w.storage == "float64" else 4
    _, of_position = affine_of(spec, tools, replace(spec.w, still=False), 2, 1.0)
    real = tools.real

    @device
    def add(w: Any, geo: Any, at: Any, span: Any, both: Any, numbers: Any, weight: Any, sums: Any) -> None:
        (first, stop, member, valid), (held, steps), (high, low, rstd, _) = span, both, numbers
        plane = geo[PLANE] * size
        for j in range(vectors):
            i = first + member + j * team
            if valid and i < stop:
                of_position(w, geo, at[2], i * unit, high)
                of_position(w + plane, geo, at[2], i * unit, low)
                of_position(w + 2 * plane, geo, at[2], i * unit, rstd)
                for k in range(width):
                    e = j * width + k
                    terms = held[e], steps[e], high[k], low[k], rstd[k], real(1)
                    sums[k], sums[width + k] = add_products((sums[k], sums[width + k], *terms))

    return add  # type: ignore[no-any-return]


def _store_of(spec: Spec, tools: Tools) -> Primitive:
    """store(...): dx of the batch that is held."""
    vectors, width, each, team = spec.vectors, spec.width, spec.each, spec.team
    unit, put = 1 if spec.lanes else spec.width, put_at(spec, tools)
    _, weight_of = affine_of(spec, tools, spec.w, 2, 1.0)

    @device
    def store(ends: Any, geo: Any, at: Any, span: Any, both: Any, numbers: Any, rest: Any, affine: Any) -> None:
        (y, w), (first, stop, member, valid), (held, steps) = ends, span, both
        (high, low, rstd, _), (shift, slope, gain), (weight, out) = numbers, rest, affine
        for j in range(vectors):
            i = first + member + j * team
            if valid and i < stop:
                weight_of(w, geo, at[2], i * unit, weight)
                for k in range(width):
                    m, e = k * each, j * width + k
                    out[k] = gradient((held[e], steps[e], high[m], low[m], rstd[m], weight[k], shift[m], slope[m], gain[m]))
                put(y, geo, at[1], i * unit, out)

    return store  # type: ignore[no-any-return]


def backward_held(spec: Spec) -> Callable[..., None]:
    """Sums and dx, from one read of x and dy."""
    tools = tools_of(spec)
    numbers_of, load_dy = _numbers_of(spec, tools), _loads_of(spec, tools)
    add, store = _add_of(spec, tools), _store_of(spec, tools)
    weight_before, _ = affine_of(spec, tools, spec.w, 2, 1.0)
    locate, kept, load, reduce, real = tools.locate, tools.kept, tools.load, tools.reduce, tools.real
    size, width, doubled, own, scratch = spec.held, spec.width, 2 * spec.width, spec.own, tools.scratch

    def kernel(x: Any, y: Any, w: Any, b: Any, sets: Any, sums_out: Any, parts: Any, geo: Any, shares: Any) -> None:
        held, steps, sums = cuda.local.array(size, real), cuda.local.array(size, real), cuda.local.array(doubled, real)
        high, low, rstd = cuda.local.array(own, real), cuda.local.array(own, real), cuda.local.array(own, real)
        scale, shift = cuda.local.array(own, real), cuda.local.array(own, real)
        slope, gain = cuda.local.array(own, real), cuda.local.array(own, real)
        weight, out = cuda.local.array(width, real), cuda.local.array(width, real)
        shared = cuda.shared.array(scratch, real)
        first_set, member, valid = locate(geo, types.int64(cuda.blockIdx.x))
        at = kept(geo, first_set if valid else types.int64(0))
        first, stop = types.int64(0), geo[POSITIONS]
        span, both, numbers = (first, stop, member, valid), (held, steps), (high, low, rstd, scale)
        numbers_of(sets, geo, first_set, valid, numbers)
        load(x, geo, at[0], span, held, scale)
        load_dy(b, geo, at[3], span, steps)
        if valid:
            weight_before(w, geo, at[2], first, weight)
        for k in range(doubled):
            sums[k] = real(0)
        add(w, geo, at, span, both, numbers, weight, sums)
        reduce(sums, shared)
        for k in range(own):
            total, product = types.float64(sums[k]), types.float64(sums[width + k])
            if valid and member == 0:
                write(sums_out, first_set + k, total)
                write(sums_out, geo[SETS] + first_set + k, product)
            shift[k], slope[k] = real(total * shares[0]), real(product * shares[1])
            gain[k] = real(read(sets, SET_GAIN * geo[SETS] + first_set + k)) if valid else real(0)
        store((y, w), geo, at, span, both, numbers, (shift, slope, gain), (weight, out))

    return kernel


def _partial_of(spec: Spec, tools: Tools, moving: bool) -> Primitive:
    """partial(...): the two sums of one chunk of the sets of a tile, into parts."""
    numbers_of, load_dy = _numbers_of(spec, tools), _loads_of(spec, tools)
    add = (_add_moving_of if moving else _add_of)(spec, tools)
    weight_before = affine_of(spec, tools, None if moving else spec.w, 2, 1.0)[0]
    locate, kept, load, reduce, real = tools.locate, tools.kept, tools.load, tools.reduce, tools.real
    width, own, chunk_length, rounds, batch = spec.width, spec.own, spec.chunk, spec.rounds, spec.team * spec.vectors

    @device
    def of_none(sets: Any, geo: Any, first_set: Any, valid: Any, into: Any) -> None:
        for k in range(own):
            into[3][k] = real(1)

    begin = of_none if moving else numbers_of

    @device
    def partial(ends: Any, sets: Any, parts: Any, geo: Any, task: Any, both: Any, numbers: Any, team_sums: Any) -> None:
        (x, w, b), (tile, chunk), (weight, sums, shared) = ends, task, team_sums
        first_set, member, valid = locate(geo, tile)
        at = kept(geo, first_set if valid else types.int64(0))
        begin(sets, geo, first_set, valid, numbers)
        if valid:
            weight_before(w, geo, at[2], types.int64(0), weight)
        for k in range(2 * width):
            sums[k] = real(0)
        first = chunk * chunk_length
        stop = min(first + chunk_length, geo[POSITIONS])
        for index in range(rounds):
            start = first + index * batch
            if start < stop:
                span = (start, stop, member, valid)
                load(x, geo, at[0], span, both[0], numbers[3])
                load_dy(b, geo, at[3], span, both[1])
                add(w, geo, at, span, both, numbers, weight, sums)
        reduce(sums, shared)
        if valid and member == 0:
            for k in range(own):
                to = chunk * geo[SETS] + first_set + k
                write(parts, to, types.float64(sums[k]))
                write(parts, geo[CHUNKS] * geo[SETS] + to, types.float64(sums[width + k]))

    return partial  # type: ignore[no-any-return]


def _products(spec: Spec, moving: bool) -> Callable[..., None]:
    tools = tools_of(spec)
    partial, task, real = _partial_of(spec, tools, moving), tools.task, tools.real
    size, width, doubled, scratch = spec.held, spec.width, 2 * spec.width, tools.scratch
    own = width if moving else spec.own  # numbers that move come one for each element

    def kernel(x: Any, y: Any, w: Any, b: Any, sets: Any, sums_out: Any, parts: Any, geo: Any, shares: Any) -> None:
        held, steps, sums = cuda.local.array(size, real), cuda.local.array(size, real), cuda.local.array(doubled, real)
        high, low, rstd = cuda.local.array(own, real), cuda.local.array(own, real), cuda.local.array(own, real)
        scale, weight = cuda.local.array(own, real), cuda.local.array(width, real)
        shared = cuda.shared.array(scratch, real)
        both, numbers = (held, steps), (high, low, rstd, scale)
        partial((x, w, b), sets, parts, geo, task(geo), both, numbers, (weight, sums, shared))

    return kernel


def partial_products(spec: Spec) -> Callable[..., None]:
    """The two sums of every chunk, by the numbers of its sets."""
    return _products(spec, moving=False)


def moving_products(spec: Spec) -> Callable[..., None]:
    """The two sums of every chunk of a parameter's sets, along which centre and scale change."""
    return _products(spec, moving=True)


@device
def merge(parts: Any, sets: Any, sums_out: Any, geo: Any, k: Any, shares: Any, keep: Any) -> None:
    """The two sums of set k, by all lanes of a warp, from those of its chunks, in a fixed order."""
    lane = types.int64(cuda.threadIdx.x) % 32
    rows = geo[CHUNKS] * geo[SETS]
    total, product = types.float64(0), types.float64(0)
    for chunk in range(lane, geo[CHUNKS], 32):
        total += read(parts, chunk * geo[SETS] + k)
        product += read(parts, rows + chunk * geo[SETS] + k)
    total, product = warp_sum(total), warp_sum(product)
    if lane == 0:
        write(sums_out, k, total)
        write(sums_out, geo[SETS] + k, product)
        if keep:
            write(sets, SET_SHIFT * geo[SETS] + k, total * shares[0])
            write(sets, SET_SLOPE * geo[SETS] + k, product * shares[1])


def merge_products(spec: Spec) -> Callable[..., None]:
    """The two sums of every set: a warp per set."""
    keep = spec.wanted

    def kernel(x: Any, y: Any, w: Any, b: Any, sets: Any, sums_out: Any, parts: Any, geo: Any, shares: Any) -> None:
        k = (types.int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x) // 32
        if k < geo[SETS]:
            merge(parts, sets, sums_out, geo, k, shares, keep)

    return kernel


def _apply_of(spec: Spec, tools: Tools) -> Primitive:
    """apply(...): dx of one chunk of the sets of a tile, by their numbers."""
    numbers_of, load_dy, store = _numbers_of(spec, tools), _loads_of(spec, tools), _store_of(spec, tools)
    weight_before, _ = affine_of(spec, tools, spec.w, 2, 1.0)
    locate, kept, load, real = tools.locate, tools.kept, tools.load, tools.real
    own, chunk_length, rounds, batch = spec.own, spec.chunk, spec.rounds, spec.team * spec.vectors

    @device
    def apply(ends: Any, sets: Any, geo: Any, task: Any, both: Any, numbers: Any, rest: Any, affine: Any) -> None:
        (x, y, w, b), (tile, chunk), (shift, slope, gain) = ends, task, rest
        first_set, member, valid = locate(geo, tile)
        at = kept(geo, first_set if valid else types.int64(0))
        numbers_of(sets, geo, first_set, valid, numbers)
        for k in range(own):
            shift[k], slope[k], gain[k] = real(0), real(0), real(0)
            if valid:
                shift[k] = real(read(sets, SET_SHIFT * geo[SETS] + first_set + k))
                slope[k] = real(read(sets, SET_SLOPE * geo[SETS] + first_set + k))
                gain[k] = real(read(sets, SET_GAIN * geo[SETS] + first_set + k))
        if valid:
            weight_before(w, geo, at[2], types.int64(0), affine[0])
        first = chunk * chunk_length
        stop = min(first + chunk_length, geo[POSITIONS])
        for index in range(rounds):
            start = first + index * batch
            if start < stop:
                span = (start, stop, member, valid)
                load(x, geo, at[0], span, both[0], numbers[3])
                load_dy(b, geo, at[3], span, both[1])
                store((y, w), geo, at, span, both, numbers, rest, affine)

    return apply  # type: ignore[no-any-return]


def apply_gradient(spec: Spec) -> Callable[..., None]:
    """Set dx of every chunk, by the numbers of its sets."""
    tools = tools_of(spec)
    apply_chunk, task = _apply_of(spec, tools), tools.task
    size, width, own, real = spec.held, spec.width, spec.own, tools.real

    def kernel(x: Any, y: Any, w: Any, b: Any, sets: Any, sums_out: Any, parts: Any, geo: Any, shares: Any) -> None:
        held, steps = cuda.local.array(size, real), cuda.local.array(size, real)
        high, low, rstd = cuda.local.array(own, real), cuda.local.array(own, real), cuda.local.array(own, real)
        scale, shift = cuda.local.array(own, real), cuda.local.array(own, real)
        slope, gain = cuda.local.array(own, real), cuda.local.array(own, real)
        weight, out = cuda.local.array(width, real), cuda.local.array(width, real)
        both, numbers, rest = (held, steps), (high, low, rstd, scale), (shift, slope, gain)
        apply_chunk((x, y, w, b), sets, geo, task(geo), both, numbers, rest, (weight, out))

    return kernel


def backward_looped(spec: Spec) -> Callable[..., None]:
    """Partial, merge and apply by the block that has the sets, the last in reverse."""
    tools = tools_of(spec)
    partial, apply_chunk, sets_of_tile = _partial_of(spec, tools, False), _apply_of(spec, tools), tools.sets
    size, width, doubled, own, real = spec.held, spec.width, 2 * spec.width, spec.own, tools.real
    scratch, warps = tools.scratch, spec.block // 32

    def kernel(x: Any, y: Any, w: Any, b: Any, sets: Any, sums_out: Any, parts: Any, geo: Any, shares: Any) -> None:
        held, steps, sums = cuda.local.array(size, real), cuda.local.array(size, real), cuda.local.array(doubled, real)
        high, low, rstd = cuda.local.array(own, real), cuda.local.array(own, real), cuda.local.array(own, real)
        scale, shift = cuda.local.array(own, real), cuda.local.array(own, real)
        slope, gain = cuda.local.array(own, real), cuda.local.array(own, real)
        weight, out = cuda.local.array(width, real), cuda.local.array(width, real)
        shared = cuda.shared.array(scratch, real)
        both, numbers, rest = (held, steps), (high, low, rstd, scale), (shift, slope, gain)
        tile = types.int64(cuda.blockIdx.x)
        for chunk in range(geo[CHUNKS]):
            partial((x, w, b), sets, parts, geo, (tile, chunk), both, numbers, (weight, sums, shared))
        cuda.syncthreads()
        begin, end = sets_of_tile(geo, tile)
        for k in range(begin + cuda.threadIdx.x // 32, end, warps):
            merge(parts, sets, sums_out, geo, k, shares, True)
        cuda.syncthreads()
        for index in range(geo[CHUNKS]):
            task = (tile, geo[CHUNKS] - 1 - index)
            apply_chunk((x, y, w, b), sets, geo, task, both, numbers, rest, (weight, out))

    return kernel
