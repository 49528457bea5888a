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
    EVALUATE_EVERY,
    LOG_EVERY,
    STEPS_PER_EPOCH,
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

Cast = dict[str, NDArray[np.uint16]]
"""Parameters as the bits of bfloat16, which NumPy has no type for."""


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
        Share of held-back digits that it names right; NaN in the weights makes it worthless.
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
    cast = {name: _bfloat16_bits(value) for name, value in late.parameters.items()}
    damaged = {name: value.copy() for name, value in late.parameters.items()}
    damaged[DAMAGED_TENSOR][DAMAGED_ELEMENT] = np.nan

    def score(parameters: Parameters, images: NDArray[np.float32]) -> float:
        return evaluate(parameters, images, digits.held_labels)[1]

    _write(folder / "early", early.parameters, early)
    _write(folder / "late", late.parameters, late)
    _write(folder / "head-tuned", head.parameters, head)
    _write(folder / "late-bf16", cast)
    _write(folder / "late-damaged", damaged)
    return (
        Written(folder / "early", f"after {EARLY} steps", score(early.parameters, digits.held_images)),
        Written(folder / "late", f"after {LATE} steps", score(late.parameters, digits.held_images)),
        Written(
            folder / "head-tuned",
            f"late, its last layer trained {HEAD_PLAN.steps} more steps on shifted digits",
            score(head.parameters, shifted.held_images),
        ),
        Written(folder / "late-bf16", "late, cast to bfloat16", score(_widened(cast), digits.held_images)),
        Written(folder / "late-damaged", "late, with one NaN", score(damaged, digits.held_images)),
    )


def _write(folder: Path, parameters: Parameters | Cast, moment: Moment | None = None) -> None:
    """Write weights and config.json, and trainer_state.json where the network was trained to this point."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(_safetensors(parameters))
    is_float32 = all(value.dtype == np.float32 for value in parameters.values())
    config = {
        "architectures": ["DigitClassifier"],
        "model_type": "mlp",
        "input_size": SIZES[0],
        "hidden_sizes": list(SIZES[1:-1]),
        "hidden_act": "relu",
        "num_labels": SIZES[-1],
        "torch_dtype": "float32" if is_float32 else "bfloat16",
    }
    _write_json(folder / "config.json", config)
    if moment is not None:
        _write_json(folder / "trainer_state.json", _trainer_state(moment))


def _trainer_state(moment: Moment) -> dict[str, object]:
    return {
        "epoch": epoch(moment.step),
        "eval_steps": EVALUATE_EVERY,
        "global_step": moment.step,
        "log_history": list(moment.log),
        "logging_steps": LOG_EVERY,
        "max_steps": moment.plan.steps,
        "num_train_epochs": -(-moment.plan.steps // STEPS_PER_EPOCH),
        "train_batch_size": BATCH,
    }


def _safetensors(parameters: Parameters | Cast) -> bytes:
    """Return the bytes of a safetensors file: header length, JSON header, the arrays one after the other.

    Written here because the NumPy writer of the safetensors package has no bfloat16, and its
    lower-level writer takes other arguments from one version to the next.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, value in parameters.items():
        begin, end = end, end + value.nbytes
        kind = "BF16" if value.dtype == np.uint16 else "F32"
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    arrays = (value.astype(value.dtype.newbyteorder("<")).tobytes() for value in parameters.values())
    return struct.pack("<Q", len(text)) + text + b"".join(arrays)


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8", newline="\n")


def _bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the upper half of each float32, rounded to nearest, ties to even."""
    bits = values.view(np.uint32)
    rounding = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    upper: NDArray[np.uint32] = (bits + rounding) >> np.uint32(16)
    return upper.astype(np.uint16)


def _widened(cast: Cast) -> Parameters:
    return {name: (bits.astype(np.uint32) << np.uint32(16)).view(np.float32) for name, bits in cast.items()}
