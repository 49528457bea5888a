"""Files that PyTorch wrote before version 1.6: five pickles, then the storages, each behind its length.

References
----------
``torch.serialization._legacy_save``.
"""

from __future__ import annotations

from collections.abc import Mapping

from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.errors import FormatError
from diffai_jupyter.readers.formats.packed import Window, packed, whole
from diffai_jupyter.readers.formats.pytorch.inert import Held, Latin, Range
from diffai_jupyter.readers.formats.pytorch.pickles import Machine
from diffai_jupyter.readers.formats.pytorch.tensors import Block
from diffai_jupyter.readers.formats.pytorch.workings import Builder, Session
from diffai_jupyter.wording import show_name

MAGIC = 0x1950A86A20F9469CFC6C

_VERSION = 1001
_COUNT = 8


class Storages:
    """The storages that the pickle of an old file refers to."""

    def __init__(self) -> None:
        self.blocks: dict[str, Block] = {}
        self.views: list[tuple[Block, Block, int]] = []

    def find(self, identifier: object) -> object:
        """Make something of a persistent identifier: a storage, or the class of a module with its source."""
        if not isinstance(identifier, tuple) or len(identifier) < 2:
            msg = "an identifier is a tuple"
            raise TypeError(msg)
        if identifier[0] == "module":
            return identifier[1]
        word, kind, key, _, count, *view = identifier
        if word != "storage" or not isinstance(key, str):
            msg = "an identifier names a storage"
            raise ValueError(msg)
        # The first one tells how wide the elements are that the file counts; others may see them differently.
        block = Block(key, kind, count)
        root = self.blocks.setdefault(key, block)
        if block is not root:
            self.views.append((block, root, 0))
        if not view or view[0] is None:
            return block
        _, first, length = view[0]
        part = Block(key, kind, length)
        if type(first) is not int or first < 0:
            msg = "a part of a storage begins in it"
            raise ValueError(msg)
        self.views.append((part, root, first * part.width))
        return part

    def settle(self, path: str) -> None:
        """Tell storages that are seen twice where they are."""
        for block, root, offset in self.views:
            if root.file is not None and offset + block.nbytes > root.nbytes:
                raise FormatError(path, f"a part of storage {show_name(str(root.key))} ends behind its end")
            block.file, block.offset = root.file, root.offset + offset


def read_legacy(machine: Machine, file: Storage, storages: Storages) -> tuple[object, int]:
    """Read an old file whose first pickle, the magic number, was read.

    Parameters
    ----------
    machine : Machine
        Stands behind the magic number.
    file : Storage
        The file.
    storages : Storages
        What `machine` asks about persistent identifiers.

    Returns
    -------
    found : object
        What the file holds.
    end : int
        Where it ends.
    """
    version, _, found = machine.load(), machine.load(), machine.load()
    if version != _VERSION:
        raise FormatError(file.path, f"the version of the file must be {_VERSION}")
    keys = machine.load()
    if not isinstance(keys, list):
        raise FormatError(file.path, "the list of storages is damaged", machine.place)
    place = machine.place
    for key in keys:
        block = storages.blocks.get(key) if isinstance(key, str) else None
        if block is None or block.file is not None:
            raise FormatError(file.path, f"storage {show_name(str(key), 60)} is listed and not used, or twice", place)
        count = int.from_bytes(machine.take(_COUNT), "little", signed=True)
        place += _COUNT
        place += _settle(block, file, place, count * block.width)
        machine.go(place)
    storages.settle(file.path)
    return found, place


def _settle(block: Block, file: Storage, place: int, nbytes: int) -> int:
    """Note where a storage is, and return how many bytes it takes there."""
    if not 0 <= nbytes <= file.size - place:
        reason = f"storage {show_name(str(block.key))} of {nbytes} bytes does not fit into the file; it is truncated"
        raise FormatError(file.path, reason, place)
    block.nbytes = min(block.nbytes, nbytes)
    # PyTorch writes them in little-endian order on every machine.
    block.file, block.offset = whole(file, place)
    return nbytes


class Embedded:
    """Reads old files that are strings in another pickle: plain pickling writes storages so.

    Parameters
    ----------
    path : str
        The outer file.
    session : Session
        That of the outer file.
    builders : mapping of str to callable
        Those of the outer file but for this one: nothing nests deeper.
    """

    def __init__(self, path: str, session: Session, builders: Mapping[str, Builder]) -> None:
        self._path, self._session, self._builders = path, session, builders
        self._read: dict[tuple[int, int] | bytes, object] = {}

    def __call__(self, raw: object) -> object:
        """Return what such a string describes."""
        if not isinstance(raw, (Range, bytes)):
            msg = "a file is bytes"
            raise TypeError(msg)
        key = raw if isinstance(raw, bytes) else (raw.offset, raw.count)
        if key not in self._read:
            self._read[key] = self._load(Held(self._path, raw) if isinstance(raw, bytes) else _opened(raw))
        return self._read[key]

    def _load(self, file: Storage) -> object:
        storages = Storages()
        machine = Machine(file, self._session, self._builders, storages.find)
        if machine.load() != MAGIC:
            msg = "only files of the old format are embedded"
            raise ValueError(msg)
        return read_legacy(machine, file, storages)[0]


def _opened(raw: Range) -> Storage:
    """Return a long string as a file of its own."""
    if not raw.is_text:
        return Window(raw.file, raw.offset, raw.count)
    pieces = Latin(raw.file, raw.offset, raw.count)
    return packed(raw.file.path, sum(map(len, pieces())), pieces)
