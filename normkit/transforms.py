"""vjp and jvp: the derivatives of every norm, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import _engine, _interop
from ._dtypes import Array, DType, accumulator, name_of
from ._engine import Fit
from ._interop import Incoming
from ._problem import Problem, StyleProblem
from ._recall import definition
from .functional import adaptive_instance_norm


class Gradients(NamedTuple):
    """What a pullback returns: the gradient of every array argument, None where there was none.

    Parameters
    ----------
    x, weight, bias : array or None
        Each of the shape and dtype of its argument.

    Examples
    --------
    >>> import numpy as np, normkit as nk
    >>> nk.vjp(nk.layer_norm, np.array([1.0, 2.0]))[1](np.array([0.5, 0.5]))
    Gradients(x=array([0., 0.]), weight=None, bias=None)
    """

    x: Any
    weight: Any
    bias: Any


class StyleGradients(NamedTuple):
    """What the pullback of `adaptive_instance_norm` returns.

    Parameters
    ----------
    content, style : array
        Each of the shape and dtype of its argument.

    Examples
    --------
    >>> import numpy as np, normkit as nk
    >>> content, style = np.array([[[1.0, 2.0]]]), np.array([[[5.0, 7.0]]])
    >>> nk.vjp(nk.adaptive_instance_norm, content, style)[1](np.ones((1, 1, 2))).style
    array([[[1., 1.]]])
    """

    content: Any
    style: Any


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
    problem = definition(norm)(x, *args, **kwargs)
    if isinstance(problem, StyleProblem):
        value, y, content, source = problem.fitted_both()
        likes = (_argument(problem.x, y.dtype), _argument(problem.style.x, y.dtype))
        return value, _StylePullback((content, source), likes, problem.style.lie, problem.style.alpha)
    value, y, fit = problem.fitted()
    return value, pullback_of(problem, fit, y.dtype)


def pullback_of(problem: Problem, fit: Fit, y: DType) -> _Pullback:
    """What pulls gradients back through a problem that was solved with this fit, to a result of dtype y."""
    arguments = {name: _argument(given, y) for name, given in problem.parameters().items()}
    return _Pullback(fit, _argument(problem.x, y), arguments)


class _Argument(NamedTuple):
    """How the gradient of an argument looks."""

    lies: tuple[int, ...]  # its shape along the axes of x
    shape: tuple[int, ...]
    dtype: DType
    emit: Callable[[Array], Any]
    aligned: bool


def _argument(given: Incoming, y: DType) -> _Argument:
    dtype = _interop.gradient_dtype(given.array.dtype, y)
    return _Argument(given.array.shape, given.shape, dtype, given.emit, given.aligned)


class _Pullback:
    """dy -> Gradients. Holds x, weight, mean and rstd, in the fit."""

    def __init__(self, fit: Fit, x: _Argument, parameters: dict[str, _Argument]) -> None:
        self._fit, self._x, self._parameters = fit, x, parameters
        # sums for both parameters at once: over the finer of their shapes, added up for the other
        lies = [each.lies for each in parameters.values()]
        self._lie = np.broadcast_shapes((1,) * fit.x.ndim, *lies) if lies else None

    def __call__(self, dy: Any) -> Gradients:
        """Pull dy back."""
        x, parameters = self._fit.x, self._parameters
        array = _interop.gradient(dy, "dy", x.shape, "y", x)
        dx = _interop.new_like(x, self._x.dtype, self._x.aligned)
        sums = _engine.backward(self._fit, array, dx, self._lie)
        found: dict[str, Any] = {"weight": None, "bias": None}
        if sums is not None:
            for name, argument in parameters.items():
                library, total = _interop.library_of(x), _engine.sum_to(sums[0 if name == "bias" else 1], argument.lies)
                found[name] = argument.emit(library.cast(library.reshape(total, argument.shape), argument.dtype))
        return Gradients(self._x.emit(dx), **found)


class _StylePullback:
    """dy -> StyleGradients, of alpha * (std * x_hat + mean) + (1 - alpha) * content."""

    def __init__(
        self, fits: tuple[Fit, Fit], arguments: tuple[_Argument, _Argument], lie: tuple[int, ...], alpha: float
    ) -> None:
        self._content, self._style = fits
        self._arguments, self._lie, self._alpha = arguments, lie, alpha

    def __call__(self, dy: Any) -> StyleGradients:
        """Pull dy back."""
        x, style, alpha = self._content.x, self._style.x, self._alpha
        content_like, style_like = self._arguments
        array = _interop.gradient(dy, "dy", x.shape, "y", x)
        kind = content_like.dtype if alpha == 1.0 else _working(x, content_like.dtype)
        dx = _interop.new_like(x, kind, content_like.aligned)
        sums = _engine.backward(self._content, array, dx, self._lie)
        assert sums is not None
        library, native, total = _interop.library_of(x), _interop.native, _interop.native(dx)
        if alpha != 1.0:
            total += (1.0 - alpha) * library.cast(native(array), dx.dtype)
            total = library.cast(total, content_like.dtype)
        share = alpha / max(1, _engine.set_size(self._style.split))
        shape = tuple(self._style.sets.shape[1:])
        dmean, dstd = (library.view(share * library.reshape(row, shape)) for row in sums)
        dstyle = _interop.new_like(style, style_like.dtype, style_like.aligned)
        _engine.standardize(self._style, dstd, dmean, dstyle)
        return StyleGradients(content_like.emit(total), style_like.emit(dstyle))


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
    dy = _interop.new_like(y, _working(fit.x, y.dtype), problem.x.aligned)
    _engine.tangent(fit, along["x"], along["weight"], along["bias"], dy)
    return value, _emitted(problem.x, dy, y.dtype)


def _style_jvp(problem: StyleProblem, steps: dict[str, Any]) -> tuple[Any, Any]:
    value, y, content, style = problem.fitted_both()
    source, alpha = problem.style, problem.style.alpha
    along = _tangent(steps["content"], problem.x, "content", problem.x)
    style_along = _tangent(steps["style"], source.x, "style", problem.x)
    dmean = dstd = None
    if style_along is not None:
        library = _interop.library_of(style.x)
        products = _engine.set_products(style, style_along)
        dmean, dstd = (library.view(alpha * library.reshape(row, source.lie)) for row in products)
    dy = _interop.new_like(y, _working(content.x, y.dtype), problem.x.aligned)
    _engine.tangent(content, along, dstd, dmean, dy)
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


def _working(x: Array, y: DType) -> DType:
    """The accumulator's dtype, for results that are put together from parts."""
    return np.dtype(accumulator(name_of(x.dtype), name_of(y)))
