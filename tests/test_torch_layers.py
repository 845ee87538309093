"""Layers of normkit.torch in place of torch.nn's, and what PyTorch does with operators: compile, autocast, threads."""

import copy
import pickle
import threading

import pytest

import normkit as nk
from tests.test_torch import nt, tensor, torch

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
