"""``trainer_state.json``, as the Hugging Face trainer writes it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from diffai_jupyter.checkpoint.model import Json, Training
from diffai_jupyter.evidence import unknown
from diffai_jupyter.readers.sidecars.folder import SidecarFolder
from diffai_jupyter.readers.sidecars.training import by_step, known_fields, number, step_of

_NAME = "trainer_state.json"
_SETTINGS = ("max_steps", "num_train_epochs", "train_batch_size", "logging_steps", "eval_steps", "save_steps")
_SPEED = ("_runtime", "_per_second", "_time")


def read_trainer(files: SidecarFolder) -> Training:
    """Read the log of the trainer and what it was told to do."""
    state = files.read(_NAME)
    if not state:
        return Training()
    log = _read_log(state.get("log_history"))
    settings = {key: state[key] for key in _SETTINGS if number(state.get(key)) is not None}
    found: dict[str, Any] = known_fields(
        _NAME,
        step=step_of(state.get("global_step")),
        losses=by_step(log.pop("loss", [])),
        lr=by_step(log.pop("learning_rate", [])),
        grad_norms=by_step(log.pop("grad_norm", [])),
        metrics={key: by_step(points) for key, points in log.items()},
        hyperparameters=settings,
    )
    if "train_batch_size" in settings:
        detail = (
            f"{_NAME} gives {settings['train_batch_size']} per device; gradient accumulation and the "
            "number of devices are not stated"
        )
        found["batch"] = unknown("NEEDS_CONFIG", detail)
    return Training(**found)


def is_metric(key: str) -> bool:
    """Say whether a logged name is an evaluation metric and not a speed.

    Examples
    --------
    >>> is_metric("eval_loss"), is_metric("eval_runtime"), is_metric("loss")
    (True, False, False)
    """
    return key.startswith("eval_") and not key.endswith(_SPEED)


def _read_log(history: Json) -> dict[str, list[tuple[int, float]]]:
    """Return the points of each curve; entries without a step or a number are no points."""
    curves: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    for entry in history if isinstance(history, list) else ():
        step = step_of(entry.get("step")) if isinstance(entry, dict) else None
        if step is None or not isinstance(entry, dict):
            continue
        for key, found in entry.items():
            value = number(found)
            if value is not None and (key in ("loss", "learning_rate", "grad_norm") or is_metric(key)):
                curves[key].append((step, value))
    return dict(curves)
