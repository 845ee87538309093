"""The table of a machine: every case by every contender, as numbers, text or a picture."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from .cases import CASES as CASES
from .cases import LAYOUTS
from .contenders import CONTENDERS, NEEDS

# Every contender has TURNS turns at a case, one after the other: what else the machine does meets them alike. Between turns the
# threads of the last one, which wait for work for a while before they sleep, get PAUSE seconds.
TURNS, PAUSE = 3, 0.05


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


@dataclass(frozen=True)
class Running:
    """A contender in a process of its own, which waits for its turns."""

    name: str
    process: subprocess.Popen[str]
    errors: IO[str]

    def turn(self, case: str, layout: str) -> Any:
        """The shape of a case, and the milliseconds of some calls; None if this contender has no such norm."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            print(json.dumps([case, layout]), file=self.process.stdin, flush=True)
        return self.answer()

    def answer(self) -> Any:
        """What the process says next."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            raise RuntimeError(f"{self.name} failed: {self.errors.read()[-2000:]}")
        return json.loads(line)


@contextlib.contextmanager
def start(name: str, *options: str) -> Iterator[Running]:
    """Start a contender; without more to do, in the end, it stops."""
    command, pipe = [sys.executable, "-m", "normkit.bench.contenders", name, *options], subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True) as process,  # noqa: S603 - this very program
    ):
        yield Running(name, process, errors)


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
    """Every case by every contender, in turns."""
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        options = (direction, dtype, str(-(-rounds // TURNS)), str(shrink))
        running = {name: stack.enter_context(start(name, *options)) for name in contenders()}
        for contender in running.values():
            contender.answer()  # it is ready: no import disturbs the first case
        for case in progress(list(cases)):
            rows += [_row(case, layout, running) for layout in LAYOUTS]
    return rows


def _row(case: str, layout: str, running: dict[str, Running]) -> Row:
    """One case by every contender that knows it."""
    shape: tuple[int, ...] = ()
    times: dict[str, list[float]] = {}
    for name in list(running) * TURNS:
        time.sleep(PAUSE)
        found, spent = running[name].turn(case, layout)
        shape = tuple(found)
        if spent is not None:
            times.setdefault(name, []).extend(spent)
    return Row(case, layout, shape, {name: statistics.median(spent) for name, spent in times.items()})


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
