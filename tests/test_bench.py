"""Every benchmark case and every example runs, at a small size; the README's code too."""

import textwrap
from types import SimpleNamespace

import numpy as np
import pytest

import normkit as nk
from asv_bench.benchmarks import backward, corners, forward, overhead
from normkit.bench import cases
from tests import reference
from tests.processes import ROOT, run_python


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("name", cases.CASES)
def test_every_case_runs_and_is_right(name, layout, dtype):
    bench = forward.Forward()
    bench.shrink = 16
    bench.setup(name, layout, dtype)
    case = cases.CASES[name]
    assert np.array_equal(bench.copied, bench.flat)
    assert bench.out.strides == bench.x.strides
    if case.plain is not None:
        reference.assert_close(bench.out, reference.normalize(bench.x, case.plain))
    else:
        assert np.array_equal(bench.out, case.forward(bench.x))


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("name", cases.CASES)
def test_every_gradient_runs(name, layout, dtype):
    bench = backward.Backward()
    bench.shrink = 16
    bench.setup(name, layout, dtype)
    gradients = bench.time_pullback(name, layout, dtype)
    case, dy = cases.CASES[name], bench.dy.astype(float)
    others = tuple(axis for axis in range(dy.ndim) if axis not in case.affine)
    assert gradients.x.strides == bench.dy.strides
    if case.norm is not cases.nk.rms_norm:
        total, size = dy.sum(others).ravel(), np.abs(dy).sum(others).ravel()
        assert np.all(np.abs(gradients.bias.ravel() - total) <= reference.tolerance(np.float32) * size)


@pytest.mark.parametrize("dy", corners.DY)
@pytest.mark.parametrize("corner", corners.CORNERS)
def test_every_corner_runs(corner, dy):
    bench = corners.Corners()
    bench.shrink = 16
    bench.setup(corner, dy)
    reference.assert_close(bench.time_norm(corner, dy), corners.CORNERS[corner][0].forward(bench.x.astype(float)))
    for found, expected in zip(bench.time_pullback(corner, dy), bench.pullback(np.array(bench.dy)), strict=True):
        assert np.allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("behind", corners.Addresses.params[1])
@pytest.mark.parametrize("norm", corners.PLACED)
def test_every_address_runs(norm, behind):
    bench = corners.Addresses()
    bench.shrink = 16
    bench.setup(norm, behind)
    assert (bench.out.ctypes.data - bench.x.ctypes.data) % corners.PAGE == behind
    assert bench.out.strides == bench.x.strides
    reference.assert_close(bench.time_norm(norm, behind), bench.case.forward(bench.x.astype(float)))


@pytest.mark.parametrize("layout", corners.OTHER)
@pytest.mark.parametrize("norm", corners.TURNED)
def test_every_order_runs(norm, layout):
    bench = corners.Orders()
    bench.shrink = 4
    bench.setup(norm, layout)
    assert bench.out.strides != bench.x.strides
    reference.assert_close(bench.time_norm(norm, layout), bench.case.forward(bench.x.astype(float)))
    bench.time_copy(norm, layout)
    assert np.array_equal(bench.out, bench.x)


@pytest.mark.parametrize("array", corners.STEPPED)
def test_all_steps_run(array):
    bench = corners.Steps()
    bench.shrink = 4
    bench.setup(array)
    assert not np.array_equal(bench.x.strides, np.empty_like(bench.x).strides)
    reference.assert_close(bench.time_norm(array), nk.normalize(bench.x.astype(float), bench.axes))
    bench.time_copy(array)
    assert np.array_equal(bench.out, bench.x)


@pytest.mark.parametrize("norm", overhead.Small.params[0])
@pytest.mark.parametrize("shape", overhead.Small.params[1])
def test_small_calls_run(norm, shape):
    bench = overhead.Small()
    bench.setup(norm, shape)
    bench.time_call(norm, shape)
    bench.time_vjp(norm, shape)
    assert bench.time_pullback(norm, shape).weight.any()
    assert compile(overhead.timeraw_import(), "import", "exec")


@pytest.mark.parametrize("norm", overhead.SmallTensors.params[0])
def test_small_steps_run(norm):
    pytest.importorskip("torch", reason="an extra")
    bench = overhead.SmallTensors()
    bench.setup(norm)
    bench.time_call(norm)
    bench.time_step(norm)
    assert bench.weight.grad.any()


