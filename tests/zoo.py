"""Names and shapes of well-known networks, written by hand: `from zoo import gpt2`. No values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Shape = tuple[int, ...]
Shapes = dict[str, Shape]


def linear(name: str, outputs: int, inputs: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def norm(name: str, width: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (width,)} | ({f"{name}.bias": (width,)} if bias else {})


def joined(parts: Iterable[Mapping[str, Shape]]) -> Shapes:
    return {name: shape for part in parts for name, shape in part.items()}


def batch_norm(name: str, width: int) -> Shapes:
    counted: Shapes = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
    return norm(name, width) | counted | {f"{name}.num_batches_tracked": ()}


def resnet(blocks: tuple[int, ...], bottleneck: bool) -> Shapes:
    """Return torchvision's ResNet; 18 is ((2, 2, 2, 2), False), 50 is ((3, 4, 6, 3), True)."""
    state: Shapes = {"conv1.weight": (64, 3, 7, 7)} | batch_norm("bn1", 64)
    inputs = 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        outputs = width * (4 if bottleneck else 1)
        for i in range(count):
            name = f"layer{stage + 1}.{i}"
            kernels = [(width, inputs, 1), (width, width, 3), (outputs, width, 1)]
            if not bottleneck:
                kernels = [(width, inputs, 3), (width, width, 3)]
            for j, (rows, cols, side) in enumerate(kernels, 1):
                state |= {f"{name}.conv{j}.weight": (rows, cols, side, side)} | batch_norm(
                    f"{name}.bn{j}", rows
                )
            if i == 0 and inputs != outputs:
                state |= {f"{name}.downsample.0.weight": (outputs, inputs, 1, 1)}
                state |= batch_norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    return state | linear("fc", 1000, inputs)


def vgg16() -> Shapes:
    plan = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
    state: Shapes = {}
    place, inputs = 0, 3
    for width in plan:
        if width:
            state |= {f"features.{place}.weight": (width, inputs, 3, 3), f"features.{place}.bias": (width,)}
            inputs, place = width, place + 1
        place += 1
    sizes = ((0, 4096, 25088), (3, 4096, 4096), (6, 1000, 4096))
    return state | joined(linear(f"classifier.{i}", outputs, inputs) for i, outputs, inputs in sizes)


def perceptron() -> Shapes:
    return joined(
        linear(f"{i}", outputs, inputs) for i, outputs, inputs in ((0, 128, 64), (2, 128, 128), (4, 10, 128))
    )


def recurrent(gates: int, hidden: int = 200, layers: int = 2) -> Shapes:
    """Return torch's RNN (1 gate), GRU (3) or LSTM (4) between an embedding and a decoder."""
    state: Shapes = {"encoder.weight": (1000, hidden)} | linear("decoder", 1000, hidden)
    for i in range(layers):
        for name in ("ih", "hh"):
            state |= {
                f"rnn.weight_{name}_l{i}": (gates * hidden, hidden),
                f"rnn.bias_{name}_l{i}": (gates * hidden,),
            }
    return state


def gpt2(layers: int = 12, hidden: int = 768) -> Shapes:
    """Return GPT-2 with its fused Conv1D projections, stored input by output."""
    state: Shapes = {"transformer.wte.weight": (50257, hidden), "transformer.wpe.weight": (1024, hidden)}
    for i in range(layers):
        block = f"transformer.h.{i}."
        state |= norm(f"{block}ln_1", hidden) | norm(f"{block}ln_2", hidden)
        for name, rows, cols in (
            ("attn.c_attn", hidden, 3 * hidden), ("attn.c_proj", hidden, hidden),
            ("mlp.c_fc", hidden, 4 * hidden), ("mlp.c_proj", 4 * hidden, hidden),
        ):  # fmt: skip
            state |= {f"{block}{name}.weight": (rows, cols), f"{block}{name}.bias": (cols,)}
    return state | norm("transformer.ln_f", hidden)


def llama(layers: int, hidden: int, inner: int, kv: int | None = None, vocab: int = 32000) -> Shapes:
    """Return LLaMA; Mistral has narrower keys and values."""
    state: Shapes = {"model.embed_tokens.weight": (vocab, hidden), "lm_head.weight": (vocab, hidden)}
    state |= norm("model.norm", hidden, bias=False)
    for i in range(layers):
        block = f"model.layers.{i}."
        for name, rows, cols in (
            ("self_attn.q_proj", hidden, hidden), ("self_attn.k_proj", kv or hidden, hidden),
            ("self_attn.v_proj", kv or hidden, hidden), ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", inner, hidden), ("mlp.up_proj", inner, hidden), ("mlp.down_proj", hidden, inner),
        ):  # fmt: skip
            state |= linear(block + name, rows, cols, bias=False)
        for name in ("input_layernorm", "post_attention_layernorm"):
            state |= norm(block + name, hidden, bias=False)
    return state


