"""``diffai clean``: a notebook that GitHub and nbconvert refuse, before and after."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import nbconvert
import nbformat
import pytest

from diffai_jupyter import cli
from diffai_jupyter.cli.clean import STATE, VIEW, repair

MODELS = {"abc": {"model_name": "HBoxModel", "model_module": "@jupyter-widgets/controls", "state": {}}}


def output(*forms: str, model: str = "abc") -> dict[str, Any]:
    """An output with the view of a widget and other forms beside it."""
    data: dict[str, Any] = {form: f"seen as {form}" for form in forms}
    return {
        "output_type": "display_data",
        "data": {**data, VIEW: {"model_id": model, "version_major": 2, "version_minor": 0}},
        "metadata": {VIEW: {}, "tags": 1},
    }


def notebook(widgets: Any, *outputs: dict[str, Any]) -> dict[str, Any]:
    code = {"cell_type": "code", "execution_count": 1, "id": "a", "metadata": {}, "source": ["1 < 2 # é"]}
    metadata = {"language_info": {"name": "python"}, "colab": {"x": 1.5e-7}}
    return {
        "cells": [{**code, "outputs": list(outputs)}],
        "metadata": metadata if widgets is None else {**metadata, "widgets": widgets},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


BROKEN = notebook({STATE: MODELS}, output("text/html", "text/plain"), output())


def saved(folder: Path, content: Any, name: str = "n.ipynb", indent: int | None = 1) -> Path:
    path = folder / name
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=False) + "\n", "utf-8", newline="")
    return path


def exported(path: Path) -> str:
    page, _ = nbconvert.HTMLExporter().from_notebook_node(nbformat.read(path, as_version=4))
    return str(page)


@pytest.mark.filterwarnings("ignore:Your element with mimetype")  # of the widget that has no other form
def test_nbconvert_stops_before_and_shows_the_other_form_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path, BROKEN)
    with pytest.raises(KeyError, match="state"):
        exported(path)
    assert cli.main(["clean", str(path)]) == 0
    assert capsys.readouterr().out == (
        f'{path}: removed metadata.widgets, which lacks the key "state"; and 1 widget view without saved state, '
        "beside another form of the same output; 1 output of a widget alone left as it is.\n"
    )
    assert "seen as text/html" in exported(path)
    nbformat.validate(nbformat.read(path, as_version=4))


@pytest.mark.parametrize("indent", [1, 2, 4, None])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("is_ascii", [True, False])
def test_what_needs_no_repair_keeps_its_bytes(indent: int | None, end: str, is_ascii: bool) -> None:
    def written(content: Any) -> str:
        return (json.dumps(content, indent=indent, ensure_ascii=is_ascii) + "\n").replace("\n", end)

    bare = output("text/plain")
    del bare["data"][VIEW], bare["metadata"][VIEW]
    found = repair(written(notebook({STATE: MODELS}, output("text/plain"))), "n.ipynb")
    assert found.text == written(notebook(None, bare))
    assert repair(found.text, "n.ipynb").said == ()


@pytest.mark.parametrize(
    "widgets",
    [
        {STATE: MODELS},
        {STATE: {"state": None}},
        {STATE: []},
        {},
        [],
        {"state": MODELS, "version": "1.1.2"},
    ],
)
def test_metadata_that_nbconvert_cannot_read_goes(tmp_path: Path, widgets: Any) -> None:
    path = saved(tmp_path, notebook(widgets, output("text/plain")))
    with pytest.raises((KeyError, TypeError)):
        exported(path)
    assert cli.main(["clean", str(path)]) == 0
    assert "seen as text/plain" in exported(path)


def test_a_widget_whose_state_is_saved_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    widgets = {STATE: {"state": MODELS, "version_major": 2, "version_minor": 0}}
    path = saved(tmp_path, notebook(widgets, output("text/plain"), output("text/plain", model="gone")))
    assert cli.main(["clean", str(path)]) == 0
    assert "removed 1 widget view without" in capsys.readouterr().out
    after = json.loads(path.read_text("utf-8"))
    assert after["metadata"]["widgets"] == widgets
    assert [VIEW in shown["data"] for shown in after["cells"][0]["outputs"]] == [True, False]


def test_only_what_changes_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = saved(tmp_path, notebook(None), "good.ipynb"), saved(tmp_path, BROKEN, "bad.ipynb")
    bad.chmod(0o640)
    link = tmp_path / "link.ipynb"
    link.symlink_to(bad)
    untouched = good.stat().st_ino
    assert cli.main(["clean", str(good), str(link)]) == 0
    assert f"{good}: nothing to repair.\n" in capsys.readouterr().out
    assert good.stat().st_ino == untouched
    assert link.is_symlink()
    assert stat.S_IMODE(bad.stat().st_mode) == 0o640
    assert sorted(os.listdir(tmp_path)) == ["bad.ipynb", "good.ipynb", "link.ipynb"]  # noqa: PTH208
    assert "widgets" not in json.loads(bad.read_text("utf-8"))["metadata"]


def test_check_writes_nothing_and_tells_by_its_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path, BROKEN)
    before = path.read_bytes()
    assert cli.main(["clean", "--check", str(path)]) == 1
    assert "would remove metadata.widgets" in capsys.readouterr().out
    assert path.read_bytes() == before
    assert cli.main(["clean", str(path)]) == 0
    assert cli.main(["clean", str(path), "--check"]) == 0


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\xfe", b"x = 1", b'{"cells": 3}', b"[" * 100_000])
def test_what_is_no_notebook_is_one_sentence_and_stops_all(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = saved(tmp_path, BROKEN, "bad.ipynb")
    before = broken.read_bytes()
    path = tmp_path / "x.ipynb"
    path.write_bytes(content)
    assert cli.main(["clean", str(broken), str(path)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"diffai: {path} is no Jupyter notebook: ")
    assert shown.err.count("\n") == 1
    assert broken.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "diffai clean takes notebooks and the flag --check. Got none."),
        (["n.ipynb", "--chek"], "diffai clean takes notebooks and the flag --check. Got --chek."),
        (["nothere.ipynb"], "nothere.ipynb cannot be read: No such file or directory."),
        (["."], ". cannot be read: Is a directory."),
    ],
)
def test_a_wrong_call_is_one_sentence(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["clean", *words]) == 2
    assert capsys.readouterr().err.startswith(f"diffai: {said}")


def test_strange_notebooks_are_left_alone() -> None:
    odd: list[Any] = [None, {"data": []}, {"data": {VIEW: 1}}, {"data": {VIEW: {"model_id": []}}}]
    for cells in ([1], [{"outputs": 3}], [{"outputs": odd}]):
        text = json.dumps({"cells": cells, "metadata": [], "nbformat": 4})
        assert repair(text, "n").text == text
    half = json.dumps({**BROKEN, "half": "\ud800"})
    assert json.loads(repair(half, "n").text)["half"] == "\ud800"
    mixed = json.dumps({**BROKEN, "half": "é"}, ensure_ascii=False).replace("é", "é\\ud800")
    assert json.loads(repair(mixed, "n").text.encode().decode())["half"] == "é\ud800"
