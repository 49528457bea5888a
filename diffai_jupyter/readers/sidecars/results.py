"""``eval_results.json`` and its like: one value per metric, at the end of a run."""

from __future__ import annotations

from diffai_jupyter.checkpoint.model import History, Training
from diffai_jupyter.evidence import Value
from diffai_jupyter.readers.sidecars.folder import SidecarFolder
from diffai_jupyter.readers.sidecars.trainer import is_metric
from diffai_jupyter.readers.sidecars.training import known_fields, number, step_of, strongest

_NAMES = ("eval_results.json", "all_results.json", "train_results.json")


def read_results(files: SidecarFolder, step: Value) -> Training:
    """Read final metrics.

    Parameters
    ----------
    files : SidecarFolder
        The side-cars.
    step : Value of int
        Optimizer steps done, if another side-car tells them. A value whose step nothing tells stands
        at step 0, and its source says so.
    """
    training = Training()
    for name in _NAMES:
        content = files.read(name)
        at = step.value if step.is_known else step_of(content.get("step"))
        source = name if at is not None else f"{name} (step not stated)"
        metrics: dict[str, History] = {}
        for key, found in content.items():
            value = number(found)
            if value is not None and is_metric(key):
                metrics[key] = ((at or 0, value),)
        # the trainer's train_loss is a mean over the run: better than no loss, weaker than a log
        mean = number(content.get("train_loss"))
        losses = () if mean is None else ((at or 0, mean),)
        found_here = {
            **known_fields(source, metrics=metrics),
            **known_fields(f"{source}, mean over the run", losses=losses),
        }
        training = strongest(training, Training(**found_here))
    return training
