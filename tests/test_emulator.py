"""The emulator itself: its grammar, every instruction against NumPy, and kernels with a bug beside the same ones without."""

import numpy as np
import pytest

from normkit._cuda.package import cuda, device, intermediate, link, types
from tests.emulator import Buffer, DeviceFaultError, Kernel, UnsupportedError, device_array
from tests.emulator.generator import opcodes
from tests.emulator.opcodes import RULES
from tests.emulator.parser import parse

F, I = types.CPointer(types.float32), types.CPointer(types.int32)  # noqa: E741
ALL = 0xFFFFFFFF


def compiled(function, signature, threads=256):
    return Kernel(link(intermediate(function, signature, (9, 0), threads), (9, 0), "ptx").decode())


# ---------------------------------------------------------------------------------------------------------------- grammar
TEXT = """
.visible .entry k(.param .u64 k_0, .param .u32 k_1, .param .f64 .ptr .global .align 8 k_2)
.maxntid 64, 2, 1
{
    .reg .b32 %r<4>;   // a comment; with { braces
    .shared .align 16 .b8 buffer[48];
    @!%p1 bra $L_1;
    ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%rd1+16];
    {
    .reg .pred %r1;
    mov.pred %r1, 0;
    }
$L_1:
    mov.u32 %r1, %r2;
    ret;
}
"""


def test_grammar():
    entry = parse(TEXT)
    assert [(p.kind, p.offset) for p in entry.parameters.values()] == [("u64", 0), ("u32", 8), ("f64", 16)]
    assert entry.max_threads == 128 and entry.shared == {"buffer": 0} and entry.shared_bytes == 48
    bra, load, inner, label, outer, ret = entry.statements
    assert (bra.guard, bra.opcode, bra.operands) == ("!%p1", "bra", ("$L_1",))
    assert load.modifiers == ("global", "v4", "f32") and load.operands == ("{%f1, %f2, %f3, %f4}", "[%rd1+16]")
    assert label.label == "_L_1" and ret.opcode == "ret"
    assert outer.operands == ("%r1", "%r2")
    assert inner.operands[0] != "%r1"  # an inner scope hides the outer register
    assert entry.registers[inner.operands[0]] == 1 and entry.registers["%r1"] == 32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("add.cc.u32 %r1, %r2, %r3;", "modifiers"),
        ("madness.u32 %r1, %r2;", "opcode madness"),
        ("ld.global.v8.f32 {%r1}, [%rd1];", "v8"),
        ("ld.u32 %r1, [%rd1];", "generic"),
        ("bar.sync 1;", "barriers"),
        ("mov.u32 %r1, %clock;", "clock"),
        ("add.u32 %q, %r1, %r1;", "%q"),
    ],
)
def test_what_is_not_modelled_is_said(text, message):
    with pytest.raises(UnsupportedError, match=message):
        Kernel(f".entry k(.param .u64 k_0) {{ .reg .b32 %r<9>; .reg .b64 %rd<3>; {text} ret; }}")


def test_launches_that_a_device_refuses():
    kernel = Kernel(TEXT.replace("@!%p1 bra $L_1;", "").replace("ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%rd1+16];", ""))
    for grid, block, arguments, message in (
        (1, 129, [0, 0, 0.0], "128"),
        (0, 32, [0, 0, 0.0], "grid"),
        (1, 32, [0, 0], "3 parameters"),
    ):
        with pytest.raises(ValueError, match=message):
            kernel(grid, block, arguments)
    x = device_array(4, np.float32)
    with pytest.raises(ValueError, match="overlap"):
        kernel(1, 32, [0, 0, 0.0], [Buffer(x), Buffer(x[2:])])


