"""ONNX models read as the onnx package reads them, without loading them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from fuzzing import mutants, survive
from onnx import TensorProto, helper, numpy_helper
from opening import Counted, arrays, cuts, opened, read_everything, refused, refused_or_read, said, same

from diffai_jupyter.checkpoint.storage import StoredFile
from diffai_jupyter.errors import FormatError
from diffai_jupyter.readers.formats.onnx.reader import read_onnx

DRAW = np.random.default_rng(0)
NUMBERS: dict[str, np.ndarray] = {
    "matrix": DRAW.normal(size=(5, 7)).astype("<f4"),
    "double": DRAW.normal(size=(2, 3, 4)),
    "half": DRAW.normal(size=9).astype("<f2"),
    "c64": (DRAW.normal(size=3) + 1j).astype("<c8"),
    "c128": DRAW.normal(size=(2, 2)) + 1j,
    "bool": np.array([[True, False]]),
    **{f"i{8 * size}": DRAW.integers(-100, 100, size=(3, 5)).astype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"u{8 * size}": DRAW.integers(0, 200, size=(3, 5)).astype(f"<u{size}") for size in (1, 2, 4, 8)},
    "extremes": np.array([-(2**63), 2**63 - 1, -1, 0]),
    "large": np.array([2**64 - 1, 2**63], dtype="<u8"),
    "odd": np.array([np.nan, np.inf, -0.0], dtype="<f4"),
    "scalar": np.array(2.5, dtype="<f4"),
    "empty": np.zeros((0, 3), dtype="<f4"),
    "é/\x1b\u202e": np.ones(2, dtype="<f4"),
}
NARROW = {
    TensorProto.BFLOAT16: (ml_dtypes.bfloat16, "bf16"),
    TensorProto.FLOAT8E4M3FN: (ml_dtypes.float8_e4m3fn, "f8_e4m3"),
    TensorProto.FLOAT8E4M3FNUZ: (ml_dtypes.float8_e4m3fnuz, "f8_e4m3fnuz"),
    TensorProto.FLOAT8E5M2: (ml_dtypes.float8_e5m2, "f8_e5m2"),
    TensorProto.FLOAT8E5M2FNUZ: (ml_dtypes.float8_e5m2fnuz, "f8_e5m2fnuz"),
    TensorProto.FLOAT8E8M0: (ml_dtypes.float8_e8m0fnu, "f8_e8m0"),
    TensorProto.FLOAT4E2M1: (ml_dtypes.float4_e2m1fn, "f4"),
    TensorProto.INT4: (ml_dtypes.int4, "i8"),
    TensorProto.UINT4: (ml_dtypes.uint4, "u8"),
    TensorProto.INT2: (ml_dtypes.int2, "i8"),
    TensorProto.UINT2: (ml_dtypes.uint2, "u8"),
}


def graph(nodes: list[Any] | None = None, initializers: list[Any] | None = None, **said: Any) -> Any:
    return helper.make_graph(nodes or [], "g", [], [], initializer=initializers or [], **said)


def model(nodes: list[Any] | None = None, initializers: list[Any] | None = None, **said: Any) -> Any:
    return helper.make_model(graph(nodes, initializers), producer_name="test", **said)


def raw(name: str, array: np.ndarray) -> Any:
    return numpy_helper.from_array(np.asarray(array), name)


def typed(name: str, array: np.ndarray) -> Any:
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor(name, kind, array.shape, array.reshape(-1).tolist())


def saved(path: Path, proto: Any) -> Path:
    path.write_bytes(proto if isinstance(proto, bytes) else proto.SerializeToString())
    return path


@pytest.mark.parametrize("make", [raw, typed])
def test_initializers(tmp_path: Path, make: Any) -> None:
    tensors = [make(name, array) for name, array in NUMBERS.items()]
    container = opened(saved(tmp_path / "a.onnx", model(initializers=tensors)))
    assert (container.format, container.notes) == ("onnx", ())
    assert container.metadata["producer_name"] == "test"
    found = arrays(container)
    assert set(found) == set(NUMBERS)
    for tensor in tensors:
        same(found[tensor.name], NUMBERS[tensor.name])
        same(found[tensor.name], numpy_helper.to_array(tensor))


@pytest.mark.parametrize("make", [raw, typed])
def test_large_initializers(tmp_path: Path, make: Any) -> None:
    large = {
        "floats": DRAW.normal(size=(300, 400)).astype("<f4"), "integers": DRAW.integers(-(2**62), 2**62, size=90_000),
        "bytes": DRAW.integers(0, 255, size=(700, 500)).astype("u1"),
    }
    path = saved(tmp_path / "a.onnx", model(initializers=[make(name, array) for name, array in large.items()]))
    for name, array in arrays(opened(path)).items():
        same(array, large[name])


@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("shape", [(3, 8), (5, 7), (), (0, 4)])
@pytest.mark.parametrize("is_raw", [True, False])
def test_narrow_dtypes(tmp_path: Path, kind: int, shape: tuple[int, ...], is_raw: bool) -> None:
    dtype, ours = NARROW[kind]
    codes = DRAW.integers(0, 256, size=shape).astype("u1")
    numbers = np.asarray(np.asarray(codes % 4).astype(np.float32)).astype(dtype)
    tensor = numpy_helper.from_array(numbers, "w")
    if not is_raw:
        content = np.frombuffer(tensor.raw_data, dtype="<u2" if ours == "bf16" else "u1")
        tensor.ClearField("raw_data")
        tensor.int32_data.extend(content.tolist())
    container = opened(saved(tmp_path / "a.onnx", model(initializers=[tensor])))
    assert container.tensors["w"].dtype.name == ours
    expected = numpy_helper.to_array(tensor)
    values = np.int8 if ours == "i8" else np.uint8 if ours == "u8" else np.float32
    np.testing.assert_array_equal(arrays(container)["w"], expected.astype(values))
    assert arrays(container)["w"].dtype == values
    narrow = "Integers of 2 or 4 bits are compared as 8-bit integers: w."
    assert said(container) == (narrow if ours in ("i8", "u8") else "")


def test_all_codes_of_packed_integers(tmp_path: Path) -> None:
    content = bytes(range(256))
    for kind, bits in ((TensorProto.INT4, 4), (TensorProto.UINT4, 4), (TensorProto.INT2, 2), (TensorProto.UINT2, 2)):
        tensor = helper.make_tensor("w", kind, (256 * 8 // bits,), content, raw=True)
        container = opened(saved(tmp_path / "a.onnx", model(initializers=[tensor])))
        expected = numpy_helper.to_array(tensor).astype(np.int16)
        np.testing.assert_array_equal(arrays(container)["w"], expected)
        assert container.tensors["w"].nbytes == 256


def test_numbers_that_are_not_packed(tmp_path: Path) -> None:
    """A writer may give each number of a field a tag of its own, or several packed runs."""

    def varint(value: int) -> bytes:
        value %= 2**64
        out = bytearray()
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        return bytes([*out, value])

    def message(number: int, content: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(content)) + content

    floats = np.array([1.5, -2.0, 3.0], dtype="<f4")
    single = b"".join(varint(4 << 3 | 5) + one.tobytes() for one in floats)
    runs = message(4, floats[:1].tobytes()) + message(4, floats[1:].tobytes())
    whole = [5, -7, 2**40]
    numbers = varint(7 << 3) + varint(5) + message(7, varint(-7) + varint(2**40))
    tensors = b"".join(
        message(5, varint(1 << 3) + varint(3) + varint(2 << 3) + varint(kind) + message(8, name) + content)
        for name, kind, content in ((b"single", 1, single), (b"runs", 1, runs), (b"integers", 7, numbers))
    )
    path = saved(tmp_path / "a.onnx", message(7, tensors))
    found = arrays(opened(path))
    same(found["single"], floats)
    same(found["runs"], floats)
    same(found["integers"], np.array(whole))
    for tensor in onnx.load(path).graph.initializer:
        same(found[tensor.name], numpy_helper.to_array(tensor))


def test_constants_subgraphs_and_functions(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["c"], value=raw("ignored", np.ones(3, "<f4")))
    then = graph([helper.make_node("Constant", [], ["c"], value=raw("", np.zeros(2)))], [raw("w", np.full(2, 1.0))])
    other = graph(initializers=[raw("w", np.full(2, 2.0))])
    branch = helper.make_node("If", ["x"], ["y"], "choose", then_branch=then, else_branch=other)
    unnamed = helper.make_node("Loop", ["x"], ["z"], body=graph([branch], [raw("w", np.full(2, 3.0))]))
    shape = helper.make_node("ConstantOfShape", ["s"], ["t"], "fill", value=raw("", np.array([4.0])))
    trees = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["r"], "trees", domain="ai.onnx.ml", nodes_values=[0.5, 1.5, -2.0]
    )
    inner = helper.make_node("Constant", [], ["k"], value=raw("", np.array([5.0])))
    function = helper.make_function("my", "fn", [], ["k"], [inner], [helper.make_opsetid("", 21)])
    proto = model([constant, branch, unnamed, shape, trees], [raw("w", np.full(2, 0.0))], functions=[function])
    found = arrays(opened(saved(tmp_path / "a.onnx", proto)))
    assert {name: array.reshape(-1)[0] for name, array in found.items()} == {
        "w": 0.0, "c": 1.0, "choose/then_branch/w": 1.0, "choose/then_branch/c": 0.0, "choose/else_branch/w": 2.0,
        "z/body/w": 3.0, "z/body/choose/then_branch/w": 1.0, "z/body/choose/then_branch/c": 0.0,
        "z/body/choose/else_branch/w": 2.0, "fill/value": 4.0, "trees/nodes_values": 0.5, "my.fn/k": 5.0,
    }
    same(found["trees/nodes_values"], np.array([0.5, 1.5, -2.0], dtype="<f4"))


def test_nodes_of_one_name_are_numbered(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Loop", ["x"], [f"y{i}"], "loop", body=graph(initializers=[raw("w", np.array(float(i)))]))
        for i in range(3)
    ]
    found = arrays(opened(saved(tmp_path / "a.onnx", model(nodes))))
    assert {name: float(array) for name, array in found.items()} == {
        "loop/body/w": 0.0, "loop/body/w~2": 1.0, "loop/body/w~3": 2.0,
    }


def test_nesting_ends(tmp_path: Path) -> None:
    inner = graph(initializers=[raw("deep", np.ones(2))])
    for _ in range(10):
        inner = graph([helper.make_node("Loop", ["x"], ["y"], "n", body=inner)])
    proto = helper.make_model(inner)
    proto.graph.initializer.append(raw("w", np.ones(2)))
    container = opened(saved(tmp_path / "a.onnx", proto))
    assert list(container.tensors) == ["w"]
    assert "more than 8 graphs deep" in said(container)


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    text = helper.make_tensor("text", TensorProto.STRING, (1,), [b"hello"])
    unknown = raw("unknown", np.ones(2))
    unknown.data_type = 99
    piece = raw("piece", np.ones(2))
    piece.segment.begin = 0
    sparse = helper.make_sparse_tensor(raw("sparse", np.ones(2)), raw("", np.array([0, 3])), [5])
    tensors = [raw("w", np.ones(2)), text, unknown, piece]
    proto = helper.make_model(graph(initializers=tensors, sparse_initializer=[sparse]))
    container = opened(saved(tmp_path / "a.onnx", proto))
    assert list(container.tensors) == ["w"]
    for reason in ("text: text.", "unknown number 99: unknown.", "segments of larger ones: piece.", "sparse: sparse."):
        assert reason in said(container)
    assert all(note.is_warning for note in container.notes)
    assert "nothing in it can be compared; text" in refused(saved(tmp_path / "b.onnx", model(initializers=[text])))


def test_two_tensors_of_one_name(tmp_path: Path) -> None:
    proto = model(initializers=[raw("w", np.ones(2)), raw("w", np.zeros(2))])
    assert "two tensors of a graph are called 'w'" in refused(saved(tmp_path / "a.onnx", proto))


def lying(**fields: Any) -> Any:
    tensor = raw("w", np.arange(4, dtype="<f4"))
    for key, value in fields.items():
        tensor.ClearField(key)
        if isinstance(value, list):
            getattr(tensor, key).extend(value)
        else:
            setattr(tensor, key, value)
    return tensor


LIES = {
    "shape bomb": (lying(dims=[2**30, 2**25]), "takes 16 bytes"),
    "overflow": (lying(dims=[2**62, 2**62, 0]), "larger than any file"),
    "negative": (lying(dims=[-1]), "whole numbers"),
    "rank": (lying(dims=[1] * 40), "33 axes"),
    "no data": (lying(raw_data=b""), "takes 0 bytes"),
    "too many floats": (lying(raw_data=b"", float_data=[1.0] * 5), ""),
    "few varints": (lying(raw_data=b"", data_type=7, int64_data=[1]), ""),
}


@pytest.mark.parametrize("name", LIES)
def test_lies(tmp_path: Path, name: str) -> None:
    tensor, reason = LIES[name]
    if name.endswith(("floats", "varints")):
        tensor.ClearField("raw_data")
    assert reason in refused(saved(tmp_path / "a.onnx", model(initializers=[tensor])))


def test_numbers_that_do_not_fill_the_shape_are_found_at_reading(tmp_path: Path) -> None:
    tensor = lying(data_type=7, int64_data=[2**40, 1])
    tensor.ClearField("raw_data")
    read = opened(saved(tmp_path / "a.onnx", model(initializers=[tensor]))).tensors["w"]
    with pytest.raises(FormatError, match="does not unpack to the 32 bytes"):
        read.read_all()


NO_MODELS = {
    "nothing": b"\x08\x07", "group": b"\x0b", "zero field": b"\x02\x00", "long varint": b"\x08" + b"\xff" * 11,
    "cut": b"\x3a\x7f", "huge": b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "two graphs": b"\x3a\0\x3a\0",
    "name": b"\x3a\x08\x2a\x06\x42\x04\xff\xfe\xfd\xfc",
}


@pytest.mark.parametrize("name", NO_MODELS)
def test_no_models(tmp_path: Path, name: str) -> None:
    refused(tmp_path / "a.onnx", NO_MODELS[name])


def test_truncated(tmp_path: Path) -> None:
    whole = model(initializers=[raw("a", DRAW.normal(size=90)), typed("b", np.arange(900))]).SerializeToString()
    for content in cuts(whole):
        assert refused_or_read(tmp_path / "a.onnx", content)


def test_only_headers_are_read_at_opening(tmp_path: Path) -> None:
    tensors = [raw(f"w{i}", np.zeros((500, 500), "<f4")) for i in range(4)]
    counted = Counted(StoredFile.at(saved(tmp_path / "a.onnx", model(initializers=tensors))))
    tensor = read_onnx(counted).tensors["w2"]
    assert counted.total < 100_000
    before = counted.total
    tensor.read((5, 6), (0, 10))
    assert counted.total == before + 40


def test_onnx_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.onnx", model(initializers=[raw("w", np.ones(2))]))
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert list(opened(path).tensors) == ["w"]


def test_many_small_tensors(tmp_path: Path) -> None:
    tensors = [raw(f"w{i:05}", np.array([i], dtype="<i4")) for i in range(5000)]
    found = opened(saved(tmp_path / "a.onnx", model(initializers=tensors))).tensors
    assert [int(tensor.read_all()[0, 0]) for tensor in found.values()] == list(range(5000))


def test_a_file_of_nothing_but_fields_ends_soon(tmp_path: Path) -> None:
    node = b"\x0a\x00" * 30_000
    size = len(node)
    framed = b"\x3a" + bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14]) + node
    assert survive(tmp_path / "a.onnx", [framed], opened) == (1, 0)


def run_mutants(folder: Path, count: int, seed: int) -> None:
    some = {name: NUMBERS[name] for name in ("matrix", "i8", "i64", "bool", "double")}
    body = graph([helper.make_node("Constant", [], ["c"], value=raw("", np.ones(3)))], [raw("w", np.ones(2))])
    loop = helper.make_node("Loop", ["x"], ["y"], "loop", body=body)
    four = numpy_helper.from_array(np.arange(8).astype(ml_dtypes.int4), "four")
    whole = [
        model([loop], [make(name, array) for name, array in some.items()] + [four]).SerializeToString()
        for make in (raw, typed)
    ]
    read, refusals = survive(folder / "a.onnx", mutants(whole, count, seed), read_everything)
    assert read > count // 20
    assert refusals > count // 20


def test_mutants(tmp_path: Path) -> None:
    run_mutants(tmp_path, 300, 10)


@pytest.mark.slow
def test_many_mutants(tmp_path: Path) -> None:
    run_mutants(tmp_path, 40_000, 11)
