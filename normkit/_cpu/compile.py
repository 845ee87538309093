"""Compiling: what every kernel and its parts are compiled with, and that a cache on disk is trusted, whole and current."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import inspect
import pathlib
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numba
from numba import types
from numba.core import codegen, compiler, ir
from numba.core.compiler_machinery import FunctionPass, register_pass
from numba.core.typed_passes import NopythonRewrites, NopythonTypeInference
from numba.core.untyped_passes import InlineClosureLikes

from .._trust import untrusted
from .simd import primitive

_RETURNS = {"None": types.none, "bool": types.boolean, "float": types.float64}  # what parts return
_made: Any = weakref.WeakKeyDictionary()  # the parts of each kernel
_warned: list[str] = []


@register_pass(mutates_CFG=False, analysis_only=False)
class _PlainConditions(FunctionPass):  # type: ignore[misc]
    """Branches on conditions, not on `bool` of them, which a branch means anyway: Numba takes 1 ms for each to type it."""

    _name = "normkit_plain_conditions"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        for block in state.func_ir.blocks.values():
            if isinstance(block.terminator, ir.Branch):
                for step in block.find_insts(ir.Assign):
                    if step.target.name == block.terminator.cond.name and _is_bool(step.value, state.func_ir):
                        step.value = step.value.args[0]
        return True


def _is_bool(value: Any, function: Any) -> bool:
    """Whether this is a call of Python's `bool`."""
    called = function.get_definition(value.func) if isinstance(value, ir.Expr) and value.op == "call" else None
    return isinstance(called, ir.Global) and called.value is bool


class _Library(codegen.JITCodeLibrary):  # type: ignore[misc]
    """The machine code of a kernel, of which LLVM optimizes all in one go.

    Numba lets it look at each function first, and then has a cheap pass over all to bring counts of references together, of
    which kernels have none. First call for channels last: 4.8 s of processor time so, 5.05 else (12 each, a busy machine).
    """

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        passes, builder = self._codegen._module_pass_manager()
        passes.run(self._final_module, builder)


@register_pass(mutates_CFG=False, analysis_only=True)
class _OwnLibrary(FunctionPass):  # type: ignore[misc]
    """Machine code goes to a `_Library`; that of a part goes to its kernel's."""

    _name = "normkit_own_library"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        if state.library is None:
            state.library = _Library(state.targetctx.codegen(), state.func_id.func_qualname)
            state.library.enable_object_caching()
        return False


class _Compiler(compiler.Compiler):  # type: ignore[misc]
    """Numba's own, for kernels: plain conditions, and no passes that look for closures and array expressions.

    The first call for channels last: 2.9 s so, 3.3 by Numba's own.
    """

    def compile_extra(self, func: Callable[..., Any]) -> Any:
        with _garbage_waits():
            return super().compile_extra(func)

    def define_pipelines(self) -> list[Any]:
        pipelines: list[Any] = super().define_pipelines()
        for each in pipelines:
            kept = [step for step in each.passes if step[0] not in (InlineClosureLikes, NopythonRewrites)]
            at = next(k for k, step in enumerate(kept) if step[0] is NopythonTypeInference)
            own = [(_PlainConditions, "conditions of branches"), (_OwnLibrary, "where machine code goes")]
            each.passes = [*kept[:at], *own, *kept[at:]]
        return pipelines


@contextlib.contextmanager
def _garbage_waits() -> Iterator[None]:
    """No search for cyclic garbage: compiling makes many objects, most of which stay, and a search looks at all there are.

    First call for channels last, with PyTorch in the process: 3.0 s of processor time so, 3.4 else, with its gradient 5.5 and
    6.5. Numba compiles one function at a time.
    """
    searched = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searched:
            gc.enable()


