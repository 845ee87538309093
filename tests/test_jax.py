"""JAX: arrays through the door, and functions under jit, grad and vmap."""

import numpy as np
import pytest

import normkit as nk
from normkit import _recall
from tests.test_properties import images

jax = pytest.importorskip("jax", reason="an extra")
nj = pytest.importorskip("normkit.jax", reason="an extra")
jnp = jax.numpy


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_arrays_come_in_and_go_out(dtype):
    x = jnp.asarray(images()).astype(dtype)
    y, m = nk.instance_norm(x, return_moments=True)
    assert isinstance(y, jax.Array) and y.dtype == x.dtype
    assert np.array_equal(np.asarray(y).view(np.uint8), nk.instance_norm(np.asarray(x)).view(np.uint8))
    assert m.mean.dtype == np.float64 and isinstance(m.mean, np.ndarray)
    gradients = nk.vjp(nk.instance_norm, x, jnp.ones(8))[1](y)
    assert isinstance(gradients.x, jax.Array) and isinstance(gradients.weight, jax.Array)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_calls_of_a_known_form_give_the_same(dtype, monkeypatch, long_way):
    """They take the short way, in both directions, inside jit and outside."""
    differentiate = jax.jit(jax.grad(lambda x, weight: (nj.instance_norm(x, weight) ** 3).sum(), (0, 1)))

    def answer(seed):
        x, weight = jnp.asarray(images(seed=seed)).astype(dtype), jnp.arange(8.0) + seed
        y, pullback = nk.vjp(nk.instance_norm, x, weight)
        found = [nk.instance_norm(x), nk.instance_norm(x, weight), y, *pullback(y)[:2], *differentiate(x, weight)]
        assert all(isinstance(each, jax.Array) for each in found)
        return [(np.asarray(each).tobytes(), each.dtype) for each in found]

    handed, take = [], jnp.from_dlpack
    monkeypatch.setattr(jnp, "from_dlpack", lambda array: handed.append(array.ctypes.data % 64) or take(array))
    with long_way():
        expected = answer(5)
    monkeypatch.setattr(_recall, "_ready", {})
    answer(9)
    assert len(_recall._ready) == 5  # two norms, vjp, and two passes inside jit
    assert answer(5) == expected
    assert len(handed) == (3 if dtype == "bfloat16" else 15) and handed.count(0) >= len(handed) - 3  # but weights' gradients


def test_results_are_not_copied():
    """JAX copies what is aligned to less than 64 bytes, so results for it are aligned to that."""
    from normkit import _interop

    for shape in ((3,), (7, 5), (33, 65, 9)):
        made = _interop.new_like(np.empty(shape, np.float32), np.dtype(np.float32), aligned=True)
        assert made.ctypes.data % 64 == 0 and made.shape == shape and made.flags.c_contiguous
        assert jnp.from_dlpack(made).unsafe_buffer_pointer() == made.ctypes.data


def test_refusals():
    x = jnp.asarray(images())
    with pytest.raises(TypeError, match="out is a JAX array, which is immutable"):
        nk.instance_norm(x, out=x)
    with pytest.raises(TypeError, match=r"x is a value inside jax\.jit, grad or vmap; use the functions of normkit.jax there"):
        jax.jit(nk.instance_norm)(x)
    integers = jnp.arange(6).reshape(2, 3)
    with pytest.raises(TypeError, match="the result has dtype float64, and JAX without jax_enable_x64 would make it float32"):
        nk.layer_norm(integers)
    assert nk.layer_norm(integers, dtype="float32").dtype == jnp.float32
    with pytest.raises(TypeError, match="inside JAX's transforms a norm takes floats"):
        nj.layer_norm(integers)
    with pytest.raises(ValueError, match=r"weight has shape \(3,\), expected \(8,\)"):
        jax.jit(nj.instance_norm)(x, jnp.ones(3))
    with pytest.raises(TypeError, match=r"moments must be normkit\.Moments"):
        nj.instance_norm(x, moments=2)


