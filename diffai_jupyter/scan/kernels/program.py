"""The program that sums tiles, for each way in which two sides store their elements.

It adds in the order that `diffai_jupyter.scan.tiles` lays down, and finds extremes and the largest difference on the
way. `diffai_jupyter.scan.kernels.counts` holds programs for what is asked where these say that there is something.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from enum import IntEnum

from diffai_jupyter.scan.kernels.stored import Side, pointers_to, sides_of
from diffai_jupyter.scan.kernels.vectors import F64, I32, I64, Program, Value, number, splat, vector
from diffai_jupyter.scan.tiles import LANES

STRIP = 2048
"""Columns that are summed at a time, so that their sums stay in the cache; whole rounds of lanes."""
TOGETHER = 4
"""Rows that are summed at a time: so often less the sums of the columns are loaded and stored."""
WIDE = 8
_DOWN, _TOTALS = 6, 6


class Raw(IntEnum):
    """Slots that the program leaves for each tile."""

    SUM_A = 0
    SQUARES_A = 1
    SUM_B = 2
    SQUARES_B = 3
    SUM_D = 4
    SQUARES_D = 5
    LARGEST_D = 6
    CHANGED = 7
    LOW_A = 8
    HIGH_A = 9
    SMALLEST_A = 10
    LOW_B = 11
    HIGH_B = 12
    SMALLEST_B = 13
    FURTHEST = 14


def room_size(height: int, cols: int) -> int:
    """Return how many doubles the program needs for itself, for tiles of so many rows."""
    kept = height if cols > STRIP else 1
    return _DOWN * STRIP + _TOTALS * LANES + 9 * WIDE + 2 * LANES * kept


@functools.cache
def sums_of_tiles(kinds: tuple[str, ...], is_single: bool) -> Callable[..., None]:
    """Return the compiled program.

    Parameters
    ----------
    kinds : tuple of str
        How A and B store their elements; one entry where a side is alone.
    is_single : bool
        Whether a row has at most `STRIP` elements.

    Returns
    -------
    callable
        ``(sides…, rows, cols, height, reach, room, raw, row_squares, col_squares)``: the addresses of the elements of
        each side, the size of the block, rows of a tile, how far the bits of neighbouring numbers lie apart, the
        address of `room_size` doubles, and where the results go: ``raw[tile, len(Raw)]``, ``row_squares[side, rows]``,
        ``col_squares[tile, side, cols]``, all float64.
    """
    doubles = F64.as_pointer()
    program = Program("sums", [*pointers_to(kinds), I64, I64, I64, I64, doubles, doubles, doubles, doubles])
    *_, rows, cols, height, reach, room, raw, row_squares, col_squares = program.arguments
    build, sides = program.build, sides_of(program, kinds)

    def one(at: Value) -> None:
        top = build.mul(at, height)
        left = build.sub(rows, top)
        size = build.select(build.icmp_signed("<", left, height), left, height)
        before = build.mul(top, cols)
        each = [number(i) for i in range(len(sides))]
        _Tile(
            program, [side.behind(before) for side in sides], size, cols, reach, room, is_single,
            build.gep(raw, [build.mul(at, number(len(Raw)))]),
            [build.gep(row_squares, [build.add(build.mul(i, rows), top)]) for i in each],
            [build.gep(col_squares, [build.mul(build.add(build.mul(at, number(len(sides))), i), cols)]) for i in each],
        ).write()  # fmt: skip

    tiles = build.sdiv(build.add(rows, build.sub(height, number(1))), height)
    program.each(number(0), tiles, 1, one)
    return program.compiled()


class _Tile:
    """Writes the code for one tile."""

    def __init__(
        self, program: Program, sides: list[Side], rows: Value, cols: Value, reach: Value, room: Value,
        is_single: bool, raw: Value, row_squares: list[Value], col_squares: list[Value],
    ) -> None:  # fmt: skip
        self._program, self._sides, self._rows, self._cols, self._reach = program, sides, rows, cols, reach
        self._is_single, self._is_pair = is_single, len(sides) == 2
        self._raw, self._row_squares, self._col_squares = raw, row_squares, col_squares
        places = [0, _DOWN * STRIP, _DOWN * STRIP + _TOTALS * LANES, _DOWN * STRIP + _TOTALS * LANES + 9 * WIDE]
        self._down, self._totals, self._extremes, self._across = (program.build.gep(room, [number(i)]) for i in places)
        self._are_alike = self._is_pair and sides[0].kind == sides[1].kind
        self._bits = I64 if sides[0].kind == "f64" else I32
        self._quantities = range(6 if self._is_pair else 2)

    def write(self) -> None:
        """Write everything."""
        program, build = self._program, self._program.build
        program.fill(self._totals, number(_TOTALS * LANES))
        self._start_extremes()
        if not self._is_single:
            program.fill(self._across, build.mul(number(2 * LANES), self._rows))
        program.each(number(0), build.add(self._cols, number(STRIP - 1)), STRIP, self._strip)
        for quantity in self._quantities:
            lanes = build.gep(self._totals, [number(quantity * LANES)])
            build.store(self._folded(lanes), build.gep(self._raw, [number(quantity)]))
        self._finish_extremes()
        if not self._is_single:
            program.each(number(0), self._rows, 1, self._finish_row)

    def _strip(self, left: Value) -> None:
        """Sum a strip of columns, from `left` on."""
        program, build = self._program, self._program.build
        rest = build.sub(self._cols, left)
        width = build.select(build.icmp_signed("<", rest, number(STRIP)), rest, number(STRIP))
        for quantity in self._quantities:
            program.fill(self._sums_down(quantity), width)
        program.each(number(0), self._rows, TOGETHER, lambda at: self._rows_of_strip(at, left, width, TOGETHER))
        whole = build.and_(self._rows, number(-TOGETHER))
        program.each(whole, self._rows, 1, lambda at: self._rows_of_strip(at, left, width, 1))
        for quantity in self._quantities:
            down = self._sums_down(quantity)
            lanes = build.gep(self._totals, [number(quantity * LANES)])
            program.add_to_lanes(lanes, LANES, width, functools.partial(program.load, down))
        for i, squares in enumerate(self._col_squares):
            program.copy(self._sums_down(2 * i + 1), build.gep(squares, [left]), width)

    def _sums_down(self, quantity: int) -> Value:
        return self._program.build.gep(self._down, [number(quantity * STRIP)])

    def _rows_of_strip(self, top: Value, left: Value, width: Value, count: int) -> None:
        """Sum some rows of a strip."""
        build = self._program.build
        firsts = [build.add(build.mul(build.add(top, number(i)), self._cols), left) for i in range(count)]
        rows = [[side.behind(first) for first in firsts] for side in self._sides]
        self._add_down(rows, width)

        def one(at: Value) -> None:
            first = build.add(build.mul(at, self._cols), left)
            row = [side.behind(first) for side in self._sides]
            self._note_extremes(row, width)
            for i, squares in enumerate(self._row_squares):
                self._add_across(row[i], i, at, width, squares)

        self._program.each(top, build.add(top, number(count)), 1, one)

    def _add_down(self, rows: list[list[Side]], width: Value) -> None:
        """Add elements, differences and their squares to the sums of the columns."""
        program, build = self._program, self._program.build

        def add(quantity: int, values: list[Value], at: Value) -> None:
            down = self._sums_down(quantity)
            total = program.load(down, at, values[0].type.count)
            for value in values:
                total = build.fadd(total, value)
            program.store(total, down, at)

        def step(at: Value, state: Sequence[Value], lanes: int) -> Sequence[Value]:
            wide = [[row.wide(at, lanes) for row in side] for side in rows]
            if self._is_pair:
                wide.append([build.fsub(b, a) for a, b in zip(*wide, strict=True)])
            for i, values in enumerate(wide):
                add(2 * i, values, at)
                add(2 * i + 1, [build.fmul(value, value) for value in values], at)
            if not self._is_pair:
                return state
            (largest,) = state
            for value in wide[-1]:
                largest = program.larger(program.magnitude(value), largest)
            return [largest]

        kept = [(self._extreme(0), F64)] if self._is_pair else []
        program.reduce(kept, width, WIDE, step)

    def _note_extremes(self, row: Sequence[Side], width: Value) -> None:
        """Note least, greatest and smallest elements of one row, and count those that differ."""
        program, build = self._program, self._program.build

        def step(at: Value, state: Sequence[Value], lanes: int) -> Sequence[Value]:
            left, values = list(state), [side.values(at, lanes) for side in row]
            for i, value in enumerate(values):
                low, high, smallest = left[3 * i : 3 * i + 3]
                left[3 * i : 3 * i + 3] = (
                    program.smaller(value, low),
                    program.larger(value, high),
                    program.smaller(program.magnitude(value), smallest),
                )
            if self._is_pair:
                a, b = values if values[0].type == values[1].type else map(program.widened, values)
                left[6] = program.counted(left[6], build.fcmp_unordered("!=", a, b))
                if self._are_alike:
                    left[7] = self._further(values, left[7])
            return left

        kept = [(self._extreme(1 + 3 * i + j), side.element) for i, side in enumerate(row) for j in range(3)]
        if self._is_pair:
            kept += [(self._extreme(7), I32), (self._extreme(8), self._bits)][: 1 + self._are_alike]
        program.reduce(kept, width, WIDE, step)

    def _further(self, values: Sequence[Value], furthest: Value) -> Value:
        """Return the larger of `furthest` and the distance of the bits of two vectors, plus the reach, unsigned.

        Signed bits of floats are in the order of the numbers, for either sign; a distance from minus the reach to
        the reach is at most twice the reach then, and every other one is more.
        """
        build, kind = self._program.build, vector(self._bits, values[0].type.count)
        a, b = (build.bitcast(value, kind) for value in values)
        reach = self._reach if self._bits == I64 else build.trunc(self._reach, self._bits)
        apart = build.add(build.sub(b, a), self._program.filled(reach, kind))
        return build.select(build.icmp_unsigned(">", apart, furthest), apart, furthest)

    def _extreme(self, which: int) -> Value:
        return self._program.build.gep(self._extremes, [number(which * WIDE)])

    def _start_extremes(self) -> None:
        program, inf = self._program, float("inf")
        program.fill(self._extreme(0), number(WIDE))
        for i, side in enumerate(self._sides):
            for j, value in enumerate((inf, -inf, inf)):
                program.put(splat(side.element, WIDE, value), self._extreme(1 + 3 * i + j))
        program.fill(self._extreme(7), number(2 * WIDE))

    def _finish_extremes(self) -> None:
        program, build = self._program, self._program.build
        joins = (program.smaller, program.larger, program.smaller)
        for i, side in enumerate(self._sides):
            for j, join in enumerate(joins):
                found = program.widened(program.get(self._extreme(1 + 3 * i + j), side.element, WIDE))
                program.build.store(program.halved(found, join), build.gep(self._raw, [number(Raw.LOW_A + 3 * i + j)]))
        if self._is_pair:
            largest = program.halved(program.get(self._extreme(0), F64, WIDE), program.larger)
            build.store(largest, build.gep(self._raw, [number(Raw.LARGEST_D)]))
            changed = program.halved(program.get(self._extreme(7), I32, WIDE), build.add)
            build.store(build.sitofp(changed, F64), build.gep(self._raw, [number(Raw.CHANGED)]))
        if self._are_alike:

            def larger(one: Value, other: Value) -> Value:
                return build.select(build.icmp_unsigned(">", one, other), one, other)

            furthest = program.halved(program.get(self._extreme(8), self._bits, WIDE), larger)
            build.store(build.uitofp(furthest, F64), build.gep(self._raw, [number(Raw.FURTHEST)]))

    def _add_across(self, row: Side, side: int, at: Value, width: Value, squares: Value) -> None:
        """Add the squares of a row; its lanes are kept for the next strip where there is one."""
        program, build = self._program, self._program.build
        place = number(side * LANES) if self._is_single else build.mul(
            build.add(build.mul(at, number(2)), number(side)), number(LANES))  # fmt: skip
        lanes = build.gep(self._across, [place])
        if self._is_single:
            program.fill(lanes, number(LANES))

        def square(start: Value, count: int) -> Value:
            value = row.wide(start, count)
            return build.fmul(value, value)

        program.add_to_lanes(lanes, LANES, width, square)
        if self._is_single:
            build.store(self._folded(lanes), build.gep(squares, [at]))

    def _finish_row(self, at: Value) -> None:
        build = self._program.build
        for side, squares in enumerate(self._row_squares):
            place = build.mul(build.add(build.mul(at, number(2)), number(side)), number(LANES))
            build.store(self._folded(build.gep(self._across, [place])), build.gep(squares, [at]))

    def _folded(self, lanes: Value) -> Value:
        """Return the sum of lanes, halved until one is left."""
        program = self._program
        return program.halved(program.get(lanes, F64, LANES), program.build.fadd)
