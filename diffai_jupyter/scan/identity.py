"""What tells one pair of checkpoints from another: the files, what lay beside them, and how they are read."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields

from diffai_jupyter.checkpoint.dtypes import DTYPES, Dtype
from diffai_jupyter.checkpoint.model import Checkpoint, Tokenizer
from diffai_jupyter.checkpoint.storage import Storage, StoredFile
from diffai_jupyter.checkpoint.tensor import ArrayTensor, FileRange, Tensor
from diffai_jupyter.scan.pair import Pair, PairedTensor
from diffai_jupyter.store.fingerprint import Fingerprint, Unkeepable

SETTLED_NS = 2_000_000_000
"""How long a file has to be left alone before its modification time tells one content from another. The coarsest
clock of a file system that is in use, that of FAT, ticks every two seconds."""

_TAG = re.compile(r'"[^"]+"|[0-9A-Za-z+/=_-]{22,}')
"""A strong ETag, or a digest. A weak one, or a date, does not tell every content from another."""

Homes = tuple[str, ...]


class Identities:
    """Names tensors and checkpoints by what they are read from.

    Attributes
    ----------
    files : dict of str to Storage
        The files that were met, by their digest.
    """

    def __init__(self) -> None:
        self.files: dict[str, Storage] = {}
        self._met: set[str] = set()
        self._keys: dict[int, tuple[Storage, str]] = {}
        self._tensors: dict[int, tuple[Tensor, bytes, Homes]] = {}
        self._fingerprint = Fingerprint(
            {Storage: self._told_file, ArrayTensor: _refuse, Tokenizer: _told_tokenizer, Dtype: _told_dtype}
        )

    def tensor(self, tensor: Tensor) -> tuple[bytes, Homes]:
        """Return the digest of a tensor, and those of the files it is read from.

        Raises
        ------
        Unkeepable
            If it lies, even in part, in memory or where nothing tells that it has changed.
        """
        known = self._tensors.get(id(tensor))
        if known is None:
            self._met = set()
            if type(tensor) is FileRange and type(tensor.file) is StoredFile and tensor.dtype.name in DTYPES:
                shown = (tensor.offset, tensor.shape, tensor.dtype.name, tensor.parts, tensor.is_swapped)
                written = f"{self._key(tensor.file)} {shown}".encode("utf-8", "surrogatepass")
            else:
                written = self._fingerprint.written(tensor)
            digest = hashlib.blake2b(written, digest_size=16).digest()
            known = self._tensors[id(tensor)] = tensor, digest, tuple(sorted(self._met))
        return known[1:]

    def of_pair(self, pair: Pair) -> str:
        """Return the digest of everything that an answer about a pair can depend on, but the user's function.

        Raises
        ------
        Unkeepable
            If a side lies in memory, or nothing tells when it changes.
        """
        told = hashlib.blake2b(digest_size=20)
        for checkpoint in (pair.a, pair.b, *pair.series):
            for part in self._checkpoint(checkpoint):
                told.update(part)
        for tensor in pair.tensors:
            for part in self._couple(tensor):
                told.update(part)
        around = pair.epsilon, pair.left_out, pair.steps, pair.deployment, pair.is_spectral, pair.run.matrix_bytes
        told.update(self._fingerprint.written(around))
        return told.hexdigest()

    def _checkpoint(self, checkpoint: Checkpoint) -> Iterator[bytes]:
        if checkpoint.live is not None:
            raise Unkeepable(checkpoint.source)
        # All but the tensors, which have a shorter way, and the words, which stand in files that are named here.
        yield self._fingerprint.written(
            (
                checkpoint.source, checkpoint.format, checkpoint.files, checkpoint.config, checkpoint.metadata,
                checkpoint.training, checkpoint.optimizer_state, checkpoint.tokenizer, checkpoint.missing,
                checkpoint.notes, len(checkpoint.tensors),
            )
        )  # fmt: skip
        for name, tensor in checkpoint.tensors.items():
            yield f"{name!r}".encode("utf-8", "surrogatepass")
            yield self.tensor(tensor)[0]

    def _couple(self, tensor: PairedTensor) -> Iterator[bytes]:
        names = (tensor.name, tensor.name_a, tensor.name_b, tensor.reason, tensor.piece, tensor.how)
        yield f"{tensor.rule.name} {names!r} {len(tensor.readings)}".encode("utf-8", "surrogatepass")
        readings = [(reading.words, reading.a, reading.b) for reading in tensor.readings]
        for words, *sides in (("", tensor.a, tensor.b), *readings):
            yield f"{words!r}".encode()
            for side in sides:
                yield b"none" if side is None else self.tensor(side)[0]

    def _key(self, file: Storage) -> str:
        """Return the digest of a file, and note that it was met."""
        known = self._keys.get(id(file))
        if known is None:
            key = Fingerprint().of(*_told_of(file))
            known = self._keys[id(file)] = file, key
            self.files[key] = file
        self._met.add(known[1])
        return known[1]

    def _told_file(self, file: Storage) -> object:
        if isinstance(file, StoredFile) or hasattr(file, "identity"):
            return self._key(file)
        # Bytes that are unpacked from a file, or a part of one: told by what they are made of.
        return (type(file).__qualname__, *(getattr(file, field.name) for field in fields(file)))  # type: ignore[arg-type]


def is_settled(files: Iterable[Storage]) -> bool:
    """Say whether files are still as they were opened, and were so for long enough to be told from what follows."""
    for file in files:
        if isinstance(file, StoredFile):
            try:
                status = os.stat(file.path)  # noqa: PTH116
            except OSError:
                return False
            if (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
                return False
            if file.looked_at_ns - file.mtime_ns < SETTLED_NS:
                return False
    return True


def _told_of(file: Storage) -> tuple[object, ...]:
    if isinstance(file, StoredFile):
        return os.path.realpath(file.path), file.size, file.mtime_ns, file.digest
    identity = str(getattr(file, "identity", ""))
    if not _TAG.fullmatch(identity):
        raise Unkeepable(file.path)
    return str(getattr(file, "address", file.path)), file.size, identity, str(getattr(file, "digest", ""))


def _told_tokenizer(tokenizer: Tokenizer) -> object:
    return tokenizer.digest, tokenizer.size, tokenizer.files


def _told_dtype(dtype: Dtype) -> object:
    return dtype.name if DTYPES.get(dtype.name) == dtype else dtype


def _refuse(tensor: ArrayTensor) -> object:
    raise Unkeepable(", ".join(tensor.parts))
