"""Schedulers, arguments, training checkpoints, cards: what is found beside and inside of weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch_bytes import Instance, Raw, adam_state, opcodes, saved

from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.readers import open_checkpoint
from diffai_jupyter.wording import say

Save = Callable[..., Path]
BASE = {"base_lrs": [0.1, 0.01], "last_epoch": 3, "_step_count": 4, "_last_lr": [0.05, 0.005]}


def sentences(checkpoint: Checkpoint) -> str:
    return "\n".join(say(note.template, note.said) for note in checkpoint.notes)


@pytest.fixture
def run(tmp_path: Path, save: Save) -> Path:
    """Return a folder with weights."""
    return save(tmp_path / "model.safetensors", {"w": 1}).parent


# scheduler.pt


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ({"T_max": 10, "eta_min": 0.0}, "CosineAnnealingLR"),
        ({"T_max": 10, "eta_min": 0.0, "verbose": False}, "CosineAnnealingLR"),
        ({"step_size": 3, "gamma": 0.1}, "StepLR"),
        ({"milestones": {3: 1, 5: 1}, "gamma": 0.1}, "MultiStepLR"),
        ({"gamma": 0.9}, "ExponentialLR"),
        ({"total_iters": 5, "power": 1.0}, "PolynomialLR"),
        ({"factor": 0.5, "total_iters": 5}, "ConstantLR"),
        ({"start_factor": 1.0, "end_factor": 0.1, "total_iters": 5}, "LinearLR"),
        ({"start_factor": 0.1, "end_factor": 1.0, "total_iters": 5}, "constant_with_warmup"),
        ({"factor": 0.1, "patience": 10, "mode": "min", "num_bad_epochs": 0, "best": 1.0}, "ReduceLROnPlateau"),
        # a function leaves nothing, and other attributes mean another class
        ({"lr_lambdas": [None]}, None),
        ({"gamma": 0.9, "warmup_iters": 10}, None),
        ({"T_max": 10, "eta_min": 0.0, "cycle": 2}, None),
    ],
)
def test_classes_of_schedulers(run: Path, attributes: dict[str, Any], name: str | None) -> None:
    saved(run / "scheduler.pt", {**BASE, **attributes})
    training = open_checkpoint(run).training
    assert (training.schedule.value if training.schedule.is_known else None) == name
    assert training.hyperparameters.value["base_lrs"] == (0.1, 0.01)
    assert training.lr.value == ((0, 0.05),)
    assert training.lr.source == "scheduler.pt (step not stated)"
    # the scheduler may count epochs
    assert not training.step.is_known


def test_a_warm_up_and_what_follows_it(run: Path) -> None:
    warm, cosine = {"start_factor": 0.1, "end_factor": 1.0, "total_iters": 3}, {"T_max": 7, "eta_min": 0}
    whole = {"_milestones": [3], "last_epoch": 4, "_last_lr": [0.1]}
    for parts, name in (
        ([warm, cosine], "warmup_cosine"), ([warm, {"gamma": 0.9}], "warmup_exponential"), ([cosine, warm], None),
        ([warm, cosine, cosine], None), ([warm, {**whole, "_schedulers": [warm, cosine]}], None),
    ):  # fmt: skip
        saved(run / "scheduler.pt", {**whole, "_schedulers": [{**BASE, **part} for part in parts]})
        schedule = open_checkpoint(run).training.schedule
        assert (schedule.value if schedule.is_known else None) == name


def test_the_scheduler_goes_before_the_log(run: Path, write_json: Callable[..., Path]) -> None:
    log = [{"step": 10, "learning_rate": 0.2}, {"step": 20, "learning_rate": 0.1}]
    write_json(run / "trainer_state.json", {"global_step": 20, "log_history": log})
    saved(run / "scheduler.pt", BASE)
    training = open_checkpoint(run).training
    assert training.lr.value == ((10, 0.2), (20, 0.05))
    assert training.lr.source == "scheduler.pt, trainer_state.json"
    saved(run / "optimizer.pt", adam_state([(2, 3)], lr=0.07))
    assert open_checkpoint(run).training.lr.value == ((10, 0.2), (20, 0.07))


@pytest.mark.parametrize("root", [{}, [], {"last_epoch": 1}, {"last_epoch": 1, "_last_lr": ["x"]}, {"_last_lr": [1.0]}])
def test_odd_schedulers_say_nothing(run: Path, root: Any) -> None:
    saved(run / "scheduler.pt", root)
    checkpoint = open_checkpoint(run)
    assert not checkpoint.training.lr.is_known
    assert checkpoint.notes == ()


# training_args.bin


def arguments(**more: Any) -> Instance:
    state = {
        "output_dir": "out", "learning_rate": 3e-4, "warmup_steps": 100, "warmup_ratio": 0.0, "weight_decay": 0.1,
        "lr_scheduler_type": Instance("transformers.trainer_utils.SchedulerType", args=("cosine",)),
        "optim": Instance("transformers.training_args.OptimizerNames", args=("adamw_torch",)),
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 8, "max_steps": -1, "num_train_epochs": 3.0,
        "seed": 42, "metric_for_best_model": "eval_f1", "max_grad_norm": 1.0, "label_smoothing_factor": 0.0,
        "adam_beta1": 0.9, "adam_beta2": 0.95, "adam_epsilon": 1e-8, "hub_token": "secret", "_n_gpu": 1,
        "distributed_state": Instance("accelerate.state.PartialState", {"num_processes": 2}), **more,
    }  # fmt: skip
    return Instance("transformers.training_args.TrainingArguments", state)


def test_arguments_of_the_trainer(run: Path) -> None:
    saved(run / "training_args.bin", arguments())
    checkpoint = open_checkpoint(run)
    training = checkpoint.training
    assert (training.schedule.value, training.schedule.source) == ("cosine", "training_args.bin")
    assert training.optimizer.value == "adamw_torch"
    assert training.batch.value == 4 * 8 * 2
    assert training.batch.source == "training_args.bin: 4 per device x 8 accumulated x 2 devices"
    settings = training.hyperparameters.value
    assert settings["learning_rate"] == 3e-4
    assert (settings["metric_for_best_model"], settings["seed"], settings["adam_beta2"]) == ("eval_f1", 42, 0.95)
    # below zero means not set; tokens and paths are no settings of the training
    assert not {"max_steps", "hub_token", "output_dir"} & set(settings)
    assert not training.lr.is_known
    # what trainers save names classes of trainers: no news
    assert checkpoint.notes == ()


@pytest.mark.parametrize(
    "more",
    [
        {"distributed_state": None},
        {"_n_gpu": None},
        {"auto_find_batch_size": True},
        {"parallelism_config": {"tp": 2}},
    ],
)
def test_a_batch_with_an_unknown_factor_is_unknown(run: Path, more: dict[str, Any]) -> None:
    saved(run / "training_args.bin", arguments(**more))
    batch = open_checkpoint(run).training.batch
    assert not batch.is_known
    assert batch.detail.startswith("training_args.bin gives 4 per device x 8 accumulated; the number of devices")


def test_the_optimizer_itself_corrects_its_name(run: Path) -> None:
    saved(run / "training_args.bin", arguments())
    saved(run / "optimizer.pt", adam_state([(2, 3)]))
    assert open_checkpoint(run).training.optimizer.value == "adamw_torch"
    group = {"lr": 0.1, "momentum": 0.9, "dampening": 0, "nesterov": False, "params": [0]}
    saved(run / "optimizer.pt", {"state": {}, "param_groups": [group]})
    optimizer = open_checkpoint(run).training.optimizer
    assert (optimizer.value, optimizer.source) == ("sgd", "optimizer.pt")


@pytest.mark.parametrize(
    "root", [{}, 5, Instance("a.B", {}), Instance("a.B", args=(1,)), [Instance("a.B", {"optim": []})]]
)
def test_odd_arguments_say_nothing(run: Path, root: Any) -> None:
    saved(run / "training_args.bin", root)
    training = open_checkpoint(run).training
    assert not training.hyperparameters.is_known
    assert not training.batch.is_known


# training checkpoints


def lightning(**more: Any) -> dict[str, Any]:
    callback = {
        "monitor": "val_loss", "best_model_score": np.array(0.25, "<f4"), "current_score": np.array(0.75, "<f4"),
        "best_model_path": "/runs/epoch=1-step=20.ckpt",
        "best_k_models": {
            "/runs/epoch=1-step=20.ckpt": np.array(0.25, "<f4"), "C:\\runs\\epoch=2-step=30.ckpt": np.array(0.5, "<f4"),
        },
    }  # fmt: skip
    return {
        "epoch": 2, "global_step": 30, "pytorch-lightning_version": "2.6.0",
        "state_dict": {"net.weight": np.ones((2, 3), "<f4"), "net.bias": np.ones(2, "<f4")},
        "callbacks": {"ModelCheckpoint{'monitor': 'val_loss'}": callback, "EarlyStopping{}": {"monitor": "x"}},
        "optimizer_states": [adam_state([(2, 3), (2,)], step=30)],
        "lr_schedulers": [{**BASE, "T_max": 10, "eta_min": 0.0}],
        "hyper_parameters": Instance("lightning_fabric.AttributeDict", {"lr": 0.01, "layers": 2, "o": {}}),
        **more,
    }  # fmt: skip


def test_lightning(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(saved(tmp_path / "epoch=2-step=30.ckpt", lightning()))
    training = checkpoint.training
    assert training.step.value == 30
    assert training.schedule.value == "CosineAnnealingLR"
    assert training.lr.value == ((30, 1e-3),)
    settings = training.hyperparameters.value
    assert (settings["lr"], settings["layers"], settings["monitor"], settings["T_max"]) == (0.01, 2, "val_loss", 10)
    assert training.progress.value == {"epoch": 2.0, "best_model_score": 0.25}
    # the score that was kept under the name of this very file, not the last or the best one
    assert training.final.value == {"val_loss": 0.5}
    assert checkpoint.optimizer_state is not None
    assert [slot.name for slot in checkpoint.optimizer_state.slots] == ["net.weight", "net.bias"]
    assert not open_checkpoint(saved(tmp_path / "last.ckpt", lightning())).training.final.is_known


def test_lightning_counts_steps_in_its_loops_too(tmp_path: Path) -> None:
    done = {"optimizer": {"step": {"total": {"ready": 31, "completed": 31}}}}
    loops = {"fit_loop": {"epoch_loop.automatic_optimization.optim_progress": done}}
    root = lightning(loops=loops)
    assert open_checkpoint(saved(tmp_path / "x.ckpt", root)).training.step.value == 30
    del root["global_step"]
    assert open_checkpoint(saved(tmp_path / "x.ckpt", root)).training.step.value == 31


def test_deepspeed_states_the_batch(tmp_path: Path) -> None:
    root = {
        "module": {"w": np.ones((2, 3), "<f4")}, "global_steps": 90, "optimizer": None, "lr_scheduler": dict(BASE),
        "ds_config": {"train_batch_size": 256, "zero_optimization": {"stage": 2}},
    }  # fmt: skip
    training = open_checkpoint(saved(tmp_path / "mp_rank_00_model_states.pt", root)).training
    assert (training.step.value, training.batch.value) == (90, 256)
    assert training.lr.value == ((90, 0.05),)


def test_the_log_of_the_trainer_goes_before_the_file_itself(tmp_path: Path, write_json: Callable[..., Path]) -> None:
    write_json(tmp_path / "trainer_state.json", {"global_step": 31})
    root = {"model": {"w": np.ones((2, 3), "<f4")}, "global_step": 30}
    assert open_checkpoint(saved(tmp_path / "x.pt", root)).training.step.value == 31


@pytest.mark.parametrize(
    "more",
    [
        {"callbacks": []}, {"callbacks": {"ModelCheckpoint": 5}}, {"hyper_parameters": "x"}, {"lr_schedulers": {}},
        {"loops": 5}, {"epoch": "two"}, {"global_step": -1}, {"optimizer_states": [{}]}, {"global_step": 10**30},
    ],
)  # fmt: skip
def test_odd_training_checkpoints_open(tmp_path: Path, more: dict[str, Any]) -> None:
    checkpoint = open_checkpoint(saved(tmp_path / "x.ckpt", lightning(**more)))
    assert list(checkpoint.tensors) == ["net.bias", "net.weight"]


def test_a_call_in_the_place_of_a_number_is_not_made(tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    call = Raw(opcodes.called("os", "system", opcodes.text(f"touch {sentinel}")))
    path = saved(tmp_path / "x.ckpt", lightning(global_step=call, callbacks=call, lr_schedulers=[call]))
    checkpoint = open_checkpoint(path)
    assert not sentinel.exists()
    assert "x.ckpt would call os.system" in sentences(checkpoint)
    # the step of each parameter stands in
    assert checkpoint.training.step.value == 30


# README.md


CARD = """---
license: mit
model-index:
- name: x
  results:
  - task: {type: text-classification}
    dataset: {name: a, type: a}
    metrics:
    - {type: accuracy, value: 0.91, name: Accuracy}
    - {type: f1, value: 0.8}
    - {type: note, value: good}
  - dataset: {name: b, type: b}
    metrics:
    - {type: f1, value: 0.7}
