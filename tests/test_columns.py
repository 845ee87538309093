"""Small sets side by side have a kernel of their own; it gives the bits of that for all sets side by side."""

import ml_dtypes
import numpy as np
import pytest

import normkit as nk
from asv_bench.benchmarks.corners import lay
from normkit import _recall
from normkit._cpu import arrangement, plan


def counts_of_rows(lanes):
    """Fewer than eight, of several lanes, are runs."""
    return (8, 9, 15, 16, 17, 33, 49, 64) if lanes > 1 else (1, 2, 7, 8, 9, 16, 17, 49, 64)


# samples, channels, lanes of a set, bytes behind a page: rows of less than a vector and of more, of whole blocks and not, and
# wide ones that start where a cache line does or before it
PLACES = [
    (3, 3, 1, 0),
    (3, 16, 1, 4),
    (2, 64, 2, 16),
    (2, 65, 1, 16),
    (2, 100, 4, 16),
    (3, 80, 8, 0),
    (2, 96, 16, 32),
    (2, 144, 16, 16),
    (2, 256, 1, 16),
    (1, 320, 1, 4),  # two tiles, each with its weights, as the next
    (1, 320, 4, 16),
    (2, 272, 4, 20),
    (2, 512, 8, 48),
    (2, 512, 16, 0),
    (2, 512, 16, 16),
    (2, 400, 16, 36),
]


