"""Adapters by name and configuration, against products that NumPy multiplies out."""

from __future__ import annotations

import json
import math
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import to_codes, write_safetensors

from diffai_jupyter.checkpoint.dtypes import DTYPES, dtype_of
from diffai_jupyter.checkpoint.quantized import Product, Undecoded
from diffai_jupyter.checkpoint.tensor import ArrayTensor, Strided
from diffai_jupyter.readers import open_checkpoint
from diffai_jupyter.readers.layouts import grouped
from diffai_jupyter.readers.layouts.adapters import modules
from diffai_jupyter.readers.layouts.module import Hints

Arrays = dict[str, np.ndarray]


def arrays(seed: int = 0, **shapes: tuple[int, ...]) -> Arrays:
    draw = np.random.default_rng(seed)
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def tensors_of(state: Arrays) -> dict[str, ArrayTensor]:
    return {name: ArrayTensor(array, dtype_of(array), (name,)) for name, array in state.items()}


def found_in(state: Arrays, config: Any = None, metadata: dict[str, str] | None = None) -> dict[str, Any]:
    hints = Hints({} if config is None else {"adapter_config": config}, metadata or {})
    return {module.name: module.tensor for module in modules(tensors_of(state), hints)}


def peft(module: str = "m", rank: int = 4, **more: np.ndarray) -> Arrays:
    a, b = arrays(A=(rank, 24), B=(16, rank)).values()
    return {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b, **more}


def multiplied(b: np.ndarray, a: np.ndarray, scale: float) -> np.ndarray:
    up = b.reshape(b.shape[0], -1).astype(np.float64)
    return scale * (up @ a.reshape(a.shape[0], -1).astype(np.float64))


@pytest.mark.parametrize("adapter", ["", ".default"])
@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"r": 4, "lora_alpha": 8}, 2.0),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0),
        ({"r": 4, "lora_alpha": 8, "use_rslora": False}, 2.0),
        ({"r": 4, "lora_alpha": 0.5}, 0.125),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"q_proj": 16}}, 4.0),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"proj": 16, "^q_proj": 2}}, 2.0),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {r"layers\.0\.q_proj": 16}}, 4.0),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"^layers.0.q_proj": 1, "q_proj": 3}}, 0.25),
        ({"r": 64, "lora_alpha": 8, "rank_pattern": {"q_proj": 4}}, 2.0),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True, "alpha_pattern": {"q_proj": 3}}, 1.5),
    ],
)
def test_peft_scale(adapter: str, config: dict[str, Any], scale: float) -> None:
    module = "base_model.model.layers.0.q_proj"
    a, b = arrays(A=(4, 24), B=(16, 4)).values()
    state = {f"{module}.lora_A{adapter}.weight": a, f"{module}.lora_B{adapter}.weight": b}
    (found,) = found_in(state, config).values()
    assert isinstance(found, Product)
    assert (found.shape, found.rank, found.scale, found.is_stated) == ((16, 24), 4, scale, True)
    assert np.allclose(found.read_all(), multiplied(b, a, scale), rtol=1e-12, atol=0)
    assert found.dtype.name == "lora_f32"
    assert set(found.parts) == set(state)
    assert found.nbytes == a.nbytes + b.nbytes


@pytest.mark.parametrize(
    "config",
    [
        None,
        {},
        {"r": 4},
        {"r": 4, "lora_alpha": None},
        {"r": 4, "lora_alpha": "8"},
        {"r": 4, "lora_alpha": True},
        {"r": 4, "lora_alpha": math.inf},
        {"r": 4, "lora_alpha": 10**400},
        {"r": 4, "lora_alpha": 8, "alpha_pattern": {"(.*)+proj": 16}},
    ],
)
def test_a_scale_that_nothing_states_is_marked(config: Any) -> None:
    (found,) = found_in(peft("base_model.model.q_proj"), config).values()
    assert isinstance(found, Product)
    assert (found.scale, found.is_stated, found.dtype.packing) == (1.0, False, "LoRA adapter")


def test_a_pattern_is_no_expression_that_is_run():
    names = {f"base_model.model.{'a' * 60}{i}.q_proj": 0 for i in range(50)}
    state: Arrays = {}
    for name in names:
        state |= peft(name)
    start = time.process_time()
    found = found_in(state, {"r": 4, "lora_alpha": 8, "alpha_pattern": {"(a+)+$": 16}})
    assert len(found) == 50
    assert not any(product.is_stated for product in found.values())
    assert time.process_time() - start < 2


def test_a_long_name_is_no_adapter_and_no_burden():
    start = time.process_time()
    assert found_in({"hada_" * 200_000: np.ones(1, np.float32)}) == {}
    assert time.process_time() - start < 2


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int64])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_kohya_with_alpha(kind: type, shape: tuple[int, ...]) -> None:
    down, up = arrays(down=(4, 24), up=(16, 4)).values()
    name = "lora_unet_down_blocks_0_attentions_0_to_q"
    state = {
        f"{name}.lora_down.weight": down,
        f"{name}.lora_up.weight": up,
        f"{name}.alpha": np.full(shape, 2, kind),
    }
    (found,) = found_in(state).items()
    assert found[0] == f"{name}.lora"
    assert found[1].scale == 0.5
    assert found[1].is_stated
    assert np.allclose(found[1].read_all(), multiplied(up, down, 0.5), rtol=1e-12, atol=0)
    assert set(found[1].parts) == set(state)


