"""A convolutional network trained in pure NumPy, with normkit for norms and their gradients.

Handwritten digits, two convolutions, and between them batch norm, instance norm or none, at batch sizes 2 and 64. Every layer
is a function that returns its value and a pullback, as `normkit.vjp` does, so a network is a list of layers.
"""

from __future__ import annotations

import argparse
import pathlib
import time
from collections.abc import Callable, Iterator

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from numpy.lib.stride_tricks import sliding_window_view
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits

import normkit as nk

Array = np.ndarray
Pullback = Callable[[Array], tuple[Array, list[Array]]]  # dy -> (dx, gradients of the parameters)


def windows(x: Array) -> Array:
    """(N, H, W, C, 3, 3): the neighbourhood of every pixel, zeros outside; a view."""
    return sliding_window_view(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), axis=(1, 2))


def convolve(x: Array, kernel: Array) -> tuple[Array, Pullback]:
    """3 x 3 convolution of (N, H, W, C) with a kernel (C, 3, 3, D)."""

    def pullback(dy: Array) -> tuple[Array, list[Array]]:
        dkernel = np.tensordot(windows(x), dy, ((0, 1, 2), (0, 1, 2)))
        turned = kernel[:, ::-1, ::-1].transpose(3, 1, 2, 0)
        return np.tensordot(windows(dy), turned, 3), [dkernel]

    return np.tensordot(windows(x), kernel, 3), pullback


def rectify(x: Array) -> tuple[Array, Pullback]:
    """The positive part of x."""
    return np.maximum(x, 0), lambda dy: (dy * (x > 0), [])


