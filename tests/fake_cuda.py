"""A CUDA device without one: a library of the array API standard whose arrays claim to lie there, and a driver that emulates.

Its memory is NumPy's, surrounded by bytes that belong to nobody; kernels are compiled as for a real device and run in the
emulator, which knows all living arrays and lets a kernel touch nothing else.
"""

import ctypes
import functools
import weakref
from dataclasses import dataclass

import numpy as np

from normkit._cuda.compile import ADDRESSES, text_of
from normkit._cuda.launch import _explained
from normkit._cuda.spec import SETS, SIZE, Spec
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


def stretch(array):
    """The memory that an array covers, as one line of elements, and where its first element is, in bytes."""
    if array.size == 0:
        return np.empty(0, array.dtype), 0
    low, high = np.lib.array_utils.byte_bounds(array)
    whole = (ctypes.c_uint8 * (high - low)).from_address(low)
    start = array.__array_interface__["data"][0] - low
    return np.frombuffer(whole, np.uint8).copy().view(array.dtype), start


def put(array, offset=0, device=0):
    """A NumPy array on the device, with the same strides."""
    line, start = stretch(array)
    memory = Memory(line.shape, array.dtype, offset)
    memory.array[:] = line
    size = array.itemsize
    moved = np.lib.stride_tricks.as_strided(memory.array[start // size :], array.shape, array.strides)
    return Array(moved, memory, device)


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


@dataclass(frozen=True)
class Launch:
    """What was asked of the driver, and the bytes read and written at each of the seven addresses."""

    spec: Spec
    grid: int
    device: int
    stream: int
    arguments: tuple
    read: tuple
    written: tuple


def _memory_at(address):
    for start, memory in list(_memories.items()):
        if start <= address < start + memory.array.nbytes:
            return memory
    raise AssertionError(f"no array lives at {address:#x}")


# Kernels that write y; the others leave it alone.
RESULTS = ("forward_held", "forward_looped", "apply", "backward_held", "backward_looped", "apply_gradient")


class Driver:
    """Runs kernels in the emulator, each on the memory that it is given and no other; notes what was launched."""

    def __init__(self, order=0, fail=None):
        self.order, self.fail, self.launches = order, fail, []

    def demand(self, device):
        pass

    @property
    def kernels(self):
        return [launch.spec.kernel for launch in self.launches]

    def launch(self, spec, grid, device, stream, arguments):
        if self.fail is not None:
            raise _explained(RuntimeError(self.fail), spec, device)
        addresses = arguments[:ADDRESSES]
        found = [_memory_at(address) if address else None for address in addresses]
        roles = {}
        result = "output" if spec.kernel in RESULTS else "input"
        for memory, role in zip(found, ("input", result, "input", "input", "scratch", "scratch", "scratch"), strict=True):
            if memory is not None:
                roles[id(memory)] = (memory, role if id(memory) not in roles else "scratch")
        if found[1] is not None and result == "output" and not self._whole(found[1], arguments):
            roles[id(found[1])] = (found[1], "scratch")
        buffers = [Buffer(memory.array, role) for memory, role in roles.values()]
        traffic = emulated(spec)(grid, spec.block, arguments, buffers, order=self.order, races="all")
        moved = dict(zip(roles, zip(traffic.read, traffic.written, strict=True), strict=True))
        pairs = [moved[id(memory)] if memory is not None else (0, 0) for memory in found]
        read, written = (tuple(pair[k] for pair in pairs) for k in range(2))
        self.launches.append(Launch(spec, grid, device, stream, arguments, read, written))

    @staticmethod
    def _whole(memory, arguments):
        """Whether the result fills its memory (no view of it)."""
        sets, size = (arguments[ADDRESSES + k] for k in (SETS, SIZE))
        return memory.array.size == sets * size and memory.array.ctypes.data == arguments[1]
