"""Elements of one side as the compiled programs read them."""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from diffai_jupyter.scan.kernels.vectors import (
    F32,
    F64,
    I8,
    I16,
    I32,
    Program,
    Value,
    has_halves,
    splat,
    vector,
)

STORED = {"f64": F64, "f32": F32, "f16": I16, "bf16": I16, "f8_e4m3": I8, "f8_e5m2": I8}
"""Ways in which elements are stored, and what of."""
_E4M3_SCALE = 256.0


def is_possible(kind: str) -> bool:
    """Say whether the programs read elements that are stored in this way."""
    return kind in STORED and (kind in ("f64", "f32", "bf16") or has_halves())


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a tile, or what lies behind one of its elements."""

    program: Program
    kind: str
    start: Value

    def behind(self, count: Value) -> Side:
        """Return what lies behind so many elements."""
        return Side(self.program, self.kind, self.program.build.gep(self.start, [count]))

    @property
    def element(self) -> ir.Type:
        """What `values` returns vectors of."""
        return F64 if self.kind == "f64" else F32

    def values(self, at: Value, lanes: int) -> Value:
        """Return elements as they are, those of 16 bits as floats of 32."""
        build = self.program.build
        codes = self.program.load(self.start, at, lanes)
        if self.kind == "bf16":
            wide = build.shl(build.zext(codes, vector(I32, lanes)), splat(I32, lanes, 16))
            return build.bitcast(wide, vector(F32, lanes))
        if self.kind in ("f64", "f32"):
            return codes
        if self.kind != "f16":
            codes = self._halves(build.zext(codes, vector(I16, lanes)), lanes)
        halves = build.fpext(build.bitcast(codes, vector(ir.HalfType(), lanes)), vector(F32, lanes))
        return build.fmul(halves, splat(F32, lanes, _E4M3_SCALE)) if self.kind == "f8_e4m3" else halves

    def _halves(self, codes: Value, lanes: int) -> Value:
        """Return codes of 8 bits as those of 16: sign, exponent and mantissa stand where these have them.

        The exponents of E4M3 count from another number, which a factor makes good, and its NaN comes out as 480,
        which is more than its largest number.
        """
        build = self.program.build
        if self.kind == "f8_e5m2":
            return build.shl(codes, splat(I16, lanes, 8))
        sign = build.shl(build.and_(codes, splat(I16, lanes, 0x80)), splat(I16, lanes, 8))
        return build.or_(sign, build.shl(build.and_(codes, splat(I16, lanes, 0x7F)), splat(I16, lanes, 7)))

    def wide(self, at: Value, lanes: int) -> Value:
        """Return elements as floats of 64 bits."""
        return self.program.widened(self.values(at, lanes))


def sides_of(program: Program, kinds: tuple[str, ...]) -> list[Side]:
    """Return the sides whose addresses are the first arguments of a program."""
    return [Side(program, kind, start) for kind, start in zip(kinds, program.arguments[: len(kinds)], strict=True)]


def pointers_to(kinds: tuple[str, ...]) -> list[ir.Type]:
    """Return the types of the addresses of sides."""
    return [STORED[kind].as_pointer() for kind in kinds]
