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

from .compile import jit
from .simd import CACHE_LINE, primitive

LINE = CACHE_LINE // 8  # columns of `begun`, int64, of which one counts: threads write to rows side by side
_KERNEL, _ARGUMENTS, _BEGUN, _TASKS, _THREADS, _TOTAL, _CODE, _RAISED = range(8)  # of a launch, in memory
_INT64 = ir.IntType(64)


class _Launch:
    """What all threads of a launch read, and where they leave their results."""

    def __init__(self, builder: ir.IRBuilder, place: ir.Value) -> None:
        self.builder, self.place = builder, place

    def at(self, field: int) -> ir.Value:
        return cgutils.gep_inbounds(self.builder, self.place, 0, field)

    def __getitem__(self, field: int) -> ir.Value:
        return self.builder.load(self.at(field))

    def __setitem__(self, field: int, value: ir.Value) -> None:
        self.builder.store(value, self.at(field))


def _call(context: Any, builder: ir.IRBuilder, address: ir.Value, kinds: list[Any], values: list[ir.Value]) -> Any:
    """(status, result) of the compiled function at an address, which returns an integer."""
    calls = context.call_conv
    function = builder.inttoptr(address, calls.get_function_type(types.int64, kinds).as_pointer())
    return calls.call_function(builder, function, types.int64, kinds, values)


def _worker(context: Any, module: ir.Module, name: str, layout: ir.Type, kinds: list[Any]) -> ir.Function:
    """What a thread does: a function of a launch and the thread's number, of the same type for all kernels."""
    function = ir.Function(module, ir.FunctionType(_INT64, [_INT64, _INT64]), name)
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block())
    launch, thread = _Launch(builder, builder.inttoptr(function.args[0], layout.as_pointer())), function.args[1]
    kernel, arguments, begun, tasks, threads = (launch[field] for field in range(_TOTAL))
    values = cgutils.unpack_tuple(builder, arguments, len(kinds))
    zero, one = (_INT64(k) for k in range(2))
    total = cgutils.alloca_once_value(builder, zero)  # of this thread: one that all add to would go from core to core
    with cgutils.for_range_slice(builder, zero, threads, one, _INT64) as (k, _):
        share = builder.urem(builder.add(thread, k), threads)
        first, last = (builder.udiv(builder.mul(n, tasks), threads) for n in (share, builder.add(share, one)))
        count = builder.gep(begun, [builder.mul(share, _INT64(LINE))])
        take, work, done = (builder.append_basic_block(name) for name in ("take", "work", "done"))
        builder.branch(take)
        builder.position_at_end(take)
        task = builder.add(first, builder.atomic_rmw("add", count, one, "monotonic"))
        builder.cbranch(builder.icmp_signed("<", task, last), work, done)
        builder.position_at_end(work)
        given = [*values, task, builder.add(task, one)]
        status, result = _call(context, builder, kernel, [*kinds, types.int64, types.int64], given)
        with builder.if_else(status.is_error) as (failed, well):
            with failed:
                launch[_RAISED], launch[_CODE] = status.excinfoptr, status.code
            with well:
                builder.store(builder.add(builder.load(total), result), total)
        builder.branch(take)
        builder.position_at_end(done)
    builder.atomic_rmw("add", launch.at(_TOTAL), builder.load(total), "monotonic")
    builder.ret(zero)
    return function


@primitive
def _run(typingctx: Any, worker: Any, launch: Any, thread: Any) -> Any:
    """Call the worker at an address."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        kind = ir.FunctionType(_INT64, [_INT64, _INT64])
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])

    return types.int64(types.int64, types.int64, types.int64), codegen


@partial(jit, parallel=True)
def pool(worker: int, launch: int, threads: int) -> int:
    """A worker on every thread. It is called by address, so that this is compiled once for all kernels, in 0.12 s."""
    for thread in prange(threads):
        _run(worker, launch, thread)
    return 0


@primitive
def _launched(typingctx: Any, pool: Any, kernel: Any, arguments: Any, tasks: Any, begun: Any) -> Any:
    """The sum of what the tasks of the kernel at an address return, run by the `pool` at another; what one raises is raised."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        calls, intp, code = context.call_conv, args[0].type, ir.IntType(32)
        raised = calls.get_function_type(types.int64, []).args[1].pointee
        counts = context.make_array(sig.args[4])(context, builder, args[4])
        threads = cgutils.unpack_tuple(builder, counts.shape, 2)[0]
        given = [args[1], args[2], counts.data, args[3], threads, intp(0), code(0), ir.Constant(raised, None)]
        layout = ir.LiteralStructType([value.type for value in given])
        launch = _Launch(builder, cgutils.alloca_once(builder, layout))
        builder.store(cgutils.pack_struct(builder, given), launch.place)
        worker = _worker(context, builder.module, f"{builder.function.name}.worker", layout, list(sig.args[2]))
        places = [builder.ptrtoint(place, intp) for place in (worker, launch.place)]
        end, _ = _call(context, builder, args[0], [types.int64] * 3, [*places, threads])
        for status in (end, end._replace(code=launch[_CODE], excinfoptr=launch[_RAISED])):
            with cgutils.if_unlikely(builder, builder.icmp_signed("!=", status.code, code(0))):
                calls.return_status_propagate(builder, status)
        return launch[_TOTAL]

    return types.int64(types.int64, types.int64, arguments, types.int64, begun), codegen


@jit
def spread(pool: int, kernel: int, arguments: Any, tasks: int, begun: Any) -> Any:
    """Run the tasks of a kernel on as many threads as `begun`, zeros, has rows; returns the sum of what they return."""
    return _launched(pool, kernel, arguments, tasks, begun)
