"""The one door: what comes in from other libraries, what is refused, who owns the memory."""

import gc
import sys
import tracemalloc
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import normkit as nk
from normkit import _dlpack
from tests.capsules import CODES, Producer
from tests.test_properties import LAYOUTS, as_dtype, images


# ------------------------------------------------------------------------------------------------------------------ capsules
@pytest.mark.parametrize("versioned", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "int64", "bool"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_through_a_capsule(layout, dtype, versioned):
    x = LAYOUTS[layout](as_dtype(images(), dtype))
    producer = Producer(x, versioned)
    y = nk.instance_norm(producer)
    assert type(y) is np.ndarray and np.array_equal(y, nk.instance_norm(x))
    gc.collect()
    assert (producer.asked, producer.deleted) == (1, 1)


def test_offsets_null_strides_and_broadcasts():
    x = images()
    expected = nk.instance_norm(x)
    assert np.array_equal(nk.instance_norm(Producer(x, strides=None)), expected)
    base = np.concatenate([np.zeros(3, np.float32), x.ravel()])
    shifted = Producer(x, data=base.ctypes.data, byte_offset=12)
    assert np.array_equal(nk.instance_norm(shifted), expected)
    assert np.array_equal(nk.normalize(Producer(x[:, :, :, 0], strides=(0, 45, 5)), 2)[0], nk.normalize(x[0, :, :, 0], 1))
    assert nk.instance_norm(Producer(np.zeros((2, 0, 3)), data=0)).shape == (2, 0, 3)
    assert np.array_equal(nk.layer_norm(Producer(x[:1], strides=(999, 45, 5, 1))), nk.layer_norm(x[:1]))
    back = x[::-1]
    assert np.array_equal(nk.instance_norm(Producer(back)), expected[::-1])


def test_bfloat16_through_a_capsule():
    x = as_dtype(images(), "bfloat16")
    y = nk.instance_norm(Producer(x.view(np.uint16), code=4))
    assert y.dtype == x.dtype and np.array_equal(y.view(np.uint16), nk.instance_norm(x).view(np.uint16))


def test_misaligned_memory_is_read_through_a_copy():
    x = images()
    memory = np.zeros(x.nbytes + 1, np.uint8)
    memory[1:] = x.view(np.uint8).ravel()
    assert np.array_equal(nk.instance_norm(Producer(x, data=memory.ctypes.data + 1)), nk.instance_norm(x))


LIES = {
    "negative ndim": ({"ndim": -1}, "-1 axes, expected 0 to 64"),
    "many axes": ({"ndim": 65}, "65 axes"),
    "no shape": ({"shape": None, "ndim": 2}, "no shape for 2 axes"),
    "negative length": ({"shape": (-1, 4)}, r"shape \(-1, 4\)"),
    "overflowing shape": ({"shape": (2**40, 2**40)}, "more than an address holds"),
    "overflowing strides": ({"strides": (2**61, 1)}, "more than an address holds"),
    "overflowing offset": ({"byte_offset": 2**63 + 8}, "more than an address holds"),
    "most negative stride": ({"strides": (-(2**63), 1)}, "more than an address holds"),
    "lanes": ({"lanes": 4}, "dtype float32 in 4 lanes, expected 1"),
    "no lanes": ({"lanes": 0}, "in 0 lanes"),
    "null": ({"data": 0}, "no memory for shape"),
}


@pytest.mark.parametrize("versioned", [True, False])
@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused_before_memory_is_touched(lie, versioned):
    claims, text = LIES[lie]
    producer = Producer(np.ones((3, 4), np.float32), versioned, **claims)
    with pytest.raises(ValueError, match=rf"x is a tests.capsules.Producer, and its DLPack capsule claims .*{text}"):
        nk.layer_norm(producer)
    assert producer.deleted == 0  # not consumed: the capsule is still its maker's


@given(st.data())
def test_fuzzed_capsules_never_crash(data):
    """Any claim: a result or an error, for a read that stays within what is claimed to be small memory."""
    integers = st.sampled_from((-(2**63), -1, 0, 1, 2, 3, 2**31, 2**62, 2**63 - 1))
    wild = data.draw(st.lists(integers, min_size=2, max_size=2))
    claims = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "ndim": st.sampled_from((-(2**31), -1, 65, 2**31 - 1)),
                "bits": st.sampled_from((0, 1, 7, 24, 80, 128, 255)),
                "lanes": st.sampled_from((0, 2, 65535)),
                "data": st.just(0),
                "byte_offset": st.sampled_from((2**63, 2**64 - 1)),
                "device_in_capsule": st.sampled_from(((2, 0), (0, 0), (-1, 7), (99, 1))),
                "shape": st.just(tuple(-abs(n) - 1 if n < 2**62 else n for n in wild)),
            },
        )
    )
    code = data.draw(st.sampled_from((None, 3, 5, 7, 14, 255)))
    versioned = data.draw(st.booleans())
    producer = Producer(np.ones((3, 4), np.float32), versioned, code=code, **claims)
    if not claims and code is None:
        assert nk.layer_norm(producer).shape == (3, 4)
        return
    with pytest.raises((TypeError, ValueError)):
        nk.layer_norm(producer)


