"""Pullbacks: what `vjp` returns beside the value of a norm, and the gradients that they return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from . import _interop
from ._dtypes import Array, DType, accumulator, name_of
from ._gradients import Fit, Pull, fit, pull_for, standardize, sum_to
from ._interop import Incoming
from ._layout import set_size
from ._problem import Problem
from ._recall import form_of, keep


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


class Argument(NamedTuple):
    """How the gradient of an argument looks."""

    lies: tuple[int, ...]  # its shape along the axes of x
    shape: tuple[int, ...]
    dtype: DType
    emit: Callable[[Array], Any]
    aligned: bool


def argument_of(given: Incoming, y: DType) -> Argument:
    dtype = _interop.gradient_dtype(given.array.dtype, y)
    return Argument(given.array.shape, given.shape, dtype, given.emit, given.aligned)


class PullForm:
    """What the pullbacks of problems of one form share: how their gradients look, and what pulls back each form of dy."""

    __slots__ = ("alike", "constant", "laid", "lie", "options", "parameters", "ready", "split", "x")

    def __init__(self, problem: Problem, y: DType) -> None:
        """y: the dtype of the norm's result."""
        self.split, self.options, self.constant = problem.split, problem.options, problem.tail.moments is not None
        self.laid = () if problem.weight is None else problem.weight.array.shape
        self.x = argument_of(problem.x, y)
        self.parameters = {name: argument_of(given, y) for name, given in problem.parameters().items()}
        # sums for both parameters at once: over the finer of their shapes, added up for the other
        lies = [each.lies for each in self.parameters.values()]
        self.lie = np.broadcast_shapes((1,) * len(self.x.lies), *lies) if lies else None
        # where they look alike, both are cast and laid at once: their dtype, and the shape of both
        kinds = {(each.lies, each.dtype, (2, *each.shape)) for each in self.parameters.values()}
        self.alike = kinds.pop()[1:] if len(kinds) == 1 else None
        self.ready: dict[Any, Pull] = {}

    def pullback(self, x: Array, weight: Array | None, used: Array) -> Pullback:
        """That of arrays of this form, by the statistics that the norm used."""
        laid = None if weight is None else weight.reshape(self.laid)
        return Pullback(fit(x, laid, self.split, self.options, used, self.constant), self)


class Pullback:
    """dy -> Gradients. Holds x, weight, mean and rstd, in the fit."""

    __slots__ = ("_fit", "_form")

    def __init__(self, fit: Fit, form: PullForm) -> None:
        self._fit, self._form = fit, form

    def __call__(self, dy: Any) -> Gradients:
        """Pull dy back."""
        fit, form = self._fit, self._form
        x = fit.x
        key, (array, _) = form_of(None, (dy,), {})
        pull = form.ready.get(key)
        dx = _interop.new_like(x, form.x.dtype, form.x.aligned)
        if pull is None:
            given, array = array, _interop.gradient(dy, "dy", x.shape, "y", x)
            pull = pull_for(fit, array, dx, form.lie)
            if key is not None and _interop.same_memory(given, array):
                keep(form.ready, key, pull)
        sums = pull(fit, array, dx)
        found: dict[str, Any] = {"weight": None, "bias": None}
        if sums is not None:
            library = _interop.library_of(x)
            if form.alike is not None:
                dtype, shape = form.alike
                sums = library.reshape(library.cast(sums, dtype), shape)
            for name, argument in form.parameters.items():
                total = sums[0 if name == "bias" else 1]
                if form.alike is None:
                    total = library.reshape(sum_to(total, argument.lies), argument.shape)
                    total = library.cast(total, argument.dtype)
                found[name] = argument.emit(total)
        return Gradients(form.x.emit(dx), **found)


class StylePullback:
    """dy -> StyleGradients, of alpha * (std * x_hat + mean) + (1 - alpha) * content."""

    def __init__(self, fits: tuple[Fit, Fit], arguments: tuple[Argument, Argument], lie: tuple[int, ...], alpha: float) -> None:
        self._content, self._style = fits
        self._arguments, self._lie, self._alpha = arguments, lie, alpha

    def __call__(self, dy: Any) -> StyleGradients:
        """Pull dy back."""
        x, style, alpha = self._content.x, self._style.x, self._alpha
        content_like, style_like = self._arguments
        array = _interop.gradient(dy, "dy", x.shape, "y", x)
        kind = content_like.dtype if alpha == 1.0 else working_dtype(x, content_like.dtype)
        dx = _interop.new_like(x, kind, content_like.aligned)
        sums = pull_for(self._content, array, dx, self._lie)(self._content, array, dx)
        assert sums is not None
        library, native, total = _interop.library_of(x), _interop.native, _interop.native(dx)
        if alpha != 1.0:
            total += (1.0 - alpha) * library.cast(native(array), dx.dtype)
            total = library.cast(total, content_like.dtype)
        share = alpha / max(1, set_size(self._style.split))
        shape = tuple(self._style.sets.shape[1:])
        dmean, dstd = (library.view(share * library.reshape(row, shape)) for row in sums)
        dstyle = _interop.new_like(style, style_like.dtype, style_like.aligned)
        standardize(self._style, dstd, dmean, dstyle)
        return StyleGradients(content_like.emit(total), style_like.emit(dstyle))


def working_dtype(x: Array, y: DType) -> DType:
    """The accumulator's dtype, for results that are put together from parts."""
    return np.dtype(accumulator(name_of(x.dtype), name_of(y)))
