"""Numbers in another order than x, or with steps: a dy is put in order in the memory of dx, where the gradient then takes its
place, and x in that of a result.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import normkit as nk
from normkit import _gradients
from normkit._cpu import calls, reorder, turned
from normkit._layout import set_size
from normkit._operands import Operands
from tests import strategies
from tests.test_gradients import uneven
from tests.test_properties import LAYOUTS, as_dtype, images

SIZES = (1, 2, 3, 15, 16, 17, 31, 32, 33, 127, 128, 255, 256, 257, 1025, 2047, 2048)
AXES = [(2, 3), (0, 2, 3), (1, 2, 3), (1,), (3,)]


@st.composite
def _shapes(draw):
    shape = []
    for _ in range(draw(st.integers(2, 4))):
        room = 300_000 // int(np.prod(shape, initial=1))
        shape.append(draw(st.sampled_from([n for n in SIZES if n <= room])))
    return tuple(draw(st.permutations(shape)))


# What is read and what it becomes: the same, or what a kernel reads of it.
KINDS = [
    *((bits, bits) for bits in ("u2", "u4", "u8")),
    *((narrow, "f4") for narrow in ("?", "u1", "i2", "f2")),
    *((wide, "f8") for wide in ("f4", "i8")),
]


@given(_shapes(), st.sampled_from(KINDS), st.data())
def test_any_array_to_any_order(shape, kinds, data):
    """Every number to its place, and nothing beside it."""
    dtype, result = kinds
    values = np.random.default_rng(0).integers(1, 60_000, shape).astype(dtype)
    source = strategies.lay_out(values, *data.draw(strategies.layouts(len(shape))))
    order = data.draw(st.permutations(range(len(shape))))
    memory = np.zeros(values.size + 2, result)
    to = memory[1:-1].reshape([shape[axis] for axis in order]).transpose(np.argsort(order))
    turn = reorder.turning(source, to)
    if turn is not None:
        assert turn(source, to) is to
        assert np.array_equal(to, values)
        assert memory[0] == memory[-1] == 0
    else:  # what is read is a line of the result, or all that there is
        inner = next((axis for axis in reversed(order) if shape[axis] > 1), 0)
        assert values.size == 1 or source.strides[inner] == source.itemsize


def test_what_a_result_does_not_hold_stays_where_it_is():
    x = images(shape=(2, 16, 16, 16))
    for dtype, result in (("float64", "float32"), ("float32", "float16"), ("int32", "float32"), ("float16", "bfloat16")):
        assert reorder.turning(as_dtype(x, dtype), LAYOUTS["channels-last"](as_dtype(x, result))) is None
    half = as_dtype(x, "bfloat16")
    to = np.zeros_like(LAYOUTS["channels-last"](x), np.float32)
    assert np.array_equal(reorder.turning(half, to)(half, to), half.astype(np.float32))


@pytest.mark.parametrize("few", range(1, 18))
def test_few_numbers_of_a_position(few):
    """Images with so many channels, to planes and back."""
    x = np.arange(2 * few * 37 * 29, dtype=np.float32).reshape(2, few, 37, 29)
    last = LAYOUTS["channels-last"](x)
    for source, like in ((x, last), (last, x)):
        to = np.zeros_like(like)
        turn = reorder.turning(source, to)
        assert (turn is None) == (few == 1)  # then both are one order
        assert few == 1 or np.array_equal(turn(source, to), x)


@pytest.mark.parametrize("shape", [(2, 16, 16, 1), (2, 17, 5, 7), (1, 40, 33, 65), (1, 300, 50, 45), (3, 130, 7, 7)])
def test_channels_last_and_back(shape):
    x = images(shape=shape)
    last = LAYOUTS["channels-last"](x)
    for source, like in ((x, last), (last, x)):
        to = np.zeros_like(like)
        assert np.array_equal(reorder.turning(source, to)(source, to), x)
    assert reorder.turning(x, np.zeros_like(x)) is None
    exact = np.zeros_like(last, dtype=np.float64)
    assert np.array_equal(reorder.turning(x, exact)(x, exact), x)


@pytest.mark.parametrize("shape", [(3, 32, 40, 60), (1, 16, 4, 4), (8, 64, 130, 120), (2, 3, 70, 50)])
def test_a_dy_in_another_order_is_put_in_order_where_the_gradient_goes(shape):
    """However large or small; where it lies it would take 4 to 20 times as long."""
    x, dy = images(shape=shape), uneven(shape, np.float32)
    for laid, other in ((x, LAYOUTS["channels-last"](dy)), (LAYOUTS["channels-last"](x), dy)):
        dx = np.zeros_like(laid)
        assert _gradients.spreading(other, laid, dx)(other, dx) is dx
        assert np.array_equal(dx, dy)


def test_numbers_that_repeat():
    one = uneven((1, 32, 20, 20), np.float32)
    many, to = np.broadcast_to(one, (5, 32, 20, 20)), np.empty((5, 20, 20, 32), np.float32).transpose(0, 3, 1, 2)
    assert np.array_equal(reorder.turning(many, to)(many, to), many)


def _orders(values):
    return LAYOUTS["NCHW"](values), LAYOUTS["channels-last"](values)


def _same(found, expected):
    return all(np.array_equal(*pair, equal_nan=True) for pair in zip(found, expected, strict=True) if pair[1] is not None)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(3, 32, 40, 60), (40, 48, 7, 7), (1, 20, 210, 200), (2, 3, 70, 50)])
def test_the_order_of_dy_changes_no_bit(shape, dtype, axes):
    """Nor does the gradient change dy."""
    x, dy, weight = as_dtype(images(shape=shape), dtype), as_dtype(uneven(shape), dtype), uneven((shape[1], 1, 1))
    for laid, own in zip(_orders(x), _orders(dy), strict=True):
        pullback = nk.vjp(nk.normalize, laid, axes, weight, weight)[1]
        expected = pullback(own)
        for other in _orders(dy):
            assert _same(pullback(other), expected)
            assert np.array_equal(other, dy)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("dtypes", [("float32", "float16"), ("float64", "float32"), ("float16", "float32")])
def test_the_order_of_a_dy_in_a_dtype_of_its_own_changes_no_bit(dtypes, axes):
    """That which dx holds, and that which it does not."""
    shape = (3, 32, 40, 60)
    x, dy = (as_dtype(values, dtype) for values, dtype in zip((images(shape=shape), uneven(shape)), dtypes, strict=True))
    for laid, own in zip(_orders(x), _orders(dy), strict=True):
        pullback = nk.vjp(nk.normalize, laid, axes)[1]
        expected = pullback(own)
        for other in _orders(dy):
            assert _same(pullback(other), expected)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("shape", [(3, 32, 40, 60), (40, 48, 7, 7)])
def test_sets_that_wait_for_float64(axes, shape):
    """They read dy where it lies in dx, after others were written."""
    x, dy = images(shape=shape), uneven(shape, np.float32)
    x[1, 3] *= 1e37
    x[0, 5] *= 1e-37
    for laid, own in zip(_orders(x), _orders(dy), strict=True):
        pullback = nk.vjp(nk.normalize, laid, axes)[1]
        expected = pullback(own)
        assert np.isfinite(expected.x).all()
        for other in _orders(dy):
            assert _same(pullback(other), expected)


@pytest.mark.parametrize("axes", AXES)
def test_given_moments_and_tangents(axes):
    shape = (3, 32, 40, 60)
    x, dy, weight = images(shape=shape), uneven(shape, np.float32), uneven((32, 1, 1), np.float32)
    given = nk.moments(x, axes)
    for laid, own in zip(_orders(x), _orders(dy), strict=True):
        pullback = nk.vjp(nk.normalize, laid, axes, weight, moments=given)[1]
        expected, tangent = pullback(own), nk.jvp(nk.normalize, (laid, weight), (own, None), axes)[1]
        for other in _orders(dy):
            assert _same(pullback(other), expected)
            assert np.array_equal(nk.jvp(nk.normalize, (laid, weight), (other, None), axes)[1], tangent)


@pytest.mark.parametrize("alpha", [0.7, 1.0])
def test_style_gradients(alpha):
    shape = (3, 32, 40, 60)
    content, style, dy = images(shape=shape), images(shape=shape)[::-1] + 1, uneven(shape, np.float32)
    for laid, own in zip(_orders(content), _orders(dy), strict=True):
        pullback = nk.vjp(nk.adaptive_instance_norm, laid, style, alpha=alpha)[1]
        expected = pullback(own)
        for other in _orders(dy):
            assert _same(pullback(other), expected)


def _results(x, axes, out, **given):
    """A norm into `out`, and into new memory; and the moments of both."""
    into, moments = nk.normalize(x, axes, out=out, return_moments=True, **given)
    assert into is out
    expected, own = nk.normalize(x, axes, dtype=out.dtype, return_moments=True, **given)
    return (into, moments.mean, moments.var), (expected, own.mean, own.var)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("dtype", ["uint8", "float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(3, 32, 20, 70), (40, 96, 7, 7), (2, 3, 70, 50), (1, 300, 3, 20)])
def test_the_order_of_a_result_changes_no_bit(shape, dtype, axes):
    """Nor does the norm change x."""
    x, weight = as_dtype(images(shape=shape), dtype), uneven((shape[1], 1, 1), np.float32)
    for laid in _orders(x):
        for out in _orders(np.zeros(shape, np.float32 if dtype == "uint8" else x.dtype)):
            assert _same(*_results(laid, axes, out, weight=weight, bias=weight))
            assert np.array_equal(laid, x)


def test_a_result_in_another_order_is_normalized_there():
    """So that lines are read and written; where they lie numbers would take 3 to 20 times as long."""
    x = images(shape=(3, 32, 40, 60))
    split = tuple(((n, axis > 1),) for axis, n in enumerate(x.shape))
    for laid, out in itertools.product(_orders(x), _orders(np.zeros_like(x))):
        op = Operands(laid, out, None, None, split, center=True)
        found = turned.turned(op)
        assert (found is None) == (laid.strides == out.strides)
        assert found is None or found.of(op).x is found.of(op).y is out


def test_what_is_not_worth_three_kernels_is_written_where_it_lies():
    """Little, and sets so small that their statistics would take more than a quarter of their memory."""
    few, small = ((2, 16, 15, 17), (2, 3)), ((2, 63, 40, 60), (1,))
    for shape, axes in (few, small):
        x = images(shape=shape)
        split = tuple(((n, axis in axes),) for axis, n in enumerate(shape))
        assert turned.turned(Operands(x, np.zeros_like(LAYOUTS["channels-last"](x)), None, None, split, center=True)) is None


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("shape", [(3, 32, 20, 70), (40, 96, 7, 7)])
def test_sets_that_wait_for_float64_in_another_order(axes, shape):
    """Some for the range of their numbers, some for a scale that float32 does not hold."""
    x = images(shape=shape)
    x[1, 3] *= 1e37
    x[0, 5] *= 1e-37
    x[2, 7] = np.inf
    x[0, 0] = np.nan
    for laid in _orders(x):
        for out in _orders(np.zeros_like(x)):
            assert _same(*_results(laid, axes, out, eps=0.0))


@pytest.mark.parametrize("axes", AXES)
def test_given_moments_and_another_order(axes):
    x = images(shape=(3, 32, 20, 70))
    given = nk.moments(x * 1.5 + 1, axes)
    for laid in _orders(x):
        for out in _orders(np.zeros_like(x)):
            assert _same(*_results(laid, axes, out, moments=given))


STEPS = {"backwards": -1, "every second": 2, "every third, backwards": -3}


def _with_steps(values, axis, step, layout):
    """The same numbers along an axis of larger memory."""
    room = [n * abs(step) if k == axis else n for k, n in enumerate(values.shape)]
    x = LAYOUTS[layout](np.zeros(room, values.dtype))[(slice(None),) * axis + (slice(None, None, step),)]
    x[...] = values
    return x


def _where_it_lies(op, monkeypatch):
    """A norm, and its statistics, of x read as it lies."""
    with monkeypatch.context() as patch:
        patch.setattr(calls, "turned", lambda _: None)
        return op.y, calls.forward(op, 0.0, 0.0, want_moments=True)


@pytest.mark.parametrize("axes", [*AXES, "n (g [c]) [...]"])
@pytest.mark.parametrize("layout", ["NCHW", "channels-last"])
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_steps_change_no_bit(axis, step, layout, axes, monkeypatch):
    """Of a result in lines, whether x is put in order there or read as it lies; nor does the norm change x."""
    for shape, dtype in itertools.product(((3, 32, 20, 70), (2, 3, 70, 50)), ("uint8", "float16", "float32", "float64")):
        values = as_dtype(images(shape=shape), dtype)
        if dtype != "uint8":
            values[1, 2, :7] *= values.dtype.type(1e-7)
        x = _with_steps(values, axis, step, layout)
        out, own = (np.zeros_like(x, np.float32 if dtype == "uint8" else x.dtype) for _ in range(2))
        split = nk.NormSet(axes, **({"g": 1 if shape[1] % 2 else 4} if isinstance(axes, str) else {})).split(shape)
        weight = uneven((shape[1], 1, 1), np.float32)
        op = Operands(x, out, weight, weight + 1, split, center=True)
        lines_step = axis == (3 if layout == "NCHW" else 1)
        assert turned.turned(op) is not None or not lines_step or set_size(split) < 64
        found = out, calls.forward(op, 0.0, 0.0, want_moments=True)
        assert _same(found, _where_it_lies(replace(op, y=own), monkeypatch))
        assert np.array_equal(x, values)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("step", [-1, 2])
def test_sets_with_steps_that_wait_for_float64(axes, step, monkeypatch):
    """They read x in the result, where others were written."""
    values = images(shape=(3, 32, 20, 70))
    values[1, 3] *= 1e37
    values[0, 5] *= 1e-37
    values[2, 7] = np.inf
    values[0, 0] = np.nan
    for layout, axis in itertools.product(("NCHW", "channels-last"), (1, 3)):
        x = _with_steps(values, axis, step, layout)
        split = nk.NormSet(axes).split(x.shape)
        out, own = np.zeros_like(x), np.zeros_like(x)
        op = Operands(x, out, None, None, split, center=True)
        found = out, calls.forward(op, 0.0, 0.0, want_moments=True)
        assert _same(found, _where_it_lies(replace(op, y=own), monkeypatch))


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("layout", ["NCHW", "channels-last"])
def test_given_moments_and_steps(layout, axes):
    """The same as of an x without steps."""
    values, weight = images(shape=(3, 32, 20, 70)), uneven((32, 1, 1), np.float32)
    given = nk.moments(values * 1.5 + 1, axes)
    expected = nk.normalize(LAYOUTS[layout](values), axes, weight, weight + 1, moments=given)
    for axis, step in itertools.product((1, 2, 3), STEPS.values()):
        x = _with_steps(values, axis, step, layout)
        assert np.array_equal(nk.normalize(x, axes, weight, weight + 1, moments=given), expected)


@pytest.mark.parametrize(
    ("view", "axes", "first"),
    [
        (lambda x: x[..., ::-1], (1, 2), True),  # pictures, channels last: BGR
        (lambda x: x[..., :3], (1, 2), True),  # RGB of RGBA
        (lambda x: x[:, :, ::-1], (1, 2), True),  # mirrored
        (lambda x: x[..., ::-1], (1, 2, 3), True),
        (lambda x: x[..., ::-1], (0, 1), True),
        (lambda x: x[..., :3], (1, 2, 3), None),  # neighbours of a set: lanes
        (lambda x: x[..., ::2, :], (2, 3), None),
        (lambda x: x[:, ::-1, :, :].repeat(2, axis=-1)[..., :5], (1, 2), None),
    ],
)
def test_pictures_with_steps_are_put_in_order_first(view, axes, first):
    """And their statistics are those of what is in order, if that is the same; else lines, however short, are read."""
    x = view(images(shape=(2, 60, 70, 4)))
    split = nk.NormSet(axes).split(x.shape)
    found = turned.turned(Operands(x, np.zeros_like(x), None, None, split, center=True))
    assert (found and found.first) is first


def test_what_steps_in_the_result_too_is_written_where_it_lies():
    x = images(shape=(2, 60, 70, 6))[..., ::2]
    split = nk.NormSet((1, 2)).split(x.shape)
    assert turned.turned(Operands(x, x, None, None, split, center=True)) is None
    assert turned.turned(Operands(x, np.zeros((2, 60, 70, 6), np.float32)[..., ::2], None, None, split, center=True)) is None


@pytest.mark.parametrize("step", [-1, 2])
def test_a_dy_with_steps_is_put_in_order_where_the_gradient_goes(step):
    shape = (3, 32, 40, 60)
    x, dy = images(shape=shape), uneven(shape, np.float32)
    for layout, axis in (("NCHW", 3), ("channels-last", 1)):
        laid, own = LAYOUTS[layout](x), LAYOUTS[layout](dy)
        other, dx = _with_steps(dy, axis, step, layout), np.zeros_like(laid)
        assert _gradients.spreading(other, laid, dx)(other, dx) is dx
        pullback = nk.vjp(nk.instance_norm, laid)[1]
        assert _same(pullback(other), pullback(own))


@given(_shapes(), st.data())
def test_sets_in_any_order(shape, data):
    """Where the numbers of each set are, for any axes, x and result."""
    axes = tuple(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)))
    values = images(shape=shape) if len(shape) == 4 else np.random.default_rng(0).normal(1, 2, shape).astype(np.float32)
    x = strategies.lay_out(values, *data.draw(strategies.layouts(len(shape))))
    order = data.draw(st.permutations(range(len(shape))))
    out = np.empty([shape[axis] for axis in order], np.float32).transpose(np.argsort(order))
    assert _same(*_results(x, axes, out))
