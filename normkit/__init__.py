"""normkit: one engine normalizes any set of any array. Names load on first use; nothing compiles at import."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import _process as _process

if TYPE_CHECKING:
    from ._moments import Moments as Moments
    from ._num_threads import get_num_threads as get_num_threads
    from ._num_threads import num_threads as num_threads
    from ._num_threads import set_num_threads as set_num_threads
    from ._warmup import warmup as warmup
    from .functional import adaptive_instance_norm as adaptive_instance_norm
    from .functional import batch_norm as batch_norm
    from .functional import group_norm as group_norm
    from .functional import instance_norm as instance_norm
    from .functional import layer_norm as layer_norm
    from .functional import moments as moments
    from .functional import normalize as normalize
    from .functional import rms_norm as rms_norm
    from .sets import NormSet as NormSet
    from .transforms import Gradients as Gradients
    from .transforms import StyleGradients as StyleGradients
    from .transforms import jvp as jvp
    from .transforms import vjp as vjp

__version__ = "0.1.0"

_HOME = {
    "Gradients": ".transforms",
    "Moments": "._moments",
    "NormSet": ".sets",
    "StyleGradients": ".transforms",
    "adaptive_instance_norm": ".functional",
    "batch_norm": ".functional",
    "get_num_threads": "._num_threads",
    "group_norm": ".functional",
    "instance_norm": ".functional",
    "jvp": ".transforms",
    "layer_norm": ".functional",
    "moments": ".functional",
    "normalize": ".functional",
    "num_threads": "._num_threads",
    "rms_norm": ".functional",
    "set_num_threads": "._num_threads",
    "vjp": ".transforms",
    "warmup": "._warmup",
}

__all__ = [
    "Gradients",
    "Moments",
    "NormSet",
    "StyleGradients",
    "adaptive_instance_norm",
    "batch_norm",
    "get_num_threads",
    "group_norm",
    "instance_norm",
    "jvp",
    "layer_norm",
    "moments",
    "normalize",
    "num_threads",
    "rms_norm",
    "set_num_threads",
    "vjp",
    "warmup",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'normkit' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
