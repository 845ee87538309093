"""Whether compiled code may be taken from a folder."""

from __future__ import annotations

import os
import pathlib
import stat


def untrusted(folder: pathlib.Path) -> str:
    """Why code from a folder is not to be run: another user could have put it there. Empty where it may be."""
    if not hasattr(os, "getuid") or not folder.exists():
        return ""
    status = folder.stat()
    if status.st_uid not in (os.getuid(), 0):
        return "it belongs to another user"
    return "others can write to it" if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else ""
