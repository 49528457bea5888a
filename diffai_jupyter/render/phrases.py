"""How cells, values and evidence read, before any renderer adds its markup."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Decimal

from diffai_jupyter.contract.blocks import Align, Cell, Column, Fact, Facts, Notice, Sentence, Table
from diffai_jupyter.evidence import REASONS, Value
from diffai_jupyter.wording import Name, say, show_name, told, write_number, write_value

MINUS = "\u2212"

_MOST_DECIMALS = 7
_MOST_DIGITS = 10**6


def visible(text: str) -> str:
    r"""Return `text` whole, with control characters and lone surrogates spelled out.

    Examples
    --------
    >>> visible("a\nb"), visible("plain")
    ('a\\u000ab', 'plain')
    """
    return text if text.isprintable() else show_name(text, len(text))


def shorten(text: str, limit: int) -> str:
    """Cut the middle out of `text`: tensor names differ at their ends.

    Examples
    --------
    >>> shorten("model.layers.17.mlp.up_proj.weight", 16)
    'model.l…j.weight'
    """
    if len(text) <= limit:
        return text
    head = max(limit - 1, 0) // 2
    tail = max(limit - 1 - head, 0)
    return f"{text[:head].rstrip('.')}…{text[len(text) - tail :].lstrip('.')}"


def sentence(
    block: Sentence | Notice, wrap: Callable[[str], str] = str, plain: Callable[[str], str] = str
) -> str:
    """Fill a sentence; `wrap` and `plain` write the markup, as in `diffai_jupyter.wording.say`."""
    return say(block.template, block.said, wrap, lambda text: plain(visible(text)))


def evidence_words(value: Value, lang: str = "en") -> str:
    """Say how a value is known, in words.

    Examples
    --------
    >>> from diffai_jupyter.evidence import derived, measured, unknown
    >>> evidence_words(measured(0.5, "both files", (0.4, 0.6)))
    'measured: both files, 0.4 to 0.6'
    >>> evidence_words(derived(2, "2,048 tokens")), evidence_words(unknown("NO_TARGET", "no embedding"))
    ('derived: 2,048 tokens', 'unknown: NO_TARGET, no embedding')
    """
    said = [value.reason or "", value.assumption, value.source, value.detail]
    if value.confidence is not None:
        said.append(say(told("confidence {p}", lang), {"p": f"{value.confidence:.3g}"}))
    if value.interval is not None:
        low, high = map(write_number, value.interval)
        said.append(say(told("{low} to {high}", lang), {"low": low, "high": high}))
    details = told(", ", lang).join(part for part in said if part)
    word = told(str(value.evidence), lang)
    return visible(f"{word}: {details}" if details else word)


def missing(facts: Facts, lang: str = "en") -> tuple[str, ...]:
    """Say, once for each reason among `facts`, what is missing and what would settle it."""
    codes = dict.fromkeys(fact.value.reason for fact in facts.facts if fact.value.reason)
    return tuple(
        f"{code}: {told(f'{REASONS[code].sentence} {REASONS[code].remedy}'.rstrip(), lang)}" for code in codes
    )


def value_cell(fact: Fact, lang: str = "en") -> str:
    """Write the value of a fact; a `Name` stays one."""
    value = fact.value.value
    written = write_value(value, fact.form, fact.allows_infinite)
    if value is None:
        written = told(written, lang)
    return Name(written) if isinstance(value, Name) else visible(written)


def facts_table(facts: Facts, lang: str = "en") -> Table:
    """Return the same facts as a table, for renderers that draw grids."""
    has_notes = any(fact.note for fact in facts.facts)
    titles = ("Quantity", "Value", "Evidence", "Meaning") if has_notes else ("Quantity", "Value", "Evidence")
    return Table(
        title=facts.title,
        columns=tuple(Column(told(title, lang), Align.TEXT) for title in titles),
        rows=tuple(
            (fact.label, value_cell(fact, lang), evidence_words(fact.value, lang), fact.note)[: len(titles)]
            for fact in facts.facts
        ),
    )


def table_title(table: Table, lang: str = "en") -> str:
    """Return the line above a table, with how many rows were left out."""
    said = {"shown": f"{len(table.rows):,}", "total": f"{table.total:,}"}
    cut = say(told("{shown} of {total} shown", lang), said) if table.total > len(table.rows) else ""
    if table.title and cut:
        return f"{table.title} ({cut})"
    return table.title or cut


def table_texts(table: Table) -> list[list[str]]:
    """Write every cell of a table; the numbers of a column are written alike."""
    by_column = [column_texts([row[i] for row in table.rows]) for i in range(len(table.columns))]
    return [list(row) for row in zip(*by_column, strict=True)]


def column_texts(cells: Sequence[Cell]) -> list[str]:
    """Write cells that stand below each other, their numbers alike.

    Examples
    --------
    >>> column_texts([1.0, 0.25, 0.0312, None]), column_texts([1e-9, 5.0])
    (['1.000', '0.250', '0.031', ''], ['1.000e-09', '5.000e+00'])
    """
    floats = [cell for cell in cells if isinstance(cell, float) and math.isfinite(cell)]
    decimals = _common_decimals(floats) if floats else None
    return [_cell_text(cell, decimals, bool(floats)) for cell in cells]


def is_number(cell: Cell) -> bool:
    """Whether a cell is a number, and not a truth value."""
    return isinstance(cell, (int, float)) and not isinstance(cell, bool)


def _cell_text(cell: Cell, decimals: int | None, beside_floats: bool) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, str):
        return show_name(cell) if isinstance(cell, Name) else visible(cell)
    if not math.isfinite(cell):
        return write_number(cell)
    if cell == 0:
        return "0"
    if isinstance(cell, int) and not beside_floats:
        return f"{cell:,}"
    return f"{cell:.3e}" if decimals is None else f"{cell:,.{decimals}f}"


def _common_decimals(values: Sequence[float]) -> int | None:
    """Return the decimals for a column, or None if its range is too wide for fixed ones.

    The largest value shows four digits and the smallest two, as far as they have them.

    Equal decimals line up at the point in any face; ``font-variant-numeric`` is stripped by
    front ends that do not trust a notebook.
    """
    sizes = [Decimal(f"{abs(value):.3e}").normalize() for value in values if value]
    if not sizes:
        return 0
    exact = max(-int(size.as_tuple().exponent) for size in sizes)
    wanted = max(3 - max(sizes).adjusted(), 1 - min(sizes).adjusted())
    decimals = max(min(exact, wanted), 0)
    if decimals > _MOST_DECIMALS or max(sizes).scaleb(decimals) >= _MOST_DIGITS:
        return None
    return decimals
