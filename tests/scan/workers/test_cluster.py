"""A real Dask cluster of several processes on this machine."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from recorded import bits, scanned, write_pair

from diffai_jupyter import compare
from diffai_jupyter.errors import ExecutorError, SourceError
from diffai_jupyter.readers import open_checkpoint
from diffai_jupyter.scan.pairing import pair_checkpoints
from diffai_jupyter.scan.passes import stats
from diffai_jupyter.scan.run import Run
from diffai_jupyter.scan.workers import dispatch

# Dask has its own ways of closing sockets and loops.
pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def cluster():
    from distributed import LocalCluster

    with LocalCluster(n_workers=3, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster):
    from distributed import Client

    with Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(3)
        yield client


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"), many=60, slabs=True)


@pytest.fixture(scope="module")
def expected(files):
    return scanned(files, workers=1)


def tasks_left(client):
    """Return how many tasks the scheduler still knows, once it has heard of what was given up."""
    for _ in range(100):
        left = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
        if not left:
            return 0
        time.sleep(0.05)
    return left


@pytest.mark.parametrize("kind", ["address", "client", "executor"])
def test_the_same_bits_whatever_stands_for_the_cluster(kind, cluster, client, files, expected):
    given = {"address": cluster.scheduler_address, "client": client, "executor": client.get_executor()}[kind]
    before = threading.active_count()
    assert scanned(files, executor=given, unit_bytes=1 << 16) == expected
    assert tasks_left(client) == 0
    assert threading.active_count() <= before + 1  # the thread that Dask keeps for pickling


def test_a_worker_that_is_killed_half_way_does_not_show_in_the_result(client, files, expected):
    workers = client.run(os.getpid)
    killed = []

    def tick(stage, done, total):
        if done > total / 3 and not killed:
            killed.append(next(iter(workers.values())))
            os.kill(killed[0], signal.SIGKILL)

    run = Run(executor=client, unit_bytes=1 << 14, tick=tick)
    found = bits(stats(pair_checkpoints(*map(open_checkpoint, files), run)))
    assert killed
    assert found == expected
    assert tasks_left(client) == 0


def test_an_interrupt_leaves_no_task_behind(client, files):
    def tick(stage, done, total):
        if done:
            raise KeyboardInterrupt

    pair = pair_checkpoints(*map(open_checkpoint, files), Run(executor=client, unit_bytes=1 << 14, tick=tick))
    with pytest.raises(KeyboardInterrupt):
        stats(pair)
    assert tasks_left(client) == 0
    assert not client.futures
    # The cluster belongs to the user and works on.
    assert client.submit(abs, -1).result() == 1


def test_workers_that_see_another_file_are_named(client, tmp_path):
    files = write_pair(tmp_path, many=3)
    opened = [open_checkpoint(path) for path in files]
    files[1].write_bytes(files[1].read_bytes() + b"x")
    with pytest.raises(SourceError, match=rf"The worker on .* \(process \d+\) sees another file under {files[1]}"):
        stats(pair_checkpoints(*opened, Run(executor=client)))


def test_units_that_kill_every_worker_are_given_up(tmp_path, monkeypatch):
    from distributed import Client, LocalCluster

    files = write_pair(tmp_path, many=3)
    monkeypatch.setattr(dispatch, "ATTEMPTS", 2)
    # A function of the main module travels by value.
    ends = eval("lambda *unit: __import__('os')._exit(1)", {"__name__": "__main__"})
    monkeypatch.setattr(dispatch, "scan_packed", ends)
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 0))
        with pytest.raises(ExecutorError, match=r"of the Dask cluster were lost 2 times .*KilledWorker"):
            stats(pair_checkpoints(*map(open_checkpoint, files), Run(executor=client)))


def test_a_whole_report_by_address(cluster, files):
    there = compare(*files, change_summary=True, executor=cluster.scheduler_address, workers=2)
    assert there.to_text() == compare(*files, change_summary=True).to_text()


def test_live_arrays_stay_here(client, files):
    opened = open_checkpoint(files[0])
    state = {name: tensor.read_all() for name, tensor in list(opened.tensors.items())[:3]}
    assert compare(state, state, executor=client).to_text() == compare(state, state).to_text()
