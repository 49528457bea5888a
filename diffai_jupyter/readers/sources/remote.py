"""Files and folders that are read over the network, in pieces and never as a whole."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.model import Checkpoint, Note
from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.errors import FormatError, SourceError
from diffai_jupyter.readers.sources.folder import open_file, open_folder
from diffai_jupyter.readers.sources.links import is_plain
from diffai_jupyter.readers.sources.places import Place
from diffai_jupyter.readers.sources.transport import (
    HEAD,
    Absent,
    check_address,
    entries,
    fetch,
    kind_of,
    look,
    scheme_of,
    shown,
)
from diffai_jupyter.wording import Name, show_name, write_bytes

AHEAD = 1 << 20
"""The longest piece that is read ahead."""

_LEAST = 1 << 14
_HELD = 2 << 20
_BUFFER = 1 << 13


@dataclass(frozen=True)
class RemoteFile(Storage):
    """A file elsewhere.

    Small reads are served from pieces that were read a little ahead: 64 KiB at the start, 16 KiB elsewhere,
    twice as much each time where one follows the other, at most 1 MiB. Long reads ask for just their range.

    Parameters
    ----------
    address : str
        Where it is, whole; `path` is what messages call it, without password and signature.
    size : int
        Bytes when it was opened.
    identity : str
        What changes with its content, such as an ETag; empty where the server gives none.
    digest : str
        Digest of its header; empty where the format has none.
    """

    address: str
    size: int
    identity: str = ""
    digest: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_pieces", _Pieces())

    def __reduce__(self) -> tuple[type[RemoteFile], tuple[str, int, str, str]]:
        return RemoteFile, (self.address, self.size, self.identity, self.digest)

    @property
    def path(self) -> str:  # type: ignore[override]
        """What messages call it."""
        return shown(self.address)

    @classmethod
    def at(cls, address: str) -> RemoteFile:
        """Look at a file; takes one request over HTTP.

        Raises
        ------
        SourceError
            If there is none, or pieces of it cannot be read.
        MissingPackageError
            If the package for such addresses is not installed.
        """
        found = look(address)
        file = cls(address, found.size, found.identity)
        if found.data:
            file._kept.add(0, found.data)
        return file

    @property
    def _kept(self) -> _Pieces:
        kept: _Pieces = object.__getattribute__(self, "_pieces")
        return kept

    def read(self, offset: int, count: int) -> NDArray[np.uint8]:
        """Read `count` bytes from `offset` on.

        Raises
        ------
        SourceError
            If the server does not give them any more, or the file changed.
        """
        if count and offset + count > self.size:
            raise FormatError(self.path, "the file ends too soon; it is truncated", self.size)
        data = self._kept.read(self, offset, count) if count < AHEAD else self._fetch(offset, count)
        # A copy: what is handed out may be written to.
        return np.array(np.frombuffer(data, dtype=np.uint8))

    def digested(self, digest: str) -> RemoteFile:
        """Return the same file, known by the digest of its header as well."""
        known = replace(self, digest=digest)
        object.__setattr__(known, "_pieces", self._kept)
        return known

    def stream(self) -> io.BufferedReader:
        """Return the bytes as a file object; its own buffer is small, because pieces are kept here."""
        return io.BufferedReader(super().stream().detach(), _BUFFER)

    def _fetch(self, offset: int, count: int) -> bytes:
        return fetch(self.address, offset, count, self.size, self.identity)


class _Pieces:
    """The pieces of a file that were used last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: list[tuple[int, bytes]] = []

    def add(self, start: int, data: bytes) -> None:
        self._held.append((start, data))
        while sum(len(held) for _, held in self._held) > _HELD and len(self._held) > 1:
            del self._held[0]

    def read(self, file: RemoteFile, offset: int, count: int) -> memoryview:
        if not count:
            return memoryview(b"")
        with self._lock:
            for i in reversed(range(len(self._held))):
                start, data = self._held[i]
                if start <= offset and offset + count <= start + len(data):
                    self._held.append(self._held.pop(i))
                    return memoryview(data)[offset - start : offset - start + count]
            length = max(count, min(self._growth(offset), AHEAD, file.size - offset))
            data = file._fetch(offset, length)
            self.add(offset, data)
            return memoryview(data)[:count]

    def _growth(self, offset: int) -> int:
        """Return twice the length of the last piece where the read goes on behind it, else the least."""
        if offset < HEAD and not self._held:
            return HEAD
        start, data = self._held[-1] if self._held else (offset, b"")
        return max(_LEAST, 2 * len(data)) if start < offset <= start + len(data) else _LEAST


