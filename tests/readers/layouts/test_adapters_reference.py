"""Adapters as PEFT writes them, against what PEFT makes of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffai_jupyter.checkpoint.quantized import Product, Undecoded
from diffai_jupyter.facts.change.update_type import Kind, update_type
from diffai_jupyter.readers import open_checkpoint
from diffai_jupyter.readers.layouts.adapters import Setting
from diffai_jupyter.scan.merging import reconcile

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def without_gptq(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep PEFT from importing gptqmodel, which may lie there without what it needs."""
    for name, module in list(sys.modules.items()):
        if name.startswith("peft") and hasattr(module, "is_gptqmodel_available"):
            monkeypatch.setattr(module, "is_gptqmodel_available", lambda: False)


def llama() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config)


def gpt2() -> Any:
    config = transformers.GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=4)
    return transformers.GPT2LMHeadModel(config)


def bert() -> Any:
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16, num_labels=3,
    )
    return transformers.BertForSequenceClassification(config)


def resnet() -> Any:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    return transformers.ResNetModel(config)


CASES = {
    "llama": (llama, {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj", "down_proj"]}),
    "rank-stabilized": (llama, {"r": 4, "lora_alpha": 12, "use_rslora": True, "target_modules": ["q_proj"]}),
    "patterns": (
        llama,
        {
            "r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj", "up_proj"],
            "rank_pattern": {"v_proj": 2, "layers.1.mlp.up_proj": 6},
            "alpha_pattern": {"up_proj": 3, "^model.layers.0.self_attn.q_proj": 7},
        },
    ),
    "embedding and head": (llama, {"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens", "lm_head"]}),
    "inputs first": (gpt2, {"r": 4, "lora_alpha": 8, "fan_in_fan_out": True, "target_modules": ["c_attn", "c_proj"]}),
    "whole tensors": (
        bert,
        {"r": 4, "lora_alpha": 8, "target_modules": ["query"], "modules_to_save": ["classifier"], "bias": "all"},
    ),
    "convolutions": (resnet, {"r": 4, "lora_alpha": 8, "target_modules": ["convolution"]}),
}


def trained(case: str, folder: Path, dtype: str = "float32", size: float = 0.1, **more: Any) -> Any:
    """Save a base and an adapter with random factors; return the model with the adapter."""
    make, said = CASES[case]
    torch.manual_seed(0)
    base = make().to(getattr(torch, dtype))
    base.save_pretrained(folder / "base")
    model = peft.get_peft_model(base, peft.LoraConfig(**{**said, **more}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                parameter.normal_(0, size)
            elif parameter.requires_grad:
                parameter.add_(0.25)
    model.save_pretrained(folder / "adapter")
    return model


@pytest.mark.parametrize("case", CASES)
def test_merging_gives_what_peft_merges(tmp_path: Path, case: str) -> None:
    model = trained(case, tmp_path)
    a, b = reconcile(open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "adapter"))
    wanted = {name: value.numpy() for name, value in model.merge_and_unload().state_dict().items()}
    assert set(b.tensors) == set(a.tensors) <= set(wanted)
    assert not [note for note in b.notes if note.is_warning]
    changed = 0
    for name, tensor in b.tensors.items():
        value = wanted[name].astype(np.float64)
        assert np.allclose(tensor.read_all(), value.reshape(tensor.grid), rtol=1e-5, atol=1e-6), name
        changed += tensor is not a.tensors[name]
    assert changed


@pytest.mark.parametrize("case", CASES)
def test_updates_are_what_peft_computes(tmp_path: Path, case: str) -> None:
    model = trained(case, tmp_path)
    opened = open_checkpoint(tmp_path / "adapter")
    modules = dict(model.named_modules())
    found = {name: tensor for name, tensor in opened.tensors.items() if isinstance(tensor, Product)}
    assert found
    for name, tensor in found.items():
        layer = modules[name.removesuffix(".lora")]
        wanted = layer.get_delta_weight("default").detach().numpy()
        turned = getattr(layer, "fan_in_fan_out", False) and not hasattr(layer, "embedding_dim")
        wanted = wanted.T if turned else wanted
        assert tensor.shape == wanted.shape
        assert np.allclose(tensor.read_all(), wanted.reshape(tensor.grid), rtol=1e-5, atol=1e-6)
        assert tensor.scale == pytest.approx(layer.scaling["default"], rel=1e-15)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_in_memory_carries_its_adapter(tmp_path: Path, dtype: str) -> None:
    model = trained("whole tensors", tmp_path, dtype)
    torch.save(model.state_dict(), tmp_path / "whole.bin")
    safetensors = pytest.importorskip("safetensors.torch")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    (tmp_path / "whole").mkdir()
    safetensors.save_file(state, tmp_path / "whole" / "model.safetensors")
    (tmp_path / "whole" / "adapter_config.json").write_text((tmp_path / "adapter" / "adapter_config.json").read_text())
    _, b = reconcile(open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "whole"))
    wanted = {name: value.float().numpy() for name, value in model.merge_and_unload().state_dict().items()}
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    assert {name.removeprefix("base_model.model.") for name in b.tensors} == set(wanted)
    for name, tensor in b.tensors.items():
        value = wanted[name.removeprefix("base_model.model.")]
        assert np.allclose(tensor.read_all(), value.reshape(tensor.grid), rtol=tolerance, atol=tolerance / 10), name


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (lambda: peft.LoraConfig(r=4, use_dora=True, target_modules=["q_proj"]), "DoRA"),
        (lambda: peft.LoHaConfig(r=4, target_modules=["q_proj"]), "LoHa"),
        (lambda: peft.LoKrConfig(r=4, target_modules=["q_proj"]), "LoKr"),
        (lambda: peft.IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]), "IA3"),
        (lambda: peft.AdaLoraConfig(total_step=10, target_modules=["q_proj"]), "AdaLoRA"),
    ],
)
def test_other_kinds_are_recognised(tmp_path: Path, config: Any, word: str) -> None:
    torch.manual_seed(0)
    base = llama()
    base.save_pretrained(tmp_path / "base")
    peft.get_peft_model(base, config()).save_pretrained(tmp_path / "adapter")
    opened = open_checkpoint(tmp_path / "adapter")
    assert opened.tensors
    for tensor in opened.tensors.values():
        assert isinstance(tensor, Undecoded)
        assert word in tensor.dtype.opaque
    a, b = reconcile(open_checkpoint(tmp_path / "base"), opened)
    assert b.tensors == opened.tensors
    assert word in str([note.said for note in b.notes if note.is_warning])
    assert set(a.tensors)


