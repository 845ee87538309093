"""Gradients however their sums are taken: the same bits by any schedule, and weights' sums beside those of sets."""

import tracemalloc

import numba
import numpy as np
import pytest

import normkit as nk
from normkit import _gradients, _recall
from normkit._cpu.plan import plan_of
from normkit._operands import Operands
from tests import reference
from tests.test_gradients import check, check_by_channels, uneven
from tests.test_properties import LAYOUTS, as_dtype, images


@pytest.mark.parametrize("layout", ["NCHW", "channels-last"])
@pytest.mark.parametrize("shape", [(70, 3, 9, 5), (3, 2, 160, 120)])
def test_a_gradient_depends_on_its_set_alone(shape, layout):
    x, dy = images(shape=shape), uneven(shape, np.float32)
    weight = uneven(shape[1], np.float32)
    whole = nk.vjp(nk.instance_norm, LAYOUTS[layout](x), weight)[1](LAYOUTS[layout](dy))
    for k in (0, shape[0] - 1):
        part = slice(k, k + 1)
        alone = nk.vjp(nk.instance_norm, LAYOUTS[layout](x[part]), weight)[1](LAYOUTS[layout](dy[part]))
        assert np.array_equal(alone.x, whole.x[part])


@pytest.mark.parametrize("axes", [(2, 3), (0, 2, 3), (1,), (3,), (1, 2, 3)])
@pytest.mark.parametrize("layout", ["NCHW", "channels-last"])
def test_threads_and_schedules_give_the_same_bits(axes, layout, monkeypatch):
    shape = (6, 5, 100, 90)
    x, dy, weight = images(shape=shape), uneven(shape, np.float32), uneven((5, 1, 90), np.float32)
    pullback = nk.vjp(nk.normalize, LAYOUTS[layout](x), axes, weight, weight)[1]
    many, before = pullback(LAYOUTS[layout](dy)), numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        one = pullback(LAYOUTS[layout](dy))
    finally:
        numba.set_num_threads(before)
    assert all(np.array_equal(a, b) for a, b in zip(many, one, strict=True))
    for few in (0, 1 << 62):
        monkeypatch.setattr(_recall, "_ready", {})
        monkeypatch.setattr(nk._engine._cpu.plan, "_FUSED_TILES", few)
        monkeypatch.setattr(nk._engine._cpu.plan, "_FUSED_TILES_PER_THREAD", 1 << 62)
        monkeypatch.setattr(nk._engine._cpu.plan, "_FUSED_ELEMENTS", 1)
        pullback = nk.vjp(nk.normalize, LAYOUTS[layout](x), axes, weight, weight)[1]
        assert np.array_equal(pullback(LAYOUTS[layout](dy)).x, many.x)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("width", [33, 768, 2048, 3000])
def test_a_weight_along_many_sets(width, dtype):
    """Its gradient is collected while the sets are summed; sets that float32 is too narrow for are among them."""
    x, dy = images(shape=(1100, width), dtype=dtype), uneven((1100, width)).astype(dtype)
    if dtype == "float32":
        x[5], x[700], x[-1] = x[5] * 1e-30, x[700] * 1e30, x[-1] * 1e-25
    weight = uneven(width).astype(dtype)
    gradients = nk.vjp(nk.layer_norm, x, weight, weight)[1](dy)
    dx, products, size = reference.gradient(x, (1,), dy, weight)
    steps = dy.astype(np.longdouble)
    terms = (np.abs(products).sum(0) + np.abs(steps).sum(0), np.abs(steps).sum(0))
    check(gradients, (dx, products.sum(0), steps.sum(0), size), dtype, terms, width)


LONG = [(1, 9000), (1, 70_001), (4, 8193), (15, 30_000), (16, 8200), (17, 8200), (33, 16_385)]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", LONG)
@pytest.mark.parametrize("wild", [False, True])
def test_a_weight_along_few_long_sets(shape, dtype, wild):
    """Its gradient is collected in pieces of all sets, in float32 where they are few; not where some sets need float64."""
    x, dy, weight = images(shape=shape, dtype=dtype), uneven(shape).astype(dtype), uneven(shape[1]).astype(dtype)
    if wild:
        x[-1] *= {"float16": 1e-3, "float32": 1e-30, "float64": 1e-280}[dtype]
    gradients = nk.vjp(nk.layer_norm, x, weight, weight)[1](dy)
    dx, products, size = reference.gradient(x, (1,), dy, weight)
    steps = dy.astype(np.longdouble)
    terms = (np.abs(products).sum(0) + np.abs(steps).sum(0), np.abs(steps).sum(0))
    check(gradients, (dx, products.sum(0), steps.sum(0), size), dtype, terms, shape[1])
    assert gradients.weight.dtype == gradients.bias.dtype == dtype


