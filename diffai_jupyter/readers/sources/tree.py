"""Folders with several checkpoints in them, at any depth: what to compare with what."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.errors import SourceError
from diffai_jupyter.readers.formats.detection import read_by_name
from diffai_jupyter.readers.sources.folder import open_file, open_folder
from diffai_jupyter.readers.sources.links import is_folder
from diffai_jupyter.readers.sources.places import LocalPlace
from diffai_jupyter.readers.sources.shards import shards_of
from diffai_jupyter.readers.sources.weights import index_pattern, is_state, readable
from diffai_jupyter.wording import show_name

ENTRY_LIMIT = 100_000
DEPTH_LIMIT = 16

_PIPELINE = "model_index.json"
_WHOLE = re.compile(r"(?:model|pytorch_model|diffusion_pytorch_model|adapter_model)(?:\.[\w-]+)?\.(?:safetensors|bin)")
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Unit:
    """One checkpoint of a tree.

    Parameters
    ----------
    name : str
        Path inside the tree, with forward slashes.
    is_folder : bool
        Whether the folder as a whole is the checkpoint; a single file else.
    is_state : bool
        Whether it is the state of a run and not a model.
    """

    name: str
    is_folder: bool = False
    is_state: bool = False


@dataclass(frozen=True)
class Tree:
    """A folder with the checkpoints in it.

    Parameters
    ----------
    root : Path
        The folder.
    units : mapping of str to Unit
        By path inside of it, in natural order: 100 before 1000.
    links : tuple of str
        Links to folders outside, which were not followed.
    closed : tuple of str
        Folders that were not looked into: too deep, or without permission.
    """

    root: Path
    units: Mapping[str, Unit]
    links: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()

    def open(self, unit: Unit) -> Checkpoint:
        """Open one of the checkpoints.

        Raises
        ------
        SourceError
            If it cannot be read, or is a link that leads out of the tree.
        """
        path = self.root / unit.name
        if unit.is_folder:
            return open_folder(LocalPlace(path), str(path))
        return open_file(self.file(unit), LocalPlace(path.parent), path.name, str(path))

    def file(self, unit: Unit) -> Storage:
        """Look at the file of a unit that is one."""
        return LocalPlace(self.root).file(unit.name)


@dataclass(frozen=True, slots=True)
class Matched:
    """Which checkpoint of A belongs to which of B.

    Parameters
    ----------
    pairs : tuple of tuple of Unit
        In the order of A.
    only_a, only_b : tuple of str
        Paths without a partner.
    """

    pairs: tuple[tuple[Unit, Unit], ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


@dataclass
class _Walk:
    """What a walk through a tree has found so far."""

    root: Path
    entries: int = 0
    units: list[Unit] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)


def list_tree(root: Path, entry_limit: int = ENTRY_LIMIT) -> Tree:
    """List the checkpoints in a folder and in its folders, by name; nothing is opened.

    Hidden entries are left out, links to folders are not followed, and what is no regular file is no checkpoint.

    Parameters
    ----------
    root : Path
        The folder.
    entry_limit : int
        Files and folders that are accepted.

    Raises
    ------
    SourceError
        If there are more, or `root` itself cannot be listed.
    """
    walk = _Walk(root)
    waiting = [("", 0)]
    while waiting:
        inside, depth = waiting.pop()
        files, folders = _listed(walk, inside, entry_limit)
        prefix = f"{inside}/" if inside else ""
        is_whole = bool(inside) and _is_checkpoint(files)
        if is_whole:
            walk.units.append(Unit(inside, is_folder=True))
        walk.units += [Unit(prefix + name, is_state=is_state(name)) for name in _singles(files, is_whole)]
        if is_whole and _PIPELINE in files:
            continue  # its folders are its components
        deeper = [(prefix + name, depth + 1) for name in folders]
        if depth + 1 > DEPTH_LIMIT:
            walk.closed += [name for name, _ in deeper]
        else:
            waiting += deeper
    ordered = sorted(walk.units, key=lambda unit: _natural(unit.name))
    units = {unit.name: unit for unit in ordered}
    return Tree(root, units, tuple(sorted(walk.links)), tuple(sorted(walk.closed)))


def match(a: Tree, b: Tree) -> Matched:
    """Match checkpoints by path; files also by path without suffix, where that leaves one on either side.

    The state of a run counts only where both sides have it.
    """
    pairs = {name: name for name in a.units if name in b.units and _are_alike(a.units[name], b.units[name])}
    left_a = [name for name, unit in a.units.items() if name not in pairs and not unit.is_state]
    left_b = [name for name, unit in b.units.items() if name not in pairs and not unit.is_state]
    stems_a, stems_b = _by_stem(a, left_a), _by_stem(b, left_b)
    pairs |= {stems_a[stem]: stems_b[stem] for stem in stems_a if stem in stems_b}
    taken = set(pairs.values())
    return Matched(
        tuple((a.units[name], b.units[pairs[name]]) for name in a.units if name in pairs),
        tuple(name for name in left_a if name not in pairs),
        tuple(name for name in left_b if name not in taken),
    )


def left_out(a: Tree, b: Tree) -> tuple[str, ...]:
    """Say what of two trees was not looked at."""
    return tuple(
        f"{side}: {show_name(name)} {why}"
        for side, tree in (("A", a), ("B", b))
        for names, why in (
            (tree.links, "is a link that leads out of the folder and was not followed."),
            (tree.closed, "was not looked into: it lies too deep, or may not be read."),
        )
        for name in names
    )


def are_same(a: Tree, unit_a: Unit, b: Tree, unit_b: Unit) -> bool:
    """Say whether two units are files that are equal byte by byte; False where nothing tells."""
    if unit_a.is_folder or unit_b.is_folder:
        return False
    try:
        return _are_same_bytes(a.file(unit_a), b.file(unit_b))
    except SourceError:
        return False


def _are_same_bytes(a: Storage, b: Storage) -> bool:
    if a.size != b.size:
        return False
    return all(
        bytes(a.read(at, count)) == bytes(b.read(at, count))
        for at in range(0, a.size, _PIECE)
        for count in (min(_PIECE, a.size - at),)
    )


def _listed(walk: _Walk, inside: str, limit: int) -> tuple[list[str], list[str]]:
    """Return names of the files and folders of one folder."""
    files, folders = [], []
    for entry in _scanned(walk, inside):
        walk.entries += 1
        if walk.entries > limit:
            msg = f"{walk.root}: more than {limit} files and folders lie in it. Give a folder further inside."
            raise SourceError(msg)
        path = Path(entry.path)
        if entry.name.startswith("."):
            continue
        if not is_folder(path):
            # A link that leads nowhere is kept: that it cannot be read has to be said.
            files += [entry.name] if os.path.isfile(path) or entry.is_symlink() else []  # noqa: PTH113  (no errors)
        elif not entry.is_symlink():
            folders.append(entry.name)
        elif not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(walk.root)):
            # What lies inside is found without the link.
            walk.links.append(f"{inside}/{entry.name}" if inside else entry.name)
    return sorted(files), sorted(folders)


def _scanned(walk: _Walk, inside: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(walk.root / inside) as entries:
            yield from entries
    except OSError as error:
        if inside:
            walk.closed.append(inside)
            return
        msg = f"{walk.root}: {error.strerror or error}. Check the path and its permissions."
        raise SourceError(msg) from None


def _is_checkpoint(names: Sequence[str]) -> bool:
    """Say whether a folder is one checkpoint, by the names of its files."""
    if any(name == _PIPELINE or _WHOLE.fullmatch(name) or index_pattern().fullmatch(name) for name in names):
        return True
    weights = readable(names)
    return len(weights) > 1 and shards_of(weights[0], weights) == weights


def _singles(names: Sequence[str], is_whole: bool) -> list[str]:
    """Return the files that are units of their own."""
    return [name for name in names if read_by_name(name) and (is_state(name) or not is_whole)]


def _are_alike(a: Unit, b: Unit) -> bool:
    return a.is_folder == b.is_folder


def _by_stem(tree: Tree, names: Sequence[str]) -> dict[str, str]:
    """Return the files whose path without suffix is unique, by that path."""
    stems = {name: str(PurePosixPath(name).with_suffix("")) for name in names if not tree.units[name].is_folder}
    counts = Counter(stems.values())
    return {stem: name for name, stem in stems.items() if counts[stem] == 1}


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts numbers inside of names by value."""
    return [
        (0, int(part), "") if part.isdecimal() and len(part) < 20 else (1, 0, part)
        for part in re.split(r"(\d+)", name.casefold())
    ] + [(2, 0, name)]
