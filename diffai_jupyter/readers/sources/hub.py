"""Models of the Hugging Face hub by name: from the local cache, and over the network where that is allowed.

``org/model@revision`` is looked up in the cache and nowhere else. ``hf://org/model@revision`` allows the
network as well. What is opened is a commit, and a note says which.

References
----------
Layout of the cache: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote

from diffai_jupyter.checkpoint.model import Checkpoint, Note
from diffai_jupyter.checkpoint.storage import StoredFile
from diffai_jupyter.errors import MissingPackageError, SourceError
from diffai_jupyter.readers.formats.detection import known_by_name
from diffai_jupyter.readers.sources.folder import NoWeights, open_file, open_folder
from diffai_jupyter.readers.sources.links import is_folder, is_plain, is_there, locate
from diffai_jupyter.readers.sources.places import LocalPlace
from diffai_jupyter.readers.sources.remote import RemoteFile, RemotePlace, announced, joined_address
from diffai_jupyter.readers.sources.transport import clause, kind_of
from diffai_jupyter.wording import Name, show_name, some

SCHEME = "hf://"
DEFAULT_REVISION = "main"

_PART = r"\w[\w.-]{0,95}"
_REVISION = r"refs/(?:pr/\d+|convert/[\w.-]+)|[\w.%-]+"
_NAME = re.compile(rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>{_REVISION}))?", re.ASCII)
_ADDRESS = re.compile(rf"{_NAME.pattern}(?:/(?P<inside>.*))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHORT_COMMIT = re.compile(r"[0-9a-f]{4,39}")
_OTHER_KINDS = ("datasets/", "spaces/", "buckets/", "kernels/")
_ADVICE = {
    "GatedRepoError": "access to it has to be asked for on its page, and then `hf auth login`",
    "RepositoryNotFoundError": "there is no such model, or it is private: check the name, or run `hf auth login`",
    "RevisionNotFoundError": "the model has no such revision: check the part behind @",
    "OfflineModeIsEnabled": "the hub library is set offline: unset HF_HUB_OFFLINE, or download the model",
}


class NotCached(SourceError):  # noqa: N818  (it says where the model is not)
    """A model is not in the local cache."""


@dataclass(frozen=True, slots=True)
class HubName:
    """The name of a model on the hub.

    Parameters
    ----------
    repo : str
        Organization and model, such as ``"org/model"``.
    revision : str
        Branch, tag or commit.
    inside : str
        Path of a file or a folder in it; empty for the whole.
    """

    repo: str
    revision: str = DEFAULT_REVISION
    inside: str = ""

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" + (f"/{self.inside}" if self.inside else "")


def hub_name(text: str) -> HubName | None:
    """Understand ``org/model`` and ``org/model@revision``; what is named like a weight file is none.

    Examples
    --------
    >>> hub_name("org/model"), hub_name("org/model@v1").revision, hub_name("runs/model.pt"), hub_name("../model")
    (HubName(repo='org/model', revision='main', inside=''), 'v1', None, None)
    """
    found = _NAME.fullmatch(text)
    return None if found is None or known_by_name(text) else _understood(found)


def open_cached(name: HubName, source: str) -> Checkpoint:
    """Open a model from the local cache.

    Raises
    ------
    NotCached
        If it is not there.
    SourceError
        If it is there and damaged, or holds no weights.
    """
    commit, snapshot = cached_snapshot(name)
    folder = LocalPlace(snapshot)
    path = locate(snapshot, name.inside) if name.inside else snapshot
    if is_folder(path):
        checkpoint = open_folder(LocalPlace(path), source)
    elif is_there(path):
        checkpoint = open_file(folder.file(name.inside), LocalPlace(path.parent), path.name, source)
    else:
        msg = f"{name}: {show_name(name.inside)} is not in the Hugging Face cache. {_remedy(name)}"
        raise NotCached(msg)
    return _pinned(checkpoint, name, commit, "the local Hugging Face cache")


def open_hub(address: str) -> Checkpoint:
    """Open a model at an ``hf://`` address: from the cache where it is complete there, else over the network.

    Raises
    ------
    SourceError
        If it cannot be reached, is no checkpoint, or damaged.
    MissingPackageError
        If huggingface_hub is needed and not installed.
    """
    rest = address[len(SCHEME) :].rstrip("/")
    found = _ADDRESS.fullmatch(rest)
    if found is None or rest.startswith(_OTHER_KINDS) or "::" in rest:
        msg = f"{show_name(address)}: only models are read from the hub. Write {SCHEME}org/model@revision."
        raise SourceError(msg)
    name = _understood(found)
    if name.inside and not is_plain(name.inside):
        msg = f"{show_name(address)}: '{show_name(name.inside)}' is not a plain path inside the model."
        raise SourceError(msg)
    missed: SourceError
    try:
        checkpoint = open_cached(name, address)
    except (NotCached, NoWeights) as error:
        missed = error
    else:
        if not checkpoint.missing:
            return checkpoint
        missed = NotCached(f"{name}: some of its shards are not in the Hugging Face cache.")
    if _is_offline():
        msg = f"{missed} HF_HUB_OFFLINE forbids the network; unset it, or download the model."
        raise SourceError(msg) from None
    return _open_online(name, address)


def cache_folder() -> Path:
    """Return where the hub's library keeps its files, by the same variables in the same order."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")  # noqa: PTH111, PTH118
    home = os.environ.get("HF_HOME") or os.path.join(home, "huggingface")  # noqa: PTH118
    older = os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")  # noqa: PTH118
    found = os.environ.get("HF_HUB_CACHE") or older
    return Path(os.path.expandvars(os.path.expanduser(found)))  # noqa: PTH111  (raises where there is no home)


