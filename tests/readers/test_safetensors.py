"""The header parser, against the reference implementation and against what nobody should write."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffai_jupyter.checkpoint.storage import StoredFile
from diffai_jupyter.errors import FormatError, SourceError
from diffai_jupyter.readers import open_checkpoint
from diffai_jupyter.readers.formats.container import Container
from diffai_jupyter.readers.formats.safetensors import read_safetensors

Pack = Callable[..., bytes]

NUMPY_KINDS = ["?", "i1", "u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8", "<c8"]
EXTENSIONS = {
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
}
HOSTILE = [
    "<script>alert(1)</script>",
    "a|b|c",
    "cost $x_1$",
    "two\nlines",
    "\x1b[31mred",
    "n" * 10_000,
    "__proto__",
    "‮reversed",
    "",
    " ",
    "{n}",
    "%s",
    "../../etc/passwd",
    "a\x00b",
    "{}{0}",
]


def header_of(path: Path, content: bytes, **limits: int) -> Container:
    path.write_bytes(content)
    return read_safetensors(StoredFile.at(path), **limits)


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


@pytest.mark.parametrize("kind", NUMPY_KINDS)
@pytest.mark.parametrize("shape", [(3, 4), (5,), (), (0, 3), (2, 3, 2, 2)])
def test_round_trip_of_numpy_dtypes(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 100, shape)
    array = np.asarray(values).astype(kind)
    save_file({"before": np.zeros(1, "u1"), "w": array}, tmp_path / "a.safetensors")
    tensor = open_checkpoint(tmp_path / "a.safetensors").tensors["w"]
    assert tensor.shape == shape
    assert tensor.nbytes == array.nbytes
    assert tensor.read_all().astype(kind).tobytes() == array.tobytes()


@pytest.mark.parametrize("name", EXTENSIONS)
def test_round_trip_of_extension_dtypes(tmp_path: Path, name: str) -> None:
    size = 256 if name.startswith("float8") else 65536
    codes = np.arange(size).astype("u1" if size == 256 else "<u2").reshape(2, -1)
    array = codes.view(EXTENSIONS[name])
    save_file({"w": array}, tmp_path / "a.safetensors")
    tensor = open_checkpoint(tmp_path / "a.safetensors").tensors["w"]
    assert np.array_equal(tensor.read_all(), array.astype(np.float32), equal_nan=True)


def test_header_facts(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"z": np.zeros(2, "f4"), "a": np.ones((2, 2), "f4")}, path, metadata={"format": "pt"})
    checkpoint = open_checkpoint(str(path))
    assert list(checkpoint.tensors) == ["a", "z"]
    assert (checkpoint.source, checkpoint.format, checkpoint.metadata) == (
        str(path),
        "safetensors",
        {"format": "pt"},
    )
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert checkpoint.files[0].digest == hashlib.sha256(raw[8 : 8 + length]).hexdigest()
    assert {name: tensor.parts for name, tensor in checkpoint.tensors.items()} == {"a": ("a",), "z": ("z",)}
    assert checkpoint.tensors["a"].file is checkpoint.files[0]


def test_names_are_kept_as_they_are(tmp_path: Path, pack: Pack) -> None:
    header = {name: entry("U8", (1,), (i, i + 1)) for i, name in enumerate(HOSTILE)}
    found = header_of(tmp_path / "a", pack(header, bytes(range(len(HOSTILE)))))
    assert list(found.tensors) == sorted(HOSTILE)
    for i, name in enumerate(HOSTILE):
        assert found.tensors[name].read_all().tolist() == [[i]]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_in_messages_are_harmless_and_short(tmp_path: Path, pack: Pack, name: str) -> None:
    with pytest.raises(FormatError) as caught:
        header_of(tmp_path / "a", pack({name: entry("F99")}, bytes(4)))
    message = str(caught.value)
    assert "unknown dtype 'F99'" in message
    assert message.isprintable()
    assert len(message) < 500


def test_an_empty_file_of_the_format_is_valid(tmp_path: Path, pack: Pack) -> None:
    assert header_of(tmp_path / "a", pack({})).tensors == {}
    assert header_of(tmp_path / "a", pack({"__metadata__": None})).metadata == {}
    assert header_of(tmp_path / "a", pack(b'{"__metadata__":{"a":"b"}}   ')).metadata == {"a": "b"}


GOOD = json.dumps({"w": entry()})
MALFORMED: dict[str, tuple[Any, bytes, str]] = {
    "not an object": (b"[]", b"", "begin with '{'"),
    "leading space": (b" " + GOOD.encode(), bytes(4), "begin with '{'"),
    "byte order mark": ("\ufeff{}".encode(), b"", "begin with '{'"),
    "no header": (b"", b"", "begin with '{'"),
    "not JSON": (b'{"w":}', b"", "not JSON"),
    "cut JSON": (GOOD.encode()[:-1], bytes(4), "not JSON"),
    "something after": (GOOD.encode() + b"x", bytes(4), "not JSON"),
    "not UTF-8": (b'{"\xff":1}', b"", "not UTF-8"),
    "nested bomb": (b'{"w":' + b"[" * 200_000, b"", "nested too deeply"),
    "NaN": (b'{"w":NaN}', b"", "NaN is not JSON"),
    "endless integer": (
        b'{"w":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,1]}}',
        b"a",
        "damaged",
    ),
    "repeated tensor": (
        f'{{"w":{json.dumps(entry())},"w":{json.dumps(entry())}}}'.encode(),
        bytes(4),
        "'w' occurs twice",
    ),
    "repeated field": (
        b'{"w":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"a",
        "'dtype' occurs twice",
    ),
    "repeated metadata": (b'{"__metadata__":{"a":"1","a":"2"}}', b"", "'a' occurs twice"),
    "metadata no object": ({"__metadata__": ["a"]}, b"", "__metadata__ is not an object"),
    "metadata no text": ({"__metadata__": {"a": 1}}, b"", "'a' is not text"),
    "metadata surrogate": ({"__metadata__": {"a": "\ud800"}}, b"", "half a character"),
    "surrogate name": ({"\ud800": entry()}, bytes(4), "half a character"),
    "entry no object": ({"w": [1]}, b"", "must have just"),
    "field missing": ({"w": {"dtype": "F32", "shape": [1]}}, bytes(4), "must have just"),
    "field too many": ({"w": entry(stride=[1])}, bytes(4), "must have just"),
    "unknown dtype": ({"w": entry("I4", (2,), (0, 1))}, b"a", "unknown dtype 'I4'"),
    "dtype C128": ({"w": entry("C128", (1,), (0, 16))}, bytes(16), "unknown dtype 'C128'"),
    "lower-case dtype": ({"w": entry("f32")}, bytes(4), "unknown dtype"),
    "dtype no text": ({"w": entry(None)}, bytes(4), "unknown dtype"),  # type: ignore[arg-type]
    "dtype a list": ({"w": entry(["F32"])}, bytes(4), "unknown dtype"),  # type: ignore[arg-type]
    "negative axis": ({"w": entry(shape=(-1, -1))}, bytes(4), "whole numbers"),
    "minus zero": (b'{"w":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}', b"", "whole numbers"),
    "float axis": ({"w": entry(shape=(1.0,))}, bytes(4), "whole numbers"),
    "true axis": ({"w": entry(shape=(True,))}, bytes(4), "whole numbers"),
    "shape no list": ({"w": {**entry(), "shape": "1"}}, bytes(4), "whole numbers"),
    "axis of 2^63": ({"w": entry(shape=(2**63, 0), offsets=(0, 0))}, b"", "whole numbers"),
    "rank 33": ({"w": entry(shape=(1,) * 33)}, bytes(4), "33 axes"),
    "overflow": ({"w": entry(shape=(2**62, 2))}, bytes(4), "larger than any file"),
    "overflow beside zero": (
        {"w": entry(shape=(0, 2**62, 2**62), offsets=(0, 0))},
        b"",
        "larger than any file",
    ),
    "one offset": ({"w": entry(offsets=(4,))}, bytes(4), "two data_offsets"),
    "offsets reversed": ({"w": entry(offsets=(4, 0))}, bytes(4), "takes -4 bytes"),
    "wrong length": ({"w": entry(offsets=(0, 8))}, bytes(8), "takes 8 bytes, but its shape needs 4"),
    "half a byte": ({"w": entry("F4", (3,), (0, 2))}, bytes(2), "12 bits does not fill whole bytes"),
    "gap": ({"a": entry(), "b": entry(offsets=(8, 12))}, bytes(12), "'b' leaves a gap"),
    "gap at the start": ({"a": entry(offsets=(4, 8))}, bytes(8), "'a' leaves a gap"),
    "overlap": ({"a": entry(), "b": entry(offsets=(2, 6))}, bytes(6), "'b' overlaps"),
    "shared range": ({"a": entry(), "b": entry()}, bytes(4), "overlaps"),
    "trailing bytes": ({"a": entry()}, bytes(5), "1 bytes behind the last tensor"),
    "truncated": ({"a": entry()}, bytes(3), "truncated or still being written"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_headers_are_refused(tmp_path: Path, pack: Pack, case: str) -> None:
    header, payload, reason = MALFORMED[case]
    with pytest.raises(FormatError) as caught:
        header_of(tmp_path / "a.safetensors", pack(header, payload))
    assert reason in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "a.safetensors"))


def test_damage_is_located(tmp_path: Path, pack: Pack) -> None:
    with pytest.raises(FormatError) as caught:
        header_of(tmp_path / "a", pack('{"é": x}'.encode()))
    # two bytes for é: the x is byte 7 of the JSON
    assert caught.value.offset == 8 + 7
    with pytest.raises(FormatError) as caught:
        header_of(tmp_path / "a", pack(b'{"a\xff":1}'))
    assert caught.value.offset == 8 + 3


def test_header_lengths(tmp_path: Path, pack: Pack) -> None:
    for length in (2**64 - 1, 2**63, 100, 11):
        with pytest.raises(FormatError, match="header should take"):
            header_of(tmp_path / "a", pack({"a": 1}, length=length))
    with pytest.raises(FormatError, match="too few"):
        header_of(tmp_path / "a", b"\x02\0\0")
    # at the limit, and one byte beyond
    content = pack(b"{" + b" " * 98 + b"}")
    assert header_of(tmp_path / "a", content, header_limit=100).tensors == {}
    with pytest.raises(FormatError, match="exceeds the limit of 99 B"):
        header_of(tmp_path / "a", content, header_limit=99)


def test_tensor_limit(tmp_path: Path, pack: Pack) -> None:
    content = pack({str(i): entry("U8", (0,), (0, 0)) for i in range(3)})
    assert len(header_of(tmp_path / "a", content, tensor_limit=3).tensors) == 3
    with pytest.raises(FormatError, match="3 tensors are more than the limit of 2"):
        header_of(tmp_path / "a", content, tensor_limit=2)


def test_a_header_bomb_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write((64 * 2**20).to_bytes(8, "little") + b"{")
        file.truncate(80 * 2**20)  # sparse: takes no room on the disk
    with pytest.raises(FormatError, match=r"header of 64\.0 MiB exceeds the limit of 32\.0 MiB"):
        open_checkpoint(path)


def test_unaligned_and_subbyte_tensors(tmp_path: Path, pack: Pack) -> None:
    header = {
        "a": entry("U8", (3,), (0, 3)),
        "b": entry("F64", (2,), (3, 19)),
        "c": entry("F4", (3, 2), (19, 22)),
        "d": entry("F6_E2M3", (4,), (22, 25)),
    }
    payload = b"abc" + np.float64([1.5, -2]).tobytes() + b"\x10\x32\x54" + b"\1\2\3"
    found = header_of(tmp_path / "a", pack(header, payload)).tensors
    assert found["b"].read_all().tolist() == [[1.5, -2]]
    assert found["c"].codes((0, 3), (0, 2)).tolist() == [[0, 1], [2, 3], [4, 5]]
    assert found["d"].codes((0, 1), (0, 3)).tolist() == [[1, 2, 3]]
    assert found["d"].size == 4


@pytest.mark.parametrize("sixteenth", range(16))
def test_truncated_files_are_one_clear_error(tmp_path: Path, sixteenth: int) -> None:
    path = tmp_path / "a.safetensors"
    save_file({f"layer.{i}.weight": np.ones((4, 4), "f4") for i in range(10)}, path)
    os.truncate(path, path.stat().st_size * sixteenth // 16)
    with pytest.raises(SourceError, match=r"truncated|empty|too few"):
        open_checkpoint(path)


def test_replaced_between_opening_and_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": np.zeros(4, "f4")}, path)
    tensor = open_checkpoint(path).tensors["w"]
    save_file({"w": np.ones(4, "f4")}, tmp_path / "b.safetensors")
    os.utime(tmp_path / "b.safetensors", ns=(1, 1))
    (tmp_path / "b.safetensors").replace(path)
    with pytest.raises(SourceError, match="changed while it was being compared"):
        tensor.read_all()


def test_many_tensors(tmp_path: Path, pack: Pack) -> None:
    header = {f"model.layers.{i}.weight": entry("U8", (1,), (i, i + 1)) for i in range(20_000)}
    found = header_of(tmp_path / "a", pack(header, bytes(20_000)))
    assert len(found.tensors) == 20_000
    assert (
        found.tensors["model.layers.777.weight"].offset == found.tensors["model.layers.0.weight"].offset + 777
    )
