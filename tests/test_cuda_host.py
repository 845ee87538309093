"""The host's side of CUDA: the door, devices and streams, launches, the cache of compiled kernels, and what goes wrong."""

import subprocess
import sys
import types

import numpy as np
import pytest

import normkit as nk
from normkit._cuda import cache, launch
from normkit._cuda.compile import Machine
from normkit._interop import doors, libraries
from tests import fake_cuda
from tests.test_cuda_code import make
from tests.test_properties import images

put = fake_cuda.put


@pytest.fixture
def driver(monkeypatch):
    found = fake_cuda.Driver()
    monkeypatch.setattr(launch, "driver", found)
    return found


def x_on(device=0, shape=(2, 6, 8, 8)):
    return put(images(shape=shape), device=device)


# --------------------------------------------------------------------------------------------------------------- devices
def test_each_array_is_normalized_where_it_lies(driver):
    for device in (0, 1, 3):
        y, m = nk.instance_norm(x_on(device), return_moments=True)
        assert (y.index, m.mean.index, driver.launches[-1].device) == (device, device, device)
        assert driver.launches[-1].stream == 1  # the default stream, which waits for the library's own


def test_all_arrays_of_a_call_on_one_device(driver):
    x, on_cpu = x_on(0), images(shape=(2, 6, 8, 8))
    pullback = nk.vjp(nk.instance_norm, x)[1]
    driver.launches.clear()
    for call, message in (
        (lambda: nk.instance_norm(x, np.ones(6)), "weight is on cpu and x on cuda:0"),
        (lambda: nk.instance_norm(x, put(np.ones(6)), put(np.ones(6), device=1)), "bias is on cuda:1 and x on cuda:0"),
        (lambda: nk.instance_norm(on_cpu, put(np.ones(6))), "weight is on cuda:0 and x on cpu"),
        (lambda: nk.instance_norm(x, out=np.empty_like(on_cpu)), "out is on cpu and x on cuda:0"),
        (lambda: nk.instance_norm(on_cpu, out=x), "out is on cuda:0 and x on cpu"),
        (lambda: nk.instance_norm(x, out=x_on(1)), "out is on cuda:1 and x on cuda:0"),
        (lambda: pullback(on_cpu), "dy is on cpu and x on cuda:0"),
        (lambda: nk.adaptive_instance_norm(x, on_cpu), "style is on cpu and x on cuda:0"),
        (lambda: nk.instance_norm(x, moments=nk.moments(x_on(1), (2, 3))), "moments lie on cuda:1, and x on cuda:0"),
        (lambda: nk.instance_norm(on_cpu, moments=nk.moments(x, (2, 3))), "moments lie on cuda:0, and x on cpu"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert all(name == "forward_held" and not found.spec.y for name, found in zip(driver.kernels, driver.launches, strict=True))


def test_bad_input_launches_nothing_and_changes_nothing(driver):
    x = x_on()
    before = x.np.copy()
    overlapping = fake_cuda.Array(x.np[:, ::-1], x.memory)
    repeated = fake_cuda.Array(np.broadcast_to(x.np[:1], x.shape), x.memory)
    for call, kind, message in (
        (lambda: nk.instance_norm(x, out=overlapping), ValueError, "out overlaps x"),
        (lambda: nk.instance_norm(x_on(), out=repeated), ValueError, "share memory|read-only"),
        (lambda: nk.instance_norm(x, put(np.ones(5))), ValueError, "weight has shape"),
        (lambda: nk.instance_norm(x, out=put(np.ones(x.shape, np.int32))), TypeError, "out has dtype int32"),
        (lambda: nk.instance_norm(x, out=put(np.ones((2, 6, 8, 9)))), ValueError, "out has shape"),
        (lambda: nk.instance_norm(put(np.ones((2, 3, 4), complex))), TypeError, "complex"),
        (lambda: nk.vjp(nk.instance_norm, x, out=x), ValueError, "out overlaps x"),
        (lambda: nk.normalize(x, (2, 3), moments=nk.Moments(9, np.zeros(4), np.ones(4))), ValueError, "moments have mean"),
    ):
        with pytest.raises(kind, match=message):
            call()
    assert not driver.launches and np.array_equal(x.np, before)


def test_empty_arrays_launch_nothing(driver):
    y, m = nk.normalize(put(np.zeros((0, 4), np.float32)), 1, return_moments=True)
    assert y.shape == (0, 4) and m.mean.shape == (0, 1) and not driver.launches


def test_numbers_go_to_the_device_by_themselves(driver):
    x = x_on()
    y = nk.normalize(x, (2, 3), 2.0, -1)
    assert np.allclose(y.np, nk.normalize(x.np, (2, 3), 2.0, -1), atol=1e-6)


def test_results_keep_the_memory_order(driver):
    for order in ((0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0)):
        x = np.ascontiguousarray(images().transpose(order)).transpose(np.argsort(order))
        assert nk.instance_norm(put(x)).np.strides == nk.instance_norm(x).strides


# ------------------------------------------------------------------------------------------------ PyTorch's and CuPy's arrays
class Stream:
    def __init__(self, handle):
        self.cuda_stream = self.ptr = handle


def test_pytorch_tensors_by_pointer_and_current_stream():
    import torch

    current = []
    namespace = types.SimpleNamespace(
        cuda=types.SimpleNamespace(current_stream=lambda index: current.append(index) or Stream(77))
    )
    tensor = types.SimpleNamespace(
        dtype=torch.bfloat16, device=types.SimpleNamespace(index=1), stride=lambda: (1, 8), shape=(8, 4), data_ptr=lambda: 4096
    )
    found = libraries.Torch(namespace, "cuda:1").view(tensor)
    assert (found.pointer, found.strides, found.dtype.name, found.device, found.stream) == (4096, (2, 16), "bfloat16", 1, 77)
    assert current == [1] and found.native is tensor


def test_cupy_arrays_by_pointer_and_current_stream():
    namespace = types.SimpleNamespace(cuda=types.SimpleNamespace(get_current_stream=lambda: Stream(5)))
    array = types.SimpleNamespace(
        data=types.SimpleNamespace(ptr=512),
        shape=(3, 4),
        strides=(-16, 4),
        dtype=np.dtype("f4"),
        device=types.SimpleNamespace(id=2),
    )
    found = libraries.CuPy(namespace, 2).view(array)
    assert (found.pointer, found.strides, found.device, found.stream, str(found.library)) == (512, (-16, 4), 2, 5, "cuda:2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"requires_grad": True}, "requires grad"),
        ({"is_conj": lambda: True}, "resolve_conj"),
        ({"layout": "sparse"}, "layout sparse"),
    ],
)
def test_tensors_on_a_device_are_refused_as_on_the_cpu(changes, message):
    torch = types.SimpleNamespace(strided="strided")
    plain = {"is_cuda": True, "requires_grad": False, "is_conj": lambda: False, "is_neg": lambda: False, "layout": "strided"}
    tensor = types.SimpleNamespace(**{**plain, "dtype": "torch.float32", **changes})
    with pytest.raises(TypeError, match=message):
        doors._from_torch(torch, None, tensor, "x")


def test_statistics_by_each_library():
    """The arithmetic that PyTorch's tensors get, on the CPU, against NumPy's."""
    import torch

    own = np.abs(np.random.default_rng(0).normal(size=(3, 4, 5)))
    own[2, 0] = 0
    library = libraries.Torch(torch, torch.device("cpu"))
    same = torch.from_numpy(own.copy())
    double = np.dtype(np.float64)
    for name, given, there in (
        ("scaled", (own, 3.0, 0.0), (same, 3.0, 0.0)),
        ("sqrt", (own,), (same,)),
        ("divide", (own[0], own[2]), (same[0], same[2])),
        ("divide", (own[0], np.float64(2)), (same[0], 2.0)),
        ("sum", (own, (0, 2)), (same, (0, 2))),
        ("sum", (own, ()), (same, ())),
        ("permute", (own, (2, 0, 1)), (same, (2, 0, 1))),
        ("reshape", (own, (12, 5)), (same, (12, 5))),
        ("broadcast_to", (own[:1], (3, 4, 5)), (same[:1], (3, 4, 5))),
        ("cast", (own, np.dtype(np.float16)), (same, np.dtype(np.float16))),
        ("stack", ([own[0], own[1]],), ([same[0], same[1]],)),
        ("rows", (own.transpose(1, 0, 2),), (same.permute(1, 0, 2),)),
        ("where", (own > 1, own, 0.0), (same > 1, same, 0.0)),
    ):
        wanted, found = getattr(libraries.NUMPY, name)(*given), getattr(library, name)(*there)
        assert np.allclose(found.numpy(), wanted) and found.dtype == getattr(torch, wanted.dtype.name), name
    assert library.zeros((2, 3)).dtype == torch.float64 and library.empty((2,), double).shape == (2,)
    assert library.from_host(own).device.type == "cpu" and np.array_equal(library.to_host(same), own)
    with pytest.raises(ValueError, match="moments lie on cuda:0, and x on cpu"):
        libraries.NUMPY.hold(x_on())


# ---------------------------------------------------------------------------------------------------------------- launching
class Core:
    """Stands for cuda.core and its bindings: notes what is asked."""

    def __init__(self, monkeypatch, current=0, version=13000, capability=(9, 0), failure=None):
        self.current, self.calls, self.loaded = current, [], []
        core = self

        class Device:
            name = "Test device"

            def __init__(self, index):
                self.index, self.compute_capability = index, capability

            def set_current(self):
                core.current = self.index

        def run(*arguments):
            core.calls.append((core.current, *arguments))
            if failure:
                raise launch.CUDAError(failure)

        def load(code):
            core.loaded.append(code)
            return types.SimpleNamespace(get_kernel=lambda entry: (code, entry))

        bindings = types.SimpleNamespace(
            cuDriverGetVersion=lambda: (0, version),
            cuCtxGetDevice=lambda: (0 if core.current is not None else 201, core.current or 0),
        )
        for name, value in (
            ("cu", bindings),
            ("Device", Device),
            ("_launch", run),
            ("ObjectCode", types.SimpleNamespace(from_cubin=load)),
            ("_stream", lambda handle: f"stream {handle}"),
            ("_config", lambda grid, block: (grid, block)),
            ("machine_for", lambda spec, cc: Machine(f"{spec.kernel} {cc}".encode(), "entry")),
        ):
            monkeypatch.setattr(launch, name, value)


@pytest.mark.parametrize("current", [0, 1, None])
def test_a_launch_leaves_the_current_device_as_it_was(monkeypatch, current):
    core = Core(monkeypatch, current)
    driver, spec = launch.Driver(), make("forward_held", "block")
    for _ in range(2):
        driver.launch(spec, 7, 1, 99, (1, 2, 3.0))
    kernel = (b"forward_held (9, 0)", "entry")
    assert core.calls == [(1, "stream 99", (7, 256), kernel, 1, 2, 3.0)] * 2
    assert core.current == (1 if current is None else current) and len(core.loaded) == 1


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        ("CUDA_ERROR_OUT_OF_MEMORY: out of memory", MemoryError, "cuda:0 refused the kernel forward_held .*free arrays"),
        ("CUDA_ERROR_NO_BINARY_FOR_GPU", RuntimeError, "upgrade"),
        ("CUDA_ERROR_ILLEGAL_ADDRESS", RuntimeError, "cuda:0 could not run the kernel forward_held"),
    ],
)
def test_errors_of_a_launch(monkeypatch, failure, kind, message):
    core = Core(monkeypatch, 1, failure=failure)
    with pytest.raises(kind, match=message):
        launch.Driver().launch(make("forward_held", "block"), 1, 0, 0, ())
    assert core.current == 1


