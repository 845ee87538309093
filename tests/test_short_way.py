"""The short way: a call of a form that was met before passes no checks again, and gives the same bits."""

import functools
import gc
import weakref

import numpy as np
import pytest

import normkit as nk
from normkit import _pullbacks, _recall
from normkit._cpu import threads
from tests.test_properties import LAYOUTS, images


@pytest.fixture
def forms(monkeypatch):
    """What is remembered; for this test, nothing."""
    monkeypatch.setattr(_recall, "_ready", {})
    return _recall._ready


def same(one, other):
    """Whether two answers have the same bits, dtypes and strides."""
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    if one is None or isinstance(one, nk.Moments):
        return other is None if one is None else same([one.mean, one.var], [other.mean, other.var])
    return one.tobytes() == other.tobytes() and (one.dtype, one.strides) == (other.dtype, other.strides)


ALIKE = {
    "instance": lambda x, **k: nk.instance_norm(x, **k),
    "weights": lambda x, **k: nk.instance_norm(x, np.arange(8.0), np.ones(8, np.float32), **k),
    "group by name": lambda x, **k: nk.group_norm(x, num_groups=4, bias=np.arange(8), **k),
    "pattern": lambda x, **k: nk.normalize(x, "n (g [c]) [...]", g=2, **k),
    "result of another dtype": lambda x, **k: nk.batch_norm(x, dtype=np.float64) if not k else nk.batch_norm(x, **k),
}


