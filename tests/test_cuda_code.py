"""What the compiler makes of the kernels, for three generations of devices, without any of them."""

import functools
import re
from dataclasses import replace

import pytest

from normkit._cuda.compile import KERNELS, intermediate_of, machine_of
from normkit._cuda.package import link
from normkit._cuda.spec import Operand, Spec, elements_held
from tests.machine_code import disassemble

CAPABILITIES = [(8, 0), (9, 0), (10, 0)]
WIDTH = {"float32": 4, "float16": 8, "bfloat16": 8, "float64": 2, "uint8": 4, "int64": 2}
RESULT = {"uint8": "float32", "int64": "float64"}
# schedule -> (lanes, members, positions each of a gradient's arrays and of a norm's, rounds)
TEAMS = {
    "thread": (False, 1, (2, 2), 1),
    "eight": (False, 8, (4, 4), 1),
    "warp": (False, 32, (4, 8), 1),
    "block": (False, 256, (4, 8), 1),
    "large block": (False, 512, (4, 8), 1),
    "lanes of a thread": (True, 1, (4, 8), 1),
    "lanes": (True, 32, (4, 8), 1),
    "chunks": (False, 256, (4, 8), 1),
    "chunks of lanes": (True, 32, (4, 4), 8),
}
HELD = ("forward_held", "backward_held")
GRADIENTS = ("backward_held", "backward_looped", "partial_products", "moving_products", "merge_products", "apply_gradient")
TEAM_OF = {name: [team for team in TEAMS if team.startswith("chunks") != (name in HELD)] for name in KERNELS}


def make(kernel, team, storage="float32", vector=True, affine="still", segments=(1, 1), **more):
    """A Spec as the plans make them."""
    lanes, members, vectors, rounds = TEAMS[team]
    gradient, width = kernel in GRADIENTS, WIDTH[storage]
    wide = storage in ("float64", "int64")
    if lanes:
        width = min(width, 4)
    held = max(1, min(vectors[not gradient], elements_held(wide, 1 + gradient) // width))
    if rounds > 1 and gradient:
        held, rounds = 2, 16

    def operand(name, still=False):
        return Operand(name, vector and not (still and not lanes), False, still)

    weight = None if affine is None else operand("float32", affine == "still" and not gradient and kernel != "moving_products")
    result, x = RESULT.get(storage, storage), operand(storage)
    last = operand(result) if gradient else weight
    sums_only = "products" in kernel or kernel == "partial_moments" or kernel.startswith("merge")
    spec = Spec(kernel, lanes, members, held, rounds, width, *segments, x, None if sums_only else operand(result), weight, last,
                wide, False, True, True)  # fmt: skip
    return replace(spec, **more)


@functools.cache
def code_of(spec):
    """Compiled once, for the oldest; the linker makes it for all."""
    return intermediate_of(spec, CAPABILITIES[0])


@functools.cache
def machine(spec, cc):
    return disassemble(link(code_of(spec), cc, "cubin"))


@functools.cache
def text(spec):
    return link(code_of(spec), (9, 0), "ptx").decode()


VARIANTS = [
    *(make(name, team) for name in KERNELS for team in TEAM_OF[name]),
    *(make(name, team, storage) for storage in WIDTH if storage != "float32"
      for name in ("forward_held", "backward_held") for team in ("warp", "lanes")),
    *(make(name, team, storage) for storage in WIDTH if storage != "float32"
      for name in ("forward_looped", "apply_gradient") for team in ("chunks", "chunks of lanes")),
    *(make(name, team, vector=False, segments=(2, 3)) for name in HELD for team in ("warp", "lanes")),
    *(make("forward_held", "warp", affine=affine) for affine in (None, "moving")),
    make("forward_held", "block", center=False),
    make("forward_held", "warp", big=True, segments=(2, 2)),
]  # fmt: skip


def name_of(spec):
    return f"{spec.kernel}-{'lanes' if spec.lanes else 'sets'}-{spec.team}x{spec.vectors}x{spec.width}-{spec.x.storage}"


NAMES = [f"{name_of(spec)}-{k}" for k, spec in enumerate(VARIANTS)]


@pytest.mark.parametrize("spec", VARIANTS, ids=NAMES)
def test_every_variant_on_every_generation(spec):
    """It compiles; nothing spills; registers are bounded; vectors move 16 bytes (or what narrower data fill of them)."""
    for cc in CAPABILITIES:
        found = machine(spec, cc)
        assert found.count("LDL", "STL") == 0 and found.stack == 0 and found.local == 0, (cc, found)
        roomy = spec.lanes or spec.kernel.endswith("looped") or spec.team > 256 or cc == (10, 0)
        assert found.registers <= (128 if roomy else 96), (cc, found.registers)
        assert all(name.startswith(("__cuda_sm", ".L_x_")) for name in found.calls), found.calls
        if spec.kernel.startswith("merge"):
            continue
        for operand, access in ((spec.x, "LDG.E"), (spec.y, "STG.E")):
            if operand is not None and operand.vector:
                bits = 8 * spec.width * int("".join(filter(str.isdigit, operand.storage))) // 8
                wanted = {128: ".128", 64: ".64", 32: ""}[min(bits, 128)]
                assert found.count(access + wanted), (cc, bits, found.instructions)


@pytest.mark.parametrize("team", ["eight", "warp", "block", "lanes"])
@pytest.mark.parametrize("kernel", HELD)
@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_no_float64_arithmetic_for_an_element(kernel, team, storage):
    """As many instructions of float64 whatever the number of elements: they belong to the sets."""
    few, many = (replace(make(kernel, team, storage), vectors=n) for n in (2, 4))
    counts = [len(re.findall(r"\.f64\s+%fd", text(spec))) for spec in (few, many)]
    assert counts[0] == counts[1] > 0
    assert not re.search(r"\.extern \.func", text(few))


@pytest.mark.parametrize("kernel", ["partial_moments", "partial_products"])
def test_no_loop_over_elements_has_float64(kernel):
    """A chunk of lanes takes several rounds: more rounds add no instruction of float64."""
    spec = make(kernel, "chunks of lanes")
    counts = [len(re.findall(r"\.f64\s+%fd", text(replace(spec, rounds=n)))) for n in (2, 4)]
    assert counts[0] == counts[1]


def test_the_checks_can_fail():
    """Too few registers must show as spills, and elements one by one as narrow loads."""
    spec = make("forward_held", "block")
    tight = disassemble(machine_of(replace(spec, team=1024, vectors=8), (9, 0)).code)
    assert tight.count("LDL", "STL") > 0 and tight.stack > 0
    assert machine(make("forward_held", "block", vector=False, affine=None), (9, 0)).count("LDG.E.128", "STG.E.128") == 0
