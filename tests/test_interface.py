"""What goes in and what comes out: dtypes, out, moments, foreign arrays, errors, the public names."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.exceptions import AxisError

import normkit as nk
from tests import reference
from tests.processes import run_python
from tests.test_properties import CALLS, LAYOUTS, as_dtype, images

FLOATS = ["float16", "bfloat16", "float32", "float64"]


def named(dtype):
    return as_dtype(np.zeros(1), dtype).dtype


# ---------------------------------------------------------------------------------------------------------------- dtypes
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("wide", ["float32", "float64"])
def test_every_bit_pattern_in_and_out(half, wide):
    """All 65536 halves are read exactly (by moments of one element) and written back exactly."""
    x = np.arange(65536, dtype=np.uint16).view(named(half)).reshape(-1, 1)
    mean = nk.moments(x, 1).mean
    with np.errstate(invalid="ignore"):  # signalling NaNs among the patterns
        exact = x.astype(np.float64)
        given = exact.astype(wide)
    finite = np.isfinite(exact)
    assert np.array_equal(mean[finite], exact[finite]) and np.all(np.isnan(mean[np.isnan(exact)]))
    one = nk.Moments(1, 0.0, 1.0)
    back = nk.normalize(given, 1, eps=0, moments=one, dtype=named(half), center=False)
    with np.errstate(invalid="ignore"):
        back = back.astype(wide)
    assert np.array_equal(back, exact, equal_nan=True)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@given(seed=st.integers(0, 2**32 - 1))
def test_float64_rounds_to_half_once(half, seed):
    """Ties of the second rounding, and values a hair beside them, go where one direct rounding sends them."""
    rng = np.random.default_rng(seed)
    bits = 10 if half == "float16" else 7
    ties = np.ldexp(rng.integers(2**bits, 2 ** (bits + 1), 64) + 0.5, rng.integers(-30 if half == "float16" else -100, 5, 64))
    x = ties * (1 + rng.choice([-1, 0, 1], 64) * 2.0 ** -rng.integers(20, 52, 64)) * rng.choice([-1, 1], 64)
    y = nk.normalize(x, 0, eps=0, moments=nk.Moments(1, 0.0, 1.0), dtype=named(half), center=False).astype(np.float64)
    lower, step = np.abs(y), np.abs(y - x)
    for candidate in (
        np.nextafter(np.abs(y).astype(named(half)), named(half).type(0)),
        np.nextafter(np.abs(y).astype(named(half)), named(half).type(np.inf)),
    ):
        other = np.abs(candidate.astype(np.float64) - np.abs(x))
        assert np.all(step <= other)
        tied = step == other
        assert np.all(lower[tied].astype(named(half)).view(np.uint16) % 2 == 0), "ties go to even"


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("source", ["uint8", "bool", "int64", "float16", "float32", "float64"])
def test_dtype_chooses_the_result(source, dtype):
    x = as_dtype(images(), source)
    y = nk.instance_norm(x, dtype=named(dtype))
    assert y.dtype == named(dtype)
    reference.assert_close(y, reference.normalize(x, (2, 3)))
    out = np.empty(x.shape, named(dtype))
    assert nk.instance_norm(x, out=out) is out and np.array_equal(out, y)


@pytest.mark.parametrize("affine", ["float16", "bfloat16", "float32", "float64", "uint8", "bool", "int64"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_affine_of_any_dtype_beside_any_x(dtype, affine):
    x = as_dtype(images(), dtype)
    weight, bias = as_dtype(np.linspace(6, 9, 8), affine), as_dtype(np.linspace(8, 6, 8), affine)
    y = nk.instance_norm(x, weight, bias)
    assert y.dtype == x.dtype
    lie = (slice(None), None, None)
    reference.assert_close(y, reference.normalize(x, (2, 3), weight[lie], bias[lie]), scale=2 * abs(float(weight.max())))


@pytest.mark.parametrize("affine", ["float16", "bfloat16", "float64", "int16"])
@pytest.mark.parametrize("layout", ["NCHW", "channels-last"])
def test_large_affine_is_read_in_its_own_dtype(affine, layout):
    """SPADE: a weight and a bias per pixel, too large to convert."""
    x = LAYOUTS[layout](images(shape=(2, 8, 70, 80)))
    weight = as_dtype(np.random.default_rng(0).uniform(0, 2, x.shape), affine)
    y = nk.instance_norm(x[:, :, ::-1])
    y = nk.normalize(x, (2, 3), weight, LAYOUTS[layout](weight))
    reference.assert_close(y, reference.normalize(x, (2, 3), weight, weight), scale=2 * float(abs(weight).max()))


# ------------------------------------------------------------------------------------------------------------------- out
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", CALLS)
def test_in_place(norm, layout):
    x = LAYOUTS[layout](images(shape=(3, 8, 70, 65)))
    call, _ = CALLS[norm]
    expected = call(x)
    assert call(x, out=x) is x and np.array_equal(x, expected)


@pytest.mark.parametrize("norm", CALLS)
def test_out_in_another_layout(norm):
    x = images()
    call, _ = CALLS[norm]
    for out in (np.zeros((3, 9, 5, 8), np.float32).transpose(0, 3, 1, 2), np.zeros((6, 8, 9, 10), np.float32)[::-2, :, :, ::2]):
        assert call(x, out=out) is out
        assert np.array_equal(out, call(x))


def test_out_beside_x_in_one_buffer():
    memory = np.random.default_rng(0).standard_normal((4, 10))
    x, out = memory[:, ::2], memory[:, 1::2]
    expected = nk.normalize(x, 1)
    nk.normalize(x, 1, out=out)
    assert np.array_equal(out, expected)


def bad_outs():
    x = images()
    readonly = np.zeros_like(x)
    readonly.flags.writeable = False
    memory = np.zeros(x.size + 10, np.float32)
    memory[: x.size] = x.ravel()
    inside = memory[: x.size].reshape(x.shape)
    yield x, np.zeros((3, 8, 9, 4), np.float32), ValueError, "out has shape (3, 8, 9, 4), expected the shape of x, (3, 8, 9, 5)"
    yield x, readonly, ValueError, "out is read-only"
    yield x, np.zeros(x.shape, np.int32), TypeError, "out has dtype int32"
    yield x, np.zeros(x.shape, complex), TypeError, "out has dtype complex128"
    yield x, np.zeros(x.shape, ">f4"), TypeError, "out has dtype >f4"
    yield x, [0.0], TypeError, "out must be an array, not list"
    yield (
        x,
        np.lib.stride_tricks.as_strided(np.zeros(8 * 9 * 5, np.float32), x.shape, (0, 180, 20, 4)),
        ValueError,
        "share memory",
    )
    yield inside, memory[3 : x.size + 3].reshape(x.shape), ValueError, "out overlaps x"
    yield inside, inside[::-1], ValueError, "out overlaps x"


@pytest.mark.parametrize("case", list(bad_outs()), ids=lambda case: case[3][:30])
def test_wrong_out_is_refused_before_anything_is_written(case):
    x, out, error, says = case
    before, held = x.copy(), out.copy() if isinstance(out, np.ndarray) else None
    with pytest.raises(error) as caught:
        nk.instance_norm(x, out=out)
    assert says in str(caught.value)
    assert np.array_equal(x, before)
    assert held is None or np.array_equal(out, held)


def test_out_overlapping_weight_is_refused():
    x = images(shape=(1, 4, 3, 3))
    with pytest.raises(ValueError, match="out overlaps weight"):
        nk.normalize(x.copy(), (2, 3), x, out=x)
    with pytest.raises(TypeError, match="contradict"):
        nk.instance_norm(x, out=np.empty_like(x), dtype=np.float64)


# --------------------------------------------------------------------------------------------------------------- bad input
BAD_CALLS = [
    (lambda x: nk.instance_norm(x, channel_axis=4), AxisError, "channel_axis"),
    (lambda x: nk.layer_norm(x, axis=(1, -5)), AxisError, "axis -5 is out of bounds"),
    (lambda x: nk.layer_norm(x, axis=(1, -3)), ValueError, "twice"),
    (lambda x: nk.layer_norm(x, axis=()), ValueError, "reduces nothing"),
    (lambda x: nk.layer_norm(x, axis="c"), TypeError, "axis must be"),
    (lambda x: nk.instance_norm(x, np.ones(7)), ValueError, "weight has shape (7,), expected (8,) or (3, 8)"),
    (lambda x: nk.instance_norm(x, bias=np.ones((2, 8))), ValueError, "bias has shape (2, 8), expected (8,) or (3, 8)"),
    (lambda x: nk.layer_norm(x, np.ones(4)), ValueError, "weight has shape (4,), expected (5,)"),
    (lambda x: nk.layer_norm(x, np.ones((5, 8)), axis=(3, 1)), ValueError, "expected (8, 5)"),
    (lambda x: nk.normalize(x, 1, np.ones((4, 5, 1))), ValueError, "does not broadcast to the shape of x, (3, 8, 9, 5)"),
    (lambda x: nk.normalize(x, 1, np.ones((1, 1, 1, 1, 5))), ValueError, "does not broadcast"),
    (lambda x: nk.group_norm(x, 3), ValueError, "num_groups=3 does not divide the 8 channels"),
    (lambda x: nk.group_norm(x, 0), ValueError, "num_groups=0"),
    (lambda x: nk.group_norm(x, 2.0), TypeError, "num_groups"),
    (lambda x: nk.instance_norm(x, eps=-1e-5), ValueError, "eps must not be negative"),
    (lambda x: nk.instance_norm(x, eps=float("nan")), ValueError, "eps must be finite"),
    (lambda x: nk.instance_norm(x, eps=float("inf")), ValueError, "eps must be finite"),
    (lambda x: nk.instance_norm(x, eps="1e-5"), TypeError, "eps must be a real number"),
    (lambda x: nk.instance_norm(x, eps=None), TypeError, "eps must be a real number"),
    (lambda x: nk.instance_norm(x, eps=1j), TypeError, "eps must be a real number"),
    (lambda x: nk.normalize(x, 3, correction=5), ValueError, "correction=5 must be below the size of a set, which is 5"),
    (lambda x: nk.normalize(x, 3, correction=float("nan")), ValueError, "correction must be finite"),
    (lambda x: nk.instance_norm(x.astype(complex)), TypeError, "x has dtype complex128"),
    (lambda x: nk.instance_norm(x.astype(object)), TypeError, "x has dtype object"),
    (lambda x: nk.instance_norm(x.astype("U")), TypeError, "x has dtype <U"),
    (lambda x: nk.instance_norm(x.astype(np.longdouble)), TypeError, "x has dtype float128"),
    (lambda x: nk.instance_norm(x.astype("M8[s]")), TypeError, "x has dtype datetime64"),
    (lambda x: nk.instance_norm(x.astype(">f4")), TypeError, "newbyteorder"),
    (lambda x: nk.instance_norm(np.ma.masked_array(x, x > 7)), TypeError, "masked"),
    (lambda x: nk.instance_norm([[1.0], [2.0, 3.0]]), ValueError, "x cannot be read as an array"),
    (lambda x: nk.instance_norm(None), TypeError, "x has dtype object"),
    (lambda x: nk.instance_norm(x, weight=np.ones(8, complex)), TypeError, "weight has dtype complex128"),
    (lambda x: nk.instance_norm(x, dtype=np.int32), TypeError, "dtype=int32 cannot hold"),
    (lambda x: nk.instance_norm(x, dtype="no such"), TypeError, "is no dtype"),
    (lambda x: nk.instance_norm(x, moments=(0, 1)), TypeError, "moments must be normkit.Moments"),
    (lambda x: nk.instance_norm(x, moments=nk.Moments(4, np.zeros(8), np.ones(8))), ValueError, "expected (3, 8, 1, 1)"),
    (lambda x: nk.normalize(x, 1, moments=nk.Moments(1, 0, 1), correction=1), ValueError, "below the count"),
    (lambda x: nk.adaptive_instance_norm(x, x[:, :4]), ValueError, "style has shape (3, 4, 9, 5), expected the 8 channels"),
    (lambda x: nk.adaptive_instance_norm(x, x[:2]), ValueError, "style has a batch of 2, expected 1 or that of content, 3"),
    (lambda x: nk.adaptive_instance_norm(x, x, alpha=float("nan")), ValueError, "alpha must be finite"),
    (lambda x: nk.moments(x, ()), ValueError, "reduces nothing"),
    (lambda x: nk.layer_norm(3.0), AxisError, "without axes"),
]


@pytest.mark.parametrize(("call", "error", "says"), BAD_CALLS, ids=[says for _, _, says in BAD_CALLS])
def test_errors_teach(call, error, says):
    x = images()
    before = x.copy()
    with pytest.raises(error) as caught:
        call(x)
    assert says in str(caught.value)
    assert np.array_equal(x, before)


# ------------------------------------------------------------------------------------------------------------ edge shapes
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (0, 0, 0, 0)])
@pytest.mark.parametrize("norm", ["instance", "layer (image)", "layer (last)", "batch", "rms"])
def test_zero_size(norm, shape):
    call, _ = CALLS[norm]
    y, m = call(np.empty(shape, np.float32), return_moments=True)
    assert y.shape == shape and y.dtype == np.float32
    assert np.all(m.mean == 0) and np.all(m.var == 0) and np.isfinite(m.count).all()
    assert m.mean.ndim == 4


def test_moments_of_an_empty_set_have_count_zero():
    m = nk.moments(np.empty((2, 0)), 1)
    assert m.count == 0 and np.array_equal(m.mean, np.zeros((2, 1))) and np.array_equal(m.var, np.zeros((2, 1)))
    assert nk.adaptive_instance_norm(np.empty((0, 3, 2)), np.ones((1, 3, 2)), alpha=0.5).shape == (0, 3, 2)


def test_array_likes_and_scalars():
    assert np.allclose(nk.layer_norm([1, 2, 3.0], eps=0), [-(1.5**0.5), 0, 1.5**0.5])
    assert np.allclose(nk.instance_norm([[[1, 2], [3, 5]]], [1, 2], [0, 10], eps=0), [[[-1, 1], [8, 12]]])
    assert np.allclose(nk.normalize(np.arange(4.0), 0, 2, 1), 2 * nk.normalize(np.arange(4.0), 0) + 1)
    assert type(nk.layer_norm(np.rec.array(images()))) is np.ndarray, "a subclass comes back as a plain array"


def test_misaligned_memory_is_read():
    memory = np.zeros(8 * 30 + 1, np.uint8)
    x = memory[1:].view(np.float64).reshape(3, 10)
    x[...] = np.random.default_rng(0).standard_normal((3, 10))
    packed = np.zeros((3, 10), np.dtype([("tag", "u1"), ("value", "f4")]))
    packed["value"] = x
    assert np.array_equal(nk.layer_norm(x), nk.layer_norm(x.copy()))
    assert np.array_equal(nk.layer_norm(packed["value"]), nk.layer_norm(packed["value"].copy()))


def test_inputs_are_never_written():
    x, weight = images(), np.ones(8, np.float32)
    x.flags.writeable = weight.flags.writeable = False
    for call, _ in CALLS.values():
        call(x)
    nk.instance_norm(x, weight, weight)
    assert nk.adaptive_instance_norm(x, x).flags.writeable


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_inputs_in_pages_that_cannot_be_written(dtype, tmp_path):
    """Numba is told that all memory may be written: were it, the process would end here."""
    code = f"""
