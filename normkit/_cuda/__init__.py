"""The CUDA backend, on arrays of any library in the memory of a device: the operations of `_cpu`. Needs the extra `cuda13`."""

from . import launch as _launch
from .calls import apply as apply
from .calls import backward_for as backward_for
from .calls import float32_holds as float32_holds
from .calls import forward as forward
from .calls import moments as moments
from .calls import sums_over as sums_over


def demand(device: int) -> None:
    """Refuse a device that kernels cannot run on."""
    _launch.driver.demand(device)
