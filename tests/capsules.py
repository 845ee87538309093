"""DLPack producers made by hand: honest ones that count their deleter, and ones that lie."""

import ctypes

import numpy as np

from normkit import _dlpack

_new = _dlpack._python_function("PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
CODES = {"f": 2, "i": 0, "u": 1, "b": 6, "c": 5}


class Producer:
    """An array as a producer; every field of its capsule can be replaced by a claim."""

    def __init__(self, array, versioned=True, device=(1, 0), version=(1, 0), flags=0, code=None, **claims):
        self.array, self.versioned, self.device, self.claims = array, versioned, device, claims
        self.version, self.flags, self.code = version, flags, code
        self.deleted = self.asked = 0
        self._keep = []

    def __array_namespace__(self):
        return np

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **options):
        if options and not self.versioned:
            raise TypeError("__dlpack__() got an unexpected keyword argument")
        self.asked += 1
        array, claims = self.array, self.claims
        managed = _dlpack._Versioned() if self.versioned else _dlpack._Managed()
        tensor = managed.tensor
        shape = claims.get("shape", array.shape)
        strides = claims.get("strides", tuple(step // array.itemsize for step in array.strides))
        tensor.data = claims.get("data", array.__array_interface__["data"][0])
        tensor.device.type, tensor.device.id = claims.get("device_in_capsule", self.device)
        tensor.ndim = claims.get("ndim", len(shape) if shape is not None else 0)
        tensor.dtype.code = CODES[array.dtype.kind] if self.code is None else self.code
        tensor.dtype.bits, tensor.dtype.lanes = claims.get("bits", 8 * array.itemsize), claims.get("lanes", 1)
        tensor.byte_offset = claims.get("byte_offset", 0)
        for field, values in (("shape", shape), ("strides", strides)):
            if values is not None:
                block = (ctypes.c_int64 * max(1, len(values)))(*values)
                setattr(tensor, field, ctypes.cast(block, ctypes.POINTER(ctypes.c_int64)))
                self._keep.append(block)
        if self.versioned:
            managed.major, managed.minor = self.version
            managed.flags = self.flags
        deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._delete)
        managed.deleter = ctypes.cast(deleter, ctypes.c_void_p)
        self._keep += [managed, deleter, array]
        return _new(ctypes.addressof(managed), b"dltensor_versioned" if self.versioned else b"dltensor", None)

    def _delete(self, _):
        self.deleted += 1
