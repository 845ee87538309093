"""normkit for JAX: the norms as functions for `jit`, `grad` and `vmap`, computed on the host by callbacks.

Outside of those transforms `normkit`'s own functions take JAX arrays as they are, without a callback.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from . import functional
from ._moments import Moments
from ._problem import Problem
from ._pullbacks import Pullback, PullForm
from ._recall import definition
from .sets import NormSet, Sets, moments_shape
from .transforms import vjp

__all__ = [
    "adaptive_instance_norm",
    "batch_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "normalize",
    "rms_norm",
]

Spec = tuple[str, tuple[Any, ...], tuple[tuple[str, Any], ...], tuple[Any, ...] | None]  # norm, arguments, keywords, given


def _problem(spec: Spec, x: Any, weight: Any, bias: Any) -> Problem:
    """What a call asks for, of NumPy arrays."""
    name, args, keywords, given = spec
    moments = None if given is None else Moments(*(np.array(values).reshape(shape) for values, shape in given))
    return definition(getattr(functional, name))(x, *args, weight=weight, bias=bias, moments=moments, **dict(keywords))


def _blank(array: Any) -> Any:
    """An array of this shape and dtype that takes no memory."""
    return None if array is None else np.broadcast_to(np.zeros((), array.dtype), array.shape)


def _shape_of(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _call_back(compute: Callable[..., Any], shapes: Any, *arrays: Any) -> Any:
    """Run `compute` on the host, on NumPy views of the arrays; under vmap for each element of the batch in turn."""

    def on_host(*given: Any) -> Any:
        return compute(*(None if array is None else np.asarray(array) for array in given))

    return jax.pure_callback(on_host, shapes, *arrays, vmap_method="sequential")


def _result_of(x: Any) -> jax.ShapeDtypeStruct:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"x has dtype {x.dtype}; inside JAX's transforms a norm takes floats, as in x.astype(jax.numpy.float32)"
        )
    return _shape_of(x)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _norm(spec: Spec, x: Any, weight: Any, bias: Any) -> Any:
    """The norm."""
    _problem(spec, *(_blank(array) for array in (x, weight, bias)))  # what does not fit fails here, where the caller sees it
    return _call_back(lambda *arrays: _problem(spec, *arrays).solve(), _result_of(x), x, weight, bias)


def _forward(spec: Spec, x: Any, weight: Any, bias: Any) -> Any:
    """The norm, and what its gradient needs. Statistics are float64, which JAX may not have: they travel as bits."""
    blank = _problem(spec, *(_blank(array) for array in (x, weight, bias)))
    bits = jax.ShapeDtypeStruct((3, *moments_shape(blank.split), 2), np.uint32)

    def compute(*arrays: Any) -> tuple[Any, Any]:
        problem = _problem(spec, *arrays)
        y = problem.result()
        used = problem.run(y, wanted=True)
        return y, np.ascontiguousarray(used)[..., None].view(np.uint32)

    y, used = _call_back(compute, (_result_of(x), bits), x, weight, bias)
    return y, (x, weight, bias, used)


def _backward(spec: Spec, kept: Any, dy: Any) -> Any:
    x, weight, bias, used = kept

    def compute(dy: Any, x: Any, weight: Any, bias: Any, bits: Any) -> Any:
        problem = _problem(spec, x, weight, bias)
        statistics = np.ascontiguousarray(bits).view(np.float64)[..., 0]
        return tuple(Pullback(problem.fit(statistics), PullForm(problem, x.dtype))(dy))

    shapes = tuple(None if array is None else _shape_of(array) for array in (x, weight, bias))
    return _call_back(compute, shapes, dy, x, weight, bias, used)


_norm.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _adain(options: tuple[tuple[str, Any], ...], content: Any, style: Any) -> Any:
    """Adaptive instance normalization."""
    norm = partial(functional.adaptive_instance_norm, **dict(options))
    return _call_back(norm, _result_of(content), content, style)


def _adain_forward(options: tuple[tuple[str, Any], ...], content: Any, style: Any) -> Any:
    return _adain(options, content, style), (content, style)


def _adain_backward(options: tuple[tuple[str, Any], ...], kept: Any, dy: Any) -> Any:
    def compute(dy: Any, content: Any, style: Any) -> Any:
        return tuple(vjp(functional.adaptive_instance_norm, content, style, **dict(options))[1](dy))

    return _call_back(compute, tuple(_shape_of(array) for array in kept), dy, *kept)


_adain.defvjp(_adain_forward, _adain_backward)


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
    return _norm((name, args, tuple(sorted(keywords.items())), given), *arrays)


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
    return _adain(options, jnp.asarray(content), jnp.asarray(style))
