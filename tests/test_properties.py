"""Any sets of any array against the oracle; the identities between norms; invariances."""

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

import normkit as nk
from tests import reference, strategies

EPS = st.sampled_from((0.0, 1e-12, 1e-5, 1.0))


def size_of(x, axes):
    return int(np.prod([x.shape[a] for a in axes]))


@given(strategies.cases(), EPS, st.booleans())
@example((np.array([1.2573022e-31], np.float32), (0,)), 0.0, False)  # one element whose square underflows is no constant
def test_any_sets_of_any_array(case, eps, center):
    x, axes = case
    assume(center or x.dtype == np.float32 or abs(x).max() < 1e100)
    y = nk.normalize(x, axes, eps=eps, center=center)
    assert y.dtype == x.dtype and y.shape == x.shape
    reference.assert_close(y, reference.normalize(x, axes, eps=eps, center=center), n=size_of(x, axes))


@given(strategies.cases(max_ndim=4, values=("normal", "offset 1e4", "constant")), st.data())
def test_affine_of_any_shape_and_dtype(case, data):
    x, axes = case
    rng = np.random.default_rng(1)
    weight, bias = (
        None
        if data.draw(st.booleans())
        else rng.uniform(-2, 2, data.draw(strategies.affine_shapes(x.shape))).astype(data.draw(st.sampled_from("fd")))
        for _ in range(2)
    )
    y = nk.normalize(x, axes, weight, bias)
    expected = reference.normalize(x, axes, weight, bias)
    reference.assert_close(y, expected, n=size_of(x, axes), scale=np.abs(reference.normalize(x, axes)).max() * 2 + 2)


@given(strategies.cases(dtypes=("float32", "float64", "float16", "uint8", "int64")))
def test_moments_are_those_of_the_array(case):
    x, axes = case
    m = nk.moments(x, axes)
    mean, var = reference.moments(x, axes)
    n = size_of(x, axes)
    assert m.mean.shape == mean.shape and np.all(m.count == n)
    assert m.mean.dtype == m.var.dtype == np.float64
    spread = np.sqrt(var.astype(float))
    limit = reference.tolerance("float64" if x.dtype.itemsize == 8 or x.dtype == np.uint8 else "float32", n)
    assert np.all(np.abs(m.mean - mean) <= limit * spread + 2.0**-50 * np.abs(mean))
    assert np.all(np.abs(m.var - var) <= 2 * limit * var + 1e-300)
    assert np.all(m.var >= 0)


@given(strategies.cases(), st.sampled_from((0, 1, -0.5)))
def test_given_moments_equal_own(case, correction):
    x, axes = case
    assume(size_of(x, axes) > correction)
    y, m = nk.normalize(x, axes, correction=correction, return_moments=True)
    again = nk.normalize(x, axes, correction=correction, moments=m)
    n = size_of(x, axes)
    if x.dtype == np.float32:
        reference.assert_close(y, reference.normalize(x, axes, correction=correction), n=n)
        reference.assert_close(again, y.astype(float), n=n)
    assert nk.normalize(x, axes, moments=m, return_moments=True)[1] is m


def images(seed=0, shape=(3, 8, 9, 5), dtype=np.float32):
    return (np.random.default_rng(seed).standard_normal(shape) * 3 + 7).astype(dtype)


LAYOUTS = {
    "NCHW": lambda x: x,
    "channels-last": lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
    "crop": lambda x: np.pad(x, ((0, 0), (0, 0), (2, 1), (1, 2)))[:, :, 2:-1, 1:-2],
    "step": lambda x: np.repeat(np.repeat(x, 2, 1), 2, 3)[:, ::2, :, ::2],
    "reversed": lambda x: np.ascontiguousarray(x[::-1, ::-1, ::-1, ::-1])[::-1, ::-1, ::-1, ::-1],
    "Fortran": np.asfortranarray,
}
CALLS = {
    "instance": (lambda x, **k: nk.instance_norm(x, **k), lambda x, **k: reference.normalize(x, (2, 3), **k)),
    "layer (image)": (
        lambda x, **k: nk.layer_norm(x, axis=(3, 1, 2), **k),
        lambda x, **k: reference.normalize(x, (1, 2, 3), **k),
    ),
    "layer (last)": (lambda x, **k: nk.layer_norm(x, **k), lambda x, **k: reference.normalize(x, (3,), **k)),
    "layer (channels first)": (lambda x, **k: nk.layer_norm(x, axis=1, **k), lambda x, **k: reference.normalize(x, (1,), **k)),
    "group": (lambda x, **k: nk.group_norm(x, 4, **k), lambda x, **k: reference.group_normalize(x, 4, 1, (2, 3), **k)),
    "interleaved groups": (
        lambda x, **k: nk.normalize(x, "n ([c] g) [...]", g=4, **k),
        lambda x, **k: reference.normalize(x.reshape(3, 2, 4, 9, 5), (1, 3, 4), **k).reshape(x.shape),
    ),
    "batch": (lambda x, **k: nk.batch_norm(x, **k), lambda x, **k: reference.normalize(x, (0, 2, 3), **k)),
    "rms": (
        lambda x, **k: nk.rms_norm(x, axis=1, **{"eps": 1e-5, **k}),
        lambda x, **k: reference.normalize(x, (1,), center=False, **k),
    ),
}
DTYPES = [
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "bool",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "int32",
    "uint32",
    "int64",
    "uint64",
]


