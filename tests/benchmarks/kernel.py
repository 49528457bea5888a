"""The kernels by themselves: arrays in memory, one thread, no files."""

from __future__ import annotations

from benchmarks.choices import Choices
from benchmarks.measuring import Candidate, Tell, child, in_turn
from benchmarks.page import ratio, spread, table
from benchmarks.scan import kernels

DTYPES = ("F32", "BF16", "F16", "F8_E4M3")
COLUMNS, REPEATS = 2048, 40
TITLES = ("both sides", "compiled / numpy", "compiled, ns per element pair", "numpy, ns per element pair")


def measure(choices: Choices, tell: Tell) -> str:
    """Return a table of the time for one element of A and the same of B, where all of them differ."""
    rows = []
    for dtype in DTYPES:
        candidates = [
            Candidate(kernel, child("tile", dtype, COLUMNS, REPEATS), {"DIFFAI_KERNEL": kernel}) for kernel in kernels()
        ]
        found = in_turn(candidates, choices.runs, lambda what, dtype=dtype: tell(f"{dtype} in memory: {what}"))
        times = {
            name: [1e9 * one.figures["seconds"] / one.figures["elements"] for one in measured.outcomes if one.figures]
            for name, measured in found.items()
        }
        middles = {name: measured.median() for name, measured in found.items()}
        faster = middles["numpy"] / middles.get("compiled", float("nan"))
        rows.append([dtype, ratio(faster), spread(times.get("compiled", []), ".2f"), spread(times["numpy"], ".2f")])
    return table(TITLES, rows)
