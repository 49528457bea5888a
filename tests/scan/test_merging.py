"""Adapters against models: names, shapes and notes, against weights that NumPy merged."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import checkpoint_of, to_codes, transformer, write_safetensors

from diffai_jupyter.checkpoint.dtypes import DTYPES
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.quantized import Merged
from diffai_jupyter.comparison import compare
from diffai_jupyter.facts.change.changes import Status, changes
from diffai_jupyter.facts.change.update_type import Kind, update_type
from diffai_jupyter.readers.layouts import grouped
from diffai_jupyter.scan.merging import is_adapter, reconcile, with_adapter
from diffai_jupyter.wording import say

State = dict[str, np.ndarray]
RANK = 3


def adapter_of(state: State, config: Mapping[str, Any] | None = None) -> Checkpoint:
    """Return an adapter as a reader would open it."""
    found = {} if config is None else {"adapter_config": dict(config)}
    plain = checkpoint_of(state, config=found)
    return Checkpoint("adapter", "live", grouped(plain.tensors, found, {}), config=found)


def factors(rows: int, cols: int, seed: int = 0, rank: int = RANK) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return (draw.normal(0, 0.05, (rows, rank)).astype("f4"), draw.normal(0, 0.5, (rank, cols)).astype("f4"))


def lora(state: State, wanted: str, prefix: str = "base_model.model.") -> State:
    """Return PEFT's factors for the weights whose names hold `wanted`."""
    found: State = {}
    for i, (name, weight) in enumerate(state.items()):
        if wanted in name:
            module = prefix + name.removesuffix(".weight")
            found[f"{module}.lora_B.weight"], found[f"{module}.lora_A.weight"] = factors(*weight.shape, i)
    return found


def merged(state: State, adapter: State, scale: float, prefix: str = "base_model.model.") -> State:
    """Return the weights with the factors multiplied out and added, in float64."""
    found = dict(state)
    for name, up in adapter.items():
        if name.endswith(".lora_B.weight"):
            weight = name.removeprefix(prefix).replace(".lora_B", "")
            down = adapter[name.replace("lora_B", "lora_A")]
            found[weight] = state[weight] + scale * (up.astype("f8") @ down.astype("f8"))
    return found


def notes_of(checkpoint: Checkpoint, is_warning: bool) -> list[str]:
    return [say(note.template, note.said) for note in checkpoint.notes if note.is_warning is is_warning]


def save(path: Path, state: State, dtype: str = "f32") -> Path:
    write_safetensors(path, {name: (dtype.upper(), to_codes(dtype, value)) for name, value in state.items()})
    return path.parent


CONFIG = {"r": RANK, "lora_alpha": 2 * RANK, "peft_type": "LORA"}


def test_an_adapter_becomes_its_base_with_it_merged_in():
    state = transformer()
    update = lora(state, "q_proj")
    base, adapter = checkpoint_of(state), adapter_of(update, CONFIG)
    assert is_adapter(adapter)
    assert not is_adapter(base)
    a, b = reconcile(base, adapter)
    assert a is base
    wanted = merged(state, update, 2.0)
    assert list(b.tensors) == list(base.tensors)
    for name, tensor in b.tensors.items():
        if "q_proj" in name:
            assert isinstance(tensor, Merged)
            assert np.allclose(tensor.read_all(), wanted[name], rtol=1e-14, atol=1e-15)
        else:
            assert tensor is base.tensors[name]
    assert notes_of(b, False) == [
        "This is an adapter (LoRA, rank 3, 3 modules); it was compared as A with the adapter merged in."
    ]
    assert notes_of(b, True) == []


def test_the_other_way_round():
    state = transformer()
    base, adapter = checkpoint_of(state), adapter_of(lora(state, "q_proj"), CONFIG)
    a, b = reconcile(adapter, base)
    assert b is base
    assert isinstance(a.tensors["model.layers.0.self_attn.q_proj.weight"], Merged)
    assert notes_of(a, False)[0].startswith("This is an adapter (LoRA, rank 3, 3 modules); it was compared as B with")


