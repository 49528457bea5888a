"""What a run finds of an earlier one: the same bytes without reading a tensor, and nothing that may be stale."""

from __future__ import annotations

import json
import os
import shutil
import time

import numpy as np
import pytest
from bank import noised
from builders import to_codes, transformer, write_safetensors
from gguf_models import llama_as_gguf

from diffai_jupyter import compare
from diffai_jupyter.checkpoint.storage import StoredFile
from diffai_jupyter.checkpoint.tensor import FileRange
from diffai_jupyter.comparison import Comparison
from diffai_jupyter.readers import open_checkpoint
from diffai_jupyter.report.request import request_of
from diffai_jupyter.scan import keeping
from diffai_jupyter.scan.pairing import pair_checkpoints
from diffai_jupyter.scan.passes import stats
from diffai_jupyter.scan.run import Run
from diffai_jupyter.store.place import open_store

LONG_AGO = 1_600_000_000
SEVERAL = dict.fromkeys(
    ("change_summary", "learning_progress", "anomaly_detection", "hyperparameter_impact", "learning_rate_analysis",
     "inference_speed_estimate", "regression_test", "convergence_analysis"), True,
)  # fmt: skip
"""Analyses that between them look at everything that can be given."""



@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Turn the cache on, in a folder of this test, whatever happens to the sources meanwhile."""
    monkeypatch.setenv("DIFFAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(keeping, "code_digest", lambda: b"code")
    monkeypatch.chdir(tmp_path)
    return open_store()


def write(path, state, dtype="f32", when=LONG_AGO):
    write_safetensors(path, {name: (dtype.upper(), to_codes(dtype, values)) for name, values in state.items()})
    return age(path, when)


def age(path, when=LONG_AGO):
    os.utime(path, (when, when))
    return path


def forms(comparison):
    """Return everything a comparison can be written as."""
    return [
        comparison.to_text(), comparison.to_html(), comparison.to_markdown(), comparison.to_json(),
        repr(comparison.report.change), repr(comparison.document()), str(comparison.exit_code),
    ]  # fmt: skip


@pytest.fixture
def forbid(monkeypatch):
    """Return a function after which reading any tensor fails."""

    def refuse(tensor, *_):
        msg = f"{tensor.parts[0]} was read"
        raise AssertionError(msg)

    def now():
        for name in ("codes", "codes_into"):
            monkeypatch.setattr(FileRange, name, refuse)

    return now


def plain(tmp_path):
    state = transformer(layers=2, hidden=24, inner=32, vocab=48)
    for side, dtype, end, moved in (("a", "f32", 20, state), ("b", "bf16", 40, noised(state, 0.02))):
        write(tmp_path / side / "model.safetensors", moved, dtype)
        heads = {"num_attention_heads": 6, "num_key_value_heads": 6}
        (tmp_path / side / "config.json").write_text(json.dumps(heads))
        log = [{"step": 10 * i, "loss": 3 / (1 + i)} for i in range(1, end)]
        (tmp_path / side / "trainer_state.json").write_text(json.dumps({"global_step": 10 * end, "log_history": log}))
    return tmp_path / "a", tmp_path / "b", {}


def reordered(tmp_path):
    """Pair two files in which only the content tells which tensor is which, units in another order."""
    state = transformer(layers=1, hidden=32, inner=48, vocab=40)
    order = np.random.default_rng(0).permutation(48)
    moved = dict(state)
    for name in ("gate", "up"):
        moved[f"model.layers.0.mlp.{name}_proj.weight"] = state[f"model.layers.0.mlp.{name}_proj.weight"][order]
    down = "model.layers.0.mlp.down_proj.weight"
    moved[down] = state[down][:, order]
    moved["something.else.weight"] = moved.pop("model.norm.weight") * np.linspace(1, 2, 32, dtype="f4")
    state["model.norm.weight"] = moved["something.else.weight"]
    return write(tmp_path / "a.safetensors", state), write(tmp_path / "b.safetensors", moved), {"align": True}


def converted(tmp_path):
    """Pair a file with one in a format that leaves open how it is to be read."""
    state = transformer(layers=1, hidden=64, inner=64, vocab=64)
    path = age(llama_as_gguf(tmp_path / "b.gguf", noised(state, 0.01), 4, 4))
    return write(tmp_path / "a.safetensors", state), path, {"spectral": True}


@pytest.mark.parametrize("make", [plain, reordered, converted])
def test_the_second_report_has_the_same_bytes_and_reads_no_tensor(tmp_path, forbid, cache, make):
    a, b, flags = make(tmp_path)
    first = forms(compare(a, b, all=True, include_charts=True, **flags))
    assert cache.usage().entries > 20
    forbid()
    assert forms(compare(a, b, all=True, include_charts=True, **flags)) == first


def test_the_same_bytes_as_without_a_cache(tmp_path, monkeypatch):
    a, b, _ = plain(tmp_path)
    kept = [forms(compare(a, b, **SEVERAL)) for _ in range(2)]
    monkeypatch.setenv("DIFFAI_CACHE", "0")
    assert kept == [forms(compare(a, b, **SEVERAL))] * 2


def test_turned_off_nothing_is_written(tmp_path, monkeypatch, cache):
    monkeypatch.setenv("DIFFAI_CACHE", "0")
    a, b, _ = plain(tmp_path)
    compare(a, b, change_summary=True)
    assert cache.usage().entries == 0
    assert not cache.folder.exists()


@pytest.fixture
def small(tmp_path):
    """Return two small files and a function that writes the second one anew, as large as before."""
    # Sixteenths, so that no product is rounded.
    state = {"w.weight": np.random.default_rng(0).integers(-99, 99, (40, 30)).astype("f4") / 16}
    a = write(tmp_path / "a.safetensors", state)

    def rewrite(factor, when):
        return write(tmp_path / "b.safetensors", {"w.weight": state["w.weight"] * np.float32(factor)}, when=when)

    return a, rewrite


def magnitude(a, b, **flags):
    return compare(a, b, change_summary=True, **flags)["change_summary"].values["magnitude"].value


def test_a_touched_file_is_read_again(small):
    a, rewrite = small
    assert magnitude(a, rewrite(1.25, LONG_AGO)) == 0.25
    assert magnitude(a, rewrite(1.5, LONG_AGO + 1)) == 0.5


def test_the_same_size_and_time_are_believed_but_not_with_verify(small):
    a, rewrite = small
    assert magnitude(a, rewrite(1.25, LONG_AGO)) == 0.25
    b = rewrite(1.5, LONG_AGO)
    assert magnitude(a, b) == 0.25
    assert magnitude(a, b, verify=True) == 0.5
    assert magnitude(a, b) == 0.5
    assert magnitude(a, b, verify=True) == 0.5
    assert magnitude(a, rewrite(1.75, LONG_AGO), verify=True) == 0.75


def test_verify_reads_files_through_and_no_tensor(small, forbid):
    a, rewrite = small
    b = rewrite(2, LONG_AGO)
    first = forms(compare(a, b, all=True, verify=True))
    forbid()
    assert forms(compare(a, b, all=True, verify=True)) == first


def test_a_file_that_was_just_written_is_not_trusted(small, cache):
    a, rewrite = small
    # A second write within a tick of the clock would leave the same size and time.
    now = time.time()
    for when in (now, now - 1.5, now + 60):
        assert magnitude(a, rewrite(2, when)) == 1
        assert cache.usage().entries == 0
    assert magnitude(a, rewrite(2, now - 5)) == 1
    assert cache.usage().entries > 0


def test_a_file_that_changes_while_it_is_read_is_not_kept(small, cache, monkeypatch):
    a, rewrite = small
    b = rewrite(2, LONG_AGO)
    read = FileRange.codes_into

    def touched(tensor, *where):
        codes = read(tensor, *where)
        if tensor.file.path == str(b):
            os.utime(b, (LONG_AGO + 5, LONG_AGO + 5))
        return codes

    monkeypatch.setattr(FileRange, "codes_into", touched)
    magnitude(a, b)
    assert cache.usage().entries == 0


def test_the_time_of_a_look_is_that_of_the_first(tmp_path):
    file = StoredFile.at(write(tmp_path / "a.safetensors", {"w": np.zeros(3)}))
    assert file.digested("digest").looked_at_ns == file.looked_at_ns


@pytest.mark.parametrize(
    ("beside", "content", "flag"),
    [
        ("config.json", {"num_attention_heads": 8, "num_key_value_heads": 8}, "attention-analysis"),
        ("trainer_state.json", {"global_step": 10, "log_history": [{"step": 5, "loss": 1.0}]}, "learning-progress"),
    ],
)
def test_side_cars_count_by_their_content(tmp_path, beside, content, flag):
    a, b, _ = plain(tmp_path)
    before = forms(compare(a, b, **{flag.replace("-", "_"): True}))[0]
    (tmp_path / "b" / beside).write_text(json.dumps(content))
    after = forms(compare(a, b, **{flag.replace("-", "_"): True}))[0]
    shutil.rmtree(tmp_path / "cache")
    assert forms(compare(a, b, **{flag.replace("-", "_"): True}))[0] == after != before


@pytest.mark.parametrize(
    "flags",
    [
        {"epsilon": 0.5}, {"steps": 7}, {"lr": 0.1, "optimizer": "sgd"}, {"batch": 9}, {"context": 99},
        {"device": "1e12,1e11"}, {"metrics_b": {"accuracy": 0.5}, "metrics_a": {"accuracy": 0.9}}, {"path": "layers.1"},
        {"history": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]}, {"spectral": True},
        {"set": "anomaly-detection.tail=0.99"},
    ],
    ids=lambda flags: next(iter(flags)),
)  # fmt: skip
def test_what_is_given_counts(tmp_path, flags):
    state = transformer(layers=2, hidden=12, inner=16, vocab=24)
    a, b = write(tmp_path / "a.safetensors", state), write(tmp_path / "b.safetensors", noised(state, 0.02))
    before = results(a, b)
    found = results(a, b, **flags)
    shutil.rmtree(tmp_path / "cache")
    assert results(a, b, **flags) == found
    assert found != before


def results(a, b, **flags):
    return json.loads(compare(a, b, **SEVERAL, **flags).to_json())["results"]


def test_of_a_sharded_checkpoint_only_the_changed_shard_is_read_again(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    shards = [{f"layers.{i}.{j}.weight": draw.normal(size=(20, 30)) for j in range(3)} for i in range(3)]
    for side, factor in (("a", 1.0), ("b", 1.01)):
        names = [f"model-0000{i + 1}-of-00003.safetensors" for i in range(3)]
        for shard, name in zip(shards, names, strict=True):
            write(tmp_path / side / name, {key: factor * values for key, values in shard.items()})
        weights = {key: name for shard, name in zip(shards, names, strict=True) for key in shard}
        (tmp_path / side / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    read = set()
    for name in ("codes", "codes_into"):
        known = getattr(FileRange, name)

        def noted(tensor, *where, _known=known):
            read.add(tensor.file.path)
            return _known(tensor, *where)

        monkeypatch.setattr(FileRange, name, noted)

    def records():
        read.clear()
        pair = pair_checkpoints(open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b"))
        return [record.both.d_squares for record in stats(pair)], {path.rpartition("/")[2] for path in read}

    first, files = records()
    assert files == set(names)
    assert records() == (first, set())
    write(tmp_path / "b" / names[1], {key: 2 * values for key, values in shards[1].items()}, when=LONG_AGO + 9)
    second, files = records()
    assert files == {names[1]}
    wanted = [float(np.sum(np.square(values.astype("f4"), dtype="f8"))) for values in shards[1].values()]
    assert np.allclose(second[3:6], wanted, rtol=1e-6)
    assert (second[:3], second[6:]) == (first[:3], first[6:])
    assert records() == (second, set())


def test_damaged_entries_are_computed_again(tmp_path, cache):
    a, b, _ = plain(tmp_path)
    first = forms(compare(a, b, **SEVERAL))
    paths = sorted(cache.folder.iterdir())
    for i, path in enumerate(paths):
        content = bytearray(path.read_bytes())
        if i % 3 == 0:
            path.write_bytes(content[: len(content) // 2])
        elif i % 3 == 1:
            content[-1 - len(content) // 3] ^= 1
            path.write_bytes(content)
        else:
            shutil.copy(paths[(i + 1) % len(paths)], path)
    assert forms(compare(a, b, **SEVERAL)) == first


def test_entries_that_are_well_formed_and_say_something_else_are_no_error(tmp_path, cache):
    a, b, _ = plain(tmp_path)
    first = forms(compare(a, b, **SEVERAL))
    for path in cache.folder.iterdir():
        for payload in (b"", b"{}\n", b"{}\n" + keeping.Codec(()).write({"x": 1}), b"\xff\n[]\n"):
            assert cache.put(path.stem, payload)
    assert forms(compare(a, b, **SEVERAL)) == first


def test_objects_in_memory_are_never_kept(small, cache):
    a, _ = small
    state = {"w.weight": np.ones((40, 30), "f4")}
    compare(state, state, all=True)
    compare(a, state, all=True)
    assert cache.usage().entries == 0


def test_the_function_of_the_user_is_called_each_time(small):
    a, rewrite = small
    b = rewrite(2, LONG_AGO)
    scores = iter((0.9, 0.5, 0.9, 0.8))
    for wanted in (-0.4, -0.1):
        found = compare(a, b, evaluate=lambda model: {"accuracy": next(scores)}, regression_test=True)
        values = found.report.results["regression-test"].values
        shown = {key: value.value for key, value in values.items() if isinstance(value.value, float)}
        assert any(abs(abs(value) - abs(100 * wanted / 0.9)) < 0.1 for value in shown.values()), shown


def test_what_a_clock_cut_short_is_not_found_again(tmp_path, monkeypatch):
    a, b, _ = plain(tmp_path)
    request = request_of(("embedding-analysis", "similarity-matrix", "head-importance", "change-summary"), {})

    def found(seconds):
        pair = pair_checkpoints(open_checkpoint(a), open_checkpoint(b), Run(seconds=seconds))
        return Comparison(pair, request).report.results

    def is_cut(results):
        return any(value.reason == "TIME_BUDGET" for result in results.values() for value in result.values.values())

    assert is_cut(found(0.0))
    whole = found(None)
    assert not is_cut(whole)
    assert found(0.0) == whole, "what is known takes no time"
    monkeypatch.setenv("DIFFAI_CACHE", "0")
    assert found(None) == whole


def test_headers_alone_leave_nothing(small, cache):
    a, rewrite = small
    compare(a, rewrite(2, LONG_AGO), memory_analysis=True)
    assert cache.usage().entries == 0
