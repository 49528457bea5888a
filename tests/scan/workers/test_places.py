"""What ``--executor`` takes, and what it says of the rest."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from recorded import Shuffling, write_pair

from diffai_jupyter import cli, compare
from diffai_jupyter.errors import ArgumentError, ExecutorError, MissingPackageError
from diffai_jupyter.options import Kind
from diffai_jupyter.scan.workers import places
from diffai_jupyter.scan.workers.places import check_executor, is_executor, place_of

TAKES = f"The 'executor' option must be {Kind.EXECUTOR.words}. Got"
STATES = {"w": np.ones(4)}, {"w": np.zeros(4)}


@pytest.mark.parametrize(
    ("given", "shown"),
    [("proceses", "'proceses'"), ("http://host:1", "'http://host:1'"), (7, "int"), ([], "list"), ({}, "dict")],
)  # fmt: skip
def test_what_takes_no_calls_is_refused_before_anything_is_read(given, shown):
    with pytest.raises(ArgumentError) as caught:
        compare("no-such-file", "no-such-file", executor=given)
    assert str(caught.value) == f"{TAKES} {shown} from executor=."


def test_the_command_takes_words_and_addresses(capsys, tmp_path):
    files = [str(path) for path in write_pair(tmp_path, many=2)]
    assert cli.main([*files, "--executor", "threads", "--workers", "2", "-q"]) == 1
    assert cli.main([*files, "--executor", "client"]) == 2
    assert capsys.readouterr().err == f"diffai: {TAKES} 'client' from --executor.\n"
    assert cli.main([*files, "--executor"]) == 2


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingPackageError) as caught:
        compare(*STATES, executor="tcp://127.0.0.1:8786")
    said = "A Dask scheduler for --executor needs distributed: pip install 'diffai-jupyter[distributed]'"
    assert str(caught.value) == said


def test_an_address_where_nobody_answers_is_one_sentence(monkeypatch):
    class Distributed:
        class Client:
            def __init__(self, address, **said):
                assert said["timeout"] == places.SECONDS
                msg = f"Timed out trying to connect to {address} after 10 s\nsecond line"
                raise OSError(msg)

    monkeypatch.setitem(sys.modules, "distributed", Distributed)
    with pytest.raises(ExecutorError) as caught:
        compare(*STATES, executor="tcp://127.0.0.1:1")
    assert str(caught.value) == (
        "No Dask scheduler answers at tcp://127.0.0.1:1 (Timed out trying to connect to tcp://127.0.0.1:1 after 10 s). "
        "Check the address and that it runs."
    )


def test_compare_takes_an_executor_and_leaves_it_open():
    with ThreadPoolExecutor(1) as pool, Shuffling(0) as other:
        for executor in (pool, other):
            assert compare(*STATES, executor=executor).report.change.is_equal is False
            assert executor.submit(abs, -1).result() == 1


def test_the_report_is_the_same_whoever_computes_it(tmp_path):
    files = write_pair(tmp_path, many=3)
    with Shuffling(0) as executor:
        there = compare(*files, change_summary=True, executor=executor)
    assert there.to_text() == compare(*files, change_summary=True).to_text()
    reports = [json.loads(found.to_json()) for found in (there, compare(*files, change_summary=True))]
    settings = [report.pop("settings") for report in reports]
    assert reports[0] == reports[1]
    (changed,) = [one for one, other in zip(*settings, strict=True) if one != other]
    assert (changed["key"], changed["value"]) == ("executor", "Shuffling")


class FakeClient:
    """What this room asks a Dask client."""

    asynchronous = False

    def __init__(self, threads):
        self.threads, self.asked, self.ended = threads, 0, []

    def nthreads(self):
        self.asked += 1
        return self.threads

    def get_executor(self, **said):
        assert said == {"pure": False}
        executor = ThreadPoolExecutor(1)
        shutdown = executor.shutdown
        executor.shutdown = lambda **how: (self.ended.append(how), shutdown(**how))
        return executor


FakeClient.__module__, FakeClient.__name__ = "distributed.client", "Client"


def test_a_dask_client_is_known_without_dask():
    assert is_executor(FakeClient({}))
    assert not is_executor(FakeClient)
    check_executor(FakeClient({}))


def test_a_cluster_gets_two_units_for_each_of_its_threads():
    client = FakeClient({"tcp://a": 40, "tcp://b": 60})
    with place_of(client, 2) as place:
        assert [place.room, place.room, client.asked] == [200, 200, 1]
    assert client.ended
    with place_of(FakeClient({}), 2) as place:
        assert (place.workers(), place.room) == (0, places.LEAST_UNDER_WAY)
    with place_of(client, 2, most=7) as place:
        assert place.room == 7


def test_a_client_that_is_asynchronous_is_refused():
    client = FakeClient({})
    client.asynchronous = True
    with pytest.raises(ArgumentError, match="The Dask client is asynchronous"):
        compare(*STATES, executor=client)