def as_dtype(x, name):
    if name == "bfloat16":
        ml_dtypes = pytest.importorskip("ml_dtypes", reason="bfloat16 arrays come from ml_dtypes")
        return x.astype(ml_dtypes.bfloat16)
    if name == "bool":
        return x > 7
    return np.abs(x * (16 if name[-1] == "8" else 99)).astype(name) if name[0] in "iu" else x.astype(name)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", CALLS)
def test_every_norm_in_every_layout(norm, layout):
    x = LAYOUTS[layout](images())
    call, oracle = CALLS[norm]
    reference.assert_close(call(x), oracle(images()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["instance", "layer (last)", "group"])
@pytest.mark.parametrize("layout", ["NCHW", "channels-last"])
def test_every_dtype(norm, layout, dtype):
    x = as_dtype(images(), dtype)
    call, oracle = CALLS[norm]
    y = call(LAYOUTS[layout](x))
    assert y.dtype == (x.dtype if dtype in ("float16", "bfloat16", "float32", "float64") else np.float64)
    reference.assert_close(y, oracle(x))


@pytest.mark.parametrize(
    "shape", [(4, 1, 16, 16), (1, 64, 70, 3), (2, 3, 33, 65), (1, 2, 200, 171), (2, 96, 1, 1), (5, 7, 1, 2100)]
)
@pytest.mark.parametrize("layout", ["NCHW", "channels-last", "crop"])
@pytest.mark.parametrize("norm", ["instance", "layer (image)", "layer (channels first)", "batch"])
def test_sizes_around_blocks_and_chunks(norm, layout, shape):
    x = images(shape=shape)
    call, oracle = CALLS[norm]
    reference.assert_close(call(LAYOUTS[layout](x)), oracle(x))


@pytest.mark.parametrize("n", [2047, 2048, 2049, 16383, 16384, 16385, 40_000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_long_sets(n, dtype):
    x = images(shape=(2, n), dtype=dtype)
    reference.assert_close(nk.layer_norm(x), reference.normalize(x, (1,)), n=n)
    reference.assert_close(nk.normalize(x.T.copy(), 0), reference.normalize(x, (1,)).T, n=n)


# ------------------------------------------------------------------------------------------------------------- identities
@pytest.mark.parametrize("layout", LAYOUTS)
def test_identities_between_norms(layout):
    x = LAYOUTS[layout](images())
    same = np.array_equal
    assert same(nk.batch_norm(x[:1]), nk.instance_norm(x[:1]))
    assert same(nk.group_norm(x, 8), nk.instance_norm(x))
    assert np.allclose(nk.group_norm(x, 1), nk.layer_norm(x, axis=(1, 2, 3)), atol=1e-6)
    assert same(nk.instance_norm(x), nk.normalize(x, "n c [...]"))
    assert same(nk.instance_norm(x.transpose(0, 2, 3, 1), channel_axis=-1), nk.instance_norm(x).transpose(0, 2, 3, 1))
    assert same(nk.instance_norm(x[0], channel_axis=0), nk.instance_norm(x)[0])
    assert same(nk.group_norm(x[0], 2, channel_axis=0), nk.group_norm(x, 2)[0])


def test_instance_norm_of_one_pixel_is_bias():
    bias = np.array([0.1, -2, 3e7], np.float32)
    for x in (np.full((2, 3, 1, 1), 1e30, np.float32), np.zeros((2, 3), np.float32), np.ones((2, 3, 1), np.float64)):
        for eps in (0.0, 1e-5):
            y = nk.instance_norm(x, bias=bias, eps=eps)
            assert np.array_equal(y.reshape(2, 3), np.broadcast_to(bias, (2, 3)).astype(x.dtype))


@given(st.floats(-50, 50), st.floats(0.01, 100), st.integers(0, 99))
def test_instance_norm_ignores_gain_and_offset(b, a, seed):
    """x -> a x + b per channel and instance changes the result by the effect of eps alone."""
    x = np.random.default_rng(seed).standard_normal((2, 3, 6, 7))
    gain = a * np.array([1.0, 0.5, 2.0]).reshape(1, 3, 1, 1)
    exact = nk.instance_norm(gain * x + b, eps=0)
    assert np.allclose(exact, nk.instance_norm(x, eps=0), atol=1e-9)
    eps, var = 1e-5, (gain * x).var((2, 3), keepdims=True)
    effect = 1 - np.sqrt(var / (var + eps))  # x_hat shrinks by at most this much
    assert np.all(np.abs(nk.instance_norm(gain * x + b, eps=eps) - exact) <= effect * np.abs(exact) + 1e-9)


@given(st.floats(-2, 2), st.floats(-2, 2), st.integers(0, 99))
def test_affine_folds(w, b, seed):
    x = np.random.default_rng(seed).standard_normal((4, 33))
    assert np.allclose(nk.normalize(x, 1, w, b), nk.normalize(x, 1) * w + b, atol=1e-14)


@given(st.randoms(use_true_random=False))
def test_order_within_a_set_matters_to_rounding_only(random):
    x = images(shape=(2, 50))
    order = list(range(50))
    random.shuffle(order)
    assert np.allclose(nk.normalize(x[:, order], 1), nk.normalize(x, 1)[:, order], atol=1e-6)


# ------------------------------------------------------------------------------------------------------------------ AdaIN
def adain(content, style, alpha=1.0, eps=1e-5):
    mean, var = reference.moments(style, (2, 3))
    y = reference.normalize(content, (2, 3), np.sqrt(var), mean, eps=eps)
    return alpha * y + (1 - alpha) * content.astype(np.longdouble)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0, 1.5])
@pytest.mark.parametrize("layout", ["NCHW", "channels-last", "crop"])
@pytest.mark.parametrize("batch", [1, 3])
def test_adaptive_instance_norm(alpha, layout, batch):
    content, style = images(), images(5, (batch, 8, 4, 6)) * np.float32(2) - 1
    y, m = nk.adaptive_instance_norm(LAYOUTS[layout](content), LAYOUTS[layout](style), alpha=alpha, return_moments=True)
    reference.assert_close(y, adain(content, style, alpha), scale=30)
    assert m == nk.moments(LAYOUTS[layout](content), (2, 3))


@given(st.floats(0, 1), st.floats(0, 1))
def test_adain_is_linear_in_the_interpolation(a, t):
    """Between two strengths the output lies on the straight line between their outputs."""
    content, style = images(dtype=np.float64), images(5, (3, 8, 4, 6), np.float64)
    ends = [nk.adaptive_instance_norm(content, style, alpha=s) for s in (0.0, a)]
    between = nk.adaptive_instance_norm(content, style, alpha=t * a)
    assert np.allclose(between, (1 - t) * ends[0] + t * ends[1], atol=1e-12)


# ------------------------------------------------------------------------------------------------ the field's kinds of sets
def test_video_spectrogram_tokens():
    video = np.random.default_rng(0).standard_normal((2, 3, 4, 5, 6)).astype(np.float32)
    reference.assert_close(nk.instance_norm(video), reference.normalize(video, (2, 3, 4)))
    reference.assert_close(nk.normalize(video, "n c t [h w]"), reference.normalize(video, (3, 4)))
    sound = np.random.default_rng(1).standard_normal((2, 40, 50)).astype(np.float32)
    reference.assert_close(nk.normalize(sound, "n f [t]"), reference.normalize(sound, (2,)))
    reference.assert_close(nk.normalize(sound, "n [f] t"), reference.normalize(sound, (1,)))
    tokens = np.random.default_rng(2).standard_normal((2, 17, 48)).astype(np.float32)
    per_token, per_channel = nk.layer_norm(tokens), nk.normalize(tokens, "n [p] d")
    reference.assert_close(per_token, reference.normalize(tokens, (2,)))
    reference.assert_close(per_channel, reference.normalize(tokens, (1,)))
    assert abs(per_token - per_channel).max() > 0.1


def test_duplicated_points():
    """Every point twice leaves the statistics as they were; some points twice does not."""
    points = np.random.default_rng(0).standard_normal((4, 30))
    once, twice = nk.moments(points, 1), nk.moments(np.concatenate([points, points], 1), 1)
    assert np.allclose(once.mean, twice.mean, atol=1e-15) and np.allclose(once.var, twice.var, rtol=1e-14)
    some = nk.moments(np.concatenate([points, points[:, :7]], 1), 1)
    assert np.all(abs(some.mean - once.mean) > 1e-6)


@pytest.mark.parametrize("positions", [(5, 7), (21, 19)])
@pytest.mark.parametrize("channels", [1, 2, 3, 5, 6, 12, 16, 24, 32, 48, 64, 80, 130, 300, 520])
def test_channels_last_of_any_width(channels, positions):
    """Rows of sets that fill registers once, in part or often, and what is left at the end."""
    x, dy = (images(seed, (2, channels, *positions)) for seed in (0, 1))
    weight, bias = np.random.default_rng(2).standard_normal((2, channels)).astype(np.float32)
    lie, along = LAYOUTS["channels-last"], (slice(None), None, None)
    y, pullback = nk.vjp(nk.instance_norm, lie(x), weight, bias)
    plain = reference.normalize(x, (2, 3))
    reference.assert_close(nk.instance_norm(lie(x)), plain)
    assert np.allclose(y, (plain * weight[along] + bias[along]).astype(np.float32), rtol=1e-6, atol=2e-6)
    dx, _, _ = reference.gradient(x, (2, 3), dy, np.broadcast_to(weight[along], x.shape))
    assert np.allclose(pullback(lie(dy)).x, dx.astype(np.float32), rtol=1e-4, atol=1e-5)
