"""The paragraphs that the docstrings of all norms share, written once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable[..., object])

_TAIL = """\
moments : Moments, optional
    Normalize by these statistics in place of x's own (inference, pooled or borrowed statistics). They broadcast over
    the kept axes.
return_moments : bool, default False
    Return ``(y, Moments)``.
out : array, optional
    Where the result goes, of x's shape and any float dtype; x itself is allowed, other overlap is not.
dtype : dtype, optional
    Dtype of the result: float16, bfloat16, float32 or float64. Default: that of `out` or x; float64 for integers."""

_RETURNS = """\
y : array
    An array of x's library and shape, in x's memory order; `out` if that was given.
moments : Moments
    Only with ``return_moments=True``: the statistics that were used."""

_RAISES = """\
ValueError
    A shape does not fit; eps is negative, NaN or infinite; `out` is read-only or overlaps an argument.
TypeError
    x is complex or no array of numbers, or an argument is of the wrong kind.
numpy.exceptions.AxisError
    An axis is out of range."""

_EPS = """\
eps : float, default 1e-5
    Added to the variance inside the root, in the accumulator's dtype."""

_CHANNELS = """\
weight, bias : array_like, optional
    Of shape (C,), or (N, C) for one per sample, or a scalar; any real dtype.
channel_axis : int, default 1
    The channel axis. Axis 0 is the batch, unless it is the channel axis: then x is one sample."""


def shared(function: Function) -> Function:
    """Fill the marks <tail>, <returns>, <raises>, <eps> and <channels> in a docstring."""
    text = function.__doc__ or ""
    parts = {"tail": _TAIL, "returns": _RETURNS, "raises": _RAISES, "eps": _EPS, "channels": _CHANNELS}
    for name, part in parts.items():
        text = text.replace(f"<{name}>", part.replace("\n", "\n    "))
    function.__doc__ = text
    return function