def cached_snapshot(name: HubName) -> tuple[str, Path]:
    """Return the commit of a model in the local cache, and the folder of its files.

    Raises
    ------
    NotCached
        If the model or the revision is not there; the message lists what is.
    SourceError
        If the cache is damaged.
    """
    home = cache_folder() / f"models--{name.repo.replace('/', '--')}"
    if not is_folder(home):
        msg = (
            f"{name.repo}: there is no such file or folder, and no model of this name in the Hugging Face cache "
            f"({cache_folder()}). {_remedy(name)}"
        )
        raise NotCached(msg)
    commit = name.revision if _COMMIT.fullmatch(name.revision) else _commit_of(home, name)
    snapshot = locate(home, f"snapshots/{commit}")
    if not is_folder(snapshot):
        msg = f"{name}: commit {commit} is not in the Hugging Face cache. {_held(home)}{_remedy(name)}"
        raise NotCached(msg)
    return commit, snapshot


def _understood(found: re.Match[str]) -> HubName:
    groups = found.groupdict()
    return HubName(groups["repo"], unquote(groups["revision"] or DEFAULT_REVISION), groups.get("inside") or "")


def _commit_of(home: Path, name: HubName) -> str:
    """Return the commit that a branch or a tag of the cache points to."""
    revision = name.revision
    path = locate(home, f"refs/{revision}") if is_plain(revision) else None
    if path is None or not is_there(path) or is_folder(path):
        what = "the short commit" if _SHORT_COMMIT.fullmatch(revision) else "the revision"
        where = f"is not in the Hugging Face cache. {_held(home)}"
        msg = f"{name.repo}: {what} {show_name(revision)} {where}{_remedy(name)}"
        raise NotCached(msg)
    file = StoredFile.at(path)
    commit = file.read(0, min(file.size, 64)).tobytes().decode("ascii", "replace").strip()
    if not _COMMIT.fullmatch(commit):
        msg = f"{file.path}: it should hold a commit of 40 hexadecimal digits. Delete it and download the model again."
        raise SourceError(msg)
    return commit


def _held(home: Path) -> str:
    """Say which revisions and commits of a model are in the cache."""
    refs = [path.relative_to(home / "refs").as_posix() for path in _files_below(home / "refs")]
    commits = [path.name for path in _inside(home / "snapshots") if _COMMIT.fullmatch(path.name)]
    listed = [show_name(name) for name in (*some(sorted(refs)), *some(sorted(commits)))]
    return f"It holds {', '.join(listed)}. " if listed else "It holds no revision. "


def _files_below(folder: Path, depth: int = 3) -> Iterable[Path]:
    for path in _inside(folder):
        if not is_folder(path):
            yield path
        elif depth > 1 and not path.is_symlink():
            yield from _files_below(path, depth - 1)


def _inside(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _remedy(name: HubName) -> str:
    return f"Write {SCHEME}{name} to allow the network, or download it and give its folder."


def _pinned(checkpoint: Checkpoint, name: HubName, commit: str, where: str) -> Checkpoint:
    said = {"name": Name(f"{name.repo}@{name.revision}"), "commit": commit, "where": where}
    note = Note("{name} is commit {commit}, read from {where}.", said)
    return replace(checkpoint, notes=(note, *checkpoint.notes))


def _is_offline() -> bool:
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in ("1", "ON", "YES", "TRUE")


def _open_online(name: HubName, address: str) -> Checkpoint:
    commit = _commit_online(name, address)
    # From here on only this commit is asked for: the branch may move while it is read.
    root = f"{SCHEME}{name.repo}@{commit}"
    whole = joined_address(root, name.inside) if name.inside else root
    if kind_of(whole) == "directory":
        checkpoint = open_folder(RemotePlace(whole), address)
    else:
        folder, _, file = whole.rpartition("/")
        checkpoint = open_file(RemoteFile.at(whole), RemotePlace(folder), file, address)
    return _pinned(announced(checkpoint), name, commit, "the hub")


def _commit_online(name: HubName, address: str) -> str:
    """Ask the hub which commit a revision is."""
    try:
        from huggingface_hub import HfApi
    except ImportError:
        feature = f"Reading {SCHEME} addresses"
        raise MissingPackageError(feature, "huggingface_hub", "hub") from None
    try:
        info: Any = HfApi().model_info(name.repo, revision=name.revision)
    # A lost network raises errors of the library's own HTTP client, which changes with its version.
    except Exception as error:
        _refuse_online(address, error)
    commit = str(info.sha)
    if not _COMMIT.fullmatch(commit):
        msg = f"{show_name(address)}: the hub does not say which commit this is. Try again later."
        raise SourceError(msg)
    return commit


def _refuse_online(address: str, error: Exception) -> NoReturn:
    kinds = [kind.__name__ for kind in type(error).__mro__]
    advice = next((_ADVICE[kind] for kind in kinds if kind in _ADVICE), "")
    reason = advice or f"the hub cannot be read ({clause(error)}); check the network, or download the model"
    msg = f"{show_name(address)}: {reason}."
    raise SourceError(msg) from None
