"""What speed rests on, without a clock: packed loops, few compilations, no temporaries, the short way for small calls."""

import platform
import sys
import tracemalloc

import numba
import numpy as np
import pytest
from llvmlite.binding import get_host_cpu_features

import normkit as nk
from normkit._cpu import runs, threads
from normkit._cpu.plan import plan_of
from normkit._cpu.vectors import release, scratch
from normkit._operands import Operands
from tests.processes import run_python
from tests.test_properties import LAYOUTS, images

PACKED = {"float32": "v?mulps", "float64": "v?mulpd", "float16": "vcvtph2psx?"}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the instructions named here are those of x86-64")
@pytest.mark.parametrize(
    ("kernel", "x", "asked"),
    [
        ("runs.forward_short", "np.ones((4, 300))", 1),
        ("runs.forward", "np.ones((4, 3000))", 1),
        ("kernels.forward", "np.ones((300, 4)).T", 45),
        ("run_gradients.backward_short", "np.ones((4, 300))", 2),
        ("run_gradients.backward", "np.ones((4, 3000))", 2),
        ("gradients.backward", "np.ones((300, 4)).T", 90),
    ],
)
@pytest.mark.parametrize("dtype", PACKED)
def test_inner_loops_are_packed(dtype, kernel, x, asked, tmp_path):
    """In a process of its own, that compiles: code from the cache cannot be looked at.

    And products are added in one instruction, where the processor has it; memory is asked for ahead, in tiles for results too,
    and written past the caches.
    """
    code = f"""
import re, numpy as np, normkit as nk
from normkit._cpu import gradients, kernels, run_gradients, runs
x = {x}.astype({dtype!r}, order="K")
nk.vjp(nk.layer_norm, x)[1](x)
(code,) = {kernel}.inspect_asm().values()
names = r"{PACKED[dtype]}\\b", "v?movnt", "prefetch", r"vfn?m(?:add|sub)\\d+p[sd]\\b"
print(*(len(re.findall(rf"\\b{{name}}", code)) for name in names))
"""
    packed, past_the_caches, ahead, fused = map(int, run_python("-c", code, NUMBA_CACHE_DIR=str(tmp_path)).split())
    assert packed >= 4 and past_the_caches >= 1 and ahead >= asked
    assert fused >= 4 or not get_host_cpu_features().get("fma")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the instructions named here are those of x86-64")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_small_sets_side_by_side_are_packed_and_compile_no_other_kernel(dtype, tmp_path):
    code = f"""
import re, numpy as np, normkit as nk
from normkit._cpu import kernels
nk.instance_norm(np.ones((2, 6, 6, 80), {dtype!r}), channel_axis=-1)
(code,) = kernels.forward_columns.inspect_asm().values()
names = r"{PACKED[dtype]}\\b", "prefetch", r"vfn?m(?:add|sub)\\d+p[sd]\\b"
print(*(len(re.findall(rf"\\b{{name}}", code)) for name in names), len(kernels.forward.signatures))
"""
    packed, ahead, fused, others = map(int, run_python("-c", code, NUMBA_CACHE_DIR=str(tmp_path)).split())
    assert packed >= 4 and ahead >= 4 and others == 0
    assert fused >= 4 or not get_host_cpu_features().get("fma")


def test_signatures_are_few():
    """One for each storage of x, result and affine; not for shapes, strides, axes or options, nor for memory that is locked."""
    x = images(shape=(4, 8, 6, 10))
    nk.instance_norm(x)
    nk.layer_norm(np.ones((3, 3000), np.float32))
    kernels = (runs.forward, runs.forward_short)
    before = [len(kernel.signatures) for kernel in kernels]
    for shape in ((2, 3, 40), (7, 5), (2, 4, 3, 3, 3), (3, 2049)):
        y = images(shape=shape) if len(shape) == 4 else np.random.default_rng(0).random(shape, np.float32)
        for axes in (-1, tuple(range(1, len(shape)))):
            nk.normalize(y, axes, eps=0.1)
            nk.normalize(y, axes, correction=0.5, return_moments=True)
        y.flags.writeable = False
        nk.normalize(y, -1)
    assert [len(kernel.signatures) for kernel in kernels] == before


