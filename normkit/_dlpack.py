"""DLPack capsules as NumPy arrays, bfloat16 too, which NumPy does not take.

Everything that a capsule claims is checked before its memory is touched. The layout of the structures is that of dlpack.h,
versions 0.x (unversioned) and 1.x.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from math import prod
from typing import Any, NoReturn

import numpy as np

from ._dtypes import Array, DType, bfloat16

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
DEVICES = {
    CPU: "cpu",
    CUDA: "cuda",
    CUDA_HOST: "cpu (pinned)",
    4: "opencl",
    7: "vulkan",
    8: "metal",
    10: "rocm",
    CUDA_MANAGED: "cuda (managed)",
}
_READ_ONLY = 1
_MAX_NDIM = 64
_LIMIT = 1 << 63
_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


def _python_function(name: str, result: Any, *arguments: Any) -> Any:
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


_is_valid = _python_function("PyCapsule_IsValid", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
_pointer_of = _python_function("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
_rename = _python_function("PyCapsule_SetName", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)

# (name, name once consumed: a static string, since the capsule keeps the pointer, structure)
_FORMS = (
    (b"dltensor_versioned", ctypes.c_char_p(b"used_dltensor_versioned"), _Versioned),
    (b"dltensor", ctypes.c_char_p(b"used_dltensor"), _Managed),
)


class MalformedCapsuleError(ValueError):
    """A capsule claims what cannot be."""


class _Memory:
    """The memory of a consumed capsule, until the last array on it is gone: then its deleter runs, once."""

    def __init__(self, managed: Any, interface: dict[str, Any]) -> None:
        self._managed, self.__array_interface__ = managed, interface

    def __del__(self) -> None:
        _release(self._managed)


def _release(managed: Any) -> None:
    if managed.deleter:
        _Deleter(managed.deleter)(ctypes.addressof(managed))


@dataclass(frozen=True, slots=True)
class OnDevice:
    """What a capsule of memory on a device says; holds that memory."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in bytes
    dtype: DType
    device: int
    writeable: bool
    memory: _Memory


def read(value: Any) -> Array:
    """The array of an object with `__dlpack__`, on its memory.

    TypeError for a dtype or device that NumPy has not, MalformedCapsuleError (a ValueError) for what cannot be true.
    """
    memory, _, half = _take(value, (CPU, CUDA_HOST))
    array = np.asarray(memory)
    return array.view(bfloat16()) if half else array


def read_on_device(value: Any, stream: int) -> OnDevice:
    """The same for memory of a CUDA device; work on `stream` will find the array ready."""
    memory, device, half = _take(value, (CUDA, CUDA_MANAGED), stream=stream)
    interface = memory.__array_interface__
    pointer, read_only = interface["data"]
    dtype = bfloat16() if half else np.dtype(interface["typestr"])
    return OnDevice(pointer, interface["shape"], interface["strides"], dtype, device, not read_only, memory)


def _take(value: Any, devices: tuple[int, ...], **options: Any) -> tuple[_Memory, int, bool]:
    """(the memory of a capsule, now ours; the number of its device; whether it holds bfloat16)."""
    try:
        capsule = value.__dlpack__(max_version=(1, 1), **options)
    except TypeError:  # of before 2023: knows no versions
        capsule = value.__dlpack__(**options)
    name, used, structure = _form(capsule)
    managed = structure.from_address(_pointer_of(capsule, name))
    if structure is _Versioned and managed.major > 1:
        _rename(capsule, used)
        _release(managed)
        raise TypeError(f"its capsule is of DLPack {managed.major}.{managed.minor}, normkit reads 0 and 1")
    interface, half = _checked(managed.tensor, devices)
    # an unversioned capsule cannot say whether it may be written
    read_only = structure is _Managed or bool(managed.flags & _READ_ONLY)
    interface["data"] = (interface["data"][0], read_only)
    _rename(capsule, used)
    return _Memory(managed, interface), managed.tensor.device.id, half


def _form(capsule: Any) -> Any:
    """(name, name once consumed, structure) of a capsule."""
    for form in _FORMS:
        if _is_valid(capsule, form[0]):
            return form
    raise TypeError(f"__dlpack__ returned {type(capsule).__name__!r}, not a fresh capsule of a tensor")


def _checked(tensor: _Tensor, devices: tuple[int, ...]) -> tuple[dict[str, Any], bool]:
    """The array interface of a tensor whose every claim holds together, and whether it is bfloat16."""
    if tensor.device.type not in devices:
        raise TypeError(f"it lies on {DEVICES.get(tensor.device.type, f'device type {tensor.device.type}')}:{tensor.device.id}")
    if not 0 <= tensor.ndim <= _MAX_NDIM:
        _refuse(f"{tensor.ndim} axes, expected 0 to {_MAX_NDIM}")
    if tensor.ndim and not tensor.shape:
        _refuse(f"no shape for {tensor.ndim} axes")
    shape = tuple(tensor.shape[k] for k in range(tensor.ndim))
    if any(n < 0 for n in shape):
        _refuse(f"shape {shape}")
    typestr, size = _element(tensor.dtype)
    if tensor.strides:
        steps = tuple(tensor.strides[k] for k in range(tensor.ndim))
    else:
        steps = tuple(prod(shape[k + 1 :]) for k in range(tensor.ndim))
    reach = sum((n - 1) * abs(step) for n, step in zip(shape, steps, strict=True) if n > 1) + 1
    if prod(shape) * size >= _LIMIT or (0 not in shape and reach * size + tensor.byte_offset >= _LIMIT):
        _refuse(f"shape {shape} and strides {steps}, more than an address holds")
    if not tensor.data and 0 not in shape:
        _refuse(f"no memory for shape {shape}")
    start = (tensor.data or 0) + tensor.byte_offset
    if 0 in shape:  # NumPy wants an address, and reads none of it
        steps = tuple(0 for _ in steps)
    strides = tuple(step * size if n > 1 else size for n, step in zip(shape, steps, strict=True))
    interface = {"version": 3, "shape": shape, "strides": strides, "typestr": typestr, "data": (start, False)}
    return interface, tensor.dtype.code == 4


def _element(dtype: _DataType) -> tuple[str, int]:
    kind, bits = _KINDS.get(dtype.code), dtype.bits
    name = f"{kind}{bits}" if kind else f"code {dtype.code}, {bits} bits"
    if dtype.lanes != 1:
        _refuse(f"dtype {name} in {dtype.lanes} lanes, expected 1")
    if name in ("bfloat16", "bool8"):
        return {"bfloat16": ("<u2", 2), "bool8": ("|b1", 1)}[name]
    if kind in ("int", "uint") and bits in (8, 16, 32, 64):
        return f"{'|' if bits == 8 else '<'}{kind[0]}{bits // 8}", bits // 8
    if kind == "float" and bits in (16, 32, 64):
        return f"<f{bits // 8}", bits // 8
    raise TypeError(f"it has dtype {name}")


def _refuse(what: str) -> NoReturn:
    raise MalformedCapsuleError(f"its DLPack capsule claims {what}")