def test_an_old_driver_and_an_old_device(monkeypatch):
    Core(monkeypatch, version=12040)
    with pytest.raises(RuntimeError, match=r"one for CUDA 12\.4, and too old .*release 580 or later"):
        launch.Driver().demand(0)
    Core(monkeypatch, capability=(7, 5))
    with pytest.raises(RuntimeError, match=r"capability 7\.5, and normkit needs 8\.0 or higher; bring the arrays to the CPU"):
        launch.Driver().demand(0)


def test_no_driver(monkeypatch):
    def missing():
        raise RuntimeError("libcuda.so.1 cannot be found")

    monkeypatch.setattr(launch, "cu", types.SimpleNamespace(cuDriverGetVersion=missing))
    monkeypatch.setattr(launch, "driver", launch.Driver())
    x = x_on()
    with pytest.raises(RuntimeError, match=r"no NVIDIA driver answers for cuda:0 \(libcuda.*\); install an NVIDIA driver"):
        nk.instance_norm(x)


def test_a_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "normkit._cuda", None)
    with pytest.raises(
        ImportError, match=r"x is on cuda:0, .* not installed .*pip install 'normkit\[cuda13\]', or bring it to the CPU"
    ):
        nk.instance_norm(x_on())


def test_a_device_out_of_memory(driver):
    driver.fail = "CUDA_ERROR_OUT_OF_MEMORY"
    with pytest.raises(MemoryError, match="free arrays of it, or pass out="):
        nk.instance_norm(x_on())


