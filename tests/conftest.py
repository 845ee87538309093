"""Hypothesis profiles, and one compile cache per state of the kernels."""

import hashlib
import os
import pathlib

from hypothesis import settings

ROOT = pathlib.Path(__file__).parents[1]

# Numba's cache notices a change in a kernel's own file only, and kernels inline what stands in others.
_sources = b"".join(p.read_bytes() for p in sorted((ROOT / "normkit" / "_cpu").glob("*.py")))
os.environ.setdefault("NUMBA_CACHE_DIR", str(ROOT / ".numba_cache" / hashlib.sha256(_sources).hexdigest()[:16]))

settings.register_profile("many", deadline=None, max_examples=1500)
settings.register_profile("dev", deadline=None, max_examples=60)
settings.register_profile("ci", deadline=None, max_examples=100, derandomize=True, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))