def test_two_of_a_kind_stay_as_they_are():
    state = transformer()
    base, adapter = checkpoint_of(state), adapter_of(lora(state, "q_proj"), CONFIG)
    for a, b in ((base, base), (adapter, adapter)):
        found = reconcile(a, b)
        assert found[0] is a
        assert found[1] is b


@pytest.mark.parametrize(
    ("base_prefix", "adapter_prefix"),
    [
        ("", "base_model.model."),
        ("", ""),
        ("model.", "base_model.model."),
        ("", "base_model.model.model."),
        ("module.", "base_model.model."),
        ("model.diffusion_model.", "diffusion_model."),
        ("", "diffusion_model."),
        ("", "transformer."),
    ],
)
def test_prefixes(base_prefix: str, adapter_prefix: str) -> None:
    state = {f"{base_prefix}layers.{i}.q_proj.weight": np.ones((8, 6), np.float32) for i in range(2)}
    update = lora({f"layers.{i}.q_proj.weight": np.ones((8, 6)) for i in range(2)}, "q_proj", adapter_prefix)
    found = with_adapter(checkpoint_of(state), adapter_of(update, CONFIG))
    assert list(found.tensors) == list(state)
    assert all(isinstance(tensor, Merged) for tensor in found.tensors.values())
    for i in range(2):
        up, down = (update[f"{adapter_prefix}layers.{i}.q_proj.lora_{which}.weight"] for which in "BA")
        values = found.tensors[f"{base_prefix}layers.{i}.q_proj.weight"].read_all()
        assert np.allclose(values, 1 + 2 * up.astype("f8") @ down, atol=1e-6)


def kohya(*names: str, shape: tuple[int, int] = (8, 6)) -> State:
    found: State = {}
    for i, name in enumerate(names):
        found[f"{name}.lora_up.weight"], found[f"{name}.lora_down.weight"] = factors(*shape, i)
        found[f"{name}.alpha"] = np.array(RANK, np.float32)
    return found


def test_kohya_names_meet_the_components_of_a_pipeline():
    modules = {
        "lora_unet_down_blocks_0_attentions_1_to_q": "unet/down_blocks.0.attentions.1.to_q.weight",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": "text_encoder/text_model.encoder.layers.0.mlp.fc1.weight",
        "lora_te2_text_model_encoder_layers_0_mlp_fc1": "text_encoder_2/text_model.encoder.layers.0.mlp.fc1.weight",
    }
    weights = {name: np.full((8, 6), i, np.float32) for i, name in enumerate(modules.values())}
    update = kohya(*modules)
    found = with_adapter(checkpoint_of(weights), adapter_of(update))
    for i, (module, name) in enumerate(modules.items()):
        up, down = update[f"{module}.lora_up.weight"], update[f"{module}.lora_down.weight"]
        assert np.allclose(found.tensors[name].read_all(), i + up.astype("f8") @ down, atol=1e-6)
    assert notes_of(found, True) == []


def test_kohya_names_meet_a_single_component_and_the_rest_is_listed():
    base = checkpoint_of({"double_blocks.0.img_attn.qkv.weight": np.ones((8, 6), np.float32)})
    update = kohya("lora_unet_double_blocks_0_img_attn_qkv", "lora_te1_text_model_encoder_layers_0_mlp_fc1")
    found = with_adapter(base, adapter_of(update))
    assert isinstance(found.tensors["double_blocks.0.img_attn.qkv.weight"], Merged)
    assert notes_of(found, True) == [
        "1 module of the adapter found no place in A and were left out: lora_te1_text_model_encoder_layers_0_mlp_fc1."
    ]


def test_a_second_text_encoder_is_not_merged_into_the_first():
    weights = {
        "unet/conv.weight": np.ones((8, 6), np.float32),
        "text_encoder/text_model.fc1.weight": np.ones((8, 6), np.float32),
    }
    found = with_adapter(checkpoint_of(weights), adapter_of(kohya("lora_unet_conv", "lora_te2_text_model_fc1")))
    assert not isinstance(found.tensors["text_encoder/text_model.fc1.weight"], Merged)
    assert len(notes_of(found, True)) == 1


