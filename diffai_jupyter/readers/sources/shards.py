"""Several files that make one checkpoint."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from diffai_jupyter.checkpoint.model import Json, Note, Training
from diffai_jupyter.checkpoint.optimizer import OptimizerState
from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.checkpoint.views import Renamed
from diffai_jupyter.errors import FormatError, SourceError
from diffai_jupyter.readers.documents import read_document
from diffai_jupyter.readers.formats.container import Container
from diffai_jupyter.readers.formats.detection import open_container
from diffai_jupyter.readers.sidecars.training import strongest
from diffai_jupyter.readers.sources.places import Place, joined
from diffai_jupyter.wording import Name, show_name, some

_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(?P<suffix>safetensors|bin|pt|gguf)")


@dataclass
class Shards:
    """What has been read of a checkpoint so far."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    files: list[Storage] = field(default_factory=list)
    formats: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    config: dict[str, Json] = field(default_factory=dict)
    training: Training = field(default_factory=Training)
    optimizer: OptimizerState | None = None
    order: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    words: Callable[[], Mapping[int, str]] | None = None

    def warn(self, template: str, **said: object) -> None:
        """Add a note that lowers the trust in the comparison."""
        self.notes.append(Note(template, said, is_warning=True))

    def add(self, container: Container, names: Iterable[str]) -> None:
        """Take tensors of one file.

        Raises
        ------
        FormatError
            If a name is there already: which of the two counts is a guess.
        """
        self._take(container.file, container.format, container.metadata, container.config)
        self.training = strongest(self.training, container.training)
        self.optimizer = self.optimizer or container.optimizer
        self.words = self.words or container.words
        self.order.extend(container.order)
        self.notes.extend(container.notes)
        for name in names:
            if name in self.tensors:
                other = ", ".join(show_name(PurePath(home).name) for home in sorted(self.tensors[name].homes))
                reason = f"tensor '{show_name(name)}' is in {other} as well; give one of the files by itself"
                raise FormatError(container.file.path, reason)
            self.tensors[name] = container.tensors[name]

    def _take(
        self, file: Storage, kind: str, metadata: Mapping[str, str], config: Mapping[str, Json]
    ) -> None:
        self.files.append(file)
        self.formats.append(kind)
        self.metadata = {**metadata, **self.metadata}
        self.config = {**config, **self.config}

    def add_component(self, component: str, part: Shards) -> None:
        """Take a component of a pipeline; its tensors get its name in front."""
        for name, tensor in part.tensors.items():
            self.tensors[f"{component}/{name}"] = Renamed(tensor, component)
        self.files.extend(part.files)
        self.formats.extend(part.formats)
        self.metadata = {**part.metadata, **self.metadata}
        self.missing.extend(f"{component}/{name}" for name in part.missing)
        self.notes.extend(part.notes)


def read_files(place: Place, names: Iterable[str]) -> Shards:
    """Read files that no index describes, in the order given."""
    shards = Shards()
    counts: dict[tuple[str, int], set[int]] = defaultdict(set)
    for name in names:
        container = open_container(place.file(name))
        shards.add(container, container.tensors)
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


def shards_of(name: str, names: Iterable[str]) -> list[str]:
    """Return the files that are numbered like this one, itself among them, in order.

    Examples
    --------
    >>> shards_of("m-00002-of-00002.gguf", ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "n.gguf"])
    ['m-00001-of-00002.gguf', 'm-00002-of-00002.gguf']
    >>> shards_of("m.gguf", ["m.gguf", "n.gguf"])
    ['m.gguf']
    """
    own = _NUMBERED.fullmatch(name)
    if own is None:
        return [name]
    keys = ("stem", "count", "suffix")
    numbered = (found for found in map(_NUMBERED.fullmatch, sorted(names)) if found)
    return [found.string for found in numbered if all(found[key] == own[key] for key in keys)]


def read_index(place: Place, index: str) -> Shards:
    """Read the shards that an index names.

    Raises
    ------
    SourceError
        If the index or a shard is damaged, or none of the shards is there.
    """
    weight_map = _weight_map(place.file(index))
    promised: dict[str, list[str]] = defaultdict(list)
    for name, file in weight_map.items():
        promised[file].append(name)
    shards, absent = Shards(), []
    for file in sorted(promised):
        if place.has(file):
            _read_shard(shards, open_container(place.file(file)), file, weight_map)
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
        msg = f"{joined(place, index)}: none of its {len(promised)} shards holds what it names. Download them."
        raise SourceError(msg)
    missing = set(shards.missing)
    if lost := sorted(name for name in weight_map if name not in shards.tensors and name not in missing):
        shards.missing.extend(lost)
        shards.warn(
            "{n} tensors are not in the shard that {index} names: {names}.",
            n=len(lost), index=Name(index), names=some(lost),
        )
    return shards


def _read_shard(shards: Shards, container: Container, file: str, weight_map: dict[str, str]) -> None:
    """Take what the index gives to this shard, and what it does not mention at all."""
    unlisted = [name for name in container.tensors if name not in weight_map]
    shards.add(container, [name for name in container.tensors if weight_map.get(name, file) == file])
    if unlisted:
        shards.warn(
            "{n} tensors of {file} are not in the index, and were compared all the same: {names}.",
            n=len(unlisted), file=Name(file), names=some(unlisted),
        )


def _weight_map(file: Storage) -> dict[str, str]:
    found = read_document(file).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise FormatError(file.path, "it has no weight_map; download the index again")
    weight_map: dict[str, str] = {}
    for name, shard in found.items():
        if not isinstance(shard, str):
            raise FormatError(file.path, f"weight_map gives no file name for tensor '{show_name(name)}'")
        weight_map[name] = shard
    return weight_map
