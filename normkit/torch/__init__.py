"""normkit for PyTorch: the norms as differentiable functions, modules in place of those of `torch.nn`, and `replace_norms`."""

from __future__ import annotations

from ._functions import adaptive_instance_norm as adaptive_instance_norm
from ._functions import batch_norm as batch_norm
from ._functions import group_norm as group_norm
from ._functions import instance_norm as instance_norm
from ._functions import layer_norm as layer_norm
from ._functions import normalize as normalize
from ._functions import rms_norm as rms_norm
from ._modules import AdaptiveInstanceNorm as AdaptiveInstanceNorm
from ._modules import BatchNorm1d as BatchNorm1d
from ._modules import BatchNorm2d as BatchNorm2d
from ._modules import BatchNorm3d as BatchNorm3d
from ._modules import GroupNorm as GroupNorm
from ._modules import InstanceNorm1d as InstanceNorm1d
from ._modules import InstanceNorm2d as InstanceNorm2d
from ._modules import InstanceNorm3d as InstanceNorm3d
from ._modules import LayerNorm as LayerNorm
from ._modules import RMSNorm as RMSNorm
from ._modules import replace_norms as replace_norms

__all__ = [
    "AdaptiveInstanceNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "RMSNorm",
    "adaptive_instance_norm",
    "batch_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "normalize",
    "replace_norms",
    "rms_norm",
]
