"""Tables and the chart of predicted times: by module, by batch, by device."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from diffai_jupyter.contract.blocks import Align, Column, Curve, Mark, Sentence, Series, Table
from diffai_jupyter.facts.network.passage import Unit
from diffai_jupyter.facts.network.roofline import Bound, Forecast, Serving, Timing, forecast
from diffai_jupyter.hardware import PROFILES, Hardware
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import write_bytes

ASSUMED = (
    "modules run one after the other; matrices with one input, and the experts of a block, are one module",
    "arithmetic at the peak rate of the device whatever the dtype; tables, norms and activation functions take no time",
    "bytes are those of stored weights, of activations in and out, and of cached keys and values",
)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_MOST_KINDS = 3
_THIRDS = ("first third", "middle third", "last third")
_NUMBERS = re.compile(r"(\d+)")
_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_COUNTS = ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1.0, "FLOP"))

Named = tuple[str, tuple[Timing, ...]]


def write_time(seconds: float) -> str:
    """Write a time with three digits.

    Examples
    --------
    >>> write_time(0.0123), write_time(4.5e-6), write_time(75.0)
    ('12.3 ms', '4.5 µs', '75 s')
    """
    size, unit = next((one for one in _UNITS if seconds >= one[0]), _UNITS[-1])
    return f"{seconds / size:.3g} {unit}"


def formula(hardware: Hardware) -> Sentence:
    """Return the formula with the numbers of the device."""
    return Sentence(
        "Time of a module = max(operations / {flops} TFLOPS, bytes / {bandwidth} GB/s) + {start}. "
        "Device {device}: {basis}; activations and cache take {width} bytes a number.",
        {
            "flops": f"{hardware.flops / 1e12:.4g}", "bandwidth": f"{hardware.bandwidth / 1e9:.4g}",
            "start": write_time(hardware.overhead), "device": hardware.name, "basis": hardware.basis,
            "width": hardware.width,
        },
    )  # fmt: skip


def totals(found: Forecast, hardware: Hardware) -> Table:
    """Return what both networks do in all for one unit of work."""
    runs = (found.a, found.b)
    weights = [math.fsum(t.operation.weights for t in run.timings) for run in runs]
    numbers = [hardware.width * math.fsum(t.operation.numbers for t in run.timings) for run in runs]
    rows = (
        ("operations", *(_write_flops(run.flops) for run in runs)),
        ("weights that are read", *map(write_bytes, weights)),
        ("activations and cache", *map(write_bytes, numbers)),
        ("modules", *(str(len(run.timings)) for run in runs)),
        ("time", *(write_time(run.seconds) for run in runs)),
    )
    columns = (Column("in all", Align.TEXT), Column("A"), Column("B"))
    return Table(f"One {found.unit.value}, batch {found.work.batch}", columns, rows)


def by_module(found: Forecast) -> Table:
    """Return the times by what modules do, and by depth where modules of one kind differ."""
    roles = dict.fromkeys(t.operation.role for run in (found.b, found.a) for t in run.timings)
    rows = []
    for role in roles:
        sides = [[t for t in run.timings if t.operation.role == role] for run in (found.a, found.b)]
        is_split = max(map(_kinds, sides)) > _MOST_KINDS
        parts_a, parts_b = (_parts(side, role, is_split) for side in sides)
        for i in range(max(len(parts_a), len(parts_b))):
            a = parts_a[i] if i < len(parts_a) else ("", ())
            b = parts_b[i] if i < len(parts_b) else ("", ())
            rows.append(_row(a, b, found))
    rows.sort(key=lambda row: -row[0])
    return Table(
        "Time by module",
        (
            Column("module", Align.TEXT), Column("A modules"), Column("A"), Column("B modules"), Column("B"),
            Column("B % of time"), Column("B waits for", Align.TEXT),
        ),
        tuple(row[1] for row in rows),
        note="start: the time to begin a module is longer than its arithmetic and its bytes take.",
    )  # fmt: skip


def _kinds(timings: Sequence[Timing]) -> int:
    """Count modules that differ in cost."""
    return len({t.seconds for t in timings})


def _parts(timings: Sequence[Timing], role: str, is_split: bool) -> list[Named]:
    """Cut the modules of one role by their cost, or in thirds by depth where there are many costs."""
    if not timings:
        return []
    deep = sorted(timings, key=lambda t: _natural(t.operation.name))
    if is_split:
        size = max(1, math.ceil(len(deep) / len(_THIRDS)))
        cuts = [tuple(deep[i * size : (i + 1) * size]) for i in range(len(_THIRDS))]
        return [(f"{role}, {third}", cut) for third, cut in zip(_THIRDS, cuts, strict=True) if cut]
    costs = dict.fromkeys(t.seconds for t in deep)
    if len(costs) == 1:
        return [(role, tuple(deep))]
    return [_named(role, tuple(t for t in deep if t.seconds == cost)) for cost in costs]


def _named(role: str, timings: tuple[Timing, ...]) -> Named:
    blocks = [t.operation.block for t in timings]
    return f"{role}, from block {blocks[0]}" if blocks[0] is not None else role, timings


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    """Return a key that sorts numbers in names by their value."""
    return tuple((int(piece), "") if piece.isdigit() else (-1, piece) for piece in _NUMBERS.split(name))


def _row(a: Named, b: Named, found: Forecast) -> tuple[float, tuple[str | int | float, ...]]:
    """Return the time in B, then in A, for sorting, and the cells."""
    times = [math.fsum(t.seconds for t in part) for _, part in (a, b)]
    share = 100.0 * times[1] / found.b.seconds
    totals = {bound: math.fsum(t.seconds for t in b[1] if t.bound is bound) for bound in Bound}
    waits = max(totals, key=lambda bound: totals[bound]).value if b[1] else ""
    cells = (
        b[0] or a[0], len(a[1]), write_time(times[0]) if a[1] else "", len(b[1]), write_time(times[1]) if b[1] else "",
        round(share, 1), waits,
    )  # fmt: skip
    return times[1] or times[0] * 1e-9, cells


def chart(found: Forecast) -> Series:
    """Draw the share of time by what modules do."""
    totals = [_by_role(run.timings) for run in (found.a, found.b)]
    roles = sorted(
        set(totals[0]) | set(totals[1]), key=lambda role: (-totals[1].get(role, 0.0), -totals[0].get(role, 0.0), role)
    )
    curves = tuple(
        Curve(label, tuple(roles), tuple(100.0 * total.get(role, 0.0) / run.seconds for role in roles))
        for label, total, run in zip("AB", totals, (found.a, found.b), strict=True)
    )
    return Series(
        "time_by_module",
        "Share of time by module",
        Mark.BAR,
        curves,
        "what the modules do",
        "% of predicted time",
        Sentence(
            "{role} takes most of the time: {b:.0f} % in B, {a:.0f} % in A.",
            {"role": roles[0].capitalize(), "a": curves[0].y[0], "b": curves[1].y[0]},
        ),
    )


def _by_role(timings: Sequence[Timing]) -> dict[str, float]:
    parts: dict[str, list[float]] = {}
    for timing in timings:
        parts.setdefault(timing.operation.role, []).append(timing.seconds)
    return {role: math.fsum(seconds) for role, seconds in parts.items()}


def by_batch(pair: Pair) -> Table:
    """Return units a second at growing batches: where arithmetic binds, a larger batch brings nothing more."""
    hardware, rows = pair.deployment.hardware, []
    for batch in sorted({*BATCHES, pair.deployment.batch}):
        found = forecast(pair, hardware, batch)
        rows.append(
            (
                batch, _rate(batch / found.a.seconds), _rate(batch / found.b.seconds), _times(found.speed_ratio),
                found.b.bound.value,
            )
        )  # fmt: skip
        unit = found.unit
    return Table(
        f"{_plural(unit).capitalize()} a second by batch, on {hardware}",
        (Column("batch"), Column("A"), Column("B"), Column("B over A"), Column("B waits for", Align.TEXT)),
        tuple(rows),
    )


def by_device(pair: Pair) -> Table:
    """Return both times on all devices that are known, and on that of the user first."""
    chosen = pair.deployment.hardware
    devices = [chosen, *(profile for profile in PROFILES.values() if profile != chosen)]
    rows = []
    for device in devices:
        found = forecast(pair, device, pair.deployment.batch)
        rows.append(
            (
                device.name, f"{device.flops / 1e12:.4g}", f"{device.bandwidth / 1e9:.4g}", write_time(found.a.seconds),
                write_time(found.b.seconds), _times(found.speed_ratio), found.b.bound.value,
            )
        )  # fmt: skip
    return Table(
        f"Time on other devices, batch {pair.deployment.batch}",
        (
            Column("device", Align.TEXT), Column("TFLOPS"), Column("GB/s"), Column("A"), Column("B"),
            Column("B over A"), Column("B waits for", Align.TEXT),
        ),
        tuple(rows),
        note="B over A: speed, above 1 where B is faster. Peak rates of data sheets; give your own with --device.",
    )  # fmt: skip


def served(found: Forecast, serving: Serving) -> Table:
    """Return latency and throughput of both."""
    change = 100.0 * (found.b.seconds / found.a.seconds - 1.0)
    rates = [serving.count / seconds for seconds in (serving.seconds_a, serving.seconds_b)]
    how = f"{_plural(serving.unit)} a second, batch {serving.batch}"
    if serving.made:
        how += f": prompts of {serving.prompt}, answers of {serving.made}"
    faster = 100.0 * (rates[1] / rates[0] - 1.0)
    rows = (
        (
            f"time of one {found.unit.value}, batch {found.work.batch}", write_time(found.a.seconds),
            write_time(found.b.seconds), f"{change:+.1f}%", found.b.bound.value,
        ),
        (how, _rate(rates[0]), _rate(rates[1]), f"{faster:+.1f}%", serving.bounds[1].value),
    )  # fmt: skip
    return Table(
        "Latency and throughput",
        (
            Column("what", Align.TEXT), Column("A"), Column("B"), Column("change"), Column("B waits for", Align.TEXT),
        ),
        rows,
    )  # fmt: skip


def _write_flops(count: float) -> str:
    size, unit = next((one for one in _COUNTS if count >= one[0]), _COUNTS[-1])
    return f"{count / size:.4g} {unit}"


def _plural(unit: Unit) -> str:
    return {Unit.SEQUENCE: "sequences"}.get(unit, f"{unit.value}s")


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}x"
