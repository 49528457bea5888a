"""GGUF files are read as the gguf package reads them."""

from __future__ import annotations

import pickle
import struct
import sys
import tracemalloc
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from builders import transformer
from gguf.quants import dequantize
from gguf.scripts.gguf_convert_endian import convert_byteorder
from gguf_bytes import info, key, listed, nested, packed, text
from gguf_models import gpt2_as_gguf, llama_as_gguf, permuted

from diffai_jupyter.checkpoint.storage import Storage, StoredFile
from diffai_jupyter.errors import MissingPackageError
from diffai_jupyter.readers.formats.container import Container
from diffai_jupyter.readers.formats.detection import open_container
from diffai_jupyter.readers.formats.gguf.config import _FILE_TYPES
from diffai_jupyter.readers.formats.gguf.reader import read_gguf

LITTLE, BIG = gguf.GGUFEndian.LITTLE, gguf.GGUFEndian.BIG
PLAIN = ("F32", "F16", "F64", "I8", "I16", "I32", "I64")
# Q8_1 is left out: the package and ggml disagree over its size, see test_ggml
BLOCKS = [
    kind.name for kind, (block, _) in gguf.GGML_QUANT_SIZES.items() if block > 1 and kind.name != "Q8_1"
]
NO_REFERENCE = ("Q8_K", "Q1_0")
SHAPES = [(3, 256), (2, 2, 512), (256,), (1, 1, 2, 256)]


def read(path: Path) -> Container:
    return read_gguf(StoredFile.at(path))


