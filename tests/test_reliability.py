"""Threads, caches, sizes and leaks: what a long-lived process, or many at once, do to a library."""

import gc
import os
import pathlib
import sys
import threading
import tracemalloc

import numba
import numpy as np
import pytest

import normkit as nk
from normkit import _num_threads, _trust
from normkit._cpu import threads
from tests.processes import run_python
from tests.test_promises import CHECK, run_code


# ----------------------------------------------------------------------------------------------------------- thread count
@pytest.fixture
def own_count(monkeypatch):
    monkeypatch.setattr(_num_threads, "_chosen", {})
    monkeypatch.setattr(threads, "PARALLEL_ELEMENTS", 0)


def launched_on(monkeypatch, call):
    """The numbers of threads that Numba was told to launch on while `call` ran."""
    seen = []
    spread = threads.spread

    def spying(*given):
        seen.append(numba.get_num_threads())
        return spread(*given)

    monkeypatch.setattr(threads, "spread", spying)
    call()
    return seen


def test_set_num_threads(own_count, monkeypatch):
    x, mask = np.random.default_rng(0).standard_normal((8, 40_000)), numba.get_num_threads()
    expected = nk.normalize(x, 1)
    nk.set_num_threads(1)
    assert nk.get_num_threads() == 1 and launched_on(monkeypatch, lambda: nk.normalize(x, 1)) == []
    with nk.num_threads(2):
        assert launched_on(monkeypatch, lambda: nk.normalize(x, 1))[:1] == [min(2, mask)]
        found = []
        other = threading.Thread(target=lambda: found.append(_num_threads.limit()))
        other.start()
        other.join()
    assert found == [1], "a block of code in one thread says nothing about others"
    assert np.array_equal(nk.normalize(x, 1), expected) and numba.get_num_threads() == mask


def test_the_callers_mask_is_restored(own_count, monkeypatch):
    """Fewer threads than Numba would take, and an exception on the way: the caller's number stays."""
    mask = numba.get_num_threads()
    seen = []

    def failing(*_):
        seen.append(numba.get_num_threads())
        raise MemoryError

    monkeypatch.setattr(threads, "spread", failing)
    with pytest.raises(MemoryError):
        threads._spread(0, (), 2, 1, mask)
    assert seen == [1] and numba.get_num_threads() == mask


@pytest.mark.parametrize(
    ("n", "error"), [(0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError), ("2", TypeError)]
)
def test_wrong_counts(n, error):
    with pytest.raises(error, match="number of threads"):
        nk.set_num_threads(n)
    with pytest.raises(error, match="number of threads"), nk.num_threads(n):
        pass


@pytest.mark.parametrize(("variable", "value", "expected"), [("OMP_NUM_THREADS", "1,2", 1), ("NUMBA_NUM_THREADS", "1", 1)])
def test_the_environment_is_respected(variable, value, expected):
    code = f"import os; os.environ[{variable!r}] = {value!r}; import normkit as nk; print(nk.get_num_threads())"
    assert int(run_python("-c", code)) == expected


def test_cpu_affinity_is_respected():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no CPU affinity")
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import normkit as nk; print(nk.get_num_threads())"
    )
    assert int(run_python("-c", code, NUMBA_NUM_THREADS="")) == 1


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        ({"cpu.max": "max 100000"}, "0::/", 1 << 30),
        ({"cpu.max": "150000 100000"}, "0::/", 2),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, "0::/a/b", 1),
        ({"cpu/pod/cpu.cfs_quota_us": "300000", "cpu/pod/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/pod\n0::/", 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/\n5:memory:/x", 1 << 30),
        ({}, "", 1 << 30),
    ],
)
def test_the_quota_of_a_container(tmp_path, files, own, expected):
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text)
    (tmp_path / "own").write_text(own)
    assert _num_threads.quota(tmp_path / "root", tmp_path / "own") == expected


