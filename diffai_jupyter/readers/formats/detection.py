"""What a file is, by its first bytes, then by its name, and who reads it."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import PurePosixPath

from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.errors import DiffaiError, FormatError, SourceError
from diffai_jupyter.readers.formats.container import Container

READS = "Safetensors, PyTorch, NumPy, MATLAB, GGUF, HDF5, Keras and ONNX files are read, and live objects"

_HEAD_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Format:
    """One format that is read.

    Parameters
    ----------
    title : str
        What a message calls such a file.
    reader : str
        Module and function, imported when a file of it is opened.
    suffixes : tuple of str
        How the names of such files end.
    """

    title: str
    reader: str
    suffixes: tuple[str, ...]

    def read(self, file: Storage) -> Container:
        """Open a file of this format."""
        module, function = self.reader.split(":")
        found: Callable[[Storage], Container] = getattr(
            import_module(f"diffai_jupyter.readers.formats.{module}"), function
        )
        return found(file)


SAFETENSORS = Format("a safetensors file", "safetensors:read_safetensors", (".safetensors",))
PYTORCH = Format("a PyTorch file", "pytorch.reader:read_pytorch", (".bin", ".pt", ".pth", ".ckpt"))
NPY = Format("a NumPy file", "numpy:read_npy", (".npy",))
NPZ = Format("a NumPy archive", "numpy:read_npz", (".npz",))
MATLAB = Format("a MATLAB file", "matlab.reader:read_matlab", (".mat",))
HDF5 = Format("an HDF5 file", "hdf5.reader:read_hdf5", (".h5", ".hdf5"))
KERAS = Format("a Keras file", "keras:read_keras", (".keras",))
GGUF = Format("a GGUF file", "gguf.reader:read_gguf", (".gguf",))
ONNX = Format("an ONNX file", "onnx.reader:read_onnx", (".onnx",))
FORMATS = (SAFETENSORS, PYTORCH, NPY, NPZ, MATLAB, HDF5, KERAS, GGUF, ONNX)

_PICKLE, _TENSORFLOW, _FLAX, _PADDLE, _ZIP = (
    "a pickle", "a TensorFlow file", "a Flax file", "a Paddle file", "a zip archive",
)
_OTHER_REMEDY = "load it with its own library and give a dict of its arrays, or convert it to safetensors"
# Only told by name; what they are is said, and that they are not read.
_UNREAD_SUFFIXES: Mapping[str, str] = {
    ".pkl": _PICKLE, ".pickle": _PICKLE, ".joblib": _PICKLE,
    ".msgpack": _FLAX, ".pb": _TENSORFLOW, ".tflite": _TENSORFLOW, ".pdparams": _PADDLE,
}
# Pickles under these names are read, without running anything in them; elsewhere they may be anything.
_PICKLE_SUFFIXES = (*PYTORCH.suffixes, ".pkl", ".pickle")
_BY_SUFFIX: Mapping[str, Format] = {suffix: known for known in FORMATS for suffix in known.suffixes}

# offset, first bytes, what it is
_MAGICS: tuple[tuple[int, bytes, Format | str], ...] = (
    (0, b"\x93NUMPY", NPY),
    (0, b"GGUF", GGUF),
    (0, b"\x89HDF\r\n\x1a\n", HDF5),
    (0, b"MATLAB", MATLAB),
    (257, b"ustar", "a tar archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ\x00", "an xz archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
)


def open_container(file: Storage) -> Container:
    """Open a file of any format that is read, or say what it is instead.

    Raises
    ------
    SourceError
        If it is something else, or damaged; nothing else escapes, whatever is in the file.
    MissingPackageError
        If an optional package is needed to read it.
    """
    head = file.read(0, min(file.size, _HEAD_BYTES)).tobytes()
    found = format_of(file.path, head)
    try:
        return found.read(file)
    except DiffaiError:
        raise
    except MemoryError:
        raise FormatError(file.path, f"{found.title}, but it asks for more memory than there is") from None
    # The parsers of other libraries raise what they like; a damaged file must not end in a traceback.
    except Exception as error:
        reason = f"{found.title}, but damaged ({type(error).__name__}); copy or download it again"
        raise FormatError(file.path, reason) from error


def format_of(path: str, head: bytes) -> Format:
    """Return the format of a file: by its first bytes, else by its name.

    Parameters
    ----------
    path : str
        Its name.
    head : bytes
        Its first bytes, up to 1024.

    Raises
    ------
    SourceError
        If no format that is read fits.
    """
    if _may_be_safetensors(head):
        return SAFETENSORS
    _refuse_accidents(path, head)
    found: Format | str | None = _by_magic(head)
    suffix = PurePosixPath(path).suffix.lower()
    if found is None and _is_text(head):
        _refuse_text(path, head)
    if found == _PICKLE and suffix in _PICKLE_SUFFIXES:
        return PYTORCH
    if found in (None, _ZIP):
        found = _BY_SUFFIX.get(suffix) or _UNREAD_SUFFIXES.get(suffix, found)
    if isinstance(found, Format):
        return found
    if found is None:
        msg = f"{path}: neither its first bytes nor its name tell a checkpoint format. {READS}."
        raise SourceError(msg)
    remedy = "unpack it first" if found.endswith("archive") else _OTHER_REMEDY
    msg = f"{path}: this is {found}. {READS}; {remedy}."
    raise SourceError(msg)


def known_by_name(name: str) -> bool:
    """Say whether a file name belongs to a checkpoint format, read or not.

    Examples
    --------
    >>> known_by_name("pytorch_model.bin"), known_by_name("config.json")
    (True, False)
    """
    suffix = PurePosixPath(name).suffix.lower()
    return suffix in _BY_SUFFIX or suffix in _UNREAD_SUFFIXES


def read_by_name(name: str) -> bool:
    """Say whether a file name belongs to a format that is read.

    Examples
    --------
    >>> read_by_name("model.gguf"), read_by_name("model.tflite")
    (True, False)
    """
    return PurePosixPath(name).suffix.lower() in _BY_SUFFIX


def _may_be_safetensors(head: bytes) -> bool:
    """Say whether this is a header length below 4 GiB followed by JSON.

    It is asked first: the length may look like the magic bytes of a pickle or of gzip.
    """
    return head[4:9] == b"\x00\x00\x00\x00{"


def _refuse_accidents(path: str, head: bytes) -> None:
    """Raise the sentence that fits what is no checkpoint at all."""
    if not head:
        msg = f"{path}: the file is empty. Copy or download it again."
        raise SourceError(msg)
    start = _start(head)
    if start.startswith(b"version https://git-lfs"):
        msg = f"{path}: this is a Git LFS pointer, not the weights. Run 'git lfs pull' in its repository."
        raise SourceError(msg)
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        msg = f"{path}: this is a web page, not a checkpoint; the download went wrong. Download it again."
        raise SourceError(msg)


def _start(head: bytes) -> bytes:
    return head.removeprefix(codecs.BOM_UTF8).lstrip()[:64].lower()


def _by_magic(head: bytes) -> Format | str | None:
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(head)
    protocols = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    if head.startswith(protocols) and head[2:3] not in (b"", b"\0"):
        return PYTORCH if _is_old_torch(head) else _PICKLE
    return next((what for at, magic, what in _MAGICS if head[at : at + len(magic)] == magic), None)


def _is_old_torch(head: bytes) -> bool:
    """Say whether a pickle starts with torch's magic number, a ten-byte LONG1, framed or not."""
    return b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19" in head[2:26]


def _zip_kind(head: bytes) -> Format | str:
    """Tell zip-based formats apart by the name of their first member."""
    length = int.from_bytes(head[26:28], "little")
    member = head[30 : 30 + length]
    if member.endswith(b".npy"):
        return NPZ
    if member.endswith((b"/data.pkl", b"/constants.pkl")) or b"/.format_version" in member:
        return PYTORCH
    if member in (b"metadata.json", b"config.json", b"model.weights.h5"):
        return KERAS
    return _ZIP


def _is_text(head: bytes) -> bool:
    try:
        # not final: the last character may be cut
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return all(character in "\t\n\r\f" or unicodedata.category(character) != "Cc" for character in text)


def _refuse_text(path: str, head: bytes) -> None:
    if _start(head).startswith((b"{", b"[")):
        what, remedy = "JSON text", "Give the folder it lies in, or the weights beside it"
    else:
        what, remedy = "text", "Give a checkpoint file or a folder that holds one"
    msg = f"{path}: this is {what}, not a checkpoint. {remedy}."
    raise SourceError(msg)
