"""Members of archives that are not what their headers say."""

from __future__ import annotations

import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from diffai_jupyter.checkpoint.storage import StoredFile
from diffai_jupyter.errors import FormatError
from diffai_jupyter.readers.formats.archive import read_member, read_members

CLAIMED = 60


def lying(path: Path, size: int) -> Path:
    """Write an archive whose only member unpacks to `size` zeros and claims sixty bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", bytes(size))
    content = bytearray(path.read_bytes())
    for signature, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = content.index(signature) + at
        content[place : place + 4] = struct.pack("<I", CLAIMED)
    path.write_bytes(content)
    return path


def test_a_member_that_unpacks_to_more_than_it_claims_is_left_at_once(tmp_path: Path) -> None:
    file = StoredFile.at(lying(tmp_path / "a.zip", 300 << 20))
    member = read_members(file)["metadata.json"]
    assert member.size == CLAIMED
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="another size than it says"):
            read_member(file, member, 1 << 16)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
