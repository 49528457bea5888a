"""Whatever is not read is named, and the message says what to do."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diffai_jupyter.errors import SourceError
from diffai_jupyter.readers import open_checkpoint


def zipped(*members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member in members:
            archive.writestr(member, b"x")
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, w=np.zeros(3))
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n"
OLD_TORCH = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)

# name, content, what is said, what to do
FOREIGN: dict[str, tuple[str, bytes, str, str]] = {
    "empty": ("a.safetensors", b"", "is empty", "download it again"),
    "pointer": ("a.safetensors", LFS, "Git LFS pointer", "git lfs pull"),
    "page": ("a.safetensors", b"<!DOCTYPE html><html>", "a web page", "Download it again"),
    "page in capitals": ("a.bin", b"\n  <HTML><body>", "a web page", "Download it again"),
    "torch zip": (
        "a.safetensors",
        zipped("archive/data.pkl", "archive/data/0"),
        "a PyTorch file",
        "torch.load",
    ),
    "torch zip, odd member": ("a.pt", zipped("archive/version"), "a PyTorch file", "torch.load"),
    "old torch": ("a", OLD_TORCH + b"more", "a PyTorch file", "torch.load"),
    "pickle": ("a.bin2", pickle.dumps({"a": 1}, protocol=4), "a pickle", "convert it to safetensors"),
    "npy": ("a", npy(), "a NumPy file", "numpy.load"),
    "npz": ("a", npz(), "a NumPy file", "numpy.load"),
    "keras": (
        "a",
        zipped("metadata.json", "config.json", "model.weights.h5"),
        "a Keras file",
        "its own library",
    ),
    "zip": ("a", zipped("photo.jpg"), "a zip archive", "unpack it"),
    "gguf": ("a", b"GGUF\x03\0\0\0{\0\0\0\0\0\0\0", "a GGUF file", "convert it to safetensors"),
    "hdf5": ("model.bin", b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file", "its own library"),
    "matlab": ("a", b"MATLAB 5.0 MAT-file, Platform" + bytes(100), "a MATLAB file", "scipy.io.loadmat"),
    "tar": ("a.safetensors", tar(), "a tar archive", "unpack it"),
    "gzip": ("a.safetensors", b"\x1f\x8b\x08" + bytes(20), "a gzip archive", "unpack it"),
    "onnx by name": ("a.ONNX", b"\x08\x07\x12\x04abcd", "an ONNX file", "convert it to safetensors"),
    "index of bin": ("pytorch_model.bin.index.json", b'{"weight_map": {}}', "JSON text", "folder"),
    "config": ("config.json", b'{"a": 1}', "JSON text", "folder"),
    "text": ("readme.md", "# größe\n".encode(), "is text", "safetensors file"),
    "text cut in a character": ("a.safetensors", b"x" * 1023 + "é".encode(), "is text", "safetensors file"),
    "anything": ("a.xyz", b"\x01\x02\x03\x04", "neither its first bytes nor its name", "reads safetensors"),
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
        ("some-org/some-model", "download it and give its folder"),
        ("some-org/some-model@main", "download it and give its folder"),
        ("https://example.org/a.safetensors", "addresses are not read"),
        ("s3://bucket/a", "addresses are not read"),
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
