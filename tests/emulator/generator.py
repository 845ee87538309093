"""Entry -> C: step(), which runs one thread until it ends or has to wait for others."""

import pathlib
import re

from .opcodes import C_TYPE, HARMLESS, RULES, UnsupportedError, compare, compute, convert, is_float
from .parser import BITS, split_operands

RUNTIME = pathlib.Path(__file__).with_name("runtime.c")
_SPECIAL = {"%laneid": "t->lane", "WARP_SZ": "32"}
_VECTOR = {"%tid": "t->tid", "%ntid": "ntid", "%ctaid": "t->block->ctaid", "%nctaid": "nctaid"}
_MEMBERS = {"pred": "u", "f16": "f", "f32": "f", "f64": "f"}
_INVOLVED = ("bar", "bra", "cvt", "cvta", "exit", "ld", "mov", "ret", "setp", "shfl", "st", "vote")


def opcodes():
    """All that is supported."""
    return sorted({*RULES, *_INVOLVED})


def _member(kind):
    return _MEMBERS.get(kind) or ("s" if kind[0] == "s" else "u")


class Generator:
    """The C of one entry function; the method of an involved opcode is named after it."""

    def __init__(self, entry):
        self.entry, self.cases = entry, 0

    def source(self):
        fields = " ".join(f"R{bits} {self._field(name)};" for name, bits in self.entry.registers.items())
        lines = [self._statement(s) for s in self.entry.statements]
        return "\n".join([
            f"#define REGISTERS {fields or 'char none;'}",
            f"#define LOCAL_BYTES {self.entry.local_bytes + 16}",
            RUNTIME.read_text(),
            "static void step(Thread *t) {\nswitch (t->resume) { case 0: ;", *lines, "}\nt->state = EXITED; }\n",
        ])  # fmt: skip

    @staticmethod
    def _field(name):
        return "r_" + name[1:]

    def _statement(self, s):
        if s.label:
            return f"L_{s.label}: ;"
        kind = s.modifiers[-1] if s.modifiers else ""
        try:
            if s.opcode in RULES:
                code = self._computed(s, kind)
            elif s.opcode in _INVOLVED:
                code = getattr(self, f"_{s.opcode}")(s, kind)
            else:
                raise UnsupportedError(f"opcode {s.opcode}")
        except (UnsupportedError, KeyError, ValueError, AttributeError, TypeError, IndexError, StopIteration) as error:
            raise UnsupportedError(f"ptx line {s.line}: {s.opcode}.{'.'.join(s.modifiers)} {s.operands}: {error}") from error
        guard = f"if ({self.value(s.guard, 'pred')}) " if s.guard else ""
        return f"t->line = {s.line}; {guard}{{ {code} }}"

    def _computed(self, s, kind):
        target, *sources = s.operands

        def values(kinds):
            return [self.value(text, k) for text, k in zip(sources, kinds, strict=True)]

        text, to = compute(s.opcode, kind, s.modifiers[:-1], values)
        return self.assign(target, to, text)

    # ------------------------------------------------------------------------------------------------------ operands
    def case(self):
        self.cases += 1
        return self.cases

    def value(self, text, kind):
        """C expression: an operand, read as a type."""
        text = text.strip()
        if text.startswith("!"):
            return f"(!{self.value(text[1:], kind)})"
        if text in _SPECIAL:
            return _SPECIAL[text]
        if text in self.entry.registers:
            bits, field = self.entry.registers[text], f"t->r.{self._field(text)}"
            if kind == "pred" or bits == 1:
                return f"{field}.u"
            if bits == BITS[kind]:
                return f"{field}.{_member(kind)}"
            if is_float(kind):
                raise UnsupportedError(f"{text} read as {kind}")
            return f"(({C_TYPE[kind]}){field}.{_member(kind)})"
        part = re.fullmatch(r"(%\w+)\.([xyz])", text)
        if part and part[1] in _VECTOR:
            return f"({_VECTOR[part[1]]}[{'xyz'.index(part[2])}])"
        return self._constant(text, kind)

    def _constant(self, text, kind):
        m = re.fullmatch(r"0[fFdD]([0-9A-Fa-f]{8}|[0-9A-Fa-f]{16})", text)
        if m:
            bits = len(m[1]) * 4
            return f"(((R{bits}){{.u = 0x{m[1]}ull}}).{_member(kind)})"
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
            number = int(text.rstrip("U"), 0)
            literal = "INT64_MIN" if number == -(2**63) else f"{number}{'ll' if number < 2**63 else 'ull'}"
            return f"(({C_TYPE[kind]}){literal})"
        m = re.fullmatch(r"([\w$]+)(?:\+(-?\d+))?", text)
        for symbols in (self.entry.shared, self.entry.local):
            if m and m[1] in symbols:
                return f"({symbols[m[1]]}ull + ({m[2] or 0}))"
        raise UnsupportedError(f"operand {text}")

    def assign(self, text, kind, expression):
        text = text.strip()
        if text == "_":
            return f"(void)({expression});"
        bits, field = self.entry.registers[text], f"t->r.{self._field(text)}"
        if bits == 1:
            return f"{field}.u = ({expression}) != 0;"
        if bits == BITS[kind]:
            return f"{field}.{_member(kind)} = {expression};"
        if is_float(kind):
            raise UnsupportedError(f"{text} written as {kind}")
        return f"{field}.{_member(kind)} = ({C_TYPE[kind]})({expression});"

    # ------------------------------------------------------------------------------------------------------- control
    def _bra(self, s, kind):
        return f"JUMP({self.case()}, L_{s.operands[0].replace('$', '_')})"

    def _ret(self, s, kind):
        return "t->state = EXITED; return;"

    _exit = _ret

    # -------------------------------------------------------------------------------------------------------- memory
    def _pointer(self, s, kind, address, access):
        """(C pointer to the first byte, elements)."""
        modifiers = [m for m in s.modifiers[:-1] if m not in HARMLESS - {"global"}]
        space = next((m for m in modifiers if m in ("param", "global", "shared", "local")), "")
        count = int(next((m for m in modifiers if m in ("v2", "v4")), "v1")[1])
        if "nc" in modifiers:
            access += "_NC"
        left = set(modifiers) - {space, f"v{count}", "nc"}
        if left or not space:
            raise UnsupportedError(f"modifiers {left} of a {space or 'generic'} access")
        base, offset = re.fullmatch(r"\[\s*(.+?)\s*(?:\+\s*(-?\d+)\s*)?\]", address).groups()
        if space == "param":
            return f"(uint8_t *)params + {self.entry.parameters[base].offset + int(offset or 0)}", count
        place = f"{self.value(base, 'u64')} + ({offset or 0}ll), {BITS[kind] // 8 * count}"
        return (f"local_at(t, {place})" if space == "local" else f"{space}_at(t, {place}, {access})"), count

    def _ld(self, s, kind):
        target, address = s.operands
        pointer, _ = self._pointer(s, kind, address, "READ")
        size = BITS[kind] // 8
        moves = " ".join(
            f"{{ {C_TYPE[kind]} v; memcpy(&v, p + {k * size}, {size}); {self.assign(r, kind, 'v')} }}"
            for k, r in enumerate(split_operands(target.strip("{}")))
        )
        return f"const uint8_t *p = {pointer}; {moves}"

    def _st(self, s, kind):
        address, source = s.operands
        pointer, _ = self._pointer(s, kind, address, "WRITE")
        size = BITS[kind] // 8
        moves = " ".join(
            f"{{ {C_TYPE[kind]} v = {self.value(r, kind)}; memcpy(p + {k * size}, &v, {size}); }}"
            for k, r in enumerate(split_operands(source.strip("{}")))
        )
        return f"uint8_t *p = {pointer}; {moves}"

    def _cvta(self, s, kind):
        """Generic addresses of global memory are the addresses themselves; of other memories they are not modelled."""
        if "global" not in s.modifiers:
            raise UnsupportedError("generic addresses of shared or local memory")
        return self.assign(s.operands[0], "u64", self.value(s.operands[1], "u64"))

    # ------------------------------------------------------------------------------------------ moves and conversions
    def _mov(self, s, kind):
        target, source = s.operands
        if target.startswith("{"):
            parts = split_operands(target.strip("{}"))
            bits = BITS[kind] // len(parts)
            whole = self.value(source, f"b{BITS[kind]}")
            moves = (self.assign(p, f"b{bits}", f"(uint{bits}_t)(v >> {bits * k})") for k, p in enumerate(parts))
            return f"uint64_t v = {whole}; {' '.join(moves)}"
        if source.startswith("{"):
            parts = split_operands(source.strip("{}"))
            bits, whole = BITS[kind] // len(parts), f"uint{BITS[kind]}_t"
            joined = (f"(({whole}){self.value(p, f'b{bits}')} << {bits * k})" for k, p in enumerate(parts))
            return self.assign(target, f"b{BITS[kind]}", " | ".join(joined))
        return self.assign(target, kind, self.value(source, kind))

    def _cvt(self, s, kind):
        text, to = convert(s.modifiers, lambda of: self.value(s.operands[1], of))
        return self.assign(s.operands[0], to, text)

    def _setp(self, s, kind):
        name, *joint = [m for m in s.modifiers[:-1] if m not in HARMLESS]
        target, a, b, *more = s.operands
        test = compare(name, kind, self.value(a, kind), self.value(b, kind))
        if joint:
            operator = {"and": "&&", "or": "||", "xor": "^"}[joint[0]]
            test = f"({test} {operator} {self.value(more[0], 'pred')})"
        first, *second = target.split("|")
        also = self.assign(second[0], "pred", "!c") if second else ""
        return f"int c = {test}; {self.assign(first, 'pred', 'c')} {also}"

    # ------------------------------------------------------------------------------------- barriers, warp operations
    def _bar(self, s, kind):
        words = [m for m in s.modifiers if m not in HARMLESS]
        if words == ["warp"]:
            return f"t->op = WARP_BARRIER; t->mask = {self.value(s.operands[0], 'b32')}; SUSPEND({self.case()}, AT_WARP_OP)"
        if not words and s.operands == ("0",):
            return f"t->op = BARRIER_PLAIN; SUSPEND({self.case()}, AT_BARRIER)"
        if words[:1] == ["red"] and s.operands[1] == "0" and len(s.operands) == 3:
            target, _, predicate = s.operands
            vote = f"t->op = BARRIER_{words[1].upper()}; t->vote = {self.value(predicate, 'pred')};"
            to = "u32" if words[1] == "popc" else "pred"
            return f"{vote} SUSPEND({self.case()}, AT_BARRIER) {self.assign(target, to, 't->result')}"
        raise UnsupportedError("barriers other than 0, or of a part of the block")

    def _shfl(self, s, kind):
        what = next(m for m in s.modifiers if m in ("up", "down", "bfly", "idx")).upper()
        target, *sources = s.operands
        first, *second = target.split("|")
        names = ("value", "argument", "clamp", "mask")
        inputs = " ".join(f"t->{n} = {self.value(v, 'b32')};" for n, v in zip(names, sources, strict=True))
        also = self.assign(second[0], "pred", "t->accepted") if second else ""
        result = self.assign(first, "b32", "t->result")
        return f"t->op = SHFL_{what}; {inputs} SUSPEND({self.case()}, AT_WARP_OP) {result} {also}"

    def _vote(self, s, kind):
        what = next(m for m in s.modifiers if m in ("any", "all", "ballot"))
        target, predicate, mask = s.operands
        inputs = f"t->vote = {self.value(predicate, 'pred')}; t->mask = {self.value(mask, 'b32')};"
        result = self.assign(target, "b32" if what == "ballot" else "pred", "t->result")
        return f"t->op = VOTE_{what.upper()}; {inputs} SUSPEND({self.case()}, AT_WARP_OP) {result}"
