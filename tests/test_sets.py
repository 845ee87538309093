"""NormSet: what a pattern means, and what a wrong one says."""

import pickle
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.exceptions import AxisError

import normkit as nk
from normkit.sets import as_norm_set

SHAPE = (2, 6, 4, 5)


@pytest.mark.parametrize(
    ("pattern", "axes"),
    [
        ("n c [...]", (2, 3)),
        ("n [c ...]", (1, 2, 3)),
        ("... [c]", -1),
        ("[n] c [...]", (0, 2, 3)),
        ("n [...] c", (1, 2)),
        ("n c h [w]", 3),
        ("n c [s...]", (2, 3)),
        ("[n c h w]", (3, 2, 1, 0)),
        ("2 c [h] 5", (-2,)),
        ("[...]", (0, 1, 2, 3)),
        ("  n\tc [ h w ] ", (2, 3)),
        ("a b [...] c d", ()),
    ],
)
def test_patterns_and_axes_agree(pattern, axes):
    assert nk.NormSet(pattern).split(SHAPE) == nk.NormSet(axes).split(SHAPE)


@pytest.mark.parametrize(
    ("pattern", "sizes", "parts"),
    [
        ("n (g [c]) [...]", {"g": 3}, ((3, False), (2, True))),
        ("n (g [c]) [...]", {"c": 3}, ((2, False), (3, True))),
        ("n ([c] g) [...]", {"g": 3}, ((2, True), (3, False))),
        ("n (a [b] c) h w", {"a": 1, "c": 3}, ((1, False), (2, True), (3, False))),
        ("n [(a b)] h w", {"a": 2}, ((2, True), (3, True))),
        ("n (2 [c]) h w", {}, ((2, False), (3, True))),
        ("n (g [c]) [...]", {"g": 3, "c": 2}, ((3, False), (2, True))),
    ],
)
def test_split_axes(pattern, sizes, parts):
    assert nk.NormSet(pattern, **sizes).split(SHAPE)[1] == parts


@pytest.mark.parametrize(
    ("pattern", "sizes", "says"),
    [
        ("n c [h", {}, "unbalanced bracket '[', at position 4"),
        ("n c h] w", {}, "unbalanced bracket ']', at position 5"),
        ("n c [[h] w]", {}, "nested"),
        ("n (g [c) h] w", {}, "unbalanced parenthesis ')'"),
        ("n (c [h] w", {}, "unbalanced parenthesis '('"),
        ("n ((a b) c) w", {}, "nested"),
        ("n () [h] w", {}, "empty parentheses"),
        ("n n [h] w", {}, "'n' is repeated, at position 2"),
        ("... c [...]", {}, "second '...'"),
        ("n (g ...) [h]", {}, "'...' stands for whole axes"),
        ("n c? [h] w", {}, "unexpected '?'"),
        ("n [c]", {}, "has 2 axes, the array has 4: shape (2, 6, 4, 5)"),
        ("a b c d e [...]", {}, "at least 5 axes, the array has 4"),
        ("n (g [c]) [...]", {}, "unknown sizes c, g"),
        ("n (g [c]) [...]", {"g": 4}, "length 6 is not divisible by 4 (g=4)"),
        ("n (g [c]) [...]", {"g": 3, "c": 3}, "g=3 * c=3 does not match length 6"),
        ("n c [h] w", {"h": 7}, "size h=7 does not match length 4"),
        ("n c [h] w", {"k": 7}, "k=7 names no axis of pattern"),
        ("n c [h] w", {"h": 0}, "size h=0 must be at least 1"),
        ("n 7 [h] w", {}, "size 7 does not match length 6"),
        ("n c h w", {}, "reduces nothing"),
    ],
)
def test_wrong_patterns_say_where_and_why(pattern, sizes, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        nk.normalize(np.ones(SHAPE), pattern, **sizes)


@pytest.mark.parametrize(
    ("sets", "error", "says"),
    [
        ((), ValueError, "reduces nothing"),
        ((1, 1), ValueError, "twice"),
        ((1, -3), ValueError, "twice"),
        (4, AxisError, "axis 4 is out of bounds"),
        ((0, -5), AxisError, "axis -5 is out of bounds"),
        (1.5, TypeError, "must be axes"),
        (True, TypeError, "must be axes"),
        (None, TypeError, "must be axes"),
        (("c",), TypeError, "must be axes"),
    ],
)
def test_wrong_axes(sets, error, says):
    with pytest.raises(error, match=says):
        nk.normalize(np.ones(SHAPE), sets)


def test_sizes_beside_axes_are_unexpected():
    with pytest.raises(TypeError, match="unexpected keyword argument 'epsilon'"):
        nk.normalize(np.ones(SHAPE), 1, epsilon=1e-3)
    with pytest.raises(TypeError, match="has its sizes already"):
        nk.normalize(np.ones(SHAPE), nk.NormSet("n (g [c]) [...]", g=2), g=2)
    with pytest.raises(TypeError, match="size g='a' must be an integer"):
        nk.normalize(np.ones(SHAPE), "n (g [c]) [...]", g="a")


def test_a_norm_set_is_a_value():
    a, b = nk.NormSet("n (g [c]) [...]", g=2), nk.NormSet("n (g [c]) [...]", g=2)
    assert a == b and hash(a) == hash(b) and a != nk.NormSet("n (g [c]) [...]", g=3) and a != "n (g [c]) [...]"
    assert eval(repr(a), {"NormSet": nk.NormSet}) == a == pickle.loads(pickle.dumps(a))
    assert eval(repr(nk.NormSet((2, 3))), {"NormSet": nk.NormSet}) == nk.NormSet([2, np.int64(3)])
    with pytest.raises(AttributeError, match="immutable"):
        a.anything = 1
    assert as_norm_set("n [c]", {}) is as_norm_set("n [c]", {}), "parsed once"


@given(st.text("nc[]() .1", max_size=12))
def test_no_text_breaks_the_parser(text):
    """Every text is a pattern or a ValueError that shows it."""
    error = None
    try:
        nk.NormSet(text).split((2, 3))
    except ValueError as raised:
        error = str(raised)
    assert error is None or text in error or repr(text) in error
