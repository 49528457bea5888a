"""An executed notebook as a page: its cells in order, its outputs in their Markdown form, its pictures as files."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_COLORS = re.compile(r"\x1b\[[0-9;]*m")


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return a notebook in Markdown, and its pictures by their path from the page.

    Parameters
    ----------
    path : path
        The notebook, with its outputs.
    """
    notebook = json.loads(path.read_text(encoding="utf-8"))
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else _fenced(source, "python"))
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}_files/{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![{_words(''.join(data.get('text/plain', '')))}]({name})")
            else:
                parts += _texts(output, data)
    return "\n\n".join(parts) + "\n", pictures


def _texts(output: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[str]:
    if output["output_type"] == "stream":
        yield _fenced("".join(output["text"]), "text")
    elif output["output_type"] == "error":
        told = output.get("traceback") or [f"{output['ename']}: {output['evalue']}"]
        yield _fenced(_COLORS.sub("", "\n".join(told)), "text")
    elif "text/markdown" in data:
        # The titles of outputs are no chapters of the page.
        yield re.sub(r"^#{4,6} (.+)$", r"**\1**", "".join(data["text/markdown"]), flags=re.MULTILINE)
    elif "text/plain" in data:
        yield _fenced("".join(data["text/plain"]), "text")


def _fenced(text: str, language: str) -> str:
    ticks = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}"


def _words(text: str) -> str:
    return re.sub(r"[\[\]\\`*_<>|]", " ", " ".join(text.split()))
