"""The oracle: the papers' sums, spelled out in long double. Imports NumPy and nothing else."""

import numpy as np


def split_channels(x, groups, channel):
    """x with its channel axis as (groups, channels per group)."""
    shape = x.shape
    return x.reshape(*shape[:channel], groups, shape[channel] // groups, *shape[channel + 1 :])


def moments(x, axes, center=True):
    """(mean, variance) over axes, kept as length 1."""
    x = np.asarray(x).astype(np.longdouble)
    axes = tuple(axes)
    n = int(np.prod([x.shape[a] for a in axes]))
    mean = np.sum(x, axis=axes, keepdims=True) / n if center else np.zeros_like(np.sum(x, axis=axes, keepdims=True))
    centred = x - mean
    if center:  # the rounding of the mean, seen in the residuals, taken out
        rest = np.sum(centred, axis=axes, keepdims=True) / n
        mean, centred = mean + rest, centred - rest
    return mean, np.sum(centred * centred, axis=axes, keepdims=True) / n


def normalize(x, axes, weight=None, bias=None, eps=1e-5, center=True, correction=0, given=None):
    """(x - mean) / sqrt(var + eps) * weight + bias; a set without spread and with eps = 0 gives bias."""
    x = np.asarray(x).astype(np.longdouble)
    n = int(np.prod([x.shape[a] for a in axes]))
    if x.size == 0:
        return x
    mean, var = moments(x, axes, center) if given is None else given
    var = var * n / np.longdouble(n - correction) if given is None else var
    spread = np.sqrt(var + np.longdouble(eps))
    x_hat = np.divide(x - (mean if center else 0), spread, out=np.zeros_like(x), where=np.broadcast_to(spread != 0, x.shape))
    y = x_hat * (1 if weight is None else np.asarray(weight).astype(np.longdouble))
    return y + (0 if bias is None else np.asarray(bias).astype(np.longdouble))


def group_normalize(x, groups, channel, axes, weight=None, bias=None, **options):
    """As `normalize`, over groups of channels and `axes` (of x, the channel axis not among them)."""
    parts = split_channels(np.asarray(x), groups, channel)
    reduced = [a if a < channel else a + 1 for a in axes] + [channel + 1]
    y = normalize(parts, reduced, **options).reshape(np.shape(x))
    y = y * (1 if weight is None else np.asarray(weight).astype(np.longdouble))
    return y + (0 if bias is None else np.asarray(bias).astype(np.longdouble))


def tolerance(dtype, n=1):
    """Largest error allowed, relative to max(1, |y|): a few roundings of the result, and the statistics of n elements.

    float32: 4 ulp, 3 of the apply pass and 1 of the statistics, whatever n. Halves: their own rounding dominates.
    float64: 8 ulp; a variance takes 8 + 8 + 5 roundings in a row (rows, strips, lanes), here in the precision of the data,
    and half of that enters 1 / sqrt(var). Its chunks merge in float64 too, and the oracle rounds as sqrt(n).
    """
    name = np.dtype(dtype).name
    if name in ("float16", "bfloat16"):
        return {"float16": 2.0**-11, "bfloat16": 2.0**-8}[name] * 1.01 + 2e-6
    if name == "float32":
        return 4 * 2.0**-23
    return 8 * 2.0**-52 * max(1.0, n**0.5 / 64)


def assert_close(actual, expected, dtype=None, n=1, scale=None):
    """Every element within `tolerance`, NaN and infinity alike."""
    actual = np.asarray(actual)
    expected = np.asarray(expected)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    got, want = actual.astype(np.longdouble), expected.astype(np.longdouble)
    finite = np.isfinite(want)
    assert np.array_equal(np.isnan(got), np.isnan(want))
    limit = tolerance(actual.dtype if dtype is None else dtype, n)
    size = np.maximum(1, np.abs(want)) if scale is None else np.maximum(scale, np.abs(want))
    error = np.abs(np.where(finite, got, 0) - np.where(finite, want, 0)) / np.where(finite, size, 1)
    worst = float(error.max()) if error.size else 0.0
    assert worst <= limit, f"error {worst:.3g} above {limit:.3g}"
