"""Whether this process was forked. Loaded by `import normkit`, since a fork may come before the first call."""

from __future__ import annotations

import os
import sys

_state = {"forked": False}


def _after_fork() -> None:
    _state["forked"] = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def forked() -> bool:
    """Whether threads that a parent process had started may be missing here."""
    return _state["forked"]


def note_late_import() -> None:
    """Count a child of `multiprocessing` in which Numba's threads were started before normkit was imported as forked.

    In a spawned child that did so itself this errs to the safe side: it runs serially.
    """
    process, parallel = sys.modules.get("multiprocessing.process"), sys.modules.get("numba.np.ufunc.parallel")
    if process is not None and process.parent_process() is not None and getattr(parallel, "_is_initialized", False):
        _state["forked"] = True


note_late_import()
