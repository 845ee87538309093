"""A style-transfer network in PyTorch on the CPU, before and after `normkit.torch.replace_norms`.

The generator of Johnson, Alahi and Fei-Fei, Perceptual Losses (2016), with instance norm as in Ulyanov, Vedaldi and Lempitsky
(2016): convolutions, five residual blocks, 15 norms. One step is a forward and a backward pass of one image.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import normkit.torch


def block(narrow: int, wide: int, size: int, stride: int = 1, grow: int = 1, last: bool = False) -> nn.Sequential:
    """Convolution with reflected borders, instance norm, rectifier."""
    layers: list[nn.Module] = [nn.Upsample(scale_factor=grow)] if grow > 1 else []
    layers += [nn.ReflectionPad2d(size // 2), nn.Conv2d(narrow, wide, size, stride)]
    return nn.Sequential(*layers, *([] if last else [nn.InstanceNorm2d(wide, affine=True), nn.ReLU()]))


class Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(block(width, width, 3), block(width, width, 3)[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """X and what the body adds to it."""
        return x + self.body(x)


def generator() -> nn.Sequential:
    """Down twice, five residual blocks, up twice."""
    return nn.Sequential(
        block(3, 32, 9),
        block(32, 64, 3, stride=2),
        block(64, 128, 3, stride=2),
        *(Residual(128) for _ in range(5)),
        block(128, 64, 3, grow=2),
        block(64, 32, 3, grow=2),
        block(32, 3, 9, last=True),
        nn.Tanh(),
    )


def step(model: nn.Module, image: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The styled image, and the gradients of every parameter and of the image."""
    model.zero_grad()
    x = image.clone().requires_grad_()
    y = model(x)
    y.square().mean().backward()
    return y.detach(), [p.grad.clone() for p in (*model.parameters(), x)]


def median(calls: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median milliseconds of each call, taken in turns."""
    times: list[list[float]] = [[] for _ in calls]
    for k in range(rounds + 1):
        for call, own in zip(calls, times, strict=True):
            begin = time.perf_counter()
            call()
            if k:
                own.append(1e3 * (time.perf_counter() - begin))
    return [float(np.median(own)) for own in times]


def norms_alone(model: nn.Module, image: Tensor) -> Callable[[], None]:
    """A call that runs the norms of a model, forward and backward, on what they see in it."""
    seen: list[tuple[nn.Module, Tensor]] = []
    layers = [layer for layer in model.modules() if isinstance(layer, nn.InstanceNorm2d)]
    hooks = [layer.register_forward_hook(lambda layer, x, _: seen.append((layer, x[0].detach()))) for layer in layers]
    with torch.no_grad():
        model(image)
    for hook in hooks:
        hook.remove()

    def run() -> None:
        for layer, x in seen:
            y = layer(x.requires_grad_())
            y.backward(x)

    return run


def main() -> None:
    """Compare values and gradients, then times.

    A convolution's bias before a norm has no gradient but rounding, so gradients are compared beside the largest of all.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    before = generator()
    after = copy.deepcopy(before)
    changed = normkit.torch.replace_norms(after)
    image = torch.rand(1, 3, options.size, options.size)
    (y, gradients), (z, others) = step(before, image), step(after, image)
    largest = max(float(a.abs().max()) for a in gradients)
    apart = max(float((a - b).abs().max()) for a, b in zip(gradients, others, strict=True)) / largest
    console = Console(width=100)
    console.print(f"replace_norms changed {len(changed)} layers: {', '.join(sorted(set(changed.values())))}")
    console.print(
        f"largest difference of the image: {float((y - z).abs().max()):.1e}, of the gradients, beside the largest: {apart:.1e}"
    )
    calls = [lambda: step(before, image), lambda: step(after, image), norms_alone(before, image), norms_alone(after, image)]
    whole, whole_after, norms, norms_after = median(calls, options.rounds)
    table = Table(title=f"forward and backward, {options.size} x {options.size}, {torch.get_num_threads()} threads, medians")
    for column in ("", "torch.nn", "normkit", "ratio"):
        table.add_column(column, justify="right")
    for name, theirs, ours in (("whole step", whole, whole_after), ("its norms", norms, norms_after)):
        table.add_row(name, f"{theirs:.0f} ms", f"{ours:.0f} ms", f"{theirs / ours:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
