"""What the columns of a log are called: places, losses, rates, norms, metrics, and what is none of these."""

from __future__ import annotations

import re
from collections.abc import Iterable

STEPS = (
    "step", "global_step", "train_global_step", "trainer_global_step", "training_step", "train_step", "iteration",
    "iterations", "iter", "update", "updates", "_step",
)  # fmt: skip
EPOCHS = ("epoch", "epochs", "train_epoch")
LOSSES = (
    "loss", "train_loss", "training_loss", "loss_train", "loss_training", "train_loss_step", "loss_step",
    "batch_loss", "train_loss_epoch", "loss_epoch",
)  # fmt: skip
_TRAIN = r"(?:train(?:ing|er)?_)?"
_SPLIT = r"eval(?:uation)?|val(?:id(?:ation)?)?|dev|test"
_RATE = re.compile(rf"{_TRAIN}(?:lr|learning_rate)(?:_[a-z]+\d*)?(?:_pg\d+|_\d+)?")
_NORM = re.compile(rf"{_TRAIN}(?:total_)?grad(?:ient)?_norm(?:_total)?|grad_2_0_norm_total")
_METRIC = re.compile(rf"(?:{_SPLIT})_.+")
_SPLIT_BEHIND = re.compile(rf"(.+)[/_ ]({_SPLIT})", re.IGNORECASE)
_BOOKKEEPING = re.compile(
    r"(?:.*_)?(?:runtime|time|timestamp|seconds|per_second|samples|total_flos|flops|tokens(?:_seen)?)"
    rf"|(?:(?:train|{_SPLIT}|best)_)?(?:steps?|epochs?|count|support|alias)"
)


def key_of(name: str) -> str:
    """Return a name the way names are compared: in lower case, with underscores for whatever separates.

    Examples
    --------
    >>> key_of("Train/Loss"), key_of("lr-AdamW"), key_of("grad_2.0_norm_total")
    ('train_loss', 'lr_adamw', 'grad_2_0_norm_total')
    """
    return re.sub(r"[\s/.-]+", "_", name.strip().lower())


def is_bookkeeping(name: str) -> bool:
    """Say whether a name counts or times something: it is no metric, and nobody misses it.

    Examples
    --------
    >>> is_bookkeeping("eval_runtime"), is_bookkeeping("epoch"), is_bookkeeping("val_loss_epoch")
    (True, True, False)
    """
    return _BOOKKEEPING.fullmatch(key_of(name)) is not None


def metric_of(name: str) -> str:
    """Return what an evaluation metric is called, its split in front; empty for other columns.

    Examples
    --------
    >>> metric_of("eval_loss"), metric_of("Loss/val"), metric_of("val accuracy"), metric_of("eval_runtime")
    ('eval_loss', 'val/Loss', 'val_accuracy', '')
    """
    if behind := _SPLIT_BEHIND.fullmatch(name.strip()):
        name = f"{behind[2]}/{behind[1]}"
    is_metric = _METRIC.fullmatch(key_of(name)) and not is_bookkeeping(name)
    return re.sub(r"\s+", "_", name.strip()) if is_metric else ""


def roles_of(names: Iterable[str]) -> dict[str, str]:
    """Return which column holds what: ``losses``, ``lr``, ``grad_norms``, and metrics by their names.

    Of several for one role the first counts, of losses the one by the batch before the mean of an epoch.

    Examples
    --------
    >>> roles_of(["step", "train_loss_epoch", "train_loss_step", "lr-Adam/pg1", "lr-Adam/pg2", "val_loss"])
    {'losses': 'train_loss_step', 'lr': 'lr-Adam/pg1', 'val_loss': 'val_loss'}
    """
    by_key: dict[str, str] = {}
    metrics: dict[str, str] = {}
    for name in names:
        by_key.setdefault(key_of(name), name)
        if metric := metric_of(name):
            metrics.setdefault(metric, name)
    found = {
        "losses": [key for key in LOSSES if key in by_key],
        "lr": [key for key in by_key if _RATE.fullmatch(key)],
        "grad_norms": [key for key in by_key if _NORM.fullmatch(key)],
    }
    return {role: by_key[keys[0]] for role, keys in found.items() if keys} | metrics
