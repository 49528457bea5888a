"""Side-cars as transformers, bitsandbytes and tokenizers write them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opening import values

from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.readers import open_checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]

# equal widths everywhere: only the order tells the projections of attention apart
LLAMA: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 48, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 12, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "max_position_embeddings": 48, "sliding_window": 8,
}  # fmt: skip
GPT: dict[str, Any] = {"vocab_size": 48, "n_positions": 48, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_inner": 48}
BERT: dict[str, Any] = {**LLAMA, "type_vocab_size": 48, "vocab_size": 48}
BART: dict[str, Any] = {
    "vocab_size": 48, "d_model": 48, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 46,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
VIT: dict[str, Any] = {**LLAMA, "image_size": 16, "patch_size": 4}
CAUSAL, MASKED, SEQ2SEQ, CLASSES, IMAGES = (
    "AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM", "AutoModelForSequenceClassification",
    "AutoModelForImageClassification",
)  # fmt: skip
NAMED: dict[str, tuple[str, dict[str, Any]]] = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "phi", "olmo", "olmo2",
         "granite", "cohere", "cohere2", "stablelm", "starcoder2", "smollm3", "gpt_neox", "ministral3", "exaone4"),
        (CAUSAL, LLAMA),
    ),
    "gpt2": (CAUSAL, GPT),
    "gpt_bigcode": (CAUSAL, GPT),
    "gptj": (CAUSAL, {**GPT, "rotary_dim": 4}),
    "gpt_neo": (CAUSAL, {
        "vocab_size": 48, "hidden_size": 48, "intermediate_size": 48, "num_layers": 2, "num_heads": 4,
        "max_position_embeddings": 48, "attention_types": [[["global", "local"], 1]],
    }),
    "falcon": (CAUSAL, {"vocab_size": 48, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}),
    "bloom": (CAUSAL, {"vocab_size": 48, "hidden_size": 48, "n_layer": 2, "n_head": 4}),
    "mpt": (CAUSAL, {"vocab_size": 48, "d_model": 48, "n_layers": 2, "n_heads": 4, "expansion_ratio": 1}),
    "opt": (CAUSAL, {**LLAMA, "ffn_dim": 48, "word_embed_proj_dim": 48}),
    "mamba": (CAUSAL, {"vocab_size": 48, "hidden_size": 48, "num_hidden_layers": 2}),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "deberta-v2", "modernbert"), (MASKED, BERT)),
    "albert": (CLASSES, {**BERT, "embedding_size": 48}),
    "distilbert": (CLASSES, {"vocab_size": 48, "dim": 48, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}),
    "t5": (SEQ2SEQ, {"vocab_size": 48, "d_model": 48, "d_ff": 48, "d_kv": 12, "num_layers": 2, "num_heads": 4}),
    "mt5": (SEQ2SEQ, {"vocab_size": 48, "d_model": 48, "d_ff": 48, "d_kv": 12, "num_layers": 2, "num_heads": 4}),
    **dict.fromkeys(("bart", "mbart"), (SEQ2SEQ, BART)),
    **dict.fromkeys(("vit", "dinov2", "beit"), (IMAGES, VIT)),
}  # fmt: skip
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    # one order in its encoder and another one in its head
    "electra": (MASKED, {**BERT, "embedding_size": 48}),
    # its positions are trained, and not saved
    "marian": (SEQ2SEQ, BART),
    # built with experts in one stack, saved expert by expert
    "mixtral": (CAUSAL, {**LLAMA, "num_local_experts": 2}),
    "qwen3_moe": (CAUSAL, {**LLAMA, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 48}),
}


def saved_run(folder: Path, family: str, auto: str, said: dict[str, Any], frozen: str = "") -> Any:
    """Save a model with an optimizer whose groups the trainer makes; the moments repeat the weights."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **said)
    model = getattr(transformers, auto).from_config(config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen or frozen not in name)
    decayed = set(transformers.Trainer.get_decay_parameter_names(None, model))
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW([
        {"params": [p for name, p in named if name in decayed]},
        {"params": [p for name, p in named if name not in decayed], "weight_decay": 0.0},
    ])  # fmt: skip
    with torch.no_grad():
        for i, (_, parameter) in enumerate(named):
            parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape) % 7 + 1000 * i)
            moments = {"exp_avg": parameter.detach().clone(), "exp_avg_sq": parameter.detach().clone()}
            optimizer.state[parameter] = {"step": torch.tensor(1.0), **moments}
    model.save_pretrained(folder)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    return model


