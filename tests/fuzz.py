"""`make fuzz`: random shapes, strides, sets, dtypes and values against the oracle, for as long as is asked. Seeds are random.

What fails is saved, with the seed it came from, and makes the command fail.
"""

import argparse
import pathlib
import pickle
import sys
import time

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import normkit as nk
from tests import reference, strategies

FOUND = pathlib.Path("fuzz-found")
PLAIN = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])


def size_of(x, axes):
    return int(np.prod([x.shape[axis] for axis in axes]))


def check(case, eps, center):
    """Forward, in place and elsewhere, statistics and gradient of one array, against the oracle and each other."""
    x, axes = case
    y = nk.normalize(x, axes, eps=eps, center=center)
    if x.dtype in (np.float32, np.float64) and np.isfinite(x).all():
        reference.assert_close(y, reference.normalize(x, axes, eps=eps, center=center), n=size_of(x, axes))
    out = np.empty(x.shape[::-1], y.dtype).T
    assert np.array_equal(nk.normalize(x, axes, eps=eps, center=center, out=out), y, equal_nan=True)
    again, m = nk.normalize(x, axes, eps=eps, center=center, return_moments=True)
    assert np.array_equal(again, y, equal_nan=True) and not np.any(m.var < 0)
    with nk.num_threads(1):
        assert np.array_equal(nk.normalize(x, axes, eps=eps, center=center), y, equal_nan=True)
    if x.dtype == np.float64 and np.isfinite(x).all() and x.size and eps > 0:
        dy = np.cos(np.arange(x.size)).reshape(x.shape)
        _, pullback = nk.vjp(nk.normalize, x, axes, eps=eps, center=center)
        dx = pullback(dy).x
        _, tangent = nk.jvp(nk.normalize, (x, None, None), (dy, None, None), axes, eps=eps, center=center)
        size = np.abs(dx).max() + np.abs(tangent).max()
        assert np.allclose(dx, tangent, rtol=0, atol=1e-9 * size + 1e-300), "the Jacobian of x_hat is symmetric"


def check_on_cuda(case, eps, center):
    """Forward and statistics of one array on a device (NORMKIT_GPU) or in the emulator, against the oracle."""
    from normkit._cuda import launch
    from tests.places import host, new_driver, put

    launch.driver = new_driver()
    x, axes = case
    y, m = nk.normalize(put(x), axes, eps=eps, center=center, return_moments=True)
    assert not np.any(host(m.var) < 0)
    if np.isfinite(x).all():
        reference.assert_close(host(y), reference.normalize(x, axes, eps=eps, center=center), n=size_of(x, axes))


# What is done with an example, from which arrays, and every how many examples of the other: an emulated launch takes 20 ms.
DEVICES = {"cpu": (check, {}, 1), "cuda": (check_on_cuda, {"max_ndim": 4, "max_elements": 3000}, 20)}


def round_of(start, examples, device):
    """So many examples from one seed; returns the first failure and its case."""
    last, (check_one, limits, _) = {}, DEVICES[device]

    @seed(start)
    @settings(PLAIN, max_examples=examples)
    @given(strategies.cases(**limits), st.sampled_from([0.0, 1e-12, 1e-5, 1.0]), st.booleans())
    def fuzz(case, eps, center):
        last["case"] = (np.array(case[0]), case[0].strides, case[1], eps, center)
        check_one(case, eps, center)

    try:
        fuzz()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what was looked for
        return error, last["case"]
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--examples", type=int, default=500, help="per seed")
    parser.add_argument("--devices", nargs="+", choices=list(DEVICES), default=["cpu"], help="in turn, a seed each")
    options = parser.parse_args()
    stop, rounds, failures, done = time.monotonic() + 60 * options.minutes, 0, 0, dict.fromkeys(options.devices, 0)
    while time.monotonic() < stop:
        start = int(np.random.SeedSequence().entropy) % 2**32
        device = options.devices[rounds % len(options.devices)]
        examples = max(1, options.examples // DEVICES[device][2])
        found = round_of(start, examples, device)
        rounds, done[device] = rounds + 1, done[device] + examples
        if found:
            failures += 1
            FOUND.mkdir(exist_ok=True)
            (FOUND / f"{start}.pickle").write_bytes(pickle.dumps(found[1]))
            print(f"seed {start}, {device}: {found[0]!r}"[:2000], flush=True)
    print(f"{done} examples from {rounds} seeds, {failures} failures")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
