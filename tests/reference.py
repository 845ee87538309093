"""The oracle: the papers' sums, spelled out in long double. Imports NumPy and nothing else."""

import numpy as np


def split_channels(x, groups, channel):
    """x with its channel axis as (groups, channels per group)."""
    shape = x.shape
    return x.reshape(*shape[:channel], groups, shape[channel] // groups, *shape[channel + 1 :])


def centre(x, axes):
    """(mean, x - mean) over axes. The mean's own rounding is seen in the residuals, and taken out of them."""
    n = int(np.prod([x.shape[a] for a in axes]))
    mean = np.sum(x, axis=axes, keepdims=True) / n
    rest = np.sum(x - mean, axis=axes, keepdims=True) / n
    return mean + rest, (x - mean) - rest


def moments(x, axes, center=True):
    """(mean, variance) over axes, kept as length 1."""
    x, axes = np.asarray(x).astype(np.longdouble), tuple(axes)
    mean, deviation = centre(x, axes) if center else (np.zeros_like(np.sum(x, axis=axes, keepdims=True)), x)
    n = int(np.prod([x.shape[a] for a in axes]))
    return mean, np.sum(deviation * deviation, axis=axes, keepdims=True) / n


def normalize(x, axes, weight=None, bias=None, eps=1e-5, center=True, correction=0):
    """(x - mean) / sqrt(var + eps) * weight + bias; a set without spread and with eps = 0 gives bias."""
    x, axes = np.asarray(x).astype(np.longdouble), tuple(axes)
    if x.size == 0:
        return x
    n = int(np.prod([x.shape[a] for a in axes]))
    deviation = centre(x, axes)[1] if center else x
    var = np.sum(deviation * deviation, axis=axes, keepdims=True) / (n - np.longdouble(correction))
    spread = np.broadcast_to(np.sqrt(var + np.longdouble(eps)), x.shape)
    x_hat = np.divide(deviation, spread, out=np.zeros_like(x), where=spread != 0)
    y = x_hat * (1 if weight is None else np.asarray(weight).astype(np.longdouble))
    return y + (0 if bias is None else np.asarray(bias).astype(np.longdouble))


def group_normalize(x, groups, channel, axes, weight=None, bias=None, **options):
    """As `normalize`, over groups of channels and `axes` (of x, the channel axis not among them)."""
    parts = split_channels(np.asarray(x), groups, channel)
    reduced = [a if a < channel else a + 1 for a in axes] + [channel + 1]
    y = normalize(parts, reduced, **options).reshape(np.shape(x))
    y = y * (1 if weight is None else np.asarray(weight).astype(np.longdouble))
    return y + (0 if bias is None else np.asarray(bias).astype(np.longdouble))


def gradient(x, axes, dy, weight=None, eps=1e-5, center=True, correction=0, constant=None):
    """(dx, dy * x_hat, size): the gradient of sum(y * dy), and what an error of dx is to be compared with.

    Sums over a set: Ioffe and Szegedy (2015), section 3. constant = (mean, var): statistics that do not follow x.
    """
    x, dy, axes = np.asarray(x).astype(np.longdouble), np.asarray(dy).astype(np.longdouble), tuple(axes)
    n = int(np.prod([x.shape[a] for a in axes]))
    if constant is not None:
        mean, var = (np.asarray(part).astype(np.longdouble) for part in constant)
        deviation = x - mean
    else:
        deviation = centre(x, axes)[1] if center else x
        var = np.sum(deviation * deviation, axis=axes, keepdims=True) / (n - np.longdouble(correction))
    root = np.sqrt(var + np.longdouble(eps))
    rstd = np.divide(1, root, out=np.zeros_like(root), where=root != 0)
    x_hat = deviation * rstd
    g = dy * (1 if weight is None else np.asarray(weight).astype(np.longdouble))

    def mean_of(values):
        return np.sum(values, axis=axes, keepdims=True) / n

    size = rstd * (np.abs(g) + mean_of(np.abs(g)) * (1 + np.abs(x_hat)) + np.abs(x_hat) * mean_of(np.abs(g * x_hat)))
    if constant is not None:
        return rstd * g, dy * x_hat, size
    slope = np.sum(g * x_hat, axis=axes, keepdims=True) / (n - np.longdouble(correction))
    return rstd * (g - (mean_of(g) if center else 0) - x_hat * slope), dy * x_hat, size


def sum_to(values, shape):
    """Sum what broadcasting `shape` to the shape of values repeats."""
    values = values.sum(tuple(range(values.ndim - len(shape))))
    return values.sum(tuple(axis for axis, n in enumerate(shape) if n == 1), keepdims=True)


def tolerance(dtype, n=1):
    """Largest error allowed, relative to max(1, |y|): a few roundings of the result, and the statistics of n elements.

    float32: 4 ulp, 3 of the apply pass and 1 of the statistics, whatever n. Halves: their own rounding dominates.
    float64: 10 ulp and sqrt(n) / 2. A variance takes 8 + 8 + 5 roundings in a row (rows, strips, lanes) and 3 of each
    square, here in the precision of the data: 24 halves of an ulp, half of which enters 1 / sqrt(var), makes 6; 4 for the
    rest as above. And means are kept relative to the set's first element: if that is an outlier, of sqrt(n) deviations,
    its last half bit is sqrt(n) / 2 ulp of a deviation.
    """
    name = np.dtype(dtype).name
    if name in ("float16", "bfloat16"):
        return {"float16": 2.0**-11, "bfloat16": 2.0**-8}[name] * 1.01 + 2e-6
    if name == "float32":
        return 4 * 2.0**-23
    return (10 + n**0.5 / 2) * 2.0**-52


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
