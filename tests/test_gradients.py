"""vjp and jvp against finite differences and the oracle; what a Jacobian of a norm must look like."""

import gc
import weakref
from unittest import mock

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import normkit as nk
from normkit import _gradients, _recall
from tests import reference, strategies
from tests.test_properties import LAYOUTS, as_dtype, images, size_of

SHAPE = (3, 8, 9, 5)
# norm, arguments by position and keyword, shape of weight and bias, oracle's view of the array, axes there, weight there
NORMS = {
    "instance": (nk.instance_norm, (), {}, (8,), SHAPE, (2, 3), (8, 1, 1)),
    "conditional instance": (nk.instance_norm, (), {}, (3, 8), SHAPE, (2, 3), (3, 8, 1, 1)),
    "layer (image)": (nk.layer_norm, (), {"axis": (3, 1, 2)}, (8, 9, 5), SHAPE, (1, 2, 3), (8, 9, 5)),
    "layer (last)": (nk.layer_norm, (), {}, (5,), SHAPE, (3,), (5,)),
    "layer (channels first)": (nk.layer_norm, (), {"axis": 1}, (8,), SHAPE, (1,), (8, 1, 1)),
    "group": (nk.group_norm, (4,), {}, (8,), (3, 4, 2, 9, 5), (2, 3, 4), (4, 2, 1, 1)),
    "interleaved groups": (
        nk.normalize, ("n ([c] g) [...]",), {"g": 4}, (8, 1, 1), (3, 2, 4, 9, 5), (1, 3, 4), (2, 4, 1, 1),
    ),
    "batch": (nk.batch_norm, (), {}, (8,), SHAPE, (0, 2, 3), (8, 1, 1)),
    "rms": (nk.rms_norm, (), {"axis": 1, "eps": 1e-5}, (8,), SHAPE, (1,), (8, 1, 1)),
    "per-pixel": (nk.normalize, ((2, 3),), {}, (9, 5), SHAPE, (2, 3), (9, 5)),
    "uncentred, corrected": (
        nk.normalize, ((0, 3),), {"center": False, "correction": 1}, (3, 1, 1, 5), SHAPE, (0, 3), (3, 1, 1, 5),
    ),
}  # fmt: skip


def oracle(name, x, dy, weight, **options):
    """(dx, dweight, dbias, size of dx), in the shapes of the arguments."""
    _, _, keywords, shape, view, axes, lies = NORMS[name]
    keep = {key: keywords[key] for key in ("center", "correction") if key in keywords}
    options = {"eps": 1e-5, "center": name != "rms", **keep, **options}
    spread = None if weight is None else np.asarray(weight).astype(np.longdouble).reshape(lies)
    steps = np.asarray(dy).astype(np.longdouble).reshape(view)
    dx, products, size = reference.gradient(np.asarray(x).reshape(view), axes, steps, spread, **options)
    sums = (reference.sum_to(part, lies).reshape(shape) for part in (products, steps))
    return dx.reshape(SHAPE), *sums, size.reshape(SHAPE)


def inputs(name, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    shape = NORMS[name][3]
    return images(dtype=dtype), rng.uniform(0.5, 2, shape).astype(dtype), rng.normal(size=shape).astype(dtype)


def uneven(shape, dtype=np.float64, seed=1):
    return np.random.default_rng(seed).normal(0.3, 1, shape).astype(dtype)


def call(name, x, *affine, **more):
    norm, args, keywords, *_ = NORMS[name]
    return norm(x, *args, *affine, **{**keywords, **more})


def vjp(name, x, *affine, **more):
    norm, args, keywords, *_ = NORMS[name]
    return nk.vjp(norm, x, *args, *affine, **{**keywords, **more})


def slope_along(f, step):
    """The derivative of f(t) at 0, of the fourth order in step."""
    near, far = ((f(k * step) - f(-k * step)) / (2 * k * step) for k in (1, 2))
    return (4 * near - far) / 3


# ------------------------------------------------------------------------------------------------ against differences
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NORMS)
def test_finite_differences(name, layout):
    arguments = inputs(name)
    arguments = (LAYOUTS[layout](arguments[0]), *arguments[1:])
    dy = uneven(SHAPE)
    y, pullback = vjp(name, *arguments)
    assert np.array_equal(y, call(name, *arguments))
    gradients = pullback(dy)
    for k, found in enumerate(gradients):
        assert found.shape == arguments[k].shape and found.dtype == arguments[k].dtype
        for seed in range(3):
            way = uneven(found.shape, seed=seed + 7)

            def moved(t, k=k, way=way):
                changed = [a + t * way if j == k else a for j, a in enumerate(arguments)]
                return np.sum(call(name, *changed) * dy)

            expected = slope_along(moved, 1e-4)
            assert abs(np.sum(found * way) - expected) <= 1e-8 * max(1, abs(expected), np.abs(found * way).sum() ** 0.5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NORMS)
