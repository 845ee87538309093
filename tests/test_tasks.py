"""The tasks of a launch: each is done once, by whichever thread is free, and what goes wrong in one comes back."""

import ctypes
import os

import numba
import numpy as np
import pytest

from normkit._cpu import threads
from normkit._cpu.tasks import LINE, pool, spread
from tests.processes import run_python

task_kernel = numba.njit(nogil=True, error_model="numpy", _nrt=False)


@task_kernel
def count(done, begin, end):
    for k in range(begin, end):
        done[k] += 1
    return begin


@task_kernel
def count_but_fail(done, begin, end):
    count(done, begin, end)
    if begin % 5 == 3:
        raise MemoryError("no memory for a task")
    return 1


def run(kernel, tasks, rows, done):
    """Run a kernel's tasks in as many shares as `rows`."""
    begun = np.zeros((rows, LINE), np.int64)
    addresses = [threads._address(each, given) for each, given in ((pool, (0, 0, 0)), (kernel, (done, 0, 0)))]
    return spread(*addresses, (done,), tasks, begun)


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
@pytest.mark.parametrize("tasks", [0, 1, 2, 7, 8, 1000])
def test_every_task_is_done_once(tasks, rows):
    done = np.zeros(tasks + 1, np.int64)
    assert run(count, tasks, rows, done) == sum(range(tasks))
    assert np.array_equal(done, [1] * tasks + [0])


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_an_error_in_a_task_comes_back(rows):
    """With its type and its words, when all other tasks are done; and the next launch knows nothing of it."""
    done = np.zeros(40, np.int64)
    with pytest.raises(MemoryError, match="no memory for a task"):
        run(count_but_fail, 40, rows, done)
    assert np.all(done == 1)
    assert run(count, 40, rows, done) == sum(range(40)) and np.all(done == 2)


@pytest.mark.skipif(os.name != "posix", reason="the test sleeps by a function of POSIX")
def test_a_thread_that_is_held_up_is_helped():
    """The first task of a thread ends when all others are done, those of that thread's own share too."""
    assert threads.may_run_parallel(), "this test needs two threads and OpenMP"
    usleep = ctypes.CDLL(None).usleep
    usleep.argtypes, usleep.restype = [ctypes.c_uint], ctypes.c_int

    @task_kernel
    def wait_for_others(done, begin, end):
        tries = 0
        while begin == 0 and done.sum() < done.size - 1 and tries < 20_000:
            usleep(1000)
            tries += 1
        done[begin] = 1
        return tries

    done = np.zeros(64, np.int64)
    assert run(wait_for_others, 64, 2, done) < 20_000
    assert np.all(done == 1)


def test_fewer_threads_than_numba_has():
    """A limit of two where Numba would take four: a share each, and Numba's own number as it was before and after."""
    code = """
import numba, numpy as np, normkit as nk
from normkit._cpu import threads
seen, spread = [], threads.spread
def spying(*given):
    seen.append((numba.get_num_threads(), len(given[-1])))
    return spread(*given)
threads.PARALLEL_ELEMENTS, threads.spread = 0, spying
x = np.random.default_rng(0).standard_normal((16, 40_000))
everything = nk.normalize(x, 1)
with nk.num_threads(2):
    assert np.array_equal(nk.normalize(x, 1), everything)
assert set(seen) == {(4, 4), (2, 2)} and numba.get_num_threads() == 4, seen
"""
    run_python("-c", code, NUMBA_NUM_THREADS="4", OMP_NUM_THREADS="4")


def test_a_first_call_from_disk_loads_no_compiler_it_does_not_need(tmp_path):
    """Numba's implementations of NumPy, and SciPy with them, are for compiling: half of the time of a first call."""
    code = """
import sys, numpy as np, normkit as nk
nk.instance_norm(np.ones((8, 64, 32, 32), np.float32))
nk.instance_norm(np.ones((2, 2, 8), np.float32))
print(*sorted({"scipy.linalg", "numba.np.linalg"} & set(sys.modules)))
"""
    first, second = (run_python("-c", code, NUMBA_CACHE_DIR=str(tmp_path)).split() for _ in range(2))
    assert "numba.np.linalg" in first and second == []