- name: y
  results: [{metrics: [{type: recall, value: 0.1}]}]
---
# x

It achieves the following results on the evaluation set:
- Loss: 0.25
- Rouge 1: 41.5
- Accuracy: 0.5

## Training procedure

### Training hyperparameters

The following hyperparameters were used during training:
- learning_rate: 5e-05
- train_batch_size: 8
- seed: 42
- gradient_accumulation_steps: 4
- total_train_batch_size: 32
- optimizer: Use OptimizerNames.ADAMW_TORCH with betas=(0.9,0.999) and epsilon=1e-08
- lr_scheduler_type: linear
- num_epochs: 3

### Training results

- Other: 1
"""


def test_the_card_is_the_weakest_source(run: Path, write_json: Callable[..., Path]) -> None:
    (run / "README.md").write_text(CARD)
    training = open_checkpoint(run).training
    # a metric with two values, and that of another model, is none of this one's
    assert training.final.value == {"accuracy": 0.91, "loss": 0.25, "rouge_1": 41.5}
    assert (training.schedule.value, training.optimizer.value, training.batch.value) == ("linear", "adamw_torch", 32)
    assert (training.lr.value, training.lr.source) == (((0, 5e-5),), "README.md learning_rate, initial")
    assert training.hyperparameters.value["seed"] == 42
    write_json(run / "eval_results.json", {"accuracy": 0.5})
    saved(run / "training_args.bin", arguments())
    training = open_checkpoint(run).training
    assert training.final.value == {"accuracy": 0.5, "loss": 0.25, "rouge_1": 41.5}
    assert (training.schedule.value, training.batch.value) == ("cosine", 64)


def test_cards_of_older_trainers_and_without_accumulation(run: Path) -> None:
    (run / "README.md").write_text(
        "### Training hyperparameters\n- train_batch_size: 16\r\n- optimizer: Adam with betas=(0.9,0.999)\n"
    )
    training = open_checkpoint(run).training
    assert (training.batch.value, training.optimizer.value) == (16, "adam")
    assert not training.final.is_known


@pytest.mark.parametrize(
    "text",
    [
        "", "# hello", "---\n[\n---\n", "---\nmodel-index: 5\n---\n",
        "---\nmodel-index: [{results: [{metrics: 1}]}]\n---\n",
        "---\n" + "[" * 5000 + "\n---\n", "---\n!!python/object/apply:os.system ['touch x']\n---\n",
        "---\na: &a [x]\nb: &b [*a,*a]\nmodel-index: *b\n---\n",
        "---\nmodel-index: [{results: [{metrics: [{type: f1, value: .nan}, 3]}]}]\n---\n",
    ],
)  # fmt: skip
def test_other_cards_say_nothing(run: Path, text: str) -> None:
    (run / "README.md").write_text(text)
    checkpoint = open_checkpoint(run)
    final = checkpoint.training.final
    assert not final.is_known or list(final.value) == ["f1"]
    assert checkpoint.notes == ()


def test_a_card_that_is_no_text_is_a_note(run: Path) -> None:
    (run / "README.md").write_bytes(b"\xff\xfe\x00")
    assert "README.md beside the weights could not be read" in sentences(open_checkpoint(run))
