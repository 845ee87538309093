"""Gradients of x, weight and bias over the case table, each beside a triad of the same bytes."""

from __future__ import annotations

import numpy as np

from normkit.bench.cases import CASES, DTYPES, LAYOUTS, make, triad


class Backward:
    """A pullback returns new arrays, so the triad writes to new memory too."""

    params = (list(CASES), LAYOUTS, DTYPES)
    param_names = ("case", "layout", "dtype")
    shrink = 1
    timeout = 300

    def setup(self, case, layout, dtype):
        """Data, warm."""
        self.dy = make(CASES[case], layout, dtype, self.shrink, seed=1)
        self.pullback = CASES[case].pullback(make(CASES[case], layout, dtype, self.shrink))
        kind = np.uint16 if dtype == "float16" else np.float32
        self.flat = [np.full(self.dy.size, k, kind) for k in (1, 2)]
        self.time_pullback(case, layout, dtype)
        self.time_triad(case, layout, dtype)

    def time_pullback(self, case, layout, dtype):
        return self.pullback(self.dy)

    def time_triad(self, case, layout, dtype):
        triad(*self.flat, np.empty_like(self.flat[0]))