def phi3(layers: int = 32, hidden: int = 3072, kv: int = 3072, inner: int = 8192) -> Shapes:
    """Return Phi-3 with fused query, key and value and fused gate and up."""
    state: Shapes = {"model.embed_tokens.weight": (32064, hidden), "lm_head.weight": (32064, hidden)}
    for i in range(layers):
        block = f"model.layers.{i}."
        for name, rows, cols in (
            ("self_attn.qkv_proj", hidden + 2 * kv, hidden), ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_up_proj", 2 * inner, hidden), ("mlp.down_proj", hidden, inner),
        ):  # fmt: skip
            state |= linear(block + name, rows, cols, bias=False)
        state |= norm(f"{block}input_layernorm", hidden, bias=False)
    return state


def mixtral(layers: int = 32, experts: int = 8) -> Shapes:
    state = {name: shape for name, shape in llama(layers, 4096, 14336, 1024).items() if ".mlp." not in name}
    for i in range(layers):
        moe = f"model.layers.{i}.block_sparse_moe."
        state |= linear(f"{moe}gate", experts, 4096, bias=False)
        for j in range(experts):
            for name, rows, cols in (("w1", 14336, 4096), ("w2", 4096, 14336), ("w3", 14336, 4096)):
                state |= linear(f"{moe}experts.{j}.{name}", rows, cols, bias=False)
    return state


def deepseek(layers: int = 27) -> Shapes:
    """Return the attention of DeepSeek-V2-Lite: keys and values in 512 numbers, 64 for the rotary part."""
    state: Shapes = {"model.embed_tokens.weight": (102400, 2048), "lm_head.weight": (102400, 2048)}
    for i in range(layers):
        block = f"model.layers.{i}."
        for name, rows, cols in (
            ("self_attn.q_proj", 3072, 2048), ("self_attn.kv_a_proj_with_mqa", 576, 2048),
            ("self_attn.kv_b_proj", 4096, 512), ("self_attn.o_proj", 2048, 2048), ("mlp.gate_proj", 10944, 2048),
            ("mlp.up_proj", 10944, 2048), ("mlp.down_proj", 2048, 10944),
        ):  # fmt: skip
            state |= linear(block + name, rows, cols, bias=False)
        state |= norm(f"{block}self_attn.kv_a_layernorm", 512, bias=False)
    return state


def bert(layers: int = 12, hidden: int = 768) -> Shapes:
    state: Shapes = {
        "bert.embeddings.word_embeddings.weight": (30522, hidden),
        "bert.embeddings.position_embeddings.weight": (512, hidden),
        "bert.embeddings.token_type_embeddings.weight": (2, hidden),
    } | norm("bert.embeddings.LayerNorm", hidden)
    for i in range(layers):
        state |= _bert_block(f"bert.encoder.layer.{i}.", "self", hidden)
        state |= norm(f"bert.encoder.layer.{i}.attention.output.LayerNorm", hidden)
        state |= norm(f"bert.encoder.layer.{i}.output.LayerNorm", hidden)
    return state | linear("bert.pooler.dense", hidden, hidden)


def _bert_block(block: str, inner: str, hidden: int) -> Shapes:
    names = [(f"attention.{inner}.{part}", hidden, hidden) for part in ("query", "key", "value")]
    names += [("attention.output.dense", hidden, hidden), ("intermediate.dense", 4 * hidden, hidden)]
    names += [("output.dense", hidden, 4 * hidden)]
    return joined(linear(block + name, rows, cols) for name, rows, cols in names)


def vit(layers: int = 12, hidden: int = 768) -> Shapes:
    """Return ViT as the transformers library names it."""
    state: Shapes = {
        "vit.embeddings.cls_token": (1, 1, hidden), "vit.embeddings.position_embeddings": (1, 197, hidden),
        "vit.embeddings.patch_embeddings.projection.weight": (hidden, 3, 16, 16),
    }  # fmt: skip
    for i in range(layers):
        state |= _bert_block(f"vit.encoder.layer.{i}.", "attention", hidden)
        state |= norm(f"vit.encoder.layer.{i}.layernorm_before", hidden)
    return state | linear("classifier", 1000, hidden)


