"""The folder of the side-cars, and what went wrong while reading them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property

from diffai_jupyter.checkpoint.model import Json, Note, Training
from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.errors import FormatError, SourceError
from diffai_jupyter.readers.documents import DOCUMENT_LIMIT, read_document
from diffai_jupyter.readers.formats.pytorch.reader import read_graph
from diffai_jupyter.readers.sidecars.graph import Graph
from diffai_jupyter.readers.sources.places import LocalPlace, Place
from diffai_jupyter.wording import Name, write_bytes

DOWNLOAD_LIMIT = 1 << 20
"""Bytes of a side-car that is read as a whole over a network without being asked for."""


class SidecarFolder:
    """Reads the side-cars of one folder; a damaged one is left aside.

    Parameters
    ----------
    place : Place
        Where they lie.

    Attributes
    ----------
    notes : list of Note
        One warning for each file that could not be read, and what a pickle would have called.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self.notes: list[Note] = []

    def read(self, name: str) -> dict[str, Json]:
        """Return the content of a JSON side-car; empty where it is absent or damaged."""
        try:
            if not self._place.has(name):
                return {}
            return read_document(self._place.file(name))
        except SourceError as error:
            self.leave_aside(name, error)
            return {}

    def document(self, name: str) -> dict[str, Json]:
        """Return the content of a JSON side-car that may be large; empty where it is absent, damaged or not fetched."""
        file = self.file(name, DOCUMENT_LIMIT)
        if file is None:
            return {}
        try:
            return read_document(file)
        except SourceError as error:
            self.leave_aside(name, error)
            return {}

    def text(self, name: str, limit: int) -> str:
        """Return a text of up to `limit` bytes; empty where it is absent, longer, or no text."""
        raw = self.content(name, limit)
        try:
            return raw.decode("utf-8-sig")
        except UnicodeDecodeError:
            self.leave_aside(name, FormatError(name, "it is not UTF-8 text"))
            return ""

    def content(self, name: str, limit: int) -> bytes:
        """Return the bytes of a file of up to `limit` bytes; empty where it is absent or longer."""
        file = self.file(name, limit)
        if file is None:
            return b""
        try:
            return file.read(0, file.size).tobytes()
        except SourceError as error:
            self.leave_aside(name, error)
            return b""

    def present(self, names: Iterable[str]) -> list[str]:
        """Return those of some names that are there."""
        return [name for name in names if name in self._names]

    def guarded(self, name: str, read: Callable[[], Training]) -> Training:
        """Return what is read out of a file; nothing where it turns out to be damaged."""
        try:
            return read()
        except SourceError as error:
            self.leave_aside(name, error)
            return Training()

    def graph(self, name: str) -> Graph | None:
        """Return what a pickle describes; None where it is absent or damaged. Nothing is executed, no tensor read."""
        if name not in self._names:
            return None
        try:
            found, notes = read_graph(self._place.file(name))
        except SourceError as error:
            self.leave_aside(name, error)
            return None
        self.notes += notes
        return found

    def file(self, name: str, limit: int) -> Storage | None:
        """Return a file that may be read as a whole; None where it is absent, too large, or not fetched."""
        if name not in self._names:
            return None
        try:
            file = self._place.file(name)
        except SourceError as error:
            self.leave_aside(name, error)
            return None
        if file.size > limit:
            self.leave_aside(name, FormatError(name, f"{write_bytes(file.size)} exceed {write_bytes(limit)}"))
            return None
        if file.size > DOWNLOAD_LIMIT and not isinstance(self._place, LocalPlace):
            template = "{file} beside the weights ({bytes}) was not downloaded. Download the folder to have it read."
            self.notes.append(Note(template, {"file": Name(name), "bytes": write_bytes(file.size)}))
            return None
        return file

    def leave_aside(self, name: str, error: SourceError) -> None:
        """Note that a file could not be read, and why."""
        template = "{file} beside the weights could not be read and was left aside: {error}"
        self.notes.append(Note(template, {"file": Name(name), "error": Name(error)}, is_warning=True))

    @cached_property
    def _names(self) -> frozenset[str]:
        """The names in the folder; empty where it cannot be listed: asking for each would take a request."""
        try:
            return frozenset(self._place.names())
        except SourceError:
            return frozenset()
