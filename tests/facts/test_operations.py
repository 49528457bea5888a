"""Operations and bytes of well-known networks, against torch's count, published figures and formulas by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo
from builders import HeaderOnly, checkpoint_of, headers_of, transformer
from gguf_models import llama_as_gguf

from diffai_jupyter.checkpoint.anatomy import anatomy
from diffai_jupyter.checkpoint.dtypes import DTYPES
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.quantized import Merged, Product
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts.network.architecture import structure
from diffai_jupyter.facts.network.computation import Caveat, Network, network
from diffai_jupyter.facts.network.operations import Operation, Work, forward, next_token, operations, prompt
from diffai_jupyter.facts.network.passage import Unit
from diffai_jupyter.readers import open_checkpoint

COUNTED: Mapping[str, Any] = json.loads((Path(__file__).parent.parent / "flops_table.json").read_text("utf-8"))
ENTRIES = [(family, length) for family, row in COUNTED.items() for length in row["counted"]]
SCAN_SEEN = 1 / 3
"""Of a scan torch counts the product of state and output, and not decay and input, which are no matrix products."""


def network_of(checkpoint: Checkpoint) -> Network:
    named = anatomy(checkpoint)
    return network(checkpoint, named, structure(checkpoint, named))


def built(shapes: Mapping[str, tuple[int, ...]], dtype: str = "f32", **config: Any) -> Network:
    """Return a network whose values must not be read."""
    return network_of(headers_of(shapes, dtype, config=config))


def done(found: Network, work: Work) -> dict[tuple[str, str], Operation]:
    return {(one.name, one.role): one for one in operations(found, work)}


def flops(found: Network, work: Work, role: str = "") -> float:
    return sum(one.flops for one in operations(found, work) if role in ("", one.role))


def weights(found: Network, work: Work) -> float:
    return sum(one.weights for one in operations(found, work))


@pytest.mark.parametrize(("family", "length"), ENTRIES)
def test_operations_are_what_torch_counts(family, length):
    row = COUNTED[family]
    found = built({name: tuple(shape) for name, shape in row["shapes"].items()}, **row["config"])
    ours = sum(
        one.flops * (SCAN_SEEN if one.role == "scan" else 1) for one in operations(found, forward(int(length)))
    )
    assert ours == pytest.approx(row["counted"][length], rel=0.02)


def test_the_table_holds_more_than_ten_architectures():
    assert len(COUNTED) >= 30
    assert len({row["config"]["model_type"] for row in COUNTED.values()}) >= 25


@pytest.mark.parametrize(
    ("shapes", "billions"),
    [
        # Multiplications with their additions, as torchvision publishes them with its weights.
        pytest.param(zoo.resnet((2, 2, 2, 2), bottleneck=False), 1.814, id="ResNet-18"),
        pytest.param(zoo.resnet((3, 4, 6, 3), bottleneck=True), 4.089, id="ResNet-50"),
        pytest.param(zoo.vgg16(), 15.470, id="VGG-16"),
        pytest.param(zoo.vit(), 17.564, id="ViT-B/16"),
        pytest.param(zoo.timm_vit(), 17.564, id="ViT-B/16, fused"),
        pytest.param(zoo.swin(), 4.491, id="Swin-T"),
    ],
)
def test_operations_of_one_image_are_the_published_ones(shapes, billions):
    found = built(shapes)
    assert found.unit is Unit.IMAGE
    assert flops(found, forward(1)) / 2e9 == pytest.approx(billions, rel=0.01)
    assert flops(found, forward(1, batch=8)) == pytest.approx(8 * flops(found, forward(1)))


@pytest.mark.parametrize("tokens", [1, 100, 1024])
def test_gpt2_is_twice_its_matrices_and_attention(tokens):
    matrices = 12 * 12 * 768**2 + 50257 * 768
    assert flops(built(zoo.gpt2()), forward(tokens)) == tokens * (2 * matrices + 4 * tokens * 12 * 768)


def test_next_token_reads_all_weights_once_and_the_cache():
    found = built(zoo.llama(32, 4096, 14336, 1024), "bf16")
    blocks = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    head = 32000 * 4096
    work = next_token(2048, batch=4)
    assert flops(found, work) == 4 * (2 * (blocks + head) + 4 * 2048 * 32 * 4096)
    assert weights(found, work) == 2 * (blocks + head)
    scores = done(found, work)["model.layers.7.self_attn", "attention scores"]
    # Queries and what comes out, and keys and values of 2,048 tokens, for each of four sequences.
    assert scores.numbers == 4 * (2 * 4096 + 2048 * 2 * 1024)


def test_a_prompt_predicts_one_word():
    found = built(zoo.gpt2())
    whole, read = flops(found, forward(100, 2)), flops(found, prompt(100, 2))
    assert whole - read == 2 * 2 * 99 * 50257 * 768


def test_a_window_ends_the_growth_of_attention():
    shapes = zoo.llama(4, 512, 1024)

    def scores(tokens: int, **config: Any) -> float:
        return flops(built(shapes, **config), next_token(tokens), "attention scores")

    each = 4 * 512
    assert scores(4096) == 4 * each * 4096
    assert scores(4096, sliding_window=1024) == scores(1024) == 4 * each * 1024
    assert scores(4096, sliding_window=1024, use_sliding_window=False) == 4 * each * 4096
    kinds = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
    mixed = each * (3 * 1024 + 4096)
    assert scores(4096, sliding_window=1024, layer_types=kinds) == mixed
    assert scores(4096, sliding_window=1024, sliding_window_pattern=4) == mixed
    assert scores(4096, sliding_window=1024, model_type="gemma2") == each * (2 * 1024 + 2 * 4096)


def test_experts_count_as_far_as_they_are_chosen():
    shapes, expert = zoo.mixtral(2), 3 * 4096 * 14336
    found = built(shapes, "bf16", num_experts_per_tok=2)
    assert not found.caveats & {Caveat.DENSE_BOUND}
    experts = flops(found, next_token(1), "experts in") + flops(found, next_token(1), "experts out")
    assert experts == 2 * 2 * 2 * expert
    # One token reads two experts of each block, many tokens read nearly all eight.
    others = weights(built({n: s for n, s in shapes.items() if ".experts." not in n}, "bf16"), next_token(1))
    assert weights(found, next_token(1)) - others == pytest.approx(2 * 2 * 2 * expert)
    share = 1 - 0.75**16
    assert weights(found, next_token(1, 16)) - others == pytest.approx(2 * 2 * 8 * expert * share)


def test_without_a_configuration_all_experts_are_an_upper_bound():
    found = built(zoo.mixtral(2))
    assert Caveat.DENSE_BOUND in found.caveats
    assert flops(found, next_token(1), "experts in") == 2 * 2 * 8 * 2 * 4096 * 14336


def stacked(layers: int) -> zoo.Shapes:
    """Return Mixtral with the experts of a block in one tensor, gate above up, as it runs."""
    kept = {name: shape for name, shape in zoo.mixtral(layers).items() if ".experts." not in name}
    for i in range(layers):
        place = f"model.layers.{i}.mlp.experts."
        kept |= {f"{place}gate_up_proj": (8, 2 * 14336, 4096), f"{place}down_proj": (8, 4096, 14336)}
    return kept


def as_gguf(shapes: zoo.Shapes) -> zoo.Shapes:
    """Return LLaMA under the names of GGUF."""
    inner = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "model.layers": "blk", "model.embed_tokens": "token_embd",
        "lm_head": "output", "model.norm": "output_norm", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    renamed = {}
    for name, shape in shapes.items():
        for old, new in inner.items():
            name = name.replace(old, new)
        renamed[name] = shape
    return renamed


LLAMA = zoo.llama(3, 512, 1376, 128)


@pytest.mark.parametrize("work", [forward(64), next_token(300, 4)])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(zoo.mixtral(2), stacked(2), id="experts apart or in one stack"),
        pytest.param(LLAMA, as_gguf(LLAMA), id="names of Hugging Face or of GGUF"),
        pytest.param(
            zoo.llama(2, 3072, 8192, 1024, vocab=32064), zoo.phi3(2, 3072, 1024), id="queries, keys and values fused"
        ),
        pytest.param(
            zoo.gpt2(2), {n: s[::-1] if len(s) == 2 and ".h." in n else s for n, s in zoo.gpt2(2).items()},
            id="stored input by output or the other way round",
        ),
    ],
)  # fmt: skip
def test_how_a_model_is_stored_changes_nothing(one, other, work):
    config = {"num_experts_per_tok": 2}
    sides = [
        sorted((o.role, o.flops, o.weights, o.numbers) for o in operations(built(shapes, **config), work))
        for shapes in (one, other)
    ]
    assert sides[0] == sides[1]


def test_a_tied_head_counts_once_whether_it_is_stored_or_not():
    stored = LLAMA
    tied = {name: shape for name, shape in stored.items() if not name.startswith("lm_head")}
    causal = {"architectures": ["LlamaForCausalLM"]}
    counts = [flops(built(shapes, **causal), forward(10)) for shapes in (stored, tied)]
    assert counts[0] == counts[1]
    assert built(tied, **causal).caveats == built(tied, tie_word_embeddings=True).caveats == frozenset()
    # Without a word about it, the embedding is taken to be the head, which is told.
    assert built(tied).caveats == {Caveat.TIED_HEAD}
    head = 2 * 10 * 32000 * 512
    bare = built(tied, architectures=["LlamaModel"])
    assert flops(built(tied), forward(10)) - flops(bare, forward(10)) == head
    assert bare.caveats == frozenset()


def test_a_head_for_classes_works_once():
    shapes = zoo.bert(1)
    for count in (2, 7):
        more = shapes | {"classifier.weight": (count, 768)}
        assert flops(built(more), forward(100)) - flops(built(shapes), forward(100)) == 2 * count * 768
        each = built(more, architectures=["BertForTokenClassification"])
        assert flops(each, forward(100)) - flops(built(shapes), forward(100)) == 100 * 2 * count * 768


def test_both_stacks_and_what_lies_between_count():
    found = built(zoo.t5(1), architectures=["T5ForConditionalGeneration"])
    assert found.unit is Unit.SEQUENCE
    attention, inner = 4 * 512**2, 2 * 512 * 2048
    matrices = (attention + inner) + (2 * attention + inner) + 32128 * 512
    assert flops(found, forward(50)) == 2 * 50 * matrices + 3 * 4 * 50 * 50 * 512
    # The next word: the encoder rests, and so do the keys and values of what it read.
    rest = 2 * (2 * attention - 2 * 512**2 + inner + 32128 * 512)
    assert flops(found, next_token(50)) == rest + 2 * 4 * 50 * 512


def test_one_step_of_a_recurrent_network_is_twice_its_matrices():
    found = built(zoo.recurrent(4))
    assert found.unit is Unit.STEP
    assert flops(found, forward(1)) == 2 * (2 * 2 * 800 * 200 + 1000 * 200)


def test_a_state_space_model_is_its_matrices_and_its_scan():
    found = built(zoo.mamba(1), architectures=["MambaForCausalLM"])
    inner = 1536
    matrices = 2 * inner * 768 + 80 * inner + inner * 48 + 768 * inner + inner * 4 + 50280 * 768
    assert flops(found, next_token(1)) == flops(found, next_token(9000)) == 2 * matrices + 6 * inner * 16


def test_state_of_heads_follows_from_the_short_convolution():
    shapes = {
        "backbone.embeddings.weight": (640, 64), "backbone.layers.0.mixer.A_log": (8,),
        "backbone.layers.0.mixer.conv1d.weight": (128 + 2 * 2 * 16, 1, 4),
        "backbone.layers.0.mixer.in_proj.weight": (2 * 128 + 2 * 2 * 16 + 8, 64),
        "backbone.layers.0.mixer.out_proj.weight": (64, 128),
    }  # fmt: skip
    assert flops(built(shapes, n_groups=2), next_token(1), "scan") == 6 * 128 * 16
    assert built(shapes).caveats >= {Caveat.STATE}


def test_the_eye_of_a_language_model_rests_while_it_writes():
    tower = {
        f"vision_tower.{name}": shape
        for name, shape in zoo.vit(1).items()
        if not name.startswith("classifier")
    } | zoo.linear("multi_modal_projector.linear_1", 512, 768)
    config = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}
    assert flops(built(LLAMA | tower, **config), next_token(9)) == flops(built(LLAMA, **config), next_token(9))


def test_latent_attention_keeps_one_vector():
    found = built(zoo.deepseek(1), "bf16")
    scores = done(found, next_token(1000))["model.layers.0.self_attn", "attention scores"]
    # 16 heads of 128 + 64 numbers for queries, of 128 for values.
    assert scores.flops == 2 * 1000 * 16 * (192 + 128)
    assert scores.numbers == 16 * (192 + 128) + 1000 * 576


@pytest.mark.parametrize(("kind", "bits"), [("Q8_0", 8.5), ("F16", 16)])
def test_quantized_payloads_count_by_shape_and_by_stored_bytes(kind, bits, tmp_path):
    state = transformer(layers=2, hidden=64, inner=160, vocab=96)
    found = network_of(open_checkpoint(str(llama_as_gguf(tmp_path / "a.gguf", state, 4, 4, kind))))
    plain = network_of(checkpoint_of(state))
    assert flops(found, forward(16)) == flops(plain, forward(16))
    assert weights(found, forward(16)) == weights(plain, forward(16)) * bits / 32


def product(outputs: int, inputs: int, rank: int) -> Product:
    up, down = (
        HeaderOnly(shape, DTYPES["f32"], (name,), 4 * math.prod(shape))
        for name, shape in (("up", (outputs, rank)), ("down", (rank, inputs)))
    )
    return Product(up, down)


def of_tensors(tensors: Mapping[str, Tensor]) -> Network:
    return network_of(Checkpoint("headers", "headers", dict(sorted(tensors.items()))))


def test_adapters_alone_are_their_factors():
    place = "base_model.model.model.layers.0.self_attn.q_proj.lora"
    found = of_tensors({place: product(64, 48, 4)})
    assert found.unit is Unit.ADAPTER
    assert flops(found, forward(1)) == 2 * 4 * (64 + 48)


def test_a_merged_adapter_costs_nothing():
    plain = headers_of(LLAMA).tensors
    name = "model.layers.0.self_attn.q_proj.weight"
    merged = of_tensors({**plain, name: Merged(plain[name], product(512, 512, 8))})
    assert Caveat.MERGED in merged.caveats
    assert operations(merged, next_token(8)) != ()
    sides = [[(o.flops, o.weights) for o in operations(found, next_token(8))] for found in (of_tensors(plain), merged)]
    assert sides[0] == sides[1]


@pytest.mark.parametrize(
    ("shapes", "config", "reason"),
    [
        pytest.param({}, {}, "NO_TARGET", id="nothing"),
        pytest.param({"norm.weight": (8,), "token_embd.weight": (10, 8)}, {}, "NO_TARGET", id="no matrix"),
        pytest.param(
            {"layer.0.attention.q_proj.weight": (64, 64), "patch_embed.proj.weight": (8, 3, 4, 4)}, {},
            "NEEDS_CONFIG", id="image size nowhere",
        ),
        pytest.param(
            {
                "e.albert_layer_groups.0.albert_layers.0.attention.query.weight": (8, 8),
                "e.albert_layer_groups.0.albert_layers.0.ffn.weight": (8, 8),
            },
            {}, "NEEDS_CONFIG", id="shared layers, their number nowhere",
        ),
        # XLNet keeps heads apart, in three axes, and looks at relative positions besides.
        pytest.param(
            {
                "transformer.word_embedding.weight": (96, 8), "transformer.layer.0.ff.layer_1.weight": (16, 8),
                **{f"transformer.layer.0.rel_attn.{part}": (8, 2, 4) for part in "qkvor"},
            },
            {}, "NO_TARGET", id="attention of an unknown layout",
        ),
    ],
)  # fmt: skip
def test_what_is_not_said_is_unknown(shapes, config, reason):
    with pytest.raises(Unknowable) as miss:
        built(shapes, **config)
    assert miss.value.reason == reason


def test_packed_codes_hide_their_shape():
    with pytest.raises(Unknowable) as miss:
        network_of(checkpoint_of({"layers.0.q_proj.qweight": np.zeros((4, 4), "i4")}))
    assert miss.value.reason == "NOT_DEQUANTIZABLE"


def test_image_size_of_a_configuration_is_taken():
    shapes = zoo.resnet((2, 2, 2, 2), bottleneck=False)
    assumed, stated = built(shapes), built(shapes, image_size=448)
    assert assumed.caveats == {Caveat.IMAGE_SIZE}
    assert stated.caveats == frozenset()
    body = [flops(found, forward(1), "convolution") for found in (assumed, stated)]
    assert body[1] == 4 * body[0]
    timm = built(shapes, pretrained_cfg={"input_size": [3, 448, 448]})
    assert flops(timm, forward(1)) == flops(stated, forward(1))


def test_strides_of_an_unknown_family_are_told_to_be_unknown():
    shapes = {"a.weight": (16, 3, 3, 3), "b.weight": (32, 16, 3, 3), "fc.weight": (10, 32)}
    found = built(shapes)
    assert found.caveats == {Caveat.STRIDES}
    ratio = flops(built(shapes | {"b.weight": (64, 16, 3, 3)}), forward(1), "convolution")
    assert ratio / flops(found, forward(1), "convolution") == (16 * 27 + 64 * 144) / (16 * 27 + 32 * 144)
