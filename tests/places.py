"""Where the CUDA tests run: in the emulator, or, with NORMKIT_GPU=torch or cupy, on a device with arrays of that library."""

import os

import numpy as np

from normkit._cuda import launch
from tests import fake_cuda

LIBRARY = os.environ.get("NORMKIT_GPU", "")


class Recording(launch.Driver):
    """The real driver; notes what was launched. Bytes are counted by the emulator alone."""

    def __init__(self):
        self.launches, self.order = [], 0

    @property
    def kernels(self):
        return [found.spec.kernel for found in self.launches]

    def launch(self, spec, grid, device, stream, arguments):
        super().launch(spec, grid, device, stream, arguments)
        self.launches.append(fake_cuda.Launch(spec, grid, device, stream, arguments, (), ()))


def new_driver():
    """A driver for one test."""
    return Recording() if LIBRARY else fake_cuda.Driver(order=5)


def _on_torch(line, start, array):
    import torch

    half = array.dtype.name == "bfloat16"
    memory = torch.from_numpy(line.view(np.int16) if half else line).cuda()
    steps = [step // array.itemsize for step in array.strides]
    if any(step < 0 for step in steps):
        return None  # PyTorch has no negative strides
    found = torch.as_strided(memory, array.shape, steps, start // array.itemsize)
    return found.view(torch.bfloat16) if half else found


def _on_cupy(line, start, array):
    import cupy

    memory = cupy.asarray(line)
    return cupy.ndarray(array.shape, array.dtype, memory.data + start, array.strides)


def put(array, offset=0):
    """A NumPy array on the device, with the same strides; `offset` bytes past an aligned address."""
    if not LIBRARY:
        return fake_cuda.put(array, offset)
    line, start = fake_cuda.stretch(array)
    line = np.concatenate([np.zeros(offset // array.itemsize, array.dtype), line])
    found = (_on_torch if LIBRARY == "torch" else _on_cupy)(line, start + offset, array)
    return put(np.ascontiguousarray(array)) if found is None else found


def host(array):
    """An array of the device, read."""
    if isinstance(array, fake_cuda.Array):
        return array.np
    if LIBRARY == "cupy":
        return array.get()
    import torch

    if array.dtype == torch.bfloat16:
        import ml_dtypes

        return array.view(torch.int16).cpu().numpy().view(ml_dtypes.bfloat16)
    return array.cpu().numpy()