def test_forward_mode(name, layout):
    """A jvp is the derivative along its tangents, and <dy, jvp(v)> = <vjp(dy), v>: columns against rows."""
    norm, args, keywords, *_ = NORMS[name]
    x, weight, bias = inputs(name)
    x = LAYOUTS[layout](x)
    ways = tuple(uneven(a.shape, seed=k + 3) for k, a in enumerate((x, weight, bias)))
    y, along = nk.jvp(norm, (x, weight, bias), ways, *args, **keywords)
    assert np.array_equal(y, call(name, x, weight, bias)) and along.dtype == y.dtype and along.shape == y.shape

    def moved(t):
        return call(name, *(a + t * way for a, way in zip((x, weight, bias), ways, strict=True)))

    assert np.allclose(along, slope_along(moved, 1e-4), rtol=0, atol=1e-9)
    dy = uneven(SHAPE)
    gradients = vjp(name, x, weight, bias)[1](dy)
    rows = sum(np.sum(g * way) for g, way in zip(gradients, ways, strict=True))
    assert abs(np.sum(along * dy) - rows) <= 1e-12 * np.abs(along * dy).sum()
    for k in range(3):  # each tangent alone: None is zero
        alone = [way if j == k else None for j, way in enumerate(ways)]
        part = nk.jvp(norm, (x, weight, bias), alone, *args, **keywords)[1]
        zeros = [way if j == k else np.zeros_like(way) for j, way in enumerate(ways)]
        assert np.allclose(part, nk.jvp(norm, (x, weight, bias), zeros, *args, **keywords)[1], rtol=0, atol=1e-14)


# ----------------------------------------------------------------------------------------------------- against the oracle
def check(gradients, expected, dtype, terms, n=1):
    """dx within the tolerance of its size; dweight and dbias within that of the sum of the magnitudes they add up."""
    dx, dweight, dbias, size = expected
    limit = 2 * reference.tolerance(dtype, n)
    error = np.abs(gradients.x.astype(np.longdouble) - dx)
    assert np.all(error <= limit * size + np.finfo(np.float32).tiny), float((error / size).max())
    for found, exact, magnitude in ((gradients.weight, dweight, terms[0]), (gradients.bias, dbias, terms[1])):
        if found is not None:
            own = 2 * max(reference.tolerance(found.dtype, n), limit)
            assert np.all(np.abs(found.astype(np.longdouble) - exact) <= own * magnitude)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "uint8"])
@pytest.mark.parametrize("layout", ["NCHW", "channels-last", "crop"])
@pytest.mark.parametrize("name", NORMS)
def test_every_dtype(name, layout, dtype):
    x, weight, bias = inputs(name)
    x = as_dtype(x, dtype)
    kind = x.dtype if dtype != "uint8" else np.dtype(np.float64)
    weight, bias, dy = weight.astype(kind), bias.astype(kind), uneven(SHAPE).astype(kind)
    y, pullback = vjp(name, LAYOUTS[layout](x), weight, bias)
    gradients = pullback(LAYOUTS[layout](dy))
    assert y.dtype == gradients.x.dtype == gradients.weight.dtype == kind
    expected, sizes = oracle(name, x, dy, weight), oracle(name, x, np.abs(dy), weight)
    check(gradients, expected, kind, (np.abs(sizes[1]) + np.abs(sizes[2]), np.abs(sizes[2])))


