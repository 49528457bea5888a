"""Writing what a panel compares to a file: only when a button is pressed, and only to the path that is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from diffai_jupyter.comparison import Comparison
from diffai_jupyter.errors import ArgumentError
from diffai_jupyter.notebook.panel.plain import NOTHING_YET
from diffai_jupyter.wording import show_name

DEFAULT_PATH = "diffai-report.md"


class Export:
    """Writes files, and asks before it replaces one that it has not written."""

    FORMS: Mapping[str, tuple[str, Callable[[Comparison, Path], object]]] = {
        "Markdown": (".md", lambda comparison, path: comparison.to_markdown(path)),
        "HTML page": (".html", lambda comparison, path: comparison.to_page(path)),
        "JSON": (".json", lambda comparison, path: comparison.to_json(path)),
        "CSV": (".csv", lambda comparison, path: comparison.to_csv(path)),
    }
    """By the name of the button: the ending of the file, and what writes it."""

    def __init__(self) -> None:
        self._written: set[Path] = set()
        self._asked: Path | None = None

    def path_for(self, form: str, text: str) -> str:
        """Return the path with the ending of a form, where it has that of another one or none."""
        path = Path(text.strip() or DEFAULT_PATH)
        endings = {ending for ending, _ in self.FORMS.values()}
        has_ending = path.suffix in endings or not path.suffix
        return str(path.with_suffix(self.FORMS[form][0])) if has_ending and path.name else str(path)

    def write(self, form: str, text: str, comparison: Comparison | None) -> str:
        """Write a form to a path, and return a sentence that says where it is.

        Raises
        ------
        ArgumentError
            If there is nothing to write yet.
        SourceError
            If it cannot be written.
        """
        if comparison is None:
            raise ArgumentError(NOTHING_YET)
        path = Path(text).expanduser().absolute()
        if path.exists() and path not in self._written and path != self._asked:
            self._asked = path
            return f"{show_name(str(path))} exists. Press {form} again to replace it."
        self.FORMS[form][1](comparison, path)
        self._asked = None
        self._written.add(path)
        size = path.stat().st_size
        return f"Written: {show_name(str(path))} ({size} bytes), with all tensors."
