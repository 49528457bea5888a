"""The Japanese catalogue: complete for what the bank shows, true to its fields, and blind to names from files."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from bank import BANK, pair_called

from diffai_jupyter import compare
from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.comparison import Comparison
from diffai_jupyter.evidence import REASONS
from diffai_jupyter.render.translation import retold
from diffai_jupyter.report.request import request_of
from diffai_jupyter.wording import told, told_paragraphs
from diffai_jupyter.wording.catalogue import entries_of

ENTRIES = entries_of("ja")
FIELD = re.compile(r"\{(\w*)(?:[:!][^{}'\"]*)?\}")
JAPANESE = re.compile("[ぁ-んァ-ヶ一-龯]")
ENGLISH = re.compile(r"[a-z]{3,} [a-z]{3,}")
A_YEAR = re.compile(r"\b(19|20)\d\d\b")
"""Authors, years and titles of papers are the same in every language."""


@pytest.mark.parametrize("file", ENTRIES)
def test_translations_keep_the_fields(file: str) -> None:
    for english, japanese in ENTRIES[file].items():
        assert Counter(FIELD.findall(english)).keys() == Counter(FIELD.findall(japanese)).keys(), english


def test_no_text_is_translated_twice() -> None:
    counts = Counter(english for entries in ENTRIES.values() for english in entries)
    assert [english for english, count in counts.items() if count > 1] == []


def test_every_reason_and_remedy_is_translated() -> None:
    for reason in REASONS.values():
        said = told(f"{reason.sentence} {reason.remedy}".rstrip(), "ja")
        assert JAPANESE.search(said)
        assert not ENGLISH.search(said), said


@pytest.mark.parametrize("flag", all_analyses())
def test_declarations_are_translated(flag: str) -> None:
    analysis = all_analyses()[flag]
    texts = [*(f.label for f in analysis.fields), *(f.definition for f in analysis.fields)]
    texts += [t.basis for t in analysis.thresholds]
    left = [text for text in texts if text and not JAPANESE.search(told(text, "ja"))]
    assert left == []
    paragraphs = told_paragraphs(analysis.__doc__, "ja").split("\n\n")
    assert [text for text in paragraphs if not JAPANESE.search(text)] == []


@pytest.mark.parametrize("name", BANK)
def test_a_report_says_nothing_in_english(name: str) -> None:
    left: dict[str, str] = {}

    def tell(text: str) -> str:
        said = told(text, "ja")
        if ENGLISH.search(said) and not A_YEAR.search(said):
            left[text] = said
        return said

    found = Comparison(pair_called(name), request_of((), {"all": True, "include_charts": True, "brief": False}))
    retold(found.document(), tell, "ja")
    assert left == {}


def test_names_from_files_are_the_same_in_every_language() -> None:
    names = ("size", "changed", "tensor", "kind of change")
    import numpy as np

    a = {name: np.ones((4, 4), "f4") for name in names}
    b = {name: 2 * values for name, values in a.items()}
    found: Any = compare(a, b, lang="ja")
    for name in names:
        assert f"~ {name}: mean=" in found.to_text()
        assert f'<code dir="auto">{name}</code>' in found.to_html()


def test_lines_and_numbers_are_the_same_in_both_languages() -> None:
    a, b = "notebooks/checkpoints/early", "notebooks/checkpoints/late"
    english, japanese = (compare(a, b, all=True, lang=lang) for lang in ("en", "ja"))
    lines = [analysis.line(english.report.results[analysis.flag]) for analysis in english.report.analyses]
    for line in lines:
        if not line.startswith("markdown_output"):
            assert line in japanese.to_text()
    assert english.report.results.keys() == japanese.report.results.keys()


def test_what_the_catalogue_does_not_know_stays_as_it_is() -> None:
    assert told("Nothing of this is known.", "ja") == "Nothing of this is known."
    assert told("kind of change") == "kind of change"
    assert told("model.layers.3", "ja") == "model.layers.3"


def test_a_composed_phrase_is_translated_by_its_pattern() -> None:
    assert told("3 tensors added, 1 tensor removed", "ja") == "テンソル 3 個を追加、テンソル 1 個を削除"
    assert told("Assumes: {text}.", "ja") == "前提：{text}。"
