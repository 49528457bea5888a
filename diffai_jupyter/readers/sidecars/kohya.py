"""Training facts in the metadata of adapters trained with kohya's scripts (``ss_*``)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from diffai_jupyter.checkpoint.model import Training
from diffai_jupyter.evidence import Value, unknown
from diffai_jupyter.readers.sidecars.training import known_fields, number, step_of

_SOURCE = "__metadata__"
_RATES = ("ss_learning_rate", "ss_unet_lr", "ss_text_encoder_lr")
_SETTINGS = (
    *_RATES, "ss_lr_scheduler", "ss_lr_warmup_steps", "ss_optimizer", "ss_max_train_steps",
    "ss_num_epochs", "ss_batch_size_per_device", "ss_total_batch_size", "ss_gradient_accumulation_steps",
    "ss_max_grad_norm", "ss_network_dim", "ss_network_alpha", "ss_network_dropout",
    "ss_network_module", "ss_mixed_precision",
    "ss_noise_offset", "ss_min_snr_gamma", "ss_clip_skip", "ss_seed",
)


def read_kohya(metadata: Mapping[str, str]) -> Training:
    """Read what the metadata say of the training; the text ``None`` means absent."""
    found = {
        key: _plain(metadata[key])
        for key in _SETTINGS
        if metadata.get(key, "None").strip() not in ("", "None")
    }
    steps = _plain(metadata.get("ss_steps", "None"))
    done = _plain(metadata.get("ss_epoch", "None"))
    epoch = None if isinstance(done, str) else done
    values = known_fields(
        _SOURCE,
        step=step_of(steps if isinstance(steps, int) else None),
        schedule=_text(found.get("ss_lr_scheduler")),
        optimizer=_text(found.get("ss_optimizer")),
        progress={} if epoch is None else {"ss_epoch": epoch},
        hyperparameters=found,
    )
    for key in _RATES:
        rate = found.get(key)
        value = None if isinstance(rate, str) else number(rate)
        if value is not None:
            # the rate that was set is the one at the start
            values |= known_fields(f"{_SOURCE} {key}, initial", lr=((0, value),))
            break
    return Training(**values, **_batch(found))


def _batch(found: Mapping[str, int | float | str]) -> dict[str, Value]:
    """Return samples per optimizer step; they need the number of devices, so only the total tells."""
    total = found.get("ss_total_batch_size")
    if isinstance(total, int) and total > 0:
        return known_fields(_SOURCE, batch=total)
    if "ss_batch_size_per_device" in found:
        per_device = found["ss_batch_size_per_device"]
        detail = f"{_SOURCE} gives {per_device} per device; the number of devices is not stated"
        return {"batch": unknown("NEEDS_SETTINGS", detail)}
    return {}


def _text(found: int | float | str | None) -> str | None:
    return None if found is None else str(found)


def _plain(text: str) -> int | float | str:
    """Read a number out of text, else return the text.

    Examples
    --------
    >>> _plain("1e-4"), _plain("42"), _plain("AdamW8bit"), _plain("nan")
    (0.0001, 42, 'AdamW8bit', 'nan')
    """
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        return text
    return value if math.isfinite(value) else text
