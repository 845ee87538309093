"""Moments pool: merge, pool, ema, dictionaries."""

import pickle

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.exceptions import AxisError

import normkit as nk
from normkit._cpu.formulas import merge
from tests import reference
from tests.test_properties import images

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=6)
OFFSETS = st.sampled_from((0.0, 1.0, 1e4, 1e6))


def parts(sizes, offset, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((3, n)) * rng.uniform(0.1, 3) + offset + rng.normal() for n in sizes]


def close(a, b, ulps=16, mean_scale=None):
    """Equal counts; mean and variance to a few ulp (of the mean's own size)."""
    assert np.array_equal(np.broadcast_to(a.count, a.mean.shape), np.broadcast_to(b.count, b.mean.shape))
    assert a.mean.shape == b.mean.shape
    assert np.all(np.abs(a.mean - b.mean) <= ulps * 2.0**-52 * np.maximum(np.abs(b.mean), np.sqrt(b.var)))
    # The parts' means are rounded to float64: that much of their offset is lost in any variance between them.
    lost = (2.0**-52 * np.max(np.abs(b.mean), initial=0)) ** 2 + 2.0**-51 * np.max(np.abs(b.mean), initial=0) * np.sqrt(b.var)
    assert np.all(np.abs(a.var - b.var) <= ulps * 2.0**-52 * b.var + 4 * lost)


@given(SIZES, OFFSETS, st.integers(0, 99))
def test_merge_equals_the_concatenated_data(sizes, offset, seed):
    data = parts(sizes, offset, seed)
    close(nk.Moments.merge_all([nk.moments(x, 1) for x in data]), nk.moments(np.concatenate(data, 1), 1))


@given(st.lists(st.integers(0, 40), min_size=3, max_size=3), OFFSETS, st.integers(0, 99))
def test_merge_is_associative_and_commutative(sizes, offset, seed):
    a, b, c = (nk.moments(x, 1) for x in parts(sizes, offset, seed))
    close(a.merge(b).merge(c), a.merge(b.merge(c)))
    close(a.merge(b), b.merge(a))


def test_empty_moments_are_neutral():
    m, empty = nk.moments(images(), 1), nk.moments(np.empty((3, 0, 9, 5)), 1)
    for merged in (m.merge(empty), empty.merge(m), nk.Moments.merge_all([empty, m, empty])):
        assert np.array_equal(merged.mean, m.mean) and np.array_equal(merged.m2, m.m2) and np.all(merged.count == 8)
    nothing = empty.merge(empty)
    assert np.all(nothing.count == 0) and np.all(nothing.mean == 0) and np.all(nothing.var == 0)


@pytest.mark.parametrize("mean", [0.0, -2.5, 1e200])
def test_kernels_merge_an_empty_part_as_if_it_were_not_there(mean):
    """Whatever the other one's mean is: the square of 1e200 is beyond float64."""
    merged = numba.njit(lambda n: merge(0.0, 0.0, n, mean, 2.0, 5.0))
    assert merged(0.0) == (mean, 2.0)
    assert merged(5.0) == (mean / 2, 2.0 + mean * mean * 2.5)