@given(strategies.cases(dtypes=("float32", "float64"), max_elements=6000), st.data())
def test_any_gradient(case, data):
    """Any sets, layout and values; weight of any shape; dy of any layout, strides of 0 too."""
    x, axes = case
    assume(x.dtype == np.float32 or abs(x).max() < 1e100)
    center, eps = data.draw(st.booleans()), data.draw(st.sampled_from((0.0, 1e-5)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    shapes = [data.draw(strategies.affine_shapes(x.shape)) if data.draw(st.booleans()) else None for _ in range(2)]
    weight, bias = (None if s is None else rng.uniform(0.5, 2, s).astype(x.dtype) for s in shapes)
    small = data.draw(strategies.affine_shapes(x.shape))
    dy = rng.normal(0.3, 1, small).astype(data.draw(st.sampled_from(("float32", "float64"))))
    if dy.shape == x.shape:
        dy = strategies.lay_out(dy, *data.draw(strategies.layouts(x.ndim)))
    dy = np.broadcast_to(dy, x.shape)
    room = data.draw(st.sampled_from((0, _gradients._SPREAD)))  # without room dy is read where it lies, as a large one is
    with mock.patch.object(_gradients, "_SPREAD", room), mock.patch.object(_recall, "_ready", {}):
        gradients = nk.vjp(nk.normalize, x, axes, weight, bias, eps=eps, center=center)[1](dy)
    dx, products, size = reference.gradient(x, axes, dy, weight, eps=eps, center=center)
    steps = dy.astype(np.longdouble)
    full = [(1,) * x.ndim if s is None else s for s in shapes]
    sums = [reference.sum_to(part, s) for part, s in zip((products, steps), full, strict=True)]
    terms = [reference.sum_to(np.abs(part), s) for part, s in zip((np.abs(products) + np.abs(steps), steps), full, strict=True)]
    assert (gradients.weight is None, gradients.bias is None) == (weight is None, bias is None)
    check(gradients, (dx, *sums, size), x.dtype, terms, size_of(x, axes))


@pytest.mark.parametrize(
    "shape", [(1, 2, 200, 171), (2, 3, 33, 65), (1, 64, 70, 3), (5, 7, 1, 2100), (2, 96, 1, 1), (300, 3, 2, 2)]
)
@pytest.mark.parametrize("layout", ["NCHW", "channels-last", "crop"])
@pytest.mark.parametrize("axes", [(2, 3), (1, 2, 3), (0, 2, 3), (1,)])
def test_sizes_around_blocks_and_chunks(axes, layout, shape):
    check_by_channels(LAYOUTS[layout](images(shape=shape)), axes, LAYOUTS[layout](uneven(shape, np.float32)))


def check_by_channels(x, axes, dy):
    """The gradient of x, and of a weight for each channel, against the oracle."""
    weight = np.linspace(0.5, 2, x.shape[1], dtype=np.float32).reshape(-1, 1, 1)
    gradients = nk.vjp(nk.normalize, x, axes, weight, weight)[1](dy)
    dx, products, size = reference.gradient(x, axes, dy, weight)
    sums = [reference.sum_to(part.astype(np.longdouble), weight.shape) for part in (products, dy)]
    terms = [reference.sum_to(np.abs(part), weight.shape) for part in (np.abs(products) + np.abs(dy), dy)]
    check(gradients, (dx, *sums, size), np.float32, terms)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1.0, 1e10, 1e30])
