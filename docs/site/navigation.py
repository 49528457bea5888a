"""Which page stands where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from page_words import PARTS

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.contract.declaration import Group
from diffai_jupyter.wording import told

START = ("index.md", "demo.md", "stories.md")
GUIDES = (
    "guides/notebook.md",
    "panel.md",
    "explore.md",
    "guides/training.md",
    "guides/fine-tune.md",
    "guides/quantized.md",
    "guides/cluster.md",
    "gate.md",
    "guides/share.md",
    "sharing.md",
    "everywhere.md",
)
REFERENCE = (
    "reference/command-line.md",
    "settings.md",
    "cache.md",
    "given.md",
    "formats.md",
    "output.md",
    "evidence.md",
    "policy.md",
)
BACKGROUND = ("method.md", "inside.md", "comparison.md", "benchmarks.md", "architecture.md", "changelog.md")


def navigation(pages: Path) -> list[dict[str, Any]]:
    """Return the navigation as MkDocs takes it, of the pages that are in a folder.

    A page takes its title from its first heading, so that it is in the language of the page.
    """
    groups = [
        {group.value: [f"analyses/{flag}.md" for flag, one in all_analyses().items() if one.group is group]}
        for group in Group
    ]
    listed = {
        "Start": [*_there(pages, START), *_notebooks(pages)],
        "Guides": _there(pages, GUIDES),
        "Analyses": ["analyses/index.md", *groups],
        "Reference": _there(pages, REFERENCE),
        "Background": _there(pages, BACKGROUND),
    }
    return [{title: entries} for title, entries in listed.items()]


def _notebooks(pages: Path) -> list[str]:
    return sorted(path.relative_to(pages).as_posix() for path in (pages / "notebooks").glob("*.md"))


def titles_in(lang: str) -> dict[str, str]:
    """Return the titles of the parts in a language."""
    groups = {group.value: told(group.value, lang) for group in Group}
    return {} if lang == "en" else {**PARTS[lang], **groups}


def _there(pages: Path, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if (pages / name).is_file()]