@pytest.mark.parametrize("dy", ["one number", "reversed", "step", "channels-last"])
@pytest.mark.parametrize("shape", [(3, 5, 50, 70), (20, 5, 50, 70)])
def test_few_long_sets_by_a_dy_that_lies_anywhere(shape, dy):
    x, weight = images(shape=shape), uneven(shape[1:], np.float32)
    pullback = nk.vjp(nk.layer_norm, x, weight, weight, axis=(1, 2, 3))[1]
    given = DY[dy](uneven(shape, np.float32))
    for found, expected in zip(pullback(given), pullback(np.array(given, order="C")), strict=True):
        assert np.allclose(found, expected, rtol=0, atol=4e-6 * np.abs(expected).max())


@pytest.mark.parametrize("shape", LONG)
def test_gradients_along_few_long_sets_have_the_same_bits_on_any_threads(shape):
    """And in whatever order tasks are done; and each set as it is alone, as long as its sums are taken so."""
    x, dy, weight = images(shape=shape), uneven(shape, np.float32), uneven(shape[1], np.float32)
    pullback = nk.vjp(nk.layer_norm, x, weight, weight)[1]
    many = pullback(dy)
    with nk.num_threads(1):
        assert all(np.array_equal(a, b) for a, b in zip(pullback(dy), many, strict=True))
    alone = nk.vjp(nk.layer_norm, x[-1:], weight, weight)[1](dy[-1:])
    assert np.array_equal(alone.x, many.x[-1:])


@pytest.mark.parametrize(
    ("norm", "shape", "axes"),
    [
        (nk.layer_norm, (513, 8200), ()),  # in pieces
        (nk.layer_norm, (2049, 33), ()),  # by tasks
        (nk.layer_norm, (40, 8192), ()),  # by few tasks
        (nk.normalize, (1, 513, 600), ((1, 2),)),  # an element comes in every run of a set
        (nk.normalize, (100, 20, 600), ((1, 2),)),
        (nk.normalize, (1, 513, 64), ((1, 2),)),  # or in every lane
        (nk.normalize, (513, 64), (0,)),
    ],
)
def test_small_numbers_are_not_lost_beside_a_large_one(norm, shape, axes):
    """Of 2^24 and 512 times 1/16, float32 would keep 2^24 alone. Of 64 in a block it does; and results are rounded to 2."""
    x, dy, weight = images(shape=shape), np.full(shape, 1 / 16, np.float32), np.ones(shape[-1], np.float32)
    dy[(0,) * (len(shape) - 1)] = 2.0**24
    bias = nk.vjp(norm, x, *axes, weight, weight)[1](dy).bias
    exact = dy.astype(np.float64).sum(tuple(range(len(shape) - 1)))
    assert np.all(np.abs(bias - exact) <= 5), float(np.abs(bias - exact).max())


@pytest.mark.parametrize("shape", [(1, 60_000), (3, 60_000), (20, 60_000)])
def test_gradients_along_few_long_sets_take_no_temporaries(shape):
    """Beside the gradients: sums in float64 where there are many sets, and what each piece adds up of every set."""
    x, dy, weight = images(shape=shape), uneven(shape, np.float32), uneven(shape[1], np.float32)
    pullback = nk.vjp(nk.layer_norm, x, weight, weight)[1]
    pullback(dy)
    tracemalloc.start()
    gradients = pullback(dy)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    sums = 2 * 8 * shape[1] if shape[0] > 16 else 0
    assert peak < sum(part.nbytes for part in gradients) + sums + 30_000