# ----------------------------------------------------------------------------------------------------------- instructions
INTEGERS = {
    kind: np.array(
        [0, 1, 2, 3, 7, 31, 32, 33, 64, 0x7F, 0x80, info.max, info.min, info.max - 1, 5], f"{'iu'[kind[0] != 's']}{n}"
    )
    for kind, n in (("s32", 4), ("u32", 4), ("s64", 8), ("u64", 8))
    for info in [np.iinfo(f"{'iu'[kind[0] != 's']}{n}")]
}
INTEGERS |= {"b32": INTEGERS["u32"], "b64": INTEGERS["u64"]}
FLOATS = {
    kind: np.array([0, -0.0, 1, -1.5, 2.5, 3e-39, 1e-45, 3e38, np.inf, -np.inf, np.nan, 1 / 3, 7, 1e10, 0.1], dtype)
    for kind, dtype in (("f32", np.float32), ("f64", np.float64))
}
VALUES = INTEGERS | FLOATS
SHIFTS = np.array([0, 1, 5, 31, 32, 33, 63, 64, 65, 100, 2, 3, 4, 8, 16], np.uint32)


def shifted(left):
    def compute(a, n):
        bits = a.itemsize * 8
        inside = np.minimum(n, bits - 1).astype(a.dtype)
        result = a << inside if left else a >> inside
        beyond = np.where(a < 0, -1, 0).astype(a.dtype) if not left and a.dtype.kind == "i" else np.zeros_like(a)
        return np.where(n >= bits, beyond, result)

    return compute


def wide(kind):
    return {"s32": np.int64, "u32": np.uint64}[kind]


def high(a, b):
    return np.array([(int(p) * int(q) >> a.itemsize * 8) & (2 ** (a.itemsize * 8) - 1) for p, q in zip(a, b, strict=True)],
                    f"u{a.itemsize}").view(a.dtype)  # fmt: skip