@pytest.mark.parametrize("norm", overhead.FirstCall.params)
def test_first_calls_run(norm):
    for code in (overhead.FirstCall().timeraw_cold(norm), overhead.FirstCall().timeraw_from_disk(norm)):
        run_python("-c", textwrap.dedent(code))


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("norm", overhead.Memory.params[0])
def test_peak_memory_runs(norm, layout):
    bench = overhead.Memory()
    bench.setup(norm, layout)
    bench.peakmem_in_place(norm, layout)
    assert np.isfinite(bench.x).all()


def test_the_table_of_errors():
    """docs/numerics.md: within 4 units, in both layouts."""
    lines = [line.split("|")[1:-1] for line in run_python("-W", "ignore", "-m", "tests.errors").splitlines()]
    assert [part.strip() for part in lines[0][1:3]] == ["normkit", "normkit, channels last"]
    assert len(lines) == 18 and all(float(part) <= 4 for line in lines[2:] for part in line[1:3])


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_table_script(direction):
    lines = run_python("asv_bench/table.py", direction, "--rounds", 1, "--shrink", 32).splitlines()
    assert len(lines) == 2 + 2 * len(cases.CASES) and all(line.count("|") == 7 for line in lines)


def test_the_demo(tmp_path):
    """The demo writes its picture, and its table says what the norms do to light."""
    text = run_python("examples/style_contrast.py", "--shrink", 6, "--rounds", 1, "--out", tmp_path / "picture.png")
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if "%" in line and "│" in line}
    assert [part.strip() for part in rows["instance norm"].split("│")[2:4]] == ["0 %", "0 %"]
    assert [part.strip() for part in rows["batch norm"].split("│")[2:4]] == ["100 %", "100 %"]
    assert (tmp_path / "picture.png").stat().st_size > 50_000


def test_federated_statistics_are_those_of_all_data():
    text = run_python("examples/federated.py")
    differences = [float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if "relative difference" in line]
    assert len(differences) == 3 and max(differences) < 1e-14


def test_training_in_numpy(tmp_path):
    """Short: the losses fall, whatever the norm and the batch size."""
    text = run_python("examples/train_numpy.py", "--samples", 1500, "--out", tmp_path / "losses.png")
    rows = [[part.strip() for part in line.split("│")[1:5]] for line in text.splitlines() if line.endswith("% │")]
    assert sorted(row[:2] for row in rows) == sorted(
        [kind, size] for kind in ("none", "batch", "instance") for size in ("2", "64")
    )
    assert all(float(loss) < 2.0 and float(right[:-2]) > 40 for _, _, loss, right in rows)
    assert (tmp_path / "losses.png").stat().st_size > 20_000


def test_the_style_network():
    pytest.importorskip("torch", reason="an extra")
    text = run_python("examples/torch_style_network.py", "--size", 64, "--rounds", 1)
    assert "changed 15 layers: InstanceNorm2d" in text and "its norms" in text
    image, gradients = (
        float(part.split()[0].rstrip(","))
        for part in text.split("largest difference of the image: ")[1].split("of the gradients, beside the largest: ")
    )
    assert image < 1e-4 and gradients < 1e-2


def test_the_readme_examples(monkeypatch):
    text = (ROOT / "README.md").read_text()
    blocks = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    names = {}
    exec(blocks[0], names)
    assert abs(names["x"].mean((2, 3))).max() < 1e-5 and abs(names["y"].mean((0, 2, 3))).max() < 1e-5
    torch, jax = pytest.importorskip("torch", reason="an extra"), pytest.importorskip("jax", reason="an extra")
    model, tensor = torch.nn.Sequential(torch.nn.InstanceNorm2d(3)), torch.ones(2, 8, 4, requires_grad=True)
    for block in blocks[1:]:
        more = {"running": names["batch"], "torch": torch, "jax": jax, "model": model, "tensor": tensor}
        exec(block, {**names, **(on_device(monkeypatch) if "cupy" in block else more)})
    assert len(blocks) == 6


def on_device(monkeypatch):
    """What the example for GPUs names, in the emulator."""
    from normkit._cuda import launch
    from tests import fake_cuda

    monkeypatch.setattr(launch, "driver", fake_cuda.Driver())
    cupy = SimpleNamespace(random=SimpleNamespace(rand=lambda *shape: fake_cuda.put(np.random.default_rng(0).random(shape))))
    tensor = SimpleNamespace(cuda=lambda: fake_cuda.put(np.random.default_rng(0).random((2, 64, 4, 4))))
    return {"cupy": cupy, "tensor": tensor, "result": fake_cuda.put(np.zeros((2, 64, 4, 4)))}