import sys, numpy as np, normkit as nk
from tests.test_properties import CALLS, LAYOUTS, images

def locked(name, array):
    np.save(f"{{sys.argv[1]}}/{{name}}.npy", array)
    pages = np.asarray(np.load(f"{{sys.argv[1]}}/{{name}}.npy", mmap_mode="r"))
    assert not pages.flags.writeable and not pages.flags.owndata
    return pages

lying = (lambda a: a, lambda a: a.transpose(0, 3, 1, 2), lambda a: a[:, :, ::2, ::2])
for shape in ((2, 8, 6, 8), (4, 8, 80, 8)):
    x, weight = locked("x", images(shape=shape).astype({dtype!r})), locked("weight", np.linspace(0.5, 2, 8, dtype={dtype!r}))
    for lie in lying:
        for call, _ in CALLS.values():
            call(lie(x))
        for norm, args in ((nk.instance_norm, ()), (nk.group_norm, (4,)), (nk.batch_norm, ())):
            nk.vjp(norm, lie(x), *args, weight, weight)[1](lie(x))
print("alive")
"""
    assert run_python("-c", code, tmp_path) == "alive\n"


def test_broadcast_moments():
    x = images()
    running = nk.batch_norm(x, return_moments=True)[1]
    per_instance = nk.instance_norm(x, moments=running)
    assert np.array_equal(per_instance, nk.batch_norm(x, moments=running))


def test_foreign_arrays_come_back_as_their_own_kind():
    xp = pytest.importorskip("array_api_strict", reason="a second library with __dlpack__")
    x = images()
    y, m = nk.instance_norm(xp.asarray(x), xp.asarray(np.ones(8, np.float32)), return_moments=True)
    assert type(y) is type(xp.asarray(x)) and np.array_equal(np.from_dlpack(y), nk.instance_norm(x))
    assert isinstance(m.mean, np.ndarray)
    out = xp.asarray(np.empty_like(x))
    assert nk.instance_norm(x, out=out) is out and np.array_equal(np.from_dlpack(out), nk.instance_norm(x))

    class Broken:
        def __dlpack__(self, **_):
            raise BufferError("no memory on this device")

        def __dlpack_device__(self):
            return (1, 0)

    with pytest.raises(TypeError, match=r"x is a .*Broken that cannot be read through __dlpack__"):
        nk.instance_norm(Broken())


# ---------------------------------------------------------------------------------------------------------------- Moments
def test_moments_are_values():
    m = nk.moments(images(), "n c [...]")
    assert pickle.loads(pickle.dumps(m)) == m != nk.Moments(m.count, m.mean + 1, m.var)
    assert m != "moments" and "24 sets of shape (3, 8, 1, 1), count 45" in repr(m)
    assert np.allclose(m.m2, m.count * m.var) and np.allclose(m.std(1), images().std((2, 3), ddof=1, keepdims=True), rtol=1e-5)
    for change in (lambda: setattr(m, "mean", 0), lambda: delattr(m, "var"), lambda: m.mean.__setitem__(0, 1)):
        with pytest.raises((AttributeError, ValueError), match=r"immutable|read-only"):
            change()
    with pytest.raises(ValueError, match="must be below every count"):
        m.std(45)
    for arguments, says in (
        ((-1, 0, 1), "count must not be negative"),
        ((1, 0, -1), "var must not"),
        ((1, [0, 1], [1, 2, 3]), "broadcast"),
    ):
        with pytest.raises(ValueError, match=says):
            nk.Moments(*arguments)
    with pytest.raises(TypeError, match="mean must be real numbers"):
        nk.Moments(1, "x", 1)


# ----------------------------------------------------------------------------------------------------------- public names
def test_public_names():
    assert nk.__all__ == sorted(set(nk.__all__)) and set(nk.__all__) <= set(dir(nk))
    assert set(nk._HOME) == set(nk.__all__)
    for name in nk.__all__:
        assert getattr(nk, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        nk.nothing


@pytest.mark.parametrize("name", nk.__all__)
def test_docstrings_are_numpydoc(name):
    from numpydoc.validate import validate

    # Not asked for: a period after each type (RT03..), examples and See Also everywhere (EX01, SA01), extended summary (ES01).
    ignored = {"EX01", "SA01", "ES01", "GL01", "SS06", "RT03", "PR01"} if name in ("Moments", "NormSet") else {"SA01", "ES01"}
    found = [(code, text) for code, text in validate(f"normkit.{name}")["errors"] if code not in ignored]
    assert not found


def test_import_is_light():
    """`import normkit` loads neither NumPy nor Numba; sets and Moments load no Numba; nothing compiles."""
    code = (
        "import sys, normkit as nk\n"
        "assert 'numba' not in sys.modules and 'numpy' not in sys.modules\n"
        "nk.NormSet('n [c]').split((2, 3)); nk.Moments(1, 0, 1)\n"
        "assert 'numba' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_the_compiled_code_of_a_norm_is_shared():
    """Norms choose sets; they have no kernels: all of them together add no signature beyond the first."""
    from normkit._cpu import kernels

    x = images()
    nk.instance_norm(x)
    before = len(kernels.forward.signatures)
    for call, _ in CALLS.values():
        call(x)
    assert len(kernels.forward.signatures) == before
