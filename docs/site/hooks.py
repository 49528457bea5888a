"""What MkDocs calls: lays the pages of the site into a temporary folder, and lists those that there are."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from navigation import navigation, titles_in
from tree import lay

ROOT = Path(__file__).parents[2]
_laid: list[Path] = []


@event_priority(100)
def on_config(config: MkDocsConfig, **_: Any) -> MkDocsConfig:
    """Build from the laid folder; each language is a build of its own, of the same pages."""
    if not _laid:
        folder = Path(tempfile.mkdtemp(prefix="diffai-site-"))
        _laid.append(folder)
        lay(ROOT, folder)
    config["docs_dir"] = str(_laid[0])
    config["nav"] = navigation(_laid[0])
    for language in config.plugins["i18n"].config.languages:
        language.nav_translations = titles_in(language.locale)
    return config


def on_shutdown(**_: Any) -> None:
    """Leave nothing behind."""
    while _laid:
        shutil.rmtree(_laid.pop(), ignore_errors=True)
