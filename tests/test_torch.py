"""PyTorch: tensors through the door, differentiable functions, layers in place of torch.nn's."""

import time

import numpy as np
import pytest

import normkit as nk
from normkit import _recall
from tests import reference

torch = pytest.importorskip("torch", reason="an extra")
nt = pytest.importorskip("normkit.torch", reason="an extra")
F = torch.nn.functional


def tensor(*shape, dtype=torch.float32, seed=0, grad=False):
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 + 7
    return made.to(dtype).requires_grad_(grad)


# ---------------------------------------------------------------------------------------------------------------------- door
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "transposed", "expanded"])
def test_tensors_come_in_without_a_copy_and_go_out_as_tensors(layout, dtype):
    x = tensor(2, 6, 8, 5, dtype=dtype)
    x = {
        "contiguous": lambda: x,
        "channels_last": lambda: x.to(memory_format=torch.channels_last),
        "sliced": lambda: x[:, ::2, 1:],
        "transposed": lambda: x.transpose(1, 3),
        "expanded": lambda: x[:1].expand(4, -1, -1, -1),
    }[layout]()
    y, m = nk.instance_norm(x, return_moments=True)
    assert type(y) is torch.Tensor and y.dtype == dtype and y.shape == x.shape
    values = x.double().numpy()
    exact = reference.normalize(values, (2, 3)).astype(float)
    kind = {torch.float16: "float16", torch.float64: "float64"}.get(dtype, "float32")
    limit = 2.0**-8 if dtype == torch.bfloat16 else reference.tolerance(kind, 40)
    assert np.all(abs(y.double().numpy() - exact) <= limit * 1.01 * np.maximum(1, abs(exact)))
    assert np.allclose(m.mean, values.mean((2, 3), keepdims=True))
    if layout == "channels_last":
        assert y.is_contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(y)
    assert nk.instance_norm(x, out=out) is out and torch.equal(out, y)


def test_in_place_on_a_tensor():
    x = tensor(2, 3, 40)
    expected = nk.instance_norm(x)
    assert nk.instance_norm(x, out=x) is x and torch.equal(x, expected)


def test_gradients_of_tensors_are_tensors():
    x, weight = tensor(2, 3, 8), np.ones(3, np.float32)
    y, pullback = nk.vjp(nk.instance_norm, x, weight)
    gradients = pullback(y)
    assert type(gradients.x) is torch.Tensor and type(gradients.weight) is np.ndarray


