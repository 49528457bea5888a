"""Logs that a user gives: the same log in every form reads the same, and what was not logged is not made up."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from diffai_jupyter.errors import ArgumentError, DiffaiError, FormatError
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.options import Live
from diffai_jupyter.readers.given.history import EPOCHS, ROWS, GivenLog, read_history
from diffai_jupyter.wording import say

NAN, INF = math.nan, math.inf

# What was logged: losses and learning rates every ten steps, an evaluation every twenty, in rows of its own.
LOSSES = ((10, 2.0), (20, 1.5), (30, 1.25), (40, 1.125))
RATES = ((10, 1e-3), (20, 9e-4), (30, 8e-4), (40, 7e-4))
EVALUATIONS = ((20, 1.75), (40, 1.25))
ROWS_OF_LOG = [
    *[{"step": s, "loss": v, "learning_rate": r} for (s, v), (_, r) in zip(LOSSES[:2], RATES[:2], strict=True)],
    {"step": 20, "eval_loss": 1.75},
    *[{"step": s, "loss": v, "learning_rate": r} for (s, v), (_, r) in zip(LOSSES[2:], RATES[2:], strict=True)],
    {"step": 40, "eval_loss": 1.25},
]
COLUMNS = {name: [row.get(name) for row in ROWS_OF_LOG] for name in ("step", "loss", "learning_rate", "eval_loss")}
STATE = {
    "global_step": 40,
    "log_history": [*ROWS_OF_LOG, {"step": 40, "train_runtime": 9.5, "train_loss": 1.5, "total_flos": 1e12}],
}


def table(separator: str, decimal: str = ".") -> str:
    lines = [separator.join(COLUMNS)]
    for row in zip(*COLUMNS.values(), strict=True):
        lines.append(separator.join("" if cell is None else str(cell).replace(".", decimal) for cell in row))
    return "\n".join(lines) + "\n"


FILES = {
    "trainer_state.json": json.dumps(STATE),
    "rows.json": json.dumps(ROWS_OF_LOG, indent=1),
    "columns.json": json.dumps(COLUMNS),
    "lines.jsonl": "\n".join(map(json.dumps, ROWS_OF_LOG)) + "\n\n",
    "comma.csv": table(","),
    "excel.csv": "\ufeff" + table(",").replace("\n", "\r\n"),
    "tab.tsv": table("\t"),
    "semicolon.csv": table(";", ","),
    "commented.txt": "# " + table(","),
}
FRAME = pd.DataFrame(ROWS_OF_LOG)
OBJECTS = {
    "rows": ROWS_OF_LOG,
    "columns": COLUMNS,
    "state": STATE,
    "arrays": {
        name: np.array([math.nan if cell is None else cell for cell in cells]) for name, cells in COLUMNS.items()
    },
    "frame": FRAME,
    "frame, step as index": FRAME.set_index("step"),
    "frame of nullable numbers": FRAME.convert_dtypes(),
    "records of a frame": FRAME.to_dict("records"),
    "trainer": SimpleNamespace(state=SimpleNamespace(log_history=STATE["log_history"])),
    "trainer state": SimpleNamespace(log_history=STATE["log_history"], global_step=40),
    "columns of another library": SimpleNamespace(to_pydict=lambda: COLUMNS),
}


def read(found: Any, name: str = "log") -> GivenLog:
    return read_history(Live(found, name))


def said(log: GivenLog) -> list[str]:
    return [say(note.template, note.said) for note in log.notes]


def curves(log: GivenLog) -> dict[str, Any]:
    """Return the known histories; metrics by their names."""
    training = log.training
    own = {name: value.value for name in ("losses", "lr", "grad_norms") if (value := getattr(training, name)).is_known}
    return own | (training.metrics.value if training.metrics.is_known else {})


def refused(found: Any, name: str = "log") -> str:
    with pytest.raises(DiffaiError) as caught:
        read(found, name)
    return str(caught.value)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    monkeypatch.chdir(tmp_path)

    def written(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
        return name

    return written


def check_whole(log: GivenLog, name: str) -> None:
    assert curves(log) == {"losses": LOSSES, "lr": RATES, "eval_loss": EVALUATIONS}
    assert log.counts_steps
    assert said(log) == []
    assert log.training.losses.source == log.training.metrics.source == f"--history {name}"
    assert log.training.losses.evidence is Evidence.REPORTED
    assert not log.training.losses.assumption
    # The log may belong to a run that went on: it does not say which step B is.
    assert not log.training.step.is_known


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_reads_the_same(write, name):
    write(name, FILES[name])
    check_whole(read(name, name), name)
    check_whole(read(Path(name), name), name)


@pytest.mark.parametrize("name", OBJECTS)
def test_every_kind_of_object_reads_the_same(name):
    check_whole(read(OBJECTS[name]), "log")


def test_the_folder_of_a_run_stands_for_its_log(write):
    write("run/checkpoint-40/trainer_state.json", FILES["trainer_state.json"])
    write("logs/version_0/metrics.csv", FILES["comma.csv"])
    check_whole(read("run/checkpoint-40"), "log")
    check_whole(read("logs/version_0"), "log")
    assert refused("run", "run") == (
        "--history run: it is a folder without trainer_state.json or metrics.csv. Give the file."
    )


def test_the_log_of_lightning(write):
    # Columns and gaps as its CSVLogger writes them: one row for each call of log().
    text = (
        "epoch,lr-AdamW,step,train_loss_epoch,train_loss_step,val_acc,val_loss\n"
        ",0.01,49,,,,\n"
        "0,,49,,0.9,,\n"
        "0,,99,,,0.5,0.8\n"
        "0,,99,0.95,,,\n"
        ",0.005,149,,,,\n"
        "1,,149,,0.7,,\n"
        "1,,199,,,0.75,0.6\n"
    )
    log = read(write("metrics.csv", text))
    assert curves(log) == {
        "losses": ((49, 0.9), (149, 0.7)),
        "lr": ((49, 0.01), (149, 0.005)),
        "val_acc": ((99, 0.5), (199, 0.75)),
        "val_loss": ((99, 0.8), (199, 0.6)),
    }
    assert said(log) == ["--history log: columns that were not used: train_loss_epoch."]
    # Read by pandas, the gaps are NaN.
    assert curves(read(pd.read_csv("metrics.csv"))) == curves(log)


def test_an_exported_chart_of_weights_and_biases(write):
    text = (
        '"Step","run-7 - train/loss","run-7 - train/loss__MIN","run-7 - train/loss__MAX"\n'
        '"1","0.5","0.4","0.6"\n"2","0.25","0.2","0.3"\n'
    )
    assert curves(read(write("chart.csv", text))) == {"losses": ((1, 0.5), (2, 0.25))}
    two = "Step,a - loss,a - loss__MIN,b - loss,b - loss__MIN\n1,2,2,3,3\n"
    assert refused(write("two.csv", two), "two.csv") == (
        "--history two.csv: it holds several runs (a, b). Keep the columns of one."
    )


def test_a_frame_of_weights_and_biases_has_evaluations_in_some_of_its_rows():
    # run.history(): every row has the loss, each fourth an evaluation, and the library's own columns.
    rows = [
        {"_step": i, "_timestamp": 1.7e9 + i, "train/loss": 1 / (i + 1), "train/learning_rate": 0.1}
        | ({"val/loss": 2 / (i + 1)} if i % 4 == 0 else {})
        for i in range(12)
    ]
    log = read(pd.DataFrame(rows))
    assert curves(log) == {
        "losses": tuple((i, 1 / (i + 1)) for i in range(12)),
        "lr": tuple((i, 0.1) for i in range(12)),
        "val/loss": tuple((i, 2 / (i + 1)) for i in (0, 4, 8)),
    }
    assert said(log) == []


def test_what_keras_returns_counts_epochs():
    history = SimpleNamespace(
        history={"loss": [0.9, 0.5, 0.4], "accuracy": [0.5, 0.6, 0.7], "val_loss": [0.8, 0.6, 0.65]}, epoch=[0, 1, 2]
    )
    log = read(history)
    assert curves(log) == {
        "losses": ((1, 0.9), (2, 0.5), (3, 0.4)),
        "val_loss": ((1, 0.8), (2, 0.6), (3, 0.65)),
    }
    assert not log.counts_steps
    assert log.training.losses.assumption == log.training.metrics.assumption == EPOCHS
    # The accuracy of a training batch is no evaluation.
    assert said(log) == ["--history log: columns that were not used: accuracy."]


@pytest.mark.parametrize(
    "losses", [[3, 2, 1], (3.0, 2.0, 1.0), np.array([3, 2, 1]), pd.Series([3, 2, 1]), {"loss": [3, 2, 1]}]
)
def test_plain_losses_are_counted(losses):
    log = read(losses)
    assert curves(log) == {"losses": ((1, 3.0), (2, 2.0), (3, 1.0))}
    assert log.training.losses.assumption == ROWS
    assert not log.counts_steps


@pytest.mark.parametrize(
    ("epochs", "steps", "assumption"),
    [
        ([0, 1, 2], (1, 2, 3), EPOCHS),
        ([1, 2, 3], (1, 2, 3), EPOCHS),
        ([5, 6, 8], (5, 6, 8), EPOCHS),
        # Several losses in one epoch, or parts of epochs: rows tell more.
        ([0, 0, 1], (1, 2, 3), ROWS),
        ([0.25, 0.5, 0.75], (1, 2, 3), ROWS),
        (["first", "second", "third"], (1, 2, 3), ROWS),
        ([None, 4, 5], (4, 5), EPOCHS),
    ],
)
def test_epochs_stand_for_steps_where_they_tell_rows_apart(epochs, steps, assumption):
    log = read({"epoch": epochs, "loss": [3.0, 2.0, 1.0]})
    assert tuple(step for step, _ in log.training.losses.value) == steps
    assert log.training.losses.assumption == assumption


def test_steps_win_over_epochs_and_are_sorted():
    log = read([{"epoch": 1, "global_step": 20, "loss": 1}, {"epoch": 0, "global_step": 10.0, "loss": 2}])
    assert curves(log) == {"losses": ((10, 2.0), (20, 1.0))}


@pytest.mark.parametrize(
    ("column", "role"),
    [
        *[(loss, "losses") for loss in ("loss", "train_loss", "Train Loss", "train/loss", "Loss/train", "loss_step")],
        *[(rate, "lr") for rate in ("lr", "learning_rate", "train/learning_rate", "lr-AdamW", "lr-Adam/pg1", "LR")],
        *[(norm, "grad_norms") for norm in ("grad_norm", "gradient_norm", "train/grad_norm", "grad_2.0_norm_total")],
        *[(name, name) for name in ("eval_loss", "val/acc", "validation_f1", "test_bleu", "dev_wer", "eval/mnli/acc")],
        ("Loss/val", "val/Loss"),
        ("val accuracy", "val_accuracy"),
    ],
)
def test_columns_are_known_by_their_usual_names(column, role):
    assert curves(read([{"step": 1, column: 2.0}, {"step": 2, column: 1.5}])) == {role: ((1, 2.0), (2, 1.5))}


def test_of_a_resumed_log_what_came_later_counts():
    rows = [{"step": step, "loss": loss} for step, loss in ((10, 3), (20, 2), (30, 9), (20, 1.5), (30, 1), (40, 0.5))]
    assert curves(read(rows)) == {"losses": ((10, 3.0), (20, 1.5), (30, 1.0), (40, 0.5))}


def test_nested_rows_and_columns_are_flattened():
    expected = {"losses": ((1, 2.0), (2, 1.0)), "val/loss": ((1, 3.0), (2, 2.5))}
    rows = [{"step": s, "train": {"loss": a}, "val": {"loss": b}} for s, a, b in ((1, 2.0, 3.0), (2, 1.0, 2.5))]
    assert curves(read(rows)) == expected
    assert curves(read({"step": [1, 2], "train": {"loss": [2, 1]}, "val": {"loss": [3, 2.5]}})) == expected


# A run that diverged at step 30, as it was logged; in a data frame its NaN look like the empty cells.
DIVERGED = {
    "own rows": [
        {"step": 10, "loss": 2.0, "lr": 1.0},
        {"step": 20, "loss": 1.5, "lr": 1.0},
        {"step": 20, "eval_loss": 1.75},
        {"step": 30, "loss": NAN, "lr": 1.0},
        {"step": 40, "loss": NAN, "lr": 1.0},
        {"step": 40, "eval_loss": 9.0},
    ],
    "infinite first": [
        {"step": 10, "loss": 2.0, "lr": 1.0},
        {"step": 20, "loss": 1.5, "lr": 1.0},
        {"step": 30, "loss": INF, "lr": 1.0},
        {"step": 40, "loss": NAN, "lr": 1.0},
    ],
    "one bad batch": [{"step": s, "loss": NAN if s == 30 else 1 / s, "lr": 1.0} for s in range(10, 100, 10)],
    "sparse evaluations": [
        {"step": s, "loss": NAN if s > 50 else 1 / s, "lr": 1.0} | ({"val_loss": 1.0} if s % 40 == 10 else {})
        for s in range(10, 100, 10)
    ],
    "losses alone": [{"step": s, "loss": NAN if s > 20 else 1.0} for s in range(10, 60, 10)],
    "epochs of keras": [
        {"step": s, "loss": NAN if s > 2 else 1.0, "val_loss": NAN if s > 2 else 2.0} for s in range(1, 6)
    ],
    "bad from the first": [{"step": s, "loss": NAN, "lr": 1.0} for s in range(1, 6)],
    "rows that log only losses": [
        *[{"step": s, "loss": 1.0} for s in (1, 2)],
        {"step": 2, "val_loss": 2.0},
        *[{"step": s, "loss": NAN} for s in (3, 4)],
    ],
    "trainer that sums up": [
        *[{"step": s, "loss": 1.0} for s in (1, 2)],
        {"step": 2, "eval_loss": 2.0},
        {"step": 2, "train_runtime": 9.0, "train_samples_per_second": 3.0},
    ],
    "times in each row": [
        *[{"step": s, "loss": NAN if s > 2 else 1.0, "_timestamp": 1e9 + s} for s in range(1, 5)],
        {"step": 4, "val_loss": 2.0, "_timestamp": 2e9},
    ],
    "gradient that is not finite": [
        {"step": s, "loss": 1.0, "grad_norm": NAN if s > 3 else 0.5, "lr": 0.1} for s in range(1, 6)
    ],
}


def logged(rows: list[dict[str, float]], name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in rows if name in row]


@pytest.mark.parametrize("name", DIVERGED)
@pytest.mark.parametrize("form", [list, pd.DataFrame, lambda rows: pd.DataFrame(rows).to_dict("list")])
def test_numbers_that_are_not_finite_are_kept_and_gaps_are_not(name, form):
    rows = DIVERGED[name]
    found = curves(read(form(rows)))
    roles = {"loss": "losses", "grad_norm": "grad_norms", "lr": "lr", "eval_loss": "eval_loss", "val_loss": "val_loss"}
    for column, role in roles.items():
        np.testing.assert_array_equal(np.array(found.get(role, ())), np.array(logged(rows, column)))


def test_an_empty_column_of_a_frame_is_no_metric_that_is_not_finite():
    frame = pd.DataFrame({"step": [1, 2, 3], "loss": [3.0, 2.0, 1.0], "eval_loss": [NAN] * 3})
    assert curves(read(frame)) == {"losses": ((1, 3.0), (2, 2.0), (3, 1.0))}


def test_what_a_file_says_of_not_finite_numbers(write):
    text = "step,loss,lr\n1,NaN,0.1\n2,inf,0.1\n3,-Infinity,0.1\n4,,0.1\n"
    found = read(write("log.csv", text)).training.losses.value
    np.testing.assert_array_equal(np.array(found), [(1, NAN), (2, INF), (3, -INF)])
    found = read(write("log.json", '[{"step": 1, "loss": NaN}, {"step": 2, "loss": Infinity}]')).training.losses.value
    np.testing.assert_array_equal(np.array(found), [(1, NAN), (2, INF)])


def test_scalars_of_other_libraries_are_numbers():
    class Scalar:
        shape = ()

        def item(self):
            return 0.5

    assert curves(read([{"step": np.int64(3), "loss": np.float32(0.25)}, {"step": 4, "loss": Scalar()}])) == {
        "losses": ((3, 0.25), (4, 0.5))
    }


def test_what_was_left_out_is_said():
    rows = [{"step": i, "loss": 1.0, "lr": "high" if i == 2 else 0.1, "note": "warm", "temperature": 3} for i in (1, 2)]
    log = read([*rows, {"loss": 0.5}])
    assert curves(log) == {"losses": ((1, 1.0), (2, 1.0)), "lr": ((1, 0.1),)}
    assert said(log) == [
        "--history log: skipped 1 cell of lr: no number.",
        "--history log: left out 1 row without a step.",
        "--history log: columns that were not used: note, temperature.",
    ]


def test_columns_of_another_length_are_left_out():
    # validation_freq=2 of Keras: which epochs these belong to is not said.
    log = read({"loss": [4, 3, 2, 1], "val_loss": [5, 4]})
    assert curves(log) == {"losses": ((1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0))}
    assert said(log) == ["--history log: val_loss has 2 entries where others have 4; it was left out."]


EXPECTED = (
    "Give trainer_state.json, a CSV or JSON file, a data frame, a list of dicts or a dict of lists, with columns "
    "such as step, loss, lr and eval_loss."
)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (3, f"--history log: a int of this kind holds no log. {EXPECTED}"),
        (None, f"--history log: a NoneType of this kind holds no log. {EXPECTED}"),
        ([], f"--history log: a list of this kind holds no log. {EXPECTED}"),
        ({}, f"--history log: a dict of this kind holds no log. {EXPECTED}"),
        (["a", "b"], f"--history log: a list of this kind holds no log. {EXPECTED}"),
        ({"loss": 0.5}, f"--history log: a dict of this kind holds no log. {EXPECTED}"),
        (pd.DataFrame, f"--history log: a type of this kind holds no log. {EXPECTED}"),
        (
            [{"step": 1, "accuracy": 0.5}],
            "--history log: it has no loss, learning rate, gradient norm or metric (only step, accuracy). " + EXPECTED,
        ),
    ],
)
def test_what_holds_no_log_is_refused(found, message):
    assert refused(found) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ("[1, 2", "it is not JSON (Expecting ',' delimiter, line 1)"),
        ('{"step": 1}\n{"step": }\n', "line 2 is not JSON (Expecting value)"),
        ('{"loss": [1], "loss": [2]}', "it is damaged (the key 'loss' occurs twice)"),
        ("[" * 100_000, "it is nested too deeply"),
        ("1,2,3\n4,5,6\n", "its first line names no columns (1,2,3); add a header"),
        ("step,loss,loss\n1,2,3\n", "it names a column twice (loss)"),
        ("step,loss\n1,2\n\n2,1,7\n", "line 4 has more cells (3) than the header (2)"),
    ],
)
def test_a_damaged_file_is_refused(write, text, message):
    write("log", text)
    with pytest.raises(FormatError) as caught:
        read("log")
    assert str(caught.value) == f"log: {message}."


def test_bytes_that_are_no_text_and_files_that_are_not_there(tmp_path, write, monkeypatch):
    (tmp_path / "log.csv").write_bytes(b"step,loss\n1,\xff\n")
    assert refused("log.csv").endswith("log.csv (byte 12): it is not UTF-8 text.")
    assert refused("lag.csv", "lag.csv") == "--history lag.csv: there is no such file. Did you mean 'log.csv'?"
    monkeypatch.setattr("diffai_jupyter.readers.given.files.DOCUMENT_LIMIT", 5)
    assert refused("log.csv") == "log.csv: 14 B exceed the limit of 5 B."


def test_lines_end_where_files_end_them(write):
    text = '{"step": 1, "loss": 2, "note": "a\u2028b"}\r\n{"step": 2, "loss": 1}'
    assert curves(read(write("log.jsonl", text)))["losses"] == ((1, 2.0), (2, 1.0))
    assert curves(read(write("old.csv", "step,loss\r1,2\r2,1\r")))["losses"] == ((1, 2.0), (2, 1.0))


def test_names_out_of_files_cannot_touch_the_terminal(write):
    log = read(write("log.csv", "step,loss,\x1b[31mred\n1,2,3\n"))
    assert said(log) == ["--history log: columns that were not used: \\u001b[31mred."]
    assert "\x1b" not in refused([{"a\x1b": 1}])


def test_more_than_one_kind_of_error_is_an_argument_error():
    with pytest.raises(ArgumentError):
        read(3)
