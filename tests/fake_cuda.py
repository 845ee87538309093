"""A CUDA device without one: a library of the array API standard whose arrays claim to lie there, and a driver that emulates.

Its memory is NumPy's, surrounded by bytes that belong to nobody; kernels are compiled as for a real device and run in the
emulator, which knows all living arrays and lets a kernel touch nothing else.
"""

import functools
import weakref

import numpy as np

from normkit._cuda.compile import text_of
from normkit._cuda.launch import _explained
from tests.capsules import Producer
from tests.emulator import Buffer, Kernel, device_array

CC = (9, 0)
_memories = weakref.WeakValueDictionary()  # address -> memory of a living array
_producers = []


class Memory:
    """One allocation."""

    def __init__(self, shape, dtype, offset=0):
        self.array = device_array(shape, dtype, offset)
        if self.array.size:
            self.array.reshape(-1).view(np.uint8)[...] = 0xFF
            _memories[self.array.ctypes.data] = self


class Array:
    """An array on the device. Indexing, arithmetic and methods are those of the standard, by NumPy."""

    def __init__(self, array, memory, device=0):
        self.np, self.memory, self.index = array, memory, device

    shape = property(lambda self: self.np.shape)
    dtype = property(lambda self: self.np.dtype)
    ndim = property(lambda self: self.np.ndim)
    device = property(lambda self: f"cuda:{self.index}")

    def __array_namespace__(self, api_version=None):
        return NAMESPACE

    def __dlpack_device__(self):
        return (2, self.index)

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        if dl_device is not None and tuple(dl_device) == (1, 0):
            return np.array(self.np).__dlpack__(max_version=(1, 0))
        code = 4 if self.np.dtype.name == "bfloat16" else None
        raw = self.np if code is None else self.np.view(np.uint16)
        producer = Producer(raw, device=(2, self.index), code=code)
        _producers[:] = [kept for kept in _producers if not kept.deleted] + [producer]  # each until its capsule is deleted
        return producer.__dlpack__(max_version=max_version)

    def __array__(self, *args, **kwargs):
        raise TypeError("this array lies on a device; NumPy cannot read it")

    def __len__(self):
        return len(self.np)

    def __bool__(self):
        return bool(self.np)

    def __float__(self):
        return float(self.np)

    def __getitem__(self, key):
        return Array(self.np[key], self.memory, self.index)

    def __setitem__(self, key, value):
        self.np[key] = bare(value)


def bare(value):
    return value.np if isinstance(value, Array) else value


def put(array, offset=0, device=0):
    """A NumPy array on the device, in the same memory layout."""
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    memory = Memory(tuple(array.shape[axis] for axis in order), array.dtype, offset)
    memory.array[...] = array.transpose(order)
    return Array(memory.array.transpose(np.argsort(order)), memory, device)


def fresh(array, device=0):
    return put(np.asarray(array), device=device)


def _operator(name, reflected=False):
    def compute(self, *others):
        return fresh(getattr(self.np, name)(*map(bare, others)), self.index)

    return compute


for _name in ("add", "sub", "mul", "truediv", "pow", "radd", "rsub", "rmul", "rtruediv", "eq", "ne", "lt", "le", "gt", "ge",
              "and", "or", "neg"):  # fmt: skip
    setattr(Array, f"__{_name}__", _operator(f"__{_name}__"))
for _name in ("iadd", "isub", "imul", "itruediv"):

    def _in_place(self, other, name=_name):
        getattr(self.np, f"__{name}__")(bare(other))
        return self

    setattr(Array, f"__{_name}__", _in_place)
for _name in ("min", "max", "any", "all"):

    def _reduction(self, name=_name):
        return fresh(getattr(self.np, name)(), self.index)

    setattr(Array, _name, _reduction)
Array.__hash__ = None


class _Namespace:
    """The functions of the standard that are used."""

    float64, float32, float16 = np.float64, np.float32, np.float16

    def __init__(self):
        import ml_dtypes

        self.bfloat16 = np.dtype(ml_dtypes.bfloat16)

    def empty(self, shape, *, dtype, device=None):
        memory = Memory(shape, dtype)
        return Array(memory.array, memory, int(str(device or "cuda:0")[5:]))

    def asarray(self, values, device=None):
        return fresh(values, int(str(device or "cuda:0")[5:]))

    def permute_dims(self, x, axes):
        return Array(x.np.transpose(axes), x.memory, x.index)

    def reshape(self, x, shape):
        view = x.np.reshape(shape)
        return Array(view, x.memory, x.index) if np.shares_memory(view, x.np) else fresh(view, x.index)

    def broadcast_to(self, x, shape):
        return Array(np.broadcast_to(x.np, shape), x.memory, x.index)

    def __getattr__(self, name):
        def function(*args, **kwargs):
            first = args[0][0] if isinstance(args[0], list) else next(a for a in args if isinstance(a, Array))
            bared = [[bare(a) for a in arg] if isinstance(arg, list) else bare(arg) for arg in args]
            return fresh(getattr(np, name)(*bared, **kwargs), first.index)

        return function


NAMESPACE = _Namespace()


@functools.cache
def emulated(spec):
    return Kernel(text_of(spec, CC))


class Driver:
    """Runs kernels in the emulator; notes what was launched."""

    def __init__(self, order=0, fail=None):
        self.order, self.fail, self.launches = order, fail, []

    def demand(self, device):
        pass

    def launch(self, spec, grid, device, stream, arguments):
        if self.fail is not None:
            raise _explained(RuntimeError(self.fail), spec, device)
        buffers = [Buffer(memory.array, "scratch") for memory in list(_memories.values())]
        traffic = emulated(spec)(grid, spec.block, arguments, buffers, order=self.order)
        moved = {b.array.ctypes.data: (r, w) for b, r, w in zip(buffers, traffic.read, traffic.written, strict=True)}
        self.launches.append((spec, grid, device, stream, arguments, moved))
