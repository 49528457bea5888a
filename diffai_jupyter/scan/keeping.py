"""Answers about a pair that are kept on the disk, to be found again by the next run on the same files."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from diffai_jupyter.checkpoint.storage import Storage, StoredFile
from diffai_jupyter.scan.identity import Identities, is_settled
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.run import Run
from diffai_jupyter.store.code import code_digest
from diffai_jupyter.store.codec import Codec
from diffai_jupyter.store.entries import Store
from diffai_jupyter.store.fingerprint import Fingerprint, Unkeepable
from diffai_jupyter.store.place import open_store

STAGE, VERIFY = "cache", "verify"
_PIECE = 8 << 20
_ABSENT = object()

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Shelf:
    """A place of the user's store, for the code that runs now.

    Parameters
    ----------
    store : Store
        The entries.
    code : bytes
        Digest of what computes.
    contents : dict of str to str
        Digests of whole files by the digest of their identity, as far as they were asked for.
    run : Run
        Where progress goes; with ``run.verifies`` nothing is believed of a file that was not read through.
    """

    store: Store
    code: bytes
    contents: dict[str, str]
    run: Run

    def key(self, *told: object) -> str:
        """Return the key of an entry."""
        return Fingerprint().of(self.code, *told)

    def get(self, key: str, files: Mapping[str, Storage]) -> bytes | None:
        """Return what was kept, if it may be believed.

        Parameters
        ----------
        key : str
            Of the entry.
        files : mapping of str to Storage
            What it was computed from.
        """
        raw = self.store.get(key)
        if raw is None:
            return None
        head, _, payload = raw.partition(b"\n")
        if self.run.verifies and _told_contents(head) != self._contents_of(files):
            return None
        return payload

    def put(self, key: str, files: Mapping[str, Storage], write: Callable[[], bytes]) -> None:
        """Keep what `write` returns, unless a file is too new or has changed meanwhile."""
        # An edited package may have computed it in part.
        if not is_settled(files.values()) or code_digest() != self.code:
            return
        contents = self._contents_of(files) if self.run.verifies else {}
        with contextlib.suppress(Unkeepable):
            self.store.put(key, json.dumps(contents, sort_keys=True).encode() + b"\n" + write())

    def _contents_of(self, files: Mapping[str, Storage]) -> dict[str, str]:
        """Return the digests of whole files; each is read once. What is elsewhere is known by its tag."""
        missing = {key: file for key, file in files.items() if key not in self.contents}
        local = {key: file for key, file in missing.items() if isinstance(file, StoredFile)}
        self.contents.update({key: "tag" for key in missing if key not in local})
        if local:
            total = sum(file.size for file in local.values())
            with self.run.watch.stage(VERIFY), ThreadPoolExecutor(self.run.threads) as threads:
                done = 0
                for key, digest in zip(local, threads.map(_read_through, local.values()), strict=True):
                    self.contents[key] = digest
                    done += local[key].size
                    self.run.report(VERIFY, done, total)
        return {key: self.contents[key] for key in sorted(files)}


def shelf_of(pair: Pair) -> Shelf | None:
    """Return where answers about a pair are kept; None where nothing may be."""
    found: Shelf | None = pair.remember("shelf", lambda: _shelf(pair.run))
    return found


def identities_of(pair: Pair) -> Identities:
    """Return what names the tensors of a pair."""
    found: Identities = pair.remember("identities", Identities)
    return found


def kept(
    pair: Pair,
    what: tuple[object, ...],
    compute: Callable[[], Answer],
    codec: Codec,
    fits: Callable[[Any], bool] = lambda _: True,
) -> Answer:
    """Return an answer about a pair that an earlier run has kept, else compute and keep it.

    An answer that a clock or the user cut short is not kept, nor one about objects in memory, nor one that the
    user's own function had a part in.

    Parameters
    ----------
    pair : Pair
        What it is about.
    what : tuple
        Which answer: plain data.
    compute : callable
        Computes it.
    codec : Codec
        Writes and reads it.
    fits : callable
        Says of what was read whether it can be such an answer.
    """
    shelf, identity = shelf_of(pair), _identity(pair)
    if shelf is None or identity is None:
        return compute()
    told, files = identity
    with pair.run.watch.stage(STAGE):
        key = shelf.key("answer", told, *what)
        found = _read(shelf.get(key, files), codec, fits)
    if found is not _ABSENT:
        return found  # type: ignore[no-any-return]
    stops = pair.run.stops
    answer = compute()
    if pair.run.stops == stops:
        with pair.run.watch.stage(STAGE):
            shelf.put(key, files, lambda: codec.write(answer))
    return answer


def _shelf(run: Run) -> Shelf | None:
    store = open_store()
    code = None if store is None else code_digest()
    return None if store is None or code is None else Shelf(store, code, {}, run)


def _identity(pair: Pair) -> tuple[str, Mapping[str, Storage]] | None:
    """Return what tells a pair from others, and its files; None where nothing does."""

    def told() -> tuple[str, Mapping[str, Storage]] | None:
        if pair.evaluate is not None or shelf_of(pair) is None:
            return None
        identities = identities_of(pair)
        try:
            with pair.run.watch.stage(STAGE):
                return identities.of_pair(pair), dict(identities.files)
        except Unkeepable:
            return None

    found: tuple[str, Mapping[str, Storage]] | None = pair.remember("identity", told)
    return found


def _read(payload: bytes | None, codec: Codec, fits: Callable[[Any], bool]) -> Any:
    """Return the kept answer, or `_ABSENT`."""
    if payload is None:
        return _ABSENT
    try:
        found = codec.read(payload)
        return found if fits(found) else _ABSENT
    except (ValueError, TypeError, AttributeError):
        return _ABSENT


def _told_contents(head: bytes) -> object:
    try:
        return json.loads(head)
    except ValueError:
        return None


def _read_through(file: Storage) -> str:
    digest = hashlib.sha256()
    for start in range(0, file.size, _PIECE):
        digest.update(file.read(start, min(_PIECE, file.size - start)).data)
    return digest.hexdigest()
