"""What the properties draw from: shape, sets, layout, dtype and hard values that fit together."""

import numpy as np
from hypothesis import strategies as st

# Where blocks end: lanes of 32, vectors of 16, blocks of 2048 positions (chunks of 16384 have tests of their own).
EDGES = (1, 2, 3, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65)
VALUES = ("normal", "offset 1e2", "offset 1e4", "offset 1e6", "constant", "two values", "outlier", "tiny", "huge", "sorted")


def fill(shape, kind, dtype, seed):
    """Values of one kind, exactly representable in `dtype`."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    dtype = np.dtype(dtype)
    if dtype.kind in "iub":
        low, high = (0, 2) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if kind == "constant":
            return np.full(shape, high, dtype) if dtype.kind != "b" else np.ones(shape, dtype)
        return rng.integers(max(low, -(2**40)), min(high, 2**40), size=shape, endpoint=dtype.kind != "b").astype(dtype)
    half = dtype.itemsize == 2
    if kind.startswith("offset"):
        x = x + (100.0 if half else float(kind.split()[1]))
    elif kind == "constant":
        x = np.full(shape, 1234.0 if half else 1e4 + 0.1)
    elif kind == "two values":
        x = np.where(rng.integers(0, 2, shape), 8193.0, 8191.0) if not half else rng.integers(0, 2, shape).astype(float)
    elif kind == "outlier" and x.size:
        x.reshape(-1)[0] = 6e4 if half else 1e6
    elif kind == "tiny":
        x = x * (1e-4 if half else 1e-30)
    elif kind == "huge":
        x = x * (1e4 if half else 1e30)
    elif kind == "sorted":
        x = np.sort(x.reshape(-1)).reshape(shape)
    return x.astype(dtype)


def lay_out(x, order, steps):
    """The same values in other memory: axes stored in `order`, each with a step (negative: backwards, 0 is not a copy)."""
    stored = [x.shape[a] * abs(s) for a, s in ((a, steps[a]) for a in order)]
    memory = np.zeros(stored, x.dtype)
    view = memory.transpose(np.argsort(order))
    view = view[tuple(slice(None, None, s) for s in steps)]
    view[...] = x
    return view


@st.composite
def layouts(draw, ndim):
    """(order of the axes in memory, step of every axis)."""
    order = draw(st.permutations(range(ndim)))
    steps = draw(st.lists(st.sampled_from((1, 1, 1, 2, -1, -2)), min_size=ndim, max_size=ndim))
    return order, steps


@st.composite
def arrays(draw, dtypes=("float32", "float64"), min_ndim=1, max_ndim=5, values=VALUES, max_elements=20_000):
    """An array of any rank, layout and values."""
    ndim = draw(st.integers(min_ndim, max_ndim))
    shape = []
    for _ in range(ndim):
        room = max_elements // int(np.prod(shape, initial=1))
        shape.append(draw(st.sampled_from([n for n in EDGES if n <= max(room, 1)])))
    dtype = draw(st.sampled_from(dtypes))
    x = fill(tuple(shape), draw(st.sampled_from(values)), dtype, draw(st.integers(0, 2**32 - 1)))
    return lay_out(x, *draw(layouts(ndim)))


@st.composite
def cases(draw, **options):
    """(array, axes of its sets)."""
    x = draw(arrays(**options))
    axes = draw(st.lists(st.integers(0, x.ndim - 1), min_size=1, max_size=x.ndim, unique=True))
    return x, tuple(axes)


def affine_shapes(shape):
    """Every shape that broadcasts to `shape`, shorter ones too."""
    kept = st.tuples(*(st.sampled_from((1, n)) for n in shape))
    return kept.flatmap(lambda s: st.integers(0, len(s)).map(lambda drop: s[drop:]))
