"""Whatever is not read is named, and the message says what to do."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from diffai_jupyter.errors import SourceError
from diffai_jupyter.readers import open_checkpoint
from diffai_jupyter.readers.formats.detection import format_of


def zipped(*members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member in members:
            archive.writestr(member, b"x")
    return buffer.getvalue()


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n"

# name, content, what is said, what to do
FOREIGN: dict[str, tuple[str, bytes, str, str]] = {
    "empty": ("a.safetensors", b"", "is empty", "download it again"),
    "pointer": ("a.safetensors", LFS, "Git LFS pointer", "git lfs pull"),
    "page": ("a.safetensors", b"<!DOCTYPE html><html>", "a web page", "Download it again"),
    "page in capitals": ("a.bin", b"\n  <HTML><body>", "a web page", "Download it again"),
    "zip": ("a", zipped("photo.jpg"), "a zip archive", "unpack it"),
    "tar": ("a.safetensors", tar(), "a tar archive", "unpack it"),
    "gzip": ("a.safetensors", b"\x1f\x8b\x08" + bytes(20), "a gzip archive", "unpack it"),
    "flax by name": ("a.MSGPACK", b"\x81\xa1a\x01", "a Flax file", "convert it to safetensors"),
    "index without a map": ("model.bin.index.json", b'{"weight_map": {}}', "no weight_map", "download the index"),
    "config": ("config.json", b'{"a": 1}', "JSON text", "folder"),
    "text": ("readme.md", "# größe\n".encode(), "is text", "Give a checkpoint file"),
    "text cut in a character": ("a.safetensors", b"x" * 1023 + "é".encode(), "is text", "Give a checkpoint file"),
    "anything": ("a.xyz", b"\x01\x02\x03\x04", "neither its first bytes nor its name", "GGUF"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_files_are_named(tmp_path: Path, case: str) -> None:
    name, content, what, remedy = FOREIGN[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SourceError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert what in message
    assert remedy in message
    assert "\n" not in message


@pytest.mark.parametrize("length", [0x0280, 0x0480, 0x8B1F, 0x4D42, 0x3C])
def test_a_header_length_that_looks_like_other_magic_bytes(
    tmp_path: Path, pack: Callable[..., bytes], length: int
) -> None:
    # the length 0x0280 is written 80 02, as the first bytes of a pickle
    header = b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    path = tmp_path / "a"
    path.write_bytes(pack(header.ljust(length), b"\x07"))
    assert open_checkpoint(path).tensors["w"].read_all().tolist() == [[7]]
    # and when it is cut, it is damaged, not a pickle
    os.truncate(path, 20)
    with pytest.raises(SourceError, match="truncated"):
        open_checkpoint(path.rename(tmp_path / "a.safetensors"))


def test_a_wrong_suffix_does_not_matter(tmp_path: Path, save: Callable[..., Path]) -> None:
    path = save(tmp_path / "a.safetensors", {"w": 1}).rename(tmp_path / "pytorch_model.bin")
    assert list(open_checkpoint(path).tensors) == ["w"]


def test_junk_with_the_right_suffix_is_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(bytes(range(128, 256)))
    with pytest.raises(SourceError, match="no safetensors file"):
        open_checkpoint(tmp_path / "a.safetensors")


def test_pipes_devices_and_missing_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.safetensors")
    for path in (tmp_path / "a.safetensors", Path("/dev/zero")):
        with pytest.raises(SourceError, match="not a regular file"):
            open_checkpoint(path)
    with pytest.raises(SourceError, match="no such file"):
        open_checkpoint(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "is empty"),
        ("a\0b", "null byte"),
        ("no/such.safetensors", "no such file"),
    ],
)
def test_what_is_no_local_path(given: str, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        open_checkpoint(given)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_missing_permission(tmp_path: Path, save: Callable[..., Path]) -> None:
    path = save(tmp_path / "a.safetensors", {"w": 1})
    path.chmod(0)
    with pytest.raises(SourceError, match="permission"):
        open_checkpoint(path)
    path.chmod(0o600)


def test_a_home_folder_is_understood(
    tmp_path: Path, save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "a.safetensors", {"w": 1})
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    checkpoint = open_checkpoint("~/a.safetensors")
    assert list(checkpoint.tensors) == ["w"]
    assert checkpoint.source == "~/a.safetensors"


# name, first bytes, format: the content decides, the name only where the content does not tell
HEADS: dict[str, tuple[str, bytes, str]] = {
    "torch": ("a.safetensors", zipped("archive/data.pkl", "archive/data/0"), "a PyTorch file"),
    "torch, odd member": ("a.pt", zipped("archive/version"), "a PyTorch file"),
    "old torch": ("a", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "a PyTorch file"),
    "npy": ("a.bin", b"\x93NUMPY\x01\x00", "a NumPy file"),
    "npz": ("a", zipped("w.npy"), "a NumPy archive"),
    "keras": ("a", zipped("metadata.json", "model.weights.h5"), "a Keras file"),
    "keras by name": ("a.keras", zipped("other"), "a Keras file"),
    "gguf": ("a.safetensors", b"GGUF\x03\0\0\0{\0\0\0\0\0\0\0", "a GGUF file"),
    "hdf5": ("model.bin", b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    "matlab": ("a", b"MATLAB 5.0 MAT-file, Platform", "a MATLAB file"),
    "onnx by name": ("a.ONNX", b"\x08\x07\x12\x04abcd", "an ONNX file"),
    "safetensors": ("a.pt", b"\x10\0\0\0\0\0\0\0{}", "a safetensors file"),
}


@pytest.mark.parametrize("case", HEADS)
def test_the_content_tells_the_format(case: str) -> None:
    name, head, title = HEADS[case]
    assert format_of(name, head).title == title
