"""What shows itself: everything that can be laid out in blocks, as text, HTML and Markdown, on screen and in files."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TypeAlias

from diffai_jupyter.contract.blocks import Document
from diffai_jupyter.errors import ArgumentError, SourceError
from diffai_jupyter.render.html import render_html, render_page
from diffai_jupyter.render.markdown import render_markdown
from diffai_jupyter.render.text import render_text
from diffai_jupyter.wording import clause, show_name

LEAST_LIMIT = 1000
"""Fewest characters that Markdown is cut to: a headline, and what was left out."""

Target: TypeAlias = "str | os.PathLike[str]"


class Shown(ABC):
    """Something that is laid out in blocks.

    Every ``to_…`` returns its text. With a path it also writes it there, as UTF-8 with a line feed at the end of each
    line; what is written stands alone as a file, charts included, and is what is returned.
    """

    @abstractmethod
    def document(self) -> Document:
        """Return it laid out in blocks."""

    def kept_document(self) -> Document:
        """Return what of it Markdown keeps: all, unless a part differs from run to run."""
        return self.document()

    def to_text(self, path: Target | None = None, *, color: bool = False) -> str:
        """Return it as plain text, and write it when a path is given.

        Parameters
        ----------
        path : path, optional
            File to write.
        color : bool
            Whether the word at the start of a line is coloured for a terminal.

        Raises
        ------
        SourceError
            If the file cannot be written.
        """
        return keep(render_text(self.document(), color), path)

    def to_html(self, path: Target | None = None) -> str:
        """Return it as a static HTML fragment for a page of one's own; with a path as `to_page` does.

        Raises
        ------
        SourceError
            If the file cannot be written.
        """
        if path is not None:
            return self.to_page(path)
        document = self.document()
        return render_html(document.sections, document.title, document.lang)

    def to_page(self, path: Target | None = None) -> str:
        """Return it as one self-contained HTML file, charts included, and write it when a path is given.

        Raises
        ------
        SourceError
            If the file cannot be written.
        """
        return keep(render_page(self.document()), path)

    def to_markdown(self, path: Target | None = None, *, limit: int | None = None) -> str:
        """Return it as Markdown, and write it when a path is given.

        Parameters
        ----------
        path : path, optional
            File to write. Charts are written as PNG files into a folder beside it; without a path each is its
            sentence only.
        limit : int, optional
            Most characters of the result, at least 1,000; its last line says what was cut. A comment on GitHub may
            have 65,536.

        Raises
        ------
        SourceError
            If a file cannot be written.
        ArgumentError
            If the limit is too low.
        """
        if limit is not None and limit < LEAST_LIMIT:
            msg = f"The limit of the Markdown must be at least {LEAST_LIMIT} characters. Got {limit}."
            raise ArgumentError(msg)
        document = self.kept_document()
        if path is None:
            return render_markdown(document, limit=limit)
        images = image_names(document, Path(path))
        text = keep(render_markdown(document, images, limit), path)
        _write_images(document, Path(path), images)
        return text

    def __repr__(self) -> str:
        try:
            return self.to_text().rstrip("\n")
        # A display that fails must not hide the rest of a cell, and whoever asks gets the error from `to_text`.
        except Exception as error:
            return f"<{type(self).__name__}, which cannot be shown: {clause(error)}>"

    def _repr_html_(self) -> str | None:
        try:
            return self.to_html()
        except Exception:
            return None

    def _repr_markdown_(self) -> str | None:
        try:
            return render_markdown(self.document())
        except Exception:
            return None


def keep(text: str, path: Target | None) -> str:
    """Return a text, and write it when a path is given; folders that are missing are made.

    Raises
    ------
    SourceError
        If the file cannot be written.
    """
    if path is not None:
        _write(Path(path), text.encode("utf-8"))
    return text


def image_names(document: Document, path: Path) -> dict[str, str]:
    """Return a relative file name for each chart; tensor names do not become file names."""
    folder = f"{path.stem}_files"
    names: dict[str, str] = {}
    for chart in document.charts():
        kind = chart.key.partition(":")[0]
        number = sum(name.startswith(f"{folder}/{kind}") for name in names.values())
        names[chart.key] = f"{folder}/{kind}{f'_{number + 1}' if number else ''}.png"
    return names


def _write_images(document: Document, target: Path, images: dict[str, str]) -> None:
    if not images:
        return
    # matplotlib is loaded only when there is something to draw.
    from diffai_jupyter.render.charts import png

    for chart in document.charts():
        _write(target.parent / images[chart.key], png(chart).data)


def _write(target: Path, data: bytes) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or clause(error)
        msg = f"{show_name(str(target))}: {why}. Choose a path that can be written."
        raise SourceError(msg) from None
