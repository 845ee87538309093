"""``python -m normkit info``, ``warmup`` and ``bench``."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import pathlib
import platform
import sys
from collections.abc import Callable, Iterable

from . import __version__, get_num_threads
from ._warmup import DTYPES, LAYOUTS, NORMS, warmup


def _bar(title: str) -> Callable[[Iterable[str]], Iterable[str]]:
    """Progress on stderr: a bar where rich is installed, else a line for each step."""
    if importlib.util.find_spec("rich"):
        from rich.console import Console
        from rich.progress import track

        return lambda steps: track(list(steps), title, console=Console(stderr=True))

    def lines(steps: Iterable[str]) -> Iterable[str]:
        for step in steps:
            print(f"{title}: {step}", file=sys.stderr, flush=True)
            yield step

    return lines


def _info(_: argparse.Namespace) -> None:
    from . import normalize
    from ._cpu import runs, threads

    normalize([[1.0, 2.0]], 1)
    facts = {"normkit": __version__, "Python": platform.python_version(), "machine": platform.machine()}
    for package in ("numpy", "numba", "numba-cuda", "cuda-core", "torch", "jax", "cupy-cuda13x"):
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
    parallel = threads.may_run_parallel()
    facts["threads"] = f"{get_num_threads()}" + ("" if parallel else ", kernels run on one")
    facts["threading layer"] = _layer()
    facts["kernels are kept in"] = str(getattr(runs.forward.stats, "cache_path", None) or "memory only")
    facts["CUDA"] = _devices()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:{width}}  {value}")


def _layer() -> str:
    import numba

    try:
        numba.get_num_threads()  # starts it
        return str(numba.threading_layer())
    except ValueError as error:
        return f"none: {str(error).splitlines()[0]}"


def _devices() -> str:
    try:
        from ._cuda import demand
    except ImportError as error:
        return f"not installed ({error}); pip install 'normkit[cuda13]'"
    try:
        demand(0)
    except (ImportError, OSError, RuntimeError) as error:
        return str(error)
    return "device 0 can be used"


def _warm(options: argparse.Namespace) -> None:
    steps = warmup(
        options.norms, options.dtypes, layouts=options.layouts, gradients=not options.forward_only, progress=_bar("compiling")
    )
    print(f"{steps} kinds of calls are ready")


def _bench(options: argparse.Namespace) -> None:
    from .bench import table

    rows = table.run(
        options.direction, options.dtype, options.rounds, options.shrink, options.cases or table.CASES, _bar("measuring")
    )
    if options.json:
        print(json.dumps([{"case": r.case, "layout": r.layout, "shape": r.shape, "ms": r.times} for r in rows], indent=1))
    else:
        print(table.markdown(rows))
    if options.plot:
        if not importlib.util.find_spec("matplotlib"):
            raise SystemExit("--plot needs matplotlib; pip install 'normkit[cli]'")
        table.plot(rows, options.plot)


def main(arguments: list[str] | None = None) -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(prog="python -m normkit", description="normkit on this machine")
    commands = parser.add_subparsers(required=True)
    info = commands.add_parser("info", help="versions, threads, where kernels are kept, devices")
    info.set_defaults(run=_info)
    warm = commands.add_parser("warmup", help="compile ahead, for a container or a service")
    warm.add_argument("--norms", nargs="+", choices=NORMS, default=NORMS)
    warm.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32"])
    warm.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS)
    warm.add_argument("--forward-only", action="store_true", help="without gradients")
    warm.set_defaults(run=_warm)
    bench = commands.add_parser("bench", help="this machine's table of speed")
    bench.add_argument("direction", nargs="?", choices=["forward", "backward"], default="forward")
    bench.add_argument("--dtype", default="float32", choices=["float16", "float32", "float64"])
    bench.add_argument("--rounds", type=int, default=5, help="calls of a case, at least")
    bench.add_argument("--shrink", type=int, default=1, help="divide the large axes, for a quick look")
    bench.add_argument("--cases", nargs="+", metavar="CASE", help="some of the table, by name")
    bench.add_argument("--json", action="store_true", help="all medians, as JSON")
    bench.add_argument("--plot", type=pathlib.Path, metavar="PNG", help="write a picture")
    bench.set_defaults(run=_bench)
    options = parser.parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