REFUSED = {
    "requires grad": (lambda: tensor(2, 3, grad=True), r"x requires grad.* functions of normkit.torch, or x.detach\(\)"),
    "conjugate": (lambda: torch.ones(2, 3, dtype=torch.complex64).conj(), r"its conj bit set; pass x.resolve_conj\(\)"),
    "negative": (lambda: torch.ones(2, 3, dtype=torch.complex64).conj().imag, r"its neg bit set; pass x.resolve_neg\(\)"),
    "sparse": (lambda: torch.ones(2, 3).to_sparse(), "layout torch.sparse_coo"),
    "meta": (lambda: torch.ones(2, 3, device="meta"), "x is on meta"),
    "complex": (lambda: torch.ones(2, 3, dtype=torch.complex64), "x has dtype complex64.*real and imaginary part"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refusals_say_what_would_be_right(what):
    made, text = REFUSED[what]
    with pytest.raises(TypeError, match=text):
        nk.layer_norm(made())


def test_out_and_devices_are_refused_by_name():
    x = tensor(2, 3)
    with pytest.raises(ValueError, match="weight is on meta, where x is not; all arrays of a call must be on one device"):
        nk.layer_norm(x, torch.ones(3, device="meta"))
    with pytest.raises(TypeError, match="out requires grad"):
        nk.layer_norm(x, out=torch.ones(2, 3, requires_grad=True))
    with pytest.raises(ValueError, match="some of its elements share memory"):
        nk.layer_norm(x, out=torch.ones(1).expand(2, 3))


def test_the_door_costs_little():
    """A tensor in and out beside a NumPy array, median of many; the promise is 4 us, here with room for a busy machine."""
    x = tensor(4, 16, 64)
    times = {}
    for name, value in (("numpy", x.numpy()), ("torch", x)):
        spent = []
        for _ in range(2000):
            begin = time.perf_counter()
            nk.instance_norm(value)
            spent.append(time.perf_counter() - begin)
        times[name] = np.median(spent)
    assert times["torch"] - times["numpy"] < 10e-6, times


def test_a_hundred_thousand_calls_leave_memory_flat():
    resource = pytest.importorskip("resource", reason="peak memory of this process")
    x, weight = tensor(2, 3, 4096), tensor(3)  # 96 KiB a result: 9 GiB, if they stayed
    for _ in range(1000):
        nk.instance_norm(x, weight)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(100_000):
        nk.instance_norm(x, weight)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16_000  # KiB


# ----------------------------------------------------------------------------------------------------------------- functions
GROUPS = nk.NormSet("n (g [c]) [...]", g=2)
GIVEN = nk.Moments(24, np.full((1, 4, 1, 1), 6.0), np.full((1, 4, 1, 1), 8.0))
CALLS = {
    "instance": lambda x, w, b: nt.instance_norm(x, w, b),
    "batch": lambda x, w, b: nt.batch_norm(x, w, b),
    "group": lambda x, w, b: nt.group_norm(x, 2, w, b),
    "layer": lambda x, w, b: nt.layer_norm(x, w, b, axis=1),
    "rms": lambda x, w, b: nt.rms_norm(x, w, b, axis=1),
    "interleaved": lambda x, w, b: nt.normalize(x, "[n] ([c] k) ...", w.view(4, 1, 1), b.view(4, 1, 1), k=2),
    "described": lambda x, w, b: nt.normalize(x, GROUPS, w.view(4, 1, 1), b.view(4, 1, 1), correction=1),
    "given": lambda x, w, b: nt.batch_norm(x, w, b, moments=GIVEN),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_first_and_second_derivatives(name):
    arguments = [tensor(*shape, dtype=torch.float64, seed=k, grad=True) for k, shape in enumerate(((2, 4, 3, 2), (4,), (4,)))]
    assert torch.autograd.gradcheck(CALLS[name], arguments)
    assert torch.autograd.gradgradcheck(CALLS[name], arguments)


@pytest.mark.parametrize("name", [*CALLS, "adain"])
def test_the_gradient_that_has_a_gradient_is_the_same(name):
    """gradgradcheck holds the gradient of `create_graph` against itself only; here it is held against the kernels'."""
    shapes = ((2, 4, 3, 2), (4,), (4,)) if name != "adain" else ((2, 4, 3, 2), (1, 4, 5))
    arguments = [tensor(*shape, dtype=torch.float64, seed=k, grad=True) for k, shape in enumerate(shapes)]
    norm = CALLS.get(name, lambda c, s: nt.adaptive_instance_norm(c, s, alpha=0.4))
    dy = tensor(2, 4, 3, 2, dtype=torch.float64, seed=9) - 7
    ours, composed = (torch.autograd.grad(norm(*arguments), arguments, dy, create_graph=create) for create in (False, True))
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(ours, composed, strict=True))


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_derivatives_of_adain(alpha):
    content, style = tensor(2, 3, 4, dtype=torch.float64, grad=True), tensor(1, 3, 5, dtype=torch.float64, seed=1, grad=True)
    norm = lambda c, s: nt.adaptive_instance_norm(c, s, alpha=alpha)  # noqa: E731
    assert torch.autograd.gradcheck(norm, (content, style))
    assert torch.autograd.gradgradcheck(norm, (content, style))
    assert torch.equal(norm(content, style).detach(), nk.adaptive_instance_norm(content.detach(), style.detach(), alpha=alpha))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_beside_pytorch(dtype, layout):
    x = tensor(3, 8, 6, 7, dtype=dtype).to(memory_format=layout)
    weight, bias, dy = tensor(8, seed=1), tensor(8, seed=2), tensor(3, 8, 6, 7, dtype=dtype, seed=3) - 7
    results = []
    for norm in (
        lambda *a: nt.group_norm(a[0], 4, *a[1:]),
        lambda x, w, b: F.group_norm(x.double(), 4, w.double(), b.double()),
    ):
        inputs = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, weight, bias)]
        y = norm(*inputs)
        y.backward(dy.to(y.dtype))
        results.append([y, *(t.grad for t in inputs)])
    assert results[0][0].dtype == results[0][1].dtype == dtype
    assert results[0][1].is_contiguous(memory_format=layout)
    for ours, exact in zip(*results, strict=True):
        step = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-5}[ours.dtype]
        assert (ours.double() - exact.double()).abs().max() <= step * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every second"])
