"""The strategies themselves: what they draw fits together and reaches the hard cases."""

import numpy as np
import pytest
from hypothesis import find, given
from hypothesis import strategies as st

from tests import reference, strategies


@given(strategies.cases())
def test_axes_belong_to_the_array(case):
    x, axes = case
    assert 1 <= len(set(axes)) == len(axes) <= x.ndim
    assert all(0 <= a < x.ndim for a in axes)
    assert x.dtype.name in ("float32", "float64")
    assert np.isfinite(x).all()


@pytest.mark.parametrize(
    "hard",
    [
        lambda c: any(s < 0 for s in c[0].strides),
        lambda c: not c[0].flags.c_contiguous and not c[0].flags.f_contiguous,
        lambda c: c[0].ndim == 5,
        lambda c: c[0].size > 2048,
        lambda c: abs(c[0]).max() > 1e28,
        lambda c: 0 < abs(c[0]).max() < 1e-28,
        lambda c: c[0].size > 1 and np.ptp(c[0]) == 0,
    ],
)
def test_hard_cases_are_reached(hard):
    find(strategies.cases(), hard)


@given(st.data(), st.integers(1, 4))
def test_lay_out_keeps_values(data, ndim):
    x = np.arange(2**ndim * 3, dtype=np.float64).reshape((2,) * (ndim - 1) + (6,))
    order, steps = data.draw(strategies.layouts(ndim))
    y = strategies.lay_out(x, order, steps)
    assert np.array_equal(x, y)
    assert [s < 0 for s in y.strides] == [s < 0 for s in steps]


@pytest.mark.parametrize("kind", strategies.VALUES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_values_survive_their_dtype(kind, dtype):
    assert np.isfinite(strategies.fill((7, 9), kind, dtype, 0)).all()


@given(st.data())
def test_affine_shapes_broadcast(data):
    shape = data.draw(strategies.affine_shapes((3, 1, 5)))
    assert np.broadcast_shapes(shape, (3, 1, 5)) == (3, 1, 5)


def test_oracle_is_the_plain_formula_on_plain_data():
    x = np.random.default_rng(0).standard_normal((3, 40))
    plain = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    assert abs(reference.normalize(x, (1,)) - plain).max() < 1e-14


def test_assert_close_can_fail():
    one = np.ones(3, np.float32)
    reference.assert_close(one, one)
    for wrong in (one * np.float32(1 + 1e-6), np.array([1, 1, np.nan], np.float32)):
        with pytest.raises(AssertionError):
            reference.assert_close(wrong, one)
