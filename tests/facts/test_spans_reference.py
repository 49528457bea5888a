"""Spans against the attention maps of real models whose tokens say nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from builders import checkpoint_of

from diffai_jupyter.facts.attention.distances import buckets, slopes, slopes_of_mpt
from diffai_jupyter.facts.attention.spans import Case, Reaches, reaches
from diffai_jupyter.facts.weights.stored import A, B
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]

WORDS, POSITIONS = 90, 64
WIDTH, HEADS = 48, 6
Model = Any


def made(family: str, kind: str, **said: Any) -> Model:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(vocab_size=WORDS, **said)
    how = "sdpa" if family == "Falcon" else "eager"
    model = getattr(transformers, kind)._from_config(config, attn_implementation=how).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def pair_with(model: Model) -> Pair:
    state = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    checkpoint = checkpoint_of(state, config=model.config.to_dict())
    return pair_checkpoints(checkpoint, checkpoint)


def silence(model: Model, *names: str) -> None:
    """Set the rows that make queries to zero, so that only what is added by position is left of the scores."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in names):
                parameter.zero_()


def span_of(attention: Any, is_causal: bool) -> list[float]:
    """Return the spans of maps of shape (heads, positions, positions), written anew."""
    maps = attention.numpy().astype("f8")
    count = maps.shape[-1]
    i, j = np.mgrid[0:count, 0:count]
    even = np.tril(np.ones((count, count))) if is_causal else np.ones((count, count))
    even /= even.sum(1, keepdims=True)
    rows = i[:, 0] >= count / 4
    distance = np.abs(i - j)
    return [float((head * distance)[rows].sum() / (even * distance)[rows].sum()) for head in maps]


def tokens() -> Any:
    return torch.randint(3, WORDS, (1, POSITIONS), generator=torch.Generator().manual_seed(1))


def maps_of(model: Model, **said: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=tokens(), output_attentions=True, **said)


def spans_of(found: Reaches) -> list[list[float]]:
    return [[head.span for head in layer.heads] for layer in found.layers]


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 7, 8, 12, 16, 25, 32, 71, 112, 128])
def test_slopes_are_those_of_the_library(heads):
    from transformers.models.bloom.modeling_bloom import _get_alibi_slopes
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    np.testing.assert_allclose(slopes(heads), _get_alibi_slopes(heads, "cpu").numpy(), rtol=1e-5)
    np.testing.assert_allclose(slopes_of_mpt(heads), -build_mpt_alibi_tensor(heads, 2)[:, 0, 0].numpy(), rtol=1e-5)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize(("rows", "farthest"), [(32, 128), (16, 20), (8, 64), (64, 256), (40, 128)])
def test_buckets_are_those_of_the_library(rows, farthest, is_causal):
    from transformers.models.t5.modeling_t5 import T5Attention

    places = torch.arange(600)
    ahead = places[None] - places[:, None]
    theirs = T5Attention._relative_position_bucket(ahead, not is_causal, rows, farthest).numpy()
    np.testing.assert_array_equal(buckets(600, rows, farthest, is_causal), theirs)


ALIBI: dict[str, Callable[[], Model]] = {
    "bloom": lambda: made(
        "Bloom", "BloomForCausalLM", hidden_size=WIDTH, n_layer=2, n_head=HEADS, seq_length=POSITIONS
    ),
    "mpt": lambda: made("Mpt", "MptForCausalLM", d_model=WIDTH, n_layers=2, n_heads=HEADS, max_seq_len=POSITIONS),
    "falcon": lambda: made(
        "Falcon", "FalconForCausalLM", hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS, alibi=True,
        max_position_embeddings=POSITIONS,
    ),
}  # fmt: skip


