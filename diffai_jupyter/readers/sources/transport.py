"""Pieces of files elsewhere: the one boundary to fsspec, aiohttp and what the network does.

Whatever those libraries raise ends here, as a sentence. Never more is taken from a server than was asked
for: `cat_file` of fsspec's HTTP file system takes the whole file where a server ignores ranges, so that
requests over HTTP are made here, in the session of that file system.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlsplit, urlunsplit

from diffai_jupyter.errors import DiffaiError, FormatError, MissingPackageError, SourceError
from diffai_jupyter.wording import show_name

SCHEMES = ("hf", "http", "https", "s3", "gs", "az", "abfs", "file", "memory")
SECONDS = 30.0
"""How long a server may stay silent; the variable DIFFAI_TIMEOUT sets another time."""

HEAD = 1 << 16
"""Bytes that the first request over HTTP asks for: most headers are smaller."""

_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
_PROBE = 8
_SLOWEST = 1 << 14  # bytes a second, below which a server counts as silent
_NAME_LIMIT = 1000
_IDENTITIES = ("ETag", "etag", "md5Hash", "blob_id", "mtime", "LastModified", "last_modified")
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


class Absent(SourceError):  # noqa: N818  (it is an answer to a question)
    """A server says that there is no such file, or that it may not be read."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a file.

    Parameters
    ----------
    data : bytes
        What came.
    size : int
        Bytes of the whole file.
    identity : str
        What changes with its content, such as an ETag; empty where nothing does.
    """

    data: bytes
    size: int
    identity: str


def scheme_of(address: str) -> str:
    """Return the scheme of an address, in lower case."""
    return address.partition("://")[0].lower()


def check_address(address: str) -> None:
    """Refuse what is no plain address of a kind that is read.

    Raises
    ------
    SourceError
        If the scheme is unknown, it is no address, or several are chained with ``::``.
    """
    if "::" in address:
        msg = f"{shown(address)}: chained addresses (::) are not read. Give the address of the file itself."
        raise SourceError(msg)
    if scheme_of(address) not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        msg = f"{shown(address)}: addresses of this kind are not read, only {known}. Download the files."
        raise SourceError(msg)
    try:
        urlsplit(address)
    except ValueError as error:
        _refuse(address, f"this is no address ({clause(error)})")


def shown(address: str) -> str:
    """Return an address fit for messages and reports: without password, query and fragment.

    Examples
    --------
    >>> shown("https://user:secret@example.org/a.safetensors?signature=x")
    'https://example.org/a.safetensors'
    >>> shown("abfs://container@account.dfs.core.windows.net/a.safetensors")
    'abfs://container@account.dfs.core.windows.net/a.safetensors'
    """
    try:
        parts = urlsplit(address)
    except ValueError:
        return show_name(address, _NAME_LIMIT)
    if not parts.scheme.startswith("http"):
        user, at, host = parts.netloc.rpartition("@")
        hidden = host if ":" in user else f"{user}{at}{host}"
        return show_name(address.replace(parts.netloc, hidden, 1), _NAME_LIMIT)
    host = parts.netloc.rpartition("@")[2]
    return show_name(urlunsplit((parts.scheme, host, parts.path, "", "")), _NAME_LIMIT)


def look(address: str) -> Piece:
    """Ask how large a file is, and make sure that pieces of it can be read.

    Returns
    -------
    Piece
        Its first bytes where they came along; none else.

    Raises
    ------
    Absent
        If there is no such file.
    SourceError
        If the server does not answer, does not say the size, or gives more than it is asked for.
    MissingPackageError
        If fsspec is not installed.
    """
    with_fsspec(address)
    if scheme_of(address).startswith("http"):
        return _get(address, 0, HEAD)
    file_system, path = _file_system(address)
    info: dict[str, Any] = _guarded(address, lambda: file_system.info(path))
    size = info.get("size")
    if not isinstance(size, int) or info.get("type") == "directory":
        _refuse(address, "it is no file of a known size. Give the address of a file or a folder")
    _cat(address, 0, min(size, _PROBE))
    identity = next((str(info[key]) for key in _IDENTITIES if info.get(key)), "")
    return Piece(b"", size, identity)


def fetch(address: str, offset: int, count: int, size: int, identity: str) -> bytes:
    """Read one piece.

    Raises
    ------
    SourceError
        If it cannot be read any more, comes short, or the file changed since `look`.
    """
    if not scheme_of(address).startswith("http"):
        return _cat(address, offset, count)
    piece = _get(address, offset, count)
    if piece.size != size or (identity and piece.identity and piece.identity != identity):
        _refuse(address, "the file changed while it was being compared. Run the comparison again")
    if len(piece.data) != count:
        raise FormatError(shown(address), "the answer of the server ends too soon", offset + len(piece.data))
    return piece.data


def kind_of(address: str) -> str:
    """Say whether an address is a ``"file"`` or a ``"directory"``; over HTTP everything is a file."""
    if scheme_of(address).startswith("http"):
        return "file"
    file_system, path = _file_system(address)
    # What another run in this kernel has listed may be old by now.
    file_system.invalidate_cache()
    return str(_guarded(address, lambda: file_system.info(path)).get("type"))


def entries(address: str) -> list[tuple[str, bool]]:
    """List a folder: names, and whether each is a folder. Over HTTP there is no listing, so that it is empty."""
    if scheme_of(address).startswith("http"):
        return []
    file_system, path = _file_system(address)
    found: list[dict[str, Any]] = _guarded(address, lambda: file_system.ls(path, detail=True))
    names = ((str(entry["name"]).rstrip("/").rpartition("/")[2], entry.get("type")) for entry in found)
    return sorted((name, kind == "directory") for name, kind in names if name and name[0] != ".")


def with_fsspec(address: str) -> Any:
    """Import fsspec.

    Raises
    ------
    MissingPackageError
        If it is not installed.
    """
    feature = f"Reading {scheme_of(address)}:// addresses"
    extra = "hub" if scheme_of(address) == "hf" else "remote"
    try:
        import fsspec
    except ImportError:
        raise MissingPackageError(feature, "fsspec", extra) from None
    return fsspec


def _file_system(address: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it."""
    file_system = _guarded(address, lambda: _file_system_of(scheme_of(address), address))
    return file_system, str(file_system._strip_protocol(address))


