"""Numba as a compiler: a Spec becomes machine code for a compute capability, kept in memory and on disk."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import gradients, kernels
from .package import Capability, intermediate, link, types
from .spec import HEADER, Spec

KERNELS: dict[str, Callable[[Spec], Callable[..., None]]] = {
    maker.__name__: maker
    for maker in (
        kernels.forward_held,
        kernels.forward_looped,
        kernels.partial_moments,
        kernels.merge_moments,
        kernels.apply,
        gradients.backward_held,
        gradients.backward_looped,
        gradients.partial_products,
        gradients.moving_products,
        gradients.merge_products,
        gradients.apply_gradient,
    )
}
ADDRESSES, NUMBERS = 7, 2  # parameters before and after the geometry


@dataclass(frozen=True, slots=True)
class Machine:
    """Machine code, and the name of the kernel in it."""

    code: bytes
    entry: str


def signature(spec: Spec) -> tuple[Any, ...]:
    """Of every kernel: addresses, geometry, numbers."""
    geometry = types.UniTuple(types.int64, HEADER + 5 * (spec.kept + spec.reduced))
    return (*(types.int64,) * ADDRESSES, geometry, types.UniTuple(types.float64, NUMBERS))


def intermediate_of(spec: Spec, cc: Capability) -> Any:
    """A kernel before the linker."""
    return intermediate(KERNELS[spec.kernel](spec), signature(spec), cc, spec.block)


def text_of(spec: Spec, cc: Capability) -> str:
    """A kernel as the text that the assembler takes."""
    return link(intermediate_of(spec, cc), cc, "ptx").decode()


def machine_of(spec: Spec, cc: Capability) -> Machine:
    """A kernel as machine code."""
    code = link(intermediate_of(spec, cc), cc, "cubin")
    return Machine(code, entry_of(code))


def entry_of(code: bytes) -> str:
    """The name of the one kernel in a cubin: that of its section of instructions."""
    found = re.search(rb"\.text\.([A-Za-z_][\w$]*)\0", code)
    if found is None:
        raise RuntimeError("the linker returned code without a kernel; reinstall normkit[cuda13]")
    return found[1].decode()