@pytest.mark.parametrize(
    ("up", "down"),
    [
        ("m.lora_up.weight", "m.lora_down.weight"),
        ("m.lora.up.weight", "m.lora.down.weight"),
        ("m_lora.up.weight", "m_lora.down.weight"),
        ("m.lora_linear_layer.up.weight", "m.lora_linear_layer.down.weight"),
        ("unet.m.lora_B.weight", "unet.m.lora_A.weight"),
        ("transformer.m.lora_B.weight", "transformer.m.lora_A.weight"),
    ],
)
def test_without_alpha_rank_counts_as_alpha_where_the_loaders_take_it_so(up: str, down: str) -> None:
    a, b = arrays(A=(4, 24), B=(16, 4)).values()
    ((name, found),) = found_in({up: b, down: a}).items()
    assert name.endswith("m.lora")
    assert found.is_stated
    assert np.allclose(found.read_all(), multiplied(b, a, 1.0), rtol=1e-12, atol=0)


def test_diffusers_keep_the_configuration_in_metadata():
    text = json.dumps({"unet.r": 4, "unet.lora_alpha": 16, "text_encoder.lora_alpha": 2})
    state = peft("unet.m") | peft("text_encoder.m")
    found = found_in(state, metadata={"lora_adapter_metadata": text})
    assert {name: product.scale for name, product in found.items()} == {"unet.m.lora": 4.0, "text_encoder.m.lora": 0.5}
    for damaged in ("[" * 100_000, "{", "[]", '"x"'):
        (product,) = found_in(peft("unet.m"), metadata={"lora_adapter_metadata": damaged}).values()
        assert product.scale == 1.0


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5,)])
def test_convolutions(kernel: tuple[int, ...]) -> None:
    down, up = arrays(down=(4, 6, *kernel), up=(16, 4, *(1 for _ in kernel))).values()
    (found,) = found_in({"c.lora_down.weight": down, "c.lora_up.weight": up}).values()
    assert found.shape == (16, 6, *kernel)
    wanted = np.einsum("or,ri...->oi...", up.reshape(16, 4).astype("f8"), down.astype("f8"))
    assert np.allclose(found.read_all().reshape(wanted.shape), wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("adapter", ["", ".default"])
def test_embeddings_are_transposed(adapter: str) -> None:
    a, b = arrays(A=(4, 100), B=(16, 4)).values()
    state = {f"e.lora_embedding_A{adapter}": a, f"e.lora_embedding_B{adapter}": b}
    (found,) = found_in(state, {"r": 4, "lora_alpha": 4}).values()
    assert found.shape == (100, 16)
    assert np.allclose(found.read_all(), multiplied(b, a, 1.0).T, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"m.lora_magnitude_vector": (16,)}, "DoRA"),
        ({"m.lora_magnitude_vector.default.weight": (16,)}, "DoRA"),
        ({"m.dora_scale": (16, 1)}, "DoRA"),
        ({"m.lora_E": (4, 1)}, "AdaLoRA"),
        ({"m.lora_mid.weight": (4, 4, 3, 3)}, "CP"),
    ],
)
def test_kinds_beside_lora_are_kept_whole(more: dict[str, tuple[int, ...]], word: str) -> None:
    state = peft() | {name: np.ones(shape, np.float32) for name, shape in more.items()}
    (found,) = found_in(state).values()
    assert isinstance(found, Undecoded)
    assert set(found.parts) == set(state)
    assert word in found.dtype.opaque


@pytest.mark.parametrize(
    ("names", "word"),
    [
        (("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "alpha"), "LoHa"),
        (("hada_w1_a.default", "hada_w1_b.default", "hada_w2_a.default", "hada_w2_b.default"), "LoHa"),
        (("lokr_w1", "lokr_w2_a", "lokr_w2_b", "alpha"), "LoKr"),
        (("ia3_l",), "IA3"),
        (("ia3_l.default",), "IA3"),
    ],
)
def test_other_kinds_are_kept_whole(names: tuple[str, ...], word: str) -> None:
    state = {f"m.{name}": np.ones((4, 1), np.float32) for name in names}
    ((name, found),) = found_in(state).items()
    assert name == "m.lora"
    assert isinstance(found, Undecoded)
    assert set(found.parts) == set(state)
    assert word in found.dtype.opaque


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (arrays(**{"m.lora_A.weight": (4, 24), "m.lora_B.weight": (16, 5)}), "no product"),
        (arrays(**{"m.lora_A.weight": (24,), "m.lora_B.weight": (16, 5)}), "no product"),
        (arrays(**{"m.lora_A.weight": (0, 24), "m.lora_B.weight": (16, 0)}), "no product"),
        (arrays(**{"m.lora_down.weight": (4, 24), "m.lora_up.weight": (16, 4), "m.alpha": (3,)}), "alpha"),
        ({name: value.astype(np.int8) for name, value in peft().items()}, "int8|i8"),
    ],
)
def test_factors_that_cannot_be_multiplied_are_kept_with_the_reason(state: Arrays, words: str) -> None:
    (found,) = found_in(state).values()
    assert isinstance(found, Undecoded)
    assert any(word in found.dtype.opaque for word in words.split("|"))


