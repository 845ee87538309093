"""Shapes and gradients off the table that a kernel made for the table may be slow at; each was, once."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import as_strided

import normkit as nk
from normkit.bench.cases import CASES, Case, make, triad

CORNERS = {
    "tiny sets": (Case((16_000, 32, 4), nk.layer_norm, None, "20 ns each", affine=(2,)), "NC*"),
    "one long set": (Case((1, 1, 1_000_000), nk.layer_norm, None, "as many weights as elements", affine=(2,)), "NC*"),
    "few long sets": (Case((4, 1, 100_000), nk.layer_norm, None, "many weights for few sets", affine=(2,)), "NC*"),
    "batch of one": (Case((1, 300_000, 1), nk.batch_norm, None, "sets of one element"), "NC*"),
    "one tile": (Case((4096, 256, 1), nk.batch_norm, None, "columns side by side, and no other work"), "NC*"),
    "groups of small maps": (Case((64, 512, 4, 4), nk.group_norm, None, "runs of 16", (32,)), "NC*"),
    "tokens of one image": (Case((1, 197, 768), nk.layer_norm, None, "a weight of 768 for 197 sets", affine=(2,)), "NC*"),
    "groups of 64 channels": (Case((16, 2048, 7, 7), nk.group_norm, None, "256 bytes of every 8 KiB", (32,)), "N*C"),
    "small maps": (Case((64, 256, 7, 7), nk.instance_norm, None, "sets of 49 side by side"), "N*C"),
    "tiny maps of three channels": (Case((3966, 3, 11), nk.instance_norm, None, "three sets side by side"), "N*C"),
    "1024 channels": (Case((32, 1024, 14, 14), nk.batch_norm, None, "4 KiB side by side: shares of a row"), "N*C"),
    "512 channels": (Case((8, 512, 28, 28), nk.instance_norm, None, "shares of a row that outgrow a cache"), "N*C"),
    "one volume for eight channels": (Case((3, 8, 8, 13, 56), nk.batch_norm, None, "few sets, little work"), "NC*"),
}
DY = {  # that of a loss, of y.sum(), of y.sum over pixels, and of what computes channels last
    "its own": lambda dy: dy,
    "one number": lambda dy: np.broadcast_to(dy[:1, :1, :1], dy.shape),
    "one for the last axis": lambda dy: np.broadcast_to(dy[..., :1], dy.shape),
    "channels last": lambda dy: np.moveaxis(np.ascontiguousarray(np.moveaxis(dy, 1, -1)), -1, 1),
}


class Corners:
    """A norm, and its gradient by a dy of four forms, beside a triad."""

    params = (list(CORNERS), list(DY))
    param_names = ("corner", "dy")
    shrink = 1

    def setup(self, corner, dy):
        """Data, warm."""
        case, layout = CORNERS[corner]
        self.x = make(case, layout, shrink=self.shrink)
        self.norm, self.pullback = case.forward, case.pullback(self.x)
        self.dy = DY[dy](make(case, layout, shrink=self.shrink, seed=1))
        self.flat = [np.full(self.x.size, k, np.float32) for k in (1, 2)]
        for call in (self.time_norm, self.time_pullback, self.time_triad):
            call(corner, dy)

    def time_norm(self, corner, dy):
        return self.norm(self.x)

    def time_pullback(self, corner, dy):
        return self.pullback(self.dy)

    def time_triad(self, corner, dy):
        triad(*self.flat, np.empty_like(self.flat[0]))


PAGE = 4096  # bytes; processors compare addresses by their place in a page first
PLACED = {
    "group, NC*": (CASES["ResNet stage 4, group"], "NC*"),
    "group, N*C": (CASES["ResNet stage 4, group"], "N*C"),
    "periods": (Case((16, 64, 28, 28), nk.instance_norm, None, "a channel comes again every 256 bytes"), "N*C"),
    "short sets": (Case((4096, 1, 192), nk.layer_norm, None, "four at a time"), "NC*"),
}


def lay(like, start):
    """A copy of an array without gaps that starts so many bytes into a page."""
    memory = np.zeros(like.nbytes + 2 * PAGE, np.uint8)
    begin = (start - memory.ctypes.data) % PAGE
    copy = as_strided(memory[begin : begin + like.nbytes].view(like.dtype), like.shape, like.strides)
    copy[...] = like
    return copy


class Addresses:
    """A norm in cache whose result starts so many bytes behind x, but for whole pages, as neighbours on a heap do."""

    params = (list(PLACED), [0, 64, 256])
    param_names = ("norm", "behind")
    shrink = 1

    def setup(self, norm, behind):
        """Data, warm."""
        self.case, layout = PLACED[norm]
        x = make(self.case, layout, shrink=self.shrink)
        self.x, self.out = lay(x, 0), lay(np.full_like(x, 1), behind)
        self.time_norm(norm, behind)

    def time_norm(self, norm, behind):
        return self.case.forward(self.x, out=self.out)


OTHER = {"NC*": "N*C", "N*C": "NC*"}
TURNED = {  # what networks and pictures are turned for: other libraries norm, and then copy
    "instance": (CASES["style transfer, instance"], "float32"),
    "small maps": (CASES["ResNet stage 4, group"], "float32"),
    "channels": (CASES["ConvNeXt, layer over channels"], "float32"),
    "pictures": (Case((8, 3, 512, 512), nk.instance_norm, None, "three bytes of a pixel"), "uint8"),
}


class Orders:
    """A norm whose result lies in another order than x, beside NumPy's copy to that order."""

    params = (list(TURNED), list(OTHER))
    param_names = ("norm", "layout")
    shrink = 1

    def setup(self, norm, layout):
        """Data, warm."""
        self.case, dtype = TURNED[norm]
        self.x = make(self.case, layout, dtype, shrink=self.shrink)
        self.out = np.full_like(make(self.case, OTHER[layout], shrink=self.shrink), 1)
        self.time_norm(norm, layout)

    def time_norm(self, norm, layout):
        return self.case.forward(self.x, out=self.out)

    def time_copy(self, norm, layout):
        np.copyto(self.out, self.x)