def test_patterns_match_as_peft_matches_them():
    from peft.utils.other import get_pattern_key

    names = ["model.layers.0.self_attn.q_proj", "model.layers.10.self_attn.q_proj", "q_proj", "lm_head", "x.lm_head"]
    patterns = [
        "q_proj", "^q_proj", "^model.layers.0.self_attn.q_proj", "layers.0.self_attn.q_proj", r"self_attn\.q_proj",
        "head", "lm_head", "^lm_head", "q_proj$",
    ]
    for name in names:
        for pattern in patterns:
            is_matched = get_pattern_key([pattern], name) == pattern
            config = {"alpha_pattern": {pattern: 1}, "lora_alpha": 0}
            found = Setting.read(config, "lora_alpha", "alpha_pattern").of(f"base_model.model.{name}")
            # PEFT cannot tell a name that equals its pattern from one that does not match: both give the name.
            assert found == (int(is_matched or name == pattern), True), (name, pattern)


def test_base_against_merged_model_is_low_rank_of_the_rank_trained(tmp_path: Path) -> None:
    from diffai_jupyter.comparison import compare

    model = trained("llama", tmp_path, size=0.02, target_modules=["q_proj", "o_proj", "up_proj"])
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    for other in ("merged", "adapter"):
        found = update_type(compare(tmp_path / "base", tmp_path / other).pair)
        assert found.kind is Kind.LOW_RANK
        assert (found.numbers["low"], found.numbers["high"], found.numbers["tensors"]) == (4, 4, 6)


def test_kohya_files_scale_as_its_network_does(tmp_path: Path) -> None:
    """The formula of sd-scripts networks/lora.py: alpha / dim, alpha = dim where it is None or zero."""
    safetensors = pytest.importorskip("safetensors.torch")
    torch.manual_seed(0)
    down, up = torch.randn(4, 6, 3, 3), torch.randn(8, 4, 1, 1)
    wanted = torch.nn.functional.conv2d(down.permute(1, 0, 2, 3), up).permute(1, 0, 2, 3)
    state = {"lora_unet_c.lora_down.weight": down, "lora_unet_c.lora_up.weight": up}
    for alpha, scale in ((None, 1.0), (2.0, 0.5)):
        more = {} if alpha is None else {"lora_unet_c.alpha": torch.tensor(alpha)}
        safetensors.save_file(state | more, tmp_path / "x.safetensors")
        (found,) = open_checkpoint(tmp_path / "x.safetensors").tensors.values()
        assert found.shape == tuple(wanted.shape)
        assert np.allclose(found.read_all(), scale * wanted.reshape(8, -1).numpy(), rtol=1e-4, atol=1e-5)