def timm_vit(layers: int = 12, hidden: int = 768) -> Shapes:
    state: Shapes = {"cls_token": (1, 1, hidden), "pos_embed": (1, 197, hidden)}
    state |= {"patch_embed.proj.weight": (hidden, 3, 16, 16), "patch_embed.proj.bias": (hidden,)}
    for i in range(layers):
        for name, rows, cols in (
            ("attn.qkv", 3 * hidden, hidden), ("attn.proj", hidden, hidden), ("mlp.fc1", 4 * hidden, hidden),
            ("mlp.fc2", hidden, 4 * hidden),
        ):  # fmt: skip
            state |= linear(f"blocks.{i}.{name}", rows, cols)
    return state | norm("norm", hidden) | linear("head", 1000, hidden)


def swin(depths: tuple[int, ...] = (2, 2, 6, 2), hidden: int = 96) -> Shapes:
    state: Shapes = {"patch_embed.proj.weight": (hidden, 3, 4, 4)}
    for stage, depth in enumerate(depths):
        width = hidden * 2**stage
        for i in range(depth):
            block = f"layers.{stage}.blocks.{i}."
            state |= {f"{block}attn.relative_position_bias_table": (169, 3 * 2**stage)}
            for name, rows, cols in (
                ("attn.qkv", 3 * width, width), ("attn.proj", width, width), ("mlp.fc1", 4 * width, width),
                ("mlp.fc2", width, 4 * width),
            ):  # fmt: skip
                state |= linear(block + name, rows, cols)
        if stage + 1 < len(depths):
            state |= {f"layers.{stage}.downsample.reduction.weight": (2 * width, 4 * width)}
    return state | linear("head.fc", 1000, hidden * 2 ** (len(depths) - 1))


def t5(layers: int = 6, hidden: int = 512, inner: int = 2048) -> Shapes:
    state: Shapes = {"shared.weight": (32128, hidden)}
    for side in ("encoder", "decoder"):
        for i in range(layers):
            attentions = ["SelfAttention"] + (["EncDecAttention"] if side == "decoder" else [])
            for j, attention in enumerate(attentions):
                for part in "qkvo":
                    state |= {f"{side}.block.{i}.layer.{j}.{attention}.{part}.weight": (hidden, hidden)}
                state |= {f"{side}.block.{i}.layer.{j}.layer_norm.weight": (hidden,)}
            last = f"{side}.block.{i}.layer.{len(attentions)}."
            state |= {
                f"{last}DenseReluDense.wi.weight": (inner, hidden),
                f"{last}DenseReluDense.wo.weight": (hidden, inner),
            }
        state |= {f"{side}.final_layer_norm.weight": (hidden,)}
        state |= {f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, 8)}
    return state


def bart(layers: int = 6, hidden: int = 768) -> Shapes:
    state: Shapes = {"model.shared.weight": (50265, hidden)}
    for side, attentions in (("encoder", ("self_attn",)), ("decoder", ("self_attn", "encoder_attn"))):
        for i in range(layers):
            block = f"model.{side}.layers.{i}."
            for attention in attentions:
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    state |= linear(f"{block}{attention}.{part}", hidden, hidden)
            state |= linear(f"{block}fc1", 4 * hidden, hidden) | linear(f"{block}fc2", hidden, 4 * hidden)
    return state


def mamba(layers: int = 24, hidden: int = 768) -> Shapes:
    inner = 2 * hidden
    state: Shapes = {"backbone.embeddings.weight": (50280, hidden)}
    for i in range(layers):
        mixer = f"backbone.layers.{i}.mixer."
        state |= {
            f"{mixer}A_log": (inner, 16), f"{mixer}D": (inner,), f"{mixer}conv1d.weight": (inner, 1, 4),
            f"{mixer}conv1d.bias": (inner,), f"{mixer}in_proj.weight": (2 * inner, hidden),
            f"{mixer}x_proj.weight": (48 + 32, inner), f"{mixer}dt_proj.weight": (inner, 48),
            f"{mixer}dt_proj.bias": (inner,), f"{mixer}out_proj.weight": (hidden, inner),
            f"backbone.layers.{i}.norm.weight": (hidden,),
        }  # fmt: skip
    return state | {"backbone.norm_f.weight": (hidden,)}