@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
@pytest.mark.parametrize("axes", [(1,), (0,)])
def test_any_offset_and_scale(offset, scale, axes):
    """float32 whose squares underflow or overflow; a set beside it that is ordinary."""
    rng = np.random.default_rng(0)
    x = ((rng.standard_normal((40, 70)) + offset) * scale).astype(np.float32)
    x[:, 3] = rng.standard_normal(40)
    x[3] = rng.standard_normal(70)
    dy, weight = uneven(x.shape, np.float32), uneven(70, np.float32)
    for eps in (0.0, 1e-5):
        gradients = nk.vjp(nk.normalize, x, axes, weight, eps=eps)[1](dy)
        dx, products, size = reference.gradient(x, axes, dy, weight, eps=eps)
        fits = np.abs(dx) < 1e38
        assert np.all(np.abs(gradients.x - dx)[fits] <= 2 * reference.tolerance(np.float32) * size[fits] + 1e-37)
        assert np.allclose(gradients.weight, products.sum(0).astype(float), rtol=0, atol=1e-5 * np.abs(products).sum(0).max())
        residue = np.abs(gradients.x.astype(np.longdouble).sum(axes)) / np.maximum(size.max(axes), 1e-30)
        assert np.all(residue[np.all(fits, axes)] <= 70 * 2.0**-23)  # gradients over a set sum to zero


# ------------------------------------------------------------------------------------------------------ the Jacobian's shape
def test_the_jacobian_of_a_set():
    """Rank m - 2, null space {ones, x - mean}; columns by jvp and rows by vjp are the same matrix."""
    m = 7
    x = np.random.default_rng(0).normal(5, 3, (1, m))
    units = np.eye(m)[:, None]
    pullback = nk.vjp(nk.normalize, x, 1, eps=0)[1]
    rows = np.concatenate([pullback(unit).x for unit in units])
    columns = np.concatenate([nk.jvp(nk.normalize, (x,), (unit,), 1, eps=0)[1] for unit in units]).T
    assert np.allclose(rows, columns, rtol=0, atol=1e-15)
    values = np.linalg.svd(rows)[1]
    assert values[m - 3] > 0.1 * values[0] and values[m - 2] < 1e-14
    for direction in (np.ones(m), (x - x.mean())[0]):
        assert abs(rows @ direction).max() < 1e-14 and abs(direction @ rows).max() < 1e-14


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_sets_of_one_element(dtype, eps):
    x, dy = images(shape=(4, 6, 1, 1), dtype=dtype), uneven((4, 6, 1, 1)).astype(dtype)
    weight = uneven(6).astype(dtype)
    gradients = nk.vjp(nk.instance_norm, x, weight, weight, eps=eps)[1](dy)
    assert not gradients.x.any() and not gradients.weight.any()
    assert np.allclose(gradients.bias, dy.sum((0, 2, 3)), rtol=1e-3)
    assert not nk.vjp(nk.normalize, x, (2, 3), weight.reshape(6, 1, 1), eps=eps)[1](dy).x.any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["instance", "layer (channels first)", "group", "batch", "layer (last)"])
def test_nan_stays_in_its_set(name, layout):
    x, weight, bias = inputs(name, np.float32)
    dy = uneven(SHAPE, np.float32)
    spoiled = dy.copy()
    spoiled[1, 2, 3, 4] = np.nan
    pullback = vjp(name, LAYOUTS[layout](x), weight, bias)[1]
    clean, dirty = pullback(LAYOUTS[layout](dy)).x, pullback(LAYOUTS[layout](spoiled)).x
    view, axes = NORMS[name][4:6]
    inside = np.isnan(spoiled.reshape(view)).any(axes, keepdims=True) & np.ones(view, bool)
    inside = inside.reshape(SHAPE)
    assert np.isnan(dirty[inside]).all() and np.array_equal(dirty[~inside], clean[~inside])