@functools.lru_cache(maxsize=64)
def _file_system_for(scheme: str, host: str) -> Any:
    import fsspec

    # Options come from the user's own environment, never from a file that is read.
    return fsspec.core.url_to_fs(f"{scheme}://{host}")[0]


def _file_system_of(scheme: str, address: str) -> Any:
    fsspec = with_fsspec(address)
    if scheme == "hf":
        return fsspec.filesystem(scheme)
    return _file_system_for(scheme, urlsplit(address).netloc)


def _cat(address: str, offset: int, count: int) -> bytes:
    """Read one piece through fsspec."""
    if not count:
        return b""
    file_system, path = _file_system(address)
    # The file object of the hub would read 5 MiB ahead.
    options = {"cache_type": "none"} if scheme_of(address) == "hf" else {}
    data: bytes = _guarded(
        address, lambda: file_system.cat_file(path, start=offset, end=offset + count, **options)
    )
    if len(data) > count:
        _refuse(address, _IGNORES_RANGES)
    if len(data) < count:
        raise FormatError(shown(address), "the file ends too soon; it is truncated", offset + len(data))
    return data


_IGNORES_RANGES = (
    "the server sends whole files where a part is asked for (it ignores Range), so that reading a header would "
    "download all of it. Download the file, or give a server that supports Range"
)


def _get(address: str, offset: int, count: int) -> Piece:
    """Read one piece over HTTP; no more than `count` bytes are taken, whatever the server sends."""
    status, headers, data = _guarded(address, lambda: _requested(address, offset, count))
    found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
    identity = headers.get("ETag", "") or headers.get("Last-Modified", "")
    if headers.get("Content-Encoding", "identity") not in ("", "identity"):
        _refuse(address, "the server packs it on the way, so that it cannot be read in parts. Download the file")
    if status == 200 and offset == 0 and len(data) <= count and _is_whole(headers, data):
        return Piece(data, len(data), identity)
    if status == 416 and found and found[3] == "0":
        return Piece(b"", 0, identity)
    if status == 200:
        _refuse(address, _IGNORES_RANGES)
    if status != 206:
        _refuse_status(address, status)
    if found is None or found[1] is None or not found[3].isdecimal():
        _refuse(address, "the server does not say how large the file is (Content-Range). Download the file")
    first, last, size = int(found[1]), int(found[2]), int(found[3])
    if first != offset or last >= size or len(data) > count or last - first + 1 > count:
        _refuse(address, "the server sent another part than it was asked for. Download the file")
    if len(data) != min(count, size - offset):
        raise FormatError(shown(address), "the answer of the server ends too soon", offset + len(data))
    return Piece(data, size, identity)