def maps_of_falcon(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the maps of the fused kernel: its eager one adds the slopes twice, in the mask and in the scores."""
    found, kernel = [], torch.nn.functional.scaled_dot_product_attention

    def recorded(query: Any, key: Any, value: Any, attn_mask: Any = None, **said: Any) -> Any:
        found.append((query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + attn_mask).softmax(-1))
        return kernel(query, key, value, attn_mask=attn_mask, **said)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorded)
    with torch.no_grad():
        model(input_ids=tokens())
    return found


@pytest.mark.parametrize("family", ALIBI)
def test_spans_of_slopes_are_those_of_maps_without_content(family, monkeypatch):
    model = ALIBI[family]()
    pair = pair_with(model)
    silence(model, "query_key_value", "Wqkv")
    found = reaches(pair, B)
    # Falcon keeps slopes and distances in bfloat16.
    tolerance = 2e-2 if family == "falcon" else 1e-4
    maps = maps_of_falcon(model, monkeypatch) if family == "falcon" else maps_of(model).attentions
    assert len(maps) == 2
    for attention in maps:
        np.testing.assert_allclose(spans_of(found), [span_of(attention[0], True)], rtol=tolerance)
    assert (found.case, found.positions, len(found.spans)) == (Case.SLOPES, POSITIONS, 2 * HEADS)


@pytest.mark.parametrize("family", ["T5", "UMT5"])
def test_spans_of_a_learned_bias_are_those_of_maps_without_content(family):
    model = made(
        family, f"{family}ForConditionalGeneration", d_model=WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=HEADS,
        relative_attention_max_distance=40,
    )  # fmt: skip
    pair = pair_with(model)
    silence(model, "SelfAttention.q.")
    give_positions(pair)
    found = reaches(pair, A)
    maps = maps_of(model, decoder_input_ids=tokens())
    theirs = [span_of(layer[0], False) for layer in maps.encoder_attentions]
    theirs += [span_of(layer[0], True) for layer in maps.decoder_attentions]
    if family == "T5":
        theirs = theirs[::2]
    np.testing.assert_allclose(spans_of(found), theirs, rtol=1e-4)
    assert (found.case, found.farthest, len(found.spans)) == (Case.BIAS, 40, 4 * HEADS)


def give_positions(pair: Pair) -> None:
    """T5 states no context: look at as many positions as the maps have."""
    from diffai_jupyter.facts import give
    from diffai_jupyter.facts.attention.spans import positions

    give(pair, positions, POSITIONS)


LEARNED: dict[str, Callable[[], Model]] = {
    "gpt2": lambda: made("GPT2", "GPT2LMHeadModel", n_embd=WIDTH, n_layer=2, n_head=HEADS, n_positions=POSITIONS),
    "bert": lambda: made(
        "Bert", "BertForMaskedLM", hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS,
        intermediate_size=64, max_position_embeddings=POSITIONS,
    ),
    "roberta": lambda: made(
        "Roberta", "RobertaForMaskedLM", hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS,
        intermediate_size=64, max_position_embeddings=POSITIONS + 2,
    ),
    "opt": lambda: made(
        "OPT", "OPTForCausalLM", hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS, ffn_dim=64,
        max_position_embeddings=POSITIONS, word_embed_proj_dim=WIDTH,
    ),
    "gpt_neo": lambda: made(
        "GPTNeo", "GPTNeoForCausalLM", hidden_size=WIDTH, num_layers=2, num_heads=HEADS, intermediate_size=64,
        attention_types=[[["global", "local"], 1]], max_position_embeddings=POSITIONS,
    ),
    "gpt_bigcode": lambda: made(
        "GPTBigCode", "GPTBigCodeForCausalLM", n_embd=WIDTH, n_layer=2, n_head=HEADS, n_positions=POSITIONS,
    ),
    "bart": lambda: made(
        "Bart", "BartForConditionalGeneration", d_model=WIDTH, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, encoder_ffn_dim=64, decoder_ffn_dim=64,
        max_position_embeddings=POSITIONS, scale_embedding=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", LEARNED)
def test_spans_of_a_table_of_positions_are_those_of_the_first_map_where_all_tokens_are_alike(family):
    model = LEARNED[family]()
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table.copy_(table.mean(0, keepdim=True).expand_as(table))
    found = reaches(pair_with(model), B)
    if family == "bart":
        maps = maps_of(model, decoder_input_ids=tokens())
        theirs = [span_of(maps.encoder_attentions[0][0], False), span_of(maps.decoder_attentions[0][0], True)]
    else:
        theirs = [span_of(maps_of(model).attentions[0][0], family not in ("bert", "roberta"))]
    np.testing.assert_allclose(spans_of(found), theirs, rtol=1e-3)
    assert (found.case, found.positions) == (Case.TABLE, POSITIONS)
    assert np.ptp(found.spans) > 0.05