def test_dtypes_and_devices_that_normkit_has_not():
    x = np.ones((3, 4), np.float32)
    with pytest.raises(TypeError, match="it has dtype complex64"):
        nk.layer_norm(Producer(np.ones((3, 4), np.complex64)))
    with pytest.raises(TypeError, match=r"it has dtype code 7, 32 bits"):
        nk.layer_norm(Producer(x, code=7))
    with pytest.raises(TypeError, match=r"it has dtype float128|it has dtype float8"):
        nk.layer_norm(Producer(x, bits=8))
    with pytest.raises(
        TypeError, match=r"x is on rocm:1, which normkit has no kernels for; bring it to the CPU, as in x.cpu\(\)"
    ):
        nk.layer_norm(Producer(x, device=(10, 1)))
    with pytest.raises(TypeError, match="it lies on cuda:0"):
        nk.layer_norm(Producer(x, device_in_capsule=(2, 0)))
    with pytest.raises(ValueError, match="weight is on rocm:0, where x is not; all arrays of a call must be on one device"):
        nk.layer_norm(x, Producer(np.ones(4, np.float32), device=(10, 0)))
    assert np.array_equal(nk.layer_norm(Producer(x, device=(3, 0))), nk.layer_norm(x))  # pinned memory is the CPU's


def test_another_major_version_is_given_back():
    producer = Producer(np.ones((3, 4)), version=(2, 0))
    with pytest.raises(TypeError, match=r"its capsule is of DLPack 2\.0, normkit reads 0 and 1"):
        nk.layer_norm(producer)
    assert producer.deleted == 1


def test_what_is_no_capsule():
    class Odd:
        def __init__(self, made):
            self.made = made

        def __dlpack_device__(self):
            return (1, 0)

        def __dlpack__(self, **_):
            return self.made

    for made in (None, 7, "dltensor"):
        with pytest.raises(TypeError, match="not a fresh capsule"):
            nk.layer_norm(Odd(made))
    used = Producer(np.ones((3, 4), np.float32)).__dlpack__(max_version=(1, 0))
    _dlpack.read(Odd(used))
    with pytest.raises(TypeError, match="not a fresh capsule"):
        nk.layer_norm(Odd(used))


# ----------------------------------------------------------------------------------------------------------------- ownership
def test_read_only_memory_is_read_and_never_written():
    x = images()
    flagged = Producer(x, flags=1)
    assert np.array_equal(nk.instance_norm(flagged), nk.instance_norm(x))
    with pytest.raises(ValueError, match="out is read-only"):
        nk.instance_norm(x, out=Producer(np.empty_like(x), flags=1))
    with pytest.raises(ValueError, match="out is read-only"):  # an unversioned capsule cannot say so
        nk.instance_norm(x, out=Producer(np.empty_like(x), versioned=False))
    out = np.empty_like(x)
    nk.instance_norm(x, out=Producer(out))
    assert np.array_equal(out, nk.instance_norm(x))


def test_memory_lives_as_long_as_what_needs_it():
    x = images()
    producer = Producer(x)
    array = _dlpack.read(producer)
    view = array[1:, ::2]
    del array
    gc.collect()
    assert producer.deleted == 0 and np.array_equal(view, x[1:, ::2])
    del view
    gc.collect()
    assert producer.deleted == 1
    pullback = nk.vjp(nk.instance_norm, other := Producer(x))[1]
    gc.collect()
    assert other.deleted == 0 and np.array_equal(pullback(x).x, nk.vjp(nk.instance_norm, x)[1](x).x)
    del pullback
    gc.collect()
    assert other.deleted == 1


def test_a_refused_call_gives_memory_back():
    producer = Producer(images())
    with pytest.raises(ValueError, match="weight has shape"):
        nk.instance_norm(producer, np.ones(7))
    gc.collect()
    assert producer.deleted == 1


def test_many_calls_leave_memory_flat():
    x = np.ones((2, 3, 8), np.float32)
    producer = Producer(x)
    for _ in range(300):
        nk.instance_norm(producer)
        producer._keep.clear()
    gc.collect()
    tracemalloc.start()
    for _ in range(3000):
        nk.instance_norm(producer)
        producer._keep.clear()
    gc.collect()
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 30_000, grown
    assert producer.asked == producer.deleted == 3300


def test_a_library_without_from_dlpack(monkeypatch):
    module = types.ModuleType("odd_library")
    kind = type(
        "Tensor", (), {"__module__": "odd_library", "__dlpack_device__": lambda _: (1, 0), "__dlpack__": lambda _, **__: None}
    )
    monkeypatch.setitem(sys.modules, "odd_library", module)
    kind.__dlpack__ = lambda _, **options: images().__dlpack__(**options)
    with pytest.raises(TypeError, match="odd_library has no from_dlpack to take a result of normkit"):
        nk.instance_norm(kind())
    module.experimental = types.SimpleNamespace(dlpack=types.SimpleNamespace(from_dlpack=lambda capsule: ("taken", capsule)))
    assert nk.instance_norm(kind())[0] == "taken"


def test_every_kind_is_known():
    assert set(CODES.values()) <= set(_dlpack._KINDS)
