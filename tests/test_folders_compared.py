"""Folders with several checkpoints: what is found in them, what is matched, and how it is told."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import write_safetensors
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from jsonschema import Draft202012Validator

import diffai_jupyter
from diffai_jupyter import cli
from diffai_jupyter.comparison import FolderComparison, compare
from diffai_jupyter.errors import ArgumentError, SourceError
from diffai_jupyter.readers.sources import tree as trees
from diffai_jupyter.readers.sources.folder import NoWeights
from diffai_jupyter.readers.sources.tree import DEPTH_LIMIT, list_tree, match
from diffai_jupyter.report.folders import FEW, LISTED, ROWS

SCHEMA = Path(diffai_jupyter.__file__).parent / "render" / "report.schema.json"
Put = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Write a checkpoint of two tensors: put("1/a/model.safetensors", 1.5)."""

    def written(name: str, value: float = 1.0, **more: float) -> Path:
        arrays = {key: np.full((3, 4), number, "<f4") for key, number in {"w.weight": value, **more}.items()}
        return write_safetensors(tmp_path / name, {key: ("F32", array) for key, array in arrays.items()})

    return written


@pytest.fixture
def runs(tmp_path: Path, put: Put) -> tuple[Path, Path]:
    for side in ("1", "2"):
        put(f"{side}/checkpoint-200/model.safetensors", 2)
        put(f"{side}/checkpoint-1000/model.safetensors", 3 if side == "1" else 4)
    return tmp_path / "1", tmp_path / "2"


def compared(a: Path, b: Path, **flags: Any) -> FolderComparison:
    found = compare(a, b, **flags)
    assert isinstance(found, FolderComparison)
    return found


def names(folder: Path) -> list[str]:
    return list(list_tree(folder).units)


def test_two_runs(runs: tuple[Path, Path]) -> None:
    found = compared(*runs)
    assert list(found.children) == ["checkpoint-200", "checkpoint-1000"]
    assert [child.exit_code for child in found.children.values()] == [0, 1]
    assert found.exit_code == 1
    report = found.report
    assert [child.change.kind for child in report.children] == ["identical", "scaled"]
    assert report.children[1].change.magnitude.value == pytest.approx(1 / 3)
    assert (report.coverage.compared, report.coverage.total, report.coverage.elements) == (2, 2, 24)
    assert (report.a.tensors, report.a.parameters, report.a.nbytes, report.a.dtypes) == (2, 24, 96, {"f32": 24})
    assert found.document().title == f"diffai: {runs[0]} → {runs[1]}"
    lines = found.to_text().splitlines()
    assert "1 of 2 pairs of checkpoints differ." in lines
    assert [" ".join(line.split()) for line in lines if line.startswith("checkpoint-")] == [
        "checkpoint-200 identical 0 0 of 1", "checkpoint-1000 scaled 0.3333 1 of 1", "checkpoint-1000",
    ]  # fmt: skip
    assert "~ w.weight: mean=3.0000->4.0000" in found.to_text()


def test_equal_runs(runs: tuple[Path, Path]) -> None:
    found = compared(runs[0], runs[0])
    assert found.exit_code == 0
    assert found.report.change.is_equal
    assert "Every value is equal in 2 pairs of checkpoints." in found.to_text()


def test_every_form_is_written(runs: tuple[Path, Path], tmp_path: Path) -> None:
    found = compared(*runs, all=True, show_config=True)
    data = json.loads(found.to_json())
    Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8"))).validate(data)
    assert [child["a"]["source"] for child in data["children"]] == [
        str(runs[0] / name) for name in ("checkpoint-200", "checkpoint-1000")
    ]
    assert "change-summary" in data["children"][0]["results"]
    for text in (found.to_html(), found.to_page(), found.to_markdown(), found.to_yaml(), found.to_text()):
        assert "checkpoint-1000" in text
    assert found.to_text().count("Effective settings") == 1
    said = "Left out here: --generate-report, --include-charts, --markdown-output. They tell of a single pair;"
    assert said in " ".join(found.to_text().split())
    path = tmp_path / "out.md"
    compared(*runs, markdown_output=str(path))
    assert "checkpoint-1000" in path.read_text(encoding="utf-8")
    with pytest.raises(KeyError, match="children"):
        found["change-summary"]
    assert found.children["checkpoint-1000"]["change-summary"].values["magnitude"].value == pytest.approx(1 / 3)
    assert compared(*runs, brief=True).to_text().splitlines()[-1] == "1 of 2 pairs of checkpoints differ."


