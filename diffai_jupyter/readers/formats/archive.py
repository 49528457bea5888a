"""Zip archives as checkpoints use them: where each member's bytes are, checked before anything is unpacked.

References
----------
PKWARE, APPNOTE.TXT 6.3.10, sections 4.3.7 (local header) and 4.3.12 (central directory).
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.checkpoint.unpacked import Unpacked
from diffai_jupyter.errors import FormatError
from diffai_jupyter.wording import clause, show_name, write_bytes

MEMBER_LIMIT = 1_000_000
RATIO_LIMIT = 1100
"""Deflate packs zeros 1,032 to 1; a member that claims more is a bomb."""

_LOCAL_HEADER = 30
_ENCRYPTED = 1
_PIECE = 1 << 20
# What zipfile raises, depending on where the damage is.
_DAMAGES = (
    zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, RuntimeError, OverflowError, struct.error,
)


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive.

    Parameters
    ----------
    name : str
        Its name.
    offset : int
        Where its bytes, packed or not, begin in the archive.
    packed, size : int
        Bytes in the archive, and unpacked.
    is_stored : bool
        Whether they are the same bytes; deflated else.
    """

    name: str
    offset: int
    packed: int
    size: int
    is_stored: bool


def read_members(file: Storage) -> dict[str, Member]:
    """List the members of an archive, in their order; folders are left out.

    Raises
    ------
    FormatError
        If the archive is damaged, encrypted, names a member twice, or unpacks to absurd sizes.
    """
    try:
        with file.stream() as stream, zipfile.ZipFile(stream) as archive:
            infos = archive.infolist()
    except _DAMAGES as error:
        raise FormatError(file.path, f"the archive is damaged or truncated ({clause(error)})") from None
    if len(infos) > MEMBER_LIMIT:
        raise FormatError(file.path, f"{len(infos)} members are more than the limit of {MEMBER_LIMIT}")
    members: dict[str, Member] = {}
    for info in infos:
        if info.filename in members:
            raise FormatError(file.path, f"two members are called '{show_name(info.filename)}'")
        if not info.is_dir():
            members[info.filename] = _member(file, info)
    return members


def open_member(file: Storage, member: Member) -> tuple[Storage, int]:
    """Return where a member's unpacked bytes are: a storage, and the offset in it."""
    if member.is_stored:
        return file, member.offset
    return Unpacked(file.path, member.size, Inflated(file, member)), 0


def read_member(file: Storage, member: Member, limit: int) -> bytes:
    """Return a whole small member.

    Raises
    ------
    FormatError
        If it unpacks to more than `limit` bytes, or is damaged.
    """
    if member.size > limit:
        reason = f"{show_name(member.name)} takes {write_bytes(member.size)}, above the limit of {write_bytes(limit)}"
        raise FormatError(file.path, reason, member.offset)
    if member.is_stored:
        return file.read(member.offset, member.size).tobytes()
    content = bytearray()
    for piece in Inflated(file, member)():
        content += piece
        if len(content) > member.size:
            break
    if len(content) != member.size:
        raise FormatError(file.path, f"{show_name(member.name)} unpacks to another size than it says", member.offset)
    return bytes(content)


def _member(file: Storage, info: zipfile.ZipInfo) -> Member:
    name = info.filename
    if info.flag_bits & _ENCRYPTED:
        raise FormatError(file.path, f"member '{show_name(name)}' is encrypted", info.header_offset)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        method = f"is packed by method {info.compress_type}; only stored and deflated ones are read"
        reason = f"member '{show_name(name)}' {method}"
        raise FormatError(file.path, reason, info.header_offset)
    is_stored = info.compress_type == zipfile.ZIP_STORED
    most = info.compress_size if is_stored else max(1, info.compress_size) * RATIO_LIMIT
    if info.file_size > most or (is_stored and info.file_size != most):
        reason = f"member '{show_name(name)}' claims {info.file_size} bytes out of {info.compress_size}"
        raise FormatError(file.path, reason, info.header_offset)
    offset = _data_offset(file, info, name)
    if offset + info.compress_size > file.size:
        reason = f"member '{show_name(name)}' ends behind the end of the file; it is truncated"
        raise FormatError(file.path, reason, offset)
    return Member(info.filename, offset, info.compress_size, info.file_size, is_stored)


def _data_offset(file: Storage, info: zipfile.ZipInfo, name: str) -> int:
    """Return where the bytes begin: behind the local header, whose name must be that of the directory."""
    start = info.header_offset
    if start < 0 or start + _LOCAL_HEADER > file.size:
        raise FormatError(file.path, f"member '{show_name(name)}' begins outside of the file", max(0, start))
    header = file.read(start, _LOCAL_HEADER).tobytes()
    if header[:4] != b"PK\x03\x04":
        raise FormatError(file.path, f"member '{show_name(name)}' has no local header", start)
    name_length, extra_length = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    behind = start + _LOCAL_HEADER + name_length
    if behind + extra_length > file.size:
        raise FormatError(file.path, f"member '{show_name(name)}' begins outside of the file", start)
    stored = file.read(start + _LOCAL_HEADER, name_length).tobytes()
    encoded = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437", "surrogatepass")
    if stored != encoded:
        raise FormatError(file.path, f"member '{show_name(name)}' has another name in its local header", start)
    return behind + extra_length


@dataclass(frozen=True)
class Inflated:
    """The bytes of a deflated member, piece by piece.

    Parameters
    ----------
    file : Storage
        The archive.
    member : Member
        A deflated one.
    """

    file: Storage
    member: Member

    def __call__(self) -> Iterator[bytes]:
        """Yield them; a damaged member is a `FormatError`."""
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        at, end = self.member.offset, self.member.offset + self.member.packed
        try:
            while not inflate.eof:
                waiting = inflate.unconsumed_tail
                if not waiting:
                    if at >= end:
                        break
                    count = min(_PIECE, end - at)
                    waiting, at = self.file.read(at, count).tobytes(), at + count
                yield inflate.decompress(waiting, _PIECE)
        except zlib.error as error:
            reason = f"member '{show_name(self.member.name)}' is damaged ({clause(error)})"
            raise FormatError(self.file.path, reason, self.member.offset) from None
