"""What a file is, by its first bytes, then by its name, and what to do when it is not read yet."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from diffai_jupyter.checkpoint.storage import StoredFile
from diffai_jupyter.errors import SourceError
from diffai_jupyter.readers.formats.safetensors import Header, read_header

READS = "This version reads safetensors files, Hugging Face folders and live objects only"

_HEAD_BYTES = 1024
_TORCH, _NUMPY, _GGUF, _ONNX = "a PyTorch file", "a NumPy file", "a GGUF file", "an ONNX file"
_HDF5, _MATLAB, _KERAS, _PICKLE = "an HDF5 file", "a MATLAB file", "a Keras file", "a pickle"
_TENSORFLOW, _FLAX, _PADDLE, _ZIP = "a TensorFlow file", "a Flax file", "a Paddle file", "a zip archive"

_REMEDIES: Mapping[str, str] = {
    _TORCH: "load it with torch.load(path, weights_only=True) and give the variable",
    _NUMPY: "load it with numpy.load and give a dict of its arrays",
    _MATLAB: "load it with scipy.io.loadmat and give the dict",
}
_OTHER_REMEDY = "load it with its own library and give a dict of its arrays, or convert it to safetensors"

# offset, first bytes, what it is
_MAGICS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x93NUMPY", _NUMPY),
    (0, b"GGUF", _GGUF),
    (0, b"\x89HDF\r\n\x1a\n", _HDF5),
    (0, b"MATLAB", _MATLAB),
    (257, b"ustar", "a tar archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ\x00", "an xz archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
)
_SUFFIXES: Mapping[str, str] = {
    ".bin": _TORCH, ".pt": _TORCH, ".pth": _TORCH, ".ckpt": _TORCH,
    ".npy": _NUMPY, ".npz": _NUMPY, ".gguf": _GGUF, ".onnx": _ONNX, ".mat": _MATLAB,
    ".h5": _HDF5, ".hdf5": _HDF5, ".keras": _KERAS, ".pkl": _PICKLE, ".pickle": _PICKLE, ".joblib": _PICKLE,
    ".msgpack": _FLAX, ".pb": _TENSORFLOW, ".tflite": _TENSORFLOW, ".pdparams": _PADDLE,
}


def open_weights(path: Path) -> Header:
    """Open a safetensors file, or say what the file is instead.

    Raises
    ------
    SourceError
        If it is something else, or damaged.
    """
    file = StoredFile.at(path)
    head = file.read(0, min(file.size, _HEAD_BYTES)).tobytes()
    if not _may_be_safetensors(head):
        _refuse_known(file.path, head)
        if path.suffix.lower() != ".safetensors":
            msg = f"{file.path}: neither its first bytes nor its name tell a checkpoint format. {READS}."
            raise SourceError(msg)
    return read_header(file)


def known_by_name(name: str) -> bool:
    """Say whether a file name belongs to a checkpoint format that is not read yet.

    Examples
    --------
    >>> known_by_name("pytorch_model.bin"), known_by_name("config.json")
    (True, False)
    """
    return Path(name).suffix.lower() in _SUFFIXES


def _may_be_safetensors(head: bytes) -> bool:
    """Say whether this is a header length below 4 GiB followed by JSON.

    It is asked first: the length may look like the magic bytes of a pickle or of gzip.
    """
    return head[4:9] == b"\x00\x00\x00\x00{"


def _refuse_known(path: str, head: bytes) -> None:
    """Raise the sentence that fits, if the file is recognised."""
    if not head:
        msg = f"{path}: the file is empty. Copy or download it again."
        raise SourceError(msg)
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()[:64].lower()
    if start.startswith(b"version https://git-lfs"):
        msg = f"{path}: this is a Git LFS pointer, not the weights. Run 'git lfs pull' in its repository."
        raise SourceError(msg)
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        msg = f"{path}: this is a web page, not a checkpoint; the download went wrong. Download it again."
        raise SourceError(msg)
    what = _by_magic(head)
    if what is None and _is_text(head):
        _refuse_text(path, start)
    if what in (None, _ZIP):
        what = _SUFFIXES.get(Path(path).suffix.lower(), what)
    if what is None:
        return
    remedy = "unpack it first" if what.endswith("archive") else _REMEDIES.get(what, _OTHER_REMEDY)
    msg = f"{path}: this is {what}. {READS}; {remedy}."
    raise SourceError(msg)


def _by_magic(head: bytes) -> str | None:
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(head)
    protocols = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    if head.startswith(protocols) and head[2:3] not in (b"", b"\0"):
        # torch.save without zip starts with its magic number, a ten-byte LONG1
        return _TORCH if head[2:14] == b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19" else _PICKLE
    return next((what for at, magic, what in _MAGICS if head[at : at + len(magic)] == magic), None)


def _zip_kind(head: bytes) -> str:
    """Tell zip-based formats apart by the name of their first member."""
    length = int.from_bytes(head[26:28], "little")
    member = head[30 : 30 + length]
    if member.endswith(b".npy"):
        return _NUMPY
    if member.endswith(b"/data.pkl") or b"/.format_version" in member:
        return _TORCH
    if member in (b"metadata.json", b"config.json", b"model.weights.h5"):
        return _KERAS
    return _ZIP


def _is_text(head: bytes) -> bool:
    try:
        # not final: the last character may be cut
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return all(character in "\t\n\r\f" or unicodedata.category(character) != "Cc" for character in text)


def _refuse_text(path: str, start: bytes) -> None:
    if start.startswith((b"{", b"[")):
        what, remedy = "JSON text", "Give the folder it lies in, or the weights beside it"
    else:
        what, remedy = "text", "Give a safetensors file or a folder that holds one"
    msg = f"{path}: this is {what}, not a checkpoint. {remedy}."
    raise SourceError(msg)
