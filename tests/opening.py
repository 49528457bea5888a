"""What every reader of a container is asked: `from opening import arrays, opened, said, ...`."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffai_jupyter.checkpoint.storage import Storage, StoredFile
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.errors import DiffaiError, FormatError
from diffai_jupyter.readers.formats.container import Container
from diffai_jupyter.readers.formats.detection import open_container
from diffai_jupyter.wording import say


@dataclass(frozen=True)
class Counted(Storage):
    """A file that remembers how much of it was read."""

    file: Storage
    reads: list[tuple[int, int]] = field(default_factory=list)

    @property
    def path(self) -> str:  # type: ignore[override]
        return self.file.path

    @property
    def size(self) -> int:  # type: ignore[override]
        return self.file.size

    @property
    def total(self) -> int:
        return sum(count for _, count in self.reads)

    def read(self, offset: int, count: int) -> Any:
        self.reads.append((offset, count))
        return self.file.read(offset, count)


def opened(path: Path) -> Container:
    """Open a file of any format."""
    return open_container(StoredFile.at(path))


def values(tensor: Tensor) -> np.ndarray:
    """Return all numbers of a tensor in its shape, read whole and in pieces, after a trip through pickle."""
    tensor = pickle.loads(pickle.dumps(tensor))
    whole = tensor.read_all()
    n_rows, n_cols = tensor.grid
    assert whole.shape == (n_rows, n_cols)
    rows, cols = (n_rows // 3, n_rows - n_rows // 4), (n_cols // 3, n_cols - n_cols // 4)
    np.testing.assert_array_equal(tensor.read(rows, cols), whole[slice(*rows), slice(*cols)])
    codes = tensor.codes(rows, cols)
    if codes is not None:
        np.testing.assert_array_equal(tensor.dtype.decode(codes), whole[slice(*rows), slice(*cols)])
    return whole.reshape(tensor.shape)


def arrays(container: Container) -> dict[str, np.ndarray]:
    """Return all numbers of a file; its tensors must come in order, each called as it is stored."""
    assert list(container.tensors) == sorted(container.tensors)
    for name, tensor in container.tensors.items():
        assert tensor.parts == (name,)
        assert tensor.homes == {container.file.path}
    return {name: values(tensor) for name, tensor in container.tensors.items()}


def said(container: Container) -> str:
    """Return the notes of a file as text."""
    return "\n".join(say(note.template, note.said) for note in container.notes)


def same(found: np.ndarray, expected: np.ndarray) -> None:
    """Check for equal shape, equal numbers and, byte order aside, equal dtype; float16 reads as float32."""
    expected = np.asarray(expected)
    narrow = expected.dtype.newbyteorder("<")
    assert found.shape == expected.shape
    assert found.dtype.newbyteorder("<") == (np.dtype("<f4") if narrow == np.dtype("<f2") else narrow)
    np.testing.assert_array_equal(found, expected)


def refused(path: Path, content: bytes | None = None) -> str:
    """Return the sentence that a file is refused with."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FormatError) as info:
        opened(path)
    assert str(info.value).startswith(str(path.parent))
    return str(info.value)


def cuts(content: bytes) -> Iterator[bytes]:
    """Yield what is left of a file that was cut short, at each sixteenth."""
    for i in range(1, 16):
        yield content[: len(content) * i // 16]


def read_everything(path: Path) -> None:
    """Open a file and read its tensors, those of absurd size left out."""
    for tensor in opened(path).tensors.values():
        if tensor.size < 1 << 22:
            tensor.read_all()


def refused_or_read(path: Path, content: bytes) -> bool:
    """Say whether a file is refused, when it is opened or when it is read."""
    path.write_bytes(content)
    try:
        read_everything(path)
    except DiffaiError:
        return True
    return False
