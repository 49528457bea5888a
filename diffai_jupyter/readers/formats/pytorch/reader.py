"""Files of PyTorch: archives and older files of ``torch.save``, TorchScript, and plain pickles of arrays.

Nothing is unpickled and torch is not needed: the pickle inside is run by a machine that makes inert objects
(`diffai_jupyter.readers.formats.pytorch.pickles`), and tensors become ranges of the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from diffai_jupyter.checkpoint.model import Note
from diffai_jupyter.checkpoint.storage import Storage, StoredFile
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.errors import FormatError, SourceError
from diffai_jupyter.readers.formats.archive import Member, read_member, read_members
from diffai_jupyter.readers.formats.container import TENSOR_LIMIT, Container
from diffai_jupyter.readers.formats.packed import Window
from diffai_jupyter.readers.formats.pytorch.attributes import InertContents
from diffai_jupyter.readers.formats.pytorch.legacy import MAGIC, Embedded, Storages, read_legacy
from diffai_jupyter.readers.formats.pytorch.pickled import BUILDERS as PLAIN
from diffai_jupyter.readers.formats.pytorch.pickled import ArrayRef
from diffai_jupyter.readers.formats.pytorch.pickles import Machine
from diffai_jupyter.readers.formats.pytorch.quantized import dequantized
from diffai_jupyter.readers.formats.pytorch.risks import risk_notes, sidecar_risks, with_risks
from diffai_jupyter.readers.formats.pytorch.tensors import BUILDERS as TORCH
from diffai_jupyter.readers.formats.pytorch.tensors import Block, NoTensor, TensorRef
from diffai_jupyter.readers.formats.pytorch.training import training_of
from diffai_jupyter.readers.formats.pytorch.workings import Builder, Session
from diffai_jupyter.readers.nesting import Contents, Nesting, unwrapped
from diffai_jupyter.readers.sidecars.graph import Graph
from diffai_jupyter.readers.sources.arrays import Incomparable
from diffai_jupyter.wording import show_name

_ZIP = b"PK\x03\x04"
_EMBEDDED = "torch.storage._load_from_bytes"
_BUILDERS: Mapping[str, Builder] = {**PLAIN, **TORCH}
_FEWEST_NODES = 10_000
_REPEATS, _FEWEST_ELEMENTS = 1000, 1 << 30


@dataclass(frozen=True)
class Objects:
    """What a file describes, as inert objects.

    Parameters
    ----------
    root : object
        Plain values, lists, dicts and tuples as such; everything else as in the module `inert`.
    constants : object
        Constants of TorchScript code; None without them.
    session : Session
        What unpickling would have done.
    end : int
        Where what was read ends.
    """

    root: object
    constants: object
    session: Session
    end: int


def read_pytorch(file: Storage) -> Container:
    """Read what tensors a file holds, under the names that its state dict gives them.

    Raises
    ------
    FormatError
        If it is damaged or holds no tensors; the message also says what it would have called.
    """
    found = read_objects(file)
    contents = _contents(file, found)
    nesting = Nesting(file.path, contents)
    try:
        aside = _name_all(nesting, found, contents)
    except FormatError as error:
        raise FormatError(error.path, with_risks(error.reason, found.session), error.offset) from None
    except SourceError as error:
        reason = str(error).removeprefix(f"{show_name(file.path)}: ").removesuffix(".")
        raise FormatError(file.path, with_risks(reason, found.session)) from None
    if not nesting.tensors:
        failures = nesting.failures()
        reason = f"no tensor in it can be compared: {failures}" if failures else "it holds no tensors"
        raise FormatError(file.path, with_risks(reason, found.session))
    notes = [*risk_notes(file.path, found.session, {*_BUILDERS, _EMBEDDED}), *aside, *nesting.notes()]
    if found.end < file.size:
        template = "More bytes follow what was read, and were left aside: {n}."
        notes.append(Note(template, {"n": file.size - found.end}, is_warning=True))
    tensors = dict(sorted(nesting.tensors.items()))
    training, optimizer, aside = training_of(_graph(file, found.root, contents))
    return Container(
        file, "pytorch", tensors, training=training, optimizer=optimizer, order=tuple(nesting.tensors),
        notes=(*notes, *aside),
    )  # fmt: skip


def read_graph(file: Storage) -> tuple[Graph, list[Note]]:
    """Read what a side-car describes, and what must be said of the calls in it.

    Raises
    ------
    FormatError
        If it is damaged; the message also says what it would have called.
    """
    found = read_objects(file)
    return _graph(file, found.root, _contents(file, found)), sidecar_risks(file.path, found.session)


def _contents(file: Storage, found: Objects) -> Contents:
    limit = max(_FEWEST_NODES, found.session.done)
    inert = InertContents(limit)
    return Contents(inert.is_array, inert.entries, _Maker(file).tensor, limit, TENSOR_LIMIT)


def _graph(file: Storage, root: object, contents: Contents) -> Graph:
    return Graph(file.path, root, contents, is_near=isinstance(file, StoredFile))


def read_objects(file: Storage) -> Objects:
    """Read what a file describes without making anything of it but inert objects.

    Raises
    ------
    FormatError
        If it is damaged; the message also says what it would have called.
    """
    session = Session()
    builders: dict[str, Builder] = {**_BUILDERS, _EMBEDDED: Embedded(file.path, session, _BUILDERS)}
    is_archive = file.read(0, min(len(_ZIP), file.size)).tobytes() == _ZIP
    try:
        return _read_archive(file, session, builders) if is_archive else _read_stream(file, session, builders)
    except FormatError as error:
        raise FormatError(error.path, with_risks(error.reason, session), error.offset) from None


def _name_all(nesting: Nesting, found: Objects, contents: Contents) -> list[Note]:
    """Collect the tensors of a file, and return what was left aside."""
    root, aside = found.root, list[Note]()
    if contents.is_array(root):
        root = {"array": root}
    elif isinstance(root, dict):
        root, aside = unwrapped(root, contents)
    if contents.entries(root) is not None:
        nesting.take("", root)
    if found.constants and contents.entries(found.constants) is not None:
        nesting.take("", {"constants": found.constants})
    return aside


@dataclass
class _Maker:
    """Makes tensors of what inert objects say of them."""

    file: Storage
    elements: int = 0

    def tensor(self, found: object, name: str) -> Tensor:
        path = self.file.path
        if isinstance(found, NoTensor):
            raise Incomparable(found.reason)
        if isinstance(found, TensorRef):
            made = found.tensor(path, name) if found.quantizer is None else dequantized(path, name, found)
        elif isinstance(found, ArrayRef):
            made = found.tensor(path, name)
        else:
            msg = "it is no array"
            raise Incomparable(msg)
        self.elements += math.prod(made.shape)
        if self.elements > _FEWEST_ELEMENTS + _REPEATS * self.file.size:
            reason = f"its tensors have over {_REPEATS} times as many elements as the file has bytes"
            raise FormatError(path, reason)
        return made


def _read_stream(file: Storage, session: Session, builders: Mapping[str, Builder]) -> Objects:
    """Read a file of the old format, or a plain pickle."""
    storages = Storages()
    machine = Machine(file, session, builders, storages.find)
    root = machine.load()
    if root == MAGIC:
        root, end = read_legacy(machine, file, storages)
        return Objects(root, None, session, end)
    return Objects(root, None, session, machine.place)


def _read_archive(file: Storage, session: Session, builders: Mapping[str, Builder]) -> Objects:
    members = read_members(file)
    found = [member for name, member in members.items() if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(found) != 1:
        listed = ", ".join(show_name(member.name) for member in found[:5]) or "none"
        raise FormatError(file.path, f"an archive of PyTorch has one data.pkl, and this one has {listed}")
    folder = found[0].name.removesuffix("data.pkl")
    is_swapped = _is_swapped(file, members.get(f"{folder}byteorder"))

    def load(member: Member, inside: str) -> object:
        _check_stored(file, member)
        records = _Records(file, members, f"{folder}{inside}/", is_swapped)
        return Machine(Window(file, member.offset, member.size), session, builders, records.find).load()

    root = load(found[0], "data")
    constants = members.get(f"{folder}constants.pkl")
    return Objects(root, load(constants, "constants") if constants else None, session, file.size)


def _is_swapped(file: Storage, member: Member | None) -> bool:
    """Say whether the numbers are big-endian: only a marker in the archive tells."""
    if member is None:
        return False
    found = read_member(file, member, limit=64)
    if found not in (b"little", b"big"):
        raise FormatError(file.path, "its byte order is neither little nor big", member.offset)
    return found == b"big"


def _check_stored(file: Storage, member: Member) -> None:
    if not member.is_stored:
        reason = f"member '{show_name(member.name)}' is compressed, which torch.save never does"
        raise FormatError(file.path, reason, member.offset)


@dataclass
class _Records:
    """The storages of an archive: one member each."""

    file: Storage
    members: Mapping[str, Member]
    folder: str
    is_swapped: bool

    def find(self, identifier: object) -> Block:
        """Return the storage that a persistent identifier means."""
        if not isinstance(identifier, tuple) or len(identifier) < 5 or identifier[0] != "storage":
            msg = "an identifier names a storage"
            raise TypeError(msg)
        _, kind, key, _, count, *_ = identifier
        block = Block(key, kind, count)
        member = self.members.get(f"{self.folder}{key}") if isinstance(key, str) else None
        if member is None:
            return block
        _check_stored(self.file, member)
        if block.nbytes > member.size:
            reason = f"storage '{show_name(member.name)}' has {member.size} bytes, and {block.nbytes} are claimed"
            raise FormatError(self.file.path, reason, member.offset)
        block.file, block.offset, block.is_swapped = self.file, member.offset, self.is_swapped
        return block
