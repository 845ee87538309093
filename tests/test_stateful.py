"""Moments as a machine: any order of merging, pooling and travelling gives the moments of the data they came from."""

import pickle

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, multiple, rule

import normkit as nk

CHANNELS = 3
OFFSETS, SCALES = st.sampled_from([0, 1, 100, 1e6]), st.sampled_from([1e-20, 1, 1e20])
DATA = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 6), OFFSETS, SCALES)


def rounding(var, size):
    """What float64 means of this size do to a variance: they are off by 1e-15 of it, and the variance is a square."""
    return 1e-13 * var + 10 * (1e-15 * size) * np.sqrt(var.astype(float)) + (1e-15 * size) ** 2


class Merging(RuleBasedStateMachine):
    """Pairs of Moments and all the data they stand for."""

    pairs = Bundle("pairs")

    @initialize(target=pairs, drawn=DATA)
    def begin(self, drawn):
        return self.measure_of(drawn)

    @rule(target=pairs, drawn=DATA)
    def measure(self, drawn):
        return self.measure_of(drawn)

    def measure_of(self, drawn):
        seed, n, offset, scale = drawn
        x = (np.random.default_rng(seed).standard_normal((n, CHANNELS, 4)) + offset) * scale
        return nk.moments(x, (0, 2)), x

    @rule(target=pairs, a=pairs, b=pairs)
    def merge(self, a, b):
        return a[0].merge(b[0]), np.concatenate([a[1], b[1]])

    @rule(target=pairs, a=pairs, b=pairs, c=pairs)
    def merge_all(self, a, b, c):
        parts = [a, b, c]
        return nk.Moments.merge_all([m for m, _ in parts]), np.concatenate([x for _, x in parts])

    @rule(target=pairs, a=pairs)
    def travel(self, a):
        m = pickle.loads(pickle.dumps(a[0]))
        return nk.Moments.from_dict(m.to_dict()), a[1]

    @rule(target=pairs, a=pairs)
    def split(self, a):
        half = len(a[1]) // 2
        return multiple(*((nk.moments(x, (0, 2)), x) for x in (a[1][:half], a[1][half:])))

    @rule(a=pairs)
    def agrees(self, a):
        m, x = a
        n = 4 * len(x)
        assert np.all(np.asarray(m.count) == n) and np.all(m.var >= 0)
        if n:
            exact = x.astype(np.longdouble)
            mean = exact.mean((0, 2), keepdims=True)
            var = ((exact - mean) ** 2).mean((0, 2), keepdims=True)
            size = np.abs(x).max((0, 2), keepdims=True)
            assert np.all(np.abs(m.mean - mean) <= 1e-14 * size)
            assert np.all(np.abs(m.var - var) <= rounding(var, size))

    @rule(a=pairs)
    def pools(self, a):
        m, x = a
        if len(x):
            pooled, whole = m.pool((1,)), nk.moments(x, (0, 1, 2))
            assert np.all(pooled.count == whole.count)
            assert np.allclose(pooled.mean, whole.mean, rtol=0, atol=1e-13 * np.abs(x).max())
            assert np.all(np.abs(pooled.var - whole.var) <= rounding(whole.var, np.abs(x).max()))


TestMerging = Merging.TestCase
TestMerging.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