def jit(function: Callable[..., Any], parallel: bool = False) -> Any:
    """A kernel. No fast-math: the order of every sum is part of the result.

    References to arrays are not counted (`_nrt`), which took half the time of a small call: the caller holds them all, and
    what a kernel needs for itself comes from `vectors.scratch`.
    """
    flags = {"nogil": True, "error_model": "numpy", "_nrt": False, "no_cfunc_wrapper": True}
    flags |= {"parallel": True} if parallel else {"pipeline_class": _Compiler}
    try:
        kernel = numba.njit(cache=True, **flags)(function)
        reason = untrusted(pathlib.Path(kernel._cache.cache_path))
    except RuntimeError as error:
        if "cache" not in str(error):
            raise
        reason = str(error)
    if reason:
        _warn_uncached(reason)
        return numba.njit(**flags)(function)
    return _guarded(_stamped(kernel))


def _guarded(kernel: Any) -> Any:
    """A cached kernel that is read from disk at once, and compiled anew where the files of its cache are damaged.

    Numba would raise what reading raises. And it would first load all that it can compile, SciPy too, though machine code needs
    none of it: a first call from disk takes 0.22 s so, 0.47 else. (It needs Numba's runtime, if references are counted.)
    """
    cache = kernel._cache
    cache.load_overload = cache._load_overload
    load = cache._cache_file.load

    def load_whole(key: Any) -> Any:
        try:
            return load(key)
        except Exception:  # noqa: BLE001 - unpickling garbage may raise anything
            with contextlib.suppress(OSError):  # a folder that cannot be written keeps its damaged files
                cache.flush()
            return None

    cache._cache_file.load = load_whole
    return kernel


def _stamped(kernel: Any) -> Any:
    """A cached kernel that is compiled anew when any file of this package changes.

    Numba itself looks at the kernel's own file, and kernels inline what stands in others: after an upgrade the old code of
    those would go on running.
    """
    index = kernel._cache._cache_file
    index._source_stamp = (index._source_stamp, _digest())
    return kernel


@lru_cache(maxsize=1)
def _digest() -> str:
    """Of the source of all kernels."""
    here = pathlib.Path(__file__).parent
    inlined = (here.parent / name for name in ("_formulas.py", "_layout.py", "_storage.py"))
    sources = [*sorted(here.glob("*.py")), *inlined]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def jit_part(function: Callable[..., Any]) -> Any:
    """A function of kernels that becomes part of the code of each: it is compiled where a kernel is, by argument types.

    As a kernel of its own it would be optimized and made machine code for itself, and optimized again in whatever calls it; and
    Numba would compile it anew for each constant among its arguments. First call for channels last: 4.4 s so, 6.6 else.
    """
    returns = _RETURNS[function.__annotations__["return"]]

    def part(typingctx: Any, *args: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            parts = _made.setdefault(context.active_code_library, {})
            if (function, sig.args) not in parts:
                parts[function, sig.args] = _compiled(context, function, sig)
            return context.call_internal(builder, parts[function, sig.args], sig, args)

        return returns(*args), codegen

    own, context = inspect.signature(function), inspect.Parameter("typingctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    part.__name__ = function.__name__
    part.__signature__ = own.replace(parameters=[context, *own.parameters.values()])  # type: ignore[attr-defined]
    return primitive(part)


def _compiled(context: Any, function: Callable[..., Any], sig: Any) -> Any:
    """What Numba knows of a function, compiled into the kernel at hand."""
    flags = compiler.Flags()
    flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    flags.error_model, flags.nrt = "numpy", False
    home = context.active_code_library
    made = _Compiler(context.typing_context, context, home, sig.args, sig.return_type, flags, {})
    return made.compile_extra(function).fndesc


def jit_inline(function: Callable[..., Any]) -> Any:
    """`jit` for what becomes part of its callers: not compiled by itself, which takes 100 ms, and no call."""
    return numba.njit(inline="always", nogil=True, error_model="numpy", _nrt=False)(function)


def _warn_uncached(reason: str) -> None:
    if not _warned:
        _warned.append(reason)
        message = (
            "normkit found no folder that it can keep compiled kernels in and trust, so every process compiles them anew; "
            f"set NUMBA_CACHE_DIR to a folder of your own ({reason})"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=2)
