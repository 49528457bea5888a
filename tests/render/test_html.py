"""The fragment has to say the same where style, classes and folds are taken away."""

from __future__ import annotations

import base64
import pathlib
import re
from html import escape
from html.parser import HTMLParser

import pytest

from diffai_jupyter.contract.blocks import Document, Lines, Matrix, Section, Sentence, Series
from diffai_jupyter.render import charts
from diffai_jupyter.render.html import render_html, render_page
from diffai_jupyter.render.phrases import sentence
from diffai_jupyter.render.text import render_text
from diffai_jupyter.wording import show_name

GOLDEN = pathlib.Path(__file__).parent / "golden" / "fragment.html"
VOID = {"meta", "img", "br", "hr", "link"}
# What JupyterLab's sanitizer lets through of what could be written here; see its allow-lists.
LAB_TAGS = {
    "div", "p", "h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td", "details",
    "summary", "pre", "code", "b", "span", "figure", "figcaption", "img",
}  # fmt: skip
LAB_ATTRIBUTES = {"class", "lang", "dir", "scope", "style", "open", "alt", "src", "width", "height", "title"}
LAB_STYLE = re.compile(
    r"^(text-align:(left|right)|border-left:4px solid #[0-9A-Fa-f]{6}|padding-left:\d+px|overflow-x:auto)$"
)


