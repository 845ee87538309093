"""The table of a machine: every case by every contender, as numbers, text or a picture."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .cases import CASES as CASES
from .contenders import CONTENDERS, NEEDS


@dataclass(frozen=True)
class Row:
    """Median milliseconds of one case in one layout, by contender; "memory" is a copy or a triad of the same bytes."""

    case: str
    layout: str
    shape: tuple[int, ...]
    times: dict[str, float]

    @property
    def share(self) -> float:
        """Speed of normkit as a share of memory's."""
        return self.times["memory"] / self.times["normkit"]

    def times_faster(self, contender: str) -> float | None:
        """How many times normkit is faster."""
        spent = self.times.get(contender)
        return None if spent is None else spent / self.times["normkit"]


def contenders() -> list[str]:
    """Those that are installed here."""
    return [name for name in CONTENDERS if all(importlib.util.find_spec(package) for package in NEEDS.get(name, ()))]


def run(
    direction: str = "forward",
    dtype: str = "float32",
    rounds: int = 5,
    shrink: int = 1,
    cases: Iterable[str] = tuple(CASES),
    progress: Callable[[list[str]], Iterable[str]] = list,
) -> list[Row]:
    """Every case by every contender, one process after the other."""
    chosen: list[str] = list(cases)
    found: dict[tuple[str, str, tuple[int, ...]], dict[str, float]] = {}
    for name in progress(contenders()):
        options = [name, direction, dtype, str(rounds), str(shrink), *chosen]
        command = [sys.executable, "-m", "normkit.bench.contenders", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - this very program
        if done.returncode:
            raise RuntimeError(f"{name} failed: {done.stderr[-2000:]}")
        for line in done.stdout.splitlines():
            told: dict[str, Any] = json.loads(line)
            key = (told["case"], told["layout"], tuple(told["shape"]))
            if told["ms"] is not None:
                found.setdefault(key, {})[name] = told["ms"]
    return [Row(case, layout, shape, times) for (case, layout, shape), times in found.items()]


def markdown(rows: list[Row]) -> str:
    """The table as text."""
    others = [name for name in CONTENDERS if name not in ("memory", "normkit") and any(name in row.times for row in rows)]
    head = ["case", "shape", "layout", "ms", "share of memory speed", *(f"times {name}" for name in others)]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        faster = [row.times_faster(name) for name in others]
        cells = [row.case, " x ".join(map(str, row.shape)), row.layout, f"{row.times['normkit']:.2f}", f"{row.share:.2f}"]
        lines.append("| " + " | ".join([*cells, *("" if each is None else f"{each:.1f}" for each in faster)]) + " |")
    return "\n".join(lines)


def plot(rows: list[Row], path: pathlib.Path) -> None:
    """The shares of memory speed as bars, of every contender."""
    from matplotlib import pyplot as plt

    names = [name for name in CONTENDERS if name != "memory" and any(name in row.times for row in rows)]
    height = 0.8 / len(names)
    figure, axes = plt.subplots(figsize=(9, 0.34 * len(rows) + 1), layout="constrained")
    for k, name in enumerate(names):
        at = [i for i, row in enumerate(rows) if name in row.times]
        shares = [rows[i].times["memory"] / rows[i].times[name] for i in at]
        axes.barh([i + height * k for i in at], shares, height, label=name, color=f"C{list(CONTENDERS).index(name) - 1}")
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(rows))], [f"{row.case} {row.layout}" for row in rows])
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("share of memory speed")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