def divided(a, b):
    """Integers are cut towards zero."""
    safe = np.where((b == 0) | ((a == a.min()) & (b == np.array(-1).astype(b.dtype))), 1, b)
    q = (abs(a.astype(object)) // abs(safe.astype(object))) * np.where((a < 0) != (safe < 0), -1, 1)
    return q.astype(a.dtype), safe


def extracted(a, start, length):
    return np.array([int(v) >> int(s) & (1 << min(int(n), 64)) - 1 if s < 32 else 0
                     for v, s, n in zip(a, start, length, strict=True)]).astype(a.dtype)  # fmt: skip


def inserted(a, b, start, length):
    bits = []
    for p, q, s, n in zip(a, b, start, length, strict=True):
        mask = (1 << min(int(n), 32)) - 1
        bits.append((int(q) & ~(mask << int(s)) | (int(p) & mask) << int(s)) & 0xFFFFFFFF if s < 32 else int(q))
    return np.array(bits, np.uint32)


def selected(pair, nibble):
    """A byte of eight; where the nibble's high bit is set, its sign spread over the byte."""
    byte = pair >> 8 * (nibble & 7) & 255
    return (255 if byte & 128 else 0) if nibble & 8 else byte


def numeric(function, nan):
    """min and max: NaN loses, or, where asked for, wins."""

    def compute(a, b):
        return (np.minimum if function == "min" else np.maximum)(a, b) if nan else getattr(np, f"f{function}")(a, b)

    return compute


CASES = [
    *((f"{op}.{kind}", (kind, kind), getattr(np, name))
      for op, name in (("add", "add"), ("sub", "subtract")) for kind in ("s32", "u32", "s64", "u64", "f32", "f64")),
    *((f"{op}.{kind}", (kind, kind), getattr(np, f"bitwise_{op}")) for op in ("and", "or", "xor") for kind in ("b32", "b64")),
    *((f"mul.lo.{kind}", (kind, kind), np.multiply) for kind in ("s32", "u32", "s64", "u64")),
    *((f"mul.{kind}", (kind, kind), np.multiply) for kind in ("f32", "f64")),
    *((f"mul.hi.{kind}", (kind, kind), high) for kind in ("s32", "u32", "u64")),
    *((f"mul.wide.{kind}", (kind, kind), lambda a, b, kind=kind: a.astype(wide(kind)) * b.astype(wide(kind)))
      for kind in ("s32", "u32")),
    *((f"mad.lo.{kind}", (kind, kind, kind), lambda a, b, c: a * b + c) for kind in ("s32", "u64")),
    ("fma.rn.f64", ("f64", "f64", "f64"), None),
    *((f"{op}.{kind}", (kind, kind), lambda a, b, op=op: np.divide(a, b)) for op in ("div.rn",) for kind in ("f32", "f64")),
    *((f"shl.b{n}", (f"b{n}", "n"), shifted(True)) for n in (32, 64)),
    *((f"shr.{kind}", (kind, "n"), shifted(False)) for kind in ("s32", "u32", "s64", "u64")),
    *((f"{op}.{kind}", (kind, kind), getattr(np, f"{op}imum")) for op in ("min", "max") for kind in ("s32", "u64")),
    *((f"{op}.{kind}", (kind, kind), numeric(op, False)) for op in ("min", "max") for kind in ("f32", "f64")),
    *((f"{op}.NaN.f32", ("f32", "f32"), numeric(op, True)) for op in ("min", "max")),
    *((f"neg.{kind}", (kind,), np.negative) for kind in ("s32", "s64", "f32", "f64")),
    *((f"not.b{n}", (f"b{n}",), np.invert) for n in (32, 64)),
    *((f"abs.{kind}", (kind,), np.abs) for kind in ("f32", "f64")),
    *((f"rcp.rn.{kind}", (kind,), lambda a: (1 / a.astype(a.dtype)).astype(a.dtype)) for kind in ("f32", "f64")),
    *((f"sqrt.rn.{kind}", (kind,), np.sqrt) for kind in ("f32", "f64")),
    *((f"rsqrt.approx.{kind}", (kind,), lambda a: 1 / np.sqrt(a)) for kind in ("f32",)),
    ("bfe.u32", ("u32", "n", "n"), extracted),
    ("bfi.b32", ("u32", "b32", "n", "n"), inserted),
    ("shf.l.wrap.b32", ("b32", "b32", "n"), lambda a, b, n: np.array(
        [((int(q) << 32 | int(p)) << (int(k) & 31) >> 32) & 0xFFFFFFFF for p, q, k in zip(a, b, n, strict=True)], np.uint32)),
    ("prmt.b32", ("b32", "b32", "n"), lambda a, b, n: np.array(
        [sum(selected(int(q) << 32 | int(p), int(s) >> 4 * i) << 8 * i for i in range(4))
         for p, q, s in zip(a, b, n, strict=True)], np.uint32)),
]  # fmt: skip
REGISTER = {4: "b32", 8: "b64"}


def run_instruction(text, sources, result_dtype):
    """One instruction, by as many threads as there are values."""
    loads, names = [], []
    for k, source in enumerate(sources):
        size = source.itemsize
        loads.append(f".reg .{REGISTER[size]} %s{k}; .reg .b64 %a{k}; ld.param.u64 %a{k}, [k_{k}]; "
                     f"mad.lo.u64 %a{k}, %i, {size}, %a{k}; ld.global.b{8 * size} %s{k}, [%a{k}];")  # fmt: skip
        names.append(f"%s{k}")
    out, size = device_array(len(sources[0]), result_dtype), np.dtype(result_dtype).itemsize
    n = len(sources)
    parameters = ", ".join(f".param .u64 k_{k}" for k in range(n + 1))
    kernel = Kernel(
        f".entry k({parameters}) {{ .reg .b32 %t; .reg .b64 %i; .reg .b64 %o; .reg .{REGISTER[size]} %d; "
        f"mov.u32 %t, %tid.x; cvt.u64.u32 %i, %t; {' '.join(loads)} {text} %d, {', '.join(names)}; "
        f"ld.param.u64 %o, [k_{n}]; mad.lo.u64 %o, %i, {size}, %o; st.global.b{8 * size} [%o], %d; ret; }}"
    )
    kernel(1, len(sources[0]), [*sources, out], [*(Buffer(s) for s in sources), Buffer(out, "output")])
    return out


@pytest.mark.parametrize(("text", "kinds", "wanted"), CASES, ids=[case[0] for case in CASES])
@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")
def test_every_instruction_against_numpy(text, kinds, wanted):
    sources = []
    for k, kind in enumerate(kinds):
        values = SHIFTS if kind == "n" else np.roll(VALUES[kind], 4 * k)
        sources.append(device_array(len(values), values.dtype))
        sources[-1][:] = values if kind != "n" else np.roll(values, 3 * k)
    if wanted is None:  # fma: one rounding
        exact = [float(p) * float(q) + float(r) for p, q, r in zip(*sources, strict=True)]
        got = run_instruction(text, sources, np.float64)
        assert np.allclose(got, exact, rtol=1e-15, equal_nan=True)
        return
    expected = wanted(*sources)
    got = run_instruction(text, sources, expected.dtype)
    assert np.array_equal(got, expected, equal_nan=expected.dtype.kind == "f"), (got, expected)


def test_division_of_integers():
    for kind in ("s32", "u32", "s64", "u64"):
        a, b = VALUES[kind], np.roll(VALUES[kind], 3)
        quotient, safe = divided(a, b)
        sources = [device_array(len(a), a.dtype) for _ in range(2)]
        sources[0][:], sources[1][:] = a, safe
        assert np.array_equal(run_instruction(f"div.{kind}", sources, a.dtype), quotient)
        assert np.array_equal(run_instruction(f"rem.{kind}", sources, a.dtype), a - quotient * safe)


@pytest.mark.parametrize("to", ["s32", "u32", "s64", "u64"])
@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")
def test_floats_become_integers_by_saturation(to):
    source = device_array(15, np.float32)
    source[:] = VALUES["f32"]
    got = run_instruction(f"cvt.rzi.{to}.f32", [source], VALUES[to].dtype)
    info = np.iinfo(got.dtype)
    wanted = [0 if v != v else int(np.clip(np.trunc(float(v)), info.min, info.max)) if abs(v) < 1e300 else
              (info.max if v > 0 else info.min) for v in source.tolist()]  # fmt: skip
    assert got.tolist() == [min(max(w, info.min), info.max) for w in wanted]


@pytest.mark.parametrize("name", ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"])
def test_comparisons_know_nan(name):
    a, b = device_array(15, np.float32), device_array(15, np.float32)
    a[:], b[:] = VALUES["f32"], np.roll(VALUES["f32"], 4)
    a[3], b[3] = 2, 2
    text = f".reg .pred %p; setp.{name}.f32 %p, %s0, %s1; selp.u32 %d, 1, 0, %p; mov.b32 %s0, %d; add.u32"
    got = run_instruction(text, [a, b], np.uint32)
    nan = np.isnan(a) | np.isnan(b)
    plain = {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
    wanted = {"num": ~nan, "nan": nan}.get(name)
    if wanted is None:
        wanted = plain[name[:2]] | nan if len(name) == 3 else plain[name] & ~nan
    assert np.array_equal((got - b.view(np.uint32)) == 1, wanted)


def test_the_list_of_instructions_is_covered():
    tried = {case[0].partition(".")[0] for case in CASES} | {"div", "rem", "selp"}
    assert tried >= set(RULES)
    assert {"ld", "st", "bar", "shfl", "setp"} <= set(opcodes())


# ------------------------------------------------------------------------------------------------------------ seeded bugs
def run(function, signature, grid, block, x, y, *more, **options):
    roles = {"x": "input", "y": "output", **options.pop("roles", {})}
    kernel = compiled(function, signature)
    return kernel(grid, block, [x, y, *more], [Buffer(x, roles["x"]), Buffer(y, roles["y"])], **options)


def data(n=256, m=256, dtype=np.float32):
    x, y = device_array(n, np.float32), device_array(m, dtype)
    x[:] = np.random.default_rng(0).random(n)
    return x, y


def tree_of(barrier, last_barrier=True):
    @device
    def meet():
        cuda.syncthreads()

    @device
    def pass_by():
        pass

    inner, outer = (meet if barrier else pass_by), (meet if last_barrier else pass_by)

    def tree_sum(x, y):
        shared = cuda.shared.array(256, types.float32)
        i = cuda.threadIdx.x
        shared[i] = x[cuda.blockIdx.x * 256 + i]
        outer()
        s = 128
        while s > 0:
            if i < s:
                shared[i] += shared[i + s]
            inner()
            s //= 2
        if i == 0:
            y[cuda.blockIdx.x] = shared[0]

    return tree_sum


@pytest.mark.parametrize("order", [0, 1, 5])
def test_block_reduction(order):
    x, y = data(1024, 4)
    run(tree_of(True), (F, F), 4, 256, x, y, order=order, races="all")
    assert np.allclose(y, x.reshape(4, -1).sum(1))


@pytest.mark.parametrize("barriers", [(False, True), (True, False)])
def test_missing_barrier(barriers):
    with pytest.raises(DeviceFaultError, match="shared r"):
        run(tree_of(*barriers), (F, F), 4, 256, *data(1024, 4))


def neighbour_of(synchronized):
    @device
    def meet():
        cuda.syncwarp()

    @device
    def pass_by():
        pass

    step = meet if synchronized else pass_by

    def neighbours(x, y):
        shared = cuda.shared.array(256, types.float32)
        i = cuda.threadIdx.x
        shared[i] = types.float32(0)
        cuda.syncthreads()
        shared[i] = x[i]
        step()
        y[i] = shared[i ^ 1]

    return neighbours


def test_warp_barrier():
    x, y = data()
    run(neighbour_of(True), (F, F), 1, 256, x, y)
    assert np.array_equal(y, x.reshape(-1, 2)[:, ::-1].ravel())
    with pytest.raises(DeviceFaultError, match="shared race"):
        run(neighbour_of(False), (F, F), 1, 256, *data())


def test_shared_memory_read_before_it_is_written():
    def k(x, y):
        shared = cuda.shared.array(256, types.float32)
        i = cuda.threadIdx.x
        if i < 255:
            shared[i] = x[i]
        cuda.syncthreads()
        y[i] = shared[255 - i]

    with pytest.raises(DeviceFaultError, match="shared read before write"):
        run(k, (F, F), 1, 256, *data())


def test_shared_memory_too_small():
    def k(x, y):
        shared = cuda.shared.array(64, types.float32)
        i = cuda.threadIdx.x
        shared[i] = x[i]
        cuda.syncthreads()
        y[i] = shared[i]

    with pytest.raises(DeviceFaultError, match="shared out of bounds"):
        run(k, (F, F), 1, 256, *data())


def test_barriers_that_not_all_reach():
    def half(x, y):
        i = cuda.threadIdx.x
        if i < 128:
            cuda.syncthreads()
        y[i] = x[i]

    def two(x, y):
        i = cuda.threadIdx.x
        if i < 128:
            cuda.syncthreads()
            y[i] = x[i]
        else:
            y[i] = x[i] * x[i]
            cuda.syncthreads()

    def early(x, y):
        i = cuda.threadIdx.x
        if i < 200:
            cuda.syncthreads()
            y[i] = x[i]

    for kernel, message in ((half, "after some threads exited"), (two, "different bar.sync"), (early, "exited")):
        with pytest.raises(DeviceFaultError, match=message):
            run(kernel, (F, F), 1, 256, *data())


def test_votes():
    def k(x, y):
        i = cuda.threadIdx.x
        big = x[i] > types.float32(0.5)
        bits = cuda.ballot_sync(ALL, big) & 0xFFFF
        y[i] = bits + 65536 * (cuda.syncthreads_count(types.int32(big)) + 1000 * types.int32(cuda.any_sync(ALL, big)))

    x, y = data(dtype=np.int32)
    run(k, (F, I), 1, 256, x, y)
    big = x.reshape(8, 32) > 0.5
    bits = (big[:, :16] << np.arange(16)).sum(1) + 65536 * (big.sum() + 1000 * big.any(1))
    assert np.array_equal(y, np.repeat(bits, 32))


def test_shuffles_that_not_all_reach():
    def exited(x, y):
        i = cuda.threadIdx.x
        if i < 200:
            y[i] = cuda.shfl_down_sync(ALL, x[i], 1)

    def divergent(x, y):
        i = cuda.threadIdx.x
        v = x[i]
        if v > types.float32(0.5):
            v += cuda.shfl_xor_sync(ALL, v, 1)
        cuda.syncthreads()
        y[i] = v

    for kernel, message in ((exited, "mask names an exited lane"), (divergent, "deadlock")):
        with pytest.raises(DeviceFaultError, match=message):
            run(kernel, (F, F), 1, 256, *data())


def test_shuffles():
    def k(x, y):
        i = cuda.threadIdx.x
        v = x[i]
        down, up = cuda.shfl_down_sync(ALL, v, 3), cuda.shfl_up_sync(ALL, v, 2)
        across, seventh = cuda.shfl_xor_sync(ALL, v, 5), cuda.shfl_sync(ALL, v, 7)
        y[i] = down + up * types.float32(10) + across * types.float32(100) + seventh * types.float32(1000)

    x, y = data(32, 32)
    x[:] = np.arange(32)
    run(k, (F, F), 1, 32, x, y)
    lane = np.arange(32)
    down, up = np.where(lane < 29, lane + 3, lane), np.where(lane >= 2, lane - 2, lane)
    assert np.array_equal(y, down + up * 10 + (lane ^ 5) * 100 + 7000)


def copy_of(offset, stop):
    def copy(x, y):
        i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        if i < stop:
            y[i] = x[i + offset]

    return copy


def test_global_memory():
    x, y = data()
    traffic = run(copy_of(0, 256), (F, F), 2, 128, x, y)
    assert np.array_equal(x, y) and traffic.read == (1024, 0) and traffic.written == (0, 1024)
    with pytest.raises(DeviceFaultError, match="global out of bounds"):
        run(copy_of(1, 256), (F, F), 2, 128, *data())
    with pytest.raises(DeviceFaultError, match=r"buffer 1 not written: 6 of 256 elements, the first at \(250,\)"):
        run(copy_of(0, 250), (F, F), 2, 128, *data())
    with pytest.raises(DeviceFaultError, match="write outside the declared outputs"):
        run(copy_of(0, 256), (F, F), 2, 128, *data(), roles={"y": "input"})
    x, y = data(256, 320)
    rows = y.reshape(4, 80)[:, :64]
    with pytest.raises(DeviceFaultError, match="write outside the declared outputs"):  # between the rows of a view
        run(copy_of(0, 256), (F, F), 2, 128, x, rows)


def test_reading_an_output_before_it_is_written():
    def accumulate(x, y):
        y[cuda.threadIdx.x] += x[cuda.threadIdx.x]

    with pytest.raises(DeviceFaultError, match="read of an output before it is written"):
        run(accumulate, (F, F), 1, 256, *data())
    x, y = data()
    run(accumulate, (F, F), 1, 256, x, y, roles={"y": "updated"})
    assert np.array_equal(x, y)


def test_two_blocks_write_one_byte():
    def overlapping(x, y):
        i = cuda.blockIdx.x * 240 + cuda.threadIdx.x
        if i < 480:
            y[i] = x[i]

    for order in (0, 1, 3):
        with pytest.raises(DeviceFaultError, match="two blocks write the same byte"):
            run(overlapping, (F, F), 2, 256, *data(480, 480), order=order)


def test_a_block_reads_what_another_writes():
    def shift(x, y):
        i = cuda.blockIdx.x * 256 + cuda.threadIdx.x
        v = y[i + 1] if i + 1 < 512 else types.float32(0)
        cuda.syncthreads()
        y[i] = v

    for order, message in ((0, "write to a byte that another block read"), (1, "read of a byte that another block wrote")):
        with pytest.raises(DeviceFaultError, match=message):
            run(shift, (F, F), 2, 256, *data(512, 512), roles={"y": "updated"}, order=order, races="all")


def test_misaligned_vectors():
    from normkit._cuda.spec import Operand
    from normkit._cuda.vectors import fetch_of, put_of

    fetch, put = fetch_of(Operand("float32", vector=True), 4), put_of(Operand("float32", vector=True), 4)

    def copy(x, y, by):
        held = cuda.local.array(4, types.float32)
        i = types.int64(cuda.threadIdx.x) * 4
        fetch(x, i + by, types.int64(1), held, 0)
        put(y, i, types.int64(1), held, 0)

    kernel = compiled(copy, (types.int64,) * 3)
    x, y = data(260, 256)
    traffic = kernel(1, 64, [x, y, 0], [Buffer(x), Buffer(y, "output")])
    assert np.array_equal(x[:256], y) and traffic.read == (1024, 0)
    with pytest.raises(DeviceFaultError, match="misaligned global access"):
        kernel(1, 64, [x, y, 1], [Buffer(x), Buffer(y, "output")])
