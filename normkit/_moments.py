"""Moments: count, mean and variance of every set."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from ._dtypes import Array

_RANK_RULE = "count, mean and var must broadcast to one shape"


class Moments:
    """Count, mean and variance of every normalization set of an array; immutable.

    Parameters
    ----------
    count : float or array_like
        Elements of each set: a number for all of them, or an array that broadcasts against `mean`.
    mean : array_like
        Mean of every set. Every axis of the array is kept: reduced ones have length 1, a split one the number of its
        groups.
    var : array_like
        Biased variance (mean of squared deviations) of every set, of the shape of `mean`.

    Attributes
    ----------
    count, mean, var, m2 : numpy.ndarray
        float64, read-only. ``m2`` is the sum of squared deviations, ``count * var``.

    Raises
    ------
    ValueError
        The shapes do not broadcast, or a count or variance is negative.
    TypeError
        An argument is not made of real numbers.

    Notes
    -----
    Statistics are float64 whatever the array was: a float32 mean cannot be merged without losing digits. PyTorch calls
    ``var + eps`` to the power -1/2 invstd and returns that; ONNX returns Mean and InvStdDev.

    Examples
    --------
    >>> import numpy as np, normkit as nk
    >>> m = nk.moments(np.arange(12.0).reshape(2, 6), 1)
    >>> m
    Moments(2 sets of shape (2, 1), count 6)
    >>> m.mean.ravel(), m.std(correction=1).ravel()
    (array([2.5, 8.5]), array([1.87082869, 1.87082869]))
    """

    __slots__ = ("count", "m2", "mean", "var")
    count: Array
    mean: Array
    var: Array
    m2: Array
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, count: Any, mean: Any, var: Any) -> None:
        count, mean, var = (_real(value, name) for value, name in ((count, "count"), (mean, "mean"), (var, "var")))
        self._fill(count, mean, var, count * var)

    @classmethod
    def _from_m2(cls, count: Any, mean: Any, m2: Any) -> Moments:
        """From sums of squares, which is what kernels and merges keep."""
        new = cls.__new__(cls)
        count, m2 = _real(count, "count"), _real(m2, "m2")
        new._fill(
            count,
            _real(mean, "mean"),
            np.divide(m2, count, out=np.zeros(np.broadcast_shapes(m2.shape, count.shape)), where=count > 0),
            m2,
        )
        return new

    def _fill(self, count: Array, mean: Array, var: Array, m2: Array) -> None:
        try:
            shape = np.broadcast_shapes(mean.shape, var.shape)
            np.broadcast_shapes(count.shape, shape)
        except ValueError:
            raise ValueError(f"{_RANK_RULE}; they have {count.shape}, {mean.shape} and {var.shape}") from None
        if np.any(count < 0):
            raise ValueError(f"count must not be negative, got {count.min():g}")
        if np.any(var < 0):
            raise ValueError(f"var must not be negative, got {var.min():g}")
        for name, scalar_or_array in (("count", count), ("mean", mean), ("var", var), ("m2", m2)):
            value = np.asarray(scalar_or_array)
            value.flags.writeable = False
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"Moments are immutable; cannot set {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"Moments are immutable; cannot delete {name!r}")

    def __reduce__(self) -> tuple[object, ...]:
        return Moments._from_m2, (np.array(self.count), np.array(self.mean), np.array(self.m2))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Moments):
            return NotImplemented
        return all(
            np.array_equal(getattr(self, name), getattr(other, name), equal_nan=True) for name in ("count", "mean", "m2")
        )

    def __repr__(self) -> str:
        low, high = (self.count.min(), self.count.max()) if self.count.size else (0.0, 0.0)
        count = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        return f"Moments({self.mean.size} sets of shape {self.mean.shape}, count {count})"

    def std(self, correction: float = 0) -> Array:
        """
        Standard deviation of every set.

        Parameters
        ----------
        correction : float, default 0
            Subtracted from the count in the divisor: 1 gives the unbiased variance (``ddof`` of NumPy).

        Returns
        -------
        numpy.ndarray
            ``sqrt(m2 / (count - correction))``, of the shape of `mean`.

        Raises
        ------
        ValueError
            `correction` is not below every count.
        """
        if correction == 0:
            return np.asarray(np.sqrt(self.var))
        if np.any(self.count <= correction):
            raise ValueError(f"correction={correction} must be below every count, the smallest is {self.count.min():g}")
        return np.asarray(np.sqrt(self.m2 / (self.count - correction)))


def _real(value: Any, name: str) -> Array:
    """A float64 array of our own."""
    array = np.asarray(value)
    if array.dtype.kind not in "biufV" or array.dtype.names:
        raise TypeError(f"{name} must be real numbers, not {array.dtype}")
    return np.array(array, np.float64)
