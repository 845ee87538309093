"""The one seam to the CUDA packages: the compiler's language, its linker, and the launcher. Nothing else imports them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from cuda.core import Linker, LinkerOptions, ObjectCode
from numba import cuda as cuda
from numba.cuda import dispatcher
from numba.cuda import types as types
from numba.cuda.extending import intrinsic as _intrinsic

intrinsic: Callable[[Callable[..., Any]], Any] = _intrinsic  # a device function that is written in LLVM IR
_RESIDENT = 512  # threads of a multiprocessor that must have room: then a thread has at most 128 registers
_lock = threading.Lock()
Capability = tuple[int, int]  # major and minor of a compute capability


def device(function: Callable[..., Any]) -> Any:
    """Make a function that kernels call; the compiler's back end inlines it (Numba's front end would take twice the time)."""
    return cuda.jit(device=True, forceinline=True)(function)


@contextlib.contextmanager
def _compiling_for(cc: Capability) -> Iterator[None]:
    """Numba compiles functions that kernels call for this capability; it would ask the device, where there may be none."""
    chosen = SimpleNamespace(compute_capability=cc)
    before = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: chosen
    try:
        yield
    finally:
        dispatcher.get_current_device = before


def intermediate(kernel: Callable[..., Any], signature: tuple[Any, ...], cc: Capability, threads: int) -> Any:
    """A kernel as code that the linker optimizes as a whole, for blocks of at most `threads`."""
    options = {"abi": "numba", "device": False, "output": "ltoir", "launch_bounds": (threads, max(1, _RESIDENT // threads))}
    with _lock, _compiling_for(cc):
        code, _ = cuda.compile(kernel, signature, cc=cc, **options)
    return ObjectCode.from_ltoir(code)


def link(code: Any, cc: Capability, form: str) -> bytes:
    """What runs (form "cubin"), or its text before the assembler ("ptx")."""
    architecture = f"sm_{cc[0]}{cc[1]}"
    options = LinkerOptions(arch=architecture, link_time_optimization=True, ptx=form == "ptx")
    return bytes(Linker(code, options=options).link(form).code)


def versions() -> str:
    """Of all that takes part in the making of a kernel."""
    from importlib.metadata import version

    names = ("numba", "numba-cuda", "llvmlite", "cuda-core", "nvidia-nvvm", "nvidia-nvjitlink")
    return " ".join(f"{name}-{_installed(version, name)}" for name in names)


def _installed(version: Callable[[str], str], name: str) -> str:
    from importlib.metadata import PackageNotFoundError

    try:
        return version(name)
    except PackageNotFoundError:  # from a system toolkit
        return "system"