class RemotePlace(Place):
    """A folder elsewhere. Over HTTP it cannot be listed: files are found by asking for their names.

    Parameters
    ----------
    address : str
        Where it is.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._seen: dict[str, RemoteFile] = {}
        self._listed: list[tuple[str, bool]] | None = None

    @property
    def path(self) -> str:  # type: ignore[override]
        """What messages call it."""
        return shown(self.address)

    def names(self) -> list[str]:
        """Return the names of the files in it."""
        return [name for name, is_folder in self._entries() if not is_folder]

    def folders(self) -> list[str]:
        """Return the names of the folders in it."""
        return [name for name, is_folder in self._entries() if is_folder]

    def has(self, name: str) -> bool:
        """Say whether there is a file of this name in it."""
        self._check(name)
        if "/" not in name and (known := self._entries()):
            return (name, False) in known
        try:
            found = self._look(name)
        except Absent:
            return False
        # Many servers answer every question with a page.
        return not _is_page(found)

    def file(self, name: str) -> Storage:
        """Look at one of its files."""
        self._check(name)
        return self._look(name)

    def inside(self, name: str) -> Place:
        """Return one of its folders."""
        self._check(name)
        return RemotePlace(joined_address(self.address, name))

    def _look(self, name: str) -> RemoteFile:
        if name not in self._seen:
            self._seen[name] = RemoteFile.at(joined_address(self.address, name))
        return self._seen[name]

    def _check(self, name: str) -> None:
        if not is_plain(name):
            raise FormatError(self.path, f"the file name '{show_name(name)}' is not a plain path inside the folder")

    def _entries(self) -> list[tuple[str, bool]]:
        if self._listed is None:
            self._listed = entries(self.address)
        return self._listed


def open_remote(address: str) -> Checkpoint:
    """Open a file or a folder at an address other than a hub's.

    Raises
    ------
    SourceError
        If it is refused, not there, no checkpoint, or damaged.
    MissingPackageError
        If the package for such addresses is not installed.
    """
    check_address(address)
    source = shown(address)
    if kind_of(address) == "directory":
        return announced(open_folder(RemotePlace(address.rstrip("/")), source))
    folder, name = _parted(address)
    if not name:
        msg = f"{source}: folders cannot be listed over HTTP. Give the address of a file or of an index (….index.json)."
        raise SourceError(msg)
    place = RemotePlace(folder)
    return announced(open_file(RemoteFile.at(address), place, name, source))


def announced(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint with a note of how much reading its values takes."""
    said = {"source": Name(checkpoint.source), "bytes": write_bytes(checkpoint.nbytes)}
    note = Note("{source} is read over the network; comparing values reads {bytes}.", said)
    return replace(checkpoint, notes=(*checkpoint.notes, note))


def joined_address(folder: str, name: str) -> str:
    """Return the address of something in a folder; over HTTP what is asked for behind ``?`` is kept.

    Examples
    --------
    >>> joined_address("https://example.org/run?key=1", "a b.json")
    'https://example.org/run/a%20b.json?key=1'
    >>> joined_address("s3://bucket/run", "a b.json")
    's3://bucket/run/a b.json'
    """
    if not scheme_of(folder).startswith("http"):
        return f"{folder.rstrip('/')}/{name}"
    parts = urlsplit(folder)
    path = f"{parts.path.rstrip('/')}/{quote(name)}"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def _parted(address: str) -> tuple[str, str]:
    """Return the address of the folder that a file lies in, and the name of the file."""
    if not scheme_of(address).startswith("http"):
        folder, _, name = address.rpartition("/")
        return folder, name
    parts = urlsplit(address)
    path, _, name = parts.path.rpartition("/")
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, "")), unquote(name)


def _is_page(file: Storage) -> bool:
    return file.read(0, min(file.size, 64)).tobytes().lstrip()[:1] == b"<"
