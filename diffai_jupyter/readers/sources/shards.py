"""Several safetensors files that make one checkpoint."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from diffai_jupyter.checkpoint.model import Note
from diffai_jupyter.checkpoint.storage import StoredFile
from diffai_jupyter.checkpoint.tensor import FileRange
from diffai_jupyter.errors import FormatError, SourceError
from diffai_jupyter.readers.documents import read_document
from diffai_jupyter.readers.formats.detection import open_weights
from diffai_jupyter.readers.formats.safetensors import Header
from diffai_jupyter.readers.sources.links import is_there, locate
from diffai_jupyter.wording import Name, show_name

_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")


@dataclass
class Shards:
    """What has been read of a checkpoint so far."""

    tensors: dict[str, FileRange] = field(default_factory=dict)
    files: list[StoredFile] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    def warn(self, template: str, **said: object) -> None:
        """Add a note that lowers the trust in the comparison."""
        self.notes.append(Note(template, said, is_warning=True))

    def add(self, header: Header, names: Iterable[str]) -> None:
        """Take tensors of one file.

        Raises
        ------
        FormatError
            If a name is there already: which of the two counts is a guess.
        """
        self.files.append(header.file)
        self.metadata = {**header.metadata, **self.metadata}
        for name in names:
            tensor = header.tensors[name]
            if name in self.tensors:
                other = show_name(Path(self.tensors[name].file.path).name)
                reason = f"tensor '{show_name(name)}' is in {other} as well; give one of the files by itself"
                raise FormatError(header.file.path, reason)
            self.tensors[name] = tensor

    def add_component(self, component: str, part: Shards) -> None:
        """Take a component of a pipeline; its tensors get its name in front."""
        for name, tensor in part.tensors.items():
            self.tensors[f"{component}/{name}"] = replace(tensor, parts=(f"{component}/{name}",))
        self.files.extend(part.files)
        self.metadata = {**part.metadata, **self.metadata}
        self.missing.extend(f"{component}/{name}" for name in part.missing)
        self.notes.extend(part.notes)


def read_files(folder: Path, names: Iterable[str]) -> Shards:
    """Read files that no index describes, in the order given."""
    shards = Shards()
    counts: dict[tuple[str, int], set[int]] = defaultdict(set)
    for name in names:
        header = open_weights(locate(folder, name))
        shards.add(header, header.tensors)
        if numbered := _NUMBERED.fullmatch(name):
            counts[numbered["stem"], int(numbered["count"])].add(int(numbered["number"]))
    for (stem, count), numbers in counts.items():
        if (absent := count - len(numbers)) > 0:
            shards.warn(
                "{absent} of {count} shards of {stem} are missing, and no index says what they hold. "
                "Download them.",
                absent=absent, count=count, stem=Name(stem),
            )
    return shards


def shard_note(name: str) -> Note | None:
    """Say that one shard of several was given, if its name tells so."""
    numbered = _NUMBERED.fullmatch(name)
    if numbered is None or int(numbered["count"]) < 2:
        return None
    said = {"file": Name(name), "count": int(numbered["count"])}
    template = "{file} is one of {count} shards. Give its folder to compare the whole checkpoint."
    return Note(template, said, is_warning=True)


def read_index(folder: Path, index: str) -> Shards:
    """Read the shards that an index names.

    Raises
    ------
    SourceError
        If the index or a shard is damaged, or none of the shards is there.
    """
    weight_map = _weight_map(locate(folder, index))
    promised: dict[str, list[str]] = defaultdict(list)
    for name, file in weight_map.items():
        promised[file].append(name)
    shards, absent = Shards(), []
    for file in sorted(promised):
        path = locate(folder, file)
        if is_there(path):
            _read_shard(shards, open_weights(path), file, weight_map)
        else:
            absent.append(Name(file))
            shards.missing.extend(promised[file])
    if absent:
        shards.warn(
            "{n} of {all} shards named by {index} are missing: {files}. Download them; their "
            "{tensors} tensors were not compared.",
            n=len(absent), all=len(promised), index=Name(index), files=some(absent),
            tensors=len(shards.missing),
        )
    if not shards.tensors:
        msg = f"{folder / index}: none of its {len(promised)} shards holds what it names. Download them."
        raise SourceError(msg)
    missing = set(shards.missing)
    if lost := sorted(name for name in weight_map if name not in shards.tensors and name not in missing):
        shards.missing.extend(lost)
        shards.warn(
            "{n} tensors are not in the shard that {index} names: {names}.",
            n=len(lost), index=Name(index), names=some(lost),
        )
    return shards


def some(names: Iterable[str], limit: int = 5) -> tuple[str, ...]:
    """Return the first few names for a sentence, and how many more there are.

    Examples
    --------
    >>> some(["a", "b", "c"], limit=2)
    ('a', 'b', '1 more')
    """
    shown = [Name(name) for name in names]
    rest = len(shown) - limit
    return tuple(shown) if rest <= 0 else (*shown[:limit], f"{rest} more")


def _read_shard(shards: Shards, header: Header, file: str, weight_map: dict[str, str]) -> None:
    """Take what the index gives to this shard, and what it does not mention at all."""
    unlisted = [name for name in header.tensors if name not in weight_map]
    shards.add(header, [name for name in header.tensors if weight_map.get(name, file) == file])
    if unlisted:
        shards.warn(
            "{n} tensors of {file} are not in the index, and were compared all the same: {names}.",
            n=len(unlisted), file=Name(file), names=some(unlisted),
        )


def _weight_map(path: Path) -> dict[str, str]:
    found = read_document(path).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise FormatError(str(path), "it has no weight_map; download the index again")
    weight_map: dict[str, str] = {}
    for name, file in found.items():
        if not isinstance(file, str):
            raise FormatError(str(path), f"weight_map gives no file name for tensor '{show_name(name)}'")
        weight_map[name] = file
    return weight_map
