"""The folder of the side-cars, and what went wrong while reading them."""

from __future__ import annotations

from diffai_jupyter.checkpoint.model import Json, Note
from diffai_jupyter.errors import SourceError
from diffai_jupyter.readers.documents import read_document
from diffai_jupyter.readers.sources.places import Place
from diffai_jupyter.wording import Name


class SidecarFolder:
    """Reads JSON side-cars of one folder.

    Parameters
    ----------
    place : Place
        Where they lie.

    Attributes
    ----------
    found : list of str
        Names of the files that were read.
    notes : list of Note
        One warning for each file that could not be read.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self.found: list[str] = []
        self.notes: list[Note] = []

    def read(self, name: str) -> dict[str, Json]:
        """Return the content of a side-car; empty where it is absent or damaged."""
        try:
            if not self._place.has(name):
                return {}
            content = read_document(self._place.file(name))
        except SourceError as error:
            template = "{file} beside the weights could not be read and was left aside: {error}"
            self.notes.append(Note(template, {"file": Name(name), "error": Name(error)}, is_warning=True))
            return {}
        self.found.append(name)
        return content