def test_names_that_fit_twice_fit_nowhere():
    weights = {name: np.ones((8, 6), np.float32) for name in ("a_b.c.weight", "a.b_c.weight", "d.weight")}
    found = with_adapter(checkpoint_of(weights), adapter_of(kohya("lora_unet_a_b_c", "lora_unet_d")))
    assert [name for name, tensor in found.tensors.items() if isinstance(tensor, Merged)] == ["d.weight"]


@pytest.mark.parametrize(("shape", "flag", "is_turned"), [
    ((6, 8), False, True), ((6, 8), True, True), ((8, 6), False, False), ((8, 6), True, False),
    ((8, 8), False, False), ((8, 8), True, True),
])
def test_weights_that_store_inputs_first_are_turned(shape: tuple[int, int], flag: bool, is_turned: bool) -> None:
    rows, cols = shape[::-1] if is_turned else shape
    up, down = factors(rows, cols)
    update = {"base_model.model.h.lora_B.weight": up, "base_model.model.h.lora_A.weight": down}
    base = checkpoint_of({"h.weight": np.zeros(shape, np.float32)})
    found = with_adapter(base, adapter_of(update, {**CONFIG, "fan_in_fan_out": flag}))
    product = 2 * up.astype("f8") @ down
    assert np.allclose(found.tensors["h.weight"].read_all(), product.T if is_turned else product, atol=1e-6)


def test_convolutions_and_embeddings():
    down = np.random.default_rng(0).normal(size=(RANK, 4, 3, 3)).astype("f4")
    up = np.random.default_rng(1).normal(size=(8, RANK, 1, 1)).astype("f4")
    table_b, table_a = factors(8, 20)
    update = {
        "base_model.model.c.lora_A.weight": down,
        "base_model.model.c.lora_B.weight": up,
        "base_model.model.e.lora_embedding_A": table_a,
        "base_model.model.e.lora_embedding_B": table_b,
    }
    base = checkpoint_of({"c.weight": np.zeros((8, 4, 3, 3), np.float32), "e.weight": np.zeros((20, 8), np.float32)})
    found = with_adapter(base, adapter_of(update, {**CONFIG, "fan_in_fan_out": True}))
    wanted = 2 * np.einsum("or,rihw->oihw", up[:, :, 0, 0].astype("f8"), down)
    assert found.tensors["c.weight"].shape == (8, 4, 3, 3)
    assert np.allclose(found.tensors["c.weight"].read_all(), wanted.reshape(8, -1), atol=1e-6)
    assert np.allclose(found.tensors["e.weight"].read_all(), 2 * (table_b.astype("f8") @ table_a).T, atol=1e-6)


def test_whole_tensors_of_the_adapter_replace_those_of_the_base():
    state = transformer()
    head = np.ones_like(state["lm_head.weight"])
    update = lora(state, "q_proj")
    update |= {
        "base_model.model.lm_head.modules_to_save.weight": head,
        "base_model.model.model.norm.weight": np.full(64, 2, np.float32),
        "base_model.model.score.weight": np.ones((2, 64), np.float32),
    }
    found = with_adapter(checkpoint_of(state), adapter_of(update, CONFIG))
    assert np.array_equal(found.tensors["lm_head.weight"].read_all(), head)
    assert found.tensors["model.norm.weight"].read_all()[0, 0] == 2
    assert found.tensors["score.weight"].shape == (2, 64)
    notes = notes_of(found, False)
    assert any("2 tensors of A were replaced" in note and "lm_head" in note for note in notes)
    assert any("1 tensor of the adapter are stored whole" in note and "score" in note for note in notes)
    assert notes_of(found, True) == []


def test_an_embedding_that_was_resized_is_adapted_as_the_adapter_stores_it():
    b, a = factors(8, 22)
    table = np.ones((22, 8), np.float32)
    update = {
        "base_model.model.embed_tokens.lora_embedding_A": a,
        "base_model.model.embed_tokens.lora_embedding_B": b,
        "base_model.model.embed_tokens.base_layer.weight": table,
    }
    base = checkpoint_of({"embed_tokens.weight": np.ones((20, 8), np.float32), "w": np.ones(3)})
    found = with_adapter(base, adapter_of(update, CONFIG))
    assert np.allclose(found.tensors["embed_tokens.weight"].read_all(), 1 + 2 * (b.astype("f8") @ a).T, atol=1e-6)