def _pictures(dtype="float32"):
    return np.moveaxis(make(Case((8, 3, 540, 960), nk.instance_norm, None, "pictures"), "N*C", dtype), 1, -1)


STEPPED = {  # an array with steps, and the axes of a set
    "BGR": (lambda: _pictures()[..., ::-1], (1, 2)),
    "BGR of whole pictures": (lambda: _pictures()[..., ::-1], (1, 2, 3)),
    "BGR, uint8": (lambda: _pictures("uint8")[..., ::-1], (1, 2)),
    "RGB of RGBA, uint8": (lambda: np.ascontiguousarray(_pictures("uint8")[..., [0, 1, 2, 2]])[..., :3], (1, 2)),
    "mirrored": (lambda: _pictures()[:, :, ::-1], (1, 2)),
    "mirrored planes": (lambda: np.ascontiguousarray(np.moveaxis(_pictures(), -1, 1))[..., ::-1], (2, 3)),
    "every second channel": (lambda: np.ones((8, 128, 128, 64), np.float32)[..., ::2], (1, 2)),
    "every second sample": (lambda: np.ones((16, 80, 3000), np.float32)[..., ::2], 2),
    "real parts": (lambda: np.ones((16, 80, 3000), np.complex64).real, 2),
}


class Steps:
    """A norm of an array with steps into one without, beside NumPy's copy."""

    params = (list(STEPPED),)
    param_names = ("array",)
    shrink = 1

    def setup(self, array):
        """Data, warm."""
        data, self.axes = STEPPED[array]
        self.x = data()[:: self.shrink]
        self.out = np.full_like(self.x, 1, dtype=np.float32)
        self.time_norm(array)

    def time_norm(self, array):
        return nk.normalize(self.x, self.axes, out=self.out)

    def time_copy(self, array):
        np.copyto(self.out, self.x)
