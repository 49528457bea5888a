"""``trainer_state.json``, as the Hugging Face trainer writes it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from diffai_jupyter.checkpoint.model import Json, Training
from diffai_jupyter.evidence import unknown
from diffai_jupyter.readers.sidecars.folder import SidecarFolder
from diffai_jupyter.readers.sidecars.training import known_fields, number, resumed, step_of

_NAME = "trainer_state.json"
_SETTINGS = ("max_steps", "num_train_epochs", "train_batch_size", "logging_steps", "eval_steps", "save_steps")
_PROGRESS = ("epoch", "total_flos", "num_input_tokens_seen", "best_metric", "best_global_step")
_BEST = "best_model_checkpoint"
_CURVES = ("loss", "learning_rate", "grad_norm")
_SPLITS = ("eval_", "test_", "predict_")
_NO_METRICS = ("_runtime", "_per_second", "_time", "_samples", "_steps")
_LONGEST = 200


def read_trainer(files: SidecarFolder) -> Training:
    """Read the log of the trainer, how far it came, and what it was told to do."""
    state = files.read(_NAME)
    if not state:
        return Training()
    log = _read_log(state.get("log_history"))
    settings = {key: state[key] for key in _SETTINGS if number(state.get(key)) is not None}
    # what was not counted is zero
    progress = {key: state[key] for key in _PROGRESS if number(state.get(key))}
    best = state.get(_BEST)
    if isinstance(best, str) and 0 < len(best) <= _LONGEST:
        progress[_BEST] = best
    end = step_of(state.get("global_step"))
    found: dict[str, Any] = known_fields(
        _NAME,
        step=end,
        losses=resumed(log.pop("loss", []), end),
        lr=resumed(log.pop("learning_rate", []), end),
        grad_norms=resumed(log.pop("grad_norm", []), end),
        metrics={key: resumed(points, end) for key, points in log.items()},
        progress=progress,
        hyperparameters=settings,
    )
    if "train_batch_size" in settings:
        detail = (
            f"{_NAME} gives {settings['train_batch_size']} per device; gradient accumulation and the "
            "number of devices are not stated"
        )
        found["batch"] = unknown("NEEDS_SETTINGS", detail)
    return Training(**found)


def is_metric(key: str) -> bool:
    """Say whether a logged name is an evaluation metric, and no speed or count.

    Examples
    --------
    >>> is_metric("eval_loss"), is_metric("test_f1"), is_metric("eval_runtime"), is_metric("loss")
    (True, True, False, False)
    """
    return key.startswith(_SPLITS) and not key.endswith(_NO_METRICS)


def _read_log(history: Json) -> dict[str, list[tuple[int, float]]]:
    """Return the points of each curve; entries without a step or a number are no points."""
    curves: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    for entry in history if isinstance(history, list) else ():
        step = step_of(entry.get("step")) if isinstance(entry, dict) else None
        if step is None or not isinstance(entry, dict):
            continue
        for key, found in entry.items():
            value = number(found)
            if value is not None and (key in _CURVES or is_metric(key)):
                curves[key].append((step, value))
    return dict(curves)
