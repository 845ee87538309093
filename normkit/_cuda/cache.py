"""Compiled kernels on disk: made once for a Spec, a compute capability, the versions of the compiler and this source."""

from __future__ import annotations

import hashlib
import os
import pathlib
import tempfile
import warnings
from functools import lru_cache

from .._trust import untrusted
from .compile import Machine, entry_of, machine_of
from .package import Capability, versions
from .spec import Spec

_DIGEST_BYTES = 32


def machine_for(spec: Spec, cc: Capability) -> Machine:
    """The machine code of a Spec, from the folder if it is there."""
    folder = cache_folder()
    if folder is None:
        return machine_of(spec, cc)
    path = folder / f"{hashlib.sha256(f'{_making()} {cc} {spec}'.encode()).hexdigest()}.cubin"
    found = _read(path)
    if found is None:
        machine = machine_of(spec, cc)
        _write(path, machine.code)
        return machine
    return Machine(found, entry_of(found))


@lru_cache(maxsize=1)
def _making() -> str:
    """What a kernel is made by: the sources of this package, and the versions of the compiler."""
    here = pathlib.Path(__file__).parent
    sources = [*sorted(here.glob("*.py")), here.parent / "_formulas.py", here.parent / "_storage.py"]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest() + versions()


@lru_cache(maxsize=1)
def cache_folder() -> pathlib.Path | None:
    """The folder for machine code: NORMKIT_CACHE_DIR, or the user's own. None, with a warning, where none can be used."""
    chosen = os.environ.get("NORMKIT_CACHE_DIR")
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = pathlib.Path(chosen or pathlib.Path(home, "normkit"), "cuda")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        reason = untrusted(folder)
        if not reason and not os.access(folder, os.W_OK):
            reason = "it cannot be written"
    except OSError as error:
        reason = str(error)
    if reason:
        warnings.warn(
            f"normkit does not keep compiled CUDA kernels in {folder}: {reason}; every process compiles them anew. "
            "Set NORMKIT_CACHE_DIR to a folder of your own",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return folder


def _read(path: pathlib.Path) -> bytes | None:
    """What was stored, if it is whole."""
    try:
        stored = path.read_bytes()
    except OSError:  # not there yet, or unreadable: compiled anew
        return None
    digest, code = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write(path: pathlib.Path, code: bytes) -> None:
    """Store it, whole or not at all: other processes may write the same at the same time."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(name, path)
    except OSError as error:
        warnings.warn(f"normkit could not store a compiled kernel in {path.parent}: {error}", RuntimeWarning, stacklevel=2)
