"""Hypothesis profiles, and a compile cache of the tests' own."""

import contextlib
import os
import pathlib

import pytest
from hypothesis import settings

ROOT = pathlib.Path(__file__).parents[1]

os.environ.setdefault("NUMBA_CACHE_DIR", str(ROOT / ".numba_cache"))

settings.register_profile("many", deadline=None, max_examples=1500)
settings.register_profile("dev", deadline=None, max_examples=60)
settings.register_profile("ci", deadline=None, max_examples=100, derandomize=True, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))


@pytest.fixture
def long_way(monkeypatch):
    """A context in which no call takes the short way."""
    from normkit import _passes, _recall  # not before the cache is set

    @contextlib.contextmanager
    def only():
        with monkeypatch.context() as patch:
            for module in (_recall, _passes):
                patch.setattr(module, "read_as_given", lambda *_: False)
            patch.setattr(_recall, "_ready", {})
            yield
            assert not _recall._ready

    return only
