"""The pattern notation: a string such as "n (g [c]) [...]" as axes made of named, sized, reduced or kept atoms."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_TOKEN = re.compile(r"\s*(?:(?P<name>[A-Za-z_]\w*)(?P<many>\.\.\.)?|(?P<dots>\.\.\.)|(?P<size>\d+)|(?P<mark>[\[\]()]))")


@dataclass(frozen=True, slots=True)
class Atom:
    """A name (or a bare size) in a pattern; `many` stands for any number of axes."""

    name: str
    reduced: bool
    many: bool = False
    size: int | None = None


Axis = tuple[Atom, ...]  # one axis of the array: an atom alone, or the parts in parentheses


def _fault(pattern: str, at: int, what: str) -> ValueError:
    return ValueError(f"{what}, at position {at} of the pattern\n    {pattern}\n    {' ' * at}^")


@lru_cache(maxsize=1024)
def parse(pattern: str) -> tuple[Axis, ...]:
    """The axes of a pattern. Checks spelling only; sizes are for `_split`."""
    axes: list[Axis] = []
    parts: list[Atom] | None = None  # of the open parenthesis
    opened: dict[str, int] = {}  # where "[" and "(" were opened
    outer = False  # the open "[" stands before the open "("
    seen: set[str] = set()
    at = 0
    while pattern[at:].strip():
        token = _TOKEN.match(pattern, at)
        if token is None:
            at += len(pattern[at:]) - len(pattern[at:].lstrip())
            raise _fault(pattern, at, f"unexpected {pattern[at]!r} (a pattern has names, numbers, '...', '[ ]' and '( )')")
        start, at = token.start(token.lastgroup or 0), token.end()
        start = token.start("name") if token["name"] else start
        mark = token["mark"]
        if mark == "[":
            if "[" in opened:
                raise _fault(pattern, start, "brackets cannot be nested")
            opened["["], outer = start, parts is None
        elif mark == "]":
            if "[" not in opened or outer != (parts is None):
                raise _fault(pattern, start, "unbalanced bracket ']'")
            del opened["["]
        elif mark == "(":
            if parts is not None:
                raise _fault(pattern, start, "parentheses cannot be nested")
            opened["("], parts = start, []
        elif mark == ")":
            if parts is None or ("[" in opened and not outer):
                raise _fault(pattern, start, "unbalanced parenthesis ')'")
            if not parts:
                raise _fault(pattern, start, "empty parentheses")
            axes.append(tuple(parts))
            parts = None
            del opened["("]
        else:
            atom = _atom(token, "[" in opened)
            if atom.many and parts is not None:
                raise _fault(pattern, start, "'...' stands for whole axes and cannot be part of one")
            if atom.many and any(other.many for axis in axes for other in axis):
                raise _fault(pattern, start, "a second '...': only one can be sized")
            if atom.name and atom.name in seen:
                raise _fault(pattern, start, f"name {atom.name!r} is repeated")
            seen.add(atom.name)
            if parts is None:
                axes.append((atom,))
            else:
                parts.append(atom)
    for mark, start in opened.items():
        raise _fault(pattern, start, f"unbalanced {'bracket' if mark == '[' else 'parenthesis'} {mark!r}")
    return tuple(axes)


def _atom(token: re.Match[str], reduced: bool) -> Atom:
    size = int(token["size"]) if token["size"] else None
    return Atom(token["name"] or "", reduced, bool(token["many"] or token["dots"]), size)
