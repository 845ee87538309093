"""Two photographs under four lights, before and after each norm; and the statistics of one put on the other.

Prints how much brightness and contrast each norm leaves, and its time beside the plain NumPy expression; writes a picture.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_image

import normkit as nk

mpl.use("Agg")
import matplotlib.pyplot as plt

PHOTOS = ("china.jpg", "flower.jpg")
LIGHTS = {"as taken": (1.0, 0.0), "brightened": (0.6, 100.0), "darkened": (0.4, 0.0), "flattened": (0.3, 90.0)}
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
EPS = 1e-5


def _group(x: np.ndarray, **options: Any) -> Any:
    return nk.group_norm(x, 2, **options)


def _layer(x: np.ndarray, **options: Any) -> Any:
    return nk.layer_norm(x, axis=(1, 2, 3), **options)


# name, what to see, normkit, and the plain NumPy expression: (groups of the channel axis, axes of the split array)
NORMS: dict[str, tuple[str, Callable[..., Any], tuple[int, tuple[int, ...]]]] = {
    "instance norm": ("light gone:\nall four look the same", nk.instance_norm, (1, (3, 4))),
    "group norm": ("some light left: sets of\n4 planes share one scale", _group, (2, (2, 3, 4))),
    "layer norm": ("more left: one scale\nfor all 8 planes", _layer, (1, (1, 2, 3, 4))),
    "batch norm": ("light stays: one scale\nfor all 8 photographs", nk.batch_norm, (1, (0, 3, 4))),
}  # fmt: skip


def photographs(shrink: int) -> np.ndarray:
    """Both photographs under every light: uint8 (photo, light, height, width, 3)."""
    taken = np.stack([load_sample_image(name)[::shrink, ::shrink] for name in PHOTOS]).astype(np.float32)
    lit = [np.rint(gain * taken + offset) for gain, offset in LIGHTS.values()]
    return np.stack(lit, axis=1).astype(np.uint8)


def features(photos: np.ndarray) -> np.ndarray:
    """A stack of 8 planes per image: red, green, blue; two slopes, curvature, blur and a corner filter of the luminance."""
    rgb = np.moveaxis(photos.reshape(-1, *photos.shape[2:]).astype(np.float32), -1, 1)
    grey = np.pad(rgb.mean(1), ((0, 0), (1, 1), (1, 1)), mode="edge")

    def filtered(kernel: list[list[float]]) -> np.ndarray:
        height, width = rgb.shape[2:]
        terms = (kernel[i][j] * grey[:, i : i + height, j : j + width] for i in range(3) for j in range(3))
        return np.asarray(sum(terms))

    planes = [
        filtered([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]),
        filtered([[-1, -2, -1], [0, 0, 0], [1, 2, 1]]),
        filtered([[0, 1, 0], [1, -4, 1], [0, 1, 0]]),
        filtered([[1 / 9] * 3] * 3),
        filtered([[1, 0, -1], [0, 0, 0], [-1, 0, 1]]),
    ]
    return np.ascontiguousarray(np.concatenate([rgb, np.stack(planes, axis=1)], axis=1))


def plain(x: np.ndarray, groups: int, axes: tuple[int, ...]) -> np.ndarray:
    """What one writes without a library."""
    parts = x.reshape(len(x), groups, -1, *x.shape[2:]) if groups > 1 else x[:, None]
    mean, var = parts.mean(axes, keepdims=True), parts.var(axes, keepdims=True)
    return np.asarray(((parts - mean) / np.sqrt(var + EPS)).reshape(x.shape))


def left(x: np.ndarray) -> tuple[float, float]:
    """How far brightness (mean) and contrast (deviation) of a plane move with the light, against its deviation."""
    planes = x.reshape(len(PHOTOS), len(LIGHTS), *x.shape[1:])
    mean, std = planes.mean((-1, -2), dtype=np.float64), planes.std((-1, -2), dtype=np.float64)
    scale = std.mean(1)
    return float((mean.std(1) / scale).mean()), float((std.std(1) / scale).mean())


def seconds(call: Callable[[], object], rounds: int) -> float:
    """Median time of a call, the first one left out."""
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def report(x: np.ndarray, rounds: int) -> Table:
    """Information left and time of every norm."""
    table = Table(title=f"{len(x)} images of {x.shape[1]} planes, {x.shape[2]} x {x.shape[3]}, float32 (medians of {rounds})")
    table.add_column("")
    for column in ("brightness left", "contrast left", "normkit ms", "NumPy ms", "times faster", "largest difference"):
        table.add_column(column, justify="right")
    before = left(x)
    table.add_row("before", "100 %", "100 %", "", "", "", "")
    out = np.empty_like(x)
    for name, (_, norm, recipe) in NORMS.items():
        y = norm(x, eps=EPS)
        after = left(y)
        ours, theirs = (seconds(call, rounds) for call in (lambda n=norm: n(x, out=out), lambda r=recipe: plain(x, *r)))
        difference = np.abs(y - plain(x.astype(np.float64), *recipe)).max()
        shares = [f"{100 * a / b:.0f} %" for a, b in zip(after, before, strict=True)]
        table.add_row(name, *shares, f"{1e3 * ours:.2f}", f"{1e3 * theirs:.2f}", f"{theirs / ours:.1f}", f"{difference:.0e}")
    return table


def picture(photos: np.ndarray, x: np.ndarray, path: Path) -> None:
    """The photographs before and after every norm, and AdaIN between them."""
    columns, rows = len(PHOTOS) * len(LIGHTS), 1 + len(NORMS)
    figure = plt.figure(figsize=(19, 14.5), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[rows * 1.2, 5.0])
    upper.suptitle("The same photograph under changed light, before and after each norm", fontsize=17, weight="bold")
    axes = upper.subplots(rows, columns)
    images = [(photos.reshape(-1, *photos.shape[2:]), "before", "two photographs,\nfour lights each")]
    for name, (see, norm, _) in NORMS.items():
        rgb = np.moveaxis(norm(x)[:, :3], 1, -1)
        images.append((np.clip(rgb / 4.4 + 0.5, 0, 1), name, see))
    for row, (stack, name, see) in zip(axes, images, strict=True):
        for axis, image, light in zip(row, stack, list(LIGHTS) * len(PHOTOS), strict=True):
            axis.imshow(image)
            axis.set_xticks([])
            axis.set_yticks([])
            if name == "before":
                axis.set_title(light, fontsize=12)
        row[0].text(-0.08, 0.62, name, transform=row[0].transAxes, fontsize=15, weight="bold", ha="right", va="bottom")
        row[0].text(-0.08, 0.52, see, transform=row[0].transAxes, fontsize=12, ha="right", va="top")
    lower.suptitle("AdaIN: each photograph with the other's statistics", fontsize=17, weight="bold")
    grid = lower.subplots(len(PHOTOS), 1 + len(ALPHAS))
    for k, row in enumerate(grid):
        content, style = photos[k, :1], photos[1 - k, :1]
        shown = [("statistics from", style[0])]
        for alpha in ALPHAS:
            y = nk.adaptive_instance_norm(content, style, channel_axis=-1, alpha=alpha, dtype=np.float32)
            shown.append((f"alpha = {alpha:g}", np.clip(y[0] / 255, 0, 1)))
        for axis, (title, image) in zip(row, shown, strict=True):
            axis.imshow(image)
            axis.set_title(title, fontsize=12)
            axis.axis("off")
    figure.savefig(path, dpi=75)
    plt.close(figure)


def main() -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("style_contrast.png"), help="where the picture goes")
    parser.add_argument("--shrink", type=int, default=1, help="take every n-th pixel of the photographs")
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each norm")
    options = parser.parse_args()
    photos = photographs(options.shrink)
    x = features(photos)
    console = Console(width=120)
    with console.status("compiling on the first call, then from the cache"):
        table = report(x, options.rounds)
    console.print(table)
    console.print("Brightness and contrast left: how far a plane's mean and deviation still follow the light, before = 100 %.")
    picture(photos, x, options.out)
    console.print(f"Picture: {options.out}")


if __name__ == "__main__":
    main()