def pool(x: Array) -> tuple[Array, Pullback]:
    """Means over 2 x 2 pixels."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4)), lambda dy: (dy.repeat(2, 1).repeat(2, 2) / 4, [])


def classify(x: Array, weight: Array) -> tuple[Array, Pullback]:
    """A linear map of all pixels and channels to the classes."""
    flat = x.reshape(len(x), -1)
    return flat @ weight, lambda dy: ((dy @ weight.T).reshape(x.shape), [flat.T @ dy])


class Norm:
    """Batch norm with running moments, instance norm, or nothing."""

    def __init__(self, kind: str) -> None:
        self.kind, self.running = kind, None

    def __call__(self, x: Array, weight: Array, bias: Array, training: bool) -> tuple[Array, Pullback]:
        """The norm of (N, H, W, C) and its pullback."""
        if self.kind == "none":
            return x * weight + bias, lambda dy: (dy * weight, [(dy * x).sum((0, 1, 2)), dy.sum((0, 1, 2))])
        if self.kind == "instance":
            y, pull = nk.vjp(nk.instance_norm, x, weight, bias, channel_axis=-1)
        elif training:  # the three lines of batch norm: normalize by the batch, keep a running average ...
            (y, batch), pull = nk.vjp(nk.batch_norm, x, weight, bias, channel_axis=-1, return_moments=True)
            self.running = batch if self.running is None else self.running.ema(batch)
        else:  # ... and by that at inference
            y, pull = nk.vjp(nk.batch_norm, x, weight, bias, channel_axis=-1, moments=self.running)

        def pullback(dy: Array) -> tuple[Array, list[Array]]:
            gradients = pull(dy)
            return gradients.x, [gradients.weight, gradients.bias]

        return y, pullback


class Network:
    """Convolution, norm, rectifier, pooling, and again, then the classes."""

    def __init__(self, kind: str, rng: np.random.Generator) -> None:
        self.norms = [Norm(kind), Norm(kind)]
        widths = [(1, 16), (16, 32)]
        self.parameters: list[Array] = []
        for wide, narrow in widths:
            kernel = rng.normal(0, np.sqrt(2 / (9 * wide)), (wide, 3, 3, narrow)).astype(np.float32)
            self.parameters += [kernel, np.ones(narrow, np.float32), np.zeros(narrow, np.float32)]
        self.parameters.append(rng.normal(0, np.sqrt(1 / 128), (128, 10)).astype(np.float32))

    def __call__(self, x: Array, training: bool) -> tuple[Array, Callable[[Array], list[Array]]]:
        """Scores of the classes, and what turns their gradient into those of the parameters."""
        pulls: list[Pullback] = []

        def through(layer: tuple[Array, Pullback]) -> Array:
            pulls.append(layer[1])
            return layer[0]

        for k, norm in enumerate(self.norms):
            kernel, weight, bias = self.parameters[3 * k : 3 * k + 3]
            x = through(norm(through(convolve(x, kernel)), weight, bias, training))
            x = through(pool(through(rectify(x))))
        scores = through(classify(x, self.parameters[-1]))

        def pullback(dy: Array) -> list[Array]:
            found: list[Array] = []
            for pull in reversed(pulls):
                dy, own = pull(dy)
                found = own + found
            return found

        return scores, pullback


def cross_entropy(scores: Array, labels: Array) -> tuple[float, Array]:
    """Mean loss, and its gradient with respect to the scores."""
    shifted = scores - scores.max(1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    rows = np.arange(len(labels))
    dy = np.exp(logs)
    dy[rows, labels] -= 1
    return float(-logs[rows, labels].mean()), (dy / len(labels)).astype(np.float32)


def batches(n: int, size: int, samples: int, rng: np.random.Generator) -> Iterator[Array]:
    """Indices of random batches, `samples` images in all."""
    for _ in range(samples // size):
        yield rng.choice(n, size, replace=False)


def train(kind: str, size: int, samples: int, data: tuple[Array, ...]) -> tuple[list[float], float]:
    """Losses step by step, and the accuracy on images not seen."""
    images, labels, test_images, test_labels = data
    rng = np.random.default_rng(0)
    network = Network(kind, rng)
    rate, speed = 0.1 * min(1.0, size / 16), [np.zeros_like(p) for p in network.parameters]
    losses = []
    for chosen in batches(len(images), size, samples, rng):
        scores, pullback = network(images[chosen], training=True)
        loss, dscores = cross_entropy(scores, labels[chosen])
        for parameter, velocity, gradient in zip(network.parameters, speed, pullback(dscores), strict=True):
            velocity *= 0.9
            velocity -= rate * gradient
            parameter += velocity
        losses.append(loss)
    scores = network(test_images, training=False)[0]
    return losses, float(np.mean(scores.argmax(1) == test_labels))


def smooth(losses: list[float], size: int) -> tuple[Array, Array]:
    """(images seen, mean loss of the last 1000 images)."""
    width = max(1, min(len(losses) // 4, 1000 // size))
    return np.arange(width, len(losses) + 1) * size, np.convolve(losses, np.ones(width) / width, "valid")


def main() -> None:
    """Train six networks, print their accuracies, draw their losses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=12_000, help="images seen in each training")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("train_numpy.png"))
    options = parser.parse_args()
    digits = load_digits()
    images = ((digits.images[..., None] - 8) / 8).astype(np.float32)
    data = (images[:1400], digits.target[:1400], images[1400:], digits.target[1400:])
    console = Console(width=100)
    runs = {(kind, size): None for size in (2, 64) for kind in ("none", "batch", "instance")}
    begin = time.perf_counter()
    for kind, size in track(list(runs), "training", console=Console(stderr=True)):
        runs[kind, size] = train(kind, size, options.samples, data)
    table = Table(title=f"{options.samples} images seen, {time.perf_counter() - begin:.0f} s in all")
    for column in ("norm", "batch size", "loss at the end", "right on unseen images"):
        table.add_column(column, justify="right")
    mpl.use("Agg")
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for (kind, size), (losses, accuracy) in runs.items():
        seen, mean = smooth(losses, size)
        table.add_row(kind, str(size), f"{mean[-1]:.3f}", f"{100 * accuracy:.1f} %")
        axis = axes[int(size == 64)]
        axis.plot(seen, mean, label=f"{kind} norm" if kind != "none" else "no norm")
        axis.set(title=f"batch size {size}", xlabel="images seen", ylabel="loss", yscale="log")
    axes[0].legend()
    figure.savefig(options.out, dpi=120)
    console.print(table)
    console.print(f"losses drawn in {options.out.name}")


if __name__ == "__main__":
    main()
