"""The operators that PyTorch sees: the norm and its gradient, with shapes for the compiler and derivatives for autograd.

An operator takes tensors, and one string that says which norm with which arguments: so it is the same under `torch.compile`,
which looks no further.
"""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import torch

from normkit import functional
from normkit._moments import Moments
from normkit._passes import forward, pullback
from normkit._problem import Problem
from normkit._recall import definition
from normkit.sets import moments_shape

Tensor = torch.Tensor


@lru_cache(maxsize=1024)
def _asked(spec: str) -> tuple[Callable[..., Problem], tuple[Any, ...], dict[str, Any]]:
    """What describes the problem, with its arguments besides arrays."""
    name, args, keywords = literal_eval(spec)
    return definition(getattr(functional, name)), args, keywords


def _problem(spec: str, tensors: list[Any], mean: Any, var: Any) -> Problem:
    """The problem of x, weight and bias, by given statistics if there are any."""
    define, args, keywords = _asked(spec)
    x, weight, bias = tensors
    return define(x, *args, weight=weight, bias=bias, moments=_given(mean, var), **keywords)


def _given(mean: Any, var: Any) -> Moments | None:
    return None if mean is None else Moments(1.0, mean, var)


def plain(*tensors: Tensor | None) -> list[Tensor | None]:
    """Tensors without history, which the door of normkit lets in."""
    return [None if tensor is None else tensor.detach() for tensor in tensors]


def numbers_of(tensor: Tensor | None) -> Any:
    """Statistics as the engine has them: float64, of NumPy for the CPU, tensors on a device."""
    if tensor is None:
        return None
    values = tensor.detach().double()
    return values if values.is_cuda else values.numpy()


def tensor_of(numbers: Any) -> Tensor:
    """Statistics as a tensor of its own."""
    if isinstance(numbers, np.ndarray):
        return torch.from_numpy(np.array(numbers, order="C"))
    copied: Tensor = numbers.clone(memory_format=torch.contiguous_format)
    return copied


def _shapes(spec: str, constant: bool, *tensors: Tensor | None) -> Problem:
    """The problem of tensors of these shapes, without their data."""
    blanks = [None if t is None else np.broadcast_to(np.float32(0), tuple(int(n) for n in t.shape)) for t in tensors]
    given = np.zeros(()) if constant else None
    return _problem(spec, blanks, given, given)


def as_like(found: Tensor, x: Tensor) -> Tensor:
    """A result with the strides of `torch.empty_like`, which the compiler was promised; they differ for crops at most."""
    like = torch.empty_like(x, dtype=found.dtype)
    return found if found.stride() == like.stride() else like.copy_(found)


@torch.library.custom_op(
    "normkit::norm",
    mutates_args=(),
    schema="(Tensor x, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? var, str spec) -> (Tensor, Tensor)",
)
def norm(x: Any, weight: Any, bias: Any, mean: Any, var: Any, spec: str) -> tuple[Tensor, Tensor]:
    """The norm, and the statistics it used: (mean, its low part, M2), or (mean, 0, variance) where they were given."""
    define, args, keywords = _asked(spec)
    given = _given(numbers_of(mean), numbers_of(var))
    y, used = forward(define, plain(x, weight, bias), args, {**keywords, "moments": given})
    return as_like(y, x), tensor_of(used)


@norm.register_fake
def _norm_shapes(x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, spec: str) -> tuple[Tensor, Tensor]:
    problem = _shapes(spec, mean is not None, x, weight, bias)
    dtype = x.dtype if x.dtype.is_floating_point else torch.float64
    return torch.empty_like(x, dtype=dtype), x.new_empty((3, *moments_shape(problem.split)), dtype=torch.float64)


@torch.library.custom_op(
    "normkit::norm_backward",
    mutates_args=(),
    schema="(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor used, bool constant, str spec)"
    " -> (Tensor, Tensor, Tensor)",
)
def norm_backward(
    dy: Any, x: Any, weight: Any, bias: Any, used: Tensor, constant: bool, spec: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; empty ones in place of those that are not there."""
    define, args, keywords = _asked(spec)
    pull = pullback(define, plain(x, weight, bias), args, keywords, numbers_of(used), constant)
    gradients = pull(dy.detach())
    others = [x.new_empty(0) if found is None else found for found in gradients[1:]]
    return as_like(gradients.x, x), others[0], others[1]


@norm_backward.register_fake
def _backward_shapes(
    dy: Tensor,
    x: Tensor,
    weight: Any,
    bias: Any,
    used: Any,
    constant: bool,
    spec: str,
) -> tuple[Tensor, Tensor, Tensor]:
    others = [x.new_empty(0) if given is None else given.new_empty(given.shape) for given in (weight, bias)]
    return torch.empty_like(x), others[0], others[1]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, mean, _, spec = inputs
    ctx.save_for_backward(x, weight, bias, output[1])
    ctx.constant, ctx.spec = mean is not None, spec
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, _: Any) -> tuple[Any, ...]:
    if dy is None:
        return (None,) * 6
    x, weight, bias, used = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph: a gradient that has a gradient
        found = _differentiable(dy, x, weight, bias, used, ctx.constant, ctx.spec)
    else:
        found = norm_backward(dy, x, weight, bias, used, ctx.constant, ctx.spec)
    return found[0], None if weight is None else found[1], None if bias is None else found[2], None, None, None


norm.register_autograd(_backward, setup_context=_setup)


def _differentiable(dy: Tensor, x: Tensor, weight: Any, bias: Any, used: Tensor, constant: bool, spec: str) -> tuple[Any, ...]:
    """The gradients as PyTorch operations, for derivatives of the second order and above."""
    problem = _shapes(spec, constant, x, weight, bias)
    parts, options = [part for axis in problem.split for part in axis], problem.options
    sizes, reduced = [n for n, _ in parts], [k for k, part in enumerate(parts) if part[1]]
    kind = torch.promote_types(torch.promote_types(x.dtype, dy.dtype), torch.float32)
    wide, steps = x.to(kind).reshape(sizes), dy.to(kind).reshape(sizes)
    n = prod(sizes[k] for k in reduced)
    if constant:
        mean, var = (used[row].to(kind).reshape([1 if k in reduced else m for k, m in enumerate(sizes)]) for row in (0, 2))
        deviation = wide - mean
    else:
        deviation = wide - wide.mean(reduced, keepdim=True) if options.center else wide
        var = deviation.square().sum(reduced, keepdim=True) / (n - options.correction)
    rstd = (var + options.eps).rsqrt()
    x_hat, g = deviation * rstd, steps
    if problem.weight is not None:
        g = steps * weight.to(kind).reshape(problem.weight.array.shape).expand(x.shape).reshape(sizes)
    dx = g
    if not constant:
        centred = g - g.mean(reduced, keepdim=True) if options.center else g
        dx = centred - x_hat * ((g * x_hat).sum(reduced, keepdim=True) / (n - options.correction))
    parameters = (
        None if laid is None else terms.reshape(x.shape).sum_to_size(laid.array.shape).reshape(given.shape).to(given.dtype)
        for terms, laid, given in ((steps * x_hat, problem.weight, weight), (steps, problem.bias, bias))
    )
    return (dx * rstd).reshape(x.shape).to(x.dtype), *parameters
