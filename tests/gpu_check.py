"""`make gpu-check`: everything that only a device can show. Runs the tests on it, times the case table, writes a page.

Needs a device, its driver, PyTorch built for CUDA, and CuPy.
"""

import os
import pathlib
import shutil
import subprocess
import sys
from dataclasses import dataclass

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gpu-results.md"
TESTS = ("tests/test_cuda.py", "tests/test_on_device.py")
CONTENDERS = ("normkit", "PyTorch eager", "torch.compile")


@dataclass(frozen=True)
class Row:
    """Median milliseconds of one case: of a copy (forward) or a triad (backward) of the same bytes, and of each contender."""

    case: str
    shape: tuple[int, ...]
    layout: str
    direction: str
    reference: float
    times: dict[str, float]  # without those that have no such norm


def run_tests(library, sanitizer=None):
    """The tests on the device with arrays of a library; (whether they passed, the last line of their output)."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    if sanitizer:
        command = [sanitizer, "--tool", "memcheck", "--error-exitcode", "9", *command, "-k", "every_norm"]
    environment = {**os.environ, "NORMKIT_GPU": library, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout[-2000:], done.stderr[-2000:])
    return done.returncode == 0, (done.stdout.strip().splitlines() or ["no output"])[-1]


# ------------------------------------------------------------------------------------------------------------------ times
def milliseconds(torch, calls, rounds=30):
    """Median of each call on the device, taken in turns."""
    times = [[] for _ in calls]
    for k in range(rounds + 3):
        for call, own in zip(calls, times, strict=True):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            if k >= 3:
                own.append(begin.elapsed_time(end))
    return [float(np.median(own)) for own in times]


def peer(torch, case, x):
    """PyTorch's function of the same norm, with weight and bias; None where it has none."""
    shape = [x.shape[axis] for axis in case.affine]
    pair = [torch.ones(shape, device="cuda", requires_grad=True), torch.zeros(shape, device="cuda", requires_grad=True)]
    return None if case.peers is None else lambda t: case.peers.torch(torch.nn.functional, t, *pair)


def time_case(torch, name, case, layout):
    """The two rows of a case."""
    sys.path.insert(0, str(ROOT / "asv_bench"))
    import normkit as nk
    from normkit.bench.cases import make

    x = torch.from_numpy(make(case, layout)).cuda()
    out, flat, theirs = torch.empty_like(x), x.reshape(-1).clone(), peer(torch, case, x)
    copied, dy = torch.empty_like(flat), torch.randn_like(x)
    forward, backward = {"normkit": lambda: case.forward(x, out=out)}, {}
    shape = tuple(x.shape[axis] for axis in case.affine) + (1,) * ((x.ndim - 2) if case.norm is nk.normalize else 0)
    pair = [torch.ones(shape, device="cuda"), torch.zeros(shape, device="cuda")][: 1 if case.norm is nk.rms_norm else 2]
    pullback = nk.vjp(case.norm, x, *case.args, *pair, **case.options)[1]
    backward["normkit"] = lambda: pullback(dy)
    if theirs is not None:
        for label, function in (("PyTorch eager", theirs), ("torch.compile", torch.compile(theirs))):
            given = x.detach().clone().requires_grad_()
            result = function(given)
            forward[label] = lambda function=function: function(x)
            backward[label] = lambda result=result, given=given: torch.autograd.grad(result, given, dy, retain_graph=True)
    with torch.no_grad():
        measured = milliseconds(torch, [lambda: copied.copy_(flat), *forward.values()])
    triad = milliseconds(torch, [lambda: torch.add(flat, copied, out=copied), *backward.values()])
    for direction, labels, found in (("forward", forward, measured), ("backward", backward, triad)):
        yield Row(name, tuple(x.shape), layout, direction, found[0], dict(zip(labels, found[1:], strict=True)))


def host_microseconds(torch):
    """What a small call costs the host: enqueued many at a time, waited for at the end."""
    import time

    import normkit as nk

    x = torch.randn(4, 16, 64, device="cuda")
    out = torch.empty_like(x)
    for _ in range(100):
        nk.instance_norm(x, out=out)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(1000):
        nk.instance_norm(x, out=out)
    spent = time.perf_counter() - start
    torch.cuda.synchronize()
    return 1e3 * spent


# ------------------------------------------------------------------------------------------------------------------- page
def page(about, tests, rows, host):
    """The page, in Markdown."""
    lines = [
        "# Results on a GPU",
        "",
        "Written by `make gpu-check`.",
        "",
        *(f"- {key}: {value}" for key, value in about.items()),
        "",
        "| tests with arrays of | result |",
        "| --- | --- |",
        *(f"| {name} | {'passed' if passed else '**FAILED**'}: {last} |" for name, (passed, last) in tests.items()),
        "",
        f"A call on a (4, 16, 64) array costs the host {host:.1f} microseconds.",
        "",
        "Medians in milliseconds; *share* is the time of a device-to-device copy (backward: of a triad) of the same bytes, in",
        "the same run, over that of normkit.",
        "",
        f"| case | shape | layout | pass | share | {' | '.join(CONTENDERS)} |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        times = [f"{row.times[name]:.3f}" if name in row.times else "" for name in CONTENDERS]
        share = row.reference / row.times["normkit"]
        lines.append(f"| {row.case} | {row.shape} | {row.layout} | {row.direction} | {share:.2f} | {' | '.join(times)} |")
    return "\n".join(lines) + "\n"


def main():
    """Run everything; exit with 1 if a test failed."""
    from normkit._cuda import launch

    launch.driver.demand(0)
    import cupy
    import torch

    sys.path.insert(0, str(ROOT / "asv_bench"))
    from normkit.bench.cases import CASES, LAYOUTS

    tests = {library: run_tests(library) for library in ("torch", "cupy")}
    if sanitizer := shutil.which("compute-sanitizer"):
        tests["torch, under compute-sanitizer"] = run_tests("torch", sanitizer)
    rows = [row for name, case in CASES.items() for layout in LAYOUTS for row in time_case(torch, name, case, layout)]
    about = {
        "device": torch.cuda.get_device_name(0),
        "CUDA driver": launch.cu.cuDriverGetVersion()[1],
        "PyTorch": torch.__version__,
        "CuPy": cupy.__version__,
        "compiler": launch.versions(),
    }
    PAGE.write_text(page(about, tests, rows, host_microseconds(torch)))
    print(PAGE.read_text())
    return int(not all(passed for passed, _ in tests.values()))


if __name__ == "__main__":
    sys.exit(main())
