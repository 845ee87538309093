"""normkit for JAX: the norms as functions for `jit`, `grad` and `vmap`, computed on the host by callbacks.

Outside of those transforms `normkit`'s own functions take JAX arrays as they are, without a callback.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jax import numpy as jnp

from normkit._moments import Moments
from normkit.sets import NormSet, Sets

from . import _ops

__all__ = [
    "adaptive_instance_norm",
    "batch_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "normalize",
    "rms_norm",
]


def _call(
    name: str, x: Any, affine: tuple[Any, Any], moments: Moments | None, args: tuple[Any, ...] = (), **keywords: Any
) -> Any:
    given = None
    if moments is not None:
        if not isinstance(moments, Moments):
            raise TypeError(f"moments must be normkit.Moments, not {type(moments).__qualname__}")
        parts = (np.asarray(part) for part in (moments.count, moments.mean, moments.var))
        given = tuple((tuple(part.ravel().tolist()), part.shape) for part in parts)
    arrays = (None if array is None else jnp.asarray(array) for array in (x, *affine))
    return _ops.norm((name, args, tuple(sorted(keywords.items())), given), *arrays)


def normalize(
    x: Any,
    sets: Sets,
    weight: Any = None,
    bias: Any = None,
    *,
    eps: float = 1e-5,
    center: bool = True,
    correction: float = 0,
    moments: Moments | None = None,
    **sizes: int,
) -> Any:
    """
    Normalize an array over any sets, as `normkit.normalize`, under `jax.jit`, `jax.grad` and `jax.vmap`.

    Parameters
    ----------
    x : jax.Array
        On the CPU: float16, bfloat16, float32 or float64.
    sets : int, tuple of int, str or NormSet
        What shares one mean and one variance; under vmap, of one element of the batch.
    weight, bias : jax.Array, optional
        Of any shape that broadcasts against x.
    eps : float, default 1e-5
        Added to the variance inside the root.
    center : bool, default True
        Subtract the mean.
    correction : float, default 0
        The variance is the sum of squares over ``n - correction``.
    moments : Moments, optional
        Statistics to normalize by, constants for the gradient.
    **sizes : int
        Sizes of named axes and parts of a pattern.

    Returns
    -------
    jax.Array
        Of the shape and dtype of x.

    Raises
    ------
    TypeError
        x is not of a float dtype.
    ValueError
        A shape or size does not fit.

    Examples
    --------
    >>> import jax, normkit.jax as nj
    >>> x = jax.numpy.array([1.0, 3.0])
    >>> jax.jit(nj.normalize, static_argnums=1)(x, 0)
    Array([-0.999995,  0.999995], dtype=float32)
    >>> slope = jax.grad(lambda x: (nj.normalize(x, 0) ** 2).sum())(x)
    >>> bool(abs(slope.sum()) < 1e-6)  # a norm ignores an offset
    True
    """
    chosen, known = sets.described() if isinstance(sets, NormSet) else (sets, {})
    options = {"eps": eps, "center": center, "correction": correction, **known, **sizes}
    return _call("normalize", x, (weight, bias), moments, (chosen,), **options)


def instance_norm(
    x: Any, weight: Any = None, bias: Any = None, *, channel_axis: int = 1, eps: float = 1e-5, moments: Moments | None = None
) -> Any:
    """Instance normalization for JAX's transforms: see `normkit.instance_norm` for the arguments."""
    return _call("instance_norm", x, (weight, bias), moments, channel_axis=channel_axis, eps=eps)


def group_norm(
    x: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
    moments: Moments | None = None,
) -> Any:
    """Group normalization for JAX's transforms: see `normkit.group_norm` for the arguments."""
    return _call("group_norm", x, (weight, bias), moments, (num_groups,), channel_axis=channel_axis, eps=eps)


def batch_norm(
    x: Any, weight: Any = None, bias: Any = None, *, channel_axis: int = 1, eps: float = 1e-5, moments: Moments | None = None
) -> Any:
    """Batch normalization for JAX's transforms: see `normkit.batch_norm` for the arguments."""
    return _call("batch_norm", x, (weight, bias), moments, channel_axis=channel_axis, eps=eps)


def layer_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    axis: int | tuple[int, ...] = -1,
    eps: float = 1e-5,
    moments: Moments | None = None,
) -> Any:
    """Layer normalization for JAX's transforms: see `normkit.layer_norm` for the arguments."""
    return _call("layer_norm", x, (weight, bias), moments, axis=axis, eps=eps)


def rms_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    axis: int | tuple[int, ...] = -1,
    eps: float = 1e-6,
    moments: Moments | None = None,
) -> Any:
    """Root mean square normalization for JAX's transforms: see `normkit.rms_norm` for the arguments."""
    return _call("rms_norm", x, (weight, bias), moments, axis=axis, eps=eps)


def adaptive_instance_norm(content: Any, style: Any, *, channel_axis: int = 1, alpha: float = 1.0, eps: float = 1e-5) -> Any:
    """AdaIN for JAX's transforms: see `normkit.adaptive_instance_norm` for the arguments."""
    options = (("alpha", float(alpha)), ("channel_axis", channel_axis), ("eps", float(eps)))
    return _ops.adain(options, jnp.asarray(content), jnp.asarray(style))