def check_names(checkpoint: Checkpoint) -> None:
    state = checkpoint.optimizer_state
    assert state is not None
    assert state.is_named
    for slot in state.slots:
        np.testing.assert_array_equal(values(slot.moments["exp_avg"]), values(checkpoint.tensors[slot.name]))


@pytest.mark.parametrize("family", NAMED)
def test_names_are_those_of_the_weights(tmp_path: Path, family: str) -> None:
    saved_run(tmp_path, family, *NAMED[family])
    check_names(open_checkpoint(tmp_path))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "vit"])
def test_frozen_embeddings_are_left_out(tmp_path: Path, family: str) -> None:
    auto, said = NAMED[family]
    frozen = {"gpt2": "wte", "t5": "shared", "vit": "patch_embeddings.projection.weight"}.get(family, "word_embeddings")
    saved_run(tmp_path, family, auto, {**said, "vocab_size": 41}, frozen if family != "llama" else "embed_tokens")
    check_names(open_checkpoint(tmp_path))


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_be_told_apart_has_no_names(tmp_path: Path, family: str) -> None:
    saved_run(tmp_path, family, *REFUSED[family])
    state = open_checkpoint(tmp_path).optimizer_state
    assert state is not None
    assert not any(slot.name for slot in state.slots)


def test_all_layers_but_the_last_frozen_is_refused(tmp_path: Path) -> None:
    saved_run(tmp_path, "llama", *NAMED["llama"], frozen="layers.0")
    state = open_checkpoint(tmp_path).optimizer_state
    assert state is not None
    assert not any(slot.name for slot in state.slots)


def test_a_run_of_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate")
    monkeypatch.setitem(os.environ, "TOKENIZERS_PARALLELISM", "false")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**LLAMA, "num_hidden_layers": 2}))
    tokens = [{"input_ids": row, "labels": row} for row in torch.randint(0, 40, (32, 12))]
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=8, per_device_train_batch_size=4, gradient_accumulation_steps=2, learning_rate=3e-3,
        lr_scheduler_type="cosine", warmup_steps=2, weight_decay=0.1, logging_steps=1, save_steps=4, use_cpu=True,
        eval_strategy="steps", eval_steps=4, report_to=[], seed=7, disable_tqdm=True, metric_for_best_model="loss",
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=tokens, eval_dataset=tokens[:8])
    result = trainer.train()
    trainer.save_metrics("train", result.metrics)
    trainer.save_metrics("eval", trainer.evaluate())
    checkpoint = open_checkpoint(tmp_path / "checkpoint-8")
    training, state = checkpoint.training, checkpoint.optimizer_state
    assert training.step.value == trainer.state.global_step == 8
    logged = {entry["step"]: entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry}
    rate = trainer.optimizer.param_groups[0]["lr"]
    assert training.lr.value == tuple(sorted({**logged, 8: rate}.items()))
    assert len(training.losses.value) == len(training.grad_norms.value) == 8
    assert [step for step, _ in training.metrics.value["eval_loss"]] == [4, 8]
    assert (training.schedule.value, training.batch.value) == ("cosine", 8)
    assert training.optimizer.value.startswith("adamw_torch")
    settings = training.hyperparameters.value
    assert (settings["warmup_steps"], settings["max_steps"], settings["seed"]) == (2, 8, 7)
    assert settings["base_lrs"] == (3e-3, 3e-3)
    assert checkpoint.notes == ()
    assert state is not None
    assert state.kind == "adam"
    live = dict(trainer.model.named_parameters())
    for slot in state.slots:
        kept = trainer.optimizer.state[live[slot.name]]
        np.testing.assert_array_equal(values(slot.moments["exp_avg_sq"]), kept["exp_avg_sq"].numpy())
        assert slot.step == 8
    # the folder of the run itself holds the results, and no weights
    trainer.save_model(str(tmp_path))
    final = open_checkpoint(tmp_path).training.final
    assert final.value == {"eval_loss": json.loads((tmp_path / "eval_results.json").read_text())["eval_loss"]}


