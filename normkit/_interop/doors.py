"""How foreign arrays come in, and how results go out as arrays of the same library."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import numpy as np

from .. import _dlpack
from .._dtypes import SUPPORTED, Array, DType, bfloat16, name_of
from .libraries import DeviceArray, cupy_on, library_of, native, torch_on

_KINDS = "float16, bfloat16, float32, float64, integers and bool"


@dataclass(frozen=True, slots=True)
class Incoming:
    """An argument as the engine sees it, and how a result of its library is made."""

    array: Any  # of NumPy, or a DeviceArray
    emit: Callable[[Any], Any]
    shape: tuple[int, ...]  # of the argument itself; the array may be laid along the axes of x
    aligned: bool = False  # whether its library wants results aligned, or copies them

    def laid(self, shape: Sequence[int]) -> Incoming:
        """The same argument with its array in another shape."""
        return Incoming(self.array.reshape(shape), self.emit, self.shape, self.aligned)


Door = Callable[[Any, str], Incoming]


def ingest(value: Any, name: str) -> Incoming:
    """An array argument, checked, without a copy (but for misaligned memory)."""
    if type(value) is np.ndarray:
        return Incoming(_checked(value, name), _identity, value.shape)
    return _door(type(value))(value, name)


def _identity(result: Array) -> Any:
    return result


_doors: dict[type, Door] = {}


def _door(kind: type) -> Door:
    """The door for arguments of a type."""
    if kind not in _doors:
        _doors[kind] = _choose_door(kind)
    return _doors[kind]


def _choose_door(kind: type) -> Door:
    if issubclass(kind, np.ma.MaskedArray):
        return _refuse_masked
    if issubclass(kind, (np.ndarray, np.generic)):
        return _from_numpy
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if kind.__module__.partition(".")[0] == "cupy":
        return _from_cupy
    if torch is not None and issubclass(kind, torch.Tensor):
        return partial(_from_torch, torch, partial(_to_torch, torch))
    if jax is not None and (issubclass(kind, jax.core.Tracer) or kind.__module__.partition(".")[0] == "jaxlib"):
        return partial(_from_jax, jax, partial(_to_jax, jax))
    return _from_dlpack if hasattr(kind, "__dlpack__") else _from_numpy


def _refuse_masked(_: Any, name: str) -> NoReturn:
    raise TypeError(f"{name} is a masked array, and its mask would be ignored; pass {name}.filled(...) or its valid part")


def _from_numpy(value: Any, name: str) -> Incoming:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} cannot be read as an array: {error}") from error
    return Incoming(_checked(array, name), _identity, array.shape)


def _refuse_device(name: str, device: str) -> NoReturn:
    if name not in ("x", "content"):
        raise ValueError(f"{name} is on {device}, where x is not; all arrays of a call must be on one device")
    remedy = f"bring it to the CPU, as in {name}.cpu()"
    raise TypeError(f"{name} is on {device}, which normkit has no kernels for; {remedy}")


def _on_device(array: DeviceArray, name: str) -> Incoming:
    """An array on a CUDA device, if there are kernels for it here."""
    if name_of(array.dtype) not in SUPPORTED:
        _refuse_dtype(array.dtype, name)
    if array.size and array.pointer % array.itemsize:
        raise ValueError(f"{name} is misaligned: its address is no multiple of its {array.itemsize} bytes; pass a copy")
    try:
        from .._cuda import demand
    except ImportError as error:
        raise ImportError(
            f"{name} is on {array.library}, and normkit's kernels for it are not installed ({error}); "
            f"pip install 'normkit[cuda13]', or bring it to the CPU, as in {name}.cpu()"
        ) from error
    demand(array.device)
    return Incoming(array, native, array.shape)


def _from_cupy(value: Any, name: str) -> Incoming:
    if value.dtype.kind == "c" or name_of(value.dtype) not in SUPPORTED:
        _refuse_dtype(value.dtype, name)
    return _on_device(cupy_on(value.device.id).view(value), name)


def _from_torch(torch: Any, emit: Callable[[Array], Any], value: Any, name: str) -> Incoming:
    """A PyTorch tensor, by its own way to NumPy: a quarter of the 4 us of DLPack both ways."""
    if value.is_cuda:
        _refuse_torch(value, name, None)
        if value.layout != torch.strided or str(value.dtype).partition(".")[2] not in SUPPORTED:
            raise TypeError(f"{name} is a tensor of dtype {value.dtype} and layout {value.layout}; expected {_KINDS}, strided")
        return _on_device(torch_on(value.device).view(value), name)
    try:
        array = value.numpy()  # refuses what is refused here, in C
    except (RuntimeError, TypeError) as error:
        array = _hard_torch(torch, value, name, error)
    return Incoming(_checked(array, name), emit, array.shape)


def glance(value: Any) -> Array | None:
    """A tensor or array of PyTorch or JAX as NumPy sees it; None for all else, and for what they do not simply hand over."""
    door = _door(type(value))
    if not isinstance(door, partial):
        return None
    look, library = _glance_torch if door.func is _from_torch else _glance_jax, door.args[0]
    try:
        return look(library, value)
    except (RuntimeError, TypeError):  # the long way says why, or has another one
        return None


def _glance_torch(torch: Any, value: Any) -> Array | None:
    if value.is_cuda or value.requires_grad:
        return None
    array: Array = _from_bfloat16(torch, value) if value.dtype == torch.bfloat16 else value.numpy()
    return array


def _glance_jax(jax: Any, value: Any) -> Array | None:
    if isinstance(value, jax.core.Tracer) or len(value.devices()) > 1 or next(iter(value.devices())).platform != "cpu":
        return None
    return np.asarray(value)


def _hard_torch(torch: Any, value: Any, name: str, error: Exception) -> Array:
    """A tensor that PyTorch does not hand to NumPy: bfloat16; else the reason, and what would be right."""
    if value.device.type != "cpu":
        _refuse_device(name, str(value.device))
    _refuse_torch(value, name, error)
    if value.dtype == torch.bfloat16 and value.layout == torch.strided:
        return _from_bfloat16(torch, value)
    raise TypeError(f"{name} is a tensor of dtype {value.dtype} and layout {value.layout}: {error}") from error


def _from_bfloat16(torch: Any, value: Any) -> Array:
    array: Array = value.view(torch.int16).numpy().view(bfloat16())
    return array


def _refuse_torch(value: Any, name: str, error: Exception | None) -> None:
    """Refuse what no function outside of PyTorch can take."""
    if value.requires_grad:
        raise TypeError(
            f"{name} requires grad, which a NumPy function would cut off; use the differentiable functions of normkit.torch, "
            f"or {name}.detach()"
        ) from error
    for marked, what in ((value.is_conj(), "conj"), (value.is_neg(), "neg")):
        if marked:
            raise TypeError(f"{name} is a lazy view with its {what} bit set; pass {name}.resolve_{what}()") from error


def _to_torch(torch: Any, result: Array) -> Any:
    if name_of(result.dtype) == "bfloat16":
        return torch.from_numpy(result.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(result)


def _from_jax(jax: Any, emit: Callable[[Array], Any], value: Any, name: str) -> Incoming:
    """A JAX array, as NumPy sees it: its own memory, read-only."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(f"{name} is a value inside jax.jit, grad or vmap; use the functions of normkit.jax there")
    devices = sorted(str(device) for device in value.devices())
    if len(devices) > 1 or not all(device.platform == "cpu" for device in value.devices()):
        _refuse_device(name, ", ".join(devices))
    array = np.asarray(value)
    return Incoming(_checked(array, name), emit, array.shape, aligned=True)


