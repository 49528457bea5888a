"""Folders to read from, on this machine or elsewhere."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from diffai_jupyter.checkpoint.storage import Storage, StoredFile
from diffai_jupyter.errors import SourceError
from diffai_jupyter.readers.sources.links import is_folder, is_there, locate


class Place(ABC):
    """A folder.

    Attributes
    ----------
    path : str
        What messages call it.
    """

    path: str

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of the files in it, hidden ones left out, in order."""

    @abstractmethod
    def folders(self) -> list[str]:
        """Return the names of the folders in it, hidden ones and links out of it left out, in order."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Say whether there is something of this name in it.

        Raises
        ------
        SourceError
            If the name, or the link behind it, leads out of the folder.
        """

    @abstractmethod
    def file(self, name: str) -> Storage:
        """Look at one of its files.

        Raises
        ------
        SourceError
            If it is not there, not a file, or leads out of the folder.
        """

    @abstractmethod
    def inside(self, name: str) -> Place:
        """Return one of its folders.

        Raises
        ------
        SourceError
            If the name leads out of the folder.
        """


@dataclass(frozen=True)
class LocalPlace(Place):
    """A folder on this machine.

    Parameters
    ----------
    folder : Path
        Where it is.
    """

    folder: Path

    @property
    def path(self) -> str:  # type: ignore[override]
        """What messages call it."""
        return str(self.folder)

    def names(self) -> list[str]:
        """Return the names of the files in it."""
        return [path.name for path in self._entries() if not is_folder(path)]

    def folders(self) -> list[str]:
        """Return the names of the folders in it."""
        return [path.name for path in self._entries() if is_folder(path) and self._holds(path.name)]

    def has(self, name: str) -> bool:
        """Say whether there is something of this name in it."""
        return is_there(locate(self.folder, name))

    def file(self, name: str) -> Storage:
        """Look at one of its files."""
        return StoredFile.at(locate(self.folder, name))

    def inside(self, name: str) -> Place:
        """Return one of its folders."""
        return LocalPlace(locate(self.folder, name))

    def _holds(self, name: str) -> bool:
        try:
            locate(self.folder, name)
        except SourceError:
            return False
        return True

    def _entries(self) -> list[Path]:
        try:
            inside = sorted(self.folder.iterdir())
        except OSError as error:
            msg = f"{self.folder}: {error.strerror or error}. Check the path and its permissions."
            raise SourceError(msg) from None
        return [path for path in inside if path.name[0] != "."]


def joined(place: Place, name: str) -> str:
    """Return what messages call a file of a folder."""
    return f"{place.path}/{name}" if not isinstance(place, LocalPlace) else os.path.join(place.path, name)  # noqa: PTH118
