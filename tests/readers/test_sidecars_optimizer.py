"""The state of an optimizer: what is read of it, and what happens when it is damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opening import Counted, values
from torch_bytes import Instance, Raw, adam_state, opcodes, saved

from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.optimizer import OptimizerState
from diffai_jupyter.checkpoint.storage import StoredFile
from diffai_jupyter.readers import open_checkpoint
from diffai_jupyter.readers.formats.pytorch.reader import read_graph
from diffai_jupyter.readers.sidecars.optimizer import names
from diffai_jupyter.readers.sidecars.optimizer import state as states
from diffai_jupyter.readers.sidecars.optimizer.state import read_optimizer
from diffai_jupyter.wording import say

Save = Callable[..., Path]


def sentences(checkpoint: Checkpoint) -> str:
    return "\n".join(say(note.template, note.said) for note in checkpoint.notes)


def read(path: Path) -> OptimizerState:
    state, notes = read_optimizer(read_graph(StoredFile.at(path))[0])
    assert state is not None, notes
    return state


@pytest.fixture
def beside_weights(tmp_path: Path, save: Save) -> Callable[[Any], Checkpoint]:
    """Open a folder with one weight of shape (2, 3) and this optimizer.pt."""

    def opened(root: Any, name: str = "optimizer.pt") -> Checkpoint:
        save(tmp_path / "model.safetensors", {"w": 1})
        if isinstance(root, bytes):
            (tmp_path / name).write_bytes(root)
        else:
            saved(tmp_path / name, root)
        return open_checkpoint(tmp_path)

    return opened


def test_groups_slots_and_lazy_moments(tmp_path: Path) -> None:
    root = adam_state([(4, 3), (4,), (2, 4)], split=(2,), step=7)
    root["param_groups"][1] |= {"lr": 5e-4, "name": "head", "odd": {"x": 1}}
    state = read(saved(tmp_path / "optimizer.pt", root))
    assert (state.source, state.kind, state.unread) == ("optimizer.pt", "adam", ())
    assert [group.ids for group in state.groups] == [(0, 1), (2,)]
    assert state.groups[0].settings == {
        "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "amsgrad": False, "foreach": None,
    }  # fmt: skip
    assert state.groups[1].settings["name"] == "head"
    assert "odd" not in state.groups[1].settings
    assert [(slot.id, slot.group, slot.step, slot.name) for slot in state.slots] == [
        (0, 0, 7, ""), (1, 0, 7, ""), (2, 1, 7, ""),
    ]  # fmt: skip
    for slot in state.slots:
        kept = root["state"][slot.id]
        assert list(slot.moments) == ["exp_avg", "exp_avg_sq"]
        for name, moment in slot.moments.items():
            np.testing.assert_array_equal(values(moment), kept[name])


def test_opening_reads_no_moment(tmp_path: Path) -> None:
    path = saved(tmp_path / "optimizer.pt", adam_state([(512, 512), (512,)]))
    file = Counted(StoredFile.at(path))
    state, _ = read_optimizer(read_graph(file)[0])
    assert state is not None
    assert file.total < 40_000 < 512 * 512 * 4
    # elsewhere each number that is stored as an array would take a request
    assert [slot.step for slot in state.slots] == [None, None]


@pytest.mark.parametrize(
    ("settings", "moments", "kind"),
    [
        ({"betas": (0.9, 0.99), "eps": 1e-8}, ("exp_avg", "exp_avg_sq"), "adam"),
        ({"betas": (0.9, 0.99), "eps": 1e-8}, ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), "adam"),
        ({"betas": (0.9, 0.99), "eps": 1e-8}, (), "adam"),
        # Lion keeps no second moment, Adamax another one, Adan has three decay rates, Prodigy scales the first one
        ({"betas": (0.9, 0.99), "weight_decay": 0.0}, ("exp_avg",), "unknown"),
        ({"betas": (0.9, 0.99), "eps": 1e-8}, ("exp_avg", "exp_inf"), "unknown"),
        ({"betas": (0.9, 0.99, 0.999), "eps": 1e-8}, ("exp_avg", "exp_avg_sq"), "unknown"),
        ({"betas": (0.9, 0.99), "eps": 1e-8, "d": 1e-6, "d_coef": 1.0}, ("exp_avg", "exp_avg_sq"), "unknown"),
        ({"momentum": 0.9, "dampening": 0, "nesterov": False}, ("momentum_buffer",), "sgd"),
        ({"momentum": 0, "dampening": 0, "nesterov": False}, (), "sgd"),
        # RMSprop has a momentum, and Muon all but dampening
        ({"momentum": 0.9, "alpha": 0.99, "eps": 1e-8}, ("square_avg", "momentum_buffer"), "unknown"),
        ({"momentum": 0.9, "nesterov": True, "ns_steps": 5}, ("momentum_buffer",), "unknown"),
        ({"lr_decay": 0, "eps": 1e-10}, ("sum",), "unknown"),
    ],
)
def test_kinds(tmp_path: Path, settings: dict[str, Any], moments: tuple[str, ...], kind: str) -> None:
    kept = {name: np.ones((2, 2), "<f4") for name in moments}
    root = {"state": {0: kept} if kept else {}, "param_groups": [{"lr": 0.1, **settings, "params": [0]}]}
    state = read(saved(tmp_path / "optimizer.pt", root))
    assert state.kind == kind
    assert [set(slot.moments) for slot in state.slots] == ([set(moments)] if moments else [])


def test_steps_in_every_form(tmp_path: Path) -> None:
    kept = {"exp_avg": np.ones(2, "<f4"), "exp_avg_sq": np.ones(2, "<f4")}
    steps = [9, 9.0, np.array([9], "<i8"), np.array(np.nan, "<f4"), -1, 2.5, None, np.ones(3, "<f4")]
    root = {
        "state": {i: {**kept, "step": step} for i, step in enumerate(steps)},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.9), "eps": 1e-8, "params": list(range(len(steps)))}],
    }
    state = read(saved(tmp_path / "optimizer.pt", root))
    assert [slot.step for slot in state.slots] == [9, 9, 9, None, None, None, None, None]
    # apex keeps one step for the whole group
    root["param_groups"][0]["step"] = 4
    assert read(saved(tmp_path / "optimizer.pt", root)).slots[4].step == 4


def test_eight_bit_moments_are_decoded_when_they_are_read(tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    codes = draw.integers(0, 256, (40, 50), dtype=np.uint8)
    absmax, qmap = draw.uniform(0.5, 2, 8).astype("<f4"), np.sort(draw.uniform(-1, 1, 256)).astype("<f4")
    small = draw.normal(size=(3,)).astype("<f4")
    nested = {"state1": codes, "qmap1": qmap, "absmax1": absmax, "state2": codes, "qmap2": qmap, "absmax2": absmax}
    root = {
        "state": {
            0: {"step": 3, "__bnb_optimizer_quant_state__": nested},
            1: {"step": 3, "state1": small, "state2": small},
            2: {"step": 3, **nested, "absmax1": absmax[:3]},
        },
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.9), "eps": 1e-8, "params": [0, 1, 2]}],
    }
    state = read(saved(tmp_path / "optimizer.pt", root))
    moment = state.slots[0].moments["exp_avg"]
    blocks = np.repeat(absmax, 256)[: codes.size].reshape(codes.shape)
    np.testing.assert_array_equal(values(moment), qmap[codes] * blocks)
    assert (moment.dtype.packing, moment.nbytes) == ("8-bit optimizer", 2000 + 8 * 4 + 1024)
    np.testing.assert_array_equal(values(state.slots[1].moments["exp_avg_sq"]), small)
    assert list(state.slots[2].moments) == ["exp_avg_sq"]
    assert state.unread == ("state1 of 1 parameters: its 8-bit codes and scales do not fit each other",)


def test_states_with_names_instead_of_numbers(tmp_path: Path, save: Save) -> None:
    moments = {"exp_avg": np.ones((2, 3), "<f4"), "exp_avg_sq": np.ones((2, 3), "<f4"), "step": 5.0}
    group = {"lr": 0.1, "betas": (0.9, 0.9), "eps": 1e-8}
    save(tmp_path / "model.safetensors", {"a.weight": 1, "b.weight": 1})
    root = {
        "state": {"_fsdp_wrapped_module.b.weight": moments, "a.weight": moments},
        "param_groups": [{**group, "params": ["_fsdp_wrapped_module.b.weight", "a.weight"]}],
    }
    saved(tmp_path / "optimizer.bin", root)
    state = open_checkpoint(tmp_path).optimizer_state
    assert state is not None
    assert state.is_named
    assert [(slot.id, slot.name) for slot in state.slots] == [(0, "b.weight"), (1, "a.weight")]
    assert state.groups[0].ids == (0, 1)
    # newer versions of PyTorch number the parameters and list their names beside
    root = adam_state([(2, 3), (2, 3)], param_names=["b.weight", "a.weight"])
    saved(tmp_path / "optimizer.bin", root)
    state = open_checkpoint(tmp_path).optimizer_state
    assert state is not None
    assert [slot.name for slot in state.slots] == ["b.weight", "a.weight"]
    # a name that is no weight's, or has another shape, spoils them all
    for bad in ({"param_names": ["b.weight", "c.weight"]}, {"param_names": ["b.weight", "b"]}):
        saved(tmp_path / "optimizer.bin", adam_state([(2, 3), (2, 3)], **bad))
        checkpoint = open_checkpoint(tmp_path)
        assert checkpoint.optimizer_state is not None
        assert [slot.name for slot in checkpoint.optimizer_state.slots] == ["", ""]
        assert names.DISAGREE in sentences(checkpoint)


def test_the_learning_rate_in_use_is_the_largest(beside_weights: Callable[..., Checkpoint]) -> None:
    root = adam_state([(2, 3), (3,)], split=(1,), step=12)
    root["param_groups"][1]["lr"] = 4e-3
    training = beside_weights(root).training
    assert training.lr.value == ((12, 4e-3),)
    assert training.lr.source == "optimizer.pt, the largest of 2 groups"
    assert (training.step.value, training.step.source) == (12, "optimizer.pt, updates")
    assert (training.optimizer.value, training.optimizer.source) == ("adam", "optimizer.pt")
    root["param_groups"][1]["lr"] = float("nan")
    for group in root["param_groups"]:
        group["decoupled_weight_decay"] = True
    training = beside_weights(root).training
    assert training.lr.value == ((12, 1e-3),)
    assert training.optimizer.value == "adamw"


def test_the_state_is_believed_before_the_log_and_completes_it(
    beside_weights: Callable[..., Checkpoint], tmp_path: Path, write_json: Callable[..., Path]
) -> None:
    log = [{"step": 10, "learning_rate": 3e-3}, {"step": 20, "learning_rate": 2e-3}]
    write_json(tmp_path / "trainer_state.json", {"global_step": 20, "log_history": log})
    training = beside_weights(adam_state([(2, 3)], step=19)).training
    assert training.step.value == 20
    assert training.lr.value == ((10, 3e-3), (20, 1e-3))
    assert training.lr.source == "optimizer.pt, trainer_state.json"


def test_a_rate_without_a_step_takes_that_of_the_folder(tmp_path: Path, save: Save) -> None:
    folder = save(tmp_path / "checkpoint-40" / "model.safetensors", {"w": 1}).parent
    group = {"lr": 0.5, "momentum": 0, "dampening": 0, "nesterov": False, "params": [0]}
    saved(folder / "optimizer.pt", {"state": {}, "param_groups": [group]})
    training = open_checkpoint(folder).training
    assert (training.lr.value, training.lr.source) == (((40, 0.5),), "optimizer.pt")
    # updates that were counted go before a name, and a step that was stated before both
    saved(folder / "optimizer.pt", adam_state([(2, 3)], step=39))
    assert open_checkpoint(folder).training.lr.value == ((39, 1e-3),)
    assert open_checkpoint(folder).training.step.value == 39


def test_a_checkpoint_holds_its_optimizer_itself(tmp_path: Path) -> None:
    weights = {"b": np.ones((4, 2), "<f4"), "a": np.ones((4, 2), "<f4"), "bias": np.ones(2, "<f4")}
    state = adam_state([(4, 2), (4, 2), (2,)], step=3)
    for key, found in (
        ("optimizer_state_dict", state), ("optimizer", state), ("optimizer_states", [state]),
    ):  # fmt: skip
        path = saved(tmp_path / "x.pt", {"epoch": 1, "model_state_dict": weights, key: found})
        checkpoint = open_checkpoint(path)
        assert checkpoint.optimizer_state is not None
        assert checkpoint.optimizer_state.source == "x.pt"
        # the order of the file is that of the model, and not the alphabet
        assert [slot.name for slot in checkpoint.optimizer_state.slots] == ["b", "a", "bias"]
        assert (checkpoint.training.step.value, checkpoint.training.lr.value) == (3, ((3, 1e-3),))
    path = saved(tmp_path / "x.pt", {"model_state_dict": weights, "optimizer_states": [state, state]})
    checkpoint = open_checkpoint(path)
    assert checkpoint.optimizer_state is None
    assert "holds the states of 2 optimizers" in sentences(checkpoint)


def test_an_optimizer_given_by_itself_has_no_weights_to_name(tmp_path: Path, save: Save) -> None:
    save(tmp_path / "model.safetensors", {"w": 1})
    path = saved(tmp_path / "optimizer.pt", adam_state([(2, 3)]))
    checkpoint = open_checkpoint(path)
    assert set(checkpoint.tensors) == {"state.0.step", "state.0.exp_avg", "state.0.exp_avg_sq"}
    assert checkpoint.optimizer_state is not None
    assert "Which weights" not in sentences(checkpoint)


def test_live_checkpoints_have_one_too() -> None:
    weights = {"w": np.ones((4, 2), np.float32), "v": np.ones((4, 2), np.float32)}
    checkpoint = open_checkpoint(
        {"model": weights, "optimizer": adam_state([(4, 2), (4, 2)], step=3), "step": 5}, "mine"
    )
    assert set(checkpoint.tensors) == {"w", "v"}
    assert checkpoint.optimizer_state is not None
    assert [slot.name for slot in checkpoint.optimizer_state.slots] == ["w", "v"]
    assert checkpoint.training.lr.value == ((5, 1e-3),)
    # a weight that is called so is no count
    assert not open_checkpoint({"step": np.ones(1)}).training.step.is_known


# Damage and malice


@pytest.mark.parametrize(
    ("root", "said"),
    [
        (b"", "ends too soon"),
        (b"PK\x03\x04", "could not be read"),
        (b"not a pickle at all", "could not be read"),
        ({"state": {}, "param_groups": [{"params": [0, 0]}]}, "listed twice"),
        ({"state": {}, "param_groups": [{"params": [True]}]}, "has no number and no name"),
        ({"state": {}, "param_groups": [{"params": [0.5]}]}, "has no number and no name"),
    ],
)
def test_damaged_states_are_notes(beside_weights: Callable[..., Checkpoint], root: Any, said: str) -> None:
    checkpoint = beside_weights(root)
    assert list(checkpoint.tensors) == ["w"]
    assert checkpoint.optimizer_state is None
    assert "optimizer.pt" in sentences(checkpoint)
    assert said in sentences(checkpoint)


@pytest.mark.parametrize(
    "root",
    [
        {"state": [], "param_groups": []},
        {"param_groups": [{}]},
        [],
        {"state": {}, "param_groups": {"params": [0]}},
        5,
    ],
)
def test_what_is_no_state_is_none(beside_weights: Callable[..., Checkpoint], root: Any) -> None:
    checkpoint = beside_weights(root)
    assert checkpoint.optimizer_state is None
    assert not checkpoint.training.lr.is_known


def test_odd_states_are_read_as_far_as_they_go(beside_weights: Callable[..., Checkpoint]) -> None:
    root: dict[str, Any] = {
        "state": {0: "x", 1: {"exp_avg": Instance("a.Sharded", {}), "step": 2}, 2: {"exp_avg": None}},
        "param_groups": [None, 5, {"lr": "high", "betas": (0.9, "x"), "params": [0, 1, 2, 3]}],
    }
    state = beside_weights(root).optimizer_state
    assert state is not None
    assert state.groups[2].settings == {"lr": "high"}
    assert [(slot.id, slot.step, dict(slot.moments)) for slot in state.slots] == [(1, 2, {})]
    assert state.unread == ("exp_avg of 1 parameters: it is an object of the class a.Sharded",)


def test_truncated_states_never_stop_the_comparison(tmp_path: Path, save: Save) -> None:
    save(tmp_path / "model.safetensors", {"w": 1})
    whole = saved(tmp_path / "optimizer.pt", adam_state([(2, 3), (5,)])).read_bytes()
    for i in range(0, len(whole), max(1, len(whole) // 40)):
        (tmp_path / "optimizer.pt").write_bytes(whole[:i])
        checkpoint = open_checkpoint(tmp_path)
        assert list(checkpoint.tensors) == ["w"]
        assert "optimizer.pt" in sentences(checkpoint)


def test_pickles_beside_the_weights_are_never_executed(tmp_path: Path, save: Save) -> None:
    save(tmp_path / "model.safetensors", {"w": 1})
    sentinel = tmp_path / "sentinel"
    call = opcodes.called("os", "system", opcodes.text(f"touch {sentinel}"))
    hostile = {"lr": 0.1, "betas": (0.9, 0.9), "eps": 1e-8, "params": [0], "hook": Raw(call)}
    saved(tmp_path / "optimizer.pt", {"state": {}, "param_groups": [hostile]})
    saved(tmp_path / "scheduler.pt", {"last_epoch": 1, "_last_lr": [0.1], "lr_lambdas": [Raw(call)]})
    saved(tmp_path / "training_args.bin", Instance("transformers.TrainingArguments", {"learning_rate": Raw(call)}))
    checkpoint = open_checkpoint(tmp_path)
    assert not sentinel.exists()
    warned = [say(note.template, note.said) for note in checkpoint.notes if note.is_warning]
    assert [line.split()[0] for line in warned] == ["optimizer.pt", "scheduler.pt", "training_args.bin"]
    assert all("would call os.system if it were unpickled" in line for line in warned)
    assert checkpoint.training.lr.value == ((0, 0.1),)


@pytest.mark.parametrize(("size", "said"), [(20_000, "entries for one parameter"), (30, "shared more often")])
def test_shared_objects_do_not_multiply(
    beside_weights: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch, size: int, said: str
) -> None:
    monkeypatch.setattr(states, "ENTRY_LIMIT", 20_000)
    count = 1000
    entries = b"}(" + b"".join(opcodes.text(f"e{i}") + b"K\1" for i in range(size)) + b"uq\1"
    slots = b"}(" + b"".join(opcodes.number(i) + b"h\1" for i in range(count)) + b"u"
    ids = b"](" + b"".join(map(opcodes.number, range(count))) + b"e"
    group = b"}(" + opcodes.text("params") + ids + b"u"
    state = b"}(" + opcodes.text("state") + slots + opcodes.text("param_groups") + b"](" + group + b"eu"
    checkpoint = beside_weights(b"\x80\x02" + entries + state + b".")
    assert checkpoint.optimizer_state is None
    assert said in sentences(checkpoint)


def test_huge_counts_are_refused(beside_weights: Callable[..., Checkpoint]) -> None:
    group = b"}(" + opcodes.text("params") + b"](" + b"K\1" * 600_000 + b"eu"
    ops = b"\x80\x02}(" + opcodes.text("state") + b"}" + opcodes.text("param_groups") + b"](" + group + b"eu."
    assert "more parameters than the limit" in sentences(beside_weights(ops))


def test_a_class_that_runs_code_when_it_is_built_stays_a_name(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(opcodes.beside(opcodes.named("evil", "Hook") + b")R"))
    assert list(open_checkpoint(path).tensors) == ["w"]
