"""The case table: what is timed, in which layout, and why; and the references beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numba
import numpy as np

import normkit as nk


@dataclass(frozen=True)
class Peers:
    """The same norm elsewhere."""

    torch: Callable[..., Any]  # of torch.nn.functional: (functional, x, weight, bias)
    onnx: str | None = None  # an operator of ONNX Runtime
    attributes: dict[str, Any] = field(default_factory=dict)  # of that


@dataclass(frozen=True)
class Case:
    """One row: x has shape (N, C, ...); `plain` is the axes of the same sets in NumPy (None: not one expression)."""

    shape: tuple[int, ...]
    norm: Callable[..., Any]
    plain: tuple[int, ...] | None
    why: str
    args: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    affine: tuple[int, ...] = (1,)  # the axes of x that weight and bias span
    peers: Peers | None = None

    def forward(self, x: np.ndarray, **more: Any) -> Any:
        """The norm of x."""
        return self.norm(x, *self.args, **self.options, **more)

    def pullback(self, x: np.ndarray) -> Callable[[np.ndarray], Any]:
        """What pulls gradients back through the norm, with weight and bias."""
        shape = tuple(x.shape[axis] for axis in self.affine)
        if self.norm is nk.normalize:
            shape += (1,) * (x.ndim - 2)
        pair = (np.ones(shape, np.float32), np.zeros(shape, np.float32))
        return nk.vjp(self.norm, x, *self.args, *pair[: 1 if self.norm is nk.rms_norm else 2], **self.options)[1]


def _instance(functional: Any, x: Any, weight: Any, bias: Any) -> Any:
    return functional.instance_norm(x, None, None, weight, bias)


def _group(functional: Any, x: Any, weight: Any, bias: Any) -> Any:
    return functional.group_norm(x, 32, weight, bias)


def _batch(functional: Any, x: Any, weight: Any, bias: Any) -> Any:
    return functional.batch_norm(x, None, None, weight, bias, training=True)


def _layer(functional: Any, x: Any, weight: Any, bias: Any) -> Any:
    return functional.layer_norm(x, x.shape[-1:], weight, bias)


def _layer_over_channels(functional: Any, x: Any, weight: Any, bias: Any) -> Any:
    return functional.layer_norm(x.movedim(1, -1), x.shape[1:2], weight, bias).movedim(-1, 1)


def _rms(functional: Any, x: Any, weight: Any, bias: Any) -> Any:  # noqa: ARG001 - it has no bias
    return functional.rms_norm(x, x.shape[-1:], weight, 1e-6)


_INSTANCE = Peers(_instance, "InstanceNormalization")
_GROUP = Peers(_group, "GroupNormalization", {"num_groups": 32})
_BATCH = Peers(_batch)  # ONNX Runtime has it for inference alone
_LAYER = Peers(_layer, "LayerNormalization", {"axis": -1})
_CHANNELS = Peers(_layer_over_channels)
_RMS = Peers(_rms, "RMSNormalization", {"axis": -1, "epsilon": 1e-6})
CASES = {
    "style transfer, instance": Case((8, 64, 256, 256), nk.instance_norm, (2, 3), "sets of 256 KiB", peers=_INSTANCE),
    "style transfer, group": Case((8, 64, 256, 256), nk.group_norm, None, "diffusion's 32 groups", (32,), peers=_GROUP),
    "style transfer, batch": Case((8, 64, 256, 256), nk.batch_norm, (0, 2, 3), "few sets in many pieces", peers=_BATCH),
    "ResNet stage 1, batch": Case((32, 64, 112, 112), nk.batch_norm, (0, 2, 3), "the largest of ResNet-50", peers=_BATCH),
    "ResNet stage 4, group": Case((32, 512, 7, 7), nk.group_norm, None, "small sets of 784", (32,), peers=_GROUP),
    "ConvNeXt, layer over channels": Case((16, 96, 56, 56), nk.layer_norm, (1,), "NC*", options={"axis": 1}, peers=_CHANNELS),
    "3-D volume, instance": Case((1, 32, 64, 128, 128), nk.instance_norm, (2, 3, 4), "sets of a million", peers=_INSTANCE),
    "video, instance per frame": Case((2, 32, 16, 112, 112), nk.normalize, (3, 4), "by pattern", ("n c t [h w]",)),
    "ViT tokens, layer": Case((64, 197, 768), nk.layer_norm, (2,), "many small contiguous sets", affine=(2,), peers=_LAYER),
    "LLM tokens, RMS": Case((2048, 4096), nk.rms_norm, None, "one pass over rows of 16 KiB", peers=_RMS),
    "audio, time only": Case((16, 80, 3000), nk.normalize, (2,), "log-mel spectrograms", ("n f [t]",)),
    "one 4K image, instance": Case((1, 3, 2160, 3840), nk.instance_norm, (2, 3), "three huge sets", peers=_INSTANCE),
}  # fmt: skip
LAYOUTS = ("NC*", "N*C")
DTYPES = ("float32", "float16")


def make(case: Case, layout: str, dtype: str = "float32", shrink: int = 1, seed: int = 0) -> np.ndarray:
    """Data of a case, its large axes divided by `shrink`."""
    small = tuple(max(32, n // shrink) if n > 100 else n for n in case.shape)
    x = (np.random.default_rng(seed).standard_normal(small, np.float32) * 2 + 3).astype(dtype)
    if layout == "NC*":
        return x
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


def plain(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """The NumPy expression."""
    result: np.ndarray = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + np.float32(1e-5))
    return result


@numba.njit(parallel=True)  # type: ignore[untyped-decorator]
def copy(x: np.ndarray, y: np.ndarray) -> None:
    """Copy x to y, both flat, on all threads: what memory allows."""
    pieces = 64
    step = -(-x.size // pieces)
    for k in numba.prange(pieces):
        y[k * step : (k + 1) * step] = x[k * step : (k + 1) * step]


@numba.njit(parallel=True)  # type: ignore[untyped-decorator]
def triad(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> None:
    """Set z to x + y, all flat, on all threads: two reads and one write, as a gradient."""
    pieces = 64
    step = -(-x.size // pieces)
    for k in numba.prange(pieces):
        a, b, c = x[k * step : (k + 1) * step], y[k * step : (k + 1) * step], z[k * step : (k + 1) * step]
        for i in range(a.size):
            c[i] = a[i] + b[i]