def _to_jax(jax: Any, result: Array) -> Any:
    emitted = jax.numpy.asarray(result) if name_of(result.dtype) == "bfloat16" else jax.numpy.from_dlpack(result)
    if emitted.dtype != result.dtype:
        raise TypeError(
            f"the result has dtype {result.dtype}, and JAX without jax_enable_x64 would make it {emitted.dtype}; "
            f"pass dtype={str(emitted.dtype)!r}, or enable that"
        )
    return emitted


def _from_dlpack(value: Any, name: str) -> Incoming:
    """An array of any other library, by its capsule."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    try:
        device, index = value.__dlpack_device__()
        on_cuda = int(device) in (_dlpack.CUDA, _dlpack.CUDA_MANAGED)
        if on_cuda and not hasattr(value, "__array_namespace__"):
            raise TypeError(f"{name} is a {kind} on cuda:{index} without __array_namespace__; pass it as a CuPy array")
        if not on_cuda and int(device) not in (_dlpack.CPU, _dlpack.CUDA_HOST):
            _refuse_device(name, f"{_dlpack.DEVICES.get(int(device), f'device type {int(device)}')}:{index}")
        array = library_of(value).view(value) if on_cuda else _dlpack.read(value)
    except _dlpack.MalformedCapsuleError as error:
        raise ValueError(f"{name} is a {kind}, and {error}") from error
    except (AttributeError, BufferError, RuntimeError) as error:
        raise TypeError(f"{name} is a {kind} that cannot be read through __dlpack__: {error}") from error
    if isinstance(array, DeviceArray):
        return _on_device(array, name)
    return Incoming(_checked(array, name), _emitter(value), array.shape)


def _emitter(value: Any) -> Callable[[Array], Any]:
    """What turns a NumPy result into an array of the library that `value` comes from."""
    if hasattr(value, "__array_namespace__"):
        namespace = value.__array_namespace__()
    else:
        namespace = sys.modules[type(value).__module__.partition(".")[0]]
    if hasattr(namespace, "from_dlpack"):  # NumPy exports no bfloat16; who knows that dtype takes the array itself
        return lambda result: (namespace.asarray if name_of(result.dtype) == "bfloat16" else namespace.from_dlpack)(result)
    if hasattr(namespace, "experimental"):  # TensorFlow takes the capsule itself
        return lambda result: namespace.experimental.dlpack.from_dlpack(result.__dlpack__())
    raise TypeError(f"{namespace.__name__} has no from_dlpack to take a result of normkit; pass np.from_dlpack(x)")


def _refuse_dtype(dtype: DType, name: str) -> NoReturn:
    remedy = "; normalize real and imaginary part by themselves" if dtype.kind == "c" else ""
    raise TypeError(f"{name} has dtype {dtype}, expected one of {_KINDS}{remedy}")


def _checked(array: Array, name: str) -> Array:
    """Refuse dtypes that no kernel reads; copy what is misaligned."""
    dtype = array.dtype
    if name_of(dtype) not in SUPPORTED:
        _refuse_dtype(dtype, name)
    if not dtype.isnative:
        raise TypeError(f"{name} has byte-swapped dtype {dtype.str!r}; pass {name}.astype({name}.dtype.newbyteorder('='))")
    flags = array.flags
    if flags.c_contiguous and flags.aligned:
        return array
    uneven = any(step % dtype.itemsize for step, n in zip(array.strides, array.shape, strict=True) if n > 1)
    return array.copy() if uneven or not flags.aligned else array


def ingest_out(out: Any) -> Array:
    """`out`, which must be an array that can be written."""
    door = _door(type(out))
    if door is _from_numpy:
        raise TypeError(f"out must be an array, not {type(out).__qualname__}")
    found = door(out, "out")
    if found.aligned:
        raise TypeError("out is a JAX array, which is immutable; take the result that is returned")
    array: Array = found.array
    return array