def test_what_cannot_be_merged_is_listed():
    state = transformer(layers=2)
    update = lora(state, "q_proj")
    update |= {"base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias": np.ones(64, np.float32)}
    update |= {
        f"base_model.model.gone.lora_{x}.weight": y for x, y in zip("BA", factors(64, 64), strict=True)
    }
    update |= {
        f"base_model.model.lm_head.lora_{x}.weight": y for x, y in zip("BA", factors(5, 7), strict=True)
    }
    update["base_model.model.model.layers.0.mlp.up_proj.ia3_l"] = np.ones((160, 1), np.float32)
    found = with_adapter(checkpoint_of(state), adapter_of(update, CONFIG))
    first, second = notes_of(found, True)
    assert first.startswith("2 modules of the adapter found no place in A")
    assert "gone" in first
    assert "lm_head" in first
    assert second.startswith("2 tensors of the adapter are no LoRA factors")
    assert "lora_B.bias" in second
    assert "up_proj.lora" in second


def test_an_adapter_without_any_place_stays_itself():
    adapter = adapter_of(lora(transformer(), "q_proj"), CONFIG)
    base = checkpoint_of({"conv.weight": np.ones((3, 3), np.float32)})
    a, b = reconcile(base, adapter)
    assert a is base
    assert list(b.tensors) == list(adapter.tensors)
    assert "none of its modules has a place in A" in notes_of(b, True)[0]


def test_a_scale_that_is_not_stated_is_a_warning():
    state = transformer()
    adapter = adapter_of(lora(state, "q_proj"))
    for _, b in (reconcile(checkpoint_of(state), adapter), reconcile(adapter, adapter)):
        said = "Nothing says the scale (alpha over rank) of 3 of 3 modules of the adapter; 1 was taken."
        assert any(note.startswith(said) for note in notes_of(b, True))


def test_a_start_that_changes_the_base_is_a_warning():
    state = transformer()
    adapter = adapter_of(lora(state, "q_proj"), {**CONFIG, "init_lora_weights": "pissa_niter_4"})
    found = with_adapter(checkpoint_of(state), adapter)
    assert any("pissa_niter_4" in note for note in notes_of(found, True))


def test_adapters_that_are_not_decoded_are_not_merged():
    state = {f"lora_unet_a.hada_w{i}_{x}": np.ones((4, 4), np.float32) for i in (1, 2) for x in "ab"}
    base = checkpoint_of({"a.weight": np.ones((4, 4), np.float32)})
    a, b = reconcile(base, adapter_of(state))
    assert a is base
    assert "LoHa" in notes_of(b, True)[0]
    assert not any(isinstance(tensor, Merged) for tensor in b.tensors.values())
    assert reconcile(b, b)[0] is b


