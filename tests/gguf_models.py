"""GGUF files of whole models, as llama.cpp's converter writes them: `from gguf_models import llama_as_gguf`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

State = Mapping[str, np.ndarray]

_BLOCK = re.compile(r"\.(\d+)\.")
_CONV1D = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
_MASKS = (".attn.bias", ".attn.masked_bias")


def llama_as_gguf(
    path: Path, state: State, heads: int, kv_heads: int, kind: str = "F16", is_big_endian: bool = False
) -> Path:
    """Write a Llama-like state with names of Hugging Face, the rows of queries and keys in rotary pairs.

    `kind` is the type of the matrices: F32, F16, BF16 or one that the gguf package can quantize to. Where rows
    are no whole blocks, F16 is taken, as the converter does. Norms and vectors are F32.
    """
    vocab, hidden = state["model.embed_tokens.weight"].shape
    writer = _writer(path, "llama", kind, is_big_endian)
    writer.add_block_count(_depth(state))
    writer.add_context_length(2048)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(state["model.layers.0.mlp.gate_proj.weight"].shape[0])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"token {i}" for i in range(vocab)])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, _depth(state))
    for name, values in state.items():
        if name.endswith("q_proj.weight"):
            values = permuted(values, heads)
        elif name.endswith("k_proj.weight"):
            values = permuted(values, kv_heads)
        _add(writer, _gguf_name(names, name), values, kind)
    return _written(writer)


def gpt2_as_gguf(path: Path, state: State, heads: int, kind: str = "F16", is_big_endian: bool = False) -> Path:
    """Write a GPT-2 state with names of Hugging Face: Conv1D weights are turned, q, k and v stay fused."""
    bare = {name.removeprefix("transformer."): values for name, values in state.items()}
    hidden = bare["wte.weight"].shape[1]
    writer = _writer(path, "gpt2", kind, is_big_endian)
    writer.add_block_count(_depth(bare))
    writer.add_context_length(bare["wpe.weight"].shape[0])
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(4 * hidden)
    writer.add_head_count(heads)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"token {i}" for i in range(bare["wte.weight"].shape[0])])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, _depth(bare))
    for name, values in bare.items():
        if not name.endswith(_MASKS):
            turned = values.T if name.endswith(_CONV1D) else values
            _add(writer, _gguf_name(names, name), turned, "F32" if name == "wpe.weight" else kind)
    return _written(writer)


def permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """Put the rows of each head in pairs (i, i + size/2)."""
    pairs = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _writer(path: Path, architecture: str, kind: str, is_big_endian: bool) -> gguf.GGUFWriter:
    order = gguf.GGUFEndian.BIG if is_big_endian else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(path, architecture, endianess=order)
    writer.add_name(path.stem)
    found = [each for each in gguf.LlamaFileType if each.name in (f"ALL_{kind}", f"MOSTLY_{kind}")]
    writer.add_file_type(found[0] if found else gguf.LlamaFileType.GUESSED)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    return writer


def _depth(state: State) -> int:
    return 1 + max(int(match[1]) for name in state if (match := _BLOCK.search(name)))


def _gguf_name(names: gguf.TensorNameMap, name: str) -> str:
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        msg = f"the converter knows no tensor {name}"
        raise ValueError(msg)
    return found


def _add(writer: gguf.GGUFWriter, name: str, values: np.ndarray, kind: str) -> None:
    if values.ndim < 2:
        kind = "F32"
    values = np.ascontiguousarray(values, dtype=np.float32)
    number = gguf.GGMLQuantizationType[kind]
    if values.shape[-1] % gguf.GGML_QUANT_SIZES[number][0]:
        number = gguf.GGMLQuantizationType.F16
    writer.add_tensor(name, gguf.quants.quantize(values, number), raw_dtype=number)


def _written(writer: gguf.GGUFWriter) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path = writer.path
    if path is None:
        msg = "the writer has a path"
        raise ValueError(msg)
    return path
