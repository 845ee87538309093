"""Adaptive instance normalization as an operator of PyTorch, with its gradient."""

from __future__ import annotations

from typing import Any

import torch

from normkit import functional
from normkit.transforms import vjp

from ._ops import as_like, plain

Tensor = torch.Tensor


@torch.library.custom_op(
    "normkit::adain",
    mutates_args=(),
    schema="(Tensor content, Tensor style, int channel_axis, float alpha, float eps) -> Tensor",
)
def adain(content: Any, style: Any, channel_axis: int, alpha: float, eps: float) -> Tensor:
    """Adaptive instance normalization."""
    arrays = plain(content, style)
    found = functional.adaptive_instance_norm(*arrays, channel_axis=channel_axis, alpha=alpha, eps=eps)
    return as_like(found, content)


@adain.register_fake
def _shapes(content: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(content)


@torch.library.custom_op(
    "normkit::adain_backward",
    mutates_args=(),
    schema="(Tensor dy, Tensor content, Tensor style, int channel_axis, float alpha, float eps) -> (Tensor, Tensor)",
)
def adain_backward(dy: Any, content: Any, style: Any, channel_axis: int, alpha: float, eps: float) -> tuple[Tensor, Tensor]:
    """Gradients of content and style; the statistics are taken anew."""
    arrays = plain(content, style)
    options = {"channel_axis": channel_axis, "alpha": alpha, "eps": eps}
    gradients = vjp(functional.adaptive_instance_norm, *arrays, **options)[1](dy.detach())
    return as_like(gradients.content, content), as_like(gradients.style, style)


@adain_backward.register_fake
def _backward_shapes(_: Tensor, content: Tensor, style: Tensor, *__: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(content), torch.empty_like(style)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.options = inputs[2:]


def _backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    content, style = ctx.saved_tensors
    if torch.is_grad_enabled():
        with torch.enable_grad():
            return (*_differentiable(dy, content, style, *ctx.options), None, None, None)
    return (*adain_backward(dy, content, style, *ctx.options), None, None, None)


adain.register_autograd(_backward, setup_context=_setup)


def _differentiable(
    dy: Tensor, content: Tensor, style: Tensor, channel_axis: int, alpha: float, eps: float
) -> tuple[Tensor, ...]:
    """The gradients of the formula in PyTorch operations, which have gradients themselves."""

    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        channel = channel_axis % x.ndim
        spatial = [axis for axis in range(x.ndim) if axis not in (0, channel)]
        mean = x.mean(spatial, keepdim=True)
        return mean, (x - mean).square().mean(spatial, keepdim=True)

    channel = channel_axis % content.ndim
    lie = [1] * content.ndim
    lie[0], lie[channel] = style.shape[0], content.shape[channel]
    (mean, var), (style_mean, style_var) = moments(content), moments(style)
    x_hat = (content - mean) * (var + eps).rsqrt()
    y = alpha * (style_var.sqrt().reshape(lie) * x_hat + style_mean.reshape(lie)) + (1 - alpha) * content
    return torch.autograd.grad(y, (content, style), dy, create_graph=True)
