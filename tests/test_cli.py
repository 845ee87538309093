"""`python -m normkit`: what each command says, on small cases."""

import json

import pytest

import normkit as nk
from normkit.bench import cases, table
from tests.processes import run_python


def test_info():
    text = run_python("-m", "normkit", "info")
    facts = dict(line.split("  ", 1) for line in text.splitlines())
    assert facts["normkit"].strip() == nk.__version__ and "kernels are kept in" in facts and "CUDA" in facts


def test_warmup_compiles_what_calls_need():
    text = run_python("-m", "normkit", "warmup", "--norms", "layer", "--layouts", "NC*", "--forward-only")
    assert "3 kinds of calls are ready" in text
    from numba.core import event

    with event.install_recorder("numba:compile") as compiled:
        nk.warmup(["layer"], layouts=["NC*"], gradients=False)  # in this process from the disk, or it is there already
        nk.warmup("layer", layouts="NC*", gradients=False)
        before = len(compiled.buffer)
        nk.warmup(["layer"], layouts=["NC*"], gradients=False)
    assert len(compiled.buffer) == before


def test_after_warmup_nothing_is_compiled():
    """In a process of its own: no kernel is needed in a signature that it does not have."""
    code = """
import numpy as np, normkit as nk
from normkit._cpu import gradients, kernels, reorder, run_gradients, run_products, runs
from tests.test_properties import LAYOUTS, images

def signatures():
    modules = (gradients, kernels, reorder, run_gradients, run_products, runs)
    found = {module.__name__ + "." + name: each for module in modules for name, each in vars(module).items()}
    return {name: len(each.signatures) for name, each in found.items() if hasattr(each, "signatures")}

nk.warmup()
before = signatures()
for layout in ("NCHW", "channels-last"):
    for shape in ((3, 8, 5, 5), (3, 8, 40, 60), (2, 64, 128, 130), (1, 3, 600, 700), (16, 96, 56, 56)):
        x = LAYOUTS[layout](images(shape=shape))
        channels, last = (np.ones(shape[axis], np.float32) for axis in (1, -1))
        for norm, args, affine in ((nk.instance_norm, (), (channels, channels)), (nk.batch_norm, (), (channels, channels)),
                                   (nk.group_norm, (3 if shape[1] == 3 else 4,), (channels, channels)),
                                   (nk.layer_norm, (), (last, last)), (nk.rms_norm, (), (last,))):
            norm(x, *args)
            norm(x, *args, *affine, out=np.zeros_like(x))
            pullback = nk.vjp(norm, x, *args, *affine)[1]
            pullback(x)
            pullback(LAYOUTS["channels-last" if layout == "NCHW" else "NCHW"](x))
print({name: (before[name], n) for name, n in signatures().items() if n != before[name]}, len(before))
"""
    new, kernels = run_python("-c", code).rsplit(maxsplit=1)
    assert new == "{}" and int(kernels) > 10


def test_info_where_there_is_no_threading_layer():
    code = """
import sys, numba
from normkit.__main__ import main
def broken(*_):
    raise ValueError("No threading layer could be loaded.\\nHINT: ...")
numba.get_num_threads = numba.threading_layer = broken
main(["info"])
"""
    text = run_python("-W", "ignore", "-c", code, NUMBA_NUM_THREADS="2")
    assert "none: No threading layer could be loaded.\n" in text and "kernels run on one" in text


@pytest.mark.parametrize("wrong", [{"norms": ["spectral"]}, {"dtypes": ["complex64"]}, {"layouts": ["NCHW"]}])
def test_warmup_refuses(wrong):
    with pytest.raises(ValueError, match="expected some of"):
        nk.warmup(**wrong)


def test_bench(tmp_path):
    """Few cases, small: every contender that is installed, right after one another, in processes of their own."""
    names = ["ViT tokens, layer", "ResNet stage 4, group"]
    options = ["--shrink", 32, "--rounds", 1, "--cases", *names, "--plot", tmp_path / "speed.png"]
    rows = json.loads(run_python("-m", "normkit", "bench", "--json", *options))
    assert [row["case"] for row in rows] == [name for name in names for _ in cases.LAYOUTS]
    assert all({"memory", "normkit"} <= set(row["ms"]) and min(row["ms"].values()) > 0 for row in rows)
    assert (tmp_path / "speed.png").stat().st_size > 5000
    text = run_python("-m", "normkit", "bench", "backward", *options[:-2])
    assert text.count("\n|") == 1 + 2 * len(names) and "share of memory speed" in text


def test_the_table_says_how_much_faster():
    row = table.Row("a case", "NC*", (2, 3), {"memory": 1.0, "normkit": 2.0, "PyTorch": 5.0})
    assert row.share == 0.5 and row.times_faster("PyTorch") == 2.5 and row.times_faster("JAX") is None
    assert "| a case | 2 x 3 | NC* | 2.00 | 0.50 | 2.5 |" in table.markdown([row])


@pytest.mark.parametrize("arguments", [[], ["bench", "sideways"], ["warmup", "--norms", "spectral"]])
def test_wrong_commands(arguments, capsys):
    from normkit.__main__ import main

    with pytest.raises(SystemExit):
        main(arguments)
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize("contender", ["memory", "normkit", "NumPy", "PyTorch", "ONNX Runtime", "JAX"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_contenders_compute_the_case(contender, backward, layout):
    """Not only in processes of their own, where coverage does not look."""
    from normkit.bench import contenders

    for package in contenders.NEEDS.get(contender, ()):
        pytest.importorskip(package, reason="an extra")
    for case in cases.CASES.values():
        call = contenders.CONTENDERS[contender](case, cases.make(case, layout, shrink=64), backward)
        assert call is None or min(contenders.turn(call, 1)) > 0


def test_onnx_runtime_computes_the_same():
    pytest.importorskip("onnxruntime", reason="an extra")
    from normkit.bench import contenders

    for case in cases.CASES.values():
        x = cases.make(case, "NC*", shrink=16)
        run = contenders.CONTENDERS["ONNX Runtime"](case, x, False)
        if run is not None:
            assert abs(run() - case.forward(x)).max() < 1e-3
