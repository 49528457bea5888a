"""Units given out and answers taken back: the same bits, whoever computes them and in whatever order they come."""

from __future__ import annotations

import threading
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import numpy as np
import pytest
from builders import checkpoint_of, write_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import Shuffling, bits, scanned, write_pair

from diffai_jupyter.errors import ExecutorError
from diffai_jupyter.readers import open_checkpoint
from diffai_jupyter.readers.sources import remote
from diffai_jupyter.scan import tiles
from diffai_jupyter.scan.pairing import pair_checkpoints
from diffai_jupyter.scan.passes import stats
from diffai_jupyter.scan.run import Run
from diffai_jupyter.scan.workers.dispatch import ATTEMPTS
from diffai_jupyter.scan.workers.packing import scan_packed
from diffai_jupyter.scan.workers.processes import Processes


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"), many=15)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("small"), many=30)


@pytest.fixture(scope="module")
def expected(files):
    return scanned(files, workers=1)


@pytest.fixture(scope="module")
def pools():
    """Two worker processes of ours, and two threads."""
    with Processes(2) as processes, ThreadPoolExecutor(2) as threads:
        yield {"processes": processes, "threads": threads}


@given(
    st.sampled_from(["serial", "threads", "processes", "shuffled"]),
    st.integers(1, 300), st.integers(1, 5), st.integers(1, 64 << 20), st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_same_bits_whoever_computes_them_in_any_order(
    files, expected, pools, where, block_tiles, workers, unit_bytes, seed
):
    how = {"block_tiles": block_tiles, "workers": workers, "unit_bytes": unit_bytes}
    if where == "serial":
        found = scanned(files, **{**how, "workers": 1})
    elif where == "shuffled":
        with Shuffling(seed) as executor:
            found = scanned(files, **{**how, "workers": 40}, executor=executor)
    else:
        found = scanned(files, **how, executor=pools[where])
    assert found == expected


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    draw = np.random.default_rng(0)
    codes = [draw.integers(0, 9, (6, 65_537), dtype="u1") for _ in "ab"]
    return tuple(write_safetensors(folder / f"{i}.safetensors", {"wide": ("U8", codes[i])}) for i in (0, 1))


@given(st.integers(0, 99), st.integers(1, 1 << 22), st.integers(1, 5))
@settings(max_examples=4, deadline=None)
def test_slabs_that_come_in_any_order_are_put_together_in_theirs(wide, seed, unit_bytes, block_tiles):
    with pytest.MonkeyPatch.context() as patch, Shuffling(seed) as executor:
        # A slab is one row here, so that there are six.
        patch.setattr(tiles, "SLAB_TILES", 1)
        found = scanned(wide, executor=executor, unit_bytes=unit_bytes, block_tiles=block_tiles)
        assert found == scanned(wide, workers=1)


def test_units_that_are_lost_are_given_out_again(small):
    with Shuffling(3, loses=lambda number: number % 3 == 0) as executor:
        assert scanned(small, executor=executor, unit_bytes=1 << 14) == scanned(small)
        attempts = [call[-1] for call in executor.calls]
    assert 0 < max(attempts) < ATTEMPTS
    # An executor that remembers answers by their arguments is asked a new question.
    assert len(set(executor.calls)) == len(executor.calls)


def test_workers_that_are_lost_again_and_again_are_one_clear_error(small):
    with Shuffling(0, loses=lambda number: True) as executor, pytest.raises(ExecutorError) as caught:
        scanned(small, executor=executor)
    said = f"The workers of the Shuffling were lost {ATTEMPTS} times with the same tensors"
    assert str(caught.value).startswith(said)
    assert "'model.layers.0.mlp.up_proj.weight' and 29 more" in str(caught.value)
    assert "--workers N" in str(caught.value)


class Failing(Executor):
    """Fails every call with an error of its own."""

    def __init__(self, error, at="result"):
        self.error, self.at = error, at

    def submit(self, call, /, *args, **named):
        if self.at == "submit":
            raise self.error
        future = Future()
        future.set_exception(self.error)
        return future


def test_a_pool_that_broke_is_replaced_by_threads(small):
    for at in ("submit", "result"):
        assert scanned(small, executor=Failing(BrokenProcessPool("a worker died"), at)) == scanned(small)


def test_a_pool_whose_worker_is_killed_gives_the_same(small):
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert pool.submit(abs, -1).result() == 1
        (process,) = pool._processes.values()
        process.kill()
        process.join()
        assert scanned(small, executor=pool) == scanned(small)


@pytest.mark.parametrize(
    ("error", "at", "said"),
    [
        (ModuleNotFoundError("No module named 'x'"), "result", r"cannot import .* pip install diffai-jupyter=="),
        (RuntimeError("cannot schedule new futures after shutdown"), "submit", r"takes no work .*: cannot schedule"),
    ],
)  # fmt: skip
def test_workers_that_cannot_begin_are_one_clear_error(small, error, at, said):
    with pytest.raises(ExecutorError, match=said):
        scanned(small, executor=Failing(error, at))


def test_an_error_of_ours_is_not_hidden(small):
    with pytest.raises(ZeroDivisionError):
        scanned(small, executor=Failing(ZeroDivisionError("x")))


def test_what_lies_in_memory_stays_here(small):
    opened = open_checkpoint(small[0])
    live = checkpoint_of({name: tensor.read_all() for name, tensor in opened.tensors.items()})
    here = bits(stats(pair_checkpoints(opened, live)))
    executor = Failing(ZeroDivisionError("nothing may arrive here"))
    assert bits(stats(pair_checkpoints(opened, live, Run(executor=executor)))) == here
    assert bits(stats(pair_checkpoints(live, opened, Run(executor="processes"))))


def test_of_a_mixed_pair_only_the_files_travel(small):
    opened = [open_checkpoint(path) for path in small]
    extra = checkpoint_of({"live": np.arange(12.0).reshape(3, 4)}).tensors
    for one in opened:
        one.tensors.update(extra)
    here = bits(stats(pair_checkpoints(*opened)))
    with Shuffling(0) as executor:
        assert bits(stats(pair_checkpoints(*opened, Run(executor=executor)))) == here
    assert executor.calls
    assert all(b"ArrayTensor" not in call[0] for call in executor.calls)


def test_addresses_are_read_in_few_large_pieces(tmp_path, monkeypatch):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    for name in "ab":
        file = write_safetensors(tmp_path / name, {"w": ("BF16", np.full((4096, 2048), ord(name), "u2"))})
        memory.pipe(f"/far/{name}.safetensors", file.read_bytes())
    pair = pair_checkpoints(*(open_checkpoint(f"memory://far/{name}.safetensors") for name in "ab"))
    asked = []
    real = remote.fetch
    monkeypatch.setattr(remote, "fetch", lambda *piece: asked.append(piece[2]) or real(*piece))
    found = bits(stats(pair))
    assert asked == [8 << 20] * 4
    assert found == scanned((tmp_path / "a", tmp_path / "b"))


class Counting(ThreadPoolExecutor):
    """Says how many calls were not answered at once."""

    def __init__(self):
        super().__init__(1)
        self.open = self.most = 0

    def submit(self, call, /, *args, **named):
        self.open += 1
        self.most = max(self.most, self.open)
        future = super().submit(call, *args, **named)
        future.add_done_callback(lambda _: setattr(self, "open", self.open - 1))
        return future


def test_only_a_few_units_are_under_way(small):
    for workers, most in ((3, 3), (None, 2)):
        with Counting() as pool:
            scanned(small, executor=pool, workers=workers, unit_bytes=1)
        assert pool.most <= most


def test_an_interrupted_pass_goes_on_where_it_was(small):
    read = []

    def tick(stage, done, total):
        read.append(done)
        if len(read) == 12:
            raise KeyboardInterrupt

    before = threading.active_count()
    pair = pair_checkpoints(*map(open_checkpoint, small), Run(tick=tick, workers=1, unit_bytes=1))
    with pytest.raises(KeyboardInterrupt):
        stats(pair)
    assert threading.active_count() == before
    finished = dict(pair.memory["scanned"])
    assert finished
    totals = set()
    pair.run.tick = lambda stage, done, total: totals.add(total)
    found = stats(pair)
    assert all(any(record is one for one in found) for record in finished.values())
    assert max(totals) < sum(tensor.nbytes for side in (pair.a, pair.b) for tensor in side.tensors.values())
    assert bits(found) == scanned(small)


def test_a_packed_unit_of_another_version_is_refused_by_name(small, monkeypatch):
    from diffai_jupyter.scan.workers import packing

    with Shuffling(0) as executor:
        scanned(small, executor=executor)
    monkeypatch.setattr(packing, "VERSION", "9.9.9")
    with pytest.raises(ExecutorError, match=r"runs diffai-jupyter 9\.9\.9, and this process 0\.1\.0\. Install"):
        packing.answers_of(scan_packed(*executor.calls[0]))
