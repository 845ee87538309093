"""The norms as JAX sees them: callbacks that run on the host, with their derivatives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from normkit import functional
from normkit._moments import Moments
from normkit._passes import forward, pullback
from normkit._problem import Problem
from normkit._recall import definition
from normkit.sets import moments_shape
from normkit.transforms import vjp

Spec = tuple[str, tuple[Any, ...], tuple[tuple[str, Any], ...], tuple[Any, ...] | None]  # norm, arguments, keywords, given


def _asked(spec: Spec) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """The norm, and its arguments besides arrays and statistics."""
    name, args, keywords, _ = spec
    return getattr(functional, name), args, dict(keywords)


def _given(spec: Spec) -> Moments | None:
    """The statistics to normalize by."""
    given = spec[3]
    return None if given is None else Moments(*(np.array(values).reshape(shape) for values, shape in given))


def _problem(spec: Spec, x: Any, weight: Any, bias: Any) -> Problem:
    """What a call asks for."""
    solve, args, keywords = _asked(spec)
    return definition(solve)(x, *args, weight=weight, bias=bias, moments=_given(spec), **keywords)


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
def norm(spec: Spec, x: Any, weight: Any, bias: Any) -> Any:
    """The norm."""
    _problem(spec, *(_blank(array) for array in (x, weight, bias)))  # what does not fit fails here, where the caller sees it
    solve, args, keywords = _asked(spec)

    def compute(x: Any, weight: Any, bias: Any) -> Any:
        return solve(x, *args, weight=weight, bias=bias, moments=_given(spec), **keywords)

    return _call_back(compute, _result_of(x), x, weight, bias)


def _forward(spec: Spec, x: Any, weight: Any, bias: Any) -> Any:
    """The norm, and what its gradient needs. Statistics are float64, which JAX may not have: they travel as bits."""
    blank = _problem(spec, *(_blank(array) for array in (x, weight, bias)))
    bits = jax.ShapeDtypeStruct((3, *moments_shape(blank.split), 2), np.uint32)
    solve, args, keywords = _asked(spec)

    def compute(*arrays: Any) -> tuple[Any, Any]:
        y, used = forward(definition(solve), arrays, args, {**keywords, "moments": _given(spec)})
        return y, np.ascontiguousarray(used)[..., None].view(np.uint32)

    y, used = _call_back(compute, (_result_of(x), bits), x, weight, bias)
    return y, (x, weight, bias, used)


def _backward(spec: Spec, kept: Any, dy: Any) -> Any:
    x, weight, bias, used = kept
    solve, args, keywords = _asked(spec)

    def compute(dy: Any, x: Any, weight: Any, bias: Any, bits: Any) -> Any:
        statistics = np.ascontiguousarray(bits).view(np.float64)[..., 0]
        pull = pullback(definition(solve), (x, weight, bias), args, keywords, statistics, spec[3] is not None)
        return tuple(pull(dy))

    shapes = tuple(None if array is None else _shape_of(array) for array in (x, weight, bias))
    return _call_back(compute, shapes, dy, x, weight, bias, used)


norm.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def adain(options: tuple[tuple[str, Any], ...], content: Any, style: Any) -> Any:
    """Adaptive instance normalization."""
    compute = partial(functional.adaptive_instance_norm, **dict(options))
    return _call_back(compute, _result_of(content), content, style)


def _adain_forward(options: tuple[tuple[str, Any], ...], content: Any, style: Any) -> Any:
    return adain(options, content, style), (content, style)


def _adain_backward(options: tuple[tuple[str, Any], ...], kept: Any, dy: Any) -> Any:
    def compute(dy: Any, content: Any, style: Any) -> Any:
        return tuple(vjp(functional.adaptive_instance_norm, content, style, **dict(options))[1](dy))

    return _call_back(compute, tuple(_shape_of(array) for array in kept), dy, *kept)


adain.defvjp(_adain_forward, _adain_backward)
