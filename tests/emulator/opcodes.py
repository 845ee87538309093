"""The instructions that compute: one table, opcode -> what it reads, what it yields, and how that is said in C.

A rule takes the instruction's type (its last modifier) and the C expressions of its sources. A modifier that the rule does
not name is an error, never dropped in silence.
"""

from collections.abc import Callable
from dataclasses import dataclass

C_TYPE = {"pred": "uint8_t", "f16": "_Float16", "f32": "float", "f64": "double"}
C_TYPE |= {f"{k}{n}": f"{'int' if k == 's' else 'uint'}{n}_t" for k in "usb" for n in (8, 16, 32, 64)}
WIDER = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}
# Rounding to nearest is C's own; approximations are computed exactly, and flushing of subnormals is not modelled.
HARMLESS = {"rn", "approx", "ftz", "full", "uni", "sync", "aligned", "global", "b8", "volatile", "weak"}


class UnsupportedError(Exception):
    """The PTX uses something that the emulator does not model."""


@dataclass(frozen=True)
class Rule:
    """C of an instruction: text(kind, modifiers, *sources). sources: their types, '' for that of the instruction."""

    text: Callable[..., str]
    sources: tuple[str, ...]
    result: Callable[[str, tuple[str, ...]], str] = lambda kind, modifiers: kind
    modifiers: frozenset[str] = frozenset()


def is_float(kind):
    return kind in ("f16", "f32", "f64")


def unsigned(kind):
    """Integers wrap around: they are computed without a sign."""
    return C_TYPE[kind].replace("int", "uint", 1) if kind[0] == "s" else C_TYPE[kind]


def _wrapping(operator):
    return lambda kind, mods, a, b: f"({C_TYPE[kind]})(({unsigned(kind)})({a}) {operator} ({unsigned(kind)})({b}))"


def _product(kind, mods, a, b):
    if is_float(kind) or "lo" in mods:
        return _wrapping("*")(kind, mods, a, b)
    wide = WIDER.get(kind, {"u64": "unsigned __int128", "s64": "__int128"}.get(kind, ""))
    c = C_TYPE.get(wide, wide)
    whole = f"(({c})({a}) * ({c})({b}))"
    return whole if "wide" in mods else f"({C_TYPE[kind]})({whole} >> {kind[1:]})"


def _widened(kind, mods):
    return WIDER[kind] if "wide" in mods else kind


def _multiply_add(kind, mods, a, b, c):
    if is_float(kind):
        return f"fma{'f' if kind == 'f32' else ''}({a}, {b}, {c})"
    to = _widened(kind, mods)
    return _wrapping("+")(to, (), _product(kind, mods, a, b), c)


def _divide(kind, mods, a, b):
    return f"({a}) / ({b})" if is_float(kind) else f"({b}) == 0 ? ({C_TYPE[kind]})-1 : ({a}) / ({b})"


def _extreme(name, operator):
    def text(kind, mods, a, b):
        if not is_float(kind):
            return f"({a}) {operator} ({b}) ? ({a}) : ({b})"
        f = f"f{name}{'f' if kind == 'f32' else ''}({a}, {b})"  # the other operand wins over NaN ...
        return f"(({a}) != ({a}) || ({b}) != ({b}) ? NAN : {f})" if "NaN" in mods else f  # ... unless asked

    return text


def _shift(operator):
    def text(kind, mods, a, n):
        bits = kind[1:]
        beyond = f"(({a}) < 0 ? -1 : 0)" if operator == ">>" and kind[0] == "s" else "0"
        return f"({n}) >= {bits} ? {beyond} : ({a}) {operator} (({n}) & ({bits} - 1))"

    return text


def _funnel(kind, mods, low, high, n):
    n = f"(({n}) & 31)" if "wrap" in mods else f"(({n}) > 32 ? 32 : ({n}))"
    both = f"((uint64_t)({high}) << 32 | (uint32_t)({low}))"
    return f"(uint32_t)({both} << {n} >> 32)" if "l" in mods else f"(uint32_t)({both} >> {n})"


def _insert(kind, mods, a, b, start, length):
    """bfi: the low `length` bits of a into b from bit `start` on."""
    t, bits = C_TYPE[kind], kind[1:]
    mask = f"(({length}) >= {bits} ? ~({t})0 : ((({t})1 << ({length})) - 1))"
    return f"({start}) >= {bits} ? ({b}) : ((({b}) & ~({mask} << ({start}))) | ((({a}) & {mask}) << ({start})))"


def _extract(kind, mods, a, start, length):
    """bfe without a sign."""
    t, bits = C_TYPE[kind], kind[1:]
    mask = f"(({length}) >= {bits} ? ~({t})0 : ((({t})1 << ({length})) - 1))"
    return f"({start}) >= {bits} ? 0 : (({a}) >> ({start}) & {mask})"


