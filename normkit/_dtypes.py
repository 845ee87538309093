"""Storage -> accumulator -> result: the one table of dtypes, by name. Imports no array library."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Array: TypeAlias = "npt.NDArray[Any]"
DType: TypeAlias = "np.dtype[Any]"

RESULTS = ("float16", "bfloat16", "float32", "float64")
# What float32 holds exactly is summed in float32 blocks; what it would round is summed in float64.
_NARROW = frozenset({"float16", "bfloat16", "float32", "bool", "int8", "uint8", "int16", "uint16"})
_WIDE = frozenset({"float64", "int32", "uint32", "int64", "uint64"})
SUPPORTED = _NARROW | _WIDE


@lru_cache(maxsize=256)
def name_of(dtype: DType) -> str:
    """`dtype.name`, which NumPy composes anew for 3 us each time it is asked."""
    return dtype.name


def result_name(storage: str) -> str:
    """Dtype of a result that nobody chose: x's own, float64 for integers and bool (as `np.mean`)."""
    return storage if storage in RESULTS else "float64"


def accumulator(storage: str, result: str) -> str:
    """Dtype of the arithmetic within a block: float32, unless x or the result holds more."""
    return "float64" if storage in _WIDE or result == "float64" else "float32"


def bfloat16() -> DType:
    """The dtype of bfloat16 arrays, which NumPy does not have of its own."""
    import numpy as np

    try:
        import ml_dtypes
    except ImportError as error:
        raise TypeError("bfloat16 arrays need the package ml_dtypes; pip install ml_dtypes") from error
    found: DType = np.dtype(ml_dtypes.bfloat16)
    return found