def test_the_cpu_never_loads_the_cuda_packages():
    code = (
        "import sys, numpy, normkit; normkit.layer_norm(numpy.ones((2, 3)))\n"
        "print([m for m in sys.modules if m.startswith(('cuda.', 'numba.cuda.', 'normkit._cuda'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stdout


# ------------------------------------------------------------------------------------------------------ kernels on disk
@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A folder of kernels, and a compiler that counts."""
    made = []
    monkeypatch.setenv("NORMKIT_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr(
        cache, "machine_of", lambda spec, cc: made.append((spec, cc)) or Machine(b"\0.text.entry\0code", "entry")
    )
    cache.cache_folder.cache_clear()
    yield types.SimpleNamespace(path=tmp_path / "kernels" / "cuda", made=made)
    cache.cache_folder.cache_clear()


def test_kernels_are_compiled_once_for_each_spec_and_capability(folder):
    specs = [make("forward_held", "block"), make("forward_held", "warp")]
    for _ in range(2):
        for spec in specs:
            for cc in ((8, 0), (9, 0)):
                assert cache.machine_for(spec, cc) == Machine(b"\0.text.entry\0code", "entry")
    assert len(folder.made) == len(list(folder.path.iterdir())) == 4


@pytest.mark.parametrize("damage", [b"", b"garbage" * 99])
def test_damaged_kernels_are_compiled_anew(folder, damage):
    spec = make("forward_held", "block")
    cache.machine_for(spec, (9, 0))
    next(folder.path.iterdir()).write_bytes(damage)
    for _ in range(2):
        assert cache.machine_for(spec, (9, 0)).entry == "entry"
    assert len(folder.made) == 2


def test_a_folder_that_others_can_write_is_not_trusted(folder):
    folder.path.mkdir(parents=True)
    folder.path.chmod(0o777)
    with pytest.warns(RuntimeWarning, match=r"others can write to it.*Set NORMKIT_CACHE_DIR"):
        assert cache.machine_for(make("forward_held", "block"), (9, 0)).entry == "entry"
    cache.machine_for(make("forward_held", "block"), (9, 0))  # said once
    assert not list(folder.path.iterdir())


def test_a_folder_that_cannot_be_made(folder, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NORMKIT_CACHE_DIR", str(tmp_path / "file"))
    with pytest.warns(RuntimeWarning, match="does not keep compiled CUDA kernels"):
        assert cache.machine_for(make("forward_held", "block"), (9, 0)).entry == "entry"


def test_the_linkers_code_names_its_kernel(monkeypatch):
    from normkit._cuda.compile import entry_of, machine_of

    machine = machine_of(make("merge_products", "chunks"), (9, 0))
    assert "kernel" in machine.entry and machine.code.startswith(b"\x7fELF")
    with pytest.raises(RuntimeError, match="reinstall"):
        entry_of(b"nothing")
