"""The CUDA backend against the oracle: its compiled kernels in the emulator, behind the public functions.

Every launch is checked for races, bounds, alignment, barriers, writes to inputs and outputs that are not written whole.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import normkit as nk
from normkit._cuda import launch
from normkit._cuda import spec as sp
from tests import reference, strategies
from tests.places import LIBRARY, host, new_driver, put
from tests.test_gradients import NORMS, SHAPE, inputs, oracle, uneven
from tests.test_properties import CALLS, DTYPES, LAYOUTS, as_dtype, images, size_of

counted = pytest.mark.skipif(bool(LIBRARY), reason="the emulator counts bytes; a device does not")


@pytest.fixture(autouse=True)
def driver(monkeypatch):
    found = new_driver()
    monkeypatch.setattr(launch, "driver", found)
    return found


def laid(x, layout):
    """x on the device, in the memory of a layout."""
    return put(LAYOUTS[layout](x))


# ---------------------------------------------------------------------------------------------------- norms against the oracle
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", CALLS)
def test_every_norm_in_every_layout(norm, layout):
    call, wanted = CALLS[norm]
    y = call(laid(images(), layout))
    reference.assert_close(host(y), wanted(images()))


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        *(("NCHW", dtype) for dtype in DTYPES),
        *(("channels-last", dtype) for dtype in ("float16", "bfloat16", "float64", "uint8")),
    ],
)
def test_every_dtype(layout, dtype):
    x = as_dtype(images(shape=(3, 8, 8, 5)), dtype)
    call, wanted = CALLS["instance"]
    y = call(laid(x, layout))
    assert host(y).dtype == (x.dtype if dtype in ("float16", "bfloat16", "float32", "float64") else np.float64)
    reference.assert_close(host(y), wanted(x))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_integers_to_narrow_floats_in_one_pass(driver, dtype):
    x = as_dtype(images(shape=(2, 3, 16, 4)), "uint8")
    y = nk.instance_norm(put(x), dtype=dtype)
    reference.assert_close(host(y), reference.normalize(x, (2, 3)), dtype=dtype)
    assert len(driver.launches) == 1 and not driver.launches[0].spec.wide


@settings(max_examples=12)
@given(strategies.cases(max_ndim=3, max_elements=6000), st.integers(0, 9))
def test_normalize_is_the_papers_formula(case, order):
    x, axes = case
    launch.driver.order = order
    y = nk.normalize(put(x), axes)
    reference.assert_close(host(y), reference.normalize(x, axes), n=size_of(x, axes))


@pytest.mark.parametrize("values", strategies.VALUES)
@pytest.mark.parametrize("schedule", ["sets", "lanes"])
@pytest.mark.parametrize("eps", [1e-5, 0.0])
def test_hard_values(schedule, values, eps):
    """Offsets, constants, outliers, subnormal and huge squares: the same two kernels, other data."""
    x = strategies.fill((6, 160), values, np.float32, 3)
    y = nk.normalize(put(x), 1, eps=eps) if schedule == "sets" else nk.normalize(put(x.T.copy()), 0, eps=eps)
    reference.assert_close(host(y) if schedule == "sets" else y.np.T, reference.normalize(x, (1,), eps=eps))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 9, 31, 32, 33, 127, 128, 129, 1023, 1024, 1025, 8192, 16384, 16388, 20001])
def test_sizes_at_which_teams_change(n):
    rng = np.random.default_rng(n)
    x = rng.normal(1e4, 2, (3, n)).astype(np.float32)
    reference.assert_close(host(nk.layer_norm(put(x))), reference.normalize(x, (1,)), n=n)


@pytest.mark.parametrize("rows", [1, 3, 8, 9, 64, 255, 256, 257, 1024, 1025, 2500])
@pytest.mark.parametrize("sets", [12, 70])
def test_rows_at_which_teams_of_lanes_change(rows, sets):
    x = np.random.default_rng(rows).normal(1e4, 2, (rows, sets)).astype(np.float32)
    reference.assert_close(host(nk.normalize(put(x), 0)), reference.normalize(x, (0,)), n=rows)


AFFINES = {"channel": (6, 1, 1), "sample and channel": (2, 6, 1, 1), "pixel": (8, 8), "element": (2, 6, 8, 8), "scalar": ()}


@pytest.mark.parametrize("kind", AFFINES)
@pytest.mark.parametrize("layout", ["NCHW", "channels-last"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_affine_of_any_shape_and_dtype(layout, kind, dtype):
    x, rng = images(shape=(2, 6, 8, 8)), np.random.default_rng(1)
    weight, bias = (rng.uniform(-2, 2, AFFINES[kind]).astype(dtype) for _ in range(2))
    y = nk.normalize(laid(x, layout), (2, 3), put(weight), put(bias))
    reference.assert_close(host(y), reference.normalize(x, (2, 3), weight, bias), scale=8)
    only = nk.normalize(laid(x, layout), (2, 3), bias=put(bias))
    reference.assert_close(host(only), reference.normalize(x, (2, 3), None, bias), scale=8)


def test_group_norm_with_channels_of_its_own():
    for shape in ((2, 8, 6, 6), (2, 8, 7, 7)):
        x, rng = images(shape=shape), np.random.default_rng(1)
        weight, bias = (rng.normal(size=8).astype(np.float32) for _ in range(2))
        lie = (1, 8, 1, 1)
        for layout in ("NCHW", "channels-last"):
            y = nk.group_norm(laid(x, layout), 2, put(weight), put(bias))
            wanted = reference.group_normalize(x, 2, 1, (2, 3), weight.reshape(lie), bias.reshape(lie))
            reference.assert_close(host(y), wanted, scale=8)


# ------------------------------------------------------------------------------------------------------------ statistics
def test_moments_given_and_returned(driver):
    x = images(shape=(2, 6, 8, 8))
    on_device = put(x)
    y, m = nk.instance_norm(on_device, return_moments=True)
    exact = nk.moments(x, (2, 3))
    assert type(m.mean) is type(y) and host(m.mean).dtype == np.float64 and m.mean.shape == (2, 6, 1, 1)
    assert np.allclose(host(m.mean), exact.mean, rtol=1e-6) and np.allclose(host(m.var), exact.var, rtol=1e-6)
    assert m == nk.moments(on_device, (2, 3))  # the same sums, bit for bit
    for known in (m, exact):  # from the device, or from elsewhere
        reference.assert_close(host(nk.instance_norm(on_device, moments=known)), y.np.astype(float))
    wider = nk.Moments(192, exact.pool("[n] c ...").mean, exact.pool("[n] c ...").var)
    reference.assert_close(
        host(nk.instance_norm(on_device, moments=wider)), nk.instance_norm(x, moments=wider).astype(float), dtype=np.float32
    )


def test_moments_merge_pool_and_update_on_the_device():
    a, b = images(0, (2, 6, 8, 8)), images(1, (2, 6, 8, 8)) + np.float32(3)
    here, there = (tuple(nk.moments(move(x), (2, 3)) for x in (a, b)) for move in (np.asarray, put))
    for operate in (
        lambda p, q: p.merge(q),
        lambda p, q: p.pool("[n] c ..."),
        lambda p, q: p.pool("n (g [c]) ...", g=2).merge(q.pool("n (g [c]) ...", g=2)),
        lambda p, q: p.ema(q, 0.3),
    ):
        wanted, found = operate(*here), operate(*there)
        assert np.allclose(host(found.mean), wanted.mean, rtol=1e-6) and np.allclose(host(found.var), wanted.var, rtol=1e-6)
        assert found.mean.shape == wanted.mean.shape
    restored = nk.Moments.from_dict(there[0].to_dict())
    assert np.allclose(restored.mean, here[0].mean, rtol=1e-6) and repr(there[0]) == repr(here[0])
    assert np.allclose(host(there[0].std(1)), here[0].std(1), rtol=1e-6)


def test_adaptive_instance_norm():
    content, style = images(shape=(2, 6, 8, 8)), images(5, (1, 6, 4, 6)) * np.float32(2) - 1
    for alpha in (1.0, 0.25):
        y = nk.adaptive_instance_norm(put(content), put(style), alpha=alpha)
        reference.assert_close(host(y), nk.adaptive_instance_norm(content, style, alpha=alpha).astype(float), scale=30)
        dy = uneven(content.shape, np.float32)
        found = nk.vjp(nk.adaptive_instance_norm, put(content), put(style), alpha=alpha)[1](put(dy))
        wanted = nk.vjp(nk.adaptive_instance_norm, content, style, alpha=alpha)[1](dy)
        for got, exact in zip(found, wanted, strict=True):
            assert np.abs(host(got) - exact).max() <= 3e-6 * max(1, np.abs(exact).max())


# -------------------------------------------------------------------------------------------------------------- gradients
@pytest.mark.parametrize(
    ("norm", "layout"),
    [
        *((norm, layout) for norm in NORMS for layout in ("NCHW", "channels-last")),
        ("instance", "crop"),
        ("layer (image)", "crop"),
    ],
)
def test_gradients_of_every_norm(norm, layout):
    function, args, keywords, *_ = NORMS[norm]
    x, weight, bias = inputs(norm, np.float32)
    dy = uneven(SHAPE, np.float32)
    _, pullback = nk.vjp(function, laid(x, layout), *args, put(weight), put(bias), **keywords)
    found = pullback(laid(dy, layout))
    dx, dweight, dbias, size = oracle(norm, x, dy, weight)
    assert host(found.x).dtype == np.float32 and tuple(found.weight.shape) == weight.shape
    assert np.all(np.abs(host(found.x) - dx) <= 8 * 2.0**-23 * np.maximum(size, 1e-6))
    for got, wanted, terms in ((found.weight, dweight, dy.size), (found.bias, dbias, dy.size)):
        scale = np.abs(dy).sum() / max(1, wanted.size) * 4
        assert np.all(np.abs(host(got) - wanted) <= 2.0**-21 * (scale + np.abs(wanted))), terms


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("schedule", ["sets", "lanes"])
def test_gradients_in_every_dtype(schedule, dtype):
    x, dy = (as_dtype(values, dtype) for values in (images(shape=(6, 40)), uneven((6, 40))))
    weight = as_dtype(np.linspace(0.5, 2, 40), dtype)
    axis, turn = (1, (lambda a: a)) if schedule == "sets" else (0, (lambda a: np.ascontiguousarray(a.T)))
    shape = (1, 40) if schedule == "sets" else (40, 1)
    _, pullback = nk.vjp(nk.normalize, put(turn(x)), axis, put(weight.reshape(shape)))
    found = pullback(put(turn(dy)))
    dx, products, size = reference.gradient(x, (1,), dy, weight.reshape(1, 40))
    got = host(found.x) if schedule == "sets" else found.x.np.T
    limit = 3 * reference.tolerance(dtype, 40)
    assert np.all(np.abs(got.astype(np.longdouble) - dx) <= limit * np.maximum(size, np.abs(dx)))
    dweight = reference.sum_to(products, (1, 40)).reshape(shape)
    assert np.all(np.abs(found.weight.np.astype(np.longdouble) - dweight) <= limit * (np.abs(dweight) + 10))


@pytest.mark.parametrize("looped", [0, 1 << 62])
@pytest.mark.parametrize("shape", [(3, 20_000), (2, 2500, 9)])
def test_gradients_of_long_sets(monkeypatch, driver, shape, looped):
    monkeypatch.setattr(sp, "LOOPED_TILES", looped)
    x, dy = images(shape=shape), uneven(shape, np.float32)
    _, pullback = nk.vjp(nk.normalize, put(x), 1)
    found = host(pullback(put(dy)).x)
    dx, _, size = reference.gradient(x, (1,), dy)
    assert np.all(np.abs(found - dx) <= 8 * 2.0**-23 * size)
    assert ("backward_looped" in driver.kernels) == (looped == 0)


def test_gradients_by_given_statistics():
    x, dy = images(shape=(2, 6, 8, 8)), uneven((2, 6, 8, 8), np.float32)
    weight = np.linspace(0.5, 2, 6, dtype=np.float32)
    m = nk.moments(images(3, (2, 6, 8, 8)), (0, 2, 3))
    wanted = nk.vjp(nk.batch_norm, x, weight, moments=m)[1](dy)
    found = nk.vjp(nk.batch_norm, put(x), put(weight), moments=m)[1](put(dy))
    assert np.allclose(host(found.x), wanted.x, rtol=1e-5, atol=1e-6) and np.allclose(
        host(found.weight), wanted.weight, rtol=1e-5
    )


def test_jvp():
    x, step, weight = images(shape=(3, 40)), uneven((3, 40), np.float32), np.linspace(0.5, 2, 40, dtype=np.float32)
    steps = (step, weight * 2, weight - 1)
    wanted = nk.jvp(nk.layer_norm, (x, weight, weight), steps)
    found = nk.jvp(nk.layer_norm, tuple(map(put, (x, weight, weight))), tuple(map(put, steps)))
    for got, exact in zip(found, wanted, strict=True):
        assert np.abs(host(got) - exact).max() < 1e-5


# ---------------------------------------------------------------------------------------------------------------- promises
def bits(array):
    return np.ascontiguousarray(host(array)).view(np.uint8)


@pytest.mark.parametrize("n", [49, 64, 1024, 20_000])
def test_a_set_does_not_depend_on_its_batch(n):
    """Alone, in a batch, anywhere in it; in any order of threads and blocks."""
    x = np.random.default_rng(n).normal(3, 2, (5, n)).astype(np.float32)
    whole = host(nk.layer_norm(put(x)))
    for row in (0, 4):
        assert np.array_equal(host(nk.layer_norm(put(x[row : row + 1])))[0], whole[row])
    for order in (0, 1, 77):
        launch.driver.order = order
        assert np.array_equal(host(nk.layer_norm(put(x))), whole)


@pytest.mark.parametrize("shape", [(3, 40_000), (3000, 9)])
def test_one_launch_or_three_give_the_same_bits(monkeypatch, driver, shape):
    x = np.random.default_rng(0).normal(1e3, 2, shape).astype(np.float32)
    axis, results = int(shape[0] == 3), []
    for tiles in (0, 1 << 62):
        monkeypatch.setattr(sp, "LOOPED_TILES", tiles)
        results.append(bits(nk.normalize(put(x), axis)))
    assert np.array_equal(*results)
    assert driver.kernels == ["forward_looped", "partial_moments", "merge_moments", "apply"]


@pytest.mark.parametrize("offset", [4, 8, 12])
def test_alignment_changes_no_bits(driver, offset):
    x = np.random.default_rng(0).normal(3, 2, (4, 512)).astype(np.float32)
    aligned, off = nk.layer_norm(put(x)), nk.layer_norm(put(x, offset=offset))
    assert [call.spec.x.vector for call in driver.launches] == [True, False]
    assert np.array_equal(bits(aligned), bits(off))


def test_a_set_with_nan_keeps_it():
    x = images(shape=(4, 160))
    clean = host(nk.layer_norm(put(x)))
    x[1, 7], x[2, 0] = np.nan, np.inf
    y = host(nk.layer_norm(put(x)))
    assert np.isnan(y[1:3]).all() and np.array_equal(y[[0, 3]], clean[[0, 3]])


@pytest.mark.parametrize("schedule", ["sets", "lanes"])
@pytest.mark.parametrize("n", [1, 100, 20_000])
def test_constant_sets_give_exactly_bias(schedule, n):
    x, bias = np.full((3, n), 1e4 + 0.1, np.float32), 0.7
    for eps in (0.0, 1e-5):
        if schedule == "sets":
            y = host(nk.normalize(put(x), 1, bias=bias, eps=eps))
        else:
            y = host(nk.normalize(put(x.T.copy()), 0, bias=bias, eps=eps))
        assert np.array_equal(y, np.full(y.shape, np.float32(0.7)))


# ---------------------------------------------------------------------------------------------------------- out, and bytes
def test_out_in_place_and_strided():
    x = images(shape=(2, 6, 8, 8))
    wanted = host(nk.instance_norm(put(x)))
    same = put(x)
    assert nk.instance_norm(same, out=same) is same and np.array_equal(host(same), wanted)
    wide = put(np.zeros((2, 6, 8, 16), np.float32))
    view = wide[..., ::2]
    nk.instance_norm(put(x), out=view)
    assert np.array_equal(host(view), wanted) and not host(wide)[..., 1::2].any()
    half = put(np.zeros(x.shape, np.float16))
    nk.instance_norm(put(x), out=half)
    reference.assert_close(host(half), wanted.astype(float), dtype=np.float16)


def traffic(driver, bytes_of_x):
    """Bytes of x and y that were read and written, relative to one read and one write."""
    read = sum(call.read[0] + call.read[3] * (call.spec.kernel.startswith("backward")) for call in driver.launches)
    written = sum(call.written[1] for call in driver.launches)
    return read / bytes_of_x, written / bytes_of_x


@counted
@pytest.mark.parametrize(
    ("shape", "axes", "layout"),
    [((4, 6, 32, 32), (2, 3), "NCHW"), ((64, 1024), (1,), "NCHW"), ((2, 64, 16, 16), (2, 3), "channels-last"),
     ((4, 16384), (1,), "NCHW"), ((3, 6, 14, 14), (2, 3), "NCHW")],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_set_that_fits_on_chip_is_read_once(driver, shape, axes, layout, dtype):
    x = as_dtype(images(shape=shape), dtype)
    nk.normalize(laid(x, layout), axes)
    read, written = traffic(driver, x.nbytes)
    assert written == 1 and read + written <= 1.05 * 2
    assert len(driver.launches) == 1


@counted
@pytest.mark.parametrize("tiles", [0, 1 << 62])
@pytest.mark.parametrize(("shape", "axis"), [((3, 40_000), 1), ((3000, 96), 0)])
def test_a_longer_set_is_read_twice(monkeypatch, driver, shape, axis, tiles):
    monkeypatch.setattr(sp, "LOOPED_TILES", tiles)
    x = images(shape=shape)
    nk.normalize(put(x), axis)
    read, written = traffic(driver, x.nbytes)
    assert written == 1 and read + written <= 1.05 * 3
    partials = sum(call.written[6] for call in driver.launches)
    assert partials <= 0.03 * x.nbytes


@counted
def test_bytes_of_given_statistics_and_of_gradients(driver):
    x, dy = images(shape=(4, 6, 32, 32)), uneven((4, 6, 32, 32), np.float32)
    m = nk.moments(x, (2, 3))
    nk.instance_norm(put(x), moments=m)
    assert traffic(driver, x.nbytes) == (1, 1)
    driver.launches.clear()
    _, pullback = nk.vjp(nk.instance_norm, put(x))
    driver.launches.clear()
    pullback(put(dy))
    read, written = traffic(driver, x.nbytes)
    assert written == 1 and read + written <= 1.05 * 3


def test_more_sets_and_longer_ones_than_int32_holds(driver):
    """Only the geometry: a kernel with 64-bit indices is chosen, and gets numbers beyond 32 bits."""
    from normkit._cuda.calls import _plan

    shape = (3, 1 << 31)
    layout = (shape, ((1 << 31) * 2, 2), 2, "float16", 0)
    for axis in (0, 1):
        split = tuple(((n, k == axis),) for k, n in enumerate(shape))
        plan = _plan(split, (True, False, False, False), layout, layout, ((), (), 1, "", 0), ((), (), 1, "", 0), 0, 256)
        assert plan.spec.big and max(plan.geometry) >= 1 << 31


def test_indices_of_64_bits_give_the_same_bits(monkeypatch):
    from dataclasses import replace

    x = images(shape=(3, 5, 7, 6))
    wanted = host(nk.normalize(put(x), (0, 2)))
    run = launch.driver.launch
    monkeypatch.setattr(launch.driver, "launch", lambda spec, *rest: run(replace(spec, big=True), *rest))
    assert np.array_equal(host(nk.normalize(put(x), (0, 2))), wanted)
