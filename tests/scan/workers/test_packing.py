"""What travels to a worker: paths and byte ranges, never values."""

from __future__ import annotations

import io
import os
import pickle

import numpy as np
import pytest
from builders import checkpoint_of, to_codes, write_safetensors
from recorded import Shuffling, scanned, write_pair

from diffai_jupyter.checkpoint.storage import StoredFile
from diffai_jupyter.checkpoint.tensor import FileRange
from diffai_jupyter.checkpoint.unpacked import Unpacked
from diffai_jupyter.checkpoint.views import Rows, Transposed
from diffai_jupyter.errors import SourceError
from diffai_jupyter.readers import open_checkpoint
from diffai_jupyter.readers.formats import packed
from diffai_jupyter.scan import tiles
from diffai_jupyter.scan.pairing import pair_checkpoints
from diffai_jupyter.scan.units import UNIT_BYTES, UNIT_TENSORS, sides, tasks, units
from diffai_jupyter.scan.workers.packing import answers_of, is_unpacked_whole, lies_here, pack, scan_packed


def all_tasks(pair):
    return [task for i, one in enumerate(pair.tensors) for a, b in sides(one) for task in tasks(i, one.name, a, b)]


def test_a_hundred_thousand_small_tensors_travel_in_few_and_small_units(tmp_path):
    made = []
    for name in "ab":
        codes = np.zeros((2, 2), "u2")
        tensors = {
            f"model.layers.{i // 64}.mlp.experts.{i % 64}.down_proj.weight": ("BF16", codes) for i in range(2560)
        }
        made.append(open_checkpoint(write_safetensors(tmp_path / f"{name}.safetensors", tensors)))
    waiting = all_tasks(pair_checkpoints(*made))
    bundles = list(units(waiting))
    assert [len(unit) for unit in bundles] == [UNIT_TENSORS] * 10
    blobs = [pack(unit) for unit in bundles]
    assert max(map(len, blobs)) / UNIT_TENSORS < 160
    # Pickle alone is larger, and it is what the limit of 220 was set for.
    assert max(len(pickle.dumps(unit)) for unit in bundles) / UNIT_TENSORS > 160
    assert all(blob.count(str(tmp_path).encode()) == 2 for blob in blobs)


def test_a_large_tensor_is_cut_into_units_that_say_it_once(tmp_path):
    files = write_pair(tmp_path, many=1, slabs=True)
    pair = pair_checkpoints(*map(open_checkpoint, files))
    bundles = list(units(all_tasks(pair), unit_bytes=1 << 20))
    assert sum(task.slabs == 3 for unit in bundles for task in unit) == 3
    (whole,) = units(all_tasks(pair), unit_bytes=UNIT_BYTES)
    assert max(len(pack(unit)) for unit in (*bundles, whole)) < 650 + 2 * len(str(tmp_path))


def test_slabs_of_what_is_unpacked_from_its_start_stay_together(tmp_path, monkeypatch):
    monkeypatch.setattr(tiles, "SLAB_TILES", 1)
    monkeypatch.setattr(packed, "SMALL", 1)
    values = np.random.default_rng(0).integers(0, 9, (3, 65_537), dtype="u1")
    np.savez_compressed(tmp_path / "a.npz", wide=values, small=values[:2, :5])
    opened = open_checkpoint(tmp_path / "a.npz")
    pair = pair_checkpoints(opened, opened)
    assert is_unpacked_whole(pair.tensors[-1].a)
    bundles = list(units(all_tasks(pair), 1 << 10, lambda task: is_unpacked_whole(task.a)))
    assert [len(unit) for unit in bundles] == [1, 3]
    with Shuffling(0) as executor:
        found = scanned((tmp_path / "a.npz",) * 2, executor=executor, unit_bytes=1)
    assert found == scanned((tmp_path / "a.npz",) * 2)
    assert len(executor.calls) == 2


def test_what_lies_in_memory_is_found_below_views(tmp_path):
    (live,) = checkpoint_of({"w": np.zeros((4, 4), "f4")}).tensors.values()
    path = write_safetensors(tmp_path / "a.safetensors", {"w": ("F32", np.zeros((4, 4), "f4"))})
    (stored,) = open_checkpoint(path).tensors.values()
    assert lies_here(live)
    assert lies_here(Transposed(Rows(live, 0, 2)))
    assert not lies_here(Transposed(Rows(stored, 0, 2)))
    assert not isinstance(stored.file, Unpacked)


ANOTHER = "sees another file under {file} (its size or time differs)"


def said_by_a_worker(files):
    unit = pack(all_tasks(pair_checkpoints(*map(open_checkpoint, files))))

    def say(change):
        change()
        with pytest.raises(SourceError) as caught:
            answers_of(scan_packed(unit, 0.0, 2))
        return str(caught.value)

    return say


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda file: file.unlink(), "cannot read {file}: no such file."),
        (lambda file: file.write_bytes(b"x" * 2000), ANOTHER),
        (lambda file: os.utime(file, ns=(0, 10**18)), ANOTHER),
    ],
)
def test_a_worker_that_does_not_see_the_file_says_who_it_is_and_what_to_do(tmp_path, change, said):
    files = write_pair(tmp_path, many=3)
    text = said_by_a_worker(files)(lambda: change(files[1]))
    assert text.startswith("The worker on ")
    assert f"(process {os.getpid()}) {said.format(file=files[1])}" in text
    assert text.endswith("Put the files on a disk that every worker sees, or give a URL.")


def test_a_disk_that_keeps_whole_seconds_holds_the_same_file(tmp_path):
    files = write_pair(tmp_path, many=3)
    os.utime(files[0], ns=(5 * 10**9 + 123, 5 * 10**9 + 123))
    unit = pack(all_tasks(pair_checkpoints(*map(open_checkpoint, files))))
    os.utime(files[0], ns=(5 * 10**9, 5 * 10**9))
    assert len(answers_of(scan_packed(unit, 0.0, 2))) == 3


def test_a_tensor_is_the_same_after_its_journey(tmp_path):
    values = np.random.default_rng(0).normal(size=(6, 4)).astype("f4")
    path = write_safetensors(tmp_path / "a.safetensors", {"w": ("BF16", to_codes("bf16", values))})
    file = StoredFile.at(path)
    (stored,) = open_checkpoint(path).tensors.values()
    assert isinstance(stored, FileRange)
    swapped = FileRange(file, stored.offset, (4, 6), stored.dtype, ("x", "y"), is_swapped=True)
    for tensor in (stored, swapped, Transposed(swapped)):
        (task,) = tasks(3, "w", tensor, tensor)
        # The version comes first, the unit behind it.
        source = io.BytesIO(pack([task]))
        assert pickle.load(source)
        (found,) = pickle.load(source)
        assert (found.index, found.name, found.slabs, found.nbytes) == (3, "w", 1, task.nbytes)
        assert found.a is found.b
        assert found.a.parts == tensor.parts
        assert found.a.nbytes == tensor.nbytes
        np.testing.assert_array_equal(found.a.read_all(), tensor.read_all())