def _is_whole(headers: Mapping[str, str], data: bytes) -> bool:
    length = headers.get("Content-Length")
    return length is None or length == str(len(data))


def _requested(address: str, offset: int, count: int) -> tuple[int, Mapping[str, str], bytes]:
    """Make one request, and a second one where the connection broke."""
    file_system = _http()
    from aiohttp import ClientConnectionError, ClientPayloadError
    from fsspec.asyn import sync

    try:
        return sync(file_system.loop, _request, file_system, address, offset, count)  # type: ignore[no-any-return]
    except (ClientConnectionError, ClientPayloadError) as error:
        if _is_timeout(error):
            raise
        return sync(file_system.loop, _request, file_system, address, offset, count)  # type: ignore[no-any-return]


async def _request(
    file_system: Any, address: str, offset: int, count: int
) -> tuple[int, Mapping[str, str], bytes]:
    from aiohttp import ClientTimeout

    seconds = _seconds()
    limits = ClientTimeout(total=seconds + count / _SLOWEST, sock_connect=seconds, sock_read=seconds)
    # Packed on the way, a part of a file could not be told from another.
    headers = {"Range": f"bytes={offset}-{offset + count - 1}", "Accept-Encoding": "identity"}
    session = await file_system.set_session()
    async with session.get(file_system.encode_url(address), headers=headers, timeout=limits) as answer:
        data = bytearray()
        length = answer.headers.get("Content-Length", "")
        is_wanted = answer.status == 206 or (answer.status == 200 and not int(length or 0) > count)
        while is_wanted and len(data) <= count and (chunk := await answer.content.read(count + 1 - len(data))):
            data += chunk
        return answer.status, answer.headers, bytes(data)


def _seconds() -> float:
    try:
        seconds = float(os.environ.get("DIFFAI_TIMEOUT", ""))
    except ValueError:
        return SECONDS
    return seconds if 0 < seconds < float("inf") else SECONDS


@functools.lru_cache(maxsize=1)
def _http() -> Any:
    import fsspec

    # trust_env: the user's proxy settings hold; without auto_decompress bytes are counted as they come
    return fsspec.filesystem("http", client_kwargs={"trust_env": True, "auto_decompress": False})


def _guarded(address: str, read: Callable[[], Any]) -> Any:
    """Call something of fsspec, and turn whatever it raises into a sentence."""
    try:
        return read()
    except DiffaiError:
        raise
    except FileNotFoundError:
        msg = f"{shown(address)}: there is no such file or folder. Check the address."
        raise Absent(msg) from None
    except ImportError as error:
        _refuse_import(address, error)
    # Each file system raises errors of libraries of its own; none of them may end in a traceback.
    except Exception as error:
        if _is_timeout(error):
            _refuse(address, f"the server did not answer in {_seconds():g} s (DIFFAI_TIMEOUT sets it). Try again")
        _refuse(address, f"it cannot be read ({clause(error)}). Check the address, the network and your access")


def _is_timeout(error: Exception) -> bool:
    # Every library has a class of its own for it, and asyncio as well before Python 3.11.
    return "Timeout" in type(error).__name__


def clause(error: BaseException) -> str:
    """Return the first line of an error of another library, fit for the end of a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
    # An address in it may hold a signature.
    return show_name(re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\"]*", r"\1", text))


def _refuse_import(address: str, error: ImportError) -> NoReturn:
    scheme = scheme_of(address)
    feature = f"Reading {scheme}:// addresses"
    if scheme == "hf":
        raise MissingPackageError(feature, "huggingface_hub", "hub") from None
    if scheme in _PACKAGES:
        package = _PACKAGES[scheme]
        msg = f"{shown(address)}: {feature[0].lower()}{feature[1:]} needs {package}: pip install {package}"
        raise SourceError(msg) from None
    raise MissingPackageError(feature, error.name or "aiohttp", "remote") from None


def _refuse_status(address: str, status: int) -> NoReturn:
    if status in (404, 410):
        msg = f"{shown(address)}: the server has no such file (HTTP {status}). Check the address."
        raise Absent(msg)
    if status in (401, 403, 405, 407):
        msg = f"{shown(address)}: the server does not let it be read (HTTP {status}). Check your access."
        raise Absent(msg)
    _refuse(address, f"the server answers with the error HTTP {status}. Try again later")


def _refuse(address: str, reason: str) -> NoReturn:
    msg = f"{shown(address)}: {reason}."
    raise SourceError(msg) from None

