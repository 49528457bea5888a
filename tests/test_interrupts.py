"""Ctrl-C: nothing is left running, and what was known by then is not lost."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from builders import transformer
from safetensors.numpy import save_file

from diffai_jupyter import cli, compare
from diffai_jupyter.comparison import FolderComparison, run_comparison
from diffai_jupyter.comparison.interrupted import NOT_COMPARED, Interrupted
from diffai_jupyter.facts.change.update_type import update_type
from diffai_jupyter.notebook.panel.choice import Choice
from diffai_jupyter.notebook.panel.session import Session
from diffai_jupyter.report.request import request_of
from diffai_jupyter.scan import passes
from diffai_jupyter.wording import told


@pytest.fixture(scope="module")
def states():
    before = transformer()
    draw = np.random.default_rng(5)
    after = {name: (values + draw.normal(0, 0.01, values.shape)).astype("f4") for name, values in before.items()}
    return before, after


def striking(stage):
    """Return a tick that interrupts at the second step of a stage."""
    seen = []

    def tick(current, done, total):
        seen.append(current)
        if seen.count(stage) == 2:
            raise KeyboardInterrupt

    return tick


def interrupted(a, b, stage, **options):
    with pytest.raises(Interrupted) as caught:
        run_comparison(a, b, request_of((), options), tick=striking(stage))
    return caught.value


FLAGS = ("change_summary", "memory_analysis", "head_importance", "attention_analysis", "learning_rate_analysis")


def test_analyses_that_were_finished_are_in_the_partial_report(states):
    asked = dict.fromkeys(FLAGS, True)
    whole = compare(*states, **asked)
    found = interrupted(*states, "attention heads", **asked, fail_on="change_summary.patterns>=0").comparison
    assert found is not None
    assert list(found) == ["change-summary", "memory-analysis"]
    for flag in found:
        assert found.report.results[flag].values == whole.report.results[flag].values
    assert found.report.change == whole.report.change
    said = found.report.coverage.warnings[0]
    missing = "--head-importance, --attention-analysis, --learning-rate-analysis"
    assert said == f"Interrupted before everything was computed; missing: {missing}."
    assert said in " ".join(found.to_text().split())
    assert not found.failures
    assert told(said, "ja").startswith("すべてを計算する前に中断されました")


def test_an_interrupted_pass_gives_no_report_and_keeps_the_pair(states):
    stopped = interrupted(*states, "scan")
    assert stopped.comparison is None
    assert stopped.pair.run.tick is None
    # The facts of the pair can be asked for: they go on from there.
    assert not update_type(stopped.pair).is_equal


def test_an_interrupt_before_anything_is_paired_is_a_plain_one(states):
    def tick(stage, done, total):
        raise AssertionError

    with pytest.raises(KeyboardInterrupt) as caught:
        run_comparison(_Stubborn(), states[1], request_of((), {}), tick=tick)
    assert not isinstance(caught.value, Interrupted)


class _Stubborn(dict):
    def items(self):
        raise KeyboardInterrupt


def test_of_folders_the_finished_checkpoints_are_reported(states, tmp_path):
    for side, state in zip("ab", states, strict=True):
        for name in ("one", "three", "two"):
            (tmp_path / side / name).mkdir(parents=True)
            save_file(state, tmp_path / side / name / "model.safetensors")
    with pytest.raises(Interrupted) as caught:
        run_comparison(tmp_path / "a", tmp_path / "b", request_of((), {}), tick=striking("scan (2 of 3)"))
    found = caught.value.comparison
    assert isinstance(found, FolderComparison)
    assert list(found.children) == ["one"]
    assert NOT_COMPARED in found.to_text()
    assert found.to_text().count(NOT_COMPARED) == 2


def test_the_command_prints_what_is_known(states, tmp_path, capsys, monkeypatch):
    real = run_comparison
    monkeypatch.setattr(
        "diffai_jupyter.comparison.run_comparison",
        lambda a, b, request, tick: real(a, b, request, tick=striking("attention heads")),
    )
    for side, state in zip("ab", states, strict=True):
        save_file(state, tmp_path / f"{side}.safetensors")
    words = [str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), "--change-summary", "--head-importance"]
    assert cli.main(words) == 130
    out, err = capsys.readouterr()
    assert err == "diffai: interrupted. This is what was known by then.\n"
    assert "Interrupted before everything was computed" in out
    for more in (["--output", "json"], ["--quiet"]):
        assert cli.main([*words, *more]) == 130
        assert capsys.readouterr() == ("", "diffai: interrupted.\n")


def test_a_panel_that_was_stopped_goes_on_where_it_was(states, tmp_path):
    texts = tuple(str(tmp_path / f"{side}.safetensors") for side in "ab")
    for text, state in zip(texts, states, strict=True):
        save_file(state, text)
    session = Session(request_of((), {"workers": 1}), lambda text: (text, ""))
    with pytest.raises(KeyboardInterrupt):
        session.open(texts, Choice(), striking("scan"))
    pair = session.pair
    assert pair is not None
    assert not session.open(texts, Choice(), striking("nothing"))
    assert session.pair is pair
    assert session.look(Choice(), striking("nothing")).comparison.pair is pair


def test_the_next_call_reads_what_the_interrupted_one_has_not(states, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFAI_CACHE", str(tmp_path / "kept"))
    files = [tmp_path / f"{side}.safetensors" for side in "ab"]
    for file, state in zip(files, states, strict=True):
        save_file(state, file)
        # A file that was written just now may change unseen, and nothing is kept of it.
        os.utime(file, (10**9, 10**9))
    monkeypatch.setattr(passes, "LEAST_UNIT", 1)
    totals = []

    def tick(stage, done, total):
        if stage == "scan":
            totals.append(total)
            if len(totals) == 4:
                raise KeyboardInterrupt

    request = request_of((), {"workers": 1})
    with pytest.raises(Interrupted):
        run_comparison(*files, request, tick=tick)
    found = run_comparison(*files, request, tick=tick)
    assert max(totals[4:]) < max(totals[:4])
    monkeypatch.setenv("DIFFAI_CACHE", "0")
    assert found.to_text() == compare(*files).to_text()


SCRIPT = textwrap.dedent("""
    import sys, threading, time
    from diffai_jupyter.cli import main

    def scans():
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("diffai-scan")]

    def tell():
        while not scans():
            time.sleep(0.01)
        time.sleep(0.2)
        print("ready", flush=True)

    threading.Thread(target=tell, daemon=True).start()
    code = main(sys.argv[1:])
    print(code, scans(), flush=True)
    sys.stdin.read()
""")


def write_hole(path: Path, tensors: int = 2_000, rows: int = 512, cols: int = 4_096) -> Path:
    """Write a file that takes no room on the disk and long to read: its zeros stand for another number."""
    size = rows * cols
    entries = {
        f"w{i}": {"dtype": "F8_E8M0", "shape": [rows, cols], "data_offsets": [i * size, (i + 1) * size]}
        for i in range(tensors)
    }
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + tensors * size)
    return path



def children_of(pid: int) -> list[str]:
    """Return the processes that a process has started, whichever of its threads did."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [child for listed in lists for child in listed.read_text(encoding="ascii").split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for child processes where Linux lists them")
@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_ctrl_c_leaves_no_thread_and_no_process(executor, tmp_path):
    files = [str(write_hole(tmp_path / f"{side}.safetensors")) for side in "ab"]
    command = [sys.executable, "-c", SCRIPT, *files, "--executor", executor, "--workers", "2"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        workers = children_of(process.pid)
        assert len(workers) == (2 if executor == "processes" else 0)
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "130 []\n"
        assert not [child for child in workers if Path(f"/proc/{child}").exists()]
        _, errors = process.communicate()
    assert errors == "diffai: interrupted.\n"
