"""The CPU backend, on NumPy arrays. Arguments come checked; nothing is copied but small affines."""

from .calls import apply as apply
from .calls import apply_for as apply_for
from .calls import float32_holds as float32_holds
from .calls import forward as forward
from .calls import forward_for as forward_for
from .calls import moments as moments
from .gradient_calls import backward_for as backward_for
from .gradient_calls import sums_over as sums_over
from .reorder import turning as turning