# ------------------------------------------------------------------------------------------------------------------ caches
ONE_CALL = """
import warnings, numpy as np, normkit as nk
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    y = nk.layer_norm(np.arange(8.0).reshape(2, 4))
assert abs(y.mean()) < 1e-15
print(sum("NUMBA_CACHE_DIR" in str(w.message) for w in caught))
"""


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
@pytest.mark.parametrize("kind", ["*.nbi", "*.nbc"])
def test_damaged_caches(tmp_path, damage, kind):
    """Compiled anew, in silence, and stored whole for the next process."""
    run_code(ONE_CALL, NUMBA_CACHE_DIR=str(tmp_path))
    files = list(tmp_path.rglob(kind))
    assert files
    for file in files:
        whole = file.read_bytes()
        file.write_bytes({"truncated": whole[: len(whole) // 2], "garbage": os.urandom(500), "empty": b""}[damage])
    assert run_code(ONE_CALL, NUMBA_CACHE_DIR=str(tmp_path)).strip() == "0"
    assert run_code(ONE_CALL, NUMBA_CACHE_DIR=str(tmp_path)).strip() == "0"


def test_a_cache_that_others_could_write_is_not_used(tmp_path):
    run_code(ONE_CALL, NUMBA_CACHE_DIR=str(tmp_path))
    (folder,) = {file.parent for file in tmp_path.rglob("*.nbi")}
    stored = {file: file.read_bytes() for file in folder.iterdir()}
    folder.chmod(0o777)
    try:
        assert run_code(ONE_CALL, NUMBA_CACHE_DIR=str(tmp_path)).strip() == "1"
        assert {file: file.read_bytes() for file in folder.iterdir()} == stored
        assert _trust.untrusted(folder) == "others can write to it"
    finally:
        folder.chmod(0o700)
    assert _trust.untrusted(folder) == "" == _trust.untrusted(folder / "not there")


def test_compiling_does_not_wait_for_the_garbage_collector_and_leaves_it_as_it_was(tmp_path):
    code = """
import gc, numba, numpy as np, normkit as nk
from normkit._cpu.compile import _Compiler

def first_call(dtype):
    searches = []
    gc.callbacks.append(lambda phase, _: searches.append(phase))
    nk.instance_norm(np.ones((2, 3, 40), dtype))
    gc.callbacks.clear()
    return len(searches) // 2

first_call(np.float32)
assert first_call(np.float64) < 10 and gc.isenabled()
try:
    numba.njit(pipeline_class=_Compiler)(lambda x: x.nothing)(1.0)
except Exception as error:
    assert "nothing" in str(error)
assert gc.isenabled()
gc.disable()
first_call(np.int16)
assert not gc.isenabled()
"""
    run_code(code, NUMBA_CACHE_DIR=str(tmp_path))


def test_many_processes_start_cold_at_once(tmp_path):
    import subprocess

    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    started = [
        subprocess.Popen([sys.executable, "-c", ONE_CALL], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(16 if os.environ.get("HYPOTHESIS_PROFILE") == "many" else 8)
    ]
    for process in started:
        out, error = process.communicate(timeout=240)
        assert process.returncode == 0 and out.strip() == b"0", error[-2000:]
    assert run_code(ONE_CALL, NUMBA_CACHE_DIR=str(tmp_path)).strip() == "0"


def test_no_home():
    environment = dict.fromkeys(("HOME", "XDG_CACHE_HOME"), "")
    run_code(ONE_CALL, **environment)


# ---------------------------------------------------------------------------------------------------------------- processes
@pytest.mark.parametrize("first", ["torch", "normkit"])
def test_beside_pytorch(first):
    """Two OpenMP pools in one process, whichever came first; then a forked child."""
    pytest.importorskip("torch", reason="an extra")
    imports = "import torch\n" if first == "torch" else "import normkit\nimport torch\n"
    run_code(
        imports
        + CHECK
        + """
import multiprocessing, warnings
torch.nn.functional.layer_norm(torch.ones(200, 5000), (5000,))
check()
torch.nn.functional.layer_norm(torch.ones(200, 5000), (5000,))
warnings.simplefilter("ignore", DeprecationWarning)
child = multiprocessing.get_context("fork").Process(target=check)
child.start(); child.join(120)
assert child.exitcode == 0, child.exitcode
""",
        NUMBA_NUM_THREADS="2",
    )


def test_from_a_pool_of_processes():
    run_code(
        "import warnings\nwarnings.simplefilter('ignore', DeprecationWarning)\n"
        + CHECK
        + """
from concurrent.futures import ProcessPoolExecutor
import multiprocessing
check()
with ProcessPoolExecutor(3, multiprocessing.get_context("fork")) as pool:
    for done in [pool.submit(check) for _ in range(9)]:
        done.result(timeout=120)
""",
        NUMBA_NUM_THREADS="2",
    )


def test_an_exception_in_one_thread_is_that_threads():
    run_code(
        CHECK
        + """
from concurrent.futures import ThreadPoolExecutor
def bad():
    try:
        nk.normalize(np.ones((3, 4)), 7)
    except np.exceptions.AxisError:
        return
    raise AssertionError
with ThreadPoolExecutor(8) as pool:
    for done in [pool.submit(bad if k % 2 else check) for k in range(40)]:
        done.result()
""",
        NUMBA_NUM_THREADS="2",
    )


# ------------------------------------------------------------------------------------------------------------- sizes, leaks
@pytest.mark.parametrize("axis", [0, 1])
def test_more_sets_than_24_bits_count(axis):
    """Beyond 65,535 and 2**23 sets: side by side, and one after another."""
    sets = 2**23 + 5
    x = np.empty((2, sets) if axis == 0 else (sets, 2), np.float32)
    first, second = (x[0], x[1]) if axis == 0 else (x[:, 0], x[:, 1])
    first[:] = np.arange(sets, dtype=np.float32)
    second[:] = first + 2
    nk.normalize(x, axis, eps=0, out=x)
    assert np.all(first == -1) and np.all(second == 1)


def test_many_calls_leave_memory_flat():
    """The short way, the long way, out=, statistics, gradients: each again and again, 100,000 times in `make test-long`."""
    many = os.environ.get("HYPOTHESIS_PROFILE") == "many"
    x, w = np.random.default_rng(0).standard_normal((4, 8, 8)).astype(np.float32), np.ones(8)
    out, m = np.empty_like(x), nk.moments(x, 2)

    def calls():
        nk.instance_norm(x, w)
        nk.instance_norm(x, out=out)
        nk.normalize(x, 2, moments=m)
        nk.normalize(x[:, ::2], 1, return_moments=True)
        _, pullback = nk.vjp(nk.layer_norm, x, w)
        pullback(out)

    def rounds(number):
        for _ in range(number):
            calls()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    for _ in range(8):  # Python's free lists settle: by 16,000 bytes from the first collection to the second, then 7000,
        before = rounds(300)  # 3000, 1000 ..., however many calls lie between
    grown = rounds(100_000 if many else 3000) - before
    tracemalloc.stop()
    assert grown < 20_000, grown  # an int lost in each of 3000 rounds is 96,000


def test_forms_are_remembered_up_to_a_number(monkeypatch):
    from normkit import _recall

    monkeypatch.setattr(_recall, "_FORMS", 10)
    monkeypatch.setattr(_recall, "_ready", {})
    for n in range(2, 60):
        nk.normalize(np.ones((1, n), np.float32), 1)
        assert len(_recall._ready) <= 10


def test_the_package_may_be_read_only(tmp_path):
    """Installed where its user cannot write: kernels go to the user's own folder, or stay in memory."""
    import shutil

    shutil.copytree(pathlib.Path(nk.__file__).parent, tmp_path / "normkit", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in (tmp_path / "normkit" / "_cpu", tmp_path / "normkit"):
        folder.chmod(0o555)
    try:
        run_code(ONE_CALL, NUMBA_CACHE_DIR="", HOME=str(tmp_path), PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE="1")
    finally:
        for folder in (tmp_path / "normkit", tmp_path / "normkit" / "_cpu"):
            folder.chmod(0o755)
