"""PyTorch: tensors through the door, differentiable functions, layers in place of torch.nn's."""

import copy
import pickle
import threading
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


# -------------------------------------------------------------------------------------------------------------------- layers
LAYERS = {
    "BatchNorm1d": (((6,), {}), (5, 6, 7)),
    "BatchNorm1d (N, C)": (((6,), {}), (5, 6)),
    "BatchNorm2d": (((6,), {"momentum": None}), (4, 6, 5, 3)),
    "BatchNorm3d": (((6,), {"affine": False}), (2, 6, 3, 4, 2)),
    "BatchNorm2d without running": (((6,), {"track_running_stats": False}), (4, 6, 5, 3)),
    "InstanceNorm1d": (((6,), {"affine": True}), (5, 6, 7)),
    "InstanceNorm2d": (((6,), {"affine": True, "track_running_stats": True}), (4, 6, 5, 3)),
    "InstanceNorm2d (C, H, W)": (((6,), {"track_running_stats": True, "momentum": 0.3}), (6, 5, 3)),
    "InstanceNorm3d": (((6,), {}), (2, 6, 3, 4, 2)),
    "GroupNorm": (((3, 6), {}), (4, 6, 5, 3)),
    "LayerNorm": ((((5, 3),), {}), (4, 6, 5, 3)),
    "LayerNorm plain": (((7,), {"elementwise_affine": False, "eps": 1e-3}), (5, 6, 7)),
    "RMSNorm": (((7,), {}), (5, 6, 7)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_do_what_pytorchs_do(name):
    """Value, gradients, buffers, in training and evaluation, with weights loaded either way."""
    ((args, options), shape), kind = LAYERS[name], name.split()[0]
    theirs, ours = getattr(torch.nn, kind)(*args, **options), getattr(nt, kind)(*args, **options)
    assert repr(ours) == repr(theirs) and list(ours.state_dict()) == list(theirs.state_dict())
    with torch.no_grad():
        for k, parameter in enumerate(theirs.parameters()):
            parameter.copy_(tensor(*parameter.shape, seed=k + 5))
    ours.load_state_dict(theirs.state_dict())
    getattr(torch.nn, kind)(*args, **options).load_state_dict(ours.state_dict())
    for step, mode in enumerate((True, True, False)):
        theirs.train(mode)
        ours.train(mode)
        grads = []
        for layer in (theirs, ours):
            x = tensor(*shape, seed=step).requires_grad_()
            layer.zero_grad()
            y = layer(x)
            y.backward(tensor(*shape, seed=9) - 7)
            grads.append([y.detach(), x.grad, *(p.grad for p in layer.parameters()), *(b.double() for b in layer.buffers())])
        for theirs_value, ours_value in zip(*grads, strict=True):
            assert torch.allclose(ours_value, theirs_value, rtol=1e-4, atol=1e-5), name


def network():
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), nn.BatchNorm2d(8), nn.GroupNorm(2, 8),
        nn.Sequential(nn.Flatten(1), nn.LayerNorm(8 * 36), nn.RMSNorm(8 * 36)), nn.Linear(8 * 36, 4),
    )  # fmt: skip


def test_replace_norms_in_a_model():
    torch.manual_seed(0)
    theirs = network()
    ours = copy.deepcopy(theirs)
    before = {name: id(p) for name, p in ours.named_parameters()}
    changed = nt.replace_norms(ours)
    assert changed == {"1": "InstanceNorm2d", "3": "BatchNorm2d", "4": "GroupNorm", "5.1": "LayerNorm", "5.2": "RMSNorm"}
    assert {name: id(p) for name, p in ours.named_parameters()} == before and nt.replace_norms(ours) == {}
    assert all(isinstance(layer, (nt.InstanceNorm2d, torch.nn.InstanceNorm2d)) for layer in (ours[1],))
    x = tensor(4, 3, 6, 6)
    optimizers = [torch.optim.SGD(model.parameters(), 0.05) for model in (theirs, ours)]
    for _ in range(3):
        for model, optimizer in zip((theirs, ours), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(theirs.parameters(), ours.parameters(), strict=True))
    for again in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        again.eval()
        ours.eval()
        assert torch.equal(again(x), ours(x)) and type(again[1]) is nt.InstanceNorm2d

    class Own(torch.nn.LayerNorm):
        pass

    assert nt.replace_norms(Own(3)) == {} and nt.replace_norms(torch.nn.LayerNorm(3)) == {"": "LayerNorm"}


def test_adaptive_instance_norm_layer():
    content, style = tensor(2, 3, 4, 4), tensor(1, 3, 5, 5, seed=1)
    layer = nt.AdaptiveInstanceNorm(alpha=0.5)
    assert torch.equal(layer(content, style), nk.adaptive_instance_norm(content, style, alpha=0.5))
    assert repr(layer) == "AdaptiveInstanceNorm(alpha=0.5, eps=1e-05)"


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_compile_takes_the_whole_graph():
    torch.manual_seed(0)
    model = network()
    nt.replace_norms(model)
    plain = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True)
    x = tensor(4, 3, 6, 6)
    for mode in (True, False):
        model.train(mode)
        plain.train(mode)
        ours, expected = compiled(x), plain(x)
        assert torch.allclose(ours, expected, atol=1e-4)
        ours.square().sum().backward()
        expected.square().sum().backward()
    grads = zip(model.parameters(), plain.parameters(), strict=True)
    assert all(torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-3) for a, b in grads)


def test_operators_keep_pytorchs_contract():
    spec = repr(("instance_norm", (), {"eps": 1e-5}))
    x, weight = tensor(2, 4, 3, grad=True), tensor(4, seed=1, grad=True)
    torch.library.opcheck(nt._ops.norm, (x, weight, None, None, None, spec))
    crop = tensor(2, 4, 6, 6)[:, :, 1:-1, 2:]
    torch.library.opcheck(nt._ops.norm, (crop, None, None, None, None, spec))
    torch.library.opcheck(nt._adain.adain, (x, tensor(1, 4, 5, grad=True), 1, 0.5, 1e-5))


def test_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        y = torch.nn.Sequential(torch.nn.Linear(6, 8), nt.LayerNorm(8))(tensor(3, 6))
    assert y.dtype == torch.bfloat16


def test_several_threads():
    layer, x = nt.BatchNorm2d(8), tensor(8, 8, 40, 40)
    layer.eval()
    expected, failed = layer(x).detach(), []

    def work():
        values = (layer(x.clone().requires_grad_()).detach() for _ in range(10))
        failed.extend(value for value in values if not torch.equal(value, expected))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