# ----------------------------------------------------------------------------------------------------- given statistics
@pytest.mark.parametrize("layout", ["NCHW", "channels-last", "crop"])
@pytest.mark.parametrize("center", [True, False])
def test_given_moments_are_constants(layout, center):
    x, dy, weight = images(dtype=np.float64), uneven(SHAPE), uneven((8, 1, 1))
    other = nk.moments(images(9, dtype=np.float64) + 3, (0, 2, 3))
    _, pullback = nk.vjp(nk.normalize, LAYOUTS[layout](x), (0, 2, 3), weight, weight, moments=other, center=center)
    gradients = pullback(LAYOUTS[layout](dy))
    constant = (other.mean if center else 0 * other.mean, other.var)
    dx, products, size = reference.gradient(x, (0, 2, 3), dy, weight, constant=constant)
    assert np.all(np.abs(gradients.x - dx) <= 4e-16 * size)
    assert np.allclose(gradients.weight.ravel(), products.sum((0, 2, 3)).astype(float), rtol=1e-12)
    along = nk.jvp(nk.normalize, (x, weight), (dy, None), (0, 2, 3), moments=other, center=center)[1]
    assert np.allclose(along, dx.astype(float), rtol=1e-14, atol=1e-15)
    x = x.copy()
    x[0, 0, 0, 0] = np.nan  # where the statistics are given, dx does not depend on x
    spoiled = nk.vjp(nk.normalize, x, (0, 2, 3), weight, moments=other)[1](dy).x
    assert not np.isnan(spoiled).any()


def test_weight_of_a_set_and_bias_of_every_element():
    x, dy = images(dtype=np.float64), uneven(SHAPE)
    weight, bias = uneven((3, 8, 1, 1)), uneven((8, 9, 5))
    gradients = nk.vjp(nk.normalize, x, (2, 3), weight, bias)[1](dy)
    dx, products, size = reference.gradient(x, (2, 3), dy, weight)
    assert np.all(np.abs(gradients.x - dx) <= 1e-14 * size)
    assert np.allclose(gradients.weight, products.sum((2, 3), keepdims=True).astype(float), rtol=1e-12)
    assert np.allclose(gradients.bias, dy.sum(0), rtol=1e-14)


@pytest.mark.parametrize("gap", ["channels", "pixels"])
@pytest.mark.parametrize("norm", [nk.instance_norm, nk.batch_norm])
def test_a_large_dy_with_gaps_between_few_channels(norm, gap):
    """Too large to be copied, and in the order of x: it is read where it lies."""
    x = np.moveaxis(uneven((2, 200, 120, 8), np.float32), -1, 1)
    whole = uneven((2, 200, 120, 16) if gap == "channels" else (2, 200, 240, 8))
    dy = np.moveaxis(whole[..., :8] if gap == "channels" else whole[:, :, ::2], -1, 1)
    pull = nk.vjp(norm, x)[1]
    assert np.allclose(pull(dy).x, pull(np.ascontiguousarray(dy)).x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "other"), [("float32", "float32"), ("float32", "float64"), ("float64", "float64")])
@pytest.mark.parametrize(("shape", "other_shape"), [((3, 1), (1, 3, 1)), ((3, 1), (3, 4)), ((1, 3, 1), (3, 1))])
def test_each_parameter_keeps_its_shape_and_dtype(shape, other_shape, dtype, other):
    """Those that lie alike are laid at once, which must not make them look alike."""
    x, dy = uneven((2, 3, 4)), uneven((2, 3, 4), seed=1)
    weight, bias = uneven(shape, seed=2).astype(dtype), uneven(other_shape, seed=3).astype(other)
    found = nk.vjp(nk.normalize, x, 2, weight=weight, bias=bias)[1](dy)
    assert (found.weight.shape, found.weight.dtype) == (shape, dtype)
    assert (found.bias.shape, found.bias.dtype) == (other_shape, other)
    products = (dy * nk.normalize(x, 2)).sum((0, 2)).reshape(shape)
    assert np.allclose(found.weight, products, rtol=1e-6)
    assert np.allclose(found.bias, dy.sum(0 if other_shape == (3, 4) else (0, 2)).reshape(other_shape), rtol=1e-6)


def test_parameters_of_channels_keep_their_shape_in_dtypes_of_their_own():
    x, dy = uneven(SHAPE), uneven(SHAPE, seed=1)
    found = nk.vjp(nk.batch_norm, x, np.ones(8, np.float32), np.zeros(8))[1](dy)
    assert (found.weight.shape, found.weight.dtype, found.bias.shape, found.bias.dtype) == ((8,), np.float32, (8,), np.float64)
    assert np.allclose(found.bias, dy.sum((0, 2, 3)))


