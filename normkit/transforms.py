"""vjp and jvp: the derivatives of every norm, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from . import _engine, _interop
from ._dtypes import Array, DType
from ._gradients import set_products, tangent
from ._interop import Incoming
from ._problem import Problem, StyleProblem
from ._pullbacks import Gradients as Gradients
from ._pullbacks import Pullback, PullForm, StylePullback, argument_of, working_dtype
from ._pullbacks import StyleGradients as StyleGradients
from ._recall import Finish, definition, recalled
from .functional import adaptive_instance_norm


def vjp(norm: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> tuple[Any, Callable[[Any], Any]]:
    """
    Compute a norm and the function that pulls gradients back through it.

    Parameters
    ----------
    norm : callable
        A norm of normkit, such as `normalize` or `group_norm`.
    x : array_like
        Its first argument.
    *args, **kwargs
        Its other arguments. With ``return_moments=True`` the value is ``(y, Moments)``. `out` must not overlap x.

    Returns
    -------
    y : array
        The value of the norm.
    pullback : callable
        ``pullback(dy)`` returns `Gradients`, a named tuple (x, weight, bias), or `StyleGradients` (content, style). dy has
        the shape of y, any strides and any float dtype. A gradient has the shape and dtype of its argument (the dtype of y
        where that is integer), and is None where there was no argument. It can be called more than once; it keeps x and
        weight, which must not change until then, and the mean and rstd of every set, nothing else.

    Raises
    ------
    TypeError
        `norm` is not one of normkit's; dy is not of a float dtype.
    ValueError
        dy has not the shape of y; `out` overlaps x; or as the norm itself.

    See Also
    --------
    jvp : The same in forward mode.

    Notes
    -----
    With ``g = dy * weight`` and sums over a set of n elements,
    ``dx = rstd * (g - sum(g) / n - x_hat * sum(g * x_hat) / (n - correction))``: Ioffe and Szegedy, Batch Normalization
    (2015), section 3. ``dweight`` and ``dbias`` are the sums of ``dy * x_hat`` and ``dy`` over whatever shares an element of
    them. With `moments` given the statistics are constants, and ``dx = rstd * g``. Like ``jax.vjp``; what PyTorch calls
    backward.

    Examples
    --------
    >>> import numpy as np, normkit as nk
    >>> x, weight = np.random.default_rng(0).normal(size=(2, 3, 4, 4)), np.ones(3)
    >>> y, pullback = nk.vjp(nk.instance_norm, x, weight)
    >>> gradients = pullback(y - 1)
    >>> gradients.weight.shape, gradients.bias
    ((3,), None)
    >>> bool(abs(gradients.x.sum((2, 3))).max() < 1e-12)  # a norm ignores an offset
    True
    """
    define = definition(norm)
    if kwargs.get("out") is None:
        pair: tuple[Any, Callable[[Any], Any]] = _recalled(define)(x, *args, **kwargs)
        return pair
    return _solved(define(x, *args, **kwargs))


@lru_cache(maxsize=64)
def _recalled(define: Callable[..., Problem]) -> Callable[..., Any]:
    """`vjp` of one norm."""
    return recalled(define, _solved, _finish_for)


def _solved(problem: Problem) -> tuple[Any, Callable[[Any], Any]]:
    """The value of a norm, and its pullback."""
    if isinstance(problem, StyleProblem):
        value, y, content, source = problem.fitted_both()
        likes = (argument_of(problem.x, y.dtype), argument_of(problem.style.x, y.dtype))
        return value, StylePullback((content, source), likes, problem.style.lie, problem.style.alpha)
    value, y, fit = problem.fitted()
    return value, Pullback(fit, PullForm(problem, y.dtype))


def _finish_for(problem: Problem) -> Finish:
    """What makes both from the result and moments of a problem of this form."""
    x, split, wanted = problem.x.array, problem.split, problem.tail.return_moments
    form, order = PullForm(problem, _interop.result_dtype(problem.tail.dtype, x)), _engine.order_of(x, split)

    def finish(result: Any, x: Any, weight: Any, rows: Any) -> tuple[Any, Pullback]:
        own = order.arrays(rows)
        return ((result, _engine.moments_of(own, split)) if wanted else result), form.pullback(x, weight, own)

    return finish


def jvp(
    norm: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any], *args: Any, **kwargs: Any
) -> tuple[Any, Any]:
    """
    Compute a norm and its derivative along tangents.

    Parameters
    ----------
    norm : callable
        A norm of normkit.
    primals : sequence of array_like
        ``(x, weight, bias)``, shorter or with None where there is none; ``(content, style)`` for
        `adaptive_instance_norm`.
    tangents : sequence of array_like
        One for every primal, of its shape and any float dtype; None is zero.
    *args, **kwargs
        The other arguments of the norm: what it takes by position besides arrays (`sets`, `num_groups`), and its keywords.

    Returns
    -------
    y : array
        The value of the norm; ``(y, Moments)`` with ``return_moments=True``.
    dy : array
        The derivative, of the shape and dtype of y.

    Raises
    ------
    TypeError
        `norm` is not one of normkit's, or a tangent is not of a float dtype.
    ValueError
        A tangent has not the shape of its primal, or no primal beside it; or as the norm itself.

    See Also
    --------
    vjp : The same in reverse mode.

    Notes
    -----
    ``rstd * (dx - mean(dx) - x_hat * mean(x_hat * dx)) * weight + x_hat * dweight + dbias``, means over a set. Like
    ``jax.jvp``.

    Examples
    --------
    >>> import numpy as np, normkit as nk
    >>> x = np.array([[0.0, 2.0, 4.0]])
    >>> y, dy = nk.jvp(nk.layer_norm, (x,), (np.ones((1, 3)),))  # a norm ignores an offset
    >>> dy
    array([[0., 0., 0.]])
    """
    define = definition(norm)
    for name, given in (("primals", primals), ("tangents", tangents)):
        if not isinstance(given, (tuple, list)):
            raise TypeError(
                f"{name} must be a tuple of the norm's array arguments, (x, weight, bias), not {type(given).__name__}"
            )
    if norm is adaptive_instance_norm:
        names: tuple[str, ...] = ("content", "style")
        problem = define(*_padded(tuple(primals), 2, "primals"), *args, **kwargs)
    else:
        names = ("x", "weight", "bias")
        x, weight, bias = _padded(tuple(primals), 3, "primals")
        problem = define(x, *args, weight=weight, bias=bias, **kwargs)
    steps = dict(zip(names, _padded(tuple(tangents), len(names), "tangents"), strict=True))
    if isinstance(problem, StyleProblem):
        return _style_jvp(problem, steps)
    value, y, fit = problem.fitted()
    laid = {"x": problem.x, "weight": problem.weight, "bias": problem.bias}
    along = {name: _tangent(steps[name], laid[name], name, problem.x) for name in names}
    dy = _interop.new_like(y, working_dtype(fit.x, y.dtype), problem.x.aligned)
    tangent(fit, along["x"], along["weight"], along["bias"], dy)
    return value, _emitted(problem.x, dy, y.dtype)


def _style_jvp(problem: StyleProblem, steps: dict[str, Any]) -> tuple[Any, Any]:
    value, y, content, style = problem.fitted_both()
    source, alpha = problem.style, problem.style.alpha
    along = _tangent(steps["content"], problem.x, "content", problem.x)
    style_along = _tangent(steps["style"], source.x, "style", problem.x)
    dmean = dstd = None
    if style_along is not None:
        library = _interop.library_of(style.x)
        products = set_products(style, style_along)
        dmean, dstd = (library.view(alpha * library.reshape(row, source.lie)) for row in products)
    dy = _interop.new_like(y, working_dtype(content.x, y.dtype), problem.x.aligned)
    tangent(content, along, dstd, dmean, dy)
    if along is not None and alpha != 1.0:
        total = _interop.native(dy)
        total += (1.0 - alpha) * _interop.library_of(along).cast(_interop.native(along), dy.dtype)
    return value, _emitted(problem.x, dy, y.dtype)


def _emitted(x: Incoming, dy: Array, dtype: DType) -> Any:
    return x.emit(dy if dy.dtype == dtype else _interop.library_of(dy).cast(_interop.native(dy), dtype))


def _padded(given: tuple[Any, ...], wanted: int, name: str) -> tuple[Any, ...]:
    if not 1 <= len(given) <= wanted:
        raise ValueError(f"{name} has {len(given)} entries, expected 1 to {wanted}, in the order of the norm's array arguments")
    return given + (None,) * (wanted - len(given))


def _tangent(step: Any, primal: Incoming | None, name: str, x: Incoming) -> Array | None:
    """A tangent, laid as its primal."""
    if step is None:
        return None
    if primal is None:
        raise ValueError(f"tangents has one for {name}, but primals has no {name}; pass None there, or the primal")
    return _interop.gradient(step, f"tangent of {name}", primal.shape, name, x.array).reshape(primal.array.shape)
