"""What the analyses say of real checkpoints: every example of the site is run here."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from copies import write_four_bit_copy
from page_words import LANGUAGES

from diffai_jupyter.analyses import CHARTS_FLAG, all_analyses
from diffai_jupyter.comparison import Comparison, run_comparison
from diffai_jupyter.contract.blocks import Chart, Facts, Section
from diffai_jupyter.report.request import request_of

DIGITS, LANGUAGE = "notebooks/checkpoints", "docs/site/checkpoints"
COPY = "step-600-w4"
PAIRS: Mapping[str, tuple[str, str]] = {
    "digits": (f"{DIGITS}/early", f"{DIGITS}/late"),
    "damaged": (f"{DIGITS}/late", f"{DIGITS}/late-damaged"),
    "language": (f"{LANGUAGE}/step-200", f"{LANGUAGE}/step-600"),
    "copy": (f"{LANGUAGE}/step-600", COPY),
    "families": (f"{LANGUAGE}/step-600", f"{DIGITS}/late"),
}
"""What is compared, by the name of the sentence that says what it is."""
PAIR_OF: Mapping[str, str] = {
    "anomaly-detection": "damaged",
    "architecture-comparison": "families",
    "attention-analysis": "language",
    "attention-pattern-diff": "language",
    "clustering-change": "language",
    "embedding-analysis": "language",
    "head-importance": "language",
    "inference-speed-estimate": "copy",
    "memory-analysis": "copy",
    "param-efficiency-analysis": "language",
    "performance-impact-estimate": "copy",
    "quantization-analysis": "copy",
    "similarity-matrix": "language",
}
"""Which pair shows an analysis; the others are shown by the digits."""


@dataclass(frozen=True, slots=True)
class Example:
    """One analysis of one pair.

    Parameters
    ----------
    about : str
        Which pair, see `PAIRS`.
    command : str
        The call that prints it, from the root of the repository.
    sections : mapping of str to Section
        What the report holds of it, by language.
    charts : mapping of str to tuple of Chart
        Its charts, by language.
    bare : mapping of str to Facts
        Its values when nothing lies beside the weights, by language; empty where that changes no evidence.
    """

    about: str
    command: str
    sections: Mapping[str, Section]
    charts: Mapping[str, tuple[Chart, ...]]
    bare: Mapping[str, Facts]


def run_examples(root: Path, work: Path) -> dict[str, Example]:
    """Return an example of every analysis.

    Parameters
    ----------
    root : path
        The repository, which holds the checkpoints.
    work : path
        Empty folder for copies of them.
    """
    write_four_bit_copy(root / PAIRS["copy"][0], work / COPY)
    found: dict[str, Example] = {}
    for about, sources in PAIRS.items():
        flags = tuple(flag for flag in all_analyses() if PAIR_OF.get(flag, "digits") == about)
        places = [work / source if source == COPY else root / source for source in sources]
        alone = work / "bare" / about
        bare = [_without_files_beside(place, alone / side) for place, side in zip(places, "ab", strict=True)]
        rich, poor = _by_language(places, flags, True), _by_language(bare, flags, False)
        for flag in flags:
            found[flag] = _example(flag, about, rich, poor)
    return found


def _example(
    flag: str, about: str, rich: Mapping[str, Comparison], poor: Mapping[str, Comparison]
) -> Example:
    sections = {lang: _section(comparison, flag) for lang, comparison in rich.items()}
    charts = {
        lang: comparison.document().charts() if flag == CHARTS_FLAG else _charts(sections[lang])
        for lang, comparison in rich.items()
    }
    is_poorer = _evidence(rich["en"], flag) != _evidence(poor["en"], flag)
    bare = {lang: _facts(_section(comparison, flag)) for lang, comparison in poor.items()} if is_poorer else {}
    return Example(about, f"diffai {' '.join(PAIRS[about])} --{flag}", sections, charts, bare)


def _by_language(places: list[Path], flags: tuple[str, ...], draws: bool) -> dict[str, Comparison]:
    asked: dict[str, object] = {**dict.fromkeys(flags, True), **({CHARTS_FLAG: True} if draws else {})}
    first = run_comparison(places[0], places[1], request_of((), asked))
    others = {lang: Comparison(first.pair, request_of((), {**asked, "lang": lang})) for lang in LANGUAGES[1:]}
    return {LANGUAGES[0]: first, **others}


def _without_files_beside(source: Path, target: Path) -> Path:
    target.mkdir(parents=True)
    shutil.copy(source / "model.safetensors", target)
    return target


def _section(comparison: Comparison, flag: str) -> Section:
    return next(section for section in comparison.document().sections if section.key == flag)


def _charts(section: Section) -> tuple[Chart, ...]:
    return tuple(block for block in section.blocks if isinstance(block, Chart))


def _facts(section: Section) -> Facts:
    return next(block for block in section.blocks if isinstance(block, Facts))


def _evidence(comparison: Comparison, flag: str) -> dict[str, str]:
    return {key: value.evidence.value for key, value in comparison[flag].values.items()}
