"""A unit of work on its way to another process, and the answers on their way back.

What travels is a path and a byte range for each tensor, never its values: workers read for themselves.
Errors travel as data, because every kind of executor wraps what is raised in a way of its own.
"""

from __future__ import annotations

import io
import os
import pickle
import platform
import sys
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from diffai_jupyter.checkpoint.dtypes import DTYPES, Dtype
from diffai_jupyter.checkpoint.storage import StoredFile
from diffai_jupyter.checkpoint.tensor import ArrayTensor, FileRange, Tensor
from diffai_jupyter.checkpoint.unpacked import Unpacked
from diffai_jupyter.errors import DiffaiError, ExecutorError, SourceError
from diffai_jupyter.scan.slabs import SlabSums, Task
from diffai_jupyter.scan.stacks import scan_tasks
from diffai_jupyter.scan.stats import TensorStats

PROTOCOL = 5
VERSION: str = vars(sys.modules[__name__.partition(".")[0]])["__version__"]
_HERE_ONLY = "memory:"
_WORKER = "The worker on"
_REMEDY = "Put the files on a disk that every worker sees, or give a URL."


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a worker could not do its work, as a sentence, and the error that says it here."""

    said: str
    kind: type[DiffaiError] = SourceError


def lies_here(tensor: Tensor) -> bool:
    """Say whether a tensor lies, even in part, in the memory of this process, where no worker sees it."""
    if isinstance(tensor, ArrayTensor):
        return True
    inner = _inside(tensor)
    if inner:
        return any(map(lies_here, inner))
    return any(home.startswith(_HERE_ONLY) for home in tensor.homes)


def is_unpacked_whole(tensor: Tensor) -> bool:
    """Say whether a worker has to unpack a tensor from its start, however small the part it reads."""
    inner = _inside(tensor)
    return any(map(is_unpacked_whole, inner)) or isinstance(getattr(tensor, "file", None), Unpacked)


def _inside(tensor: Tensor) -> list[Tensor]:
    """Return the tensors that a view, a quantized matrix or an adapter reads from."""
    if isinstance(tensor, FileRange):
        return []
    found: list[Tensor] = []
    for value in vars(tensor).values():
        parts: Iterable[object] = value if isinstance(value, (tuple, list)) else (value,)
        found += [part for part in parts if isinstance(part, Tensor)]
    return found


def pack(unit: Sequence[Task]) -> bytes:
    """Return a unit as bytes: about 150 for each small tensor pair, most of them its name.

    Raises
    ------
    pickle.PicklingError, TypeError, AttributeError
        If something in it cannot leave this process.
    """
    target = io.BytesIO()
    # By itself: another version may not understand the rest.
    pickle.dump(VERSION, target, PROTOCOL)
    _Packer(target).dump(list(unit))
    return target.getvalue()


class _Packer(pickle.Pickler):
    """Writes tensors by what they are made from; files, names and dtypes once for each unit."""

    def __init__(self, target: io.BytesIO) -> None:
        super().__init__(target, PROTOCOL)
        self._known: dict[object, Any] = {}

    def reducer_override(self, value: Any) -> Any:
        kind = type(value)
        if kind is Task:
            name = self._same(value.name)
            return Task, (value.index, name, value.a, value.b, value.slab, value.slabs, value.nbytes)
        if kind is FileRange:
            parts = self._same(tuple(map(self._same, value.parts)))
            shape = self._same(value.shape)
            made = (value.file, value.offset, shape, value.dtype, parts)
            return FileRange, (*made, True) if value.is_swapped else made
        if kind is StoredFile:
            return reopened, (value.path, value.size, value.mtime_ns, value.digest)
        if kind is Dtype and DTYPES.get(value.name) == value:
            return _dtype_called, (value.name,)
        return NotImplemented

    def _same(self, value: Any) -> Any:
        """Return the first value that was equal to this one: the same object is written once."""
        return self._known.setdefault(value, value)


def _dtype_called(name: str) -> Dtype:
    return DTYPES[name]


def reopened(path: str, size: int, mtime_ns: int, digest: str) -> StoredFile:
    """Return a file as a worker sees it.

    Raises
    ------
    SourceError
        If it sees none under that path, or another one.
    """
    try:
        file = StoredFile.at(path)
    except SourceError as error:
        said = str(error).removeprefix(f"{path}: ").partition(".")[0]
        msg = f"{worker_name()} cannot read {path}: {said}. {_REMEDY}"
        raise SourceError(msg) from None
    if file.size != size or not _is_same_time(file.mtime_ns, mtime_ns):
        msg = (
            f"{worker_name()} sees another file under {path} (its size or time differs), or it changed since it was "
            f"opened. {_REMEDY}"
        )
        raise SourceError(msg)
    return StoredFile(path, size, file.mtime_ns, digest)


def _is_same_time(seen: int, opened: int) -> bool:
    """Say whether two times are the same, as far as a shared disk that keeps only whole seconds can tell."""
    return seen == opened or (seen % 10**9 == 0 and seen // 10**9 == opened // 10**9)


def worker_name() -> str:
    """Return what messages call this worker."""
    return f"{_WORKER} {platform.node()} (process {os.getpid()})"


def scan_packed(unit: bytes, epsilon: float, block_tiles: int, attempt: int = 0) -> bytes:
    """Scan a packed unit; a worker of any executor runs this.

    Parameters
    ----------
    unit : bytes
        What `pack` made.
    epsilon, block_tiles
        As in `scan_tasks`.
    attempt : int
        How often it was tried before. An executor that remembers answers by arguments then works again.

    Returns
    -------
    bytes
        For `answers_of`.
    """
    del attempt
    answer: list[TensorStats | SlabSums] | Refused
    try:
        source = io.BytesIO(unit)
        version = pickle.load(source)
        if version == VERSION:
            answer = scan_tasks(pickle.load(source), epsilon, block_tiles)
        else:
            said = (
                f"{worker_name()} runs diffai-jupyter {VERSION}, and this process {version}. "
                f"Install the same version on every worker: pip install diffai-jupyter=={version}"
            )
            answer = Refused(said, ExecutorError)
    except DiffaiError as error:
        said = str(error)
        answer = Refused(said if said.startswith(_WORKER) else f"{worker_name()} says: {said}")
    return zlib.compress(pickle.dumps(answer, PROTOCOL), 1)


def answers_of(packed: bytes) -> list[TensorStats | SlabSums]:
    """Return the answers of a worker.

    Raises
    ------
    SourceError, ExecutorError
        If it could not do its work.
    """
    answer = pickle.loads(zlib.decompress(packed))
    if isinstance(answer, Refused):
        raise answer.kind(answer.said)
    found: list[TensorStats | SlabSums] = answer
    return found
