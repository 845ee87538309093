"""Moments: count, mean and variance of every set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any, NoReturn

import numpy as np

from ._dtypes import Array
from ._interop.libraries import NUMPY, Library, library_of
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
    count, mean, var, m2 : array
        float64; of NumPy and read-only, or, of an array on a CUDA device, arrays of its library there (`count` may be
        NumPy's, where it is one number). ``m2`` is the sum of squared deviations, ``count * var``.

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
        library = _library_of_all(mean, var, count)
        mean, var = _real(mean, "mean", library), _real(var, "var", library)
        count = _real(count, "count", NUMPY if library_of(count) is NUMPY else library)
        for name, value in (("count", count), ("var", var)):
            if bool((value < 0).any()):
                raise ValueError(f"{name} must not be negative, got {float(value.min()):g}")
        self._fill(count, mean, var, _beside(count, library) * var)

    @classmethod
    def _from_m2(cls, count: Any, mean: Any, m2: Any) -> Moments:
        """From sums of squares, which is what kernels and merges keep."""
        new = cls.__new__(cls)
        library = _library_of_all(mean, m2, count)
        mean, m2 = _real(mean, "mean", library), _real(m2, "m2", library)
        count = _real(count, "count", NUMPY if library_of(count) is NUMPY else library)
        new._fill(count, mean, library.divide(m2, _beside(count, library)), m2)
        return new

    def _fill(self, count: Array, mean: Array, var: Array, m2: Array) -> None:
        try:
            np.broadcast_shapes(count.shape, mean.shape, var.shape)
        except ValueError:
            raise ValueError(f"{_RANK_RULE}; they have {count.shape}, {mean.shape} and {var.shape}") from None
        for name, value in (("count", count), ("mean", mean), ("var", var), ("m2", m2)):
            if library_of(value) is NUMPY:
                value = np.asarray(value)
                value.flags.writeable = False
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"Moments are immutable; cannot set {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"Moments are immutable; cannot delete {name!r}")

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, tuple(self._on_host(name) for name in ("count", "mean", "var", "m2"))

    def _on_host(self, name: str) -> Array:
        value = getattr(self, name)
        return np.array(library_of(value).to_host(value))

    @property
    def _library(self) -> Library:
        return library_of(self.mean)

    @property
    def _form(self) -> tuple[Any, ...] | None:
        """What decides which sets these are for, hashable; None on a device."""
        if self._library is not NUMPY:
            return None
        return Moments, self.count.shape, self.mean.shape, self.var.shape

    def least_count(self) -> float:
        """The smallest count. Of counts on a device this waits for it."""
        return float(self.count.min())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Moments):
            return NotImplemented
        names = ("count", "mean", "var", "m2")
        return all(np.array_equal(self._on_host(name), other._on_host(name), equal_nan=True) for name in names)

    def __repr__(self) -> str:
        counts = self._on_host("count")
        low, high = (counts.min(), counts.max()) if counts.size else (0.0, 0.0)
        count = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        return f"Moments({prod(self.mean.shape)} sets of shape {tuple(self.mean.shape)}, count {count})"

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
        library, shape = found[0]._library, tuple(found[0].mean.shape)
        counts: Array
        if all(part.count.ndim == 0 for part in found):
            counts = np.array([float(part.count) for part in found]).reshape((-1,) + (1,) * len(shape))
        else:
            counts = library.stack([library.broadcast_to(library.hold(part.count), shape) for part in found])
        means, squares = (library.stack([library.hold(getattr(part, name)) for part in found]) for name in ("mean", "m2"))
        count, mean, m2 = (row[0] for row in _pooled(library, counts, means, squares, (0,)))
        return cls._from_m2(count.reshape(()) if found[0].count.ndim == 0 and prod(count.shape) == 1 else count, mean, m2)

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
        library, whole = self._library, tuple(self.mean.shape)
        split = as_norm_set(sets, sizes).split(whole)
        parts = [part for axis in split for part in axis]
        shape = tuple(size for size, _ in parts)
        axes = tuple(k for k, (_, reduced) in enumerate(parts) if reduced)
        holder = NUMPY if self.count.ndim == 0 else library
        count = holder.reshape(holder.broadcast_to(holder.hold(self.count), whole), shape)
        fine = [library.reshape(library.broadcast_to(row, whole), shape) for row in (self.mean, self.m2)]
        pooled = _pooled(library, count, fine[0], fine[1], axes)
        count, mean, m2 = (library_of(row).reshape(row, moments_shape(split)) for row in pooled)
        if self.count.ndim == 0 and prod(count.shape):
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
        library = self._library
        count = _beside(m.count, library)
        divisor, m2, new_mean = count - correction, library.hold(m.m2), library.hold(m.mean)
        var, (old_mean, old_var) = library.divide(m2, divisor), (self.mean, self.var)
        mean = library.where(count > 0, (1 - momentum) * old_mean + momentum * new_mean, old_mean)
        kept = library.where((count > 0) & (divisor > 0), (1 - momentum) * old_var + momentum * var, old_var)
        new = Moments.__new__(Moments)
        total = _sum_of_counts(self.count, m.count, library)
        new._fill(total, mean, kept, _beside(total, library) * kept)
        return new

    def to_dict(self) -> dict[str, Array]:
        """
        Return plain arrays, to send or to save.

        Returns
        -------
        dict
            Copies under ``"count"``, ``"mean"`` and ``"m2"``.
        """
        return {name: self._on_host(name) for name in ("count", "mean", "m2")}

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
        if tuple(self.mean.shape) != tuple(other.mean.shape):
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
        if correction != 0 and self.least_count() <= correction:
            raise ValueError(f"correction={correction} must be below every count, the smallest is {self.least_count():g}")
        return self._array(self._library.sqrt(self._variance(correction)))

    def _variance(self, correction: float) -> Any:
        return self.var if correction == 0 else self.m2 / (_beside(self.count, self._library) - correction)

    @staticmethod
    def _array(values: Any) -> Array:
        return np.asarray(values) if library_of(values) is NUMPY else values  # NumPy makes numbers of arrays without axes


def _rebuild(count: Array, mean: Array, var: Array, m2: Array) -> Moments:
    new = Moments.__new__(Moments)
    new._fill(count, mean, var, m2)
    return new


def _pooled(library: Library, count: Any, mean: Any, m2: Any, axes: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """Count, mean and M2 over axes that are kept as length 1. The mean is refined by its own residuals."""
    holder = library_of(count)
    total = holder.sum(count, axes)
    weight, whole = library.hold(count), library.hold(total)
    mean = library.where(weight > 0, mean, mean * 0.0 if library is not NUMPY else 0.0)
    m2 = library.where(weight > 0, m2, m2 * 0.0 if library is not NUMPY else 0.0)
    share = library.divide(weight, whole)
    centre = library.sum(share * mean, axes)
    centre = centre + library.sum(share * (mean - centre), axes)
    return total, centre, library.sum(m2 + weight * (mean - centre) ** 2, axes)


def _library_of_all(*values: Any) -> Library:
    """The library of arrays that belong together: that of the first on a device, else NumPy."""
    return next((found for found in map(library_of, values) if found is not NUMPY), NUMPY)


def _beside(count: Any, library: Library) -> Any:
    """A count beside arrays of a library: a plain number, where it is one."""
    if library is NUMPY:
        return count
    return float(count) if count.ndim == 0 else library.hold(count)


def _sum_of_counts(a: Any, b: Any, library: Library) -> Any:
    if library_of(a) is NUMPY and library_of(b) is NUMPY:
        return np.asarray(a + b)
    return library.hold(a) + library.hold(b)


def _real(value: Any, name: str, library: Library) -> Array:
    """A float64 array of our own."""
    if library_of(value) is not NUMPY:
        copied: Array = library.hold(value) + 0.0
        return copied
    array = np.asarray(value)
    if array.dtype.kind not in "biufV" or array.dtype.names:
        raise TypeError(f"{name} must be real numbers, not {array.dtype}")
    own = np.array(array, np.float64)
    held: Array = own if library is NUMPY else library.hold(own)
    return held
