"""The two passes of a norm apart, for frameworks that keep by themselves what lies between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from . import _interop
from ._engine import order_of
from ._moments import Moments
from ._problem import Problem
from ._pullbacks import Pullback, PullForm
from ._recall import Finish, form_of, known, read_as_given, recalled, remember

Define = Callable[..., Problem]


def forward(define: Define, arrays: Sequence[Any], args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, Any]:
    """The value of a norm of arrays (x, weight, bias), and the statistics used, of the moments' shape.

    These are (mean, its low part, M2), or (mean, 0, variance) where `keywords` has moments.
    """
    x, weight, bias = arrays
    pair: tuple[Any, Any] = _recalled(define)(x, *args, weight=weight, bias=bias, **keywords)
    return pair


@lru_cache(maxsize=64)
def _recalled(define: Define) -> Callable[..., Any]:
    return recalled(define, _solved, _finish_for)


def _solved(problem: Problem) -> tuple[Any, Any]:
    y = problem.result()
    used = problem.run(y, wanted=True)
    return problem.x.emit(y), used


def _finish_for(problem: Problem) -> Finish:
    order = order_of(problem.x.array, problem.split)
    return lambda result, _, __, rows: (result, order.arrays(rows))


def pullback(
    define: Define, arrays: Sequence[Any], args: tuple[Any, ...], keywords: dict[str, Any], used: Any, constant: bool
) -> Pullback:
    """The pullback of a norm that used these statistics; `constant` ones were given, and are not among `keywords`."""
    key, (x, weight, bias, *_) = form_of((pullback, define, constant), (*arrays, *args), keywords)
    form: PullForm | None = known(key)
    if form is not None:
        return form.pullback(x, weight, used)
    given = Moments(1.0, np.zeros(()), np.zeros(())) if constant else None
    problem = define(arrays[0], *args, weight=arrays[1], bias=arrays[2], moments=given, **keywords)
    form = PullForm(problem, _interop.result_dtype(None, problem.x.array))
    if key is not None and read_as_given(problem, x, weight, bias):
        remember(key, form)
    return Pullback(problem.fit(used), form)