@pytest.mark.parametrize(
    ("x", "absent"),
    [
        ("np.moveaxis(np.ones((2, 6, 6, 4)), -1, 1)", {"_apply_apart", "_find_places"}),
        ("np.ones((2, 8, 6, 12))[:, ::2, :, ::2]", {"_apply_near", "_apply_lanes"}),
    ],
)
def test_a_first_call_compiles_each_part_once_and_only_what_it_needs(x, absent, tmp_path):
    """In a process of its own, with an empty cache: what is compiled are all parts of the one kernel there is.

    And no `bool` of a condition is typed, but of constants where branches were left out; and LLVM is not run over functions one
    by one.
    """
    code = f"""
import numba, numpy as np, normkit as nk
from normkit._cpu import compile
made = []
compiled = compile._compiled
compile._compiled = lambda context, function, sig: (made.append(function.__name__), compiled(context, function, sig))[1]
from numba.core.typing.context import BaseContext
typed, resolve = [], BaseContext.resolve_function_type
BaseContext.resolve_function_type = lambda self, f, args, kws: (typed.append((str(f), args)), resolve(self, f, args, kws))[1]
from numba.core.codegen import CPUCodeLibrary
optimize, alone = CPUCodeLibrary._optimize_functions, []
CPUCodeLibrary._optimize_functions = lambda self, module: (alone.append(self.name), optimize(self, module))[1]
nk.instance_norm({x})
print(*made)
conditions = ["class 'bool'" in name and not isinstance(args[0], numba.types.Literal) for name, args in typed]
print(len(typed), sum(conditions))
numba.njit(lambda x: x)(1)
print(*alone)
"""
    made, typed, alone = (line.split() for line in run_python("-c", code, NUMBA_CACHE_DIR=str(tmp_path)).splitlines())
    assert "chunk_moments" in made and len(set(made)) == len(made)
    assert int(typed[0]) > 0 and int(typed[1]) == 0
    assert "<lambda>" in alone and "forward" not in alone
    assert absent.isdisjoint(made)


def test_buffers_of_kernels_lie_on_cache_lines():
    """And what is given back is what was taken: of misaligned memory `free` would abort the process."""

    @numba.njit(_nrt=False)
    def address(like):
        own = scratch(3, 16, like)
        found = own.ctypes.data
        release(own)
        return found

    assert all(address(np.empty(0, dtype)) % 64 == 0 for dtype in (np.float32, np.float64) for _ in range(50))


def test_import_costs_nothing():
    """No compiler, no framework: numpy is all that is there after the import, and not even that is normkit's own."""
    code = """
import numpy, sys
before = set(sys.modules)
import normkit
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(new - sys.stdlib_module_names))
"""
    assert run_python("-c", code).strip() == "['normkit']"


def plan_for(x, axes, weight=None, gradient=False):
    """The plan of a norm of x, or of its gradient."""
    none, dy = np.ones(()), x if gradient else None
    op = Operands(x, x, weight, None, nk.NormSet(axes).split(x.shape), True, dy, fresh=True)
    return plan_of(op, none if weight is None else weight, none)


@pytest.mark.parametrize(
    ("shape", "cores", "fused"),
    [
        ((3, 1 << 15), 64, True),
        ((3, 1 << 16), 64, False),
        ((8, 1 << 15), 64, True),
        ((8, 1 << 16), 64, False),
        ((64, 1 << 16), 64, True),
        ((7, 1 << 16), 2, False),
        ((8, 1 << 16), 2, True),
        ((4, 1 << 16), 1, True),
    ],
)
def test_few_long_sets_are_split_only_where_threads_have_work(shape, cores, fused, monkeypatch):
    monkeypatch.setattr(threads, "count", lambda: cores)
    assert plan_for(np.ones(shape, np.float32), 1).fused == fused


@pytest.mark.parametrize(
    ("shape", "axes", "chunks", "tasks", "fused"),
    [
        ((4096, 256), 0, 4, 8, False),  # one tile
        ((16_384, 512), 0, 8, 64, False),  # two
        ((1000, 512), 0, 1, 4, True),
        ((32, 196, 256), (0, 1), 7, 13, False),
        ((16, 4096, 64), 1, 4, 64, True),  # as many tiles as samples
        ((3, 1_000_000), 1, 62, 186, False),  # runs
    ],
)
def test_few_tiles_are_split_so_that_threads_have_work(shape, axes, chunks, tasks, fused, monkeypatch):
    monkeypatch.setattr(threads, "count", lambda: 8)
    plan = plan_for(np.ones(shape, np.float32), axes)
    assert (plan.chunks, plan.apply_tasks, plan.fused) == (chunks, tasks, fused)


@pytest.mark.parametrize("pixels", [2, 3, 4, 9, 16, 25, 49])
def test_gradients_of_group_norm_go_by_runs_of_any_length(pixels):
    """A weight changes between them. In lanes they take twice as long."""
    x, weight = np.ones((8, 4, 16, pixels), np.float32), np.ones((1, 4, 16, 1), np.float32)
    assert plan_for(x, (2, 3), weight, gradient=True).in_runs


