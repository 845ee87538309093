"""Launching, by cuda.core: on the device of the arrays and the stream that their library works on; nothing waits."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from cuda.bindings import driver as cu
from cuda.core import Device, LaunchConfig, ObjectCode, Stream
from cuda.core import launch as _launch
from cuda.core._utils.cuda_utils import CUDAError

from .cache import machine_for
from .package import Capability
from .package import versions as versions
from .spec import Spec

_OLDEST: Capability = (8, 0)
_NEEDED = 13000  # of the CUDA driver: older ones do not load what CUDA 13 compiles
_DRIVER = "install an NVIDIA driver for CUDA 13 (release 580 or later)"
_REMEDIES = (
    ("OUT_OF_MEMORY", MemoryError, "free arrays of it, or pass out="),
    ("LAUNCH_OUT_OF_RESOURCES", RuntimeError, "please report this with the output of nvidia-smi"),
    ("NO_BINARY_FOR_GPU", RuntimeError, "upgrade the packages of normkit[cuda13]"),
)


class Driver:
    """The devices of this machine. Tests put another in its place, which runs kernels without any."""

    def demand(self, device: int) -> None:
        """Refuse a device that kernels cannot run on."""
        self.capability(device)

    @lru_cache(maxsize=64)  # noqa: B019 - one driver in a process
    def capability(self, device: int) -> Capability:
        """Major and minor of a device's compute capability."""
        try:
            error, version = cu.cuDriverGetVersion()
            if int(error) or version < _NEEDED:
                found = f"{version // 1000}.{version % 1000 // 10}" if version else "none"
                raise RuntimeError(f"the NVIDIA driver is one for CUDA {found}, and too old for normkit[cuda13]; {_DRIVER}")
            found_device = Device(device)
            capability = found_device.compute_capability
        except (CUDAError, RuntimeError) as error:
            if "too old" in str(error):
                raise
            raise RuntimeError(f"no NVIDIA driver answers for cuda:{device} ({error}); {_DRIVER}") from error
        if tuple(capability) < _OLDEST:
            least = ".".join(map(str, _OLDEST))
            raise RuntimeError(
                f"cuda:{device} is a {found_device.name} of compute capability {capability[0]}.{capability[1]}, "
                f"and normkit needs {least} or higher; bring the arrays to the CPU"
            )
        return (int(capability[0]), int(capability[1]))

    @lru_cache(maxsize=4096)  # noqa: B019
    def _kernel(self, spec: Spec, cc: Capability) -> Any:
        machine = machine_for(spec, cc)
        return ObjectCode.from_cubin(machine.code).get_kernel(machine.entry)

    def launch(self, spec: Spec, grid: int, device: int, stream: int, arguments: tuple[Any, ...]) -> None:
        """Enqueue a kernel. The calling thread's device is what it was, afterwards."""
        kernel = self._kernel(spec, self.capability(device))
        error, current = cu.cuCtxGetDevice()
        other = bool(int(error)) or int(current) != device
        try:
            if other:
                Device(device).set_current()
            _launch(_stream(stream), _config(grid, spec.block), kernel, *arguments)
        except CUDAError as failure:
            raise _explained(failure, spec, device) from failure
        finally:
            if other and not int(error):
                Device(int(current)).set_current()


@lru_cache(maxsize=256)
def _stream(handle: int) -> Any:
    return Stream.from_handle(handle)


@lru_cache(maxsize=1024)
def _config(grid: int, block: int) -> Any:
    return LaunchConfig(grid=grid, block=block)


def _explained(failure: Exception, spec: Spec, device: int) -> Exception:
    for word, kind, remedy in _REMEDIES:
        if word in str(failure):
            return kind(f"cuda:{device} refused the kernel {spec.kernel} ({failure}); {remedy}")
    return RuntimeError(f"cuda:{device} could not run the kernel {spec.kernel}: {failure}")


driver = Driver()