def test_a_model_that_carries_its_adapter_is_merged():
    state = transformer()
    update = lora(state, "q_proj")
    carried: State = dict(update)
    for name, weight in state.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        carried[f"{module}.base_layer.weight" if "q_proj" in name else f"{module}.weight"] = weight
    carried["base_model.model.lm_head.original_module.weight"] = carried.pop("base_model.model.lm_head.weight")
    carried["base_model.model.lm_head.modules_to_save.default.weight"] = state["lm_head.weight"] + 1
    _, b = reconcile(checkpoint_of(state), adapter_of(carried, CONFIG))
    wanted = merged(state, update, 2.0)
    assert list(b.tensors) == sorted(f"base_model.model.{name}" for name in state)
    for name, tensor in b.tensors.items():
        plain = name.removeprefix("base_model.model.")
        difference = 1 if plain == "lm_head.weight" else 0
        assert np.allclose(tensor.read_all().reshape(wanted[plain].shape), wanted[plain] + difference, atol=1e-12)
    assert notes_of(b, False) == [
        "B is a model with an adapter (LoRA, rank 3, 3 modules); it was compared with the adapter merged in."
    ]


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_base_against_adapter_is_low_rank(tmp_path: Path, dtype: str, size: float) -> None:
    state = transformer()
    update = {name: value * size if "lora_B" in name else value for name, value in lora(state, "_proj").items()}
    save(tmp_path / "a" / "model.safetensors", state, dtype)
    save(tmp_path / "b" / "adapter_model.safetensors", update)
    (tmp_path / "b" / "adapter_config.json").write_text(json.dumps(CONFIG))
    found = compare(tmp_path / "a", tmp_path / "b")
    kind = update_type(found.pair)
    assert kind.kind is Kind.LOW_RANK
    assert (kind.numbers["low"], kind.numbers["high"], kind.numbers["tensors"]) == (RANK, RANK, 21)
    assert kind.counts == {Status.CHANGED: 21, Status.EQUAL: 9}
    wanted = merged(state, update, 2.0)
    squares = sum(float(((wanted[name] - state[name]) ** 2).sum()) for name in state)
    total = sum(float((state[name].astype("f8") ** 2).sum()) for name in state)
    assert found.report.change.magnitude.value == pytest.approx(math.sqrt(squares / total), rel=1e-9)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_base_against_merged_weights_is_low_rank(tmp_path: Path, dtype: str) -> None:
    state = transformer()
    update = {name: 4 * value for name, value in lora(state, "q_proj").items()}
    save(tmp_path / "a" / "model.safetensors", state, dtype)
    save(tmp_path / "b" / "model.safetensors", merged(state, update, 2.0), dtype)
    kind = update_type(compare(tmp_path / "a", tmp_path / "b").pair)
    assert kind.kind is Kind.LOW_RANK
    assert (kind.numbers["low"], kind.numbers["high"], kind.numbers["tensors"]) == (RANK, RANK, 3)


def test_merged_weights_against_base_and_adapter_are_equal(tmp_path: Path) -> None:
    """What a model with its adapter holds is what merging wrote."""
    state = transformer()
    update = lora(state, "q_proj")
    carried = {f"base_model.model.{name.removesuffix('.weight')}.weight": value for name, value in state.items()}
    for name in [name for name in carried if "q_proj" in name]:
        carried[name.replace(".weight", ".base_layer.weight")] = carried.pop(name)
    save(tmp_path / "a" / "model.safetensors", merged(state, update, 2.0), "f64")
    save(tmp_path / "b" / "model.safetensors", {**carried, **update})
    (tmp_path / "b" / "adapter_config.json").write_text(json.dumps(CONFIG))
    found = compare(tmp_path / "a", tmp_path / "b")
    assert max(change.relative_change for change in changes(found.pair)) < 1e-14


def test_an_adapter_before_its_first_step_changes_nothing(tmp_path: Path) -> None:
    state = transformer()
    update = {name: value * ("lora_B" not in name) for name, value in lora(state, "q_proj").items()}
    save(tmp_path / "a" / "model.safetensors", state, "bf16")
    save(tmp_path / "b" / "adapter_model.safetensors", update)
    (tmp_path / "b" / "adapter_config.json").write_text(json.dumps(CONFIG))
    found = compare(tmp_path / "a", tmp_path / "b")
    assert {change.status for change in changes(found.pair)} == {Status.EQUAL}
    assert update_type(found.pair).is_equal


def test_adapters_of_one_run_in_another_basis_are_equal_but_for_rounding(tmp_path: Path) -> None:
    state = transformer()
    update = lora(state, "q_proj")
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(RANK, RANK)))[0]
    turned = {name: value @ turn if "lora_B" in name else turn.T @ value for name, value in update.items()}
    for folder, factors_of in (("a", update), ("b", turned)):
        save(tmp_path / folder / "adapter_model.safetensors", factors_of)
        (tmp_path / folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    kind = update_type(compare(tmp_path / "a", tmp_path / "b").pair)
    assert kind.kind is Kind.ROUNDING


def test_merged_values_are_not_rounded_to_the_base():
    base = checkpoint_of({"h.weight": np.ones((4, 4), np.float32)})
    update = {"h.lora_up.weight": np.full((4, 1), 1e-9, np.float32), "h.lora_down.weight": np.ones((1, 4), np.float32)}
    tensor = with_adapter(base, adapter_of(update)).tensors["h.weight"]
    assert tensor.dtype is not DTYPES["f32"]
    assert np.all(tensor.read_all() - 1 == pytest.approx(1e-9, rel=1e-6))