def plain(x, axes, weight=1.0, bias=0.0, eps=1e-5, center=True):
    mean = x.mean(axes, keepdims=True) if center else 0
    return (x - mean) * jax.lax.rsqrt(((x - mean) ** 2).mean(axes, keepdims=True) + eps) * weight + bias


def lie(weight):
    return weight.reshape(-1, 1, 1)


CALLS = {
    "instance": (nj.instance_norm, lambda x, w, b: plain(x, (2, 3), lie(w), lie(b))),
    "batch": (nj.batch_norm, lambda x, w, b: plain(x, (0, 2, 3), lie(w), lie(b))),
    "layer": (lambda *a: nj.layer_norm(*a, axis=1), lambda x, w, b: plain(x, (1,), lie(w), lie(b))),
    "rms": (lambda *a: nj.rms_norm(*a, axis=1), lambda x, w, b: plain(x, (1,), lie(w), lie(b), 1e-6, center=False)),
    "group": (
        lambda x, w, b: nj.group_norm(x, 4, w, b),
        lambda x, w, b: plain(x.reshape(3, 4, 2, 9, 5), (2, 3, 4)).reshape(x.shape) * lie(w) + lie(b),
    ),
    "described": (
        lambda x, w, b: nj.normalize(x, nk.NormSet("n (g [c]) [...]", g=4), lie(w), lie(b)),
        lambda x, w, b: plain(x.reshape(3, 4, 2, 9, 5), (2, 3, 4)).reshape(x.shape) * lie(w) + lie(b),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_value_and_gradients_under_jit(name):
    ours, formula = CALLS[name]
    rng = np.random.default_rng(0)
    arguments = (jnp.asarray(images() - 7), *(jnp.asarray(rng.normal(size=8).astype(np.float32)) for _ in range(2)))

    def loss(norm, *arguments):
        return (norm(*arguments) ** 3).sum()

    for first, second in ((lambda f: f, lambda f: f), (jax.jit, jax.jit)):
        assert np.allclose(first(ours)(*arguments), second(formula)(*arguments), atol=1e-5)
        found, expected = (
            jax.jit(jax.grad(lambda *a, norm=norm: loss(norm, *a), (0, 1, 2)))(*arguments) for norm in CALLS[name]
        )
        for a, b in zip(found, expected, strict=True):
            assert np.allclose(a, b, atol=1e-4 * float(abs(b).max()))


def test_vmap_is_a_norm_for_each_element():
    x = jnp.asarray(images())
    assert np.array_equal(jax.vmap(lambda a: nj.normalize(a, (1, 2)))(x), nj.normalize(x, (2, 3)))
    each = jax.vmap(jax.grad(lambda a: (nj.normalize(a, (1, 2)) ** 3).sum()))(x)
    whole = jax.grad(lambda a: (nj.normalize(a, (2, 3)) ** 3).sum())(x)
    assert np.array_equal(each, whole)


def test_given_moments_and_adain():
    x, style = jnp.asarray(images()), jnp.asarray(images(5, (1, 8, 4, 6)))
    running = nk.moments(images(3), (0, 2, 3))
    assert np.array_equal(
        jax.jit(lambda a: nj.batch_norm(a, moments=running))(x), nk.batch_norm(np.asarray(x), moments=running)
    )
    slope = jax.grad(lambda a: nj.batch_norm(a, moments=running).sum())(x)
    assert np.allclose(slope, np.broadcast_to(1 / np.sqrt(running.var + 1e-5), x.shape), rtol=1e-5)
    found = jax.jit(jax.grad(lambda c, s: (nj.adaptive_instance_norm(c, s, alpha=0.5) ** 2).sum(), (0, 1)))(x, style)
    y, pullback = nk.vjp(nk.adaptive_instance_norm, np.asarray(x), np.asarray(style), alpha=0.5)
    for a, b in zip(found, pullback(2 * y), strict=True):
        assert np.allclose(a, b, atol=1e-4)