@pytest.mark.parametrize("elements", [1 << 13, 1 << 16], ids=["one kernel", "two"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_few_long_sets_take_the_short_way(dtype, elements, monkeypatch, long_way):
    """Whether statistics and result come from one kernel or from two; a set that waits for float64 and a constant are there."""
    x, other = (np.random.default_rng(seed).standard_normal((3, elements)).astype(dtype) + 7 for seed in (1, 2))
    other[0], other[1], other[2, 5] = 5, np.float32(1e-16) * other[1], np.nan
    weight = np.arange(1.0, 4.0)[:, None]
    norm = functools.partial(nk.normalize, sets=1, weight=weight, eps=0, return_moments=True)
    with long_way(), monkeypatch.context() as serial:
        serial.setattr(threads, "PARALLEL_ELEMENTS", 1 << 62)
        y, m = norm(other)
    monkeypatch.setattr(_recall, "_ready", {})
    norm(x)
    (form,) = _recall._ready
    used = []
    ready = _recall._ready[form]
    _recall._ready[form] = lambda *arguments: (used.append(form), ready(*arguments))[1]
    z, k = norm(other)
    assert used and np.array_equal(y, z, equal_nan=True) and np.all(z[0] == 0) and abs(z[1]).max() > 1
    assert np.array_equal(m.mean, k.mean, equal_nan=True) and np.array_equal(m.var, k.var, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("call", ALIKE)
def test_the_short_way_gives_the_same(call, layout, monkeypatch, long_way):
    """For other values of a form that was met before, the bits of the long way."""
    first, second = (LAYOUTS[layout](images(seed=seed)) for seed in (1, 2))
    norm = ALIKE[call]
    with long_way():
        long = [norm(x) for x in (second,)]
    monkeypatch.setattr(_recall, "_ready", {})
    norm(first)
    short = norm(second)
    assert np.array_equal(short, long[0]) and short.dtype == long[0].dtype and short.strides == long[0].strides
    out = np.empty_like(second)
    assert norm(second, out=out) is out and norm(second, out=out) is out
    y, m = norm(second, return_moments=True)
    again, n = norm(second, return_moments=True)
    assert np.array_equal(y, again) and np.array_equal(m.var, n.var) and np.array_equal(m.mean, n.mean)


def test_the_short_way_is_taken_and_only_where_it_may(monkeypatch):
    monkeypatch.setattr(_recall, "_ready", {})
    x = np.random.default_rng(0).random((2, 3, 4), np.float32)
    for _ in range(2):
        nk.instance_norm(x)
    assert len(_recall._ready) == 1
    nk.normalize(x.tolist(), 2)
    nk.instance_norm(x.view(np.recarray))
    nk.adaptive_instance_norm(x, x)
    assert len(_recall._ready) == 1
    for _ in range(2):
        nk.normalize(x, 2, moments=nk.moments(x, 2))
    assert len(_recall._ready) == 2


GIVEN = {
    "batch": (nk.batch_norm, (), {}, (0, 2, 3)),
    "weights": (nk.batch_norm, (np.arange(8.0), np.ones(8, np.float32)), {}, (0, 2, 3)),
    "without a mean": (nk.normalize, ((0, 2, 3),), {"center": False}, (0, 2, 3)),
    "correction": (nk.normalize, ((2, 3),), {"correction": 1}, (2, 3)),
    "of fewer sets": (nk.instance_norm, (), {}, (0, 2, 3)),
    "of groups": (nk.normalize, ("n (g [c]) [...]",), {"g": 2}, "n (g [c]) [...]"),
}


@pytest.mark.parametrize("dtype", ["float16", "float32", "int16"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("call", GIVEN)
def test_given_moments_take_the_short_way(call, layout, dtype, forms, long_way):
    """For other values of a form that was met before, the bits of the long way; into a result of its own or another order."""
    norm, args, options, sets = GIVEN[call]
    first, second = (LAYOUTS[layout](images(seed=seed, dtype=dtype)) for seed in (1, 2))
    pattern = {"g": 2} if isinstance(sets, str) else {}
    mine, other = (nk.moments(x.astype(float) * 1.5, sets, **pattern) for x in (first, second))
    mine = nk.Moments(mine.count, np.where(mine.mean > np.median(mine.mean), 1e35, mine.mean), mine.var)  # waits for float64
    into = np.zeros(np.ascontiguousarray(second).shape, norm(first, *args, **options).dtype)
    with long_way():
        expected = [norm(second, *args, moments=each, **options) for each in (other, mine)]
    forms.clear()
    for _ in range(2):
        norm(first, *args, moments=mine, **options)
        for given, like in zip((other, mine), expected, strict=True):
            assert same(norm(second, *args, moments=given, **options), like)
            y, used = norm(second, *args, moments=given, return_moments=True, **options)
            assert same(y, like) and used is given
            assert norm(second, *args, moments=given, out=into, **options) is into
            assert np.array_equal(into, like, equal_nan=True)
    assert len(forms) == 3


def test_given_moments_are_checked_each_time(forms):
    x = images()
    moments = nk.moments(x, (2, 3))
    norm = functools.partial(nk.normalize, x, (2, 3), correction=1)
    for _ in range(2):
        norm(moments=moments)
        with pytest.raises(ValueError, match="correction=1 must be below the count of moments, which is 1"):
            norm(moments=nk.Moments(1.0, moments.mean, moments.var))
        with pytest.raises(ValueError, match="moments have mean of shape"):
            norm(moments=nk.Moments(9.0, np.zeros((3, 1, 1)), np.ones((3, 1, 1))))
        with pytest.raises(ValueError, match=r"moments have var of shape \(5, 1, 1\)"):
            norm(moments=nk.Moments(np.full((5, 1, 1), 9.0), 0.0, 1.0))  # counts go into the corrected variance
        with pytest.raises(TypeError, match="Moments"):
            norm(moments=(moments.mean, moments.var))
        with pytest.raises(ValueError, match="overlap"):
            norm(moments=moments, out=x[:, ::-1])
    assert len(forms) == 1  # of moments of the right shape


@pytest.mark.parametrize("step", [1, -1])
@pytest.mark.parametrize("given", [False, True])
def test_neither_results_in_another_order_nor_given_moments_are_kept(given, step, forms):
    """Nor x with steps, which is put in order in the result first."""
    x = np.random.default_rng(0).random((8, 32, 16, 16), np.float32)[..., ::step]
    out = np.zeros((8, 16, 16, 32), np.float32)
    moments = nk.moments(x, (2, 3))
    options = {"moments": moments} if given else {}
    nk.instance_norm(x, out=np.moveaxis(out, -1, 1), **options)
    y = nk.instance_norm(x, **options)
    dropped = [weakref.ref(array) for array in (x if step == 1 else x.base, out, y, moments.mean)]
    assert len(forms) == 2
    del x, out, y, moments, options
    gc.collect()
    assert all(ref() is None for ref in dropped)


def test_the_short_way_checks_what_depends_on_values():
    memory = np.random.default_rng(0).random((2, 40), np.float32)
    x, apart, beside = memory[:, :10], memory[:, 20:30], memory[:, 5:15]
    for _ in range(2):
        assert nk.normalize(x, 1, out=apart) is apart
    kept = memory.copy()
    with pytest.raises(ValueError, match="out overlaps x"):
        nk.normalize(x, 1, out=beside)
    apart.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        nk.normalize(x, 1, out=apart)
    assert np.array_equal(memory, kept)


@pytest.mark.parametrize(("first", "second"), [(2, 2.0), (1, True)])
def test_equal_is_not_the_same_argument(first, second):
    """2 and 2.0 are equal, and hash alike; a number of groups must be an int."""
    x = np.random.default_rng(0).random((2, 4, 6), np.float32)
    nk.group_norm(x, first)
    with pytest.raises(TypeError):
        nk.group_norm(x, second)


ROUNDED = np.arange(8, dtype=np.float16)
DIFFERENTIATED = {
    "instance": (nk.instance_norm, (), {}),
    "weights": (nk.instance_norm, (np.arange(8.0), np.ones(8, np.float32)), {}),
    "group, weights": (nk.group_norm, (4, ROUNDED), {"bias": ROUNDED}),
    "layer, weights": (nk.layer_norm, (ROUNDED,), {"axis": 1, "bias": ROUNDED}),
    "bias": (nk.batch_norm, (), {"bias": ROUNDED, "eps": 0}),
    "pattern": (nk.normalize, ("n (g [c]) [...]",), {"g": 2, "weight": ROUNDED[:, None, None], "correction": 1}),
    "moments": (nk.rms_norm, (), {"axis": (1, 2, 3), "return_moments": True}),
    "another dtype": (nk.layer_norm, (), {"dtype": np.float64}),
}


@pytest.mark.parametrize("dtype", ["float16", "float32", "int16"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("call", DIFFERENTIATED)
def test_gradients_by_the_short_way(call, layout, dtype, forms, long_way, monkeypatch):
    """With a set that waits for float64 among them, whose sums are not collected, and gradients of several forms."""
    first, second = (LAYOUTS[layout](images(seed=seed, dtype=dtype)) for seed in (1, 2))
    if dtype == "float32":
        second[1, 2] = 1e-25 * second[1, 2]
    norm, args, options = DIFFERENTIATED[call]
    dy = np.random.default_rng(3).standard_normal(first.shape)
    narrow = LAYOUTS[layout](dy.astype(np.float32))
    steps = [narrow, dy, dy.astype(np.float16)[::-1], 2 * narrow]

    def answer(x, factor):
        def scaled(given):
            return given * given.dtype.type(factor) if isinstance(given, np.ndarray) else given

        own = {name: scaled(given) for name, given in options.items()}
        value, pullback = nk.vjp(norm, x, *map(scaled, args), **own)
        return [value, *(pullback(step) for step in steps)]

    with long_way():
        expected = answer(second, 3)
    answer(first, 1)
    (form,) = forms
    taken, ready = [], forms[form]
    forms[form] = lambda *given: taken.append(form) or ready(*given)
    assert same(answer(second, 3), expected)
    monkeypatch.setattr(_pullbacks, "pull_for", None)  # now the forms of dy are known too
    assert same(answer(second, 3), expected)
    assert len(taken) == 2


def test_the_short_way_of_gradients_checks_dy(forms):
    x = images()
    for _ in range(3):
        pullback = nk.vjp(nk.instance_norm, x)[1]
        pullback(x)
    with pytest.raises(ValueError, match=r"dy has shape \(1, 8"):
        pullback(x[:1])
    with pytest.raises(TypeError, match="dy has dtype int64"):
        pullback(x.astype(np.int64))
    with pytest.raises(ValueError, match="dy has shape"):
        pullback(0.5)
    odd = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    assert not odd.flags.aligned and same(pullback(odd), pullback(x)) and same(pullback(odd), pullback(x))


def test_gradients_of_given_moments_or_memory_take_the_long_way(forms):
    x = images()
    out = np.empty_like(x)
    for _ in range(2):
        nk.vjp(nk.instance_norm, x, out=out)
        nk.vjp(nk.instance_norm, x, moments=nk.moments(x, (2, 3)))
        nk.vjp(nk.adaptive_instance_norm, x, x)
        with pytest.raises(ValueError, match="out overlaps x"):
            nk.vjp(nk.instance_norm, x, out=x)
    assert not forms


def test_what_is_remembered_keeps_no_array(forms):
    x, weight, dy = images(), np.ones(8), images()
    gradients = nk.vjp(nk.instance_norm, x, weight)[1](dy)
    dropped = [weakref.ref(array) for array in (x, weight, dy, *gradients[:2])]
    assert len(forms) == 1
    del x, weight, dy, gradients
    gc.collect()
    assert all(ref() is None for ref in dropped)
