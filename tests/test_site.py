"""The site of the documentation: its generator, and with `-m docs` the site as MkDocs builds it."""

from __future__ import annotations

import doctest
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from diffai_jupyter import compare, open_checkpoint
from diffai_jupyter.analyses import all_analyses

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LANGUAGE_MODEL = DOCS / "site" / "checkpoints" / "step-600"


@pytest.fixture(autouse=True)
def generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules of the generator import each other by name, as they do when MkDocs runs them."""
    monkeypatch.syspath_prepend(str(DOCS / "site"))


def test_links_are_rewritten_as_the_examples_say() -> None:
    import tree

    found = doctest.testmod(tree)
    assert found.attempted
    assert not found.failed


def test_each_analysis_has_a_pair_and_each_method_a_text() -> None:
    import analysis_page
    import examples

    flags = set(all_analyses())
    assert set(examples.PAIR_OF) <= flags
    assert set(examples.PAIR_OF.values()) <= set(examples.PAIRS)
    assert set(analysis_page.METHOD) <= flags
    assert set(analysis_page.PART) <= set(analysis_page.METHOD)
    for flag, told in analysis_page.METHOD.items():
        for page, heading in told:
            text = analysis_page.excerpt((DOCS / f"{page}.md").read_text(encoding="utf-8"), heading, page)
            assert analysis_page.part(text, *analysis_page.PART.get(flag, ("", "")))


def test_the_languages_say_the_same_things() -> None:
    from page_words import LANGUAGES, WORDS

    assert tuple(WORDS) == LANGUAGES
    assert WORDS["en"].keys() == WORDS["ja"].keys()
    for key, text in WORDS["en"].items():
        fields = [set(re.findall(r"\{\w+\}", words[key])) for words in WORDS.values() if words[key]]
        assert all(found == set(re.findall(r"\{\w+\}", text)) for found in fields), key


def test_every_page_has_one_place_in_the_navigation(tmp_path: Path) -> None:
    import navigation

    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    english = {page for page in pages if not page.endswith(".ja.md")} - {"analyses.md"}
    listed = [*navigation.START, *navigation.GUIDES, *navigation.REFERENCE, *navigation.BACKGROUND]
    assert len(set(listed)) == len(listed)
    assert english <= set(listed)


def test_the_four_bit_copy_is_the_nearest_of_fifteen_levels(tmp_path: Path) -> None:
    from copies import GROUP, write_four_bit_copy

    write_four_bit_copy(LANGUAGE_MODEL, tmp_path / "copy")
    stored = load_file(tmp_path / "copy" / "model.safetensors")
    original = open_checkpoint(LANGUAGE_MODEL).tensors
    names = [name.removesuffix(".weight_packed") for name in stored if name.endswith(".weight_packed")]
    assert len(names) == 21
    for name in names:
        values = np.asarray(original[f"{name}.weight"].read_all(), np.float64)
        # Two codes a byte, the first in its lower half.
        halves = stored[f"{name}.weight_packed"].view(np.uint8)
        codes = np.stack([halves & 15, halves >> 4], axis=-1).reshape(len(values), -1)[:, : values.shape[1]]
        steps = np.repeat(stored[f"{name}.weight_scale"].astype(np.float64), GROUP, axis=1)[:, : values.shape[1]]
        error = np.abs((codes.astype(np.float64) - 8) * steps - values)
        assert (error <= steps * 0.500001).all()
        assert tuple(stored[f"{name}.weight_shape"]) == values.shape


def test_the_guide_quotes_the_line_of_the_copy(tmp_path: Path) -> None:
    from copies import write_four_bit_copy

    write_four_bit_copy(LANGUAGE_MODEL, tmp_path / "copy")
    line = compare(LANGUAGE_MODEL, tmp_path / "copy", quantization_analysis=True)["quantization_analysis"].line
    for guide in ("quantized.md", "quantized.ja.md"):
        assert line in (DOCS / "guides" / guide).read_text(encoding="utf-8").splitlines()


def test_a_notebook_becomes_a_page_with_all_that_it_holds(tmp_path: Path) -> None:
    from notebook_pages import notebook_page

    outputs = [
        {"output_type": "stream", "text": ["one\n", "two"]},
        {"output_type": "display_data", "data": {"text/html": "<b>x</b>", "text/markdown": "#### Title\n\n| a |"}},
        {"output_type": "display_data", "data": {"image/png": "UE5H", "text/plain": "A [b]"}},
        {"output_type": "error", "ename": "GateError", "evalue": "no", "traceback": ["\x1b[31mGateError\x1b[0m: no"]},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# Question\n", "text"]},
        {"cell_type": "code", "source": "%diffai a b", "outputs": outputs},
    ]
    path = tmp_path / "story.ipynb"
    path.write_text(json.dumps({"cells": cells}), encoding="utf-8")
    page, pictures = notebook_page(path)
    assert page.split("\n\n") == [
        "# Question\ntext", "```python\n%diffai a b\n```", "```text\none\ntwo\n```", "**Title**", "| a |",
        "![A  b ](story_files/1.png)", "```text\nGateError: no\n```\n",
    ]  # fmt: skip
    assert pictures == {"story_files/1.png": b"PNG"}


class Addresses(HTMLParser):
    """The addresses that a browser asks for when it opens a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        loads = tag == "link" and given.get("rel") in ("stylesheet", "icon", "preconnect", "preload")
        for key in ("src", "href") if loads or tag in ("script", "img", "iframe", "source") else ():
            if given.get(key):
                self.found.append(str(given[key]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    there = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=there, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.docs
def test_the_site_asks_for_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 2 * len(all_analyses())
    for page in pages:
        reader = Addresses()
        reader.feed(page.read_text(encoding="utf-8"))
        assert reader.found
        assert not [address for address in reader.found if re.match(r"(https?:)?//", address)], page


@pytest.mark.docs
@pytest.mark.parametrize("lang", ["", "ja"])
def test_each_analysis_has_a_page_with_what_it_printed(site: Path, lang: str) -> None:
    for flag, analysis in all_analyses().items():
        text = re.sub(r"<[^>]+>", "", (site / lang / "analyses" / flag / "index.html").read_text(encoding="utf-8"))
        assert f"{analysis.name}: {analysis.fields[0].key}=" in text
        for field in analysis.fields:
            assert field.key in text


@pytest.mark.docs
def test_pictures_of_the_pages_are_there(site: Path) -> None:
    shown = set()
    for page in (site / "analyses").rglob("*.html"):
        for address in re.findall(r'<img[^>]+src="([^"]+)"', page.read_text(encoding="utf-8")):
            assert (page.parent / address).resolve().is_file(), address
            shown.add(page.parent.name)
    assert {"include-charts", "similarity-matrix", "quantization-analysis", "learning-progress"} <= shown


@pytest.mark.docs
def test_pages_are_in_their_language(site: Path) -> None:
    kana = re.compile("[ぁ-んァ-ヶ]")
    for page in ("", "guides/notebook", "gate", "analyses/anomaly-detection"):
        for lang, is_japanese in (("", False), ("ja", True)):
            text = (site / lang / page / "index.html").read_text(encoding="utf-8")
            assert f'<html lang="{lang or "en"}"' in text
            body = text.partition("<article")[2].partition("</article")[0]
            assert (len(kana.findall(body)) > 200) is is_japanese
