"""What the assembler made of a kernel: instructions and resources, read from its cubin by NVIDIA's disassemblers."""

import collections
import os
import pathlib
import re
import subprocess
import sysconfig
import tempfile
from dataclasses import dataclass

_TOOLS = pathlib.Path(sysconfig.get_paths()["purelib"], "nvidia", "cu13", "bin")


@dataclass(frozen=True)
class MachineCode:
    """Instructions and their counts ('LDG.E.128': 4); resources in registers and bytes; names of functions it calls."""

    instructions: collections.Counter
    registers: int
    stack: int
    local: int
    calls: tuple[str, ...]

    def count(self, *prefixes):
        return sum(n for name, n in self.instructions.items() if name.startswith(prefixes))


def _tool(name, *arguments):
    environment = dict(os.environ, PATH=f"{_TOOLS}{os.pathsep}{os.environ['PATH']}")  # cuobjdump calls nvdisasm
    done = subprocess.run([name, *arguments], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def disassemble(cubin):
    """The MachineCode of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        sass, usage = _tool("nvdisasm", "-c", file.name), _tool("cuobjdump", "-res-usage", file.name)
    pattern = r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*(?:\.[A-Z0-9_]+)*)"
    found = [dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", line)) for line in usage.splitlines() if "REG:" in line]
    most = max(found, key=lambda resources: int(resources["REG"]))
    calls = re.findall(r"CALL\S*\s+`\((?:\$__internal_\d+_\$)?([^\s)]+)\)", sass)
    return MachineCode(collections.Counter(re.findall(pattern, sass)), *(int(most[k]) for k in ("REG", "STACK", "LOCAL")),
                       tuple(calls))  # fmt: skip
