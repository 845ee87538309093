"""Moments: count, mean and variance of every set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import numpy as np

from ._dtypes import Array
from .sets import Sets, as_norm_set, moments_shape

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
        return _rebuild, tuple(np.array(getattr(self, name)) for name in ("count", "mean", "var", "m2"))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Moments):
            return NotImplemented
        return all(
            np.array_equal(getattr(self, name), getattr(other, name), equal_nan=True) for name in ("count", "mean", "var", "m2")
        )

    def __repr__(self) -> str:
        low, high = (self.count.min(), self.count.max()) if self.count.size else (0.0, 0.0)
        count = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        return f"Moments({self.mean.size} sets of shape {self.mean.shape}, count {count})"

    def merge(self, other: Moments) -> Moments:
        """
        Pool with the moments of other data, over the same sets.

        Parameters
        ----------
        other : Moments
            Of the same shape.

        Returns
        -------
        Moments
            What `moments` gives for both data together, to rounding; a count of 0 is neutral.

        Raises
        ------
        ValueError
            The two describe different sets.
        TypeError
            `other` is no Moments.

        Notes
        -----
        Chan, Golub and LeVeque, Algorithms for Computing the Sample Variance (1983), eq. 2.1, for any number of parts.

        Examples
        --------
        >>> import numpy as np, normkit as nk
        >>> a, b = np.arange(6.0) + 1e6, np.arange(10.0)
        >>> both = nk.moments(a, 0).merge(nk.moments(b, 0))
        >>> np.isclose(both.var, np.concatenate([a, b]).var(), rtol=1e-14)
        array([ True])
        """
        return Moments.merge_all([self, other])

    @classmethod
    def merge_all(cls, parts: Iterable[Moments]) -> Moments:
        """
        Pool the moments of many parts of the data, over the same sets.

        Parameters
        ----------
        parts : iterable of Moments
            At least one, all of the same shape.

        Returns
        -------
        Moments
            What `moments` gives for all parts together, to rounding.

        Raises
        ------
        ValueError
            There are no parts, or they describe different sets.
        TypeError
            A part is no Moments.
        """
        found = list(parts)
        if not found:
            raise ValueError("parts is empty, expected at least one Moments")
        for part in found:
            found[0]._same_sets(part, "merge")
        counts = [np.broadcast_to(part.count, found[0].mean.shape) for part in found]
        if all(part.count.ndim == 0 for part in found):
            counts = [part.count.reshape((1,) * found[0].mean.ndim) for part in found]
        means, squares = np.stack([part.mean for part in found]), np.stack([part.m2 for part in found])
        count, mean, m2 = (row[0] for row in _pooled(np.stack(counts), means, squares, (0,)))
        return cls._from_m2(count.reshape(()) if found[0].count.ndim == 0 and count.size == 1 else count, mean, m2)

    def pool(self, sets: Sets, **sizes: int) -> Moments:
        """
        Derive the moments of coarser sets from these, without the data.

        Parameters
        ----------
        sets : int, tuple of int, str or NormSet
            As in `normalize`, applied to the axes of these moments: what is reduced is pooled.
        **sizes : int
            Sizes of named axes and parts of a pattern.

        Returns
        -------
        Moments
            Of the coarser sets.

        Raises
        ------
        ValueError
            `sets` does not fit the shape of the moments.
        numpy.exceptions.AxisError
            An axis is out of range.

        Examples
        --------
        >>> import numpy as np, normkit as nk
        >>> x = np.random.default_rng(0).normal(size=(4, 6, 5, 5))
        >>> instance = nk.moments(x, "n c [...]")
        >>> np.allclose(instance.pool("[n] c ...").var, nk.moments(x, "[n] c [...]").var)
        True
        >>> np.allclose(instance.pool("n (g [c]) ...", g=2).var, nk.moments(x, "n (g [c]) [...]", g=2).var)
        True
        """
        split = as_norm_set(sets, sizes).split(self.mean.shape)
        parts = [part for axis in split for part in axis]
        shape = [size for size, _ in parts]
        axes = tuple(k for k, (_, reduced) in enumerate(parts) if reduced)
        fine = [np.broadcast_to(row, self.mean.shape).reshape(shape) for row in (self.count, self.mean, self.m2)]
        count, mean, m2 = (row.reshape(moments_shape(split)) for row in _pooled(fine[0], fine[1], fine[2], axes))
        if self.count.ndim == 0 and count.size:
            count = count.flat[0]
        return Moments._from_m2(count, mean, m2)

    def ema(self, m: Moments, momentum: float = 0.1, correction: float = 1) -> Moments:
        """
        Update running statistics by those of a batch.

        Parameters
        ----------
        m : Moments
            Of a batch, over the same sets.
        momentum : float, default 0.1
            Weight of the new value; plain arithmetic, unchecked.
        correction : float, default 1
            The batch enters with variance ``m2 / (count - correction)``; where its count is not above that, the running
            variance stays as it was.

        Returns
        -------
        Moments
            ``(1 - momentum) * running + momentum * batch`` for mean and variance; the count is that of both together. An
            empty batch changes nothing.

        Raises
        ------
        ValueError
            The two describe different sets.
        TypeError
            `m` is no Moments.

        Notes
        -----
        PyTorch has these defaults. Keras, Flax and ONNX call ``1 - momentum`` momentum (0.99, 0.99, 0.9), Haiku
        ``decay_rate``, and take the biased variance: ``correction=0``. Batch norm's training and inference are these lines:

        >>> import numpy as np, normkit as nk
        >>> rng = np.random.default_rng(0)
        >>> running = nk.Moments(0, np.zeros((1, 3, 1, 1)), np.ones((1, 3, 1, 1)))
        >>> for _ in range(200):
        ...     x = rng.normal(5, 2, size=(16, 3, 4, 4))
        ...     y, batch = nk.batch_norm(x, return_moments=True)
        ...     running = running.ema(batch)
        >>> bool(abs(running.mean - 5).max() < 0.2), bool(abs(running.var - 4).max() < 0.5)
        (True, True)
        >>> y = nk.batch_norm(x, moments=running)
        """
        self._same_sets(m, "update")
        divisor = m.count - correction
        var = np.divide(m.m2, divisor, out=np.zeros(m.mean.shape), where=divisor > 0)
        mean = np.where(m.count > 0, (1 - momentum) * self.mean + momentum * m.mean, self.mean)
        kept = np.where((m.count > 0) & (divisor > 0), (1 - momentum) * self.var + momentum * var, self.var)
        return Moments(self.count + m.count, mean, kept)

    def to_dict(self) -> dict[str, Array]:
        """
        Return plain arrays, to send or to save.

        Returns
        -------
        dict
            Copies under ``"count"``, ``"mean"`` and ``"m2"``.
        """
        return {name: np.array(getattr(self, name)) for name in ("count", "mean", "m2")}

    @classmethod
    def from_dict(cls, arrays: Mapping[str, Any]) -> Moments:
        """
        Rebuild from what `to_dict` gave.

        Parameters
        ----------
        arrays : mapping
            With the keys ``"count"``, ``"mean"`` and ``"m2"``.

        Returns
        -------
        Moments
            Equal to what was saved.

        Raises
        ------
        ValueError
            A key is missing or unknown.
        """
        if set(arrays) != {"count", "mean", "m2"}:
            raise ValueError(f"arrays has the keys {sorted(map(str, arrays))}, expected count, mean and m2")
        return cls._from_m2(arrays["count"], arrays["mean"], arrays["m2"])

    def _same_sets(self, other: Moments, verb: str) -> None:
        if not isinstance(other, Moments):
            raise TypeError(f"cannot {verb} Moments with {type(other).__qualname__}, expected Moments")
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"cannot {verb} moments of different sets: {self!r} and {other!r}; pool() the finer ones first")

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


def _rebuild(count: Array, mean: Array, var: Array, m2: Array) -> Moments:
    new = Moments.__new__(Moments)
    new._fill(count, mean, var, m2)
    return new


def _pooled(count: Array, mean: Array, m2: Array, axes: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Count, mean and M2 over axes that are kept as length 1. The mean is refined by its own residuals."""
    mean = np.where(count > 0, mean, 0.0)
    m2 = np.where(count > 0, m2, 0.0)
    total = np.sum(count, axis=axes, keepdims=True)
    share = np.divide(count, total, out=np.zeros(np.broadcast_shapes(count.shape, total.shape)), where=total > 0)
    centre = np.sum(share * mean, axis=axes, keepdims=True)
    centre = centre + np.sum(share * (mean - centre), axis=axes, keepdims=True)
    return total, centre, np.sum(m2 + count * (mean - centre) ** 2, axis=axes, keepdims=True)


def _real(value: Any, name: str) -> Array:
    """A float64 array of our own."""
    array = np.asarray(value)
    if array.dtype.kind not in "biufV" or array.dtype.names:
        raise TypeError(f"{name} must be real numbers, not {array.dtype}")
    return np.array(array, np.float64)
