"""Our cuts of fused projections against the queries, keys and values that the transformers library makes itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import checkpoint_of

from diffai_jupyter.checkpoint.anatomy import anatomy
from diffai_jupyter.checkpoint.pieces import pieces_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.reference

SMALL: dict[str, Any] = {"vocab_size": 40, "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 6}
GPT: dict[str, Any] = {"vocab_size": 40, "n_embd": 48, "n_layer": 1, "n_head": 6}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT),
    "gpt_bigcode": ("gpt_bigcode", {**GPT, "multi_query": True}),
    "gpt_neox": ("gpt_neox", {**SMALL, "intermediate_size": 64}),
    "bloom": ("bloom", {"vocab_size": 40, "hidden_size": 48, "n_layer": 1, "n_head": 6}),
    "falcon, one key": ("falcon", {**SMALL, "multi_query": True, "new_decoder_architecture": False}),
    "falcon, groups": ("falcon", {**SMALL, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "falcon, all heads": ("falcon", {**SMALL, "multi_query": False, "new_decoder_architecture": False}),
    "phi3": ("phi3", {**SMALL, "num_key_value_heads": 2, "intermediate_size": 64, "pad_token_id": 0}),
    "codegen": ("codegen", {**GPT, "n_head": 8, "rotary_dim": 4}),
}


def made_by(model: Any, module: Any, fused: Any) -> list[Any]:
    """Return what the model's own code splits off for one token: query, key and value.

    At position 0 the rotary embedding changes nothing.
    """
    for name in ("_reshape", "_split_heads"):
        if hasattr(module, name) and type(module).__name__ in ("BloomAttention", "FalconAttention"):
            return list(getattr(module, name)(fused))
    found: list[Any] = []

    def attention(_: Any, query: Any, key: Any, value: Any, *__: Any, **___: Any) -> Any:
        found.extend((query, key, value))
        return query.transpose(1, 2), None

    if type(module).__name__ == "CodeGenAttention":
        module._attn = lambda query, key, value, *_: attention(module, query, key, value)
    transformers.AttentionInterface.register("recording", attention)
    transformers.AttentionMaskInterface.register("recording", lambda *_, **__: None)
    model.config._attn_implementation = "recording"
    model(input_ids=torch.tensor([[3]]), use_cache=False)
    return found[:3]


@pytest.mark.filterwarnings("ignore")  # of the library's own
@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_cut_is_the_model_s_own(family: str) -> None:
    kind, said = FAMILIES[family]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **said)
    model = transformers.AutoModel.from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    state = {name: values.numpy() for name, values in model.state_dict().items()}
    checkpoint = checkpoint_of(state, config=config.to_dict())
    parts = anatomy(checkpoint).parts
    (name,) = [n for n, part in parts.items() if part.role == "qkv" and n.endswith("weight")]
    linear = model.get_submodule(name.removesuffix(".weight"))
    if linear.bias is not None:
        linear.bias.zero_()
    seen: list[Any] = []
    linear.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    model(input_ids=torch.tensor([[3]]), use_cache=False)
    x, fused = seen[0]
    wanted = made_by(model, model.get_submodule(name.removesuffix(".weight").rpartition(".")[0]), fused)
    part, tensor = parts[name], checkpoint.tensors[name]
    pieces = pieces_of(name, part.canonical, part.role, tensor, checkpoint.config, lambda _: None)
    assert [piece.role for piece in pieces] == ["q", "k", "v"]
    for piece, values in zip(pieces, wanted, strict=True):
        ours = x.numpy().reshape(-1) @ piece.views[0][1].read_all().T
        theirs = values.numpy().reshape(-1, values.shape[-1])
        # Falcon repeats a key for each query that shares it.
        repeats = theirs.size // ours.size
        assert repeats >= 1
        assert np.allclose(theirs[::repeats].reshape(-1), ours, atol=1e-5)
