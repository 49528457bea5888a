"""Which installed fonts have the letters of a language, for charts."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path

_OTHER_WEIGHT = re.compile("Black|DemiLight|Light|Medium|Thin")

LATIN = "DejaVu Sans"
"""Comes with matplotlib."""

FACES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "ja": (
        ("Noto Sans CJK JP", "NotoSansCJK-"),
        ("Noto Sans JP", "NotoSansJP"),
        ("Source Han Sans JP", "SourceHanSans"),
        ("IPAexGothic", "ipaexg"),
        ("IPAPGothic", "ipagp"),
        ("IPAGothic", "ipag"),
        ("TakaoPGothic", "TakaoPGothic"),
        ("VL PGothic", "VL-PGothic"),
        ("BIZ UDGothic", "BIZ-UDGothic"),
        ("Hiragino Sans", "ヒラギノ角ゴシック"),
        ("Yu Gothic", "YuGoth"),
        ("Meiryo", "meiryo"),
        ("MS Gothic", "msgothic"),
    )
}
"""Names of fonts with how their files begin, by language, the best first."""


def can_draw(lang: str) -> bool:
    """Whether an installed font has the letters of a language."""
    return lang not in FACES or face_of(lang) is not None


def families() -> list[str]:
    """Return the fonts of a chart: a letter is taken from the first that has it."""
    return [LATIN, *(face for lang in FACES if (face := face_of(lang)) is not None)]


@functools.cache
def face_of(lang: str) -> str | None:
    """Return the best installed font for a language; None where there is none."""
    from matplotlib import font_manager

    known = {font.name for font in font_manager.fontManager.ttflist}
    for name, _ in FACES[lang]:
        if name in known:
            return name
    # matplotlib lists the fonts once and keeps the list: one that was installed later is not in it.
    paths = sorted(font_manager.findSystemFonts())
    for name, stem in FACES[lang]:
        for path in paths:
            if Path(path).name.startswith(stem) and not _OTHER_WEIGHT.search(path):
                font_manager.fontManager.addfont(path)
        if name in {font.name for font in font_manager.fontManager.ttflist}:
            return name
    return None
