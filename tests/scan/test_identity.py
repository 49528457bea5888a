"""What tells files and tensors from others: what may be found again, and what may not."""

from __future__ import annotations

import os

import numpy as np
import pytest
from builders import checkpoint_of, write_safetensors

from diffai_jupyter.checkpoint.dtypes import DTYPES
from diffai_jupyter.checkpoint.tensor import FileRange
from diffai_jupyter.checkpoint.views import Reordered, Rows, Transposed
from diffai_jupyter.readers import open_checkpoint
from diffai_jupyter.readers.sources.remote import RemoteFile
from diffai_jupyter.scan.identity import Identities
from diffai_jupyter.store.fingerprint import Unkeepable


def remote(identity, address="https://example.org/a", digest=""):
    return FileRange(RemoteFile(address, 64, identity, digest), 0, (4, 4), DTYPES["f32"], ("w",))


def test_remote_files_are_told_by_strong_tags():
    digests = {
        Identities().tensor(tensor)[0]
        for tensor in (
            remote('"abc"'), remote('"abd"'), remote('"abc"', "https://example.org/b"), remote('"abc"', digest="x"),
            remote("d41d8cd98f00b204e9800998ecf8427e"),
        )
    }  # fmt: skip
    assert len(digests) == 5
    assert Identities().tensor(remote('"abc"')) == Identities().tensor(remote('"abc"'))


@pytest.mark.parametrize(
    "identity", ["", 'W/"abc"', "Wed, 25 Nov 2026 19:43:39 GMT", "2026-11-25 19:43:39+00:00", "1700000000.25"]
)
def test_a_weak_tag_or_a_date_tells_nothing(identity):
    with pytest.raises(Unkeepable):
        Identities().tensor(remote(identity))


def test_what_lies_in_memory_has_no_identity():
    tensor = checkpoint_of({"w": np.ones((2, 3))}).tensors["w"]
    for one in (tensor, Transposed(tensor)):
        with pytest.raises(Unkeepable):
            Identities().tensor(one)


def test_a_file_is_told_by_where_it_really_is(tmp_path, monkeypatch):
    path = write_safetensors(tmp_path / "a.safetensors", {"w": ("F32", np.ones((4, 3), "<f4"))})
    (tmp_path / "link.safetensors").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    found = {
        Identities().tensor(open_checkpoint(name).tensors["w"])
        for name in (path, "a.safetensors", "./a.safetensors", "link.safetensors")
    }
    assert len(found) == 1
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
    assert Identities().tensor(open_checkpoint(path).tensors["w"]) not in found


def test_views_of_one_tensor_differ(tmp_path):
    path = write_safetensors(tmp_path / "a.safetensors", {"w": ("F32", np.ones((4, 4), "<f4"))})
    base = open_checkpoint(path).tensors["w"]
    order = np.arange(4)
    views = [base, Transposed(base), Rows(base, 0, 2), Rows(base, 2, 4), Transposed(Transposed(base))]
    views += [Reordered(base, order), Reordered(base, order[::-1]), Reordered(base, None, order)]
    identities = Identities()
    assert len({identities.tensor(view)[0] for view in views}) == len(views)
    assert len({identities.tensor(view)[1] for view in views}) == 1
