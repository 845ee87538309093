"""Compiled CUDA kernels on the CPU: PTX -> C -> NumPy arrays, every access checked and counted. Needs gcc on x86-64."""

from .launcher import Buffer as Buffer
from .launcher import DeviceFaultError as DeviceFaultError
from .launcher import Kernel as Kernel
from .launcher import Traffic as Traffic
from .launcher import device_array as device_array
from .opcodes import UnsupportedError as UnsupportedError
