"""Hostile files do nothing, and what they would have done is said; damaged ones are refused in one sentence."""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import mutants, survive

from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.errors import DiffaiError, FormatError
from diffai_jupyter.readers import open_checkpoint
from diffai_jupyter.wording import say

_SPEC = importlib.util.spec_from_file_location("hostile_pickles", Path(__file__).with_name("hostile_pickles.py"))
assert _SPEC
assert _SPEC.loader
files: Any = importlib.util.module_from_spec(_SPEC)
sys.modules["hostile_pickles"] = files
_SPEC.loader.exec_module(files)

CASES = files.hostile("touch sentinel")


def sentences(checkpoint: Checkpoint) -> list[str]:
    return [say(note.template, note.said) for note in checkpoint.notes]


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record calls of what hostile files like to call."""
    calls: list[str] = []

    def recorded(name: str) -> Any:
        return lambda *args, **said: calls.append(name)

    monkeypatch.setattr(os, "system", recorded("os.system"))
    monkeypatch.setattr("posix.system", recorded("posix.system"))
    monkeypatch.setattr(subprocess, "Popen", recorded("Popen"))
    monkeypatch.setattr("builtins.eval", recorded("eval"))
    monkeypatch.setattr("builtins.__import__", _watched(calls))
    monkeypatch.setattr(pickle, "loads", recorded("pickle.loads"))
    monkeypatch.setattr(pickle, "load", recorded("pickle.load"))
    monkeypatch.setattr(pickle, "Unpickler", recorded("Unpickler"))
    return calls


def _watched(calls: list[str]) -> Any:
    real = __import__

    def watched(name: str, *args: Any, **said: Any) -> Any:
        if name.partition(".")[0] in ("torch", "evil", "subprocess", "runpy"):
            calls.append(f"import {name}")
        return real(name, *args, **said)

    return watched


def test_there_are_hostile_files_of_every_kind() -> None:
    assert len(CASES) >= 100


@pytest.mark.parametrize("name", CASES)
def test_hostile_files_do_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forbidden: list[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    case, path = CASES[name], tmp_path / "a.pt"
    answers: list[Checkpoint | FormatError] = []

    def opened(path: Path) -> None:
        try:
            answers.append(open_checkpoint(path))
        except FormatError as error:
            answers.append(error)

    if len(case.content) < 1 << 20:  # within 30 s of processor time and 256 MiB, with no error but ours
        survive(path, [case.content], opened)
    else:
        path.write_bytes(case.content)
        opened(path)
    (answer,) = answers
    assert isinstance(answer, Checkpoint) == case.is_listed
    if isinstance(answer, Checkpoint):
        assert answer.tensors["w"].read_all().tolist() == [[0, 1], [2, 3]]
        said = " ".join(sentences(answer))
    else:
        said = str(answer)
        assert said.startswith(str(path))
        assert said.isprintable()
    assert all(part in said for part in case.said), said
    assert forbidden == []
    assert [found.name for found in tmp_path.iterdir()] == ["a.pt"]


def test_such_files_do_harm_when_they_are_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # else the test above would prove nothing
    monkeypatch.chdir(tmp_path)
    pickle.loads(CASES["call as a plain pickle"].content)
    assert [found.name for found in tmp_path.iterdir()] == ["sentinel"]


def test_calls_lower_the_trust_and_harmless_names_do_not(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(CASES["os.system"].content)
    (note,) = (note for note in open_checkpoint(path).notes if "call" in note.template)
    assert note.is_warning
    harmless = files.called("argparse", "Namespace") + files.called("pathlib", "PosixPath", files.text("a"))
    path.write_bytes(files.archive(files.pickled(files.W, files.entry("x", b"(" + harmless + b"t"))))
    (first, *_) = open_checkpoint(path).notes
    assert say(first.template, first.said) == (
        "a.pt would import argparse.Namespace, pathlib.PosixPath if it were unpickled. Nothing was imported."
    )
    assert not first.is_warning


def test_the_state_of_a_module_makes_its_class_harmless_only_where_it_is_just_made(tmp_path: Path) -> None:
    state = b"}(" + files.text("_modules") + b"}" + files.text("_parameters") + b"}u"
    path = tmp_path / "a.pt"
    for made, is_warning in ((files.named("my", "Net") + b")\x81", False), (files.called("my", "Net"), True)):
        path.write_bytes(files.archive(files.pickled(files.W, files.entry("x", made + state + b"b"))))
        (note, *_) = open_checkpoint(path).notes
        assert "my.Net" in say(note.template, note.said)
        assert note.is_warning is is_warning


@pytest.mark.parametrize("write", [files.archive, files.legacy])
def test_files_made_by_hand_are_read(tmp_path: Path, write: Any) -> None:
    view = b"N" if write is files.legacy else b""
    where = files.storage(view=view)
    pickled = files.pickled(
        files.entry("w", files.tensor(where=where)),
        files.entry("turned", files.tensor((2, 2), (1, 2), where=where)),
        files.entry("part", files.tensor((2,), (2,), 1, where=where)),
        files.entry("row", files.tensor((3, 2), (0, 1), where=where)),
        files.entry("one", files.tensor((), (), 3, where=where)),
        files.entry("none", files.tensor((0, 5), (5, 1), where=where)),
    )
    path = tmp_path / "a.pt"
    path.write_bytes(write(pickled))
    checkpoint = open_checkpoint(path)
    assert checkpoint.format == "pytorch"
    assert checkpoint.notes == ()
    found = {name: tensor.read_all().tolist() for name, tensor in checkpoint.tensors.items()}
    assert found == {
        "w": [[0, 1], [2, 3]], "turned": [[0, 2], [1, 3]], "part": [[1, 3]],
        "row": [[0, 1], [0, 1], [0, 1]], "one": [[3]], "none": [],
    }
    again = pickle.loads(pickle.dumps(checkpoint.tensors["turned"]))
    assert again.read_all().tolist() == [[0, 2], [1, 3]]


def test_a_part_of_a_storage_in_an_old_file(tmp_path: Path) -> None:
    view = b"(" + files.text("v") + files.number(1) + files.number(2) + b"t"
    part = files.tensor((2,), (1,), where=files.storage(view=view))
    path = tmp_path / "a.pt"
    path.write_bytes(files.legacy(files.pickled(files.entry("w", part))))
    assert open_checkpoint(path).tensors["w"].read_all().tolist() == [[1, 2]]


def test_big_endian_storages(tmp_path: Path) -> None:
    raw = np.arange(4, dtype=">f4").tobytes()
    path = tmp_path / "a.pt"
    path.write_bytes(files.archive(files.pickled(files.W), {"0": raw}, {"byteorder": b"big"}))
    assert open_checkpoint(path).tensors["w"].read_all().tolist() == [[0, 1], [2, 3]]


def arrays() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {
        "plain": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "turned": np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
        "big": np.arange(3, dtype=">i2"),
        "long": draw.integers(0, 2**63, 100_000, dtype=np.uint64),
        "half": np.arange(4, dtype=np.float16),
        "bools": np.array([[True, False]]),
        "complex": np.arange(3) * (1 + 2j),
        "one": np.array(3.5),
        "none": np.zeros((0, 4)),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("suffix", [".pkl", ".pickle", ".bin"])
def test_plain_pickles_of_arrays(tmp_path: Path, protocol: int, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    content = {"part": arrays(), "scalar": np.float32(2.5), "list": [np.ones(2), {"x": np.zeros(1)}]}
    path.write_bytes(pickle.dumps(content, protocol))
    tensors = open_checkpoint(path).tensors
    expected = {f"part.{name}": array for name, array in arrays().items()}
    expected |= {"scalar": np.float32(2.5), "list.0": np.ones(2), "list.1.x": np.zeros(1)}
    assert sorted(tensors) == sorted(expected)
    for name, array in expected.items():
        tensor = tensors[name]
        assert tensor.shape == np.shape(array)
        wanted = np.reshape(array, tensor.grid)
        assert np.array_equal(tensor.read_all(), wanted), name
        assert tensor.homes == {str(path)}
    for name in ("part.fortran", "part.long"):
        again = pickle.loads(pickle.dumps(tensors[name]))
        assert np.array_equal(again.read_all(), np.reshape(expected[name], again.grid))


def test_arrays_of_other_libraries_dtypes(tmp_path: Path) -> None:
    import ml_dtypes

    path = tmp_path / "a.pkl"
    array = np.arange(6).astype(ml_dtypes.bfloat16)
    path.write_bytes(pickle.dumps({"w": array, "t": np.array(["text"]), "o": np.array([None])}))
    checkpoint = open_checkpoint(path)
    assert checkpoint.tensors["w"].dtype.name == "bf16"
    assert checkpoint.tensors["w"].read_all().tolist() == [list(range(6))]
    (said,) = (text for text in sentences(checkpoint) if "could not be compared" in text)
    assert "t (the dtype of the array is U4)" in said
    assert "o (" in said


def test_pickles_under_other_names_stay_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.joblib"
    path.write_bytes(pickle.dumps({"w": np.ones(2)}))
    with pytest.raises(DiffaiError, match="a pickle"):
        open_checkpoint(path)


def test_objects_of_any_class_are_looked_into(tmp_path: Path) -> None:
    from types import SimpleNamespace

    path = tmp_path / "a.pkl"
    found = SimpleNamespace(epoch=3, inner=SimpleNamespace(w=np.ones(2)), sizes=[1, 2])
    path.write_bytes(pickle.dumps({"run": found}, 2))
    assert list(open_checkpoint(path).tensors) == ["run.inner.w"]


def test_old_protocols_inside_of_newer_ones(tmp_path: Path) -> None:
    # lines of text, as protocol 0 writes them
    words = b"(S'a\\x41'\nVb\\u00e9\nI01\nI7\nL8L\nF1.5\nt"
    path = tmp_path / "a.pt"
    path.write_bytes(files.archive(files.pickled(files.W, files.entry("x", words))))
    assert list(open_checkpoint(path).tensors) == ["w"]


def test_reading_does_not_import_torch(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(files.archive(files.pickled(files.W, files.entry("x", files.called("torch.hub", "load")))))
    code = (
        "import sys; from diffai_jupyter.readers import open_checkpoint;"
        f"open_checkpoint({str(path)!r}).tensors['w'].read_all();"
        "print([name for name in ('torch', 'pickle_evil', 'IPython') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def seeds() -> list[bytes]:
    small = [case.content for case in CASES.values() if len(case.content) < 3000 and case.is_listed]
    plain = [
        pickle.dumps({name: array for name, array in arrays().items() if name != "long"}, protocol)
        for protocol in (2, 5)
    ]
    return small + 8 * plain


def read(path: Path) -> None:
    for tensor in open_checkpoint(path).tensors.values():
        if tensor.size < 1 << 20:
            tensor.read_all()


def test_damaged_files(tmp_path: Path) -> None:
    read_well, refused = survive(tmp_path / "a.pt", mutants(seeds(), 300), read)
    assert min(read_well, refused) > 20


@pytest.mark.slow
def test_many_damaged_files(tmp_path: Path) -> None:
    survive(tmp_path / "a.pt", mutants(seeds(), 40_000, seed=1), read)
