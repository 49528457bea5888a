"""Side-cars: what they say, what they do not say, and what happens when they are damaged."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffai_jupyter.checkpoint.model import Checkpoint, Training
from diffai_jupyter.checkpoint.storage import StoredFile
from diffai_jupyter.errors import FormatError
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.readers import open_checkpoint
from diffai_jupyter.readers.documents import read_document
from diffai_jupyter.wording import say

STATE = {
    "global_step": 500,
    "epoch": 2.0,
    "max_steps": 1000,
    "num_train_epochs": 4,
    "train_batch_size": 8,
    "best_metric": 0.4,
    "total_flos": 1e15,
    "log_history": [
        {"step": 100, "epoch": 0.4, "loss": 2.5, "learning_rate": 1e-4, "grad_norm": 1.5},
        {"step": 500, "loss": 1, "learning_rate": 5e-5, "grad_norm": 0.5},
        {
            "step": 250,
            "eval_loss": 2.0,
            "eval_accuracy": 0.5,
            "eval_runtime": 3.2,
            "eval_samples_per_second": 9.0,
            "eval_samples": 64,
        },
        {"step": 500, "eval_loss": 1.5, "eval_accuracy": 0.75},
        {"step": 500, "train_runtime": 12.0, "train_loss": 1.7},
    ],
}
KOHYA = {
    "ss_steps": "300",
    "ss_learning_rate": "0.0001",
    "ss_unet_lr": "None",
    "ss_lr_scheduler": "cosine",
    "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1)",
    "ss_total_batch_size": "16",
    "ss_network_dim": "32",
    "ss_seed": "42",
    "ss_epoch": "3",
    "ss_num_epochs": "10",
    "ss_max_grad_norm": "None",
    "ss_tag_frequency": "{}",
}


@pytest.fixture
def make(
    tmp_path: Path, save: Callable[..., Path], write_json: Callable[..., Path]
) -> Callable[..., Checkpoint]:
    def made(metadata: dict[str, str] | None = None, **files: Any) -> Checkpoint:
        save(tmp_path / "model.safetensors", {"w": 1}, metadata)
        for name, content in files.items():
            path = tmp_path / f"{name}.json"
            if isinstance(content, (str, bytes)):
                path.write_bytes(content.encode() if isinstance(content, str) else content)
            else:
                write_json(path, content)
        return open_checkpoint(tmp_path)

    return made


Make = Callable[..., Checkpoint]


def warnings(checkpoint: Checkpoint) -> list[str]:
    return [say(note.template, note.said) for note in checkpoint.notes if note.is_warning]


def test_nothing_beside_the_weights_is_nothing_known(make: Make) -> None:
    checkpoint = make()
    assert checkpoint.config == {}
    assert checkpoint.training == Training()
    assert checkpoint.notes == ()


def test_trainer_state(make: Make) -> None:
    training = make(trainer_state=STATE).training
    assert training.step.value == 500
    assert training.losses.value == ((100, 2.5), (500, 1.0))
    assert training.lr.value == ((100, 1e-4), (500, 5e-5))
    assert training.grad_norms.value == ((100, 1.5), (500, 0.5))
    assert training.metrics.value == {
        "eval_loss": ((250, 2.0), (500, 1.5)),
        "eval_accuracy": ((250, 0.5), (500, 0.75)),
    }
    assert training.hyperparameters.value == {"max_steps": 1000, "num_train_epochs": 4, "train_batch_size": 8}
    assert training.progress.value == {"epoch": 2.0, "best_metric": 0.4, "total_flos": 1e15}
    for value in (training.step, training.losses, training.lr, training.grad_norms, training.metrics):
        assert (value.evidence, value.source) == (Evidence.REPORTED, "trainer_state.json")
    assert all(isinstance(point[1], float) for point in training.losses.value)


def test_what_the_trainer_does_not_say_stays_unknown(make: Make) -> None:
    training = make(trainer_state=STATE).training
    assert not training.batch.is_known
    assert "8 per device" in training.batch.detail
    assert not training.schedule.is_known
    assert not training.optimizer.is_known
    training = make(trainer_state={"log_history": []}).training
    assert training == Training()


def test_the_log_goes_before_the_name_of_the_folder(
    tmp_path: Path, save: Callable[..., Path], write_json: Callable[..., Path]
) -> None:
    folder = tmp_path / "checkpoint-500"
    save(folder / "model.safetensors", {"w": 1})
    step = open_checkpoint(folder).training.step
    assert (step.value, step.evidence, step.source) == (500, Evidence.REPORTED, "name of the folder")
    assert open_checkpoint(folder / "model.safetensors").training.step == step
    write_json(folder / "trainer_state.json", {"global_step": 499})
    assert open_checkpoint(folder).training.step.value == 499


@pytest.mark.parametrize(
    ("folder", "file", "expected"),
    [
        ("run", "epoch=3-step=500.safetensors", (500, "name of the file")),
        ("run", "model_step-00070.safetensors", (70, "name of the file")),
        ("checkpoint-9", "step_8.safetensors", (8, "name of the file")),
        ("global_step500", "x.safetensors", (500, "name of the folder")),
        ("checkpoint-best", "model.safetensors", None),
        ("run-7", "model-00001-of-00002.safetensors", None),
        ("4steps", "v2.safetensors", None),
        ("checkpoint-" + "9" * 40, "v2.safetensors", None),
    ],
)
def test_steps_in_names(
    tmp_path: Path, save: Callable[..., Path], folder: str, file: str, expected: tuple[int, str] | None
) -> None:
    step = open_checkpoint(save(tmp_path / folder / file, {"w": 1})).training.step
    assert ((step.value, step.source) if step.is_known else None) == expected


def test_the_working_directory_has_a_name_too(
    tmp_path: Path, save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "checkpoint-20" / "model.safetensors", {"w": 1})
    monkeypatch.chdir(tmp_path / "checkpoint-20")
    assert open_checkpoint(".").training.step.value == 20
    assert open_checkpoint("model.safetensors").training.step.value == 20


def test_a_resumed_run_logs_again_what_was_lost(make: Make) -> None:
    steps = [(100, 3.0), (200, 2.0), (300, 1.5), (400, 9.0), (250, 1.75), (350, 1.25)]
    log = [{"step": step, "loss": loss} for step, loss in steps]
    log += [{"step": 350, "eval_loss": 1.5}, {"step": 350, "eval_loss": 1.25}]
    training = make(trainer_state={"global_step": 350, "log_history": log}).training
    assert training.losses.value == ((100, 3.0), (200, 2.0), (250, 1.75), (350, 1.25))
    assert training.metrics.value == {"eval_loss": ((350, 1.25),)}


def test_the_best_checkpoint_is_no_setting(make: Make) -> None:
    state = {**STATE, "best_model_checkpoint": "out/checkpoint-250", "num_input_tokens_seen": 0}
    training = make(trainer_state=state).training
    assert training.progress.value["best_model_checkpoint"] == "out/checkpoint-250"
    # tokens that were not counted are zero in the file
    assert "num_input_tokens_seen" not in training.progress.value
    assert not {"epoch", "best_metric", "best_model_checkpoint"} & set(training.hyperparameters.value)


def test_logs_of_diverged_runs(make: Make) -> None:
    log = '[{"step": 1, "loss": NaN}, {"step": 2, "loss": Infinity}]'
    checkpoint = make(trainer_state=f'{{"global_step": 2, "log_history": {log}}}')
    (_, first), (_, second) = checkpoint.training.losses.value
    assert math.isnan(first)
    assert second == math.inf
    assert checkpoint.notes == ()


def test_odd_entries_in_a_log_are_no_points(make: Make) -> None:
    log = [
        None,
        [],
        {"loss": 1.0},
        {"step": "1", "loss": 1.0},
        {"step": True, "loss": 1.0},
        {"step": -1, "loss": 1.0},
        {"step": 1.5, "loss": 1.0},
        {"step": 1, "loss": "1.0"},
        {"step": 1, "loss": None},
        {"step": 1, "loss": True},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": 0.25},
        {"step": 4, "loss": 10**400},
    ]
    training = make(trainer_state={"global_step": "7", "log_history": log}).training
    assert training.losses.value == ((2, 0.5), (3, 0.25), (4, math.inf))
    assert not training.step.is_known
    assert make(trainer_state={"log_history": {"step": 1}}).training == Training()


def test_kohya_metadata(make: Make) -> None:
    training = make(KOHYA).training
    assert training.step.value == 300
    assert training.lr.value == ((0, 1e-4),)
    assert training.lr.source == "__metadata__ ss_learning_rate, initial"
    assert training.schedule.value == "cosine"
    assert training.optimizer.value == KOHYA["ss_optimizer"]
    assert training.batch.value == 16
    assert training.hyperparameters.value["ss_network_dim"] == 32
    assert training.hyperparameters.value["ss_num_epochs"] == 10
    # how far it came is no setting
    assert "ss_epoch" not in training.hyperparameters.value
    assert training.progress.value == {"ss_epoch": 3}
    assert not {"ss_unet_lr", "ss_max_grad_norm", "ss_tag_frequency"} & set(training.hyperparameters.value)
    assert not training.losses.is_known


def test_kohya_rates_and_batches_that_are_not_whole(make: Make) -> None:
    training = make(
        {"ss_learning_rate": "None", "ss_unet_lr": "2e-4", "ss_batch_size_per_device": "4"}
    ).training
    assert training.lr.value == ((0, 2e-4),)
    assert not training.batch.is_known
    assert "4 per device" in training.batch.detail
    training = make({"ss_steps": "None", "ss_learning_rate": "None", "ss_max_train_steps": "1000"}).training
    assert not training.step.is_known
    assert not training.lr.is_known
    assert training.hyperparameters.value == {"ss_max_train_steps": 1000}
    assert make({"ss_steps": "many", "format": "pt"}).training == Training()
    assert not make({"ss_learning_rate": "nan"}).training.lr.is_known


def test_the_log_of_the_trainer_goes_before_metadata(make: Make) -> None:
    training = make(KOHYA, trainer_state=STATE).training
    assert (training.step.value, training.step.source) == (500, "trainer_state.json")
    assert training.lr.value[-1] == (500, 5e-5)
    assert (training.batch.value, training.schedule.value) == (16, "cosine")
    assert training.hyperparameters.value["ss_seed"] == 42
    assert training.hyperparameters.value["max_steps"] == 1000
    assert training.hyperparameters.source == "trainer_state.json, __metadata__"


def test_final_results(make: Make) -> None:
    training = make(
        eval_results={"epoch": 2.0, "eval_loss": 9.0, "eval_f1": 0.8, "eval_runtime": 1.0, "eval_samples": 408},
        test_results={"test_accuracy": 0.75, "accuracy": 0.5, "seed": 1},
        all_results={"eval_f1": 0.1, "eval_bleu": 30, "train_loss": 3.0, "accuracy": 0.1},
        train_results={"train_loss": 4.0, "train_runtime": 3},
        trainer_state={"global_step": 500, "log_history": [{"step": 10, "eval_loss": 1.5}]},
    ).training
    # what was stated for this checkpoint is not mixed with what was logged on the way
    assert training.metrics.value == {"eval_loss": ((10, 1.5),)}
    assert training.final.value == {
        "eval_loss": 9.0, "eval_f1": 0.8, "test_accuracy": 0.75, "accuracy": 0.5, "eval_bleu": 30.0,
    }  # fmt: skip
    assert training.final.source == "eval_results.json, test_results.json, all_results.json"
    assert training.losses.value == ((500, 3.0),)
    assert training.losses.source == "all_results.json, mean over the run"


def test_results_keep_the_step_that_they_state(make: Make) -> None:
    training = make(eval_results={"eval_loss": 1.5}, train_results={"train_loss": 2.0}).training
    assert training.final.value == {"eval_loss": 1.5}
    assert not training.metrics.is_known
    assert not training.step.is_known
    assert (training.losses.value, training.losses.source) == (
        ((0, 2.0),), "train_results.json (step not stated), mean over the run"
    )  # fmt: skip
    training = make(eval_results={"eval_loss": 1.5, "step": 70}).training
    assert training.metrics.value == {"eval_loss": ((70, 1.5),)}
    assert training.final.value == {"eval_loss": 1.5}
    training = make(eval_results={"eval_loss": 1.5, "step": 70}, trainer_state={"global_step": 80}).training
    assert training.metrics.value == {"eval_loss": ((70, 1.5),)}
    assert not training.final.is_known


def test_results_of_a_diverged_run(make: Make) -> None:
    training = make(eval_results='{"eval_loss": NaN, "eval_f1": Infinity, "eval_note": "bad"}').training
    assert math.isnan(training.final.value.pop("eval_loss"))
    assert training.final.value == {"eval_f1": math.inf}


def test_configurations(make: Make) -> None:
    config = make(
        config={"model_type": "llama", "quantization_config": {"bits": 4}},
        generation_config={"top_p": 0.9},
        adapter_config={"r": 8},
        quantize_config={"bits": 8},
    ).config
    assert config == {
        "model_type": "llama",
        "quantization_config": {"bits": 4},
        "generation_config": {"top_p": 0.9},
        "adapter_config": {"r": 8},
    }


@pytest.mark.parametrize("name", ["quantize_config", "hf_quant_config"])
def test_separate_quantization_files(make: Make, name: str) -> None:
    assert make(**{name: {"bits": 8}}).config == {"quantization_config": {"bits": 8}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a":1,"a":2}',
        b"<html>",
        b"version https://git-lfs.github.com/spec/v1\n",
    ],
)
@pytest.mark.parametrize("name", ["config", "trainer_state", "eval_results"])
def test_a_damaged_sidecar_never_stops_the_comparison(make: Make, name: str, content: bytes) -> None:
    checkpoint = make(**{name: content})
    assert list(checkpoint.tensors) == ["w"]
    assert (checkpoint.config, checkpoint.training) == ({}, Training())
    assert len(warnings(checkpoint)) == 1
    assert f"{name}.json beside the weights could not be read" in warnings(checkpoint)[0]


def test_a_byte_order_mark_is_no_damage(make: Make) -> None:
    assert make(config='\ufeff{"a": 1}').config == {"a": 1}


def test_sidecars_that_are_no_files(make: Make, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    (tmp_path / "trainer_state.json").mkdir()
    secret = tmp_path.parent / f"{tmp_path.name}-secret.json"
    secret.write_text('{"eval_loss": 1.0}')
    (tmp_path / "eval_results.json").symlink_to(secret)
    checkpoint = make()
    assert len(warnings(checkpoint)) == 3
    assert checkpoint.training == Training()


def test_huge_sidecars_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(FormatError, match=r"65\.0 MiB exceed the limit of 64\.0 MiB"):
        read_document(StoredFile.at(tmp_path / "config.json"))


def test_a_file_by_itself_has_its_sidecars_too(
    tmp_path: Path, save: Callable[..., Path], write_json: Callable[..., Path]
) -> None:
    path = save(tmp_path / "weights.safetensors", {"w": 1})
    write_json(tmp_path / "config.json", {"model_type": "bert"})
    write_json(tmp_path / "trainer_state.json", STATE)
    checkpoint = open_checkpoint(path)
    assert checkpoint.config == {"model_type": "bert"}
    assert checkpoint.training.step.value == 500
    assert checkpoint.notes == ()


def test_a_log_beside_several_checkpoints_is_questioned(
    tmp_path: Path, save: Callable[..., Path], write_json: Callable[..., Path]
) -> None:
    path = save(tmp_path / "before.safetensors", {"w": 1})
    save(tmp_path / "after.safetensors", {"w": 2})
    write_json(tmp_path / "config.json", {})
    assert open_checkpoint(path).notes == ()
    write_json(tmp_path / "trainer_state.json", STATE)
    write_json(tmp_path / "eval_results.json", {"eval_loss": 1.0})
    checkpoint = open_checkpoint(path)
    (said,) = warnings(checkpoint)
    assert said.startswith(
        "trainer_state.json, eval_results.json lies beside several checkpoints (after.safetensors), and was not read"
    )
    assert checkpoint.training == Training()


def test_other_formats_and_shards_of_the_same_weights_are_no_other_checkpoints(
    tmp_path: Path, save: Callable[..., Path], write_json: Callable[..., Path]
) -> None:
    write_json(tmp_path / "trainer_state.json", STATE)
    path = save(tmp_path / "model.safetensors", {"w": 1})
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "optimizer.bin").write_bytes(b"")
    assert open_checkpoint(path).training.step.value == 500
    shard = save(tmp_path / "y" / "model-00001-of-00002.safetensors", {"w": 1})
    save(tmp_path / "y" / "model-00002-of-00002.safetensors", {"v": 1})
    write_json(tmp_path / "y" / "trainer_state.json", STATE)
    assert open_checkpoint(shard).training.step.value == 500
