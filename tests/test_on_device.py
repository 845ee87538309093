"""What only a device can show: streams, graphs, several devices, allocators, size. `make gpu-check` runs these."""

import gc

import numpy as np
import pytest

import normkit as nk
from tests import reference
from tests.places import LIBRARY, host, put
from tests.test_properties import images

pytestmark = pytest.mark.skipif(LIBRARY != "torch", reason="needs a CUDA device: make gpu-check sets NORMKIT_GPU")


def test_the_streams_of_pytorch_are_followed():
    import torch

    x, wanted = images(shape=(8, 16, 64, 64)), reference.normalize(images(shape=(8, 16, 64, 64)), (2, 3))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        on_device = torch.zeros(x.shape, device="cuda")
        torch.cuda._sleep(10_000_000)
        on_device.copy_(torch.from_numpy(x).pin_memory(), non_blocking=True)
        y = nk.instance_norm(on_device)
        doubled = y * 2
    stream.synchronize()
    reference.assert_close(doubled.cpu().numpy() / 2, wanted)


def test_a_call_can_be_captured_in_a_graph():
    import torch

    x = torch.from_numpy(images(shape=(4, 8, 32, 32))).cuda()
    out = torch.empty_like(x)
    nk.instance_norm(x, out=out)  # compiled before
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        nk.instance_norm(x, out=out)
    x.mul_(3).add_(7)
    out.zero_()
    graph.replay()
    torch.cuda.synchronize()
    reference.assert_close(out.cpu().numpy(), reference.normalize(x.cpu().numpy(), (2, 3)))


def test_two_devices():
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("one device")
    x = torch.from_numpy(images()).to("cuda:1")
    y = nk.instance_norm(x)
    assert y.device == x.device and torch.cuda.current_device() == 0
    reference.assert_close(y.cpu().numpy(), reference.normalize(images(), (2, 3)))


def test_memory_is_given_back():
    import torch

    x = torch.from_numpy(images(shape=(8, 16, 64, 64))).cuda()
    for _ in range(3):
        nk.vjp(nk.instance_norm, x)[1](x)
    gc.collect()
    before = torch.cuda.memory_allocated()
    for _ in range(50):
        nk.vjp(nk.instance_norm, x)[1](x)
    gc.collect()
    assert torch.cuda.memory_allocated() <= before


def test_more_elements_than_int32_holds():
    import torch

    row = torch.from_numpy(np.random.default_rng(0).normal(3, 2, 4096).astype(np.float16)).cuda()
    x = row.repeat((1 << 31) // 4096 + 7, 1)
    nk.layer_norm(x, out=x)
    reference.assert_close(host(x[-1]), reference.normalize(host(row)[None], (1,))[0])


def test_the_emulators_numbers_are_the_devices():
    from normkit._cuda import launch
    from tests import fake_cuda

    x = images(shape=(6, 8, 20, 20))
    real, on_device = launch.driver, host(nk.instance_norm(put(x)))
    try:
        launch.driver = fake_cuda.Driver()
        assert np.array_equal(nk.instance_norm(fake_cuda.put(x)).np, on_device)
    finally:
        launch.driver = real


def test_layers_of_the_adapter():
    import torch

    import normkit.torch as nkt

    x = torch.from_numpy(images()).cuda().requires_grad_()
    weight = torch.ones(8, device="cuda", requires_grad=True)
    nkt.instance_norm(x, weight).square().sum().backward()
    wanted = [t.grad.clone() for t in (x, weight)]
    x.grad = weight.grad = None
    torch.nn.functional.instance_norm(x, weight=weight).square().sum().backward()
    for found, t in zip(wanted, (x, weight), strict=True):
        assert torch.allclose(found, t.grad, atol=1e-3)