def _of_one(integer, floating):
    return lambda kind, mods, a: (floating if is_float(kind) else integer).format(a=a, f="f" if kind == "f32" else "")


_BINARY = ("", "")
RULES = {
    "add": Rule(_wrapping("+"), _BINARY),
    "sub": Rule(_wrapping("-"), _BINARY),
    "and": Rule(_wrapping("&"), _BINARY),
    "or": Rule(_wrapping("|"), _BINARY),
    "xor": Rule(_wrapping("^"), _BINARY),
    "mul": Rule(_product, _BINARY, _widened, frozenset({"lo", "hi", "wide"})),
    "mad": Rule(_multiply_add, ("", "", "wide"), _widened, frozenset({"lo", "wide"})),
    "fma": Rule(_multiply_add, ("", "", "")),
    "div": Rule(_divide, _BINARY),
    "rem": Rule(lambda kind, mods, a, b: f"({b}) == 0 ? ({a}) : ({a}) % ({b})", _BINARY),
    "min": Rule(_extreme("min", "<"), _BINARY, modifiers=frozenset({"NaN"})),
    "max": Rule(_extreme("max", ">"), _BINARY, modifiers=frozenset({"NaN"})),
    "shl": Rule(_shift("<<"), ("", "u32")),
    "shr": Rule(_shift(">>"), ("", "u32")),
    "shf": Rule(_funnel, ("", "", "u32"), modifiers=frozenset({"l", "r", "wrap", "clamp"})),
    "bfi": Rule(_insert, ("", "", "u32", "u32")),
    "bfe": Rule(_extract, ("", "u32", "u32")),
    "neg": Rule(lambda kind, mods, a: f"-({a})" if is_float(kind) else f"({C_TYPE[kind]})(0 - ({unsigned(kind)})({a}))", ("",)),
    "not": Rule(lambda kind, mods, a: f"!({a})" if kind == "pred" else f"~({a})", ("",)),
    "abs": Rule(_of_one("({a}) < 0 ? -({a}) : ({a})", "fabs{f}({a})"), ("",)),
    "rcp": Rule(_of_one("", "1 / ({a})"), ("",)),
    "sqrt": Rule(_of_one("", "sqrt{f}({a})"), ("",)),
    "rsqrt": Rule(_of_one("", "1 / sqrt{f}({a})"), ("",)),
    "selp": Rule(lambda kind, mods, a, b, p: f"({p}) ? ({a}) : ({b})", ("", "", "pred")),
    "prmt": Rule(lambda kind, mods, a, b, s: f"permute_bytes({a}, {b}, {s})", ("b32", "b32", "b32")),
}


def compute(opcode, kind, modifiers, sources):
    """(C expression, type of the result); sources(types) gives the C expressions of the operands."""
    rule = RULES[opcode]
    left = [m for m in modifiers if m not in HARMLESS | rule.modifiers]
    if left:
        raise UnsupportedError(f"modifiers {left} of {opcode}")
    to = rule.result(kind, modifiers)
    kinds = [{"": kind, "wide": to}.get(source, source) for source in rule.sources]
    return rule.text(kind, modifiers, *sources(kinds)), to


_ORDER = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "ls": "<=", "hi": ">", "hs": ">="}


def compare(name, kind, a, b):
    """setp: the ordered comparisons are false for NaN, those that end in u are true."""
    nan = f"(({a}) != ({a}) || ({b}) != ({b}))"
    if name in ("nan", "num"):
        return nan if name == "nan" else f"!{nan}"
    if name in _ORDER:
        test = f"(({a}) {_ORDER[name]} ({b}))"
        return f"({test} && !{nan})" if is_float(kind) else test
    return f"((({a}) {_ORDER[name[:-1]]} ({b})) || {nan})"


_ROUND = {"rni": "rint", "rmi": "floor", "rpi": "ceil", "rzi": "trunc"}
_LIMITS = {f"{k}{n}": (f"INT{n}_MIN" if k == "s" else "0", f"{'' if k == 's' else 'U'}INT{n}_MAX")
           for k in "us" for n in (8, 16, 32, 64)}  # fmt: skip


def convert(modifiers, value):
    """cvt: (C expression, type). value(kind) is the source read as that type."""
    to, of = [m for m in modifiers if m in C_TYPE][-2:]
    rounding = next((m for m in modifiers if m in _ROUND), "")
    left = [m for m in modifiers if m not in {to, of, rounding} | HARMLESS]
    if left or (rounding and is_float(to)):
        raise UnsupportedError(f"modifiers {modifiers} of cvt")
    x = value(of)
    if is_float(of) and not is_float(to):
        low, high = _LIMITS[to]
        return f"TO_INT({C_TYPE[to]}, {low}, {high}, {_ROUND[rounding]}((double)({x})))", to
    return f"({C_TYPE[to]})({x})", to
