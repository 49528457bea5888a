"""What a training checkpoint says of the training beside its weights: PyTorch Lightning, DeepSpeed, plain programs.

References
----------
Lightning 2.6, ``trainer/connectors/checkpoint_connector.py`` (dump_checkpoint) and ``callbacks/model_checkpoint.py``;
https://deepspeed.readthedocs.io (``train_batch_size`` counts the samples of one step of all devices).
"""

from __future__ import annotations

import re
from typing import Any

from diffai_jupyter.checkpoint.model import Training
from diffai_jupyter.readers.sidecars.graph import Graph
from diffai_jupyter.readers.sidecars.scheduler import read_scheduler, scheduler_in
from diffai_jupyter.readers.sidecars.training import known_fields, strongest

_STEPS = ("global_step", "global_steps", "step", "iteration")
_SETTINGS = ("hyper_parameters", "hparams")
_DONE = (
    "loops", "fit_loop", "epoch_loop.automatic_optimization.optim_progress", "optimizer", "step", "total", "completed",
)  # fmt: skip
_CALLBACKS = 100


def read_inside(graph: Graph) -> Training:
    """Read step, schedule, settings and metrics that a checkpoint keeps beside its weights."""
    inside = graph.mapping(graph.root)
    # an array of that name may be a weight
    counts = (graph.count(inside.get(key)) for key in _STEPS if not graph.is_array(inside.get(key)))
    step = next((count for count in counts if count is not None), graph.count(graph.at(*_DONE)))
    settings: dict[str, Any] = {}
    for key in _SETTINGS:
        settings |= {name: value for name, value in graph.settings(inside.get(key)).items() if name not in settings}
    final, watched, best = _callbacks(graph)
    epoch = graph.number(inside.get("epoch"))
    deepspeed = graph.mapping(inside.get("ds_config"))
    training = Training(
        **known_fields(
            graph.name,
            step=step,
            final=final,
            batch=graph.count(deepspeed.get("train_batch_size")) or None,
            progress={**({"epoch": epoch} if epoch is not None else {}), **best},
            hyperparameters={**settings, **watched},
        )
    )
    scheduler = scheduler_in(graph)
    if scheduler is None:
        return training
    return strongest(training, read_scheduler(graph, scheduler, graph.name, step))


def _callbacks(graph: Graph) -> tuple[dict[str, float], dict[str, Any], dict[str, Any]]:
    """Return what ``ModelCheckpoint`` measured for this very file, what it watches, and what was best so far.

    The score it calls current may be older than the file; the one that it keeps under the path of the file is not.
    """
    final: dict[str, float] = {}
    watched: dict[str, Any] = {}
    best: dict[str, Any] = {}
    for key, found in list(graph.mapping(graph.at("callbacks")).items())[:_CALLBACKS]:
        state = graph.mapping(found)
        monitor = graph.plain(state.get("monitor"))
        if not str(key).startswith("ModelCheckpoint") or not isinstance(monitor, str):
            continue
        watched.setdefault("monitor", monitor)
        score = graph.number(state.get("best_model_score"))
        if score is not None:
            best.setdefault("best_model_score", score)
        kept = [*graph.mapping(state.get("best_k_models")).items()][:_CALLBACKS]
        for path, entry in (*kept, (state.get("best_model_path"), score)):
            own = graph.number(entry)
            if own is not None and isinstance(path, str) and re.split(r"[/\\]", path)[-1] == graph.name:
                final.setdefault(monitor, own)
    return final, watched, best
