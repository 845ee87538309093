"""The norm layers of `torch.nn` with normkit's kernels.

Each is a subclass of the layer it stands for, with another `forward`: constructor, parameters, buffers, `state_dict`, printing
and pickling are PyTorch's own, and so weights load either way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from . import _ops
from ._functions import adaptive_instance_norm, group_norm, layer_norm, rms_norm

Tensor = torch.Tensor


class _Running:
    """What batch and instance norm share: statistics of the batch in training, running ones in evaluation."""

    weight: Any
    bias: Any
    eps: float
    momentum: float | None
    affine: bool
    training: bool
    num_features: int
    track_running_stats: bool
    running_mean: Any
    running_var: Any
    num_batches_tracked: Any
    _check_input_dim: Any
    _get_no_batch_dim: Any

    def _normalize(self, name: str, x: Tensor, by_batch: bool) -> tuple[Tensor, Tensor]:
        """(y, statistics used), by the batch's own or the running ones."""
        mean = var = None
        if not by_batch:
            name, lie = "batch_norm", [1, -1, *[1] * (x.ndim - 2)]
            mean, var = self.running_mean.view(lie), self.running_var.view(lie)
        spec = repr((name, (), {"eps": self.eps}))
        y, used = _ops.norm(x, self.weight, self.bias, mean, var, spec)
        return y, used

    @torch.no_grad()
    def _follow(self, used: Tensor, count: int, share: float) -> None:
        """Move the running statistics by `share` towards those of the batch: the mean over samples, the unbiased variance."""
        if count == 0:  # an empty batch says nothing
            return
        mean, m2 = (used[row].mean(0).flatten() for row in (0, 2))
        self.running_mean.mul_(1 - share).add_(share * mean.to(self.running_mean.dtype))
        if count > 1:
            var = m2 / (count - 1)
            self.running_var.mul_(1 - share).add_(share * var.to(self.running_var.dtype))


class _BatchForward(_Running):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - PyTorch's name
        """Normalize a batch."""
        self._check_input_dim(input)
        by_batch = self.training or self.running_mean is None
        y, used = self._normalize("batch_norm", input, by_batch)
        if self.training and self.track_running_stats and self.running_mean is not None:
            share = self.momentum
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
                if self.momentum is None:  # the plain average of all batches
                    share = 1.0 / float(self.num_batches_tracked)
            self._follow(used, input.numel() // max(1, input.shape[1]), 0.0 if share is None else share)
        return y


class BatchNorm1d(_BatchForward, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` with normkit's kernels."""


class BatchNorm2d(_BatchForward, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` with normkit's kernels."""


class BatchNorm3d(_BatchForward, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` with normkit's kernels."""


class _InstanceForward(_Running):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - PyTorch's name
        """Normalize a batch, or one sample without a batch axis."""
        self._check_input_dim(input)
        if input.dim() == self._get_no_batch_dim():
            return self._batched(input.unsqueeze(0)).squeeze(0)
        return self._batched(input)

    def _batched(self, x: Tensor) -> Tensor:
        by_batch = self.training or not self.track_running_stats
        if x.shape[1] != self.num_features and self.affine:
            raise ValueError(f"expected input's channel size to be num_features={self.num_features}, but got {x.shape[1]}")
        y, used = self._normalize("instance_norm", x, by_batch)
        if by_batch and self.running_mean is not None:
            share = 0.0 if self.momentum is None else self.momentum
            self._follow(used, x.numel() // max(1, x.shape[0] * x.shape[1]), share)
        return y


class InstanceNorm1d(_InstanceForward, nn.InstanceNorm1d):
    """`torch.nn.InstanceNorm1d` with normkit's kernels."""


class InstanceNorm2d(_InstanceForward, nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d` with normkit's kernels."""


class InstanceNorm3d(_InstanceForward, nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d` with normkit's kernels."""


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm` with normkit's kernels."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - PyTorch's name
        """Normalize a batch."""
        found: Tensor = group_norm(input, self.num_groups, self.weight, self.bias, eps=self.eps)
        return found


def _trailing(x: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of `normalized_shape`, the last ones of x."""
    if tuple(x.shape[x.ndim - len(shape) :]) != tuple(shape):
        raise ValueError(f"input has shape {tuple(x.shape)}, expected its last axes to be normalized_shape={tuple(shape)}")
    return tuple(range(-len(shape), 0))


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` with normkit's kernels."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - PyTorch's name
        """Normalize the last axes."""
        axis = _trailing(input, self.normalized_shape)
        found: Tensor = layer_norm(input, self.weight, self.bias, axis=axis, eps=self.eps)
        return found


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm` with normkit's kernels."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last axes."""
        axis = _trailing(x, self.normalized_shape)
        kind = torch.float64 if x.dtype == torch.float64 else torch.float32
        eps = torch.finfo(kind).eps if self.eps is None else self.eps
        found: Tensor = rms_norm(x, self.weight, axis=axis, eps=eps)
        return found


class AdaptiveInstanceNorm(nn.Module):
    """Adaptive instance normalization (AdaIN): the content with the style's mean and deviation.

    Parameters
    ----------
    alpha : float, default 1.0
        Strength: 0 gives the content, 1 the style's statistics.
    eps : float, default 1e-5
        Added to the variance of the content inside the root.
    """

    def __init__(self, alpha: float = 1.0, eps: float = 1e-5) -> None:
        super().__init__()
        self.alpha, self.eps = alpha, eps

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        """The content, (N, C, ...), in the style, (N, C, ...) or (1, C, ...)."""
        return adaptive_instance_norm(content, style, alpha=self.alpha, eps=self.eps)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"alpha={self.alpha}, eps={self.eps}"


_REPLACEMENTS = {
    getattr(nn, ours.__name__): ours
    for ours in (
        BatchNorm1d,
        BatchNorm2d,
        BatchNorm3d,
        GroupNorm,
        InstanceNorm1d,
        InstanceNorm2d,
        InstanceNorm3d,
        LayerNorm,
        RMSNorm,
    )
}


def replace_norms(model: nn.Module) -> dict[str, str]:
    """
    Swap every norm layer of a model for normkit's, in place.

    Parameters
    ----------
    model : torch.nn.Module
        A model that is on the CPU. Its layers stay the same objects, with their parameters, buffers, hooks and modes, so an
        optimizer that holds the parameters goes on; only their `forward` changes. Subclasses of `torch.nn`'s layers, such
        as `SyncBatchNorm`, have a `forward` of their own and are left alone.

    Returns
    -------
    dict of str to str
        The qualified name of every layer that was changed, and its class.

    Raises
    ------
    TypeError
        `model` is no module.

    Examples
    --------
    >>> import torch, normkit.torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.InstanceNorm2d(8), torch.nn.ReLU())
    >>> normkit.torch.replace_norms(model)
    {'1': 'InstanceNorm2d'}
    >>> model(torch.zeros(1, 3, 8, 8)).shape
    torch.Size([1, 8, 6, 6])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__qualname__}")
    changed = {}
    for name, layer in model.named_modules():
        ours = _REPLACEMENTS.get(type(layer))
        if ours is not None:
            layer.__class__ = ours
            changed[name] = ours.__name__
    return changed
