"""The norms. Each only chooses sets and says how its affine arguments lie; the engine does the rest."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, SupportsIndex

from . import _engine, _interop
from ._docs import shared
from ._engine import Options
from ._interop import Incoming
from ._layout import Split
from ._moments import Moments
from ._problem import Lie, Problem, Style, StyleProblem, Tail
from ._recall import norm
from .sets import NormSet, Sets, as_norm_set, axes_tuple, by_axes, by_groups, normalize_axes


def _reducing(sets: Sets, sizes: dict[str, int]) -> NormSet:
    """`sets` of a caller, which must reduce something."""
    chosen = as_norm_set(sets, sizes)
    if not chosen.reduces:
        example = (
            "mark what a set spans with brackets, as in 'n c [...]'" if isinstance(sets, str) else "name at least one axis"
        )
        raise ValueError(f"sets={sets!r} reduces nothing, every element would be a set of its own; {example}")
    return chosen


def _channel(shape: tuple[int, ...], channel_axis: SupportsIndex) -> tuple[int, frozenset[int]]:
    """(channel axis, axes that index samples and channels)."""
    (channel,) = normalize_axes(axes_tuple(channel_axis, "channel_axis"), len(shape), "channel_axis")
    return channel, frozenset({0, channel})


def _spatial(shape: tuple[int, ...], kept: frozenset[int]) -> list[int]:
    return [axis for axis in range(len(shape)) if axis not in kept]


def _problem(x: Incoming, split: Split, affine: tuple[Any, Any], lie: Lie, options: Options, tail: tuple[Any, ...]) -> Problem:
    weight, bias = (_interop.beside(x, lie(given, name), name) for given, name in zip(affine, ("weight", "bias"), strict=True))
    return Problem(x, split, weight, bias, options, Tail(*tail))


@norm
@shared
def normalize(
    x: Any,
    sets: Sets,
    weight: Any = None,
    bias: Any = None,
    *,
    eps: float = 1e-5,
    center: bool = True,
    correction: float = 0,
    moments: Moments | None = None,
    return_moments: bool = False,
    out: Any = None,
    dtype: Any = None,
    **sizes: int,
) -> Problem:
    """
    Normalize an array over any sets.

    Every set S of x becomes ``(x - mean_S) / sqrt(var_S + eps) * weight + bias``.

    Parameters
    ----------
    x : array_like
        Real array of any strides: float16, bfloat16, float32, float64, integers or bool. It is read in place.
    sets : int, tuple of int, str or NormSet
        What shares one mean and one variance: the axes to reduce, as in `numpy.mean`, or a pattern such as
        ``"n (g [c]) [...]"`` (see `NormSet`).
    weight, bias : array_like, optional
        The affine pair, of any shape that broadcasts against x and any real dtype.
    <eps>
    center : bool, default True
        Subtract the mean; False divides by the root mean square instead.
    correction : float, default 0
        The variance is the sum of squares over ``n - correction``.
    <tail>
    **sizes : int
        Sizes of named axes and parts of a pattern.

    Returns
    -------
    <returns>

    Raises
    ------
    <raises>

    See Also
    --------
    NormSet : The notation of `sets`.
    moments : The statistics alone.

    Notes
    -----
    Sums are taken in float32 about a pivot near the mean, in blocks that are merged in float64; float64 and wide integers
    are summed in float64. The mean is subtracted in two parts, so the result does not depend on x's offset, and a set's
    result does not depend on any other set. A constant set gives exactly `bias`. This is eq. 1 and 2 of Wu and He, Group
    Normalization (2018), for any S_i. `weight` and `bias` are gamma and beta of the papers, scale and bias of Flax.

    Examples
    --------
    >>> import numpy as np, normkit as nk
    >>> x = np.arange(12.0).reshape(2, 6)
    >>> nk.normalize(x, "n [c]").round(2)
    array([[-1.46, -0.88, -0.29,  0.29,  0.88,  1.46],
           [-1.46, -0.88, -0.29,  0.29,  0.88,  1.46]])
    >>> np.array_equal(nk.normalize(x, 1), nk.normalize(x, "n (g [c])", g=1))
    True
    """
    chosen = _reducing(sets, sizes)
    incoming = _interop.ingest(x, "x")
    shape = incoming.array.shape
    options = Options(_interop.epsilon(eps), bool(center), _interop.number(correction, "correction"))
    lie, tail = partial(_interop.broadcastable, shape=shape), (moments, return_moments, out, dtype)
    return _problem(incoming, chosen.split(shape), (weight, bias), lie, options, tail)


def _on_channels(x: Incoming, split: Split, channel: int, affine: tuple[Any, Any], eps: Any, tail: tuple[Any, ...]) -> Problem:
    """The norms whose affine pair is per channel."""
    lie = partial(_interop.on_channels, shape=x.shape, channel=channel)
    return _problem(x, split, affine, lie, Options(_interop.epsilon(eps)), tail)


@norm
@shared
def instance_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
    moments: Moments | None = None,
    return_moments: bool = False,
    out: Any = None,
    dtype: Any = None,
) -> Problem:
    """
    Instance normalization: one set per sample and channel.

    Parameters
    ----------
    x : array_like
        Of shape (N, C, ...), or any with a channel axis.
    <channels>
    <eps>
    <tail>

    Returns
    -------
    <returns>

    Raises
    ------
    <raises>

    Notes
    -----
    ``S = {(n, c, *)}``: Ulyanov, Vedaldi and Lempitsky, Instance Normalization (2016), eq. 4. The same as
    ``torch.nn.functional.instance_norm``, Flax ``InstanceNorm`` and ONNX ``InstanceNormalization``. A set of one element
    gives `bias`, where PyTorch raises.

    Examples
    --------
    >>> import numpy as np, normkit as nk
    >>> x = np.random.default_rng(0).normal(size=(2, 3, 8, 8))
    >>> np.array_equal(nk.instance_norm(x), nk.normalize(x, "n c [...]"))
    True
    >>> np.allclose(nk.instance_norm(x), nk.instance_norm(5 * x + 7), atol=1e-4)
    True
    """
    incoming = _interop.ingest(x, "x")
    shape = incoming.array.shape
    channel, kept = _channel(shape, channel_axis)
    tail = (moments, return_moments, out, dtype)
    return _on_channels(incoming, by_axes(shape, _spatial(shape, kept)), channel, (weight, bias), eps, tail)


@norm
@shared
def group_norm(
    x: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
    moments: Moments | None = None,
    return_moments: bool = False,
    out: Any = None,
    dtype: Any = None,
) -> Problem:
    """
    Group normalization: one set per sample and group of neighbouring channels.

    Parameters
    ----------
    x : array_like
        Of shape (N, C, ...), or any with a channel axis.
    num_groups : int
        Number of groups; it divides C.
    <channels>
    <eps>
    <tail>

    Returns
    -------
    <returns>

    Raises
    ------
    <raises>

    Notes
    -----
    ``S = {(n, group of c, *)}``: Wu and He, Group Normalization (2018), eq. 7. ``groups`` in Haiku and Keras. `weight` and
    `bias` are per channel, as in PyTorch and ONNX from opset 21; ONNX opset 18 has them per group.

    Examples
    --------
    >>> import numpy as np, normkit as nk
    >>> x = np.random.default_rng(0).normal(size=(2, 6, 8, 8))
    >>> np.allclose(nk.group_norm(x, 1), nk.layer_norm(x, axis=(1, 2, 3)))
    True
    >>> np.array_equal(nk.group_norm(x, 6), nk.instance_norm(x))
    True
    """
    incoming = _interop.ingest(x, "x")
    shape = incoming.array.shape
    channel, kept = _channel(shape, channel_axis)
    (groups,) = axes_tuple(num_groups, "num_groups")
    tail = (moments, return_moments, out, dtype)
    return _on_channels(incoming, by_groups(shape, channel, groups, kept), channel, (weight, bias), eps, tail)


def _over_axes(
    x: Any, axis: SupportsIndex | Iterable[int], affine: tuple[Any, Any], options: Options, tail: tuple[Any, ...]
) -> Problem:
    """`layer_norm` and `rms_norm`: sets along axes that the affine pair spans too."""
    incoming = _interop.ingest(x, "x")
    shape = incoming.array.shape
    axes = normalize_axes(axes_tuple(axis), len(shape))
    if not axes:
        raise ValueError(f"axis={axis!r} reduces nothing, every element would be a set of its own; name at least one axis")
    lie = partial(_interop.on_axes, shape=shape, axes=axes)
    return _problem(incoming, by_axes(shape, axes), affine, lie, options, tail)


@norm
@shared
def layer_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    axis: int | tuple[int, ...] = -1,
    eps: float = 1e-5,
    moments: Moments | None = None,
    return_moments: bool = False,
    out: Any = None,
    dtype: Any = None,
) -> Problem:
    """
    Layer normalization: one set per position of the axes that are not named.

    Parameters
    ----------
    x : array_like
        Of any shape.
    weight, bias : array_like, optional
        Of the shape of the normalized axes, in the array's order, or a scalar; any real dtype.
    axis : int or tuple of int, default -1
        The axes of a set, in any order: ``-1`` for tokens (N, P, D), ``(1, 2, 3)`` for images (N, C, H, W), ``1`` for
        channels first.
    <eps>
    <tail>

    Returns
    -------
    <returns>

    Raises
    ------
    <raises>

    Notes
    -----
    Ba, Kiros and Hinton, Layer Normalization (2016), eq. 4. PyTorch names the axes by their lengths, ``normalized_shape``,
    and only trailing ones; Flax has ``reduction_axes``.

    Examples
    --------
    >>> import numpy as np, normkit as nk
    >>> tokens = np.random.default_rng(0).normal(3, 2, size=(2, 5, 16))
    >>> y = nk.layer_norm(tokens, np.ones(16), np.zeros(16))
    >>> bool(abs(y.mean(-1)).max() < 1e-15), y.std(-1).round(4).max()
    (True, np.float64(1.0))
    """
    return _over_axes(x, axis, (weight, bias), Options(_interop.epsilon(eps)), (moments, return_moments, out, dtype))


@norm
@shared
def rms_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    axis: int | tuple[int, ...] = -1,
    eps: float = 1e-6,
    moments: Moments | None = None,
    return_moments: bool = False,
    out: Any = None,
    dtype: Any = None,
) -> Problem:
    """
    Root mean square normalization: layer normalization without the mean.

    Parameters
    ----------
    x : array_like
        Of any shape.
    weight, bias : array_like, optional
        Of the shape of the normalized axes, in the array's order, or a scalar; any real dtype.
    axis : int or tuple of int, default -1
        The axes of a set, in any order.
    eps : float, default 1e-6
        Added to the mean square inside the root, in the accumulator's dtype.
    <tail>

    Returns
    -------
    <returns>

    Raises
    ------
    <raises>

    Notes
    -----
    ``x / sqrt(mean(x**2) + eps) * weight``: Zhang and Sennrich, Root Mean Square Layer Normalization (2019), eq. 4. All in
    the accumulator with one rounding at the end, as Gemma does; Llama rounds before the weight. The default eps of PyTorch
    is that of the accumulator's dtype. The Moments hold mean 0 and the mean square as ``var``.

    Examples
    --------
    >>> import numpy as np, normkit as nk
    >>> nk.rms_norm(np.array([3.0, 4.0]), eps=0) * np.sqrt(12.5)
    array([3., 4.])
    """
    options = Options(_interop.epsilon(eps), center=False)
    return _over_axes(x, axis, (weight, bias), options, (moments, return_moments, out, dtype))


@norm
@shared
def batch_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
    moments: Moments | None = None,
    return_moments: bool = False,
    out: Any = None,
    dtype: Any = None,
) -> Problem:
    """
    Batch normalization: one set per channel.

    Parameters
    ----------
    x : array_like
        Of shape (N, C, ...), or any with a channel axis.
    <channels>
    <eps>
    <tail>

    Returns
    -------
    <returns>

    Raises
    ------
    <raises>

    Notes
    -----
    ``S = {(*, c, *)}``: Ioffe and Szegedy, Batch Normalization (2015), algorithm 1. There is no training mode: without
    `moments` the batch's own statistics are used (training), with it those given (inference).

    Examples
    --------
    >>> import numpy as np, normkit as nk
    >>> x = np.random.default_rng(0).normal(3, 2, size=(8, 4, 5, 5))
    >>> y, batch = nk.batch_norm(x, return_moments=True)
    >>> np.allclose(y, nk.batch_norm(x, moments=batch))
    True
    >>> np.array_equal(nk.batch_norm(x[:1]), nk.instance_norm(x[:1]))
    True
    """
    incoming = _interop.ingest(x, "x")
    shape = incoming.array.shape
    channel, _ = _channel(shape, channel_axis)
    split, tail = by_axes(shape, _spatial(shape, frozenset({channel}))), (moments, return_moments, out, dtype)
    return _on_channels(incoming, split, channel, (weight, bias), eps, tail)


@norm
@shared
def adaptive_instance_norm(
    content: Any,
    style: Any,
    *,
    channel_axis: int = 1,
    alpha: float = 1.0,
    eps: float = 1e-5,
    moments: Moments | None = None,
    return_moments: bool = False,
    out: Any = None,
    dtype: Any = None,
) -> Problem:
    """
    Adaptive instance normalization: the content with the style's mean and deviation per sample and channel.

    Parameters
    ----------
    content : array_like
        Of shape (N, C, ...), or any with a channel axis.
    style : array_like
        Of shape (N, C, ...) or (1, C, ...); its spatial axes may differ from those of the content in length and number.
    channel_axis : int, default 1
        The channel axis. Axis 0 is the batch, unless it is the channel axis: then both are one sample.
    alpha : float, default 1.0
        Strength: 0 gives the content, 1 the style's statistics.
    <eps>
    <tail>

    Returns
    -------
    <returns>

    Raises
    ------
    <raises>

    Notes
    -----
    ``alpha * (std(style) * x_hat(content) + mean(style)) + (1 - alpha) * content``: Huang and Belongie, Arbitrary Style
    Transfer (2017), eq. 8 and 14. The deviation of the style is biased and has no eps. `moments` are those of the content.
    The blend costs no pass of its own: it is an affine of ``x_hat`` too.

    Examples
    --------
    >>> import numpy as np, normkit as nk
    >>> rng = np.random.default_rng(0)
    >>> content, style = rng.normal(size=(2, 3, 8, 8)), rng.normal(5, 3, size=(1, 3, 4, 6))
    >>> y = nk.adaptive_instance_norm(content, style, eps=0)
    >>> np.allclose(y.mean((2, 3)), style.mean((2, 3))), np.allclose(y.std((2, 3)), style.std((2, 3)))
    (True, True)
    """
    incoming, model = _interop.ingest(content, "content"), _interop.ingest(style, "style")
    shape, options, strength = incoming.shape, Options(_interop.epsilon(eps)), _interop.number(alpha, "alpha")
    _interop.beside(incoming, model, "style")
    channel, kept = _channel(shape, channel_axis)
    style_channel, style_kept = _channel(model.shape, channel_axis)
    if model.shape[style_channel] != shape[channel] or (style_channel == 0) != (channel == 0):
        raise ValueError(f"style has shape {model.shape}, expected the {shape[channel]} channels of content {shape}")
    if channel and model.shape[0] not in (1, shape[0]):
        raise ValueError(f"style has a batch of {model.shape[0]}, expected 1 or that of content, {shape[0]}")
    lie = [1] * len(shape)
    lie[0], lie[channel] = model.shape[0], model.shape[style_channel]
    source = Style(model, by_axes(model.shape, _spatial(model.shape, style_kept)), tuple(lie), strength)
    split = by_axes(shape, _spatial(shape, kept))
    return StyleProblem(incoming, split, None, None, options, Tail(moments, return_moments, out, dtype), source)


def moments(x: Any, sets: Sets, *, center: bool = True, **sizes: int) -> Moments:
    """
    Compute the moments (count, mean, variance) of every set of an array.

    Parameters
    ----------
    x : array_like
        Real array of any strides.
    sets : int, tuple of int, str or NormSet
        As in `normalize`.
    center : bool, default True
        False gives mean 0 and the mean of squares as variance.
    **sizes : int
        Sizes of named axes and parts of a pattern.

    Returns
    -------
    Moments
        In float64; the axes of x are kept.

    Raises
    ------
    ValueError
        `sets` does not fit x.
    TypeError
        x is complex or no array of numbers.
    numpy.exceptions.AxisError
        An axis is out of range.

    Examples
    --------
    >>> import numpy as np, normkit as nk
    >>> nk.moments(np.arange(12.0).reshape(3, 4), "[n] c").mean
    array([[4., 5., 6., 7.]])
    """
    chosen = _reducing(sets, sizes)
    array = _interop.ingest(x, "x").array
    split = chosen.split(array.shape)
    return _engine.moments_of(_engine.statistics(array, split, bool(center)), split)
