"""``eval_results.json`` and its like: one value per metric, at the end of a run."""

from __future__ import annotations

from diffai_jupyter.checkpoint.model import Json, Training
from diffai_jupyter.evidence import Value
from diffai_jupyter.readers.sidecars.folder import SidecarFolder
from diffai_jupyter.readers.sidecars.trainer import is_metric
from diffai_jupyter.readers.sidecars.training import known_fields, number, step_of, strongest

# the first two hold nothing but metrics, whatever their names
_EVALUATIONS = ("eval_results.json", "test_results.json")
_NAMES = (*_EVALUATIONS, "all_results.json", "train_results.json")
_NO_METRICS = ("epoch", "step", "global_step", "seed", "num_samples", "samples", "runtime", "total_flos")


def read_results(files: SidecarFolder, step: Value) -> Training:
    """Read the metrics that were stated for this very checkpoint.

    Parameters
    ----------
    files : SidecarFolder
        The side-cars.
    step : Value of int
        Optimizer steps done, if another side-car tells them. Metrics of another step are not those of this
        checkpoint. The mean loss of the run stands at step 0 where no step is stated, and its source says so.
    """
    training = Training()
    for name in _NAMES:
        content = files.read(name)
        stated = step_of(content.get("step")) if "step" in content else step_of(content.get("global_step"))
        at = stated if stated is not None else step.value if step.is_known else None
        metrics = {key: value for key, found in content.items() if (value := _metric(name, key, found)) is not None}
        is_this = stated is None or not step.is_known or stated == step.value
        # the trainer's train_loss is a mean over the run: better than no loss, weaker than a log
        mean = number(content.get("train_loss"))
        source = name if at is not None else f"{name} (step not stated)"
        history = {} if stated is None else {key: ((stated, value),) for key, value in metrics.items()}
        found_here = {
            **known_fields(name, final=metrics if is_this else {}, metrics=history),
            **known_fields(f"{source}, mean over the run", losses=() if mean is None else ((at or 0, mean),)),
        }
        training = strongest(training, Training(**found_here))
    return training


def _metric(file: str, key: str, found: Json) -> float | None:
    if not is_metric(key):
        is_bare = "_" not in key or not key.startswith(("train_", "eval_", "test_", "predict_"))
        if file not in _EVALUATIONS or not is_bare or key in _NO_METRICS or not is_metric(f"eval_{key}"):
            return None
    return number(found)
