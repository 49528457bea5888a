"""Files of PyTorch made by hand, honest and hostile ones: `from hostile_pickles import ...`."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
NUMBERS = np.arange(4, dtype="<f4").tobytes()


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def named(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def called(module: str, name: str, *args: bytes) -> bytes:
    return named(module, name) + b"(" + b"".join(args) + b"tR"


def entry(key: str, value: bytes) -> bytes:
    return text(key) + value


def pickled(*entries: bytes, protocol: int = 2) -> bytes:
    """Return a pickled dict."""
    return b"\x80" + bytes([protocol]) + b"}(" + b"".join(entries) + b"u."


def storage(key: bytes = text("0"), count: int = 4, kind: str = "FloatStorage", view: bytes = b"") -> bytes:
    module = "torch.storage" if kind == "UntypedStorage" else "torch"
    return b"(" + text("storage") + named(module, kind) + key + text("cpu") + number(count) + view + b"tQ"


def tensor(
    shape: tuple[int, ...] = (2, 2), strides: tuple[int, ...] = (2, 1), offset: int = 0, where: bytes = b"",
) -> bytes:
    """Return the opcodes of a float tensor, by default all of storage 0."""
    hooks = called("collections", "OrderedDict")
    return called(
        "torch._utils", "_rebuild_tensor_v2",
        where or storage(), number(offset), numbers(shape), numbers(strides), b"\x89", hooks,
    )


def archive(
    pickle: bytes, storages: Mapping[str, bytes] | None = None, more: Mapping[str, bytes] | None = None,
    packed: tuple[str, ...] = (),
) -> bytes:
    """Return a zip archive as torch.save writes it; members in `packed` are deflated."""
    buffer = io.BytesIO()
    members = {"data.pkl": pickle, "byteorder": b"little", "version": b"3\n", **(more or {})}
    with zipfile.ZipFile(buffer, "w") as file:
        for key, raw in (storages if storages is not None else {"0": NUMBERS}).items():
            members[f"data/{key}"] = raw
        for name, raw in members.items():
            method = zipfile.ZIP_DEFLATED if name in packed else zipfile.ZIP_STORED
            file.writestr(name if name.startswith("/") else f"archive/{name}", raw, method)
    return buffer.getvalue()


def legacy(pickle: bytes, storages: Mapping[str, bytes] | None = None, width: int = 4) -> bytes:
    """Return an old file: magic number, version, machine, object, keys, storages."""
    found = storages if storages is not None else {"0": NUMBERS}
    keys = b"\x80\x02](" + b"".join(map(text, found)) + b"e."
    payload = b"".join(struct.pack("<q", len(raw) // width) + raw for raw in found.values())
    return MAGIC + b"\x80\x02M\xe9\x03." + b"\x80\x02}." + pickle + keys + payload


def embedded(file: bytes) -> bytes:
    """Return the call by which plain pickling writes a storage."""
    return called("torch.storage", "_load_from_bytes", b"B" + struct.pack("<I", len(file)) + file)


@dataclass(frozen=True)
class Case:
    """A file, whether its tensor `w` is listed all the same, and what must be said about it."""

    content: bytes
    is_listed: bool
    said: tuple[str, ...]


W = entry("w", tensor())


def beside(*ops: bytes) -> bytes:
    """Return an archive with an honest tensor and something hostile."""
    return archive(pickled(W, entry("x", b"".join(ops))))


def hostile(command: str) -> dict[str, Case]:
    """Return hostile files; those that run something would run `command`."""
    return {**_calls(command), **_bombs(), **_lies(), **_archives(), **_legacies(command)}


def _calls(command: str) -> dict[str, Case]:
    line = text(command)
    python = text(f"__import__('os').system({command!r})")
    short = b"\x8c"

    def stacked(module: str, name: str) -> bytes:
        return b"".join(short + bytes([len(part)]) + part.encode() for part in (module, name)) + b"\x93"

    chain = (
        called("builtins", "getattr", called("builtins", "__import__", text("os")), text("system"))
        + b"(" + line + b"tR"
    )
    posix = called("posix", "system", line)
    return {
        "os.system": Case(beside(called("os", "system", line)), True, ("would call os.system",)),
        "posix.system": Case(beside(posix), True, ("posix.system",)),
        "builtins.eval": Case(beside(called("builtins", "eval", python)), True, ("builtins.eval",)),
        "eval of Python 2": Case(beside(called("__builtin__", "eval", python)), True, ("builtins.eval",)),
        "exec by stack": Case(
            beside(stacked("builtins", "exec"), b"(", python, b"tR"), True, ("builtins.exec",)
        ),
        "INST": Case(beside(b"(", line, b"isubprocess\nPopen\n"), True, ("subprocess.Popen",)),
        "OBJ": Case(beside(b"(", named("os", "system"), line, b"o"), True, ("os.system",)),
        "NEWOBJ": Case(beside(named("subprocess", "Popen"), b"(", line, b"t\x81"), True, ("subprocess.Popen",)),
        "NEWOBJ_EX": Case(
            beside(named("subprocess", "Popen"), b")}(", text("args"), line, b"u\x92"), True, ("subprocess.Popen",)
        ),
        "BUILD": Case(
            beside(named("evil.module", "Thing"), b")\x81}(", text("cmd"), line, b"ub"), True, ("evil.module.Thing",)
        ),
        "getattr chain": Case(beside(chain), True, ("builtins.getattr", "builtins.__import__")),
        "EXT1": Case(beside(b"\x82\x05(", line, b"tR"), True, ("copyreg.extension_5",)),
        "EXT2": Case(beside(b"\x83\x05\x01(", line, b"tR"), True, ("copyreg.extension_261",)),
        "EXT4": Case(beside(b"\x84\x05\0\0\x01(", line, b"tR"), True, ("copyreg.extension_",)),
        "default factory": Case(
            beside(called("collections", "defaultdict", named("os", "system"))), True, ("would import os.system",)
        ),
        "only a name": Case(beside(named("os", "system")), True, ("would import os.system",)),
        "dotted name": Case(
            beside(stacked("torch.nn.modules.module", "warnings.sys.exit"), b")R"), True,
            ("would call torch.nn.modules.module.warnings.sys.exit",),
        ),
        "function of a harmless package": Case(
            beside(called("numpy.testing._private.utils", "runstring", python, b"}")), True, ("runstring",)
        ),
        "call made by copyreg": Case(
            beside(called("copyreg", "__newobj__", named("subprocess", "Popen"), line)), True, ("subprocess.Popen",)
        ),
        "copyreg in copyreg": Case(
            beside(
                named("copyreg", "__newobj__"), b"(" * 5000, named("copyreg", "__newobj__"),
                (b"t" + named("copyreg", "__newobj__") + b"\x86") * 4999, b"tR",
            ),
            True, (),
        ),
        "call by a function of torch": Case(
            beside(called("torch._tensor", "_rebuild_from_type_v2", named("posix", "system"), b"N(", line, b"t}")),
            True, ("would call posix.system",),
        ),
        "call of a result": Case(beside(posix, b")R)R)R"), True, ("posix.system",)),
        "call before the damage": Case(
            archive(pickled(W, entry("x", posix + b"\xff"))), False, ("it would have called posix.system",)
        ),
        "call without a tensor": Case(
            archive(b"\x80\x02" + posix + b"."), False, ("holds no tensors", "it would have called posix.system")
        ),
        "call as a plain pickle": Case(
            b"\x80\x04" + stacked("posix", "system") + b"(" + line + b"tR.", False, ("called posix.system",)
        ),
        "hidden behind many": Case(
            beside(b"(", b"".join(called(f"m{i}", "f") for i in range(50)), posix, b"l"), True,
            ("would call posix.system", "more"),
        ),
    }


def _bombs() -> dict[str, Case]:
    deep = 100_000
    laughs = b"}(" + text("a") + b"Nuq\1" + b"".join(
        b"0](h" + bytes([i]) + b"2" * 9 + b"eq" + bytes([i + 1]) for i in range(1, 30)
    )
    named_laughs = b"}q\1" + b"".join(
        b"0}(" + b"".join(text(str(j)) + b"h" + bytes([i]) for j in range(8)) + b"uq" + bytes([i + 1])
        for i in range(1, 20)
    )
    colliding = b"".join(b"\x8a\x0a" + (k * (2**61 - 1)).to_bytes(10, "little") + b"N" for k in range(2, 30_000))
    pairs = b"".join(b"K\1" + number(k) + b"\x86N" for k in range(10_000))
    key = "k" * 4000
    many = b"".join(b"J" + struct.pack("<i", i) + b"h\1" for i in range(30_000))
    items = b"](" + b"N" * 50_000 + b"eq\1"
    copied = named("builtins", "list") + b"q\2" + b"h\2h\1\x85R" * 50_000
    letters = text("x" * 4000) + b"q\1" + named("_codecs", "encode") + b"q\2"
    things = b"".join(b"h\2)\x81h\1b" for _ in range(50_000))
    nested = legacy(b"\x80\2]" + b"N0" * 1500 + b".", {})
    call = named("torch.storage", "_load_from_bytes") + b"q\1" + b"B" + struct.pack("<I", len(nested)) + nested
    words = b"".join(text(f"{i:03}" * 300) + b"r" + struct.pack("<I", 1000 + i) for i in range(200))
    pairwise = b"".join(
        b"j" + struct.pack("<I", 1000 + i) + b"j" + struct.pack("<I", 1000 + j) + b"\x93"
        for i in range(120) for j in range(120)
    )
    return {
        "list copied often": Case(beside(b"(", items, copied, b"l"), False, ("copies its lists",)),
        "text encoded often": Case(
            beside(b"(", letters, b"h\2h\1\x85R" * 50_000, b"l"), False, ("copies its lists",)
        ),
        "one state of many objects": Case(
            beside(b"(", items, named("a", "B"), b"q\2", things, b"l"), False, ("share their parts",)
        ),
        "one embedded file often": Case(
            beside(b"(", call, b"q\2", b"h\1h\2\x85R" * 30_000, b"l"), True, ()
        ),
        "long names in pairs": Case(beside(b"(", words, b"1(", pairwise, b"l"), True, ("would import",)),
        "state in state": Case(
            beside(named("a", "B"), b"q\1)\x81" + b"q\2h\1)\x81h\2bq\2" * 20_000), True, ("would call a.B",)
        ),
        "memo index 2^31": Case(beside(b"Nr\xff\xff\xff\xff"), True, ()),
        "memo index in words": Case(beside(b"Np99999999999999\n"), True, ()),
        "BINUNICODE8 2^40": Case(beside(b"\x8d" + struct.pack("<Q", 2**40)), False, ("does not fit",)),
        "BINBYTES8 2^63": Case(beside(b"\x8e" + struct.pack("<Q", 2**63)), False, ("does not fit",)),
        "BYTEARRAY8 2^50": Case(beside(b"\x96" + struct.pack("<Q", 2**50)), False, ("does not fit",)),
        "BINSTRING of negative length": Case(beside(b"T\xff\xff\xff\xff"), False, ("does not fit",)),
        "LONG4": Case(beside(b"\x8b\xff\xff\xff\x7f"), False, ("a number of",)),
        "LONG4 of negative length": Case(beside(b"\x8b\xff\xff\xff\xff"), False, ("a number of",)),
        "long number in words": Case(beside(b"I" + b"9" * 3000 + b"\n"), False, ("a number of the pickle",)),
        "line without end": Case(beside(b"I" + b"9" * 100_000), False, ("line",)),
        "deep tuple": Case(beside(b")", b"\x85" * deep), True, ()),
        "deep tuple as key": Case(archive(pickled(W, b")" + b"\x85" * deep + b"N")), True, ()),
        "deep list": Case(beside(b"]" * deep, b"a" * (deep - 1)), True, ()),
        "deep dict": Case(beside(b"}K\1" * deep, b"N" + b"s" * deep), True, ()),
        "deep calls": Case(beside(named("a", "b"), b")R" * deep), True, ("a.b",)),
        "list as key": Case(archive(pickled(W, b"]N")), True, ()),
        "colliding keys": Case(beside(b"}(", colliding, b"u"), True, ()),
        "pairs as keys": Case(beside(b"}(", pairs, b"u"), True, ()),
        "billion laughs": Case(beside(laughs), True, ()),
        "billion laughs in dicts": Case(beside(named_laughs), False, ("hold each other",)),
        "long names": Case(
            archive(pickled(entry("t", tensor() + b"q\1"), entry(key, b"}(" + many + b"u"))), False, ("hold each",)
        ),
        "list in itself": Case(beside(b"]q\1h\1a"), True, ()),
        "dict in itself": Case(beside(b"}q\1", text("a"), b"h\1s"), True, ()),
        "too many operations": Case(beside(b"N0" * 2_600_000), False, ("operations",)),
        "many marks": Case(beside(b"(" * 200_000), False, ()),
        "many dicts": Case(beside(b"}0" * 100_000, b"N"), True, ()),
    }


def _lies() -> dict[str, Case]:
    def one(**said: object) -> bytes:
        return archive(pickled(entry("w", tensor(**said))))  # type: ignore[arg-type]

    def rebuilt(shape: bytes, strides: bytes) -> bytes:
        ops = called(
            "torch._utils", "_rebuild_tensor_v2", storage(), number(0), shape, strides, b"\x89",
            called("collections", "OrderedDict"),
        )
        return archive(pickled(entry("w", ops)))

    def array(dtype: str, shape: tuple[int, ...], raw: bytes) -> bytes:
        made = called("numpy.core.multiarray", "_reconstruct", named("numpy", "ndarray"), numbers((0,)), text("b"))
        kind = called("numpy", "dtype", text(dtype), b"\x89", b"\x88")
        return made + b"(K\1" + numbers(shape) + kind + b"\x89" + raw + b"tb"

    return {
        "storage of fewer bytes": Case(one(where=storage(count=4000)), False, ("16 bytes", "16000 are claimed")),
        "storage of 2^62 numbers": Case(one(where=storage(count=2**62)), False, ("are claimed",)),
        "storage of negative length": Case(one(where=storage(count=-4)), False, ("storage",)),
        "shape behind the end": Case(one(shape=(2, 3)), False, ("tensor 'w' reaches 20 bytes",)),
        "offset behind the end": Case(one(offset=4), False, ("tensor 'w' reaches",)),
        "negative offset": Case(one(offset=-1), False, ("tensor 'w'",)),
        "negative stride": Case(one(strides=(-2, 1), offset=2), False, ("strides",)),
        "negative length": Case(one(shape=(-2, 2)), False, ("whole numbers",)),
        "huge shape": Case(one(shape=(2**40, 2**40), strides=(0, 0)), False, ("larger than any file",)),
        "huge shape times nothing": Case(one(shape=(0, 2**62), strides=(1, 1)), False, ("larger than any file",)),
        "true as a length": Case(rebuilt(b"\x88\x88\x86", numbers((1, 1))), False, ("whole numbers",)),
        "shape of text": Case(rebuilt(text("ab"), numbers((1, 1))), False, ("shape",)),
        "one stride too few": Case(one(strides=(1,)), False, ("stride",)),
        "hundred axes": Case(one(shape=(1,) * 100, strides=(1,) * 100), False, ("axes",)),
        "expanded": Case(
            archive(pickled(W, entry("x", tensor((2**20, 2**20), (0, 0))))), True, ("it repeats 1 stored elements",)
        ),
        "expanded overlapping": Case(
            archive(
                pickled(W, entry("x", tensor((2**15, 2**15), (1, 1), where=storage(text("1"), 2**16)))),
                {"0": NUMBERS, "1": bytes(4 * 2**16)},
            ),
            True, ("it repeats 65535 stored elements",),
        ),
        "expanded a little, often": Case(
            archive(pickled(*(entry(str(i), tensor((2**12, 2**12), (0, 0))) for i in range(200)))), False,
            ("times as many elements",),
        ),
        "traversal": Case(one(where=storage(text("../../../etc/passwd"))), False, ("../../../etc/passwd",)),
        "absolute path": Case(one(where=storage(text("/etc/passwd"))), False, ("/etc/passwd", "not in the file")),
        "storage key that is no text": Case(one(where=storage(b"K\0")), False, ("not in the file",)),
        "storage of a foreign class": Case(one(where=storage(kind="EvilStorage")), False, ("storage",)),
        "no storage at all": Case(one(where=b"N"), False, ("no storage",)),
        "identifier of other kind": Case(beside(text("x"), b"Q"), False, ("storage",)),
        "array of objects": Case(beside(array("O", (1,), b"](Ne")), True, ("dtype of the array is O",)),
        "array of records": Case(beside(array("V8", (1,), b"C\x08" + bytes(8))), True, ("dtype of the array is V8",)),
        "array larger than its bytes": Case(beside(array("f8", (2**30,), b"C\x08" + bytes(8))), False, ("needs",)),
        "array of 2^70 elements": Case(beside(array("f8", (2**35, 2**35), b"C\0")), False, ("larger than any",)),
        "wrong arguments": Case(beside(called("torch._utils", "_rebuild_tensor_v2")), False, ("does not take",)),
        "nothing on the stack": Case(archive(b"\x80\x02R."), False, ("damaged",)),
        "no end": Case(archive(b"\x80\x02}(" + W + b"u"), False, ("ends too soon",)),
        "protocol 9": Case(archive(pickled(W, protocol=9)), False, ("protocol 9",)),
        "buffers elsewhere": Case(beside(b"\x97"), False, ("buffers",)),
        "unknown opcode": Case(beside(b"\xf0"), False, ("damaged",)),
        "text that is none": Case(beside(b"X\1\0\0\0\xff"), False, ("UTF-8",)),
    }


def _archives() -> dict[str, Case]:
    good = archive(pickled(W))

    def patched(change: Callable[[bytearray], None]) -> bytes:
        content = bytearray(good)
        change(content)
        return bytes(content)

    def other_local_name(content: bytearray) -> None:
        at = content.index(b"archive/data/0")
        content[at : at + 14] = b"archive/data/1"

    def encrypted(content: bytearray) -> None:
        at = content.index(b"PK\1\2")
        content[at + 8] |= 1

    def no_local_header(content: bytearray) -> None:
        content[content.index(b"archive/data/0") - 30] = 0

    def far_away(content: bytearray) -> None:
        at = content.rindex(b"PK\1\2")
        content[at + 42 : at + 46] = b"\xf0\xff\xff\x7f"

    twice = io.BytesIO(good)
    with zipfile.ZipFile(twice, "a") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.writestr("archive/data/0", bytes(16))
    zeros = bytes(50 << 20)
    bomb = entry("w", tensor(where=storage(count=len(zeros) // 4)))
    return {
        "deflated storage": Case(archive(pickled(W), packed=("data/0",)), False, ("compressed",)),
        "deflate bomb": Case(archive(pickled(bomb), {"0": zeros}, packed=("data/0",)), False, ("compressed",)),
        "deflate bomb as pickle": Case(archive(pickled(W) + zeros, packed=("data.pkl",)), False, ("compressed",)),
        "one member twice": Case(twice.getvalue(), False, ("two members",)),
        "second data.pkl": Case(archive(pickled(W), more={"sub/data.pkl": pickled(W)}), False, ("one data.pkl",)),
        "no data.pkl": Case(archive(b"", {}).replace(b"data.pkl", b"dato.pkl"), False, ("one data.pkl",)),
        "other local name": Case(patched(other_local_name), False, ("another name in its local header",)),
        "no local header": Case(patched(no_local_header), False, ("local header",)),
        "offset outside": Case(patched(far_away), False, ()),
        "encrypted": Case(patched(encrypted), False, ("encrypted",)),
        "unknown byte order": Case(archive(pickled(W), more={"byteorder": b"middle"}), False, ("byte order",)),
        "cut": Case(good[: len(good) // 2], False, ("damaged or truncated",)),
    }


def _legacies(command: str) -> dict[str, Case]:
    posix = called("posix", "system", text(command))
    old = b"N"
    honest = entry("w", tensor(where=storage(view=old)))
    good = legacy(pickled(honest))
    inner = legacy(b"\x80\x02" + posix + b".", {})
    view = b"(" + text("v") + number(2) + number(4) + b"t"
    return {
        "old: call": Case(legacy(pickled(honest, entry("x", posix))), True, ("would call posix.system",)),
        "old: huge storage": Case(good[:-24] + struct.pack("<q", 2**60) + NUMBERS, False, ("does not fit",)),
        "old: negative storage": Case(good[:-24] + struct.pack("<q", -1) + NUMBERS, False, ("does not fit",)),
        "old: cut": Case(good[:-8], False, ("does not fit",)),
        "old: storage not listed": Case(legacy(pickled(honest), {}), False, ("not in the file",)),
        "old: storage not used": Case(legacy(pickled(honest), {"0": NUMBERS, "1": b""}), False, ("not used",)),
        "old: view behind the end": Case(
            legacy(pickled(entry("w", tensor(where=storage(view=view))))), False, ("a part of storage",)
        ),
        "old: other version": Case(good.replace(b"M\xe9\x03", b"M\xea\x03"), False, ("version",)),
        "old: bytes behind": Case(good + b"more", True, ("More bytes follow",)),
        "call in an embedded file": Case(beside(embedded(inner)), True, ("posix.system",)),
        "embedded in embedded": Case(
            beside(embedded(legacy(b"\x80\x02" + embedded(inner) + b".", {}))), True,
            ("would call torch.storage._load_from_bytes",),
        ),
    }