@pytest.mark.parametrize("norm", ["instance_norm", "layer_norm"])
def test_calls_of_a_known_form_give_the_same(norm, layout, dtype, monkeypatch, long_way):
    """They take the short way, in both directions; weights that do not lie in line take the long one."""
    options = {"axis": 1} if norm == "layer_norm" else {}

    def answer(seed, step):
        x = tensor(2, 6, 8, 5, dtype=dtype, seed=seed)
        if layout == "channels_last":
            x = x.to(memory_format=torch.channels_last)
        elif layout == "every second":
            x = tensor(2, 6, 16, 5, dtype=dtype, seed=seed)[:, :, ::2]
        weight, bias = (tensor(6 * step, seed=seed + k)[::step].requires_grad_() for k in (1, 2))
        x.requires_grad_()
        y = getattr(nt, norm)(x, weight, bias, **options)
        return [y.detach(), *torch.autograd.grad(y, (x, weight, bias), tensor(2, 6, 8, 5, dtype=dtype, seed=seed + 3))]

    for step in (1, 2):
        with long_way():
            expected = answer(5, step)
        monkeypatch.setattr(_recall, "_ready", {})
        answer(9, step)
        assert len(_recall._ready) == (2 if step == 1 else 0)
        for found, wanted in zip(answer(5, step), expected, strict=True):
            assert torch.equal(found, wanted) and found.dtype == wanted.dtype and found.stride() == wanted.stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_known_form_refuses_what_requires_grad(dtype):
    x = tensor(2, 3, 4, dtype=dtype)
    for _ in range(2):
        nk.instance_norm(x)
    with pytest.raises(TypeError, match="x requires grad"):
        nk.instance_norm(x.requires_grad_())


def test_only_what_needs_a_gradient_gets_one():
    x, weight = tensor(2, 3, 8), tensor(3, grad=True)
    nt.instance_norm(x, weight).sum().backward()
    assert x.grad is None and weight.grad is not None
    with torch.no_grad():
        assert not nt.instance_norm(x, weight).requires_grad


def test_moments_beside_the_value():
    x = tensor(4, 3, 8)
    y, m = nt.batch_norm(x, return_moments=True)
    assert m == nk.moments(x.numpy(), (0, 2)) and torch.allclose(y, nt.batch_norm(x, moments=m), atol=1e-6)
    assert nt.batch_norm(x, moments=m, return_moments=True)[1] is m


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"x must be a torch.Tensor, not ndarray; normkit.layer_norm takes any array"):
        nt.layer_norm(np.ones((2, 3)))
    with pytest.raises(TypeError, match=r"moments must be normkit\.Moments, not int"):
        nt.layer_norm(tensor(2, 3), moments=3)
    with pytest.raises(ValueError, match=r"weight has shape \(4,\), expected \(3,\)"):
        nt.layer_norm(tensor(2, 3), tensor(4))
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, not list"):
        nt.replace_norms([])
