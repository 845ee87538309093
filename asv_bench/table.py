"""The table of the README: every case of this machine, beside a copy of the same bytes and the NumPy expression."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from benchmarks.cases import CASES, LAYOUTS, copy, make, plain


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


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--shrink", type=int, default=1, help="divide the large axes, for a quick look")
    options = parser.parse_args()
    print("| case | shape | layout | ms | share of copy speed | times NumPy |\n| --- | --- | --- | --- | --- | --- |")
    for name, case in CASES.items():
        for layout in LAYOUTS:
            x = make(case, layout, options.dtype, options.shrink)
            out, flat = np.full_like(x, 1, order="K"), np.full(x.size, 1, f"u{x.itemsize}")
            copied = np.full_like(flat, 2)
            calls = [lambda x=x, out=out, norm=case.norm: norm(x, out=out), lambda a=flat, b=copied: copy(a, b)]
            ours, copying = median(calls, options.rounds)
            axes = case.plain
            ratio = "" if axes is None else f"{median([lambda x=x, axes=axes: plain(x, axes)], 2)[0] / ours:.1f}"
            shape = " x ".join(map(str, x.shape))
            print(f"| {name} | {shape} | {layout} | {1e3 * ours:.2f} | {copying / ours:.2f} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
