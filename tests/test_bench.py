"""Every benchmark case and every example runs, at a small size; the README's code too."""

import numpy as np
import pytest

from asv_bench.benchmarks import cases, forward, overhead
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
        assert np.array_equal(bench.out, case.norm(bench.x))


@pytest.mark.parametrize("norm", overhead.Small.params[0])
@pytest.mark.parametrize("shape", overhead.Small.params[1])
def test_small_calls_run(norm, shape):
    bench = overhead.Small()
    bench.setup(norm, shape)
    bench.time_call(norm, shape)
    assert compile(overhead.timeraw_import(), "import", "exec")


def test_the_table_script():
    lines = run_python("asv_bench/table.py", "--rounds", 1, "--shrink", 32).splitlines()
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


def test_the_readme_example():
    text = (ROOT / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    names = {}
    exec(code, names)
    assert abs(names["x"].mean((2, 3))).max() < 1e-5 and abs(names["y"].mean((0, 2, 3))).max() < 1e-5
