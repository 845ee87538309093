"""Where arrays lie, one beside the other, changes the time that a norm takes, but no bit of its results."""

import ml_dtypes
import numpy as np
import pytest

import normkit as nk
from asv_bench.benchmarks.corners import PAGE, lay
from normkit import _interop
from normkit._cpu import geometry

BEHIND = (0, 8, 64, 264, 1016, 1024, 2048, PAGE - 64)  # bytes by which a result starts after x, but for whole pages
CASES = {
    "a run": (nk.layer_norm, (3, 5000), {}),
    "a run and its affine": (nk.layer_norm, (3, 5000), {"affine": 5000}),
    "a short run": (nk.layer_norm, (3, 333), {"affine": 333}),
    "short runs abreast": (nk.layer_norm, (13, 96), {"affine": 96}),
    "less than a vector": (nk.layer_norm, (13, 7), {}),
    "runs, one weight each": (nk.group_norm, (2, 32, 7, 7), {"args": (4,), "affine": 32}),
    "runs that are vectors": (nk.group_norm, (2, 8, 8, 8), {"args": (4,), "affine": 8}),
    "runs apart": (nk.batch_norm, (5, 6, 7, 9), {"affine": 6}),
    "a tile": (nk.layer_norm, (2, 12, 9, 11), {"axis": 1}),
    "a tile of lanes": (nk.group_norm, (2, 9, 11, 32), {"args": (4,), "channel_axis": -1, "affine": 32}),
    "periods": (nk.instance_norm, (2, 9, 31, 16), {"channel_axis": -1, "affine": 16}),
}


def problem(case, dtype):
    """(norm, x, arguments, options) of a case."""
    norm, shape, given = CASES[case]
    given, rng = dict(given), np.random.default_rng(len(case))
    x = (rng.standard_normal(shape) * 3 + 5).astype(dtype)
    args, affine = given.pop("args", ()), given.pop("affine", 0)
    return norm, x, (*args, *(rng.standard_normal((2, affine)) if affine else ())), given


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", ml_dtypes.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_a_norm_has_the_same_bits_wherever_its_result_lies(case, dtype):
    norm, x, args, options = problem(case, dtype)
    x = lay(x, 16)
    y = norm(x, *args, **options)
    for behind in BEHIND:
        out = lay(np.full_like(x, 7), 16 + behind)
        assert norm(x, *args, out=out, **options) is out
        assert np.array_equal(out, y), behind
    assert np.array_equal(norm(x, *args, out=x, **options), y)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", ml_dtypes.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_a_gradient_has_the_same_bits_wherever_it_lies(case, dtype, monkeypatch):
    norm, x, args, options = problem(case, dtype)
    x, dy = lay(x, 16), lay(np.random.default_rng(0).standard_normal(x.shape).astype(dtype), 48)
    pullback = nk.vjp(norm, x, *args, **options)[1]
    expected = pullback(dy)
    for behind in BEHIND:
        monkeypatch.setattr(_interop, "new_like", lambda x, *_, start=16 + behind: lay(np.full_like(x, 7), start))
        found = pullback(dy)
        assert found.x.ctypes.data % PAGE == (16 + behind) % PAGE
        for gradient, first in zip(found, expected, strict=True):
            assert np.array_equal(gradient, first), behind


@pytest.mark.parametrize("itemsize", [4, 8])
def test_buffer_rows_share_no_set_of_a_cache_with_all_others(itemsize):
    """An L1 cache keeps 8 lines, or 12, of all that lie 4 KiB apart; a gradient's tile has 7 rows of numbers."""
    starts = [row * geometry.ROW * itemsize % PAGE for row in range(7)]
    assert max(map(starts.count, starts)) <= 4
