"""Every case on this machine beside a copy (or a triad) of the same bytes and NumPy, in turns, in one process."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from normkit.bench.cases import CASES, LAYOUTS, Case, copy, make, plain, triad


def median(calls: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median seconds of each call, taken in turns so that a busy moment hits all alike."""
    times: list[list[float]] = [[] for _ in calls]
    for k in range(rounds + 1):
        for call, own in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if k:
                own.append(time.perf_counter() - start)
    return [float(np.median(own)) for own in times]


def forward(case: Case, x: np.ndarray, rounds: int) -> tuple[float, str]:
    """Milliseconds, and the columns: share of copy speed, times NumPy."""
    out, flat = np.full_like(x, 1, order="K"), np.full(x.size, 1, f"u{x.itemsize}")
    copied = np.full_like(flat, 2)
    ours, copying = median([lambda: case.forward(x, out=out), lambda: copy(flat, copied)], rounds)
    axes = case.plain
    ratio = "" if axes is None else f"{median([lambda: plain(x, axes)], 2)[0] / ours:.1f}"
    return 1e3 * ours, f"{copying / ours:.2f} | {ratio}"


def backward(case: Case, x: np.ndarray, rounds: int) -> tuple[float, str]:
    """Milliseconds, and the columns: share of a triad into new memory, and into memory that was there."""
    dy, pullback = np.full_like(x, 0.5), case.pullback(x)
    a, b, c = (np.full(x.size, k, f"u{x.itemsize}") for k in range(3))
    calls = [lambda: pullback(dy), lambda: triad(a, b, np.empty_like(a)), lambda: triad(a, b, c)]
    ours, new, old = median(calls, rounds)
    return 1e3 * ours, f"{new / ours:.2f} | {old / ours:.2f}"


PASSES = {
    "forward": (forward, "share of copy speed | times NumPy"),
    "backward": (backward, "share of a triad into new memory | into touched memory"),
}


def main() -> None:
    """Print a table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("direction", choices=PASSES, default="forward", nargs="?")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--shrink", type=int, default=1, help="divide the large axes, for a quick look")
    options = parser.parse_args()
    measure, columns = PASSES[options.direction]
    print(f"| case | shape | layout | ms | {columns} |\n| --- | --- | --- | --- | --- | --- |")
    for name, case in CASES.items():
        for layout in LAYOUTS:
            x = make(case, layout, options.dtype, options.shrink)
            spent, rest = measure(case, x, options.rounds)
            print(f"| {name} | {' x '.join(map(str, x.shape))} | {layout} | {spent:.2f} | {rest} |", flush=True)


if __name__ == "__main__":
    main()
