from __future__ import annotations

import threading

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController, threadpool_limits

from diffai_jupyter.scan.one_thread import OneThread, plain_algebra


def threads():
    libraries = ThreadpoolController().info()
    return {library["filepath"]: library["num_threads"] for library in libraries if library["user_api"] == "blas"}


@pytest.fixture
def two():
    np.ones((2, 2)) @ np.ones((2, 2))
    with threadpool_limits(2, user_api="blas"):
        before = threads()
        if set(before.values()) != {2}:
            pytest.skip("this BLAS cannot run two threads")
        yield before


def test_users_that_overlap_keep_one_thread_until_the_last_is_done(two):
    shared = OneThread()
    first, second = shared, shared
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert set(threads().values()) == {1}
    second.__exit__(None, None, None)
    assert threads() == two


def test_an_error_frees_the_threads(two):
    def fail():
        with plain_algebra():
            assert set(threads().values()) == {1}
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert threads() == two


def test_any_thread_limits_and_the_last_one_frees(two):
    def compute(known):
        with plain_algebra():
            known.append(threads())

    def in_thread():
        found = []
        thread = threading.Thread(target=compute, args=(found,))
        thread.start()
        thread.join()
        return set(found[0].values())

    with plain_algebra():
        assert in_thread() == {1}
    assert threads() == two
    # One that another thread has limited before, too.
    assert in_thread() == {1}
    assert threads() == two
