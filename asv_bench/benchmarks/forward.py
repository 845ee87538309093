"""Forward passes over the case table, each beside a copy of the same bytes."""

from __future__ import annotations

import numpy as np

from normkit.bench.cases import CASES, DTYPES, LAYOUTS, copy, make


class Forward:
    """`out=` given, so that no fresh memory is timed."""

    params = (list(CASES), LAYOUTS, DTYPES)
    param_names = ("case", "layout", "dtype")
    shrink = 1
    timeout = 300

    def setup(self, case, layout, dtype):
        """Data, warm: everything compiled, every page touched."""
        self.x = make(CASES[case], layout, dtype, self.shrink)
        self.out = np.full_like(self.x, 1, order="K")
        self.flat = np.full(self.x.size, 1, np.uint16 if dtype == "float16" else np.uint32)
        self.copied = np.full_like(self.flat, 2)
        self.time_norm(case, layout, dtype)
        self.time_copy(case, layout, dtype)

    def time_norm(self, case, layout, dtype):
        CASES[case].forward(self.x, out=self.out)

    def time_copy(self, case, layout, dtype):
        copy(self.flat, self.copied)