class Reader(HTMLParser):
    """Checks nesting and collects tags, attributes and the text outside style sheets."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and "title" not in self.open:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def _facts_of(document: Document) -> list[str]:
    """Every fact of the fixed document, from the plain text, each as a run of words."""
    lines = render_text(document, width=10_000).splitlines()
    facts = [part for line in lines for part in re.split(r"\s{2,}|^-+$|[\[\]]", line) if part.strip(" -")]
    return [fact for fact in facts if not re.fullmatch(r"(CRITICAL|WARNING|INFO)", fact)]


def _squeezed(text: str) -> str:
    return re.sub(r"[\s\[\]]|^(CRITICAL|WARNING|INFO):", "", text).replace("\u2212", "-")


@pytest.fixture
def quick_png(monkeypatch):
    """Pictures without the drawing."""
    monkeypatch.setattr(charts, "png", lambda chart: charts.Png(b"x", 640, 320, sentence(chart.takeaway)))


def test_golden(document, assert_written):
    assert_written(GOLDEN, render_html(document.sections, document.title))


def test_fragment_is_well_formed_and_still(document):
    markup = render_html(document.sections, document.title)
    reader = Reader(markup)
    assert markup.startswith('<div class="diffai-out" lang="en">\n<style>')
    names = {name for _, attributes in reader.tags for name in attributes}
    assert names <= LAB_ATTRIBUTES, "no id, no event, nothing private"
    assert {tag for tag, _ in reader.tags} <= LAB_TAGS | {"style"}
    assert not {"h1", "h2", "h3", "img"} & {tag for tag, _ in reader.tags}
    for tag, attributes in reader.tags:
        if tag == "th":
            assert attributes["scope"] in {"col", "row"}
        if tag in {"th", "td"}:
            assert re.fullmatch("text-align:(left|right)", attributes["style"] or "")


def test_style_sheet_is_small_scoped_and_alone(document):
    markup = render_html(document.sections)
    (sheet,) = re.findall(r"<style>(.*?)</style>", markup, re.DOTALL)
    assert len(sheet.encode()) <= 3072
    assert "var(" not in markup.replace(sheet, "")
    assert not re.search(r"url\(|@import|https?:", sheet)
    for selectors in re.findall(r"(?:^|\})\s*([^{}]+)\{", sheet.replace("@media print{", "")):
        for selector in selectors.split(","):
            assert selector.strip().startswith(".diffai-out"), selector


def test_what_labs_sanitizer_keeps_is_everything_once(document):
    """As an untrusted notebook shows it: no style sheet, and only styles with literal values."""
    markup = render_html(document.sections, document.title)
    reader = Reader(markup)
    for tag, attributes in reader.tags:
        for rule in (attributes.get("style") or "").split(";"):
            assert not rule or LAB_STYLE.match(rule), (tag, rule)
    kept = Reader(re.sub(r"<style>.*?</style>", "", markup, flags=re.DOTALL))
    assert kept.words == reader.words


def test_github_shows_every_fact_as_often_as_the_text_does(document):
    markup = render_html(document.sections, document.title)
    bare = re.sub(r"<style>.*?</style>", "", markup, flags=re.DOTALL)
    bare = re.sub(r"</?(details|summary|figure|figcaption|div|span)\b[^>]*>", "", bare)
    bare = re.sub(r' (class|style|lang|dir)="[^"]*"', "", bare)
    assert set(re.findall(r" ([a-z-]+)=", re.sub(r">[^<]*<", "><", bare))) == {"scope"}
    seen, text = _squeezed("".join(Reader(bare).text)), _squeezed(render_text(document, width=10_000))
    facts = _facts_of(document)
    assert len(facts) > 100
    for fact in facts:
        wanted = _squeezed(fact)
        assert wanted in seen, fact
        if len(wanted) > 12:
            assert seen.count(wanted) == text.count(wanted), fact


def test_names_are_text_and_nothing_else(hostile, quick_png):
    name, document = hostile
    for markup in (render_html(document.sections, document.title), render_page(document)):
        markup.encode("utf-8")
        reader = Reader(markup)
        assert {tag for tag, _ in reader.tags} <= LAB_TAGS | {
            "style",
            "main",
            "section",
            "html",
            "head",
            "meta",
            "title",
            "body",
        }
        assert "<script" not in markup
        assert not any(key.startswith("on") for _, attributes in reader.tags for key in attributes)
        assert f'<code dir="auto">{escape(show_name(name))}</code>' in markup
        assert all(line.isprintable() for line in markup.split("\n"))
        assert " ".join(show_name(name).split()) in reader.words


def test_a_run_of_text_outside_code_holds_one_dollar_at_most(hostile):
    markup = render_html(hostile[1].sections, hostile[1].title)
    assert "$" not in re.sub(r"<code.*?</code>|<style>.*?</style>", "", markup, flags=re.DOTALL)
    assert "&#36;" not in markup.replace("<span>&#36;</span>", "")


def test_long_lists_fold_and_stay_whole():
    lines = tuple(f"line {at:03}" for at in range(45))
    markup = render_html([Section("s", "g", (Lines(lines),))])
    assert markup.count("<details>") == 1
    assert "35 more lines" in markup
    assert re.findall(r"line \d{3}", markup) == list(lines)
    assert "<details>" not in render_html([Section("s", "g", (Lines(lines[:20]),))])


def test_lines_stay_short_and_bytes_stay_the_same(document):
    markup = render_html(document.sections, document.title)
    assert len(markup.encode()) < 30_000
    assert max(map(len, markup.splitlines())) < 600
    assert markup == render_html(document.sections, document.title)


def test_page_stands_alone(document, quick_png):
    page = render_page(document)
    reader = Reader(page)
    assert page.startswith("<!DOCTYPE html>\n")
    assert not {"script", "link", "iframe", "object", "svg"} & {tag for tag, _ in reader.tags}
    for tag, attributes in reader.tags:
        for key in ("src", "href"):
            assert (attributes.get(key) or "#").startswith(("data:image/png;base64,", "#")), tag
    assert not re.search(r"https?://|url\(", page)
    images = [attributes for tag, attributes in reader.tags if tag == "img"]
    assert len(images) == len(document.charts())
    for attributes, chart in zip(images, document.charts(), strict=True):
        assert isinstance(chart, (Series, Matrix))
        assert attributes["alt"]
        assert int(attributes["width"] or 0) > 300
    assert page.count('<details open="">') + page.count("<details open>") == page.count("<details")
    targets = {attributes.get("id") for _, attributes in reader.tags}
    links = [attributes["href"] for tag, attributes in reader.tags if tag == "a"]
    assert len(links) == 3
    assert all((link or "").removeprefix("#") in targets for link in links)


def test_page_holds_the_picture_itself():
    chart = Matrix("k", "t", ("r",), ("c",), ((1.0,),), "value", Sentence("One."))
    page = render_page(Document("t", (Section("s", "", (chart,)),)))
    (found,) = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="One\."', page)
    assert base64.b64decode(found) == charts.png(chart).data
    assert "<nav>" not in page


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_of_the_page_is_readable(document, tmp_path, scheme):
    """Contrast of 4.5:1 or more for every piece of text, in a real browser."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = tmp_path / "page.html"
    path.write_text(render_page(document), "utf-8")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(color_scheme=scheme)
        page.goto(path.as_uri())
        colors = page.evaluate(
            "[...document.querySelectorAll('h1,h2,h3,p,th,td,summary,code,figcaption,a')]"
            ".map(e => getComputedStyle(e).color)"
        )
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        wide = page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        browser.close()
    assert wide
    assert min(_contrast(color, ground) for color in set(colors)) >= 4.5


def _contrast(one: str, other: str) -> float:
    bright, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def _luminance(color: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