def write(path: Path, fill: Callable[[gguf.GGUFWriter], Any], order: gguf.GGUFEndian = LITTLE) -> Path:
    """Write a file with the reference writer."""
    writer = gguf.GGUFWriter(path, "llama", endianess=order)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def fill_with_everything(writer: gguf.GGUFWriter) -> None:
    draw = np.random.default_rng(0)
    for name in PLAIN:
        dtype = np.dtype(f"<{name[0].lower()}{int(name[1:]) // 8}")
        for shape in [*SHAPES, (5,), (3, 7), (1,)]:
            values = draw.normal(0, 100, shape).astype(dtype)
            writer.add_tensor(f"{name}.{'x'.join(map(str, shape))}", values)
    for name in BLOCKS:
        kind = gguf.GGMLQuantizationType[name]
        block, nbytes = gguf.GGML_QUANT_SIZES[kind]
        for shape in SHAPES:
            stored = (*shape[:-1], shape[-1] // block * nbytes)
            raw = draw.integers(0, 256, stored, dtype=np.uint8)
            writer.add_tensor(f"{name}.{'x'.join(map(str, shape))}", raw, raw_dtype=kind)


@pytest.fixture(scope="module", params=[LITTLE, BIG], ids=["little", "big"])
def everything(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    path = tmp_path_factory.mktemp("gguf") / "everything.gguf"
    return write(path, fill_with_everything, request.param), request.param is BIG


def test_every_tensor_is_where_the_package_finds_it(everything: tuple[Path, bool]) -> None:
    path, _ = everything
    found = read(path).tensors
    raw = path.read_bytes()
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert list(found) == sorted(theirs)
    for name, tensor in found.items():
        other = theirs[name]
        assert tensor.shape == tuple(reversed(other.shape.tolist()))
        assert tensor.dtype.name == other.tensor_type.name.lower()
        assert tensor.nbytes == other.n_bytes
        assert tensor.parts == (name,)
        assert tensor.homes == {str(path)}
        stored = tensor.stored[0] if hasattr(tensor, "stored") else tensor
        assert stored.offset == other.data_offset
        assert raw[stored.offset : stored.offset + tensor.nbytes] == other.data.tobytes()


def test_every_value_is_that_of_the_package(everything: tuple[Path, bool]) -> None:
    path, is_big = everything
    found = read(path).tensors
    for other in gguf.GGUFReader(path).tensors:
        tensor, kind = found[other.name], other.tensor_type
        if kind.name in PLAIN:
            wanted = np.asarray(other.data)
        elif is_big or kind.name in NO_REFERENCE:
            assert tensor.dtype.opaque
            assert np.array_equal(tensor.read_all(), other.data.reshape(1, -1).view(np.uint8))
            continue
        elif kind.name == "BF16":
            wanted = (other.data.view("<u2").astype("<u4") << 16).view("<f4")
        else:
            with np.errstate(all="ignore"):
                wanted = dequantize(other.data, kind)
        assert not tensor.dtype.opaque
        assert np.array_equal(tensor.read_all(), wanted.reshape(tensor.grid), equal_nan=True)
        if kind.name in PLAIN:
            rows, cols = (0, tensor.grid[0]), (tensor.grid[1] // 3, tensor.grid[1])
            assert np.array_equal(tensor.read(rows, cols), wanted.reshape(tensor.grid)[:, slice(*cols)])


def test_bf16(tmp_path: Path) -> None:
    values = np.array([[1.5, -2.25, 0.0078125]], np.float32)
    codes = (values.view("<u4") >> 16).astype("<u2")
    kind = gguf.GGMLQuantizationType.BF16
    path = write(tmp_path / "b.gguf", lambda writer: writer.add_tensor("w", codes.view(np.uint8), raw_dtype=kind))
    found = read(path).tensors["w"]
    assert found.dtype.name == "bf16"
    assert np.array_equal(found.read_all(), values)
    assert np.array_equal(found.codes((0, 1), (0, 3)), codes)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_files_turned_to_big_endian_by_the_package(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = llama_as_gguf(tmp_path / "m.gguf", transformer(layers=1), 4, 4, kind)
    before = read(path)
    values = {name: found.read_all() for name, found in before.tensors.items()}
    monkeypatch.setattr("builtins.input", lambda _: "YES")
    convert_byteorder(gguf.GGUFReader(path, "r+"), Namespace(order="big", dry_run=False))
    after = read(path)
    assert (after.config, after.metadata) == (before.config, before.metadata)
    for name, found in after.tensors.items():
        assert found.shape == before.tensors[name].shape
        if kind == "Q8_0" and not name.endswith("norm.weight"):
            assert found.dtype.opaque
        else:
            assert found.dtype == before.tensors[name].dtype
            assert np.array_equal(found.read_all(), values[name])


def test_tensors_can_be_sent_elsewhere(everything: tuple[Path, bool]) -> None:
    tensors = read(everything[0]).tensors
    for name, tensor in pickle.loads(pickle.dumps(tensors)).items():
        assert tensor == tensors[name]
        assert np.array_equal(tensor.read_all(), tensors[name].read_all(), equal_nan=True)


def fill_with_keys(writer: gguf.GGUFWriter) -> None:
    writer.add_name("a name")
    writer.add_file_type(15)
    writer.add_quantization_version(2)
    writer.add_custom_alignment(64)
    writer.add_block_count(2)
    writer.add_context_length(4096)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length([96, 96])
    writer.add_head_count([4, 4])
    writer.add_head_count_kv([4, 2])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(500000.0)
    writer.add_key_length(8)
    writer.add_expert_count(8)
    writer.add_expert_used_count(2)
    writer.add_sliding_window(1024)
    writer.add_token_list([f"t{i}" for i in range(77)])
    writer.add_token_scores([0.5] * 77)
    writer.add_chat_template("{{ x }}" * 1000)
    writer.add_uint8("n.u8", 255)
    writer.add_int8("n.i8", -128)
    writer.add_uint16("n.u16", 65535)
    writer.add_int16("n.i16", -2)
    writer.add_int32("n.i32", -3)
    writer.add_uint64("n.u64", 2**63)
    writer.add_int64("n.i64", -(2**62))
    writer.add_float64("n.f64", 0.1)
    writer.add_float32("n.f32", 0.1)
    writer.add_bool("n.bool", True)
    writer.add_tensor("token_embd.weight", np.ones((77, 32), np.float32))
    writer.add_tensor("blk.0.attn_q.weight", np.ones((3,), np.float16))


@pytest.mark.parametrize("order", [LITTLE, BIG])
def test_keys(tmp_path: Path, order: gguf.GGUFEndian) -> None:
    found = read(write(tmp_path / "k.gguf", fill_with_keys, order))
    assert found.format == "gguf"
    assert found.config == {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "max_position_embeddings": 4096,
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000.0,
        "head_dim": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": 1024,
        "vocab_size": 77,
        "tie_word_embeddings": True,
    }
    said = found.metadata
    assert said["general.name"] == "a name"
    assert said["general.file_type"] == "15 (Q4_K_M)"
    assert said["general.quantization_version"] == "2"
    assert said["tokenizer.ggml.tokens"] == "77 texts"
    assert said["tokenizer.ggml.scores"] == "77 numbers"
    assert said["llama.attention.head_count_kv"] == "4, 2"
    assert said["tokenizer.chat_template"] == "{{ x }}" * 142 + "{{ x }" + "… (7000 bytes)"
    numbers = {key: said[f"n.{key}"] for key in ("u8", "i8", "u16", "i16", "i32", "u64", "i64", "f64", "f32", "bool")}
    assert numbers == {
        "u8": "255", "i8": "-128", "u16": "65535", "i16": "-2", "i32": "-3", "u64": str(2**63),
        "i64": str(-(2**62)), "f64": "0.1", "f32": "0.1", "bool": "True",
    }  # fmt: skip
    assert all(tensor.offset % 64 == 0 for tensor in found.tensors.values())


def test_file_types_are_those_of_the_package() -> None:
    theirs = {kind.value: kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType}
    assert theirs | _FILE_TYPES == theirs
    assert set(theirs) - set(_FILE_TYPES) == {gguf.LlamaFileType.GUESSED}


def test_heads_of_their_own_are_not_tied(tmp_path: Path) -> None:
    path = llama_as_gguf(tmp_path / "m.gguf", transformer(layers=1), 4, 4)
    assert "tie_word_embeddings" not in read(path).config
    state = transformer(layers=1)
    del state["lm_head.weight"]
    assert read(llama_as_gguf(path, state, 4, 4)).config["tie_word_embeddings"] is True

    # of several files, one does not tell what the others hold
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_uint16("split.count", 2)
        writer.add_tensor("token_embd.weight", np.ones((3, 4), np.float32))

    assert "tie_word_embeddings" not in read(write(path, fill)).config


def test_vocabulary_without_weights(tmp_path: Path) -> None:
    found = read(write(tmp_path / "v.gguf", lambda writer: writer.add_token_list(["a", "b"])))
    assert found.tensors == {}
    assert found.config == {"model_type": "llama", "vocab_size": 2}


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_a_llama(tmp_path: Path, kind: str) -> None:
    state = transformer(layers=2)
    found = open_container(StoredFile.at(llama_as_gguf(tmp_path / "m.gguf", state, 4, 2, kind)))
    assert found.config | {"vocab_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2} == found.config
    assert len(found.tensors) == len(state)
    queries = found.tensors["blk.1.attn_q.weight"]
    wanted = permuted(state["model.layers.1.self_attn.q_proj.weight"], 4)
    assert queries.dtype.name == kind.lower()
    # all values are bf16 numbers; of float16 only the smallest lose bits
    bound = {"F32": 0, "BF16": 0, "F16": 2**-24, "Q8_0": 0.01, "Q4_0": 0.1}[kind]
    assert np.abs(queries.read_all() - wanted).max() <= bound
    assert found.tensors["output_norm.weight"].dtype.name == "f32"


def test_a_gpt2(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    shapes = {
        "wte.weight": (50, 64), "wpe.weight": (20, 64), "h.0.ln_1.weight": (64,), "h.0.ln_1.bias": (64,),
        "h.0.attn.c_attn.weight": (64, 192), "h.0.attn.c_attn.bias": (192,), "h.0.attn.c_proj.weight": (64, 64),
        "h.0.mlp.c_fc.weight": (64, 256), "h.0.mlp.c_proj.weight": (256, 64), "ln_f.weight": (64,),
    }  # fmt: skip
    state = {name: draw.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    found = read(gpt2_as_gguf(tmp_path / "g.gguf", state, 4, "F32"))
    assert found.config["layer_norm_epsilon"] == 1e-5
    assert found.config["tie_word_embeddings"] is True
    assert np.array_equal(found.tensors["blk.0.attn_qkv.weight"].read_all(), state["h.0.attn.c_attn.weight"].T)
    assert np.array_equal(found.tensors["position_embd.weight"].read_all(), state["wpe.weight"])


def test_the_package_is_only_needed_for_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "e.gguf", fill_with_everything)
    for module in [name for name in sys.modules if name.partition(".")[0] == "gguf"]:
        monkeypatch.setitem(sys.modules, module, None)
    tensors = read(path).tensors
    assert tensors["Q4_K.3x256"].read_all().shape == (3, 256)
    with pytest.raises(MissingPackageError) as caught:
        tensors["IQ2_XS.3x256"].read_all()
    assert str(caught.value) == "Dequantizing IQ2_XS needs gguf: pip install 'diffai-jupyter[gguf]'"


class Counted(Storage):
    """A file that counts how often and how much it is asked for."""

    def __init__(self, file: Storage) -> None:
        self.file, self.path, self.size = file, file.path, file.size
        self.reads = self.bytes = 0

    def read(self, offset: int, count: int) -> Any:
        self.reads += 1
        self.bytes += count
        return self.file.read(offset, count)


def test_a_large_vocabulary_takes_few_reads_and_little_memory(tmp_path: Path) -> None:
    words = b"".join(text((b"token-%07d" % i) * (i % 3)) for i in range(300_000))
    keys = [
        key("general.architecture", 8, text("llama")),
        key("tokenizer.ggml.tokens", 9, listed(8, 300_000, words)),
        key("tokenizer.ggml.scores", 9, listed(6, 300_000, bytes(1_200_000))),
    ]
    path = tmp_path / "v.gguf"
    path.write_bytes(packed(keys, [info("w", (2, 3))], bytes(64)))
    file = Counted(StoredFile.at(path))
    del words, keys
    tracemalloc.start()
    found = read_gguf(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.config["vocab_size"] == 300_000
    assert list(found.tensors) == ["w"]
    assert file.reads < 16
    assert peak < 16 << 20


def test_a_hundred_thousand_tensors(tmp_path: Path) -> None:
    infos = [info(f"blk.{i}.attn_q.weight", (2, 3), offset=32 * i) for i in range(100_000)]
    path = tmp_path / "many.gguf"
    path.write_bytes(packed([], infos, bytes(3_200_000)))
    file = Counted(StoredFile.at(path))
    assert len(read_gguf(file).tensors) == 100_000
    assert file.reads < 16


def test_by_hand(tmp_path: Path) -> None:
    lists = listed(9, 3, 2 * listed(4, 2, bytes(8)) + listed(8, 1, text("x")))
    keys = [
        key("a", 9, lists), key("b", 9, nested(5)), key("c", 8, text(b"\xff\xfe")), key("d", 9, listed(8, 0)),
        key("e", 7, b"\x02"), key("f", 6, struct.pack("<f", np.nan)), key("g", 12, struct.pack("<d", np.inf)),
    ]  # fmt: skip
    values = np.arange(6, dtype="<f4")
    infos = [
        info("w", (3, 2)), info("s", (), offset=32), info("none", (4, 0), offset=64), info("", (1,), 26, 64),
    ]  # fmt: skip
    payload = values.tobytes().ljust(32, b"\0") + struct.pack("<f", 7.5).ljust(32, b"\0") + struct.pack("<i", -9)
    path = tmp_path / "hand.gguf"
    for version in (2, 3):
        path.write_bytes(packed(keys, infos, payload, version=version))
        found = read(path)
        assert np.array_equal(found.tensors["w"].read_all(), values.reshape(2, 3))
        assert found.tensors["s"].shape == ()
        assert found.tensors["s"].read_all().tolist() == [[7.5]]
        assert found.tensors["none"].shape == (0, 4)
        assert found.tensors[""].read_all().tolist() == [[-9]]
        assert found.metadata == {
            "a": "3 lists", "b": "1 list", "c": "��", "d": "0 texts", "e": "True", "f": "nan", "g": "inf",
        }
        assert found.config == {}
