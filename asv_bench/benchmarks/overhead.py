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
        self.call = {
            "instance": nk.instance_norm,
            "layer": nk.layer_norm,
            "group": lambda x: nk.group_norm(x, 2),
            "batch": nk.batch_norm,
        }[norm]
        self.call(self.x)

    def time_call(self, norm, shape):  # noqa: ARG002 - asv passes every parameter
        self.call(self.x)


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

    def peakmem_in_place(self, norm, layout):  # noqa: ARG002 - asv passes every parameter
        self.call(self.x, out=self.x)