@pytest.mark.parametrize("name", ["AdamW8bit", "PagedAdamW8bit", "SGD8bit", "Lion8bit", "AdamW"])
def test_eight_bit_optimizers(tmp_path: Path, name: str) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(128, 100), torch.nn.ReLU(), torch.nn.Linear(100, 10))
    more = {"momentum": 0.9} if "SGD" in name else {}
    optimizer = getattr(bitsandbytes.optim, name)(net.parameters(), lr=1e-3, **more)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(8, 128)).square().mean().backward()
        optimizer.step()
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    state = open_checkpoint(tmp_path / "x.pt").optimizer_state
    assert state is not None
    is_adam = "Adam" in name
    assert (state.kind, state.is_named, state.unread) == ("adam" if is_adam else "unknown", True, ())
    live = dict(net.named_parameters())
    for slot in state.slots:
        kept = optimizer.state[live[slot.name]]
        assert slot.step == 3
        for i, ours in ((1, "exp_avg" if is_adam else "state1"), (2, "exp_avg_sq")) if is_adam else ((1, "state1"),):
            expected = kept[f"state{i}"]
            if expected.dtype == torch.uint8:
                quantized = {"absmax": kept[f"absmax{i}"], "code": kept[f"qmap{i}"], "blocksize": 256}
                expected = bitsandbytes.functional.dequantize_blockwise(expected, **quantized)
            np.testing.assert_array_equal(values(slot.moments[ours]), expected.numpy())


def test_eight_bit_moments_of_torchao(tmp_path: Path) -> None:
    low = pytest.importorskip("torchao.optim")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(256, 64), torch.nn.Linear(64, 4))
    optimizer = low.AdamW8bit(net.parameters())
    for parameter in net.parameters():
        # what a step would make, without its compiler
        moments = {name: optimizer._new_buffer(parameter, name == "exp_avg") for name in ("exp_avg", "exp_avg_sq")}
        for moment in moments.values():
            moment.copy_(torch.rand(parameter.shape))
        optimizer.state[parameter] = {"step": torch.tensor(2.0), **moments}
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    state = open_checkpoint(tmp_path / "x.pt").optimizer_state
    assert state is not None
    assert (state.kind, state.is_named, state.unread) == ("adam", True, ())
    live = dict(net.named_parameters())
    for slot in state.slots:
        for name, moment in slot.moments.items():
            expected = optimizer.state[live[slot.name]][name]
            expected = expected.dequantize() if hasattr(expected, "codes") else expected
            np.testing.assert_array_equal(values(moment), expected.numpy())


def test_sizes_of_tokenizers(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    texts = ["the cat sat on the mat", "a dog ate the cat's hat"] * 5
    models, trainers, special = tokenizers.models, tokenizers.trainers, ["<unk>"]
    for kind, trainer in (
        (models.BPE(), trainers.BpeTrainer(vocab_size=60, special_tokens=["<s>", "</s>"])),
        (models.Unigram(), trainers.UnigramTrainer(vocab_size=40, unk_token="<unk>", special_tokens=special)),
        (models.WordPiece(unk_token="<unk>"), trainers.WordPieceTrainer(special_tokens=special)),
        (models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer(special_tokens=special)),
    ):
        tokenizer = tokenizers.Tokenizer(kind)
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.add_tokens(["new word", "another"])
        folder = tmp_path / type(kind).__name__
        folder.mkdir()
        torch.save({"w": torch.ones(2)}, folder / "pytorch_model.bin")
        tokenizer.save(str(folder / "tokenizer.json"), pretty=True)
        one = open_checkpoint(folder).tokenizer
        assert one is not None
        assert one.size == tokenizer.get_vocab_size(with_added_tokens=True)
        tokenizer.enable_padding(length=8)
        tokenizer.enable_truncation(8)
        tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        assert open_checkpoint(folder).tokenizer == one
        tokenizer.add_tokens(["third"])
        tokenizer.save(str(folder / "tokenizer.json"))
        assert open_checkpoint(folder).tokenizer != one
