"""PTX text -> the one entry function in it, as statements. Knows the grammar and nothing of what instructions mean."""

import math
import re
from dataclasses import dataclass, field

BITS = {
    "pred": 1, "u8": 8, "s8": 8, "b8": 8, "u16": 16, "s16": 16, "b16": 16, "f16": 16, "u32": 32, "s32": 32, "b32": 32,
    "f32": 32, "u64": 64, "s64": 64, "b64": 64, "f64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Parameter:
    kind: str
    offset: int


@dataclass(frozen=True)
class Statement:
    """A label, or an instruction: `@guard opcode.modifiers operands;`."""

    line: int
    label: str = ""
    guard: str = ""
    opcode: str = ""
    modifiers: tuple[str, ...] = ()
    operands: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    name: str
    parameters: dict[str, Parameter]
    max_threads: int
    shared: dict[str, int]  # symbol -> offset
    shared_bytes: int
    local: dict[str, int]
    local_bytes: int
    registers: dict[str, int]  # name -> bits
    statements: tuple[Statement, ...]


@dataclass
class _Scope:
    """Registers declared between two braces: they hide those of the same name outside."""

    suffix: str
    single: dict[str, int] = field(default_factory=dict)
    ranges: dict[str, tuple[int, int]] = field(default_factory=dict)

    def declares(self, name):
        if name in self.single:
            return self.single[name]
        prefix, number = re.fullmatch(r"(%\w*?)(\d*)", name).groups()
        bits, count = self.ranges.get(prefix, (0, 0))
        return bits if number and int(number) < count else 0


def parse(ptx):
    """The first entry function of a module."""
    ptx = ptx.replace("\0", "")
    ptx = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), ptx, flags=re.DOTALL)
    ptx = re.sub(r"//.*", "", ptx)
    head = re.search(r"\.entry\s+(\S+?)\s*\(([^)]*)\)([^{]*)\{", ptx)
    if not head:
        raise ValueError("no entry function in this PTX")
    body, depth, end = [], 1, head.end()
    while depth:
        depth += {"{": 1, "}": -1}.get(ptx[end], 0)
        end += 1
    body = ptx[head.end() : end - 1]
    limit = re.search(r"\.(?:maxntid|reqntid)\s+([\d, ]+)", head[3])
    shared, shared_bytes = _symbols(r"\.shared\s+\.align\s+(\d+)\s+\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?", ptx)
    local, local_bytes = _symbols(r"\.local\s+\.align\s+(\d+)\s+\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?", body)
    registers = {}
    statements = tuple(_statements(body, ptx[: head.end()].count("\n") + 1, registers))
    return Entry(
        head[1], _parameters(head[2]), math.prod(map(int, limit[1].split(","))) if limit else 1024,
        shared, shared_bytes, local, local_bytes, registers, statements,
    )  # fmt: skip


def _parameters(text):
    found, offset = {}, 0
    for part in filter(str.strip, text.split(",")):
        m = re.fullmatch(r"\s*\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(?:\.ptr(?:\s+\.\w+)*(?:\s+\d+)?\s+)?([\w$]+)\s*", part)
        if not m:
            raise ValueError(f"parameter {part.strip()!r}")
        size = BITS[m[1]] // 8
        offset = -(-offset // size) * size
        found[m[2]] = Parameter(m[1], offset)
        offset += size
    return found


def _symbols(pattern, text):
    """Offsets of the symbols of a memory, and its size."""
    offsets, end = {}, 0
    for align, kind, name, count in re.findall(pattern, text):
        end = -(-end // int(align)) * int(align)
        offsets[name] = end
        end += BITS[kind] // 8 * int(count or 1)
    return offsets, -(-end // 16) * 16


def split_operands(text):
    """Split at commas outside of {} and []."""
    parts, depth, current = [], 0, ""
    for character in text:
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    return (*parts, current.strip()) if current.strip() else tuple(parts)


_TOKEN = re.compile(r"\s*(?:([\w$]+):(?!:)|([{}])|([^;{}\s][^;{}]*(?:\{[^{}]*\}[^;{}]*)*);)")


def _statements(body, first_line, registers):
    """The statements of a body; fills `registers`. A register of an inner scope gets a name of its own."""
    scopes, count = [_Scope("")], 0
    for m in _TOKEN.finditer(body):
        line = first_line + body[: m.start(m.lastindex)].count("\n")
        if m[1]:
            yield Statement(line, label=m[1].replace("$", "_"))
        elif m[2] == "{":
            count += 1
            scopes.append(_Scope(f"__{count}"))
        elif m[2] == "}":
            scopes.pop()
        elif m[3].startswith(".reg"):
            _declare(m[3], scopes[-1], registers)
        elif not m[3].startswith("."):
            yield _instruction(re.sub(r"\s+", " ", m[3]).strip(), line, scopes)


def _declare(text, scope, registers):
    kind, names = re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", text, flags=re.DOTALL).groups()
    for name in map(str.strip, names.split(",")):
        prefix, many = re.fullmatch(r"(%\w+)(?:<(\d+)>)?", name).groups()
        if many:
            scope.ranges[prefix] = (BITS[kind], int(many))
            registers.update({f"{prefix}{k}{scope.suffix}": BITS[kind] for k in range(int(many))})
        else:
            scope.single[prefix] = BITS[kind]
            registers[prefix + scope.suffix] = BITS[kind]


def _instruction(text, line, scopes):
    def own_name(m):
        scope = next((s for s in reversed(scopes) if s.declares(m[0])), None)
        return m[0] + scope.suffix if scope else m[0]

    text = re.sub(r"%[A-Za-z_]\w*", own_name, text)
    guard, opcode, rest = re.fullmatch(r"(?:@(!?%\w+) )?(\S+) ?(.*)", text).groups()
    opcode, *modifiers = opcode.split(".")
    return Statement(line, "", guard or "", opcode, tuple(modifiers), split_operands(rest))
