"""What a small call and an import cost."""

from __future__ import annotations

import numpy as np

import normkit as nk


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
