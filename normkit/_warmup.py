"""Compiling ahead: what a service or a container wants to have done before its first request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

NORMS = ("instance", "layer", "group", "batch", "rms")
LAYOUTS = ("NC*", "N*C")
DTYPES = ("float16", "bfloat16", "float32", "float64", "uint8")
_SHAPES = {
    "small, on one thread": (2, 16, 6, 6),
    "long sets, on several threads": (5, 12, 1, 2304),
    "few sets, in pieces": (1, 4, 8, 5000),
}


def warmup(
    norms: Iterable[str] = NORMS,
    dtypes: Iterable[str] = ("float32",),
    *,
    layouts: Iterable[str] = LAYOUTS,
    gradients: bool = True,
    progress: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> int:
    """
    Compile the kernels of some norms and keep them on disk, so that no later call waits.

    Parameters
    ----------
    norms : iterable of {"instance", "layer", "group", "batch", "rms"}, default all
        Which norms.
    dtypes : iterable of {"float16", "bfloat16", "float32", "float64", "uint8"}, default ("float32",)
        Of x; uint8 with float32 results.
    layouts : iterable of {"NC*", "N*C"}, default both
        Channels first or channels last in memory.
    gradients : bool, default True
        Their gradients too.
    progress : callable, optional
        Wraps the iterable of steps, a line of text each, as a progress bar does.

    Returns
    -------
    int
        How many steps were taken.

    Raises
    ------
    ValueError
        A norm, dtype or layout that is not one of these.

    Notes
    -----
    Kernels go where Numba keeps its cache: NUMBA_CACHE_DIR, or beside the package, or the user's cache folder. On the command
    line this is ``python -m normkit warmup``.

    Examples
    --------
    >>> import normkit as nk
    >>> nk.warmup(["layer"], gradients=False, layouts=["NC*"])
    3
    """
    chosen = (_checked(norms, NORMS, "norms"), _checked(dtypes, DTYPES, "dtypes"), _checked(layouts, LAYOUTS, "layouts"))
    steps = dict(_steps(chosen, gradients))
    for step in progress(list(steps)):
        steps[step]()
    return len(steps)


def _checked(given: Iterable[str], known: tuple[str, ...], name: str) -> list[str]:
    values = [given] if isinstance(given, str) else list(given)
    for value in values:
        if value not in known:
            raise ValueError(f"{name} has {value!r}, expected some of {', '.join(known)}")
    return values


def _steps(chosen: tuple[list[str], list[str], list[str]], gradients: bool) -> Iterator[tuple[str, Callable[[], None]]]:
    norms, dtypes, layouts = chosen
    for norm in norms:
        for dtype in dtypes:
            for layout in layouts:
                for kind, shape in _SHAPES.items():
                    yield f"{norm} {dtype} {layout}: {kind}", _step(norm, dtype, layout, shape, gradients)


def _step(norm: str, dtype: str, layout: str, shape: tuple[int, ...], gradients: bool) -> Callable[[], None]:
    from . import functional
    from ._dtypes import bfloat16
    from .transforms import vjp

    def run() -> None:
        kind: Any = bfloat16() if dtype == "bfloat16" else dtype
        x = np.random.default_rng(0).integers(0, 100, shape).astype(kind)
        call: Any = getattr(functional, f"{norm}_norm")
        if layout == "N*C":
            x = _channels_last(x)
        count = x.shape[-1] if norm in ("layer", "rms") else x.shape[1]
        affine = [np.ones(count, np.float32)] * (1 if norm == "rms" else 2)
        arguments = [2] if norm == "group" else []
        options = {"dtype": np.float32} if dtype == "uint8" else {}
        call(x, *arguments, **options)
        y = call(x, *arguments, *affine, **options)
        if gradients:
            pullback = vjp(call, x, *arguments, *affine, **options)[1]
            pullback(y)
            pullback(np.ascontiguousarray(y) if layout == "N*C" else _channels_last(y))

    return run


def _channels_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