def test_a_data_frame_says_which_checkpoint(runs: tuple[Path, Path]) -> None:
    pytest.importorskip("pandas")
    frame = compared(*runs).to_pandas()
    assert list(frame["checkpoint"]) == ["checkpoint-200", "checkpoint-1000"]
    assert list(frame["status"]) == ["equal", "changed"]
    assert len(compared(*runs, memory_analysis=True).to_pandas()) == 0


def test_headers_alone(runs: tuple[Path, Path]) -> None:
    found = compared(*runs, memory_analysis=True)
    assert "Headers of 2 pairs of checkpoints were compared. Values were not read." in found.to_text()
    assert not found.report.change.is_equal
    assert found.exit_code == 1
    assert compared(runs[0], runs[0], memory_analysis=True).exit_code == 0


def test_what_has_no_partner_is_listed(runs: tuple[Path, Path], put: Put) -> None:
    for i in range(LISTED + 2):
        put(f"1/extra/{i}.safetensors")
    put("2/new/x.safetensors")
    found = compared(runs[0], runs[1])
    text = " ".join(found.to_text().split())
    assert f"Besides, {LISTED + 2} only in A, 1 only in B." in text
    assert "extra/9.safetensors and 2 more." in text
    assert "Only in B: new/x.safetensors." in text
    assert ("new/x.safetensors", "only in B") in found.report.coverage.not_compared
    put("1/new/x.safetensors")
    (runs[1] / "checkpoint-1000" / "model.safetensors").write_bytes(
        (runs[0] / "checkpoint-1000" / "model.safetensors").read_bytes()
    )
    found = compared(runs[0], runs[1])
    assert not found.report.change.is_equal
    assert all(child.exit_code == 0 for child in found.children.values())
    assert found.exit_code == 1


def test_one_that_cannot_be_read_does_not_stop_the_others(runs: tuple[Path, Path]) -> None:
    for i, folder in enumerate(runs):
        (folder / "x").mkdir()
        (folder / "x" / "bad.safetensors").write_bytes(b"some text")
        (folder / "x" / "worse.safetensors").write_bytes(b"some text %d" % i)
    found = compared(*runs)
    assert list(found.children) == ["checkpoint-200", "checkpoint-1000"]
    text = " ".join(found.to_text().split())
    assert f"x/worse.safetensors could not be compared: {runs[0]}/x/worse.safetensors: this is text" in text
    assert "x/bad.safetensors same bytes" in text
    assert found.exit_code == 1
    assert [name for name, _ in found.report.coverage.not_compared] == ["x/worse.safetensors"]
    (runs[1] / "x" / "worse.safetensors").write_bytes(b"some text 0")
    assert compared(runs[0], runs[0]).exit_code == 0


def test_nothing_at_all_can_be_read(tmp_path: Path) -> None:
    for i in (1, 2):
        (tmp_path / f"{i}" / "x").mkdir(parents=True)
        (tmp_path / f"{i}" / "x" / "bad.safetensors").write_bytes(b"some text %d" % i)
    found = compared(tmp_path / "1", tmp_path / "2")
    assert found.exit_code == 1
    assert "No checkpoint of A could be compared. Besides, 1 could not be compared." in found.to_text()
    assert found.to_json()


def test_many_pairs_are_told_in_short(tmp_path: Path, put: Put) -> None:
    for i in range(ROWS + 5):
        for side in "12":
            put(f"{side}/step-{i}/model.safetensors", 1 + (i % 2 and side == "2"))
    a, b = tmp_path / "1", tmp_path / "2"
    text = compared(a, b).to_text()
    assert f"({ROWS} of {ROWS + 5} shown)" in text
    assert f"{(ROWS + 5) // 2} of {ROWS + 5} pairs of checkpoints differ." in text
    assert "w.weight: mean" not in text
    assert "\nstep-1\nScaled" in text
    assert "\nstep-2\n" not in text
    assert "(3 of 45 shown)" in compared(a, b, top=3).to_text()
    lines = compared(a, b, memory_analysis=True).to_text().splitlines()
    assert sum(line.startswith("memory_analysis:") for line in lines) == 30
    assert "15 further pairs are not shown; give one of them by itself." in lines


def test_filters_hold_for_every_pair(runs: tuple[Path, Path], put: Put) -> None:
    for side in "12":
        put(f"{side}/other/model.safetensors", 1, head=int(side))
    found = compared(*runs, path="head")
    assert list(found.children) == ["other"]
    assert [name for name, _ in found.report.coverage.not_compared] == []
    assert "same bytes" not in found.to_text().split("other")[0]


