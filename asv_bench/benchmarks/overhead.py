"""What a small call and an import cost."""

from __future__ import annotations

import numpy as np

import normkit as nk
from normkit.bench.cases import LAYOUTS, Case, make


class Small:
    """A call whose work is nothing."""

    params = (["instance", "layer", "group", "batch"], [(4, 16, 64), (2, 4, 4)])
    param_names = ("norm", "shape")

    def setup(self, norm, shape):
        self.x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        weight = np.ones(shape[2] if norm == "layer" else shape[1], np.float32)
        self.norm, groups = getattr(nk, f"{norm}_norm"), (2,) * (norm == "group")
        self.alone, self.weighted = (self.x, *groups), (self.x, *groups, weight, 0 * weight)
        self.pull = nk.vjp(self.norm, *self.weighted)[1]
        for call in (self.time_call, self.time_vjp, self.time_pullback):
            call(norm, shape)

    def time_call(self, norm, shape):
        self.norm(*self.alone)

    def time_vjp(self, norm, shape):
        nk.vjp(self.norm, *self.weighted)

    def time_pullback(self, norm, shape):
        return self.pull(self.x)


class SmallTensors:
    """The same for tensors of PyTorch: a norm, and a training step of one."""

    params = (["layer", "group"],)
    param_names = ("norm",)

    def setup(self, norm):
        try:
            import torch

            from normkit import torch as nt
        except ImportError as error:
            raise NotImplementedError("PyTorch is not installed") from error  # asv skips it
        self.x = torch.ones(4, 16, 64) * torch.arange(64.0)
        self.weight = torch.ones(64 if norm == "layer" else 16, requires_grad=True)
        self.norm = nt.layer_norm if norm == "layer" else lambda x, weight=None: nt.group_norm(x, 2, weight)
        self.time_step(norm)

    def time_call(self, norm):
        self.norm(self.x)

    def time_step(self, norm):
        self.weight.grad = None
        self.norm(self.x, self.weight).backward(self.x)


def timeraw_import():
    """A fresh interpreter that imports normkit."""
    return "import normkit"


class FirstCall:
    """A fresh interpreter up to its first result: with an empty cache, and with kernels on disk."""

    params = ("instance_norm", "layer_norm")
    param_names = ("norm",)
    timeout = 120

    def timeraw_cold(self, norm):
        return f"""
        import os, tempfile
        os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp()
        import numpy, normkit
        normkit.{norm}(numpy.ones((4, 16, 64), "float32"))
        """

    timeraw_cold.number, timeraw_cold.repeat = 1, 3

    def timeraw_from_disk(self, norm):
        return f"""
        import numpy, normkit
        normkit.{norm}(numpy.ones((4, 16, 64), "float32"))
        """

    timeraw_from_disk.number, timeraw_from_disk.repeat = 1, 5


class Memory:
    """The most that a process holds while it normalizes 32 MiB in place: beside the array, nothing that grows with it."""

    params = (["instance", "layer", "batch"], LAYOUTS)
    param_names = ("norm", "layout")

    def setup(self, norm, layout):
        self.x = make(Case((8, 16, 256, 256), nk.instance_norm, None, ""), layout)
        self.call = {"instance": nk.instance_norm, "layer": nk.layer_norm, "batch": nk.batch_norm}[norm]
        self.call(self.x[:1])

    def peakmem_in_place(self, norm, layout):
        self.call(self.x, out=self.x)
