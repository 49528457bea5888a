"""Programs that count in one tile what the sums do not tell, and find where it differs most."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from enum import IntEnum

from llvmlite import ir

from diffai_jupyter.scan.kernels.stored import pointers_to, sides_of
from diffai_jupyter.scan.kernels.vectors import F64, I32, I64, Program, Value, number, splat, vector

WIDE = 8


class Tally(IntEnum):
    """Slots that `tallies_of_tile` leaves."""

    ZEROS_A = 0
    TINY_A = 1
    HUGE_A = 2
    ZEROS_B = 3
    TINY_B = 4
    HUGE_B = 5
    CHANGED_NONZERO = 6


@functools.cache
def tallies_of_tile(kinds: tuple[str, ...]) -> Callable[..., None]:
    """Return the compiled program that counts zeros, tiny and huge numbers.

    Parameters
    ----------
    kinds : tuple of str
        As in `diffai_jupyter.scan.kernels.program.sums_of_tiles`.

    Returns
    -------
    callable
        ``(sides…, size, bounds, tallies)``: the addresses of the elements of each side, how many there are, the
        address of ``bounds[side, 2]`` (smallest normal and largest number, float64), and where ``tallies[len(Tally)]``
        go, as float64.
    """
    doubles = F64.as_pointer()
    program = Program("tallies", [*pointers_to(kinds), I64, doubles, doubles])
    *_, size, bounds, tallies = program.arguments
    build, sides = program.build, sides_of(program, kinds)
    slots = [number(i) for i in range(3 * len(sides))]
    if len(sides) == 2:
        slots.append(number(Tally.CHANGED_NONZERO))

    def step(at: Value, state: Sequence[Value], lanes: int) -> Sequence[Value]:
        values = [side.values(at, lanes) for side in sides]
        masks = []
        for i, value in enumerate(values):
            size_ = program.magnitude(value)
            zero = splat(value.type.element, lanes, 0.0)
            tiny, huge = (
                program.spread(build.load(build.gep(bounds, [number(2 * i + j)])), value.type) for j in range(2)
            )
            masks += [
                build.fcmp_ordered("==", value, zero), build.fcmp_ordered("<", size_, tiny),
                build.fcmp_ordered(">=", size_, huge),
            ]  # fmt: skip
        if len(values) == 2:
            a, b = values if values[0].type == values[1].type else map(program.widened, values)
            is_changed = build.fcmp_unordered("!=", a, b)
            masks.append(build.and_(is_changed, build.fcmp_unordered("!=", b, splat(b.type.element, lanes, 0.0))))
        return [program.counted(total, mask) for total, mask in zip(state, masks, strict=True)]

    for slot, total in zip(slots, _counted(program, size, len(slots), step), strict=True):
        build.store(total, build.gep(tallies, [slot]))
    return program.compiled()


Step = Callable[[Value, Sequence[Value], int], Sequence[Value]]


def _counted(program: Program, size: Value, counts: int, step: Step) -> list[Value]:
    """Go through a tile with ``step(at, totals, lanes)`` and return the totals as doubles."""
    build = program.build
    whole = build.and_(size, number(-WIDE))
    wide = program.loop(
        number(0), size, WIDE, [splat(I32, WIDE, 0)] * counts, lambda at, state: step(at, state, WIDE))  # fmt: skip
    rest = program.loop(whole, size, 1, [splat(I32, 1, 0)] * counts, lambda at, state: step(at, state, 1))
    both = zip(wide, rest, strict=True)
    return [build.sitofp(build.add(*(program.halved(total, build.add) for total in pair)), F64) for pair in both]


@functools.cache
def casts_of_tile(kinds: tuple[str, str]) -> Callable[..., None]:
    """Return the compiled program that counts what rounding explains.

    Parameters
    ----------
    kinds : tuple of str
        As in `diffai_jupyter.scan.kernels.program.sums_of_tiles`.

    Returns
    -------
    callable
        ``(sides…, size, formats, found)``: the addresses of the elements of each side, how many there are, the address
        of ``formats[side, 3]`` (smallest normal number, distance of neighbours at one, largest number, float64), and
        where two counts go as float64: elements that are equal or rounded from the other side, and with them those
        that may be rounded from one source.
    """
    doubles = F64.as_pointer()
    program = Program("casts", [*pointers_to(kinds), I64, doubles, doubles])
    *_, size, formats, found = program.arguments
    build, sides = program.build, sides_of(program, kinds)
    constants = [[build.load(build.gep(formats, [number(3 * i + j)])) for j in range(3)] for i in range(2)]

    def gap(value: Value, side: int) -> Value:
        """Return how far neighbours in the format of a side lie apart around a value."""
        kind = value.type
        smallest, unit, _ = (program.filled(constant, kind) for constant in constants[side])
        bits = build.and_(build.bitcast(value, vector(I64, kind.count)), splat(I64, kind.count, 0x7FF << 52))
        return build.fmul(program.larger(build.bitcast(bits, kind), smallest), unit)

    def is_rounded(source: Value, target: Value, side: int) -> Value:
        """Say where a target is a source rounded to the format of its side; overflow may have been cut off."""
        distance, largest = gap(source, side), program.filled(constants[side][2], source.type)
        rounded = build.fmul(program.rounded(build.fdiv(source, distance)), distance)
        is_beyond = build.fcmp_ordered(">", program.magnitude(rounded), largest)
        cut = build.select(build.fcmp_ordered(">", source, splat(F64, source.type.count, 0.0)), largest,
                           build.fneg(largest))  # fmt: skip
        return build.fcmp_ordered("==", build.select(is_beyond, cut, rounded), target)

    def step(at: Value, state: Sequence[Value], lanes: int) -> Sequence[Value]:
        a, b = (side.wide(at, lanes) for side in sides)
        is_exact = build.or_(build.fcmp_ordered("==", a, b), build.or_(is_rounded(a, b, 1), is_rounded(b, a, 0)))
        half = splat(F64, lanes, 0.5)
        reach = build.fadd(build.fmul(gap(a, 0), half), build.fmul(gap(b, 1), half))
        is_common = build.or_(is_exact, build.fcmp_ordered("<=", program.magnitude(build.fsub(b, a)), reach))
        return [program.counted(total, mask) for total, mask in zip(state, (is_exact, is_common), strict=True)]

    for i, total in enumerate(_counted(program, size, 2, step)):
        build.store(total, build.gep(found, [number(i)]))
    return program.compiled()


@functools.cache
def place_of_difference(kinds: tuple[str, str]) -> Callable[..., None]:
    """Return the compiled program that finds the largest difference.

    Parameters
    ----------
    kinds : tuple of str
        As in `diffai_jupyter.scan.kernels.program.sums_of_tiles`.

    Returns
    -------
    callable
        ``(sides…, size, difference, place)``: the addresses of the elements of each side, how many there are, a
        difference that is there, and the address of an int64 for the first place of that.
    """
    program = Program("place", [*pointers_to(kinds), I64, F64, I64.as_pointer()])
    *_, size, difference, place = program.arguments
    build = program.build
    a, b = sides_of(program, kinds)

    def step(at: Value, state: Sequence[Value], lanes: int) -> Sequence[Value]:
        apart = program.magnitude(build.fsub(b.wide(at, lanes), a.wide(at, lanes)))
        is_there = build.fcmp_ordered("==", apart, program.filled(difference, apart.type))
        first, kind = state[0], vector(I64, lanes)
        is_first = build.and_(is_there, build.icmp_signed("<", program.filled(at, kind), first))
        return [build.select(is_first, program.filled(at, kind), first)]

    def smaller(one: Value, other: Value) -> Value:
        return build.select(build.icmp_signed("<", one, other), one, other)

    nowhere = (1 << 63) - 1
    whole = build.and_(size, number(-WIDE))
    (wide,) = program.loop(
        number(0), size, WIDE, [splat(I64, WIDE, nowhere)], lambda at, state: step(at, state, WIDE))  # fmt: skip
    (rest,) = program.loop(whole, size, 1, [splat(I64, 1, nowhere)], lambda at, state: step(at, state, 1))
    # A round notes where it began; its lane tells how far behind that the place is.
    lanes = ir.Constant(vector(I64, WIDE), list(range(WIDE)))
    is_noted = build.icmp_signed("<", wide, splat(I64, WIDE, nowhere))
    places = build.select(is_noted, build.add(wide, lanes), wide)
    build.store(smaller(program.halved(places, smaller), program.halved(rest, smaller)), place)
    return program.compiled()
