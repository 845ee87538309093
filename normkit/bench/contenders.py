"""Who computes the cases: each in a process of its own, since two pools of threads in one process spoil each other's times.

``python -m normkit.bench.contenders NAME DIRECTION DTYPE ROUNDS SHRINK`` prints a line when it is ready, then for each line of
JSON that it is given, ``[case, layout]``, one with the shape and the milliseconds of some calls: a turn of this contender.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import normkit as nk

from .cases import CASES, Case, copy, make, plain, triad

Call = Callable[[], Any]
LEAST = 0.03  # of a case of 0.2 ms, 9 rounds lay between 0.17 and 0.31


def turn(call: Call, rounds: int) -> list[float]:
    """Milliseconds of calls, after one that is not counted: of `rounds` calls, or more until they took LEAST seconds."""
    call()
    times: list[float] = []
    while len(times) < rounds or sum(times) < LEAST:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return [1e3 * spent for spent in times]


def _normkit(case: Case, x: np.ndarray, backward: bool) -> Call:
    if not backward:
        out = np.full_like(x, 1, order="K")
        return lambda: case.forward(x, out=out)
    dy, pullback = np.full_like(x, 0.5), case.pullback(x)
    return lambda: pullback(dy)


def _memory(_: Case, x: np.ndarray, backward: bool) -> Call:
    """A copy of the same bytes, or a triad of them into new memory: what memory allows."""
    first, second = (np.full(x.size, k, f"u{x.itemsize}") for k in (1, 2))
    if backward:
        return lambda: triad(first, second, np.empty_like(first))
    return lambda: copy(first, second)


def _numpy(case: Case, x: np.ndarray, backward: bool) -> Call | None:
    axes = case.plain
    return None if axes is None or backward else lambda: plain(x, axes)


def _torch(case: Case, x: np.ndarray, backward: bool) -> Call | None:
    import torch

    if case.peers is None:
        return None
    norm = case.peers.torch
    tensor = torch.from_numpy(x).requires_grad_(backward)
    weights = [torch.ones(x.shape[axis], dtype=tensor.dtype, requires_grad=True) for axis in case.affine]
    pair = [*weights, torch.zeros_like(weights[0], requires_grad=True)] if backward else [None, None]
    if not backward:
        return torch.no_grad()(lambda: norm(torch.nn.functional, tensor, *pair))
    y = norm(torch.nn.functional, tensor, *pair)
    dy = torch.full_like(y, 0.5)
    inputs = [part for part in (tensor, *pair) if part.requires_grad]
    return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True, allow_unused=True)


def _jax(case: Case, x: np.ndarray, backward: bool) -> Call | None:
    import jax
    from jax import numpy as jnp

    axes = case.plain
    if axes is None or backward:
        return None

    def norm(x: Any) -> Any:
        return (x - x.mean(axes, keepdims=True)) * jax.lax.rsqrt(x.var(axes, keepdims=True) + 1e-5)

    array, compiled = jnp.asarray(x), jax.jit(norm)
    return lambda: compiled(array).block_until_ready()


def _onnx_runtime(case: Case, x: np.ndarray, backward: bool) -> Call | None:
    from .onnx import operator

    peers = case.peers
    if peers is None or peers.onnx is None or backward or not x.flags.c_contiguous:  # it knows no strides
        return None
    weights = [np.full(x.shape[case.affine[0]], value, x.dtype) for value in (1, 0)]
    return operator(peers.onnx, peers.attributes, x, weights[: 1 if case.norm is nk.rms_norm else 2])


CONTENDERS: dict[str, Callable[[Case, np.ndarray, bool], Call | None]] = {
    "memory": _memory,
    "normkit": _normkit,
    "NumPy": _numpy,
    "PyTorch": _torch,
    "ONNX Runtime": _onnx_runtime,
    "JAX": _jax,
}
NEEDS = {"PyTorch": ("torch",), "JAX": ("jax",), "ONNX Runtime": ("onnx", "onnxruntime")}  # packages that are not always there


def main() -> None:
    """Time one contender."""
    name, direction, dtype, rounds, shrink = sys.argv[1:]
    for package in NEEDS.get(name, ()):
        importlib.import_module(package)
    print(json.dumps("ready"), flush=True)
    held: tuple[Any, ...] = ()
    for line in sys.stdin:
        case, layout = json.loads(line)
        if held[:2] != (case, layout):
            held = ()  # the memory of the last case
            x = make(CASES[case], layout, dtype, int(shrink))
            held = case, layout, x.shape, CONTENDERS[name](CASES[case], x, direction == "backward")
        *_, shape, call = held
        print(json.dumps([shape, None if call is None else turn(call, int(rounds))]), flush=True)


if __name__ == "__main__":
    main()
