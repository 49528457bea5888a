"""``training_args.bin``: the arguments of the Hugging Face trainer, a pickle that is followed and never executed."""

from __future__ import annotations

from typing import Any

from diffai_jupyter.checkpoint.model import Training
from diffai_jupyter.evidence import unknown
from diffai_jupyter.readers.sidecars.graph import Graph
from diffai_jupyter.readers.sidecars.training import known_fields
from diffai_jupyter.wording import plural

_SETTINGS = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "warmup_ratio", "weight_decay", "optim", "optim_args",
    "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "seed", "data_seed",
    "metric_for_best_model", "greater_is_better", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm",
    "label_smoothing_factor", "neftune_noise_alpha", "bf16", "fp16", "group_by_length", "auto_find_batch_size",
    "max_length", "max_seq_length", "packing", "beta",
)  # fmt: skip
_BATCH = "per_device_train_batch_size"
_ACCUMULATED = "gradient_accumulation_steps"


def read_arguments(graph: Graph) -> Training:
    """Read what the trainer was told.

    The batch is samples per device, times the accumulated steps, times the devices. The processes are those of the
    machine that wrote the file; where they are not in it, the batch is unknown.
    """
    state = graph.mapping(graph.root)
    settings = {key: value for key in _SETTINGS if (value := graph.plain(state.get(key))) not in (None, "")}
    steps = graph.count(state.get("max_steps"))
    if steps:  # zero and below mean that it was not set
        settings["max_steps"] = steps
    found: dict[str, Any] = known_fields(
        graph.name,
        schedule=settings.get("lr_scheduler_type"),
        optimizer=settings.get("optim"),
        hyperparameters=settings,
    )
    return Training(**found, **_batch(graph, state))


def _batch(graph: Graph, state: Any) -> dict[str, Any]:
    per_device, accumulated = graph.count(state.get(_BATCH)), graph.count(state.get(_ACCUMULATED))
    if not per_device or not accumulated:
        return {}
    factors = f"{per_device} per device x {accumulated} accumulated"
    processes = graph.count(graph.mapping(state.get("distributed_state")).get("num_processes"))
    devices = graph.count(state.get("_n_gpu"))
    is_split = state.get("parallelism_config") is not None or graph.plain(state.get("auto_find_batch_size")) is True
    if not processes or devices is None or is_split:
        detail = f"{graph.name} gives {factors}; the number of devices that share the data is not known"
        return {"batch": unknown("NEEDS_SETTINGS", detail)}
    world = processes * max(1, devices)
    source = f"{graph.name}: {factors} x {plural(world, 'device')}"
    return known_fields(source, batch=per_device * accumulated * world)
