"""What the engine asks of an array library besides kernels: new memory, and arithmetic on statistics, which are small.

Statistics are the library's own arrays, NumPy's on the CPU. Large arrays on a device reach the engine as `DeviceArray`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from .. import _dlpack
from .._dtypes import Array, DType, bfloat16, name_of


@dataclass(frozen=True, slots=True)
class DeviceArray:
    """An array in the memory of a CUDA device: what kernels need of it, and the library's own array, which keeps it alive."""

    native: Any
    library: Library
    pointer: int  # of the first element
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in bytes
    dtype: DType
    device: int
    stream: int  # that the library works on now
    writeable: bool = True
    keep: Any = None  # what else must live as long

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def reshape(self, shape: Any) -> DeviceArray:
        """The same memory with axes of length 1 added or left out, or copied."""
        array: DeviceArray = self.library.view(self.library.reshape(self.native, tuple(shape)))
        return array

    def footprint(self) -> Array:
        """An array of NumPy at the same addresses, to compare them. Its memory cannot be read: it is the device's."""
        interface = {"shape": self.shape, "strides": self.strides, "typestr": f"|V{self.itemsize}", "version": 3}
        return np.asarray(_Claim({**interface, "data": (self.pointer, True)}))


class _Claim:
    def __init__(self, interface: dict[str, Any]) -> None:
        self.__array_interface__ = interface


def native(array: Any) -> Any:
    """The library's own array."""
    return array.native if isinstance(array, DeviceArray) else array


class Library:
    """NumPy, for the CPU; the base of the others."""

    def view(self, array: Any) -> Any:
        """An array of the library as kernels take it."""
        return array

    def empty(self, shape: tuple[int, ...], dtype: DType) -> Any:
        return np.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...]) -> Any:
        return np.zeros(shape)

    def hold(self, values: Any) -> Any:
        """Statistics, wherever they are, as float64 of this library."""
        if not isinstance(values, (np.ndarray, np.generic, float, int)) and library_of(values) is not NUMPY:
            raise ValueError(f"moments lie on {library_of(values)}, and x on cpu; all of a call must be on one device")
        return np.asarray(values, np.float64)

    def sqrt(self, values: Any) -> Any:
        return np.sqrt(values)

    def scaled(self, own: Any, divisor: float, eps: float) -> Any:
        """(mean, its low part, M2) with 1 / sqrt(M2 / divisor + eps) in place of M2; 0 where that is 1 / 0."""
        rows = own.copy()
        spread = rows[2]
        if divisor != 1:
            spread *= 1.0 / divisor  # as the kernels: the same bits
        spread += eps
        np.sqrt(spread, spread)
        if eps > 0:  # looking for zeros takes a microsecond
            np.reciprocal(spread, spread)
        else:
            np.reciprocal(spread, spread, where=spread != 0)
        return rows

    def divide(self, a: Any, b: Any) -> Any:
        """A / b, 0 where b is not positive."""
        shape = np.broadcast_shapes(np.shape(a), np.shape(b))
        return np.divide(a, b, out=np.zeros(shape), where=np.greater(b, 0))

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        return np.where(condition, a, b)

    def from_host(self, values: Array) -> Any:
        return values

    def stack(self, values: list[Any]) -> Any:
        return np.stack(values)

    def to_host(self, values: Any) -> Array:
        return np.asarray(values)

    def permute(self, values: Any, axes: tuple[int, ...]) -> Any:
        return values.transpose(axes)

    def reshape(self, values: Any, shape: tuple[int, ...]) -> Any:
        return values.reshape(shape)

    def broadcast_to(self, values: Any, shape: Any) -> Any:
        return np.broadcast_to(values, shape)

    def sum(self, values: Any, axes: tuple[int, ...]) -> Any:
        """Over axes, kept as length 1."""
        return np.add.reduce(values, axis=axes, keepdims=True)

    def cast(self, values: Any, dtype: DType) -> Any:
        if values.dtype == dtype:
            return values
        with np.errstate(over="ignore"):  # a gradient beyond float16 is infinite, as dx would be
            return values.astype(dtype)

    def rows(self, values: Any) -> Any:
        """Contiguous, for kernels."""
        return np.ascontiguousarray(values)


