"""Problem: one call of a norm with its arguments through the door, before anything is computed.

A norm of `functional` only describes a Problem. Calling the norm solves it; `vjp` and `jvp` ask the same description for
more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from . import _engine, _gradients, _interop
from ._dtypes import Array
from ._engine import Options
from ._gradients import Fit
from ._interop import Incoming
from ._layout import Split
from ._moments import Moments
from ._operands import Operands

Lie = Callable[[Any, str], "Incoming | None"]  # how a weight or bias lies along the axes of x


@dataclass(frozen=True, slots=True)
class Tail:
    """The keyword-only arguments that all norms share."""

    moments: Moments | None
    return_moments: bool
    out: Any
    dtype: Any

    def __post_init__(self) -> None:
        if self.moments is not None and not isinstance(self.moments, Moments):
            raise TypeError(
                f"moments must be normkit.Moments, not {type(self.moments).__qualname__}; build Moments(count, mean, var)"
            )


@dataclass(frozen=True, slots=True)
class Problem:
    """Normalize x over the sets of `split`."""

    x: Incoming
    split: Split
    weight: Incoming | None
    bias: Incoming | None
    options: Options
    tail: Tail

    def solve(self) -> Any:
        """The value of the norm."""
        y = self.result()
        return self._value(y, self.run(y, self.tail.return_moments))

    def fitted(self) -> tuple[Any, Array, Fit]:
        """(value of the norm, y, what its gradient needs)."""
        y = self.result()
        if _interop.overlap(y, self.x.array):
            raise ValueError("out overlaps x, which the gradient reads again; pass memory of its own, or no out")
        used = self.run(y, wanted=True)
        assert used is not None
        return self._value(y, used), y, self.fit(used)

    def fit(self, used: Array) -> Fit:
        """What the gradient needs, where the norm used these statistics."""
        weight = None if self.weight is None else self.weight.array
        return _gradients.fit(self.x.array, weight, self.split, self.options, used, self.tail.moments is not None)

    def result(self) -> Array:
        """Where the result goes."""
        inputs = {"x": self.x.array, **{name: given.array for name, given in self.parameters().items()}}
        return _interop.result_array(self.tail.out, self.tail.dtype, self.x, inputs)

    def _operands(self, y: Array) -> Operands:
        weight, bias = (None if given is None else given.array for given in (self.weight, self.bias))
        fresh = self.tail.out is None
        return Operands(self.x.array, y, weight, bias, self.split, self.options.center, fresh=fresh)

    def run(self, y: Array, wanted: bool) -> Any:
        """Normalize x into y; the statistics that were used, if wanted."""
        return _engine.normalize(self._operands(y), self.options, self.tail.moments, wanted)

    def prepared(self, wanted: bool) -> Any:
        """The kernel call for problems of this form, which returns statistics of their own if wanted, or the given ones."""
        op = self._operands(self.result())
        given = self.tail.moments
        if given is None:
            return _engine.prepared(op, self.options, wanted)
        return _engine.prepared_by_given(op, self.options, given)

    def parameters(self) -> dict[str, Incoming]:
        """The affine arguments that are there."""
        return {name: given for name, given in (("weight", self.weight), ("bias", self.bias)) if given is not None}

    def _value(self, y: Array, used: Array | None) -> Any:
        result = self.x.emit(y) if self.tail.out is None else self.tail.out
        if not self.tail.return_moments:
            return result
        if self.tail.moments is not None:
            return result, self.tail.moments
        assert used is not None
        return result, _engine.moments_of(used, self.split)


@dataclass(frozen=True, slots=True)
class Style:
    """Where the affine of adaptive instance normalization comes from."""

    x: Incoming
    split: Split
    lie: tuple[int, ...]  # shape of its statistics along the axes of the content
    alpha: float


@dataclass(frozen=True, slots=True)
class StyleProblem(Problem):
    """Normalize x to the statistics of a style."""

    style: Style

    def solve(self) -> Any:
        """The value of the norm."""
        return self.affine(self.target()).solve()

    def target(self) -> Any:
        """The statistics of the style."""
        return _engine.statistics(self.style.x.array, self.style.split, center=True)

    def affine(self, target: Array) -> Problem:
        """The same as a problem with weight and bias: the blend costs no pass of its own, it is an affine of x_hat too."""
        style, tail = self.style, self.tail
        moments = _engine.moments_of(target, style.split)
        library = _interop.library_of(style.x.array)
        weight, bias = (library.reshape(values, style.lie) for values in (moments.std(), moments.mean))
        if style.alpha != 1.0 and self.x.array.size:
            own = tail.moments
            if own is None:
                own = _engine.moments_of(_engine.statistics(self.x.array, self.split, center=True), self.split)
            weight, bias = _engine.blend(weight, bias, own, style.alpha, self.options.eps)
            tail = replace(tail, moments=own)
        laid = {
            name: _interop.broadcastable(values, name, self.x.shape) for name, values in (("weight", weight), ("bias", bias))
        }
        return Problem(self.x, self.split, laid["weight"], laid["bias"], self.options, tail)

    def fitted_both(self) -> tuple[Any, Array, Fit, Fit]:
        """(value of the norm, y, the fits of content and style); the content's weight is alpha times the deviation."""
        target = self.target()
        value, y, content = self.affine(target).fitted()
        source = _gradients.fit(self.style.x.array, None, self.style.split, Options(0.0), target, constant=False)
        deviation = self.style.alpha * _engine.moments_of(target, self.style.split).std()
        weight = _interop.ingest(deviation, "weight").array.reshape(self.style.lie)
        return value, y, replace(content, weight=weight, constant=self.tail.moments is not None), source
