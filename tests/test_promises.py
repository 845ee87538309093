"""The five promises of the design, each as a test that can fail."""

import functools
import itertools
import os
import pathlib
import sys
import textwrap

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import normkit as nk
from normkit import _recall
from normkit._cpu import arrangement, schedule, threads
from tests import reference, strategies
from tests.processes import run_python
from tests.test_properties import CALLS, LAYOUTS, images


# ------------------------------------------------------------------------- 1. accuracy: no matter the offset, scale, layout
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", ["instance", "group", "batch", "layer (image)", "layer (channels first)"])
@pytest.mark.parametrize("offset", [0, 1e2, 1e4, 1e6])
def test_accuracy_at_any_offset(norm, layout, offset):
    x = (np.random.default_rng(3).standard_normal((3, 8, 9, 5)) + offset).astype(np.float32)
    call, oracle = CALLS[norm]
    reference.assert_close(call(LAYOUTS[layout](x), eps=0), oracle(x, eps=0))


@pytest.mark.parametrize("offset", [0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("shape", [(2, 100_000), (100_000, 2), (1, 10_000_000)])
def test_accuracy_of_long_sets_at_any_offset(offset, shape):
    axis = int(np.argmax(shape))
    x = (np.random.default_rng(3).standard_normal(shape) + offset).astype(np.float32)
    reference.assert_close(nk.normalize(x, axis, eps=0), reference.normalize(x, (axis,), eps=0))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axes", [(2, 3), (1, 2, 3), (0, 2, 3), (1,), (3,)])
@pytest.mark.parametrize("shape", [(6, 40, 9, 13), (2, 7, 300, 160)])
def test_the_mean_of_sets_that_start_far_off(shape, axes, layout):
    """In float64 too, where all digits of the first element are in use; near the others, not near that one."""
    x = np.random.default_rng(3).normal(0.1, 1, shape)
    first = tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(4))
    x[first] = 1e6 + x[first]
    own, exact = nk.moments(LAYOUTS[layout](x), axes), x.astype(np.longdouble)
    off = np.abs(own.mean.reshape(np.mean(exact, axes).shape) - np.mean(exact, axes))
    assert np.all(off <= 16 * 2.0**-52 * np.std(exact, axes))


@pytest.mark.parametrize("shape", [(2, 48), (2, 5000), (5000, 2)])
@pytest.mark.parametrize("center", [True, False])
def test_scaling_by_powers_of_two_changes_nothing(shape, center):
    """norm(s x) = norm(x) with eps = 0, over float32's whole range, subnormal numbers included."""
    axis = int(np.argmax(shape))
    x = np.random.default_rng(0).integers(-3, 4, shape).astype(np.float32)  # few bits: exact as subnormals too
    expected = reference.normalize(x, (axis,), eps=0, center=center)
    for exponent in range(-149, 126, 11):
        scaled = np.ldexp(x, exponent)
        assert np.isfinite(scaled).all() and np.array_equal(np.ldexp(scaled, -exponent), x)
        reference.assert_close(nk.normalize(scaled, axis, eps=0, center=center), expected)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1234.0, 1e4 + 0.1, 3e38, 1e-42, -65504.0])
@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_constant_sets_are_exactly_bias(constant, eps, dtype):
    if dtype == "float16" and abs(constant) > 65504:
        constant = 65504.0
    for shape in ((3, 1), (3, 100), (100, 3), (2, 20_000)):
        axis = int(np.argmax(shape))
        x = np.full(shape, constant, dtype)
        bias = np.arange(1, 4)[: shape[1 - axis]].astype(dtype).reshape(shape[0] if axis else 1, -1)
        y, m = nk.normalize(x, axis, 7.5, bias, eps=eps, return_moments=True)
        assert np.array_equal(y, np.broadcast_to(bias, shape)), (shape, y)
        assert np.all(m.var == 0) and np.all(m.mean == x.flat[0].astype(np.float64))


@given(strategies.arrays(values=strategies.VALUES))
def test_variance_is_never_negative(x):
    assert np.all(nk.moments(x, tuple(range(x.ndim))).var >= 0)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("layout", ["C", "F"])
