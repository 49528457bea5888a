"""Type, depth and attributes of the families of the transformers library, from names, shapes and configuration."""

from __future__ import annotations

from typing import Any

import pytest
from builders import headers_of

from diffai_jupyter.checkpoint.anatomy import anatomy
from diffai_jupyter.facts.network.architecture import Structure, structure

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]

DECODER, ENCODER, EXPERTS = {"decoder", "text"}, {"encoder", "text"}, {"mixture of experts", "decoder", "text"}
FAMILIES: dict[str, tuple[str, set[str]]] = {
    **dict.fromkeys((
        "llama", "gpt2", "gpt_neox", "gptj", "gpt_bigcode", "opt", "bloom", "falcon", "phi", "phi3", "mpt", "qwen2",
        "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2", "lfm2",
    ), ("transformer", DECODER)),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "gpt_oss"), ("transformer", EXPERTS)),
    **dict.fromkeys((
        "bert", "roberta", "distilbert", "electra", "deberta-v2", "xlm-roberta", "modernbert",
    ), ("transformer", ENCODER)),
    **dict.fromkeys(("vit", "deit", "beit"), ("transformer", {"encoder", "vision"})),
    "dinov2": ("transformer", {"encoder", "vision"}),
    "clip": ("transformer", {"encoder", "text", "vision"}),
    "llava": ("transformer", {"decoder", "text", "vision"}),
    "qwen2_vl": ("transformer", {"decoder", "text", "vision"}),
    "wav2vec2": ("transformer", {"encoder", "audio"}),
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba"), ("ssm", {"text"})),
    "qwen3_next": ("hybrid", EXPERTS),
    "jamba": ("hybrid", EXPERTS),
    "recurrent_gemma": ("hybrid", DECODER),
    "rwkv": ("rnn", {"text"}),
    "xlnet": ("transformer", DECODER),
    **dict.fromkeys(("resnet", "convnext", "regnet", "mobilenet_v2", "efficientnet"), ("cnn", {"vision"})),
}  # fmt: skip
TWO_STACKS = ("t5", "bart", "mbart", "pegasus", "marian", "whisper")


def built(kind: str, head: str = "AutoModelForCausalLM") -> tuple[Structure, Any]:
    """Build a model of the default configuration without its numbers, and read its names and shapes."""
    config = transformers.AutoConfig.for_model(kind)
    with torch.device("meta"):
        try:
            model = getattr(transformers, head).from_config(config)
        except ValueError:
            model = transformers.AutoModel.from_config(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    checkpoint = headers_of(shapes, config=config.to_dict())
    return structure(checkpoint, anatomy(checkpoint)), config


@pytest.mark.parametrize("kind", FAMILIES)
def test_type_labels_and_depth(kind):
    found, config = built(kind)
    assert (found.kind, set(found.sub_labels)) == FAMILIES[kind]
    depth = getattr(config, "num_hidden_layers", None)
    if found.kind != "cnn" and depth is not None:
        assert found.depth == depth


@pytest.mark.parametrize("kind", TWO_STACKS)
def test_encoder_and_decoder(kind):
    found, config = built(kind, "AutoModelForSeq2SeqLM" if kind != "whisper" else "AutoModelForSpeechSeq2Seq")
    assert found.kind == "transformer"
    assert {"encoder and decoder", "text"} <= set(found.sub_labels)
    layers = [getattr(config, key, config.num_hidden_layers) for key in ("encoder_layers", "decoder_layers")]
    assert list(found.stacks.values()) == layers
    assert found.depth == sum(layers)


@pytest.mark.parametrize(
    "kind",
    ["llama", "gpt2", "gpt_neox", "opt", "phi3", "mixtral", "qwen3", "gemma2", "olmo2", "gpt_oss", "bert", "vit", "t5"],
)
def test_attributes_are_those_of_the_configuration(kind):
    attributes = built(kind)[0].attributes
    config = transformers.AutoConfig.for_model(kind)
    width = config.hidden_size
    heads = config.num_attention_heads
    assert attributes["hidden size"].value == width
    assert attributes["attention heads"].value == heads
    assert attributes["key/value heads"].value == (getattr(config, "num_key_value_heads", None) or heads)
    size = getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or width // heads
    assert attributes["head size"].value == size
    inner = [getattr(config, key, None) for key in ("intermediate_size", "n_inner", "ffn_dim", "d_ff")]
    assert attributes["feed-forward size"].value == next((n for n in inner if n), 4 * width)
    if hasattr(config, "vocab_size"):
        assert attributes["vocabulary"].value == config.vocab_size
