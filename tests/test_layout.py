"""The layout view: few segments, any strides, no copy."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import normkit as nk
from normkit._cpu import arrangement, geometry, schedule, threads
from normkit._layout import set_view
from tests import reference, strategies
from tests.test_properties import CALLS, LAYOUTS, images

NCHW = (8, 32, 10, 12)
PER_CHANNEL = (0, 1, 0, 0)


def strides_of(shape, order):
    memory = np.empty([shape[a] for a in order], np.int8)
    return memory.transpose(np.argsort(order)).strides


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1)], ids=["NC*", "N*C"])
@pytest.mark.parametrize("affine", [(0, 0, 0, 0), PER_CHANNEL, (32, 1, 0, 0)], ids=["none", "(C,)", "(N, C)"])
@pytest.mark.parametrize(
    ("sets", "sizes"),
    [
        ("n [c ...]", {}),
        ("n c [...]", {}),
        ("n (g [c]) [...]", {"g": 8}),
        ("[n] c [...]", {}),
        ("n [c] ...", {}),
        ("... [w]", {}),
    ],
)
def test_at_most_two_and_two_segments(sets, sizes, affine, order):
    steps = strides_of(NCHW, order)
    view = set_view(nk.NormSet(sets, **sizes).split(NCHW), steps, steps, affine, affine)
    pixelwise = sets in ("n [c] ...", "... [w]")
    if not (pixelwise and any(affine)):  # there the affine steps along kept axes of its own
        assert len(view.kept) <= 2 and len(view.reduced) <= 2, view
    assert len(view.walk) <= 2
    assert view.n_sets * view.set_size == np.prod(NCHW)


def test_channels_last_lanes_are_sets():
    steps = strides_of(NCHW, (0, 2, 3, 1))
    view = set_view(nk.NormSet("n c [...]").split(NCHW), steps, steps, PER_CHANNEL, PER_CHANNEL)
    assert view.kept == ((8, (3840, 3840, 0, 0)), (32, (1, 1, 1, 1))) and view.reduced == ((120, (32, 32, 0, 0)),)
    assert (view.tile, view.apply_lanes, view.affine_varies) == (32, 1, False)


@pytest.mark.parametrize("shape", [(1, 4000), (1, 30, 50, 8)])
def test_sets_of_one_element_are_done_side_by_side(shape):
    """One after another they take 3 to 6 times as long."""
    steps = strides_of(shape, range(len(shape)))
    assert set_view(nk.NormSet(0).split(shape), steps, steps, (0,) * len(shape), (0,) * len(shape)).tile > 200


def test_short_runs_are_lanes():
    """A channel group of 4 in channels-last memory is summed as four sets, then merged: no gather of runs of 4."""
    steps = strides_of(NCHW, (0, 2, 3, 1))
    view = set_view(nk.NormSet("n (g [c]) [...]", g=8).split(NCHW), steps, steps, PER_CHANNEL, PER_CHANNEL)
    assert (view.tile, view.set_lanes, view.apply_lanes, view.rows) == (8, 4, 4, 120)


@pytest.mark.parametrize(
    ("shape", "fresh", "place"),
    [
        ((2, 32, 100, 100), False, geometry.NEAR),
        ((8, 32, 64, 64), False, geometry.FAR),
        ((64, 32, 64, 64), False, geometry.PAST),
        ((64, 32, 64, 64), True, geometry.FAR),
    ],
)
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1)], ids=["NC*", "N*C"])
def test_where_results_lie(order, shape, fresh, place):
    """By their bytes; memory that is new is not written past the caches."""
    steps = strides_of(shape, order)
    view = set_view(nk.NormSet("n c [...]").split(shape), steps, steps, (0,) * 4, (0,) * 4)
    assert schedule.pack(view, True, fresh, 4)[2, geometry.MEMORY] == place


def test_crops_leave_outer_segments():
    shape, steps = (2, 3, 4, 5), (10_000, 1000, 100, 10)
    view = set_view(nk.NormSet((1, 2, 3)).split(shape), steps, steps, (0,) * 4, (0,) * 4)
    assert [size for size, _ in view.reduced] == [3, 4, 5] and [size for size, _ in view.kept] == [2]


def test_negative_and_zero_strides():
    view = set_view(nk.NormSet(1).split((3, 4)), (-4, -1), (4, 1), (0, 0), (0, 0))
    assert view.offsets == (11, 0, 0, 0)
    x = np.broadcast_to(np.arange(5.0), (3, 7, 5))
    assert np.allclose(nk.normalize(x, (0, 2)), nk.normalize(np.array(x), (0, 2)))
    assert np.allclose(nk.normalize(x, 1), 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("length", [2, 5, 12, 23])
def test_short_runs_in_reverse_order_lose_no_digits(length, dtype):
    """A thousand of them, each of which would be a block of its own if it were not lanes: of equal numbers, errors add up."""
    for x in (np.full((1, 1000, length), 0.1), np.random.default_rng(length).standard_normal((2, 1000, length))):
        x = x.astype(dtype)[:, ::-1]
        for center in (True, False):
            expected = reference.normalize(x, (1, 2), eps=1e-30, center=center)
            reference.assert_close(nk.normalize(x, (1, 2), eps=1e-30, center=center), expected)


@pytest.mark.parametrize(
    ("reduced", "gap", "lanes"),
    [
        ((49, 64), 31 * 64, 64),  # groups of channels: the rows of 32 follow one another
        ((49, 512), 7 * 512, 512),
        ((49, 513), 7 * 513, 1),
        ((49, 64), 64, 1),  # every second row
        ((120, 120), 8, 1),  # a crop
        ((200, 40), 8, 40),
        ((200, 20), 8, 20),
        ((32, 196), 511 * 196, 1),  # a channel of a batch
        ((7, 64), 31 * 64, 1),
    ],
)
def test_lanes_follow_from_the_set_alone(reduced, gap, lanes):
    rows, length = reduced
    for sets in (1, 2, 32):
        steps = (length + gap, length, 1)
        view = set_view(nk.NormSet((0, 2)).split((rows, sets, length)), steps, steps, (0,) * 3, (0,) * 3)
        assert view.set_lanes == lanes


@given(st.data(), st.integers(1, 5))
def test_any_layout_equals_its_copy(data, ndim):
    """The same bits from any strides as from a dense copy whose axes lie in the same order.

    Only where dense memory makes runs, or longer ones, of what was apart are these summed in another order.
    """
    x = data.draw(strategies.arrays(min_ndim=ndim, max_ndim=ndim, max_elements=3000))
    axes = data.draw(st.lists(st.integers(0, ndim - 1), min_size=1, unique=True).map(tuple))
    dense, none = np.copy(x, order="K"), (0,) * ndim
    split = nk.NormSet(axes).split(x.shape)
    views = [set_view(split, *[tuple(s // a.itemsize for s in a.strides)] * 2, none, none) for a in (x, dense)]
    results = [nk.normalize(a, axes) for a in (x, dense)]
    runs = [arrangement.sums_as_runs(view) and [size for size, _ in view.walk] for view in views]
    if runs[0] == runs[1] and views[0].set_lanes == views[1].set_lanes:
        assert np.array_equal(*results)
    else:
        assert np.allclose(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [2, 3, 20, 70, 600])
@pytest.mark.parametrize("columns", [6, 70])
def test_sums_of_sets_side_by_side_do_not_depend_on_where_runs_end(length, columns):
    """Positions of a set in runs of one length, and the same in one run: a copy without the gaps. Values and gradients."""
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((4, length + 1, columns)).astype(np.float32)[:, :length] for _ in range(2))
    results = [nk.vjp(nk.normalize, a, (0, 1)) for a in (x, x.copy())]
    assert np.array_equal(results[0][0], results[1][0])
    assert np.array_equal(*(pullback(d).x for (_, pullback), d in zip(results, (dy, dy.copy()), strict=True)))


@given(strategies.cases(max_elements=3000))
def test_results_keep_the_memory_order(case):
    x, axes = case
    y = nk.normalize(x, axes)
    assert y.strides == np.empty_like(x, order="K").strides
    assert all(s > 0 for s in y.strides) and y.flags.writeable


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", CALLS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_nothing_is_copied(norm, layout, dtype, monkeypatch):
    """Beside the result, memory grows by statistics and one thread's fixed buffers (80 KiB) only."""
    monkeypatch.setattr(threads, "PARALLEL_ELEMENTS", 1 << 62)
    x = LAYOUTS[layout](images(shape=(3, 8, 160, 150)).astype(dtype))
    out = np.empty_like(x, dtype=np.float32)
    call, _ = CALLS[norm]
    call(x, out=out)  # compiled and warm
    before = x.copy()
    tracemalloc.start()
    call(x, out=out)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    sets = {"layer (last)": 3600, "layer (channels first)": 72_000, "rms": 72_000}.get(norm, 24)
    assert peak < 50 * sets + 95_000, peak
    assert x.nbytes > 95_000
    assert np.array_equal(x, before)


@pytest.mark.parametrize(("dtype", "result"), [("float16", "float16"), ("float32", "float16"), ("float16", "float32")])
@pytest.mark.parametrize("n", [192, 193, 256, 257, 300, 384])
def test_short_sets_abreast_are_those_one_by_one(n, dtype, result):
    """The last one of five is by itself, and so is each alone."""
    x = (np.random.default_rng(0).standard_normal((5, n)) + 100).astype(dtype)
    together, moments = nk.layer_norm(x, return_moments=True, dtype=result)
    for k in range(5):
        alone, own = nk.layer_norm(x[k : k + 1], return_moments=True, dtype=result)
        assert np.array_equal(alone[0], together[k])
        assert np.array_equal([own.mean[0], own.var[0]], [moments.mean[k], moments.var[k]])
