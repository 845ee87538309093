"""Where statistics are known, whole rows of sets side by side are written at once; that changes no bit."""

import numpy as np
import pytest

import normkit as nk
from normkit import _recall
from normkit._cpu import geometry, plan, schedule
from normkit._layout import even_share
from tests.test_columns import same, sets
from tests.test_speed import plan_for


@pytest.fixture
def ways(monkeypatch):
    """What calls a function three times: by tiles, by rows after a pass for the statistics, and by rows in short tasks."""

    def call(function):
        found = []
        tiles = {"_SHARE_BYTES": 1 << 62, "in_rows": lambda view: view}
        for patches in (tiles, {"_SHARE_BYTES": 0}, {"_SHARE_BYTES": 0, "_APPLY_ELEMENTS": 3 * geometry.ROW}):
            for forget in (schedule.pack, plan._plan):
                forget.cache_clear()
            with monkeypatch.context() as patch, np.errstate(all="ignore"):
                patch.setattr(_recall, "_ready", {})
                for name, value in patches.items():
                    patch.setattr(schedule, name, value)
                found.append(function())
        for forget in (schedule.pack, plan._plan):
            forget.cache_clear()
        return found

    return call


# samples, rows, channels, lanes of a set: one more than a tile, as wide as the buffers and one more, shares of a row, groups
PLACES = [
    (3, 60, 257, 1),
    (2, 40, 960, 1),
    (1, 40, 2304, 1),
    (1, 40, 2305, 1),
    (2, 20, 5000, 1),
    (2, 64, 1200, 4),
    (1, 70, 2400, 16),
]


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_bits_are_those_of_tiles(place, dtype, ways):
    """Of sets of which some wait for float64, with a weight and a bias; and by moments that are given."""
    samples, rows, channels, lanes = place
    affine = np.random.default_rng(1).standard_normal((2, channels)).astype(np.float32)
    with np.errstate(all="ignore"):
        x = sets(rows, samples, channels, lanes).astype(dtype)
    options = {"channel_axis": -1, **({"dtype": np.float32} if dtype == "uint8" else {})}

    def normalize():
        y, own = nk.group_norm(x, channels // lanes, *affine, return_moments=True, **options)
        return y, own.mean, own.m2, nk.group_norm(x, channels // lanes, *affine, moments=own, **options)

    expected, *others = ways(normalize)
    for found in others:
        assert all(map(same, found, expected))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_bits_of_gradients_are_those_of_tiles(place, wide, ways):
    """Of sets of which some wait for float64, and of float64."""
    samples, rows, channels, lanes = place
    rng = np.random.default_rng(1)
    weight, dy = rng.standard_normal(channels), rng.standard_normal((samples, rows, channels))
    with np.errstate(all="ignore"):
        x = sets(rows, samples, channels, lanes).astype(np.float64 if wide else np.float32)

    def pull():
        found = nk.vjp(nk.group_norm, x, channels // lanes, weight.astype(x.dtype), channel_axis=-1)[1](dy.astype(x.dtype))
        return found.x, found.weight

    (expected, of_weight), *others = ways(pull)
    for found, of_its_weight in others:
        assert same(found, expected)
        assert np.allclose(of_its_weight, of_weight, rtol=1e-5, equal_nan=True)  # its sums go by tasks


@pytest.mark.parametrize("pixels", [300, 2400])
def test_weights_that_change_along_sets_change_along_rows(pixels, ways):
    """As those of layer norm over the channels of NC*, in place too."""
    x = sets(40, 3, pixels, 1).astype(np.float32)
    affine = np.random.default_rng(1).standard_normal((2, 40)).astype(np.float32)
    dy = np.random.default_rng(2).standard_normal(x.shape).astype(np.float32)

    def normalize():
        y, pullback = nk.vjp(nk.layer_norm, x, *affine, axis=1)
        out = x.copy()
        nk.layer_norm(out, *affine, axis=1, out=out)
        return y, out, pullback(dy).x

    expected, *others = ways(normalize)
    assert same(*expected[:2])
    for found in others:
        assert all(map(same, found, expected))


@pytest.mark.parametrize(
    ("shape", "axes", "tile"),
    [
        ((100, 256), 0, 256),
        ((100, 257), 0, 257),
        ((100, 2304), 0, 2304),
        ((100, 2305), 0, 1168),  # even shares, of whole vectors
        ((2, 40, 9000), 1, 2256),
        ((2, 64, 300, 4), (1, 3), 300),
        ((2, 64, 600, 4), (1, 3), 300),
        ((2, 64, 300), 2, 1),
    ],
)
def test_rows_are_as_wide_as_buffers(shape, axes, tile):
    """Where neighbours in memory are of neighbouring sets."""
    assert plan_for(np.ones(shape, np.float32), axes).apply_geo[1, geometry.TILE] == tile


@pytest.mark.parametrize(
    ("shape", "fused"),
    [
        ((8, 784, 512), False),
        ((8, 750, 512), True),  # a tile stays in cache
        ((7, 784, 512), True),  # or in a slower one
        ((1, 1600, 512), False),
        ((8, 3136, 256), True),  # whole rows, in line
        ((2, 1000, 5000), True),  # rows are written in shares anyway
        ((4, 1, 100_000), True),
    ],
)
def test_shares_of_a_row_that_no_cache_keeps_are_read_in_a_pass_of_their_own(shape, fused):
    x = np.ones(shape, np.float32)
    assert plan_for(x, 1).fused == fused
    assert plan_for(x, 1, gradient=True).fused == fused
    assert plan_for(x.astype(np.float16), 1).fused


@pytest.mark.parametrize(
    ("shape", "axes", "rows", "tasks"), [((1568, 2048), 0, 64, 25), ((1, 4000, 128, 16), (1, 3), 64, 63)], ids=str
)
def test_rows_are_written_in_tasks_for_many_threads(shape, axes, rows, tasks):
    """Of half a megabyte of float32."""
    plan = plan_for(np.empty(shape, np.float32), axes)
    assert (plan.apply_geo[0, geometry.PER_APPLY], plan.apply_tasks) == (rows, tasks)


def test_sets_apart_are_written_one_by_one():
    """Lanes of a crop: the next set does not follow."""
    crop = np.ones((6, 100, 30), np.float32)[:, :, :20]
    plan = plan_for(crop, (1, 2))
    assert plan.apply_geo[1, geometry.APPLY_LANES] == 20
    assert plan.apply_geo[1, geometry.TILE] == 1


@pytest.mark.parametrize("most", [256, geometry.ROW])
def test_even_shares_fit(most):
    for lanes in (1, 2, 3, 7, 16, 130, 250):
        for sets_beside in range(1, 600):
            share = even_share(sets_beside, lanes, most)
            assert 1 <= share <= sets_beside
            assert share * lanes <= most
            assert share == sets_beside or sets_beside * lanes > most