def test_scalars_integers_and_mixed_dtypes():
    x, dy = images(), uneven(SHAPE, np.float32)
    gradients = nk.vjp(nk.layer_norm, x, 2.0, np.float16(1))[1](dy)
    assert gradients.weight.shape == gradients.bias.shape == ()
    assert (gradients.x.dtype, gradients.weight.dtype, gradients.bias.dtype) == (np.float32, np.float64, np.float16)
    gradients = nk.vjp(nk.batch_norm, x, np.arange(8), np.ones(8))[1](dy.astype(np.float64))
    assert (gradients.x.dtype, gradients.weight.dtype, gradients.bias.dtype) == (np.float32, np.float32, np.float64)
    bytes_ = (x * 9).astype(np.uint8)
    gradients = nk.vjp(nk.instance_norm, bytes_, dtype=np.float32)[1](dy)
    assert gradients.x.dtype == np.float32 and gradients.x.shape == bytes_.shape
    assert nk.vjp(nk.layer_norm, [[1.0, 2.0, 4.0]])[1]([[0.0, 1.0, 0.0]]).x.shape == (1, 3)


def test_a_gradient_beyond_float16_is_infinite():
    x, weight = images(dtype=np.float16), np.ones(8, np.float16)
    gradients = nk.vjp(nk.batch_norm, x, weight, weight)[1](np.full(SHAPE, 6e4, np.float16))
    assert np.all(np.isinf(gradients.bias)) and np.all(np.isfinite(gradients.x))


def test_arrays_without_elements():
    for shape in ((0, 3, 4), (2, 3, 0), (0, 3, 0)):
        y, pullback = nk.vjp(nk.instance_norm, np.zeros(shape), np.ones(3), np.ones(3))
        gradients = pullback(y)
        assert gradients.x.shape == shape and not gradients.weight.any() and not gradients.bias.any()
        assert nk.jvp(nk.instance_norm, (y,), (y,))[1].shape == shape


def test_constant_sets_without_eps():
    """Where the norm gives bias by convention, no x moves it."""
    gradients = nk.vjp(nk.layer_norm, np.full((2, 5), 3.0), np.ones(5), eps=0)[1](uneven((2, 5)))
    assert not gradients.x.any() and not gradients.weight.any()


# ------------------------------------------------------------------------------------------------------------------- AdaIN
@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("layout", ["NCHW", "channels-last", "crop"])
def test_adaptive_instance_norm(layout, batch, alpha):
    content, style = images(dtype=np.float64), images(5, (batch, 8, 4, 6), np.float64) * 2 - 1
    arguments = tuple(LAYOUTS[layout](a) for a in (content, style))
    dy = uneven(SHAPE)
    y, pullback = nk.vjp(nk.adaptive_instance_norm, *arguments, alpha=alpha)
    gradients = pullback(dy)
    assert np.array_equal(y, nk.adaptive_instance_norm(*arguments, alpha=alpha))
    assert gradients._fields == ("content", "style")
    ways = tuple(uneven(a.shape, seed=k + 20) for k, a in enumerate(arguments))
    for k, (found, way) in enumerate(zip(gradients, ways, strict=True)):
        assert found.shape == arguments[k].shape

        def moved(t, k=k, way=way):
            changed = [a + t * way if j == k else a for j, a in enumerate(arguments)]
            return nk.adaptive_instance_norm(*changed, alpha=alpha)

        expected = slope_along(moved, 1e-4)
        assert abs(np.sum(found * way) - np.sum(expected * dy)) <= 1e-8 * np.abs(expected * dy).sum() + 1e-12
        tangents = [way if j == k else None for j in range(2)]
        along = nk.jvp(nk.adaptive_instance_norm, arguments, tangents, alpha=alpha)[1]
        assert np.allclose(along, expected, rtol=0, atol=1e-8)