@pytest.mark.parametrize("layout", ["NCHW", "channels-last"])
@pytest.mark.parametrize(
    ("norm", "args", "options", "shape"),
    [
        (nk.group_norm, (32,), {}, (40, 512, 7, 7)),  # its weight stands still in runs, or in lanes
        (nk.group_norm, (4,), {}, (9, 12, 41, 40)),
        (nk.layer_norm, (), {"axis": 1}, (16, 96, 29, 28)),  # and in the positions of a tile
        (nk.layer_norm, (), {"axis": 1}, (3, 33, 65, 1)),
    ],
)
@pytest.mark.parametrize("wild", ["none", "samples", "one beside others"])
def test_a_weight_that_stands_still_within_sets(norm, args, options, shape, layout, wild):
    """Its gradient is collected too, in many tasks or one, but not where some sets need float64."""
    x, dy = (LAYOUTS[layout](each) for each in (images(shape=shape), uneven(shape, np.float32)))
    if wild == "samples":
        x[0] *= 1e-30
        x[1] *= 1e30  # its scale is too small for float32
    elif wild == "one beside others":
        x[(2, slice(shape[1] // args[0])) if args else (2, slice(None), 3, 0)] *= 1e30
    weight = uneven(shape[1]).astype(np.float32)
    gradients = nk.vjp(norm, x, *args, weight, weight, **options)[1](dy)
    split, axes = ((shape[0], args[0], -1, *shape[2:]), (2, 3, 4)) if args else (shape, (1,))
    whole = np.broadcast_to(weight.reshape(-1, *[1] * (len(shape) - 2)), shape).reshape(split)
    dx, products, size = reference.gradient(x.reshape(split), axes, dy.reshape(split), whole)
    dx, products, size = (np.broadcast_to(each, dx.shape).reshape(shape) for each in (dx, products, size))
    others, steps = (0, *range(2, len(shape))), dy.astype(np.longdouble)
    terms = (np.abs(products).sum(others) + np.abs(steps).sum(others), np.abs(steps).sum(others))
    check(gradients, (dx, products.sum(others), steps.sum(others), size), "float32", terms, x.size // shape[1])


@pytest.mark.parametrize("layout", ["NCHW", "channels-last", "crop"])
@pytest.mark.parametrize("axes", [(1, 2, 3), (2, 3), (0, 1), (0, 2, 3), (1,)])
@pytest.mark.parametrize("lies", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2), ()])
def test_a_weight_of_any_shape_in_few_long_sets(lies, axes, layout):
    """Sets in many chunks, in which an element of the weight comes once, thousands of times, or not at all."""
    shape = (2, 40, 32, 60)
    own = tuple(n if k in lies else 1 for k, n in enumerate(shape[1:]))
    x, dy, weight = images(shape=shape), uneven(shape, np.float32), uneven(own, np.float32)
    gradients = nk.vjp(nk.normalize, LAYOUTS[layout](x), axes, weight, weight)[1](LAYOUTS[layout](dy))
    dx, products, size = reference.gradient(x, axes, dy, np.broadcast_to(weight, shape))
    sums = [reference.sum_to(part.astype(np.longdouble), own) for part in (products, dy)]
    terms = [reference.sum_to(np.abs(part), own) for part in (np.abs(products) + np.abs(dy), dy)]
    check(gradients, (dx, *sums, size), "float32", terms)


@pytest.mark.parametrize("layout", ["NCHW", "channels-last"])
@pytest.mark.parametrize("shape", [(4, 20, 9, 8), (3, 37, 200, 90)])
def test_bits_do_not_depend_on_sets_that_wait_for_float64(shape, layout):
    """Their neighbours, done in float32, are not done again."""
    x, dy = (LAYOUTS[layout](each) for each in (images(shape=shape), uneven(shape, np.float32)))
    among = x.copy(order="K")
    among[:, 3] *= 1e-30
    among[1, 17] *= 1e30
    others = [k for k in range(shape[1]) if k not in (3, 17)]
    weight = uneven(shape[1]).astype(np.float32)
    plain, beside = (nk.vjp(nk.instance_norm, each, weight, weight, eps=0)[1](dy) for each in (x, among))
    assert np.array_equal(plain.x[:, others], beside.x[:, others])
    for name in ("weight", "bias"):
        assert np.array_equal(getattr(plain, name)[others], getattr(beside, name)[others])


@pytest.mark.parametrize("layout", ["NCHW", "crop"])
@pytest.mark.parametrize("channels", [1, 2, 15, 16, 17, 35])
def test_runs_side_by_side(channels, layout):
    """Sets of several runs, fewer and more than are summed at a time; those of a crop end at every row of an image."""
    shape = (3, 2 * channels, 5, 30)
    x, dy = images(shape=shape), uneven(shape, np.float32)
    weight = uneven(shape[1], np.float32)
    gradients = nk.vjp(nk.group_norm, LAYOUTS[layout](x), 2, weight, weight)[1](LAYOUTS[layout](dy))
    split = (3, 2, channels, 5, 30)
    dx, products, size = reference.gradient(x.reshape(split), (2, 3, 4), dy.reshape(split), weight.reshape(2, channels, 1, 1))
    size = np.broadcast_to(size, split).reshape(shape)
    sums = [reference.sum_to(part.reshape(shape).astype(np.longdouble), (shape[1], 1, 1)).ravel() for part in (products, dy)]
    terms = [np.abs(part.reshape(shape)).sum((0, 2, 3)) for part in (np.abs(products) + np.abs(dy.reshape(split)), dy)]
    check(gradients, (dx.reshape(shape), *sums, size), "float32", terms, x.size // shape[1])


@pytest.mark.parametrize("rows", [2, 15, 16, 17, 35])
def test_a_weight_along_runs_side_by_side(rows):
    """A weight of every element, of sets whose runs lie apart: what each has from it is collected."""
    shape = (300, 1, rows, 30)
    x, dy, weight = images(shape=shape), uneven(shape, np.float32), uneven(shape[2:], np.float32)
    gradients = nk.vjp(nk.normalize, LAYOUTS["crop"](x), (2, 3), weight, weight)[1](LAYOUTS["crop"](dy))
    dx, products, size = reference.gradient(x, (2, 3), dy, weight)
    sums = [part.astype(np.longdouble).sum((0, 1)) for part in (products, dy)]
    terms = [np.abs(part).sum((0, 1)) for part in (np.abs(products) + np.abs(dy), dy)]
    check(gradients, (dx, *sums, size), "float32", terms, 300)


@pytest.mark.parametrize("channels", [33, 64, 200, 341, 342, 512, 513])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_groups_of_many_channels_side_by_side(channels, dtype):
    shape = 2, 3 * channels, 9, 5
    x, dy = (LAYOUTS["channels-last"](a.astype(dtype)) for a in (images(shape=shape), uneven(shape)))
    weight = uneven(3 * channels).astype(dtype)
    y, pullback = nk.vjp(nk.group_norm, x, 3, weight, weight)
    wide_x, wide_dy, wide_weight = (np.array(a, np.float64, order="C") for a in (x, dy, weight))
    exact, exact_pullback = nk.vjp(nk.group_norm, wide_x, 3, wide_weight, wide_weight)
    for found, expected in zip((y, *pullback(dy)), (exact, *exact_pullback(wide_dy)), strict=True):
        assert np.allclose(found, expected, rtol=0, atol=(4e-6 if dtype == "float32" else 1e-3) * np.abs(expected).max())


DY = {  # that of y.sum(), y.sum(0), y.sum((2, 3)), y.sum(3), and what lies otherwise than x
    "one number": lambda dy: np.broadcast_to(dy[:1, :1, :1, :1], dy.shape),
    "one sample": lambda dy: np.broadcast_to(dy[:1], dy.shape),
    "one number for a channel": lambda dy: np.broadcast_to(dy[:, :, :1, :1], dy.shape),
    "one number for a row": lambda dy: np.broadcast_to(dy[..., :1], dy.shape),
    "NC*": lambda dy: dy,
    "channels-last": LAYOUTS["channels-last"],
    "reversed": LAYOUTS["reversed"],
    "step": LAYOUTS["step"],
}


@pytest.mark.parametrize("dy", DY)
@pytest.mark.parametrize("layout", ["NCHW", "channels-last"])
@pytest.mark.parametrize("axes", [(2, 3), (1, 2, 3), (0, 2, 3), (1,), (3,)])
@pytest.mark.parametrize("shape", [(2, 3, 33, 65), (3, 32, 7, 7), (2, 5, 1, 2100), (40, 300, 2, 2)])
def test_dy_may_lie_anywhere(shape, axes, layout, dy, monkeypatch):
    """Copied, as it is so small, and as larger ones are read."""
    for room in (_gradients._SPREAD, 0):
        monkeypatch.setattr(_gradients, "_SPREAD", room)
        monkeypatch.setattr(_recall, "_ready", {})
        check_by_channels(LAYOUTS[layout](images(shape=shape)), axes, DY[dy](uneven(shape, np.float32)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("dy", [dy for dy in DY if dy != "one number for a row"])
def test_dy_of_any_dtype_may_lie_anywhere(dy, dtype, monkeypatch):
    """The same bits as of a copy, where its rows follow one another as evenly: copied, and as larger ones are read."""
    x, values = (as_dtype(a, dtype) for a in (images(shape=(3, 32, 40, 60)), uneven((3, 32, 40, 60))))
    weight = uneven(32)
    pullback = nk.vjp(nk.group_norm, x, 4, weight, weight)[1]
    given = DY[dy](values)
    expected = pullback(np.array(given, order="C"))
    for room in (_gradients._SPREAD, 0):
        monkeypatch.setattr(_gradients, "_SPREAD", room)
        monkeypatch.setattr(_recall, "_ready", {})
        pullback = nk.vjp(nk.group_norm, x, 4, weight, weight)[1]
        assert all(np.array_equal(*pair) for pair in zip(pullback(given), expected, strict=True))


@pytest.mark.parametrize("dy", DY)
@pytest.mark.parametrize("layout", ["NCHW", "channels-last"])
def test_a_dy_that_lies_anywhere_is_not_copied(layout, dy):
    """Beside the gradients: statistics, sums of tasks, a fixed number of bytes for each thread, and 1 MiB of dy at most."""
    shape = (8, 32, 120, 150)
    x, given = LAYOUTS[layout](images(shape=shape)), DY[dy](uneven(shape, np.float32))
    pullback = nk.vjp(nk.instance_norm, x)[1]
    pullback(given)
    tracemalloc.start()
    gradients = pullback(given)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < gradients.x.nbytes + (1 << 20) + 200_000 < 2 * x.nbytes


@pytest.mark.parametrize("dy", ["one number", "one sample", "one number for a channel"])
@pytest.mark.parametrize("layout", ["NCHW", "channels-last"])
@pytest.mark.parametrize("axes", [(2, 3), (1, 2, 3), (0, 2, 3)])
def test_a_dy_that_repeats_numbers_is_read_in_lines(axes, layout, dy):
    """Number by number it would take 3 to 20 times as long."""
    x, given = LAYOUTS[layout](images(shape=(70, 32, 30, 30))), DY[dy](uneven((70, 32, 30, 30), np.float32))
    dx = np.empty_like(x)
    given = _gradients.spreading(given, x, dx)(given, dx)
    op = Operands(x, dx, None, None, nk.NormSet(axes).split(x.shape), True, given, fresh=True)
    assert plan_of(op, np.ones(()), np.ones(())).apart is None


@pytest.mark.parametrize("pixels", [(16, 16), (17, 17), (40, 50), (45, 45)])
def test_runs_are_summed_in_strips(pixels):
    """Of equal numbers the errors of an addition add up; 64 in a row would be five times as far off."""
    dy = np.full((2, 8, *pixels), 0.1, np.float32)
    weight = np.ones(8, np.float32)
    found = nk.vjp(nk.group_norm, images(shape=dy.shape), 2, weight, weight)[1](dy).bias
    exact = 2 * pixels[0] * pixels[1] * float(np.float32(0.1))
    assert np.abs(found / exact - 1).max() <= 4 * 2.0**-24


def test_sums_of_two_shapes_are_cast_when_they_are_added_up():
    """Those of channels, here 100,100 and almost the opposite, are float64 until then: in float32 they would lose digits."""
    dy = np.ones((1001, 2, 10, 10), np.float32)
    dy[:, 1] = -1 + 2.0**-10
    weight, bias = np.ones((2, 1, 1), np.float32), np.ones((1, 1, 1), np.float32)
    found = nk.vjp(nk.normalize, images(shape=dy.shape), (2, 3), weight, bias)[1](dy).bias
    assert found.item() == 100_100 * 2.0**-10
