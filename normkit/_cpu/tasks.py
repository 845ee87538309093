"""The tasks of a kernel on several threads: each does those of its own share, then what the others have not begun.

Threads start at the same places in every call, where the arrays of the last one are in their caches; and none waits for
another that was held up. Which thread does a task has no influence on its result.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir
from numba import prange, types
from numba.core import cgutils

from .compile import jit, jit_inline
from .simd import CACHE_LINE, Table, primitive

BEGUN, RETURNED = range(2)  # of `progress`: tasks of a thread's share that were begun; the sum of what the thread's returned
LINE = CACHE_LINE // 8  # columns of `progress`, int64: threads write to rows side by side


@primitive
def _begin(typingctx: Any, progress: Any, share: Any) -> Any:
    """The number of tasks of a share that were begun, which becomes one more."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        row = Table(context, builder, sig.args[0], args[0]).row(args[1])
        return builder.atomic_rmw("add", builder.gep(row.data, [args[1].type(BEGUN)]), args[1].type(1), "monotonic")

    return types.intp(progress, types.intp), codegen


@jit_inline
def _next(tasks: int, progress: Any, thread: int) -> Any:
    """A task that none has begun; -1 where there is none left."""
    threads = progress.shape[0]
    for k in range(threads):
        share = (thread + k) % threads
        task = share * tasks // threads + _begin(progress, share)
        if task < (share + 1) * tasks // threads:
            return task
    return -1


def _call(context: Any, builder: ir.IRBuilder, address: ir.Value, kinds: list[Any], values: list[ir.Value]) -> Any:
    """(status, result) of the compiled function at an address, which returns an integer."""
    calls = context.call_conv
    function = builder.inttoptr(address, calls.get_function_type(types.int64, kinds).as_pointer())
    return calls.call_function(builder, function, types.int64, kinds, values)


@primitive
def _run(typingctx: Any, one: Any, packed: Any, task: Any) -> Any:
    """Call the function at address `one`, see `_on_threads`."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        kind = ir.FunctionType(args[1].type, [args[1].type, args[2].type])
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])

    return types.int64(types.int64, types.int64, types.int64), codegen


@partial(jit, parallel=True)
def pool(one: int, packed: int, tasks: int, progress: Any) -> int:
    """Run every task once. It calls kernels by address, so that this is compiled once for all of them, in 0.3 s."""
    for thread in prange(progress.shape[0]):
        task = _next(tasks, progress, thread)
        while task >= 0:
            progress[thread, RETURNED] += _run(one, packed, task)
            task = _next(tasks, progress, thread)
    return 0


@primitive
def _on_threads(typingctx: Any, pool: Any, kernel: Any, arguments: Any, tasks: Any, progress: Any) -> Any:
    """Hand the tasks of the kernel at an address to the `pool` at another, with what the kernel is called for each by.

    That is a function of the packed arguments and a task, the same type for all kernels. What one raises is raised here.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        calls, intp = context.call_conv, args[0].type
        kinds = [*sig.args[2], types.int64, types.int64]
        code, raised = ir.IntType(32), calls.get_function_type(types.int64, []).args[1].pointee
        layout = ir.LiteralStructType([intp, args[2].type, code, raised])
        packed = cgutils.alloca_once(builder, layout)
        builder.store(cgutils.pack_struct(builder, [args[1], args[2], code(0), ir.Constant(raised, None)]), packed)

        one = ir.Function(builder.module, ir.FunctionType(intp, [intp, intp]), f"{builder.function.name}.task")
        one.linkage = "internal"
        inner = ir.IRBuilder(one.append_basic_block())
        own, task = inner.inttoptr(one.args[0], layout.as_pointer()), one.args[1]
        address, values = (inner.load(cgutils.gep_inbounds(inner, own, 0, k)) for k in range(2))
        values = [*cgutils.unpack_tuple(inner, values, len(kinds) - 2), task, inner.add(task, intp(1))]
        status, result = _call(context, inner, address, kinds, values)
        with cgutils.if_unlikely(inner, status.is_error):
            inner.store(status.excinfoptr, cgutils.gep_inbounds(inner, own, 0, 3))
            inner.store(status.code, cgutils.gep_inbounds(inner, own, 0, 2))
            inner.ret(intp(0))
        inner.ret(result)

        given = [builder.ptrtoint(one, intp), builder.ptrtoint(packed, intp), args[3], args[4]]
        end, _ = _call(context, builder, args[0], [types.int64, types.int64, types.int64, sig.args[4]], given)
        with cgutils.if_unlikely(builder, end.is_error):
            calls.return_status_propagate(builder, end)
        code, raised = (builder.load(cgutils.gep_inbounds(builder, packed, 0, k)) for k in (2, 3))
        with cgutils.if_unlikely(builder, builder.icmp_signed("!=", code, code.type(0))):
            calls.return_status_propagate(builder, status._replace(code=code, excinfoptr=raised))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, arguments, types.int64, progress), codegen


@jit
def spread(pool: int, kernel: int, arguments: Any, tasks: int, progress: Any) -> int:
    """Run the tasks of a kernel, both at addresses, on as many threads as `progress` has rows; the sum of what they return."""
    _on_threads(pool, kernel, arguments, tasks, progress)
    total = 0
    for thread in range(progress.shape[0]):
        total += progress[thread, RETURNED]
    return total
