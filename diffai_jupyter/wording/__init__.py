"""How words, names and numbers are written, the same in every renderer."""

from __future__ import annotations

import difflib
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from string import Formatter
from typing import Any

from diffai_jupyter.wording.catalogue import told as told
from diffai_jupyter.wording.catalogue import told_paragraphs as told_paragraphs

ARROW = "→"
NAME_LIMIT = 200
UNKNOWN = "unknown"

_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_FIXED_DECIMALS = re.compile(r"\{:[^}]*\.(\d+)f\}")
_TWO_FORMS = re.compile(r"(?P<form>.+); below (?P<limit>[\d.]+): (?P<small>.+)")


class Name(str):
    """Text that came out of a file: a tensor name, a path, a configuration value.

    Renderers write it as code and escape it; nothing else may be trusted about it.
    """

    __slots__ = ()


def show_name(text: str, limit: int = NAME_LIMIT) -> str:
    r"""Return `text` fit to be shown: control characters spelled out, long text cut.

    Examples
    --------
    >>> show_name("a\x1b[31mb\n")
    'a\\u001b[31mb\\u000a'
    >>> len(show_name("x" * 10_000)) <= 200 + len("… (10000 characters)")
    True
    """
    shown = []
    for character in text[:limit]:
        if unicodedata.category(character) in _HIDDEN_CATEGORIES:
            code = ord(character)
            shown.append(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
        else:
            shown.append(character)
    tail = f"… ({len(text)} characters)" if len(text) > limit else ""
    return "".join(shown) + tail


class _Saying(Formatter):
    """Formats a sentence; names go through `wrap`, everything else through `plain`."""

    def __init__(self, wrap: Callable[[str], str], plain: Callable[[str], str]) -> None:
        self._wrap, self._plain = wrap, plain

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, Name):
            return self._wrap(show_name(value))
        if isinstance(value, (tuple, list)):
            return ", ".join(self.format_field(item, format_spec) for item in value)
        return self._plain(format(value, format_spec))

    def parse(self, format_string: Any) -> Any:
        for literal, name, spec, conversion in super().parse(format_string):
            yield self._plain(literal), name, spec, conversion


def say(
    template: str,
    said: Mapping[str, object],
    wrap: Callable[[str], str] = str,
    plain: Callable[[str], str] = str,
) -> str:
    """Fill a sentence.

    Parameters
    ----------
    template : str
        Sentence with ``{key}`` or ``{key:format}`` fields.
    said : mapping
        The values. Those of type `Name` are text from a file.
    wrap : callable
        Writes a name, already free of control characters, in the markup at hand.
    plain : callable
        Escapes everything else for the markup at hand.

    Examples
    --------
    >>> say("{n} of {all} tensors: {top}", {"n": 1, "all": 2, "top": Name("w")}, wrap="`{}`".format)
    '1 of 2 tensors: `w`'
    """
    return _Saying(wrap, plain).vformat(template, (), said)


def write_value(value: object, form: str = "{}", allow_infinite: bool = False) -> str:
    """Write one value the way the fixed output lines do.

    Fixed decimals are kept while they lose at most 0.1 % of the value; forms with one or two
    decimals also as long as they show two significant digits. Otherwise ``%.4e`` is written, unless the form
    says itself how small values are written, as in ``{:.1f}%; below 0.1: {:.3g}%``.

    Examples
    --------
    >>> write_value(0.0543, "{:.4f}"), write_value(0.00003, "{:.4f}"), write_value(2.66, "{:+.1f}MB")
    ('0.0543', '3.0000e-05', '+2.7MB')
    >>> write_value((50, 24)), write_value((None, 24)), write_value((None, None)), write_value(True)
    ('50→24', 'unknown→24', 'unknown', 'true')
    >>> write_value(float("inf"), "{:.2f}x"), write_value(None, "{} layers")
    ('unknown', 'unknown')
    >>> [write_value(value, "{:.1f}%; below 0.1: {:.3g}%") for value in (9.63, 0.53, 0.0123, 0.0)]
    ['9.6%', '0.5%', '0.0123%', '0.0%']
    """
    if isinstance(value, tuple):
        if all(side is None for side in value):
            return UNKNOWN
        return ARROW.join(write_value(side, form, allow_infinite) for side in value)
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, (int, float)) and not math.isfinite(value):
        return "inf" if allow_infinite and value > 0 else UNKNOWN
    if (two := _TWO_FORMS.fullmatch(form)) and isinstance(value, (int, float)):
        return (two["small"] if 0 < abs(value) < float(two["limit"]) else two["form"]).format(value)
    decimals = _FIXED_DECIMALS.search(form)
    if decimals and isinstance(value, (int, float)) and _loses_digits(float(value), int(decimals.group(1))):
        return _FIXED_DECIMALS.sub("{:+.4e}" if ":+" in form else "{:.4e}", form).format(value)
    return form.format(value)