def test_a_filter_that_fits_nothing_is_refused(runs: tuple[Path, Path]) -> None:
    with pytest.raises(ArgumentError, match="No tensor is left"):
        compare(*runs, path="nothing")


def test_progress_tells_which_pair(runs: tuple[Path, Path]) -> None:
    from diffai_jupyter.comparison import run_comparison
    from diffai_jupyter.report.request import request_of

    stages = []
    run_comparison(*runs, request_of((), {}), tick=lambda stage, *_: stages.append(stage))
    assert any("(1 of 2)" in stage for stage in stages)
    assert any("(2 of 2)" in stage for stage in stages)


def test_what_is_a_checkpoint_in_a_tree(tmp_path: Path, put: Put) -> None:
    for name in (
        "hf/model.safetensors", "hf/optimizer.pt", "sharded/m-00001-of-00002.safetensors",
        "sharded/m-00002-of-00002.safetensors", "single/net.safetensors", "several/a.safetensors",
        "several/b.safetensors", "lora/adapter_model.safetensors", "fp16/model.fp16.safetensors",
        "pipe/unet/diffusion_pytorch_model.safetensors", ".hidden/model.safetensors", "x/.hidden.safetensors",
        "indexed/part.safetensors", "old/pytorch_model.bin", "deep/er/model.safetensors",
    ):  # fmt: skip
        put(name)
    (tmp_path / "pipe" / "model_index.json").write_text('{"unet": ["diffusers", "UNet"]}')
    (tmp_path / "indexed" / "model.safetensors.index.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("x")
    assert names(tmp_path) == [
        "deep/er", "fp16", "hf", "hf/optimizer.pt", "indexed", "lora", "old", "pipe",
        "several/a.safetensors", "several/b.safetensors", "sharded", "single/net.safetensors",
    ]  # fmt: skip


def test_the_state_of_a_run_counts_where_both_have_it(tmp_path: Path, put: Put) -> None:
    for name in ("1/c/model.safetensors", "2/c/model.safetensors", "1/c/optimizer.pt", "2/c/optimizer.pt"):
        put(name)
    put("1/c/scheduler.pt")
    found = match(list_tree(tmp_path / "1"), list_tree(tmp_path / "2"))
    assert [a.name for a, _ in found.pairs] == ["c", "c/optimizer.pt"]
    assert (found.only_a, found.only_b) == ((), ())


def test_files_of_another_format_are_matched_by_their_stem(tmp_path: Path, put: Put) -> None:
    for name in ("1/a/net.safetensors", "2/a/net.npz", "1/a/x.safetensors", "1/a/y.npz", "2/a/x.npz", "2/a/x.gguf"):
        put(name)
    found = match(list_tree(tmp_path / "1"), list_tree(tmp_path / "2"))
    assert [(a.name, b.name) for a, b in found.pairs] == [("a/net.safetensors", "a/net.npz")]
    assert found.only_a == ("a/x.safetensors", "a/y.npz")
    assert found.only_b == ("a/x.gguf", "a/x.npz")


def test_a_pair_of_two_names_shows_both(tmp_path: Path, put: Put) -> None:
    for side in "12":
        put(f"{side}/a/other.safetensors", int(side))
    put("1/b/net.safetensors")
    np.savez(tmp_path / "2" / "net.npz", **{"w.weight": np.ones((3, 4), "f4")})
    (tmp_path / "2" / "b").mkdir()
    (tmp_path / "2" / "net.npz").rename(tmp_path / "2" / "b" / "net.npz")
    found = compared(tmp_path / "1", tmp_path / "2")
    assert list(found.children) == ["a/other.safetensors", "b/net.safetensors → b/net.npz"]
    assert found.report.children[1].change.is_equal


@pytest.mark.skipif(os.name == "nt", reason="no such files there")
def test_trees_that_mean_harm(runs: tuple[Path, Path], put: Put, tmp_path: Path) -> None:
    outside = put("outside/model.safetensors", 9).parent
    for folder in runs:
        os.mkfifo(folder / "checkpoint-200" / "pipe.pt")
        (folder / "loop").symlink_to("loop")
        (folder / "again").symlink_to(".")
        (folder / "latest").symlink_to("checkpoint-1000")
        (folder / "f").mkdir()
        (folder / "f" / "loop.pt").symlink_to("loop.pt")
        (folder / "f" / "out.safetensors").symlink_to(outside / "model.safetensors")
        (folder / "f" / "in.safetensors").symlink_to("../checkpoint-200/model.safetensors")
        (folder / "f" / "zero.pt").symlink_to("/dev/zero")
        (folder / "f" / "\x1b[31m|<b>.safetensors").write_bytes(b"text")
    found = compared(*runs)
    assert list(found.children) == ["checkpoint-200", "checkpoint-1000", "f/in.safetensors"]
    assert found.report.coverage.warnings == ()
    unread = dict(found.report.coverage.not_compared)
    assert set(unread) == {"f/loop.pt", "f/out.safetensors", "f/zero.pt"}
    assert all("leads out of its folder" in unread[f"f/{name}"] for name in ("out.safetensors", "zero.pt"))
    for text in (found.to_text(), found.to_html(), found.to_markdown(), found.to_json()):
        assert "\x1b" not in text
    assert "<b>.safetensors" not in found.to_html()
    (runs[0] / "elsewhere").symlink_to(outside)
    again = compared(*runs)
    assert "A: elsewhere is a link that leads out of the folder and was not followed." in again.to_text()


def test_a_huge_tree_is_refused(runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="more than 3 files and folders"):
        list_tree(runs[0], entry_limit=3)
    assert list_tree(runs[0], entry_limit=4).units
    monkeypatch.setattr(trees.list_tree, "__defaults__", (3,))
    with pytest.raises(SourceError, match="more than 3 files and folders"):
        compare(*runs)


def test_what_lies_too_deep_is_said(runs: tuple[Path, Path], put: Put) -> None:
    put("/".join(["1", *("d" for _ in range(DEPTH_LIMIT)), "model.safetensors"]))
    found = list_tree(runs[0])
    assert (len(found.units), found.closed) == (3, ())
    put("/".join(["1", *("d" for _ in range(DEPTH_LIMIT + 3)), "model.safetensors"]))
    found = list_tree(runs[0])
    assert (len(found.units), found.closed) == (3, ("/".join("d" for _ in range(DEPTH_LIMIT + 1)),))
    assert compared(runs[0], runs[0]).exit_code == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_locked_folder_is_said(runs: tuple[Path, Path]) -> None:
    (runs[0] / "locked").mkdir(mode=0)
    assert list_tree(runs[0]).closed == ("locked",)


@pytest.mark.parametrize("other", ["file", "checkpoint", "empty", "live"])
def test_only_one_side_is_a_tree(runs: tuple[Path, Path], put: Put, tmp_path: Path, other: str) -> None:
    (tmp_path / "empty").mkdir()
    against: Any = {
        "file": put("single.safetensors"), "checkpoint": runs[0] / "checkpoint-200", "empty": tmp_path / "empty",
        "live": {"w": np.ones(3)},
    }[other]  # fmt: skip
    for a, b in ((runs[0], against), (against, runs[0])):
        with pytest.raises(NoWeights, match="no weights to read in this folder"):
            compare(a, b)


@pytest.mark.parametrize(("b", "code"), [("1", 0), ("2", 1)])
def test_the_command(
    runs: tuple[Path, Path], b: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs[0].parent)
    for form in ("text", "json", "yaml", "html", "markdown"):
        assert cli.main(["1", b, "--output", form]) == code
        assert "checkpoint-200" in capsys.readouterr().out
    assert cli.main(["1", b, "-q"]) == code
    assert capsys.readouterr().out == ""


def test_a_notebook_shows_it(runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.chdir(tmp_path)
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    try:
        shell.display_pub = CapturingDisplayPublisher(shell=shell)
        shell.extension_manager.load_extension("diffai_jupyter")
        assert shell.run_cell("%diffai 1 2 --into found").success
        shown = [output["data"]["text/plain"] for output in shell.display_pub.outputs if "text/plain" in output["data"]]
        assert "1 of 2 pairs of checkpoints differ." in shown[0]
        assert sum("Scaled" in text for text in shown) == 1
        assert isinstance(shell.user_ns["found"], FolderComparison)
    finally:
        shell.history_manager.end_session()
        InteractiveShell.clear_instance()


def test_few_means_few() -> None:
    assert FEW < LISTED < ROWS


def test_a_folder_that_is_one_checkpoint_and_holds_more_is_compared_as_a_tree(tmp_path: Path) -> None:
    for run in ("1", "2"):
        (tmp_path / run / "step-10").mkdir(parents=True)
        np.savez(tmp_path / run / "step-10" / "model.npz", w=np.ones((3, 4)))
        np.savez(tmp_path / run / "last.npz", w=np.full((3, 4), float(run)))
    np.savez(tmp_path / "2" / "only.npz", w=np.ones(3))
    found = compare(tmp_path / "1", tmp_path / "2")
    assert set(found.children) == {"last.npz", "step-10/model.npz"}
    assert "Only in B: only.npz." in found.to_text()
    assert found.exit_code == 1
