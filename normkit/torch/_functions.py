"""The norms as differentiable functions of tensors."""

from __future__ import annotations

from typing import Any

import torch

from normkit._moments import Moments
from normkit.sets import NormSet, Sets

from . import _adain, _ops

Tensor = torch.Tensor


def _call(
    name: str,
    tensors: tuple[Any, Any, Any],
    args: tuple[Any, ...],
    keywords: dict[str, Any],
    moments: Moments | None = None,
    return_moments: bool = False,
) -> Any:
    """One norm, by its operator."""
    x = tensors[0]
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"x must be a torch.Tensor, not {type(x).__qualname__}; normkit.{name} takes any array")
    mean = var = None
    if moments is not None:
        if not isinstance(moments, Moments):
            raise TypeError(f"moments must be normkit.Moments, not {type(moments).__qualname__}")
        correction = keywords.pop("correction", 0)
        spread = moments._variance(correction)
        mean, var = (_ops.tensor_of(values).to(x.device) for values in (moments.mean, spread))
    y, used = _ops.norm(*tensors, mean, var, repr((name, args, keywords)))
    if not return_moments:
        return y
    if moments is None:
        count = x.numel() / max(1, used[0].numel())
        statistics = _ops.numbers_of(used)
        moments = Moments._from_m2(count, statistics[0], statistics[2])
    return y, moments


def normalize(
    x: Tensor,
    sets: Sets,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    center: bool = True,
    correction: float = 0,
    moments: Moments | None = None,
    return_moments: bool = False,
    **sizes: int,
) -> Any:
    """
    Normalize a tensor over any sets, as `normkit.normalize`, with gradients for x, weight and bias.

    Parameters
    ----------
    x : torch.Tensor
        On the CPU, of any strides; float16, bfloat16, float32 or float64.
    sets : int, tuple of int, str or NormSet
        What shares one mean and one variance.
    weight, bias : torch.Tensor, optional
        Of any shape that broadcasts against x.
    eps : float, default 1e-5
        Added to the variance inside the root.
    center : bool, default True
        Subtract the mean.
    correction : float, default 0
        The variance is the sum of squares over ``n - correction``.
    moments : Moments, optional
        Statistics to normalize by; they are constants for the gradient.
    return_moments : bool, default False
        Return ``(y, Moments)``; they carry no gradient.
    **sizes : int
        Sizes of named axes and parts of a pattern.

    Returns
    -------
    torch.Tensor
        Of the shape, dtype and memory format of x.

    Raises
    ------
    TypeError
        x is no tensor or of a dtype that has no norm.
    ValueError
        A shape or size does not fit.

    Examples
    --------
    >>> import torch, normkit.torch as nt
    >>> x = torch.arange(6.0).reshape(1, 6).requires_grad_()
    >>> nt.normalize(x, "n (g [c])", g=2).detach().round(decimals=2)
    tensor([[-1.2200,  0.0000,  1.2200, -1.2200,  0.0000,  1.2200]])
    """
    chosen, known = sets.described() if isinstance(sets, NormSet) else (sets, {})
    sizes = {**known, **sizes}
    keywords = {"eps": eps, "center": center, "correction": correction, **sizes}
    return _call("normalize", (x, weight, bias), (chosen,), keywords, moments, return_moments)


def instance_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
    moments: Moments | None = None,
    return_moments: bool = False,
) -> Any:
    """Instance normalization, differentiable: see `normkit.instance_norm` for the arguments."""
    keywords = {"channel_axis": channel_axis, "eps": eps}
    return _call("instance_norm", (x, weight, bias), (), keywords, moments, return_moments)


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
    moments: Moments | None = None,
    return_moments: bool = False,
) -> Any:
    """Group normalization, differentiable: see `normkit.group_norm` for the arguments."""
    keywords = {"channel_axis": channel_axis, "eps": eps}
    return _call("group_norm", (x, weight, bias), (num_groups,), keywords, moments, return_moments)


def batch_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
    moments: Moments | None = None,
    return_moments: bool = False,
) -> Any:
    """Batch normalization, differentiable: see `normkit.batch_norm` for the arguments."""
    keywords = {"channel_axis": channel_axis, "eps": eps}
    return _call("batch_norm", (x, weight, bias), (), keywords, moments, return_moments)


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    axis: int | tuple[int, ...] = -1,
    eps: float = 1e-5,
    moments: Moments | None = None,
    return_moments: bool = False,
) -> Any:
    """Layer normalization, differentiable: see `normkit.layer_norm` for the arguments."""
    return _call("layer_norm", (x, weight, bias), (), {"axis": axis, "eps": eps}, moments, return_moments)


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    axis: int | tuple[int, ...] = -1,
    eps: float = 1e-6,
    moments: Moments | None = None,
    return_moments: bool = False,
) -> Any:
    """Root mean square normalization, differentiable: see `normkit.rms_norm` for the arguments."""
    return _call("rms_norm", (x, weight, bias), (), {"axis": axis, "eps": eps}, moments, return_moments)


def adaptive_instance_norm(
    content: Tensor, style: Tensor, *, channel_axis: int = 1, alpha: float = 1.0, eps: float = 1e-5
) -> Tensor:
    """AdaIN, differentiable in content and style: see `normkit.adaptive_instance_norm` for the arguments."""
    found: Tensor = _adain.adain(content, style, channel_axis, float(alpha), float(eps))
    return found
