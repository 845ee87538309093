"""Launching an emulated kernel on NumPy arrays: which memory it may touch, how, and how much of it it moved."""

import ctypes
import functools
import math
import pathlib
import struct
import subprocess
import tempfile
from dataclasses import dataclass

import numpy as np

from .generator import Generator
from .parser import BITS, parse

_GCC = ("gcc", "-shared", "-fPIC", "-w", "-O1", "-ffp-contract=off", "-mfma", "-mf16c")
_PACK = {"u64": "Q", "b64": "Q", "s64": "q", "u32": "I", "b32": "I", "s32": "i", "u16": "H", "f32": "f", "f64": "d"}
MAX_SHARED = 48 * 1024  # per block, without asking the device for more


class DeviceFaultError(RuntimeError):
    """The kernel did what is wrong on a GPU."""


class _BufferStruct(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("base", "size", "read_bytes", "written_bytes")),
        *((name, ctypes.c_void_p) for name in ("writable", "written", "writer", "reader")),
        *((name, ctypes.c_uint32) for name in ("write_first", "nc_read", "any_write")),
    )


class _LaunchStruct(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        *((name, ctypes.c_uint32) for name in ("shared_bytes", "order", "buffer_count")),
    )


@dataclass(frozen=True)
class Buffer:
    """An array that a kernel may touch. role: 'input'; 'output': written whole before any of it is read; 'updated': written
    whole; 'scratch': written and read at will."""

    array: np.ndarray
    role: str = "input"


@dataclass(frozen=True)
class Traffic:
    """Bytes that the threads asked for, of each buffer in turn: no caches; a broadcast counts in every lane."""

    read: tuple[int, ...]
    written: tuple[int, ...]


def device_array(shape, dtype, offset=0):
    """Zeros, `offset` bytes past a multiple of 256, with bytes around them that belong to no array."""
    dtype = np.dtype(dtype)
    size = math.prod(np.atleast_1d(shape).tolist()) * dtype.itemsize
    memory = np.zeros(size + offset + 1024, np.uint8)
    start = -(memory.ctypes.data + 256) % 256 + 256 + offset
    return memory[start : start + size].view(dtype).reshape(shape)


@functools.lru_cache(maxsize=512)
def _build(source):
    with tempfile.TemporaryDirectory(prefix="emulator_") as folder:
        c, library = pathlib.Path(folder, "kernel.c"), pathlib.Path(folder, "kernel.so")
        c.write_text(source)
        subprocess.run([*_GCC, c, "-o", library, "-lm"], check=True)
        return ctypes.CDLL(str(library))


class _Memory:
    """The stretch that an array covers, with a map of its bytes for everything that is checked."""

    def __init__(self, buffer, races):
        self.array, self.role = buffer.array, buffer.role
        self.low, self.high = np.lib.array_utils.byte_bounds(self.array) if self.array.size else (self.array.ctypes.data,) * 2
        kinds = {"writable": np.uint8, "written": np.uint8, "writer": np.int32}
        self.maps = {name: np.zeros(self.high - self.low, kind) for name, kind in kinds.items()}
        if races == "all" and self.role != "scratch":
            self.maps["reader"] = np.zeros(self.high - self.low, np.int32)
        if self.role != "input":
            self._bytes(self.maps["writable"])[...] = 1
        if self.role == "output":
            whole = (ctypes.c_uint8 * (self.high - self.low)).from_address(self.low)
            self._bytes(np.frombuffer(whole, np.uint8))[...] = 0xFF  # NaN in every float format

    def _bytes(self, byte_map):
        """A map of bytes in the shape of the array, with one more axis for the bytes of an element."""
        offset, a = self.array.ctypes.data - self.low, self.array
        return np.lib.stride_tricks.as_strided(byte_map[offset:], (*a.shape, a.itemsize), (*a.strides, 1))

    def struct(self):
        pointers = {name: found.ctypes.data for name, found in self.maps.items()}
        return _BufferStruct(base=self.low, size=self.high - self.low, write_first=self.role == "output", **pointers)

    def check(self, position):
        if self.role not in ("output", "updated") or not self.array.size:
            return
        done = self._bytes(self.maps["written"]).all(axis=-1)
        if not done.all():
            first = tuple(int(i[0]) for i in np.nonzero(~done))
            left = np.count_nonzero(~done)
            raise DeviceFaultError(f"buffer {position} not written: {left} of {done.size} elements, the first at {first}")


class Kernel:
    """The kernel of a PTX module, ready to be launched."""

    def __init__(self, ptx):
        self.entry = parse(ptx)
        self._library = _build(Generator(self.entry).source())

    def __call__(self, grid, block, arguments, buffers=(), *, order=0, races="write"):
        """Launch on what `buffers` cover, and nothing else; returns the Traffic.

        arguments: a number for each parameter; arrays stand for their addresses. order: 0 runs blocks and threads forward, 1
        backward, any other number is the seed of a permutation. races: 'write' finds two blocks that write one byte, 'all'
        also a block that reads what another writes.
        """
        parameters = tuple(self.entry.parameters.values())
        if len(arguments) != len(parameters):
            raise ValueError(f"the kernel has {len(parameters)} parameters, got {len(arguments)}")
        grid, block = ((*(int(n) for n in np.atleast_1d(v)), 1, 1)[:3] for v in (grid, block))
        if not 0 < math.prod(block) <= self.entry.max_threads:
            raise ValueError(f"{math.prod(block)} threads per block, the kernel allows {self.entry.max_threads}")
        if not 0 < grid[0] < 2**31 or max(grid[1:]) > 65535:
            raise ValueError(f"a grid of {grid} blocks")
        if self.entry.shared_bytes > MAX_SHARED:
            raise ValueError(f"{self.entry.shared_bytes} bytes of shared memory, at most {MAX_SHARED}")
        memories = [_Memory(b, races) for b in buffers]
        for k, one in enumerate(memories):
            if any(one.low < other.high and other.low < one.high for other in memories[:k]):
                raise ValueError("buffers overlap: name the memory once")
        structs = (_BufferStruct * max(1, len(memories)))(*[m.struct() for m in memories])
        launch = _LaunchStruct((ctypes.c_uint32 * 3)(*grid), (ctypes.c_uint32 * 3)(*block), self.entry.shared_bytes, order,
                               len(memories))  # fmt: skip
        error = ctypes.create_string_buffer(512)
        if self._library.run(ctypes.byref(launch), self._pack(parameters, arguments), structs, error):
            raise DeviceFaultError(error.value.decode())
        for position, memory in enumerate(memories):
            memory.check(position)
        counts = structs[: len(memories)]
        return Traffic(tuple(s.read_bytes for s in counts), tuple(s.written_bytes for s in counts))

    @staticmethod
    def _pack(parameters, arguments):
        packed = (ctypes.c_uint8 * max([1, *(p.offset + BITS[p.kind] // 8 for p in parameters)]))()
        for p, value in zip(parameters, arguments, strict=True):
            number = value.ctypes.data if isinstance(value, np.ndarray) else value
            exact = float(number) if p.kind[0] == "f" else int(number) if p.kind[0] == "s" else int(number) % 2 ** BITS[p.kind]
            struct.pack_into("<" + _PACK[p.kind], packed, p.offset, exact)
        return packed