POOLS = {
    "layer": ("n [c ...]", "n [c ...]", {}),
    "group": ("n (g [c]) ...", "n (g [c]) [...]", {"g": 2}),
    "batch": ("[n] c ...", "[n] c [...]", {}),
    "everything": ((0, 1), (0, 1, 2, 3), {}),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("offset", [0, 1e6])
@pytest.mark.parametrize("norm", POOLS)
def test_pool_of_instance_moments(norm, dtype, offset):
    x = (images(dtype=np.float64) + offset).astype(dtype)
    instance, (coarser, direct, sizes) = nk.moments(x, "n c [...]"), POOLS[norm]
    pooled, exact = instance.pool(coarser, **sizes), nk.moments(x.astype(np.float64), direct, **sizes)
    assert pooled.mean.shape == exact.mean.shape and np.all(pooled.count == exact.count)
    tolerance = 1e-6 if dtype == "float32" else 1e-9
    assert np.allclose(pooled.mean, exact.mean, rtol=0, atol=tolerance)
    assert np.allclose(pooled.var, exact.var, rtol=tolerance)
    assert instance.pool(()) == instance


def test_pool_weighs_by_count():
    m = nk.Moments([[1.0], [3.0]], [[0.0], [4.0]], [[0.0], [1.0]])
    pooled = m.pool(0)
    assert pooled.count == 4 and pooled.mean == 3.0 and pooled.m2 == 3.0 + 1 * 9 + 3 * 1


def test_root_mean_squares_pool_too():
    x = images()
    fine = nk.moments(x, 3, center=False)
    assert np.allclose(fine.pool(1).var, (x.astype(float) ** 2).mean((1, 3), keepdims=True), rtol=1e-6)


@pytest.mark.parametrize(("momentum", "correction"), [(0.1, 1), (0.9, 0), (1.0, 1), (0.0, 1), (-1.2, 0)])
def test_ema_is_plain_arithmetic(momentum, correction):
    running, batch = nk.Moments(0, np.zeros((1, 8, 1, 1)), np.ones((1, 8, 1, 1))), nk.moments(images(), (0, 2, 3))
    if momentum < 0:
        running = nk.Moments(0, running.mean, running.var * 1e3)
    new = running.ema(batch, momentum, correction)
    assert np.allclose(new.mean, (1 - momentum) * running.mean + momentum * batch.mean, rtol=1e-14)
    assert np.allclose(new.var, (1 - momentum) * running.var + momentum * batch.m2 / (batch.count - correction), rtol=1e-14)
    assert new.count == batch.count


def test_ema_of_empty_and_single_batches():
    running = nk.Moments(7, np.full((1, 2), 3.0), np.full((1, 2), 2.0))
    assert running.ema(nk.moments(np.empty((0, 2)), 0)) == running
    one = running.ema(nk.moments(np.array([[5.0, 7.0]]), 0), momentum=0.5)
    assert np.array_equal(one.mean, [[4.0, 5.0]]) and np.array_equal(one.var, running.var) and one.count == 8


def test_dictionaries_and_pickles_round_trip():
    m = nk.moments(images(), "n c [...]")
    arrays = m.to_dict()
    assert set(arrays) == {"count", "mean", "m2"} and all(type(a) is np.ndarray for a in arrays.values())
    assert nk.Moments.from_dict(arrays) == m == pickle.loads(pickle.dumps(m))
    arrays["mean"][:] = 0
    assert not np.any(m.mean == 0), "the dictionary holds copies"
    fresh = nk.Moments(0, [0.0], [1.0])
    assert pickle.loads(pickle.dumps(fresh)) == fresh and fresh.var == 1
    with pytest.raises(ValueError, match="expected count, mean and m2"):
        nk.Moments.from_dict({"mean": 0, "var": 1})


def test_unlike_moments_are_refused_and_shown():
    a, b = nk.moments(images(), "n c [...]"), nk.moments(images(), "[n] c [...]")
    for call in (lambda: a.merge(b), lambda: nk.Moments.merge_all([a, a, b]), lambda: a.ema(b)):
        with pytest.raises(ValueError, match=r"different sets: Moments\(24 sets .*\) and Moments\(8 sets"):
            call()
    with pytest.raises(TypeError, match="merge Moments with dict"):
        a.merge({})
    with pytest.raises(ValueError, match="at least one"):
        nk.Moments.merge_all([])
    with pytest.raises(AxisError):
        a.pool(4)
    with pytest.raises(ValueError, match="not divisible"):
        a.pool("n (g [c]) ...", g=3)


def test_merged_batches_normalize_like_the_whole():
    x = images(shape=(12, 4, 6, 6))
    merged = nk.Moments.merge_all(nk.moments(x[i : i + 5], (0, 2, 3)) for i in range(0, 12, 5))
    reference.assert_close(nk.batch_norm(x, moments=merged), reference.normalize(x, (0, 2, 3)))
