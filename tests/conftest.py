"""Hypothesis profiles, and a compile cache of the tests' own."""

import os
import pathlib

from hypothesis import settings

ROOT = pathlib.Path(__file__).parents[1]

os.environ.setdefault("NUMBA_CACHE_DIR", str(ROOT / ".numba_cache"))

settings.register_profile("many", deadline=None, max_examples=1500)
settings.register_profile("dev", deadline=None, max_examples=60)
settings.register_profile("ci", deadline=None, max_examples=100, derandomize=True, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))
