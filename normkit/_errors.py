"""Errors that need an array library's exception class, raised from modules that import none."""

from __future__ import annotations


def axis_error(axis: int, ndim: int, argument: str) -> Exception:
    """NumPy's AxisError, naming the argument and the range that would be right."""
    from numpy.exceptions import AxisError

    error: Exception = (
        AxisError(axis, ndim, argument) if ndim else AxisError(f"{argument}: an array without axes has no axis {axis}")
    )
    return error
