"""GGUF files that break the rules are refused in one sentence, at once, whatever they claim."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from builders import transformer
from fuzzing import mutants, survive
from gguf_bytes import info, key, listed, nested, packed, text
from gguf_models import llama_as_gguf

from diffai_jupyter.checkpoint.storage import StoredFile
from diffai_jupyter.errors import FormatError
from diffai_jupyter.readers.formats.container import Container
from diffai_jupyter.readers.formats.detection import open_container
from diffai_jupyter.readers.formats.gguf.reader import read_gguf


def read(path: Path) -> Container:
    return read_gguf(StoredFile.at(path))


GOOD = [info("w", (2, 3)), info("v", (4,), offset=32)]
HOSTILE: dict[str, tuple[bytes, str]] = {
    "another format": (b"GGML" + bytes(60), "no GGUF file"),
    "ends after the magic": (b"GGUF", "ends within its version"),
    "version 0": (packed([], GOOD, bytes(64), version=0), "no version 0"),
    "version 1": (packed([], GOOD, bytes(64), version=1), "version 1 of GGUF is not read; convert"),
    "version 99": (packed([], GOOD, bytes(64), version=99), "version 99 of GGUF is newer than 3"),
    "a list of 2**40 numbers": (packed([key("k", 9, listed(6, 2**40))], []), "value of key 'k' should take"),
    "a list of 2**64 - 1 bytes": (packed([key("k", 9, listed(0, 2**64 - 1))], []), "should take"),
    "a list of 2**40 texts": (packed([key("k", 9, listed(8, 2**40))], []), "should take"),
    "a list of 2**40 lists": (packed([key("k", 9, listed(9, 2**40))], []), "should take"),
    "a text in a list past the end": (
        packed([key("k", 9, struct.pack("<IQQ", 8, 1, 2**63))], [], bytes(99)), "should take"
    ),
    "a text past the end": (packed([key("k", 8, struct.pack("<Q", 2**62))], []), "value of key 'k' should take"),
    "the name of a key past the end": (packed([struct.pack("<Q", 60_000)], [], bytes(50)), "ends within the name"),
    "the name of a key without end": (packed([struct.pack("<Q", 2**63)], [], bytes(50)), "more than 65535"),
    "a name that is no text": (packed([key(b"\xff", 0, b"\0")], []), "is not UTF-8"),
    "a tensor's name that is no text": (packed([], [info(b"\xc3", (1,))], bytes(64)), "is not UTF-8"),
    "values of kind 13": (packed([key("k", 13, bytes(64))], []), "unknown kind, 13"),
    "a list of kind 99": (packed([key("k", 9, listed(99, 1))], [], bytes(64)), "unknown kind, 99"),
    "lists in lists": (packed([key("k", 9, nested(5000))], []), "the lists of key 'k' hold too many lists"),
    "many lists in a list": (packed([key("k", 9, listed(9, 80_000, 80_000 * listed(4, 0)))], []), "too many lists"),
    "2**63 keys": (packed([], GOOD, bytes(64), n_keys=2**63), "keys should follow"),
    "2**63 tensors": (packed([], GOOD, bytes(64), n_tensors=2**63), "tensors should follow"),
    "one tensor more": (packed([], GOOD, n_tensors=3), "it is truncated"),
    "too many keys": (
        packed([key(f"{i}", 0, b"\0") for i in range(10_001)], []), "10001 keys are more than the limit of 10000"
    ),
    "a key twice": (packed([key("k", 0, b"\0")] * 2, []), "two keys are called 'k'"),
    "a tensor twice": (packed([], [GOOD[0], info("w", (4,), offset=32)], bytes(64)), "two tensors are called 'w'"),
    "overlapping": (packed([], [GOOD[0], info("v", (9,))], bytes(64)), "overlaps"),
    "one inside of another": (
        packed([], [info("a", (100,)), info("b", (1,), offset=64), info("c", (1,), offset=512)], bytes(999)),
        "overlaps",
    ),
    "misaligned": (packed([], [GOOD[0], info("v", (4,), offset=28)], bytes(64)), "begins at 28, no multiple of 32"),
    "offset past the end": (packed([], [info("w", (4,), offset=2**63)], bytes(64)), "there; it is truncated"),
    "payload past the end": (packed([], GOOD, bytes(47)), "bytes are there; it is truncated"),
    "type 99": (packed([], [info("w", (4,), 99)], bytes(64)), "tensor 'w' has type 99, which is not known"),
    "type 31": (packed([], [info("w", (32,), 31)], bytes(64)), "type 31, Q4_0_4_4, which llama.cpp gave up"),
    "alignment 0": (packed([key("general.alignment", 4, bytes(4))], GOOD, bytes(64)), "alignment is 0"),
    "alignment 24": (packed([key("general.alignment", 4, b"\x18\0\0\0")], GOOD, bytes(64)), "not a power of two"),
    "alignment true": (packed([key("general.alignment", 7, b"\1")], GOOD, bytes(64)), "alignment is True and not"),
    "alignment text": (packed([key("general.alignment", 8, text("32"))], GOOD, bytes(64)), "not a power of two"),
    "alignment of 2**63": (
        packed([key("general.alignment", 10, bytes(7) + b"\x80")], GOOD[:1], bytes(64)), "there; it is truncated"
    ),
    "five axes": (packed([], [info("w", (1,) * 5)], bytes(64)), "has 5 axes, more than 4"),
    "2**32 - 1 axes": (packed([], [info("w", (1,), axes=2**32 - 1)], bytes(64)), "axes, more than 4"),
    "a product of 2**64": (packed([], [info("w", (2**32, 2**32))], bytes(64)), "larger than any file"),
    "a product that hides behind 0": (packed([], [info("w", (0, 2**62, 2**62))], bytes(64)), "larger than any file"),
    "broken blocks": (packed([], [info("w", (33, 2), 2)], bytes(64)), "rows of 33 elements are no whole Q4_0 blocks"),
    "a scalar of blocks": (packed([], [info("w", (), 12)], bytes(999)), "rows of 1 elements"),
    "control characters": (packed([], [info("w\x1b[1m", (4,), 99)], bytes(64)), r"'w\\u001b\[1m' has type 99"),
}  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE)
def test_what_breaks_the_rules_is_refused(tmp_path: Path, content: str) -> None:
    raw, reason = HOSTILE[content]
    path = tmp_path / "hostile.gguf"

    def refused(path: Path) -> None:
        with pytest.raises(FormatError, match=reason):
            read(path)

    path.write_bytes(raw)
    refused(path)
    assert survive(path, [raw], read) == (0, 1)


def test_truncated(tmp_path: Path) -> None:
    state = transformer(layers=1, hidden=32, inner=64, vocab=32)
    whole = llama_as_gguf(tmp_path / "m.gguf", state, 2, 2, "Q8_0").read_bytes()
    path = tmp_path / "cut.gguf"
    for sixteenth in range(1, 16):
        path.write_bytes(whole[: len(whole) * sixteenth // 16])
        with pytest.raises(FormatError, match="truncated"):
            read(path)
    tensors = read(tmp_path / "m.gguf").tensors.values()
    header = min(getattr(tensor, "payload", tensor).offset for tensor in tensors)
    for end in range(8, header, 7):
        path.write_bytes(whole[:end])
        with pytest.raises(FormatError):
            read(path)


def seeds(tmp_path: Path) -> list[bytes]:
    state = transformer(layers=1, hidden=32, inner=64, vocab=8)
    return [
        llama_as_gguf(tmp_path / "a.gguf", state, 2, 2, "Q4_0").read_bytes(),
        llama_as_gguf(tmp_path / "b.gguf", state, 2, 2, "F16", is_big_endian=True).read_bytes(),
        packed([key("k", 9, nested(3)), key("n", 9, listed(8, 3) + 3 * text("t"))], GOOD, bytes(64)),
    ]


CROWDED = {
    "lists of numbers": [key(f"{i}", 9, listed(6, 1000, bytes(4000))) for i in range(240)],
    "empty texts": [key("k", 9, listed(8, 120_000, bytes(960_000)))],
    "empty lists": [key("k", 9, listed(9, 10_000, 10_000 * listed(4, 0)))],
    "lists in lists in lists": [key("k", 9, listed(9, 1000, 1000 * nested(6)))],
    "short keys": [key(f"{i:04}", 0, b"\0") for i in range(10_000)],
    "long texts": [key(f"{i}", 8, text(b"\xff" * 99_999)) for i in range(10)],
}


@pytest.mark.parametrize("keys", CROWDED)
def test_many_keys_take_no_time(tmp_path: Path, keys: str) -> None:
    assert survive(tmp_path / "crowded.gguf", [packed(CROWDED[keys], GOOD, bytes(64))], read) == (1, 0)


def test_many_tensors_take_no_time(tmp_path: Path) -> None:
    infos = [info(f"{i}", (0,)) for i in range(12_000)]
    assert survive(tmp_path / "crowded.gguf", [packed([], infos)], read) == (1, 0)


def read_values(path: Path) -> None:
    """Read a file as far as a comparison would."""
    for found in open_container(StoredFile.at(path)).tensors.values():
        found.read((0, min(2, found.grid[0])), (0, min(40, found.grid[1])))


def test_mutants(tmp_path: Path) -> None:
    well, refused = survive(tmp_path / "mutant.gguf", mutants(seeds(tmp_path), 600), read_values)
    # mutants must reach both ends for this to mean anything
    assert well > 60
    assert refused > 60


@pytest.mark.slow
def test_many_mutants(tmp_path: Path) -> None:
    well, refused = survive(tmp_path / "mutant.gguf", mutants(seeds(tmp_path), 40_000, seed=1), read_values)
    assert well > 4000
    assert refused > 4000
