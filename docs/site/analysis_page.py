"""The page of one analysis, read off its declaration, the pages about method, and an example that was run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from examples import Example
from page_words import WORDS

from diffai_jupyter.contract.blocks import Block, Document, Heading, Section
from diffai_jupyter.contract.declaration import Analysis, Threshold
from diffai_jupyter.render.charts import png
from diffai_jupyter.render.markdown import render_markdown
from diffai_jupyter.wording import told, told_paragraphs

HEADS = ("inside", "Attention heads")
METHOD: Mapping[str, tuple[tuple[str, str], ...]] = {
    "alert-on-degradation": (("policy", "The alert"),),
    "anomaly-detection": (("method", "The sample"), ("method", "Gradients")),
    "attention-analysis": (HEADS,),
    "attention-pattern-diff": (HEADS,),
    "change-summary": (
        ("method", "What kind of change"),
        ("inside", "Spectra of the update"),
        ("inside", "Power laws"),
    ),
    "clustering-change": (("inside", "Clusters"),),
    "convergence-analysis": (("method", "Status"), ("method", "Noisy training losses")),
    "deployment-readiness": (("policy", "From codes to words"), ("policy", "Reason codes")),
    "embedding-analysis": (("inside", "Embeddings"),),
    "gradient-analysis": (("method", "Gradients"),),
    "head-importance": (HEADS,),
    "hyperparameter-impact": (("method", "Learning rate and hyperparameters"),),
    "inference-speed-estimate": (("method", "Operations and time"),),
    "learning-progress": (("method", "Trend"), ("method", "Noisy training losses"), ("method", "Speed")),
    "learning-rate-analysis": (("method", "Learning rate and hyperparameters"),),
    "memory-analysis": (("method", "Memory"),),
    "param-efficiency-analysis": (("method", "Weight efficiency"),),
    "performance-impact-estimate": (("method", "Operations and time"),),
    "quantization-analysis": (("method", "Quantization"),),
    "regression-test": (("policy", "Checks of the regression test"),),
    "review-friendly": (("policy", "From codes to words"),),
    "risk-assessment": (("policy", "From codes to words"), ("policy", "Reason codes")),
    "similarity-matrix": (("inside", "Layers against layers"),),
}
"""Page and heading of what is told about the method of an analysis."""
PART: Mapping[str, tuple[str, str]] = {
    "attention-analysis": ("Every layout", "**Write strength**"),
    "head-importance": ("**Write strength**", "**How far"),
    "attention-pattern-diff": ("**How far", ""),
}
"""How the first paragraph begins, and the first that is left out, where only a part of the text is about it."""


def title_of(analysis: Analysis[Any], lang: str) -> str:
    """Return the title of its page."""
    return told(analysis.flag.replace("-", " ").capitalize(), lang)


def analysis_page(analysis: Analysis[Any], example: Example, docs: Path, lang: str) -> tuple[str, dict[str, bytes]]:
    """Return the page in Markdown, and its pictures by their path from the page.

    Parameters
    ----------
    analysis : Analysis
        The declaration.
    example : Example
        What it says of real checkpoints.
    docs : path
        Folder of the pages about method.
    lang : str
        Language of the page.
    """
    words = WORDS[lang]
    parts = [
        f"# {title_of(analysis, lang)}",
        f"`--{analysis.flag}`",
        told_paragraphs(analysis.__doc__, lang),
        words["reads"].format(reads=words[analysis.reads.value]),
        f"## {words['fields']}",
        words["fields_intro"],
        _fields(analysis, lang),
        f"## {words['formula']}",
        *_method(analysis.flag, docs, lang),
        f"## {words['settings']}",
        *_settings(analysis, lang),
        f"## {words['example']}",
        words[example.about],
        f"```console\n$ {example.command}{'' if lang == 'en' else f' --lang {lang}'}\n```",
    ]
    pictures = {
        f"images/{analysis.flag}-{at}{'' if lang == 'en' else f'-{lang}'}.png": chart
        for at, chart in enumerate(example.charts[lang], 1)
    }
    section = example.sections[lang]
    # The first block is the title, the last one the sources, which this page has at its end.
    blocks = (*section.blocks[1:-1], *(chart for chart in example.charts[lang] if chart not in section.blocks))
    parts.append(_told_blocks(blocks, {chart.key: name for name, chart in pictures.items()}, lang))
    if example.bare:
        facts = replace(example.bare[lang], title="")
        parts += [f"## {words['bare']}", words["bare_intro"], _told_blocks((facts,), {}, lang)]
    parts += [f"## {words['sources']}", "\n".join(f"- {reference}" for reference in analysis.references)]
    return "\n\n".join(parts) + "\n", {name: png(chart).data for name, chart in pictures.items()}


def _fields(analysis: Analysis[Any], lang: str) -> str:
    words = WORDS[lang]
    rows = []
    for field in analysis.fields:
        definition = told(field.definition, lang)
        if field.words:
            end = "" if definition.endswith("。") else words["stop"]
            definition += end + words["words"].format(words=", ".join(_word(word, lang) for word in field.words))
        rows.append((f"`{field.key}`", told(field.label, lang), told(field.unit, lang), f"`{field.best}`", definition))
    return table((words["field"], words["name"], words["unit"], words["best"], words["definition"]), rows)


def _word(word: str, lang: str) -> str:
    said = told(word, lang)
    return f"`{word}`" if said == word else f"`{word}` {said}"


def _settings(analysis: Analysis[Any], lang: str) -> Iterator[str]:
    words = WORDS[lang]
    own = [threshold for threshold in analysis.thresholds if "." not in threshold.key]
    if not analysis.thresholds:
        yield words["no_settings"]
        return
    yield words["settings_intro"]
    if own:
        titles = (words["setting"], words["default"], words["range"], words["unit"], words["basis"])
        yield table(titles, [_setting(threshold, lang) for threshold in own])
    if any(threshold.is_shared for threshold in own):
        yield words["shared_note"]
    if len(own) < len(analysis.thresholds):
        yield words["policy"]


def _setting(threshold: Threshold, lang: str) -> tuple[str, ...]:
    key = f"`{threshold.key}`"
    default = threshold.shown(threshold.default)
    accepted = ", ".join(threshold.words) or f"{threshold.low:g} – {threshold.high:g}"
    return (
        WORDS[lang]["shared"].format(key=key) if threshold.is_shared else key,
        default if isinstance(default, str) else f"{default:g}",
        accepted,
        told(threshold.unit, lang),
        told(threshold.basis, lang),
    )


def _method(flag: str, docs: Path, lang: str) -> Iterator[str]:
    """Yield what is told of the method: its text in English, links to it in other languages."""
    words, told_at = WORDS[lang], METHOD.get(flag, ())
    if not told_at:
        yield words["by_definition"]
        return
    links = {heading: f"../{page}.md#{anchor(heading)}" for page, heading in told_at}
    if lang != "en":
        yield words["elsewhere"].format(links=", ".join(f"[{heading}]({link})" for heading, link in links.items()))
        return
    for page, heading in told_at:
        text = (docs / f"{page}.md").read_text(encoding="utf-8")
        yield f"### {heading}"
        yield part(excerpt(text, heading, page), *PART.get(flag, ("", "")))
        yield words["from"].format(title=text.partition("\n")[0].lstrip("# "), link=links[heading])


def excerpt(page: str, heading: str, name: str) -> str:
    """Return what stands under a heading, its own headings one level below that of a section of the page.

    Raises
    ------
    LookupError
        If the page has no such heading.
    """
    found = re.search(rf"^(#+) {re.escape(heading)}\n", page, re.MULTILINE)
    if found is None:
        msg = f"{name}.md has no heading {heading!r}"
        raise LookupError(msg)
    rest = page[found.end() :]
    stop = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    text = rest[: stop.start() if stop else None].strip()
    text = re.sub(r"^#+ ", "#### ", text, flags=re.MULTILINE)
    text = re.sub(r"\]\(#", f"]({name}.md#", text)
    return re.sub(r"\]\((?!https?:|\.\./)", "](../", text)


def part(text: str, begin: str, end: str) -> str:
    """Return the paragraphs from the one that begins with `begin` up to the one that begins with `end`.

    Raises
    ------
    ValueError
        If no paragraph begins so.
    """
    paragraphs = text.split("\n\n")
    begins = [text.startswith(begin) for text in paragraphs]
    ends = [bool(end) and text.startswith(end) for text in paragraphs]
    return "\n\n".join(paragraphs[begins.index(True) : ends.index(True) if end else None])


def anchor(heading: str) -> str:
    """Return the anchor of a heading, as GitHub and the site write it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _told_blocks(blocks: tuple[Block, ...], images: Mapping[str, str], lang: str) -> str:
    below = tuple(replace(block, level=3) if isinstance(block, Heading) else block for block in blocks)
    return render_markdown(Document("", (Section("", "", below),), lang), images).strip()


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a pipe table."""
    lines = [titles, ("---",) * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
