"""Thresholds by the names that people write: found, read, and listed with where they came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.contract.declaration import Analysis, Threshold
from diffai_jupyter.errors import SettingError
from diffai_jupyter.options import OPTIONS, Layer, check_option, name_source
from diffai_jupyter.wording import close_matches, show_name

Given = Mapping[str, Mapping[str, tuple[float, str]]]
"""Flag to threshold to value and source; only those that were set."""


@dataclass(frozen=True, slots=True)
class Effective:
    """A threshold with its value.

    Parameters
    ----------
    flag : str
        The analysis; empty for a threshold that several share.
    threshold : Threshold
        Its declaration.
    value : float
        Its value; the number of the word where it has words.
    source : str
        Where the value came from.
    """

    flag: str
    threshold: Threshold
    value: float
    source: str

    @property
    def name(self) -> str:
        """The name it is set by."""
        return f"{self.flag}.{self.threshold.key}" if self.flag else self.threshold.key


def thresholds_given(layers: Sequence[Layer]) -> dict[str, dict[str, tuple[float, str]]]:
    """Return the thresholds that layers of settings set, by analysis; later layers win.

    Raises
    ------
    SettingError
        If a name stands for none or for several, or a value is none that is accepted.
    """
    found: dict[str, dict[str, tuple[float, str]]] = {}
    for source, settings in layers:
        given = settings.get("set")
        where = name_source(source, "set")
        for pair in () if given is None else check_option(OPTIONS["set"], given, where):
            name, _, text = pair.partition("=")
            flag, threshold, flags = _find(name.strip(), where)
            value = threshold.check(_read(name.strip(), text.strip(), threshold, where), flag, where)
            for declaring in flags:
                found.setdefault(declaring, {})[threshold.key] = (value, where)
    return found


def effective(analyses: Iterable[Analysis[Any]], given: Given) -> Iterator[Effective]:
    """Yield the thresholds of analyses with their values; a shared one once."""
    seen: set[str] = set()
    for analysis in analyses:
        for threshold in analysis.thresholds:
            default = (threshold.default, "default")
            value, source = given.get(analysis.flag, {}).get(threshold.key, default)
            one = Effective("" if threshold.is_shared else analysis.flag, threshold, value, source)
            if one.name not in seen:
                yield one
            seen.add(one.name)


def reason_codes() -> tuple[str, ...]:
    """Return the codes of the policy: what stands before the dot in the names of shared thresholds."""
    every = (threshold for analysis in all_analyses().values() for threshold in analysis.thresholds)
    return tuple(dict.fromkeys(t.key.partition(".")[0] for t in every if t.is_shared and "." in t.key))


def _find(name: str, where: str) -> tuple[str, Threshold, tuple[str, ...]]:
    """Return the flag in a name (or none), the threshold it stands for, and the analyses it is set for."""
    head, dot, tail = name.partition(".")
    flag = head.replace("_", "-")
    has_flag = bool(dot) and flag in all_analyses()
    key = (tail if has_flag else name).replace("-", "_")
    declaring = {f: t for f, a in all_analyses().items() for t in a.thresholds if t.key == key}
    if has_flag and flag in declaring:
        found = declaring[flag]
        return flag, found, tuple(declaring) if found.is_shared else (flag,)
    if has_flag or not declaring:
        raise _unknown(name, where)
    found = next(iter(declaring.values()))
    if len(declaring) > 1 and not found.is_shared:
        full = " or ".join(f"{f}.{key}" for f in declaring)
        msg = f"More than one threshold is called '{show_name(name)}' (from {where}): write {full}."
        raise SettingError(msg)
    return "" if found.is_shared else next(iter(declaring)), found, tuple(declaring)


def _unknown(name: str, where: str) -> SettingError:
    every = {(flag, t.key): None for flag, a in all_analyses().items() for t in a.thresholds}
    known = [f"{flag}.{key}" for flag, key in every] + [key for _, key in every]
    hint = close_matches(name, list(dict.fromkeys(known)))
    return SettingError(f"There is no threshold '{show_name(name)}' (from {where}).{hint}")


def _read(name: str, text: str, threshold: Threshold, where: str) -> float:
    word = text.casefold()
    if len(threshold.words) == 2 and word in ("false", "true"):
        return float(word == "true")
    if word in threshold.words:
        return float(threshold.words.index(word))
    try:
        return float(text)
    except ValueError:
        wanted = threshold.accepted if threshold.words else "a number"
        hint = close_matches(word, threshold.words)
        got = f"Got '{show_name(text)}' from {where}.{hint}"
        msg = f"The threshold '{show_name(name)}' must be {wanted}. {got}"
        raise SettingError(msg) from None
