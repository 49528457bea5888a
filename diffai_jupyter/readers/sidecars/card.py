"""``README.md``: what a model card says of the training and of the results; the weakest source.

References
----------
https://huggingface.co/docs/hub/model-cards (``model-index``); transformers 5.24 ``modelcard.py`` for the sections
that its trainer writes.
"""

from __future__ import annotations

import re
from typing import Any

from diffai_jupyter.checkpoint.model import Training
from diffai_jupyter.readers.sidecars.folder import SidecarFolder
from diffai_jupyter.readers.sidecars.training import known_fields, number

_NAME = "README.md"
_LIMIT, _FRONT_LIMIT = 1 << 20, 1 << 18
_FRONT = re.compile(r"\A---\r?\n(.*?)\r?\n---\s*(?:\n|\Z)", re.DOTALL)
_ITEM = re.compile(r"[-*] (?P<key>[\w ./@-]{1,80}): (?P<value>.{1,200})")
_RESULTS = "achieves the following results on the evaluation set"
_SETTINGS = "training hyperparameters"
_MOST = 1000
_TAKEN = (
    "learning_rate", "train_batch_size", "seed", "distributed_type", "num_devices", "gradient_accumulation_steps",
    "total_train_batch_size", "lr_scheduler_type", "lr_scheduler_warmup_steps", "lr_scheduler_warmup_ratio",
    "num_epochs", "training_steps", "mixed_precision_training", "label_smoothing_factor",
)  # fmt: skip


def read_card(files: SidecarFolder) -> Training:
    """Read results and settings out of the card of a model."""
    text = files.text(_NAME, _LIMIT)
    if not text:
        return Training()
    front = _FRONT.match(text)
    final = _indexed(front[1]) if front and len(front[1]) <= _FRONT_LIMIT else {}
    listed = {_snake(key): _number(value) for key, value in _items(text, _RESULTS)}
    final |= {key: value for key, value in listed.items() if value is not None and key not in final}
    said = {_snake(key): value for key, value in _items(text, _SETTINGS)}
    settings = {key: _plain(said[key]) for key in _TAKEN if key in said}
    rate = _number(said.get("learning_rate", ""))
    batch = settings.get("total_train_batch_size", settings.get("train_batch_size"))
    return Training(
        **known_fields(
            _NAME,
            final=final,
            schedule=said.get("lr_scheduler_type"),
            optimizer=_optimizer(said.get("optimizer", "")),
            batch=batch if isinstance(batch, int) and batch > 0 else None,
            hyperparameters=settings,
        ),
        # the rate that was set is the one at the start
        **known_fields(f"{_NAME} learning_rate, initial", lr=((0, rate),) if rate is not None else ()),
    )


def _indexed(front: str) -> dict[str, float]:
    """Return the metrics of the first model of a ``model-index``; damaged front matter holds none.

    A metric that is given for several data sets, with other values, is none: which of them counts is a guess.
    """
    # Only a folder with a card needs it.
    import yaml

    try:
        found: Any = yaml.load(front, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    values: dict[str, set[float]] = {}
    for model in _entries(found, "model-index")[:1]:
        for result in _entries(model, "results")[:_MOST]:
            for metric in _entries(result, "metrics")[:_MOST]:
                value = number(metric.get("value")) if isinstance(metric, dict) else None
                name = metric.get("type") or metric.get("name") if isinstance(metric, dict) else None
                if value is not None and isinstance(name, str) and len(values) < _MOST:
                    values.setdefault(_snake(name), set()).add(value)
    return {name: found.pop() for name, found in values.items() if len(found) == 1}


def _entries(found: Any, key: str) -> list[Any]:
    inside = found.get(key) if isinstance(found, dict) else None
    return inside if isinstance(inside, list) else []


def _items(text: str, title: str) -> list[tuple[str, str]]:
    """Return the items of the list that follows a line with this title."""
    items, is_in = [], False
    for line in text.splitlines():
        if (found := _ITEM.fullmatch(line.strip())) and is_in:
            items.append((found["key"], found["value"].strip()))
        elif line.strip():
            if items:
                break
            is_in = is_in or title in line.lower()
            is_in = is_in and (title in line.lower() or not line.startswith("#"))
    return items[:_MOST]


def _snake(name: str) -> str:
    return re.sub(r"\s+", "_", name.strip().lower())


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _plain(text: str) -> int | float | str:
    value = _number(text)
    if value is None:
        return text
    return int(text) if text.lstrip("-").isdecimal() and len(text) < 20 else value


def _optimizer(text: str) -> str | None:
    """Return the name at the start of a sentence such as ``Use adamw_torch with betas=(0.9,0.999) and …``."""
    found = re.match(r"(?:Use )?(?:\w+\.)?(?P<name>\w+)", text)
    return found["name"].lower() if found else None