@pytest.mark.parametrize("channels", [3, 64, 512])
def test_weights_that_come_again_along_channels_last_are_collected(channels):
    """As those of group norm in one group: in lanes, without another pass."""
    x = np.ones((16, 2048, channels), np.float32)
    plan = plan_for(x, (1, 2), np.ones((1, 1, channels), np.float32), gradient=True)
    assert plan.collects
    assert not plan.in_runs


def test_short_sets_are_work_for_two_coressooner():
    """A set costs some by itself, and a gradient twice a norm."""
    assert plan_for(np.ones((12800, 4), np.float32), 1).work >= threads.PARALLEL_ELEMENTS > 4 * 12800
    assert plan_for(np.ones((32, 2048), np.float32), 1).work < threads.PARALLEL_ELEMENTS
    assert plan_for(np.ones((32, 2048), np.float32), 1, gradient=True).work >= threads.PARALLEL_ELEMENTS


@pytest.mark.parametrize(
    "shape", [(4, 768), (50, 768), (197, 768), (781, 256), (2000, 768), (128, 8192), (1024, 10_240), (20_000, 8)]
)
def test_gradients_of_weights_are_collected_while_sets_are_summed(shape):
    """By layer norm's own kernel, in little memory; in a pass of their own they would take twice as long as all else."""
    x, weight = np.ones(shape, np.float32), np.ones((1, shape[1]), np.float32)
    plan = plan_for(x, 1, weight, gradient=True)
    assert plan.collects
    assert plan.groups * 2 * 8 * shape[1] <= max(1 << 19, x.nbytes / 16)


@pytest.mark.parametrize("shape", [(1, 40_000), (4, 100_000), (64, 32_768), (900, 10_240)])
def test_gradients_of_long_weights_are_collected_in_pieces(shape):
    """Of all sets, by layer norm's own kernel: a pass over columns of few numbers would take many times as long."""
    x, weight = np.ones(shape, np.float32), np.ones((1, shape[1]), np.float32)
    plan = plan_for(x, 1, weight, gradient=True)
    assert not plan.collects
    assert 2048 <= plan.piece < shape[1] / 4
    assert plan_for(x, 1, None, gradient=True).piece == 0


@pytest.mark.parametrize("other", ["NCHW", "channels-last"])
@pytest.mark.parametrize("layout", ["NCHW", "channels-last"])
def test_no_temporaries_on_many_threads(layout, other):
    """Beside the result: the statistics, and a fixed number of bytes for each thread."""
    x = LAYOUTS[layout](images(shape=(4, 16, 160, 150)))
    out = np.empty_like(LAYOUTS[other](x))
    assert threads.may_run_parallel(), "this test needs two threads and OpenMP"
    for norm in (nk.instance_norm, nk.batch_norm, nk.layer_norm):
        norm(x, out=out)
        tracemalloc.start()
        norm(x, out=out)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        sets = {nk.instance_norm: 64, nk.batch_norm: 16, nk.layer_norm: 4 * 16 * 160}[norm]
        assert peak < 100 * sets + 100_000 < x.nbytes


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
@pytest.mark.parametrize("layout", ["NCHW", "channels-last", "crop"])
def test_peak_memory(layout):
    """The same of the whole process, with what the kernels take for themselves; a gradient takes dx, which is its result."""
    code = f"""
import gc, re, numpy as np, normkit as nk
from tests.test_properties import LAYOUTS

def resident(kind):
    return int(re.search(kind + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) << 10

lie = LAYOUTS[{layout!r}]
norms = {{nk.instance_norm: (), nk.batch_norm: (), nk.layer_norm: (), nk.group_norm: (8,)}}

def grown(norm, shape, result):
    x, dy, weight = lie(np.ones(shape, np.float32)), lie(np.ones(shape, np.float32)), np.ones(16, np.float32)
    out = np.zeros_like(x)
    out[...] = 1
    affine = () if norm is nk.layer_norm else (weight, weight)
    pullback = nk.vjp(norm, x, *norms[norm], *affine)[1]
    gc.collect()
    x.max(), dy.max(), out.max()  # all of them are in memory: a system may have taken back what was not used for a while
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
    before = resident("VmRSS")
    first = norm(x, *norms[norm], *affine, out=out) if result == "out" else pullback(dy)
    return resident("VmHWM") - before, x.nbytes

for norm in norms:
    for result in ("out", "dx"):
        grown(norm, (4, 16, 640, 800), result)  # compiles all that this takes: to load the compiler takes 73 MB
        print(norm.__name__, result, *grown(norm, (4, 16, 640, 800), result))
"""
    for line in run_python("-c", code).splitlines():
        _, result, more, size = line.split()
        assert int(more) < (int(size) if result == "dx" else 0) + (8 << 20), line