def test_adaptive_instance_norm_with_given_moments():
    content, style, dy = images(dtype=np.float64), images(5, dtype=np.float64), uneven(SHAPE)
    given_moments = nk.moments(content + 2, (2, 3))
    gradients = nk.vjp(nk.adaptive_instance_norm, content, style, moments=given_moments, alpha=0.5)[1](dy)
    deviation = style.std((2, 3), keepdims=True)
    expected = (0.5 * deviation / np.sqrt(given_moments.var + 1e-5) + 0.5) * dy
    assert np.allclose(gradients.content, expected, rtol=1e-12)


# ------------------------------------------------------------------------------------------------------- what is kept; errors
def test_a_pullback_keeps_x_and_weight_and_can_be_called_again():
    x, weight, bias = inputs("batch", np.float32)
    y, pullback = nk.vjp(nk.batch_norm, x, weight, bias)
    kept, dropped = [weakref.ref(a) for a in (x, weight)], [weakref.ref(a) for a in (y, bias)]
    dy = uneven(SHAPE, np.float32)
    first, second = pullback(dy), pullback(dy)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    dropped.append(weakref.ref(dy))
    del x, weight, bias, y, dy
    gc.collect()
    assert all(ref() is not None for ref in kept) and all(ref() is None for ref in dropped)


def test_the_value_beside_moments_and_out():
    x, out = images(), np.empty(SHAPE, np.float32)
    (y, batch), pullback = nk.vjp(nk.batch_norm, x, return_moments=True, out=out)
    assert y is out and batch == nk.moments(x, (0, 2, 3)) and pullback(x).x.shape == SHAPE
    running = nk.Moments(1, np.zeros((1, 8, 1, 1)), 1).ema(batch)
    y, pullback = nk.vjp(nk.batch_norm, x, moments=running, return_moments=True)
    assert y[1] is running
    before = x.copy()
    with pytest.raises(ValueError, match="out overlaps x, which the gradient reads again"):
        nk.vjp(nk.batch_norm, x, out=x)
    assert np.array_equal(x, before)


def test_bad_input():
    x = images()
    pullback = nk.vjp(nk.instance_norm, x)[1]
    with pytest.raises(ValueError, match=r"dy has shape \(3, 8, 9\), expected \(3, 8, 9, 5\), the shape of y"):
        pullback(x[..., 0])
    with pytest.raises(TypeError, match="dy has dtype int64, which cannot hold a gradient; expected float16"):
        pullback(np.ones(SHAPE, np.int64))
    with pytest.raises(TypeError, match="dy has dtype complex128"):
        pullback(np.ones(SHAPE, np.complex128))
    for foreign in (np.mean, lambda x: x, nk.moments, "instance_norm", [nk.instance_norm]):
        with pytest.raises(TypeError, match=r"norm must be a norm of normkit \(adaptive_instance_norm, batch_norm"):
            nk.vjp(foreign, x)
    with pytest.raises(ValueError, match=r"tangent of x has shape \(1,\), expected \(3, 8, 9, 5\), the shape of x"):
        nk.jvp(nk.instance_norm, (x,), (np.ones(1),))
    with pytest.raises(TypeError, match="tangent of weight has dtype int64"):
        nk.jvp(nk.instance_norm, (x, np.ones(8)), (x, np.ones(8, np.int64)))
    with pytest.raises(ValueError, match="tangents has one for weight, but primals has no weight"):
        nk.jvp(nk.instance_norm, (x,), (x, np.ones(8)))
    with pytest.raises(TypeError, match=r"primals must be a tuple of the norm's array arguments, .* not ndarray"):
        nk.jvp(nk.layer_norm, x, x)
    for primals in ((), (x, None, None, None)):
        with pytest.raises(ValueError, match=r"primals has \d entries, expected 1 to 3"):
            nk.jvp(nk.instance_norm, primals, primals)
    with pytest.raises(ValueError, match="does not broadcast"):
        nk.vjp(nk.normalize, x, (2, 3), np.ones(7))