NUMPY = Library()


@lru_cache(maxsize=4096)
def memory_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes by falling stride, those of length 1 last; and the way back."""
    order = sorted(range(len(shape)), key=lambda axis: -abs(strides[axis]) if shape[axis] > 1 else 0)
    return tuple(order), tuple(sorted(range(len(order)), key=order.__getitem__))


@dataclass(frozen=True)
class _OnDevice(Library):
    """A library on one device: what its functions are called, where they are not as the array API standard has them."""

    namespace: Any
    device: Any

    def __str__(self) -> str:
        return str(self.device)

    def dtype(self, dtype: DType) -> Any:
        return getattr(self.namespace, name_of(np.dtype(dtype)))

    def empty(self, shape: tuple[int, ...], dtype: DType) -> Any:
        return self.namespace.empty(shape, dtype=self.dtype(dtype), device=self.device)

    def from_host(self, values: Array) -> Any:
        return self.namespace.asarray(np.array(values), device=self.device)

    def to_host(self, values: Any) -> Array:
        return np.from_dlpack(values, device="cpu")

    def new_like(self, like: DeviceArray, dtype: DType) -> DeviceArray:
        """New memory in the memory order of an array: its axes by falling stride."""
        order, back = memory_order(like.shape, like.strides)
        made = self.empty(tuple(like.shape[axis] for axis in order), dtype)
        array: DeviceArray = self.view(self.permute(made, back))
        return array

    def zeros(self, shape: tuple[int, ...]) -> Any:
        values = self.empty(shape, np.dtype(np.float64))
        values[...] = 0
        return values

    def hold(self, values: Any) -> Any:
        if isinstance(values, (np.ndarray, np.generic, float, int)):
            return self.from_host(np.asarray(values, np.float64))
        if library_of(values) != self:
            raise ValueError(f"moments lie on {library_of(values)}, and x on {self}; all of a call must be on one device")
        return self.cast(values, np.dtype(np.float64))

    def sqrt(self, values: Any) -> Any:
        return self.namespace.sqrt(values)

    def scaled(self, own: Any, divisor: float, eps: float) -> Any:
        rows = self.cast(own, np.dtype(np.float64)) + 0.0
        spread = self.sqrt(own[2] * (1.0 / divisor) + eps)
        rows[2] = self.where(spread == 0, spread * 0.0, 1.0 / self.where(spread == 0, spread + 1.0, spread))
        return rows

    def divide(self, a: Any, b: Any) -> Any:
        if not hasattr(b, "dtype") or isinstance(b, np.ndarray):  # one number for all sets
            return a / float(b) if float(b) > 0 else a * 0.0
        return self.where(b > 0, a / self.where(b > 0, b, b * 0.0 + 1.0), a * b * 0.0)

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        return self.namespace.where(condition, a, b)

    def stack(self, values: list[Any]) -> Any:
        return self.namespace.stack(values)

    def permute(self, values: Any, axes: tuple[int, ...]) -> Any:
        return self.namespace.permute_dims(values, axes)

    def reshape(self, values: Any, shape: tuple[int, ...]) -> Any:
        return self.namespace.reshape(values, shape)

    def broadcast_to(self, values: Any, shape: Any) -> Any:
        return self.namespace.broadcast_to(values, tuple(shape))

    def sum(self, values: Any, axes: tuple[int, ...]) -> Any:
        return self.namespace.sum(values, axis=axes, keepdims=True)

    def cast(self, values: Any, dtype: DType) -> Any:
        return self.namespace.astype(values, self.dtype(dtype))

    def rows(self, values: Any) -> Any:
        made = self.empty(tuple(values.shape), np.dtype(np.float64))
        made[...] = values
        return made


class Standard(_OnDevice):
    """A library of the array API standard that exports DLPack. Its stream is not known: the default one waits for all."""

    _STREAM = 1

    def view(self, array: Any) -> DeviceArray:
        found = _dlpack.read_on_device(array, self._STREAM)
        return DeviceArray(
            array,
            self,
            found.pointer,
            found.shape,
            found.strides,
            found.dtype,
            found.device,
            self._STREAM,
            found.writeable,
            found,
        )


class Torch(_OnDevice):
    """PyTorch."""

    def view(self, array: Any) -> DeviceArray:
        dtype = _numpy_dtype(str(array.dtype).partition(".")[2])
        size, index = dtype.itemsize, array.device.index
        strides = tuple(step * size for step in array.stride())
        stream = self.namespace.cuda.current_stream(index).cuda_stream
        return DeviceArray(array, self, array.data_ptr(), tuple(array.shape), strides, dtype, index, stream)

    def from_host(self, values: Array) -> Any:
        return self.namespace.from_numpy(np.array(values)).to(self.device)

    def to_host(self, values: Any) -> Array:
        return values.cpu().numpy()  # type: ignore[no-any-return]

    def permute(self, values: Any, axes: tuple[int, ...]) -> Any:
        return values.permute(axes)

    def sum(self, values: Any, axes: tuple[int, ...]) -> Any:
        return values.sum(dim=axes, keepdim=True) if axes else values

    def cast(self, values: Any, dtype: DType) -> Any:
        return values.to(self.dtype(dtype))

    def rows(self, values: Any) -> Any:
        return values.contiguous()


class CuPy(_OnDevice):
    """CuPy, on the device with this number."""

    def __str__(self) -> str:
        return f"cuda:{self.device}"

    def dtype(self, dtype: DType) -> Any:
        return dtype

    def view(self, array: Any) -> DeviceArray:
        stream = self.namespace.cuda.get_current_stream().ptr
        pointer = array.data.ptr
        return DeviceArray(array, self, pointer, array.shape, array.strides, array.dtype, self.device, stream)

    def empty(self, shape: tuple[int, ...], dtype: DType) -> Any:
        with self.namespace.cuda.Device(self.device):
            return self.namespace.empty(shape, dtype)

    def from_host(self, values: Array) -> Any:
        with self.namespace.cuda.Device(self.device):
            return self.namespace.asarray(values)

    def to_host(self, values: Any) -> Array:
        return self.namespace.asnumpy(values)  # type: ignore[no-any-return]

    def permute(self, values: Any, axes: tuple[int, ...]) -> Any:
        return values.transpose(axes)

    def cast(self, values: Any, dtype: DType) -> Any:
        return values.astype(dtype, copy=False)

    def rows(self, values: Any) -> Any:
        return self.namespace.ascontiguousarray(values)


@lru_cache(maxsize=64)
def _numpy_dtype(name: str) -> DType:
    return bfloat16() if name == "bfloat16" else np.dtype(name)


@lru_cache(maxsize=64)
def torch_on(device: Any) -> Torch:
    """PyTorch on a device."""
    return Torch(sys.modules["torch"], device)


@lru_cache(maxsize=64)
def cupy_on(device: int) -> CuPy:
    """CuPy on a device."""
    return CuPy(sys.modules["cupy"], device)


def library_of(array: Any) -> Library:
    """The library that an array belongs to, NumPy for lists and numbers."""
    if isinstance(array, (np.ndarray, np.generic)):
        return NUMPY
    if isinstance(array, DeviceArray):
        return array.library
    kind = type(array).__module__.partition(".")[0]
    if kind == "torch" and array.is_cuda:
        return torch_on(array.device)
    if kind == "cupy":
        return cupy_on(array.device.id)
    if not (hasattr(array, "__dlpack_device__") and hasattr(array, "__array_namespace__")):
        return NUMPY
    on_cuda = int(array.__dlpack_device__()[0]) in (_dlpack.CUDA, _dlpack.CUDA_MANAGED)
    return Standard(array.__array_namespace__(), array.device) if on_cuda else NUMPY
