"""Make the two checkpoints of a small language model that the pages of the analyses look at.

Needs torch, transformers and tokenizers; nothing else of the site does, because the checkpoints are kept.
The text is the reference that ships with Python, so no download is needed:

    python docs/site/train_language_model.py
"""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

OUT = Path(__file__).parent / "checkpoints"
KEPT = (200, 600)
LENGTH, BATCH = 64, 16
CONFIG = LlamaConfig(
    vocab_size=512,
    hidden_size=48,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    tie_word_embeddings=True,
)


def tokenizer_of(text: str) -> Tokenizer:
    """Learn the tokens of the text: bytes, merged pair by pair."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([text], trainers.BpeTrainer(vocab_size=CONFIG.vocab_size, initial_alphabet=alphabet))
    return made


def main() -> None:
    """Train, and keep the network after 200 and after 600 steps in bfloat16."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    text = "\n".join(topics[key] for key in sorted(topics))
    tokenizer = tokenizer_of(text)
    tokens = torch.tensor(tokenizer.encode(text).ids)
    model = LlamaForCausalLM(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    for step in range(1, KEPT[-1] + 1):
        starts = torch.randint(0, len(tokens) - LENGTH, (BATCH,))
        batch = torch.stack([tokens[start : start + LENGTH] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in KEPT:
            kept = LlamaForCausalLM(CONFIG)
            kept.load_state_dict(model.state_dict())
            folder = OUT / f"step-{step}"
            kept.to(torch.bfloat16).save_pretrained(folder)
            (folder / "generation_config.json").unlink(missing_ok=True)
            tokenizer.save(str(folder / "tokenizer.json"), pretty=False)


if __name__ == "__main__":
    main()
