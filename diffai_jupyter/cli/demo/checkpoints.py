"""The five checkpoints of the demo, written the way a trainer leaves them on disk."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.cli.demo.network import Parameters, evaluate, start
from diffai_jupyter.cli.demo.training import (
    BATCH,
    LOG_EVERY,
    STEPS_PER_EPOCH,
    Digits,
    Moment,
    Plan,
    epoch,
    load_digits,
    train,
)

SIZES = (64, 96, 64, 10)
EARLY, LATE = 150, 900
WHOLE_PLAN = Plan(steps=LATE, warmup=50, peak=0.05, seed=1)
HEAD_PLAN = Plan(steps=200, warmup=10, peak=0.05, seed=2, trained=("layers.2.",))
DAMAGED_TENSOR, DAMAGED_ELEMENT = "layers.1.weight", (17, 5)


@dataclass(frozen=True, slots=True)
class Written:
    """A checkpoint that was written.

    Parameters
    ----------
    folder : Path
        Where it is.
    story : str
        How it came to be, in a few words.
    accuracy : float
        Share of held-back digits that it names right.
    """

    folder: Path
    story: str
    accuracy: float


def write_checkpoints(folder: Path) -> tuple[Written, ...]:
    """Train the network and write its checkpoints into folders below `folder`.

    Returns
    -------
    tuple of Written
        ``early`` and ``late`` of one run; ``head-tuned``, where training went on from ``late`` with only
        the last layer moving, on digits shifted by a pixel; ``late-bf16``, the same numbers in 16 bits;
        ``late-damaged``, with one NaN.
    """
    digits = load_digits()
    early, late = train(start(SIZES, seed=0), digits, WHOLE_PLAN, keep=(EARLY, LATE))
    shifted = digits.shifted()
    (head,) = train(late.parameters, shifted, HEAD_PLAN, keep=(HEAD_PLAN.steps,))
    cast = {name: _rounded(value) for name, value in late.parameters.items()}
    damaged = {name: value.copy() for name, value in late.parameters.items()}
    damaged[DAMAGED_TENSOR][DAMAGED_ELEMENT] = np.nan

    def write(name: str, story: str, found: Parameters, on: Digits, moment: Moment | None = None) -> Written:
        write_checkpoint(folder / name, found, "BF16" if found is cast else "F32", moment)
        return Written(folder / name, story, evaluate(found, on.held_images, on.held_labels)[1])

    tuned = f"late, its last layer trained {HEAD_PLAN.steps} more steps on shifted digits"
    return (
        write("early", f"after {EARLY} steps", early.parameters, digits, early),
        write("late", f"after {LATE} steps", late.parameters, digits, late),
        write("head-tuned", tuned, head.parameters, shifted, head),
        write("late-bf16", "late, cast to bfloat16", cast, digits),
        write("late-damaged", "late, with one NaN", damaged, digits),
    )


def write_checkpoint(folder: Path, parameters: Parameters, dtype: str, moment: Moment | None) -> None:
    """Write weights and config.json, and trainer_state.json where the network was trained to this point."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(_safetensors(parameters, dtype))
    config = {
        "architectures": ["DigitClassifier"],
        "model_type": "mlp",
        "input_size": SIZES[0],
        "hidden_sizes": list(SIZES[1:-1]),
        "hidden_act": "relu",
        "num_labels": SIZES[-1],
        "torch_dtype": "bfloat16" if dtype == "BF16" else "float32",
    }
    _write_json(folder / "config.json", config)
    if moment is not None:
        _write_json(folder / "trainer_state.json", _trainer_state(moment))


def _trainer_state(moment: Moment) -> dict[str, object]:
    return {
        "epoch": epoch(moment.step),
        "eval_steps": moment.plan.evaluate_every,
        "global_step": moment.step,
        "log_history": list(moment.log),
        "logging_steps": LOG_EVERY,
        "max_steps": moment.plan.steps,
        "num_train_epochs": -(-moment.plan.steps // STEPS_PER_EPOCH),
        "train_batch_size": BATCH,
    }


def _safetensors(parameters: Parameters, dtype: str) -> bytes:
    """Return the bytes of a safetensors file: header length, JSON header, the arrays one after the other.

    Written here because the NumPy writer of the safetensors package has no bfloat16, and its
    lower-level writer takes other arguments from one version to the next.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    payload = b""
    for name, value in parameters.items():
        begin = len(payload)
        bits = value.astype("<f4").view("<u4")
        payload += (bits >> 16).astype("<u2").tobytes() if dtype == "BF16" else bits.tobytes()
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": [begin, len(payload)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + payload


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8", newline="\n")


def _rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to the nearest number that bfloat16 holds, ties to even; its bits are the upper half."""
    bits = values.view(np.uint32)
    upper: NDArray[np.uint32] = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    rounded: NDArray[np.float32] = (upper << np.uint32(16)).view(np.float32)
    return rounded