def test_every_pattern_of_16_bits(dtype, layout):
    """Mean 0 and variance 1 change nothing, and neither does the way through the kernels."""
    x = np.arange(1 << 16, dtype=np.uint16).view(dtype).reshape(256, 256)
    y = nk.normalize(np.asarray(x, order=layout), 1, moments=nk.Moments(256, np.zeros((256, 1)), np.ones((256, 1))), eps=0)
    wide = x.astype(np.float32)
    assert y.dtype == x.dtype and np.array_equal(np.isnan(wide), np.isnan(y.astype(np.float32)))
    assert np.array_equal(y[~np.isnan(wide)], x[~np.isnan(wide)])


@pytest.mark.parametrize("processor", ["this one", "generic"])
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_16_bits_on_processors_with_instructions_for_them_or_not(half, processor):
    """Reading and rounding as NumPy does, every pattern and many between; on x86 "generic" knows neither format."""
    run_code(
        f"""
import ml_dtypes, numpy as np, normkit as nk
half, digits = np.dtype(ml_dtypes.bfloat16 if {half!r} == "bfloat16" else "float16"), {8 if half == "bfloat16" else 11}
np.seterr(all="ignore")
known = nk.Moments(256, np.zeros((256, 1)), np.ones((256, 1)))
halves = np.arange(1 << 16, dtype=np.uint16).view(half).reshape(256, 256)
assert np.array_equal(nk.normalize(halves, 1, moments=known, eps=0, dtype="float32"), halves.astype(np.float32), equal_nan=True)
rng = np.random.default_rng(0)
between = rng.integers(0, 1 << 32, (256, 1 << 10), dtype=np.uint32).view(np.float32)
tiny = rng.integers(0, 1 << 24, (256, 1 << 8), dtype=np.uint32).view(np.float32)
middle = halves.astype(np.float32) * np.float32(1 + 2.0**-digits)
near = np.concatenate([middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(9)), between, tiny], 1)
for x in (near, -near * np.float32(2.0**-12), near.astype(np.float64 if half == np.float16 else np.float32)):
    for y in (x, np.asfortranarray(x)):
        rounded = nk.normalize(y, 1, moments=known, eps=0, dtype=half).astype(np.float32)
        assert np.array_equal(rounded, x.astype(half).astype(np.float32), equal_nan=True)
""",
        **({} if processor == "this one" else {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": ""}),
    )


@pytest.mark.parametrize("data", ["outlier first", "8191 8193", "sorted", "one huge"])
@pytest.mark.parametrize("n", [65, 2049, 50_000])
def test_adversarial_data(data, n):
    x = np.random.default_rng(0).standard_normal((2, n))
    if data == "outlier first":
        x[:, 0] = 1e8
    elif data == "8191 8193":
        x[:] = np.where(np.arange(n) % 2, 8191, 8193)
    elif data == "sorted":
        x = np.sort(x + 100, axis=1)
    else:
        x[:, n // 2] = 1e30
    x = x.astype(np.float32)
    for memory in (x, np.asfortranarray(x)):
        reference.assert_close(nk.normalize(memory, 1, eps=0), reference.normalize(x, (1,), eps=0))


@pytest.mark.parametrize("inner", [2, 3, 5, 40])
def test_sums_of_short_runs_are_as_exact(inner):
    """After one huge element many roundings in a row go one way; here a run is shorter than what is summed in a row."""
    memory = np.zeros((2, 6000 // inner, inner, 2), np.float32)
    x = memory[:, :, ::-1, 1]
    x[:] = np.random.default_rng(1).standard_normal(x.shape)
    x[:, 0, -1] = 1e6
    m, exact = nk.moments(x, (1, 2)), x.astype(np.longdouble).var((1, 2), keepdims=True)
    assert np.all(np.abs(m.var / exact - 1) < 6 * 2.0**-24)
    reference.assert_close(nk.normalize(x, (1, 2), eps=0), reference.normalize(x, (1, 2), eps=0))


# -------------------------------------------------------- 2. a set's result depends on that set alone, bit for bit
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 8, 9, 31, 33, 96, 97, 128, 129, 192, 193, 384, 385])
def test_short_sets_some_at_a_time_have_the_bits_of_each_alone(size, dtype):
    """Among them ones that are constant, hold NaN, start far off their mean, or wait for float64: alone, and beside others."""
    rng = np.random.default_rng(size)
    x = rng.normal(3, 1, (37, size))
    x[2] = 5
    x[5] *= 1e-3
    x[9, -1] = np.nan
    x[12, 0] = 1e4  # a pivot far off
    x[15, :8] = 1e4
    if dtype in ("float32", "float64"):
        x[18], x[20] = x[18] * 1e-21, x[20] * 1e-25
        x[21:29] *= 1e-30
    x = x.astype(np.dtype(dtype))
    weight, bias = rng.normal(size=(2, size)).astype(np.float32)
    affine, exact = (functools.partial(nk.layer_norm, **given) for given in ({"weight": weight, "bias": bias}, {"eps": 0}))
    for call in (nk.layer_norm, nk.rms_norm, affine, exact):
        whole = call(x)
        alone = np.concatenate([call(x[k : k + 1]) for k in range(len(x))])
        assert whole.tobytes() == alone.tobytes()
        inside = x.copy()
        call(inside, out=inside)
        assert inside.tobytes() == whole.tobytes()
        places = np.zeros((4, 14, 2 * size), x.dtype)[:, :9, :size]  # runs apart, and only nine of them at even distances
        places[...] = x[:36].reshape(4, 9, size)
        assert call(places).tobytes() == whole[:36].tobytes()
        many = np.tile(x, (-(-2 * threads.PARALLEL_ELEMENTS // x.size), 1))  # several tasks
        assert call(many).tobytes() == call(many, out=many).tobytes() == np.tile(whole, (len(many) // 37, 1)).tobytes()
    own = nk.layer_norm(x, return_moments=True)[1]
    each = [nk.layer_norm(x[k : k + 1], return_moments=True)[1] for k in range(len(x))]
    for name in ("mean", "var"):
        assert getattr(own, name).tobytes() == np.concatenate([getattr(one, name) for one in each]).tobytes()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", ["instance", "group", "layer (image)", "layer (last)", "layer (channels first)", "rms"])
def test_bits_do_not_depend_on_the_batch(norm, layout):
    x = LAYOUTS[layout](images(shape=(5, 8, 30, 12)))
    call, _ = CALLS[norm]
    whole = call(x)
    for i in range(5):
        assert np.array_equal(call(x[i : i + 1]), whole[i : i + 1])
    assert np.array_equal(call(x[::-2]), whole[::-2])


@pytest.mark.parametrize("shape", [(3, 70, 40, 30), (2, 80, 130, 130)])
def test_bits_do_not_depend_on_neighbouring_channels(shape):
    """Channels-last sets share registers with their neighbours; alone, or in another place, they give the same bits."""
    x = images(shape=shape)
    last = LAYOUTS["channels-last"](x)
    whole = nk.instance_norm(last)
    for channels in (slice(3, 4), slice(1, None, 7), slice(None, None, -1), slice(60, None)):
        assert np.array_equal(nk.instance_norm(last[:, channels]), whole[:, channels])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("sets", [1, 15, 16, 17, 40, 300])
@pytest.mark.parametrize("size", [7, 96, 20_000])
def test_sets_side_by_side_have_the_numbers_of_each_alone(size, sets, dtype):
    """Their numbers are computed a vector of sets at a time; some are constant, hold NaN, or wait for float64."""
    rng, places = np.random.default_rng(size), np.arange(size)
    x = rng.normal(3, 1, (2, size, sets))
    kinds = [lambda s: 5, lambda s: np.where(places == 3, np.nan, s), lambda s: np.where(places < 5, 1e4, s)]
    if dtype != "float16":
        kinds += [lambda s: s * 1e-21, lambda s: s * 1e-25, lambda s: s * 1e-30, lambda s: s * 1e25, lambda s: 0 * s]
    for k in np.flatnonzero(rng.random(2 * sets) < 0.3):
        x[k % 2, :, k // 2] = kinds[rng.integers(len(kinds))](x[k % 2, :, k // 2])
    x = x.astype(dtype)
    y, own = nk.normalize(x, 1, eps=0, return_moments=True)
    inside = x.copy()
    assert np.array_equal(y, nk.normalize(inside, 1, eps=0, out=inside), equal_nan=True)
    for i, k in itertools.product(range(2), range(0, sets, 1 if sets < 20 else 7)):
        set_ = (slice(i, i + 1), slice(None), slice(k, k + 1))
        one, moments = nk.normalize(x[set_], 1, eps=0, return_moments=True)
        assert np.array_equal(y[set_], one, equal_nan=True)
        for name in ("mean", "var"):
            assert np.array_equal(getattr(own, name)[set_], getattr(moments, name), equal_nan=True)


@pytest.mark.parametrize("layout", ["NCHW", "channels-last", "crop"])
@pytest.mark.parametrize("norm", list(CALLS))
def test_bits_do_not_depend_on_threads_or_runs(norm, layout, monkeypatch):
    """Serial and parallel kernels, fused or in chunks, again and again, into fresh or given memory."""
    import numba

    x = LAYOUTS[layout](images(shape=(3, 8, 150, 140)))
    call, _ = CALLS[norm]
    monkeypatch.setattr(threads, "PARALLEL_ELEMENTS", 1 << 62)
    serial = call(x)
    monkeypatch.setattr(_recall, "_ready", {})
    monkeypatch.setattr(threads, "PARALLEL_ELEMENTS", 0)
    assert threads.may_run_parallel(), "this test needs two threads and OpenMP"
    before = numba.get_num_threads()
    for _ in range(3):
        assert np.array_equal(call(x), serial)
    numba.set_num_threads(1)
    try:
        assert np.array_equal(call(x), serial)
    finally:
        numba.set_num_threads(before)
    out = np.empty_like(x)
    assert call(x, out=out) is out and np.array_equal(out, serial)
    for few in (0, 1 << 62):
        monkeypatch.setattr(_recall, "_ready", {})
        monkeypatch.setattr(nk._engine._cpu.plan, "_FUSED_TILES", few)
        monkeypatch.setattr(nk._engine._cpu.plan, "_FUSED_TILES_PER_THREAD", 1 << 62)
        monkeypatch.setattr(nk._engine._cpu.plan, "_FUSED_ELEMENTS", 1)
        assert np.array_equal(call(x), serial)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("size", [1, 2, 7, 8, 31, 64, 128, 129, 300, 2047, 2048])
def test_short_sets_have_the_bits_of_any_others(size, dtype, monkeypatch):
    """Their own kernels, and those for sets of many runs and blocks."""
    x = np.random.default_rng(size).standard_normal((41, size)).astype(dtype) + np.asarray(7, dtype)
    x[3], x[4], x[5, 0], x[6, -1] = 0, 5, np.nan, 60000
    weight, bias = np.random.default_rng(0).standard_normal((2, size))
    of_rows, dy = np.random.default_rng(1).standard_normal(41), np.random.default_rng(2).standard_normal(x.shape).astype(dtype)

    def gradients(norm, x, dy, *affine):
        return [part for part in nk.vjp(norm, x, *affine)[1](dy) if part is not None]

    def values():
        monkeypatch.setattr(_recall, "_ready", {})
        results = [nk.layer_norm(x, eps=0.0), nk.rms_norm(x, weight), nk.normalize(x, -1, return_moments=True)[1].var]
        results += [nk.layer_norm(x, weight, bias), *gradients(nk.layer_norm, x, dy), *gradients(nk.rms_norm, x, dy, weight)]
        results += [*gradients(nk.layer_norm, x, dy, weight, bias), *gradients(nk.layer_norm, x, dy, weight[:1].reshape(()))]
        return [*results, *gradients(nk.instance_norm, x[None], dy[None], of_rows, of_rows)]

    expected = values()
    monkeypatch.setattr(arrangement, "is_short", lambda view: False)
    nk._engine._cpu.plan._plan.cache_clear()
    try:
        for one, other in zip(values(), expected, strict=True):
            assert one.tobytes() == other.tobytes()
    finally:
        nk._engine._cpu.plan._plan.cache_clear()


DIGEST = """
import hashlib, numba, numpy as np, normkit as nk
found = hashlib.sha256()
for shape in ((6, 8, 60, 70), (2, 4, 300, 210), (40, 96, 17, 5)):
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, *shape)).astype(np.float32)
    w, b = rng.standard_normal((2, shape[1])).astype(np.float32)
    for order in ((0, 1, 2, 3), (0, 2, 3, 1)):
        lie = lambda a: np.ascontiguousarray(a.transpose(order)).transpose(np.argsort(order))
        for norm, args, more in ((nk.instance_norm, (), {}), (nk.group_norm, (4,), {}), (nk.batch_norm, (), {}),
                                 (nk.layer_norm, (), {"axis": 1}), (nk.layer_norm, (), {}), (nk.normalize, ((1, 2, 3),), {})):
            own = (w, b) if norm is not nk.normalize else (w[:, None, None], b[:, None, None])
            if norm is nk.layer_norm and not more:  # a weight along the sets, summed over them in float32
                own = tuple(rng.standard_normal((2, shape[3])).astype(np.float32))
            for _ in range(2):
                y, pullback = nk.vjp(norm, lie(x), *args, *own, **more)
                for part in (y, *pullback(lie(dy))):
                    found.update(np.ascontiguousarray(part).tobytes())
print(numba.get_num_threads(), found.hexdigest())
"""


def test_bits_do_not_depend_on_the_number_of_threads():
    """Values and gradients of x, weight and bias, on one thread, two, three and eight."""
    told = [run_code(DIGEST, NUMBA_NUM_THREADS=str(n)).split() for n in (1, 2, 3, 8)]
    assert [int(n) for n, _ in told] == [1, 2, 3, 8] and len({digest for _, digest in told}) == 1


PLACES = {"far": {"_FAR_BYTES": 0}, "past": {"_STREAM_BYTES": 0, "_STREAM_RUN": 1}}
NORMS = {
    "instance": (nk.instance_norm, (), {}),
    "group": (nk.group_norm, (4,), {}),
    "layer (image)": (nk.layer_norm, (), {"axis": (1, 2, 3)}),
    "layer (last)": (nk.layer_norm, (), {}),
    "layer (channels first)": (nk.layer_norm, (), {"axis": 1}),
    "batch": (nk.batch_norm, (), {}),
}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("layout", ["NCHW", "channels-last"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("channels", "place"), [(8, "past"), (20, "past"), (20, "far")])
def test_where_results_lie_changes_nothing(channels, place, norm, layout, dtype, monkeypatch):
    """Those of large arrays are asked for ahead, or go past the caches, from any alignment on: here small ones do."""
    x = LAYOUTS[layout](images(shape=(2, channels, 37, 41), dtype=dtype))
    call, args, options = NORMS[norm]
    y, pullback = nk.vjp(call, x, *args, **options)
    dx = pullback(x).x
    monkeypatch.setattr(_recall, "_ready", {})
    for name, value in PLACES[place].items():
        monkeypatch.setattr(schedule, name, value)
    for forget in (schedule.pack, nk._engine._cpu.plan._plan):
        forget.cache_clear()
    try:
        memory = np.full(x.size + 70, 7, dtype)
        order = np.argsort([-s for s in x.strides])
        for start in (0, 1, 13, 64):
            memory[:] = 7
            out = memory[start : start + x.size].reshape([x.shape[a] for a in order]).transpose(np.argsort(order))
            assert np.array_equal(call(x, *args, out=out, **options), y)
            out[...] = x
            assert np.array_equal(call(out, *args, out=out, **options), y)  # in place: no element is written twice
            assert np.all(memory[:start] == 7) and np.all(memory[start + x.size :] == 7)
        assert np.array_equal(nk.vjp(call, x, *args, **options)[1](x).x, dx)
    finally:
        for forget in (schedule.pack, nk._engine._cpu.plan._plan):
            forget.cache_clear()


# ------------------------------------------------------------------------------------------- 3. NaN and Inf stay in their set
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", ["instance", "group", "layer (last)", "layer (channels first)"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_nan_and_inf_stay_in_their_set(norm, layout, bad, dtype):
    clean = images(dtype=dtype)
    dirty = clean.copy()
    dirty[1, 2, 3, 1] = bad
    call, oracle = CALLS[norm]
    y, expected = call(LAYOUTS[layout](dirty)), call(LAYOUTS[layout](clean))
    with np.errstate(invalid="ignore"):
        touched = np.isnan(oracle(dirty))
    assert touched.any() and not touched.all()
    assert np.isnan(y[touched]).all()
    assert np.array_equal(y[~touched], expected[~touched])


# ------------------------------------------------------------------------------------------ 4. never aborts the host process
def run_code(code, **environment):
    """A program in an interpreter of its own, warnings as errors."""
    return run_python("-W", "error", "-c", textwrap.dedent(code), **environment)


CHECK = """
import numpy as np, normkit as nk
x = np.random.default_rng(0).standard_normal((8, 4, 200, 100)).astype(np.float32)
def check():
    y = nk.instance_norm(x)
    assert abs(y - (x - x.mean((2, 3), keepdims=True)) / x.std((2, 3), keepdims=True)).max() < 1e-3
"""


LAYERS = ["default", "omp", "workqueue", "tbb"]


def on_layer(name):
    """The environment of a process on this threading layer."""
    library = pathlib.Path(sys.prefix) / "lib"
    if name == "tbb" and not any(library.glob("libtbb.so*")):
        pytest.skip("the package tbb is not installed, or not built for this system")
    found = os.pathsep.join(filter(None, (str(library), os.environ.get("LD_LIBRARY_PATH"))))
    return {"NUMBA_THREADING_LAYER": name, "NUMBA_NUM_THREADS": "2", **({"LD_LIBRARY_PATH": found} if name == "tbb" else {})}


@pytest.mark.parametrize("layer", LAYERS)
def test_many_threads_at_once(layer):
    run_code(
        CHECK
        + """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(16) as pool:
    for done in [pool.submit(check) for _ in range(64)]:
        done.result()

import numba
assert numba.threading_layer() == {layer!r} or {layer!r} == "default"
""".replace("{layer!r}", repr(layer)),
        **on_layer(layer),
    )


@pytest.mark.parametrize("layer", LAYERS[1:])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_child_processes(method, layer):
    """After a parallel call in the parent, the child calls again, at a size that would go parallel."""
    run_code(
        CHECK
        + f"""
import multiprocessing, warnings
check()
warnings.simplefilter("ignore", DeprecationWarning)       # fork with threads: the very thing under test
if {method!r} == "fork":
    child = multiprocessing.get_context("fork").Process(target=check)
else:
    child = multiprocessing.get_context({method!r}).Process(target=exec, args=({CHECK!r} + "check()", {{}}))
child.start(); child.join(120)
assert child.exitcode == 0, child.exitcode
check()
""",
        **on_layer(layer),
    )


@pytest.mark.parametrize("imported", ["before", "after"])
def test_forked_from_a_callers_parallel_program(imported):
    """The parent's own program started OpenMP, normkit is first used in the forked child."""
    run_code(
        ("import normkit\n" if imported == "before" else "")
        + f"""
import multiprocessing, warnings, numba, numpy as np
@numba.njit(parallel=True)
def program(a):
    for i in numba.prange(a.size):
        a[i] = i
program(np.zeros(100_000))
warnings.simplefilter("ignore", DeprecationWarning)
child = multiprocessing.get_context("fork").Process(target=exec, args=({CHECK!r} + "check()", {{}}))
child.start(); child.join(120)
assert child.exitcode == 0, child.exitcode
""",
        NUMBA_THREADING_LAYER="omp",
        NUMBA_NUM_THREADS="2",
    )


def test_inside_a_callers_parallel_program():
    """Called back from a user's own prange, where a second parallel launch would be nested."""
    run_code(
        CHECK
        + """
import numba
@numba.njit(parallel=True)
def program(n):
    done = np.zeros(n)
    for i in numba.prange(n):
        with numba.objmode():
            check()
        done[i] = 1
    return done.sum()
assert program(6) == 6
""",
        NUMBA_NUM_THREADS="2",
    )


def test_no_writable_cache_folder(tmp_path):
    """No folder to cache in: one warning that names the remedy, and the right result."""
    import pathlib
    import shutil

    home = pathlib.Path(nk.__file__).parent
    shutil.copytree(home, tmp_path / "normkit", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "normkit" / "_cpu" / "__pycache__").write_text("a file where the folder should be")
    (tmp_path / "not a folder").write_text("")
    code = f"""
    import sys, warnings
    sys.path.insert(0, {str(tmp_path)!r})
    import numpy as np, normkit as nk
    assert nk.__file__.startswith({str(tmp_path)!r})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y = nk.normalize(np.arange(8.0), 0)
    assert abs(y.mean()) < 1e-15
    assert sum("NUMBA_CACHE_DIR" in str(w.message) for w in caught) == 1, caught
    """
    nowhere = str(tmp_path / "not a folder" / "below")
    run_code(code, NUMBA_CACHE_DIR="", HOME=nowhere, XDG_CACHE_HOME=nowhere, PYTHONPATH=str(tmp_path))


def test_an_upgrade_over_an_old_cache(tmp_path):
    """Another version of a file whose code kernels inline: the old kernels in the cache are not used."""
    import pathlib
    import shutil

    shutil.copytree(pathlib.Path(nk.__file__).parent, tmp_path / "normkit", ignore=shutil.ignore_patterns("__pycache__"))
    formulas = tmp_path / "normkit" / "_formulas.py"
    code = f"""
    import sys
    sys.path.insert(0, {str(tmp_path)!r})
    import numpy as np, normkit as nk
    assert nk.__file__.startswith({str(tmp_path)!r})
    y = nk.normalize(np.arange(8.0), 0, None, np.ones(1))
    print(round(float(y.mean())))
    """
    results = []
    for old, new in (("", ""), ("fused(builder, standard, *numbers[3:])", "builder.fmul(standard, numbers[3])")):
        assert old in formulas.read_text()
        formulas.write_text(formulas.read_text().replace(old, new) if old else formulas.read_text())
        results.append(run_code(code, NUMBA_CACHE_DIR=str(tmp_path / "cache"), PYTHONPATH=str(tmp_path)).strip())
    assert results == ["1", "0"]


# ------------------------------------------------------------------------------------------------------- 5. int64 everywhere
def test_more_elements_than_int32_holds():
    """2**31 + 24 elements by an axis of stride 0; the strides overflow 32 bits as well."""
    row = np.random.default_rng(0).integers(0, 255, 2**15 + 8, dtype=np.uint8)
    x = np.broadcast_to(row, (2**16, row.size))
    assert x.size > 2**31
    m = nk.moments(x, (0, 1))
    assert m.count == x.size
    assert np.isclose(m.mean.item(), row.mean(), rtol=1e-13) and np.isclose(m.var.item(), row.var(), rtol=1e-12)


def test_float16_in_place_beyond_int32():
    """2**31 elements and more, in the memory of x alone."""
    if os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 12 << 30:
        pytest.skip("this machine has no 8 GB to spare")
    run_code(
        """
import resource, numpy as np, normkit as nk
x = np.empty((2**11 + 1, 2**20), np.float16)
row = (np.random.default_rng(0).standard_normal(2**20) * 3 + 7).astype(np.float16)
x[:] = row
x[-1] = -row
expected = nk.normalize(row[None], 1)[0]
assert x.size > 2**31 and nk.normalize(x, 1, out=x) is x
for k in (0, 1023, 1024, 2047):
    assert np.array_equal(x[k], expected), k
assert np.array_equal(x[-1], -expected)
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 8 * 2**20
"""
    )


def test_strides_beyond_int32():
    """Offsets beyond 2**31 elements, in memory that is mostly never touched."""
    memory = np.zeros(2**31 + 2**20, np.uint8)
    x = memory[: 2**31 + 2**19].reshape(2, -1)[:, :: 2**19 + 1]
    x[1, -1] = 200
    m = nk.moments(x, 1)
    assert m.mean[0].item() == 0 and np.isclose(m.mean[1].item(), 200 / x.shape[1])


@given(st.sampled_from((65_535, 65_536, 131_071)))
def test_many_sets(n):
    x = np.arange(3 * n, dtype=np.float32).reshape(n, 3)
    y = nk.normalize(x, 1, eps=0)
    assert np.allclose(y, [-(1.5**0.5), 0, 1.5**0.5], atol=1e-6)