def test_another_rank_than_configured_is_not_guessed_at():
    (found,) = found_in(peft("experts", rank=8), {"r": 2, "lora_alpha": 4}).values()
    assert isinstance(found, Undecoded)
    assert "experts" in found.dtype.opaque


def test_alone_or_unrelated_tensors_are_passed_over():
    state = arrays(
        **{
            "m.lora_A.weight": (4, 24), "n.lora_B.bias": (16,), "snake.alpha": (1,), "k.weight": (3, 3),
            "explorative.weight": (2, 2), "p.lora_A": (2, 2),
        }
    )
    assert found_in(state) == {}
    assert set(grouped(tensors_of(state), {}, {})) == set(state)


def test_names_do_not_collide_with_weights_or_other_adapters():
    state = peft("m", **{"m.weight": np.ones((16, 24), np.float32)})
    state |= {name.replace(".weight", ".second.weight"): value + 1 for name, value in peft("m").items()}
    made = grouped(tensors_of(state), {}, {})
    assert sorted(made) == ["m.lora", "m.lora.second", "m.weight"]
    assert sorted(part for tensor in made.values() for part in tensor.parts) == sorted(state)


def test_a_name_that_is_taken_stays_with_its_tensor():
    state = peft("m", **{"m.lora": np.ones(3, np.float32)})
    made = grouped(tensors_of(state), {}, {})
    assert sorted(made) == sorted(state)


def test_expanded_factors_are_not_multiplied_out(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", {"x": ("F32", np.ones(4, np.float32))})
    file = open_checkpoint(path).files[0]
    huge = {
        "m.lora_A.weight": Strided(file, 0, (1 << 30, 1 << 30), DTYPES["f32"], ("a",), (0, 0)),
        "m.lora_B.weight": Strided(file, 0, (1 << 30, 1 << 30), DTYPES["f32"], ("b",), (0, 0)),
    }
    assert list(modules(huge, Hints())) == []


def test_a_block_is_the_same_bits_however_it_is_cut():
    a, b = arrays(A=(7, 300), B=(90, 7)).values()
    product = Product(*tensors_of({"b": b, "a": a}).values(), 0.7)
    whole = product.read_all()
    for rows, cols in (((0, 1), (0, 300)), ((3, 77), (5, 299)), ((88, 90), (299, 300)), ((10, 11), (40, 45))):
        assert product.read(rows, cols).tobytes() == whole[slice(*rows), slice(*cols)].tobytes()
    rows, cols = np.divmod(np.arange(0, whole.size, 13), 300)
    assert product.read_at(rows, cols).tobytes() == whole[rows, cols].tobytes()
    assert product.read((0, 0), (0, 300)).shape == (0, 300)


def test_products_travel():
    (product,) = found_in(peft() | {"m.alpha": np.array(2.0, np.float32)}).values()
    again = pickle.loads(pickle.dumps(product))
    assert np.array_equal(again.read_all(), product.read_all())


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_a_folder_is_read_with_its_configuration(tmp_path: Path, dtype: str) -> None:
    state = peft("base_model.model.m")
    stored = {name: (dtype.upper(), to_codes(dtype, value)) for name, value in state.items()}
    write_safetensors(tmp_path / "adapter_model.safetensors", stored)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 6, "peft_type": "LORA"}))
    (found,) = open_checkpoint(tmp_path).tensors.values()
    a, b = (DTYPES[dtype].decode(codes) for _, codes in stored.values())
    assert found.dtype.name == f"lora_{dtype}"
    assert np.allclose(found.read_all(), multiplied(b, a, 1.5), rtol=1e-12, atol=0)


@pytest.mark.parametrize("step", [1, 3, 7, 64, 1000])
def test_all_bytes_of_what_is_kept_whole_are_compared(step: int) -> None:
    state = {
        "m.hada_w1_a": np.arange(10, dtype=np.float32).reshape(5, 2),
        "m.hada_w1_b": np.arange(6, dtype=np.float16).reshape(2, 3),
        "m.alpha": np.array(3, np.int64),
    }
    (found,) = found_in(state).values()
    wanted = b"".join(state[name].tobytes() for name in ("m.alpha", "m.hada_w1_a", "m.hada_w1_b"))
    assert found.grid == (1, len(wanted))
    starts = range(0, len(wanted), step)
    pieces = [found.codes((0, 1), (i, min(i + step, len(wanted)))) for i in starts]
    assert np.concatenate(pieces, axis=1).tobytes() == wanted
    assert found.read((0, 1), (0, 0)).shape == (1, 0)