def sets(rows, samples, channels, lanes, seed=0):
    """(samples, rows, channels) of sets that are ordinary, and of some that are not."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, rows, channels // lanes, lanes)) * 3 + 5
    odd = [
        lambda part: part * 1e-30,  # waits for float64, as does the next
        lambda part: part * 1e30,
        lambda part: part * 0 + 7,
        lambda part: part + 1e5,
        lambda part: np.where(np.arange(rows)[:, None] < rows // 2, part + 1e6, part),  # its first elements tell little
        lambda part: np.where(np.arange(rows)[:, None] == rows - 1, np.nan, part),
        lambda part: np.where(np.arange(rows)[:, None] == 0, np.inf, part),
        lambda part: part * 1e-44,
    ]
    for k, change in zip(rng.permutation(samples * channels // lanes)[: 2 * len(odd)], odd * 2, strict=False):
        sample, own = divmod(k, channels // lanes)
        with np.errstate(over="ignore"):
            x[sample, :, own] = change(x[sample, :, own])
    return x.reshape(samples, rows, channels)


@pytest.fixture
def both_ways(monkeypatch):
    """What calls a function twice: with the kernel for small sets side by side, and without."""

    def call(function, gradient=False):
        found, in_columns, seen = [], arrangement.in_columns, set()
        for small in (True, False):
            monkeypatch.setattr(_recall, "_ready", {})
            plan._plan.cache_clear()

            def chosen(view, itemsize, small=small):
                fits = in_columns(view, itemsize)
                seen.add((fits, view.gradient))
                return small and fits

            with monkeypatch.context() as patch, np.errstate(all="ignore"):
                patch.setattr(arrangement, "in_columns", chosen)
                found.append(function())
        plan._plan.cache_clear()
        assert (True, gradient) in seen
        return found

    return call


def same(one, other):
    """Every bit, but those of NaN."""
    return one.dtype == other.dtype and np.array_equal(one.astype(np.float64), other.astype(np.float64), equal_nan=True)


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("norm", ["group", "rms"])
def test_bits_are_those_of_tiles(place, norm, both_ways):
    samples, channels, lanes, behind = place
    affine = np.random.default_rng(1).standard_normal((2, channels)).astype(np.float32)

    def normalize(x, **options):
        if norm == "group":
            return nk.group_norm(x, channels // lanes, *affine, channel_axis=-1, return_moments=True, **options)
        grouped = x.reshape(samples, rows, channels // lanes, lanes)
        scale = affine[0].reshape(channels // lanes, lanes)
        return nk.normalize(grouped, (1, 3), scale, center=False, return_moments=True, **options)

    for rows in counts_of_rows(lanes):
        with np.errstate(over="ignore", invalid="ignore"):
            x = lay(sets(rows, samples, channels, lanes, rows).astype(np.float32), behind)
        (y, own), (expected, theirs) = both_ways(lambda x=x: normalize(x))
        assert same(y, expected), rows
        for name in ("mean", "m2"):
            assert same(getattr(own, name), getattr(theirs, name)), (rows, name)
        inside = lay(x.copy(), behind)
        out = inside if norm == "group" else inside.reshape(samples, rows, channels // lanes, lanes)
        _recall._ready.clear()
        assert same(normalize(inside, out=out)[0].reshape(x.shape), expected.reshape(x.shape)), rows


@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16, "uint8"])
@pytest.mark.parametrize("place", [PLACES[k] for k in (1, 4, 8, 12)], ids=str)
def test_bits_of_other_formats_are_those_of_tiles(place, dtype, both_ways):
    samples, channels, lanes, behind = place
    options = {} if np.dtype(dtype).kind in "fV" else {"dtype": np.float32}
    for rows in counts_of_rows(lanes):
        with np.errstate(all="ignore"):
            x = lay(sets(rows, samples, channels, lanes, rows).astype(dtype), behind)
        y, expected = both_ways(lambda x=x: nk.group_norm(x, channels // lanes, channel_axis=-1, **options))
        assert same(y, expected), rows


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_bits_of_gradients_are_those_of_tiles(place, dtype, both_ways):
    """Where no set waits for float64, and where some do."""
    samples, channels, lanes, behind = place
    rng = np.random.default_rng(1)
    affine = rng.standard_normal((2, channels)).astype(np.float32)
    for rows in counts_of_rows(lanes):
        plain = rng.standard_normal((samples, rows, channels)) * 3 + 5
        dy = lay(rng.standard_normal(plain.shape).astype(dtype), behind)
        for values in (plain, sets(rows, samples, channels, lanes, rows)):
            with np.errstate(all="ignore"):
                x = lay(values.astype(dtype), behind)
            for weights in ((), affine):

                def pull(x=x, dy=dy, weights=weights):
                    return nk.vjp(nk.group_norm, x, channels // lanes, *weights, channel_axis=-1)[1](dy)

                one, other = both_ways(pull, gradient=True)
                for name in ("x", "weight", "bias") if len(weights) else ("x",):
                    assert same(getattr(one, name), getattr(other, name)), (rows, name, len(weights))


@pytest.mark.parametrize("channels", [16, 80])
def test_a_dy_that_lies_in_dx_is_there_for_sets_that_wait(channels):
    """One in another order is put in order in the memory of dx: no kernel may write a set before the one that reads it."""
    x = sets(49, 3, channels, 1).astype(np.float32).reshape(3, 7, 7, channels)
    dy = np.random.default_rng(2).standard_normal(x.shape).astype(np.float32)
    pullback = nk.vjp(nk.instance_norm, x, channel_axis=-1)[1]
    turned = np.moveaxis(np.ascontiguousarray(np.moveaxis(dy, -1, 1)), 1, -1)
    assert same(pullback(turned).x, pullback(dy).x)


@pytest.mark.parametrize("lanes", [3, 6, 10, 20, 32])
def test_lanes_that_do_not_fill_a_vector_evenly_are_for_tiles(lanes):
    x = sets(49, 2, 6 * lanes, lanes)
    x[~np.isfinite(x) | (np.abs(x) > 1e4)] = 3
    y = nk.group_norm(x.astype(np.float32), 6, channel_axis=-1, eps=1e-3)
    grouped = x.astype(np.float32).astype(float).reshape(2, 49, 6, lanes)
    expected = (grouped - grouped.mean((1, 3), keepdims=True)) / np.sqrt(grouped.var((1, 3), keepdims=True) + 1e-3)
    assert np.allclose(y, expected.reshape(x.shape), rtol=1e-5, atol=1e-5)