def _loses_digits(value: float, decimals: int) -> bool:
    if value == 0:
        return False
    written = round(abs(value), decimals)
    if abs(written - abs(value)) <= 1e-3 * abs(value):
        return False
    return decimals > 2 or written < 10 ** (1 - decimals)


def write_number(value: float | int | None, digits: int = 4) -> str:
    """Write a number for a table cell: integers whole, others with `digits` significant digits.

    Examples
    --------
    >>> write_number(1234567), write_number(0.000012345), write_number(0.5), write_number(None)
    ('1234567', '1.234e-05', '0.5', 'unknown')
    """
    if value is None:
        return UNKNOWN
    if isinstance(value, int):
        return str(value)
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return f"{value:.{digits}g}"


def write_bytes(count: int | float) -> str:
    """Write a byte count in binary units.

    Examples
    --------
    >>> write_bytes(512), write_bytes(1536), write_bytes(-3 * 2**30)
    ('512 B', '1.5 KiB', '-3.0 GiB')
    """
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def close_matches(word: str, known: tuple[str, ...] | list[str]) -> str:
    """Return ``" Did you mean 'x'?"`` when a known word is near, else an empty string.

    Examples
    --------
    >>> close_matches("--memory-analisys", ["--memory-analysis", "--all"])
    " Did you mean '--memory-analysis'?"
    """
    near = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def some(names: Iterable[str], limit: int = 5, count: int | None = None) -> tuple[str, ...]:
    """Return the first few names for a sentence, and how many more there are.

    Parameters
    ----------
    names : iterable of str
        All of them, or the first ones.
    limit : int
        How many are shown.
    count : int, optional
        How many there are, where `names` are not all.

    Examples
    --------
    >>> some(["a", "b", "c"], limit=2)
    ('a', 'b', '1 more')
    >>> some(["a", "b"], limit=2, count=9)
    ('a', 'b', '7 more')
    """
    known = [Name(name) for name in names]
    shown = known[:limit]
    rest = (len(known) if count is None else count) - len(shown)
    return tuple(shown) if rest <= 0 else (*shown, f"{rest} more")


def listed(names: Iterable[str], limit: int = 5) -> str:
    r"""Write the first few names for a message, and how many more there are.

    Examples
    --------
    >>> listed(["a", "b\n", "c"], limit=2)
    'a, b\\u000a, 1 more'
    """
    return ", ".join(show_name(name) for name in some(names, limit))


def clause(error: Exception) -> str:
    r"""Return what a foreign error says, as a clause: its first line, else its kind.

    Examples
    --------
    >>> clause(ValueError("bad header.\nmore")), clause(EOFError())
    ('bad header', 'EOFError')
    """
    lines = str(error).splitlines()
    return show_name(lines[0].rstrip(".")) if lines else type(error).__name__


def plural(count: int, one: str, many: str = "") -> str:
    """Write a count with its noun.

    Examples
    --------
    >>> plural(1, "tensor"), plural(3, "tensor"), plural(2, "entry", "entries")
    ('1 tensor', '3 tensors', '2 entries')
    """
    return f"{count} {one if count == 1 else many or one + 's'}"
