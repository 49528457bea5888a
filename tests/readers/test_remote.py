"""Files and folders over the network: what is asked for, what is refused, and that nothing else is read."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from builders import transformer, write_safetensors

from diffai_jupyter.comparison import Comparison, compare
from diffai_jupyter.errors import FormatError, MissingPackageError, SourceError
from diffai_jupyter.readers import open_checkpoint
from diffai_jupyter.readers.formats.detection import open_container
from diffai_jupyter.readers.sources import transport
from diffai_jupyter.readers.sources.remote import AHEAD, RemoteFile, RemotePlace
from diffai_jupyter.wording import say

Save = Callable[..., Path]
WIDE = 40


class Server(ThreadingHTTPServer):
    """Serves files by range, counts what it sent, and misbehaves as told."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.sent = 0
        self.habit: Callable[[Handler, bytes, int, int], bool] = lambda *_: False

    def at(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    def handle_error(self, *_: object) -> None:
        """A client that hangs up early is what these tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range", "")))
        content = self.server.files.get(self.path.lstrip("/").partition("?")[0])
        if content is None:
            self.answer(404, b"nothing here")
            return
        first, last = map(int, re.findall(r"\d+", self.headers["Range"]))
        last = min(last, len(content) - 1)
        if self.server.habit(self, content, first, last):
            return
        if not content:
            self.answer(416, b"", {"Content-Range": "bytes */0"})
            return
        self.part(content, first, last)

    def part(self, content: bytes, first: int, last: int, **headers: str) -> None:
        said = {"Content-Range": f"bytes {first}-{last}/{len(content)}", "ETag": '"1"'}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answer(206, content[first : last + 1], said | named)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.server.sent += len(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("DIFFAI_TIMEOUT", "10")
    serving = Server()
    thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield serving
    serving.shutdown()
    serving.server_close()
    thread.join()


@pytest.fixture
def memory() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def bytes_of(tmp_path: Path, seed: int = 0, hidden: int = 64) -> bytes:
    arrays = {name: ("F32", array) for name, array in transformer(seed, hidden=hidden).items()}
    return write_safetensors(tmp_path / f"{seed}.safetensors", arrays).read_bytes()


def notes(source: str) -> list[str]:
    return [say(note.template, note.said) for note in open_checkpoint(source).notes]


def refused(source: str) -> str:
    with pytest.raises(SourceError) as caught:
        open_checkpoint(source)
    return str(caught.value)


def test_a_file_over_http_is_read_as_from_the_disk(server: Server, tmp_path: Path) -> None:
    server.files = {"a.safetensors": bytes_of(tmp_path), "b.safetensors": bytes_of(tmp_path, 1)}
    found = compare(server.at("a.safetensors"), server.at("b.safetensors"))
    local = compare(tmp_path / "0.safetensors", tmp_path / "1.safetensors")
    assert [row.line for row in found.report.tensors] == [row.line for row in local.report.tensors]
    assert [row.numbers for row in found.report.tensors] == [row.numbers for row in local.report.tensors]
    assert found.exit_code == 1


def test_the_bytes_that_values_take_are_announced(server: Server, save: Save, tmp_path: Path) -> None:
    server.files = {"a.safetensors": save(tmp_path / "a.safetensors", {"w": 1, "v": 2}).read_bytes()}
    address = server.at("a.safetensors")
    assert notes(address) == [f"{address} is read over the network; comparing values reads 48 B."]


@pytest.mark.parametrize("flag", ["architecture_comparison", "memory_analysis"])
def test_headers_alone_do_not_download_the_weights(server: Server, tmp_path: Path, flag: str) -> None:
    server.files = {name: bytes_of(tmp_path, hidden=256) for name in ("a.safetensors", "b.safetensors")}
    size = len(server.files["a.safetensors"])
    found = compare(server.at("a.safetensors"), server.at("b.safetensors"), **{flag: True})
    assert found.to_text()
    assert found.exit_code == 1
    assert server.sent < 2 * transport.HEAD + 4096 < size / 10
    assert [path for path, _ in server.asked if path.endswith(".safetensors")] == ["/a.safetensors", "/b.safetensors"]


def test_the_same_file_on_both_sides_is_equal_without_reading_it(server: Server, tmp_path: Path) -> None:
    server.files = {"a.safetensors": bytes_of(tmp_path, hidden=256)}
    found = compare(server.at("a.safetensors"), server.at("a.safetensors"), memory_analysis=True)
    assert found.exit_code == 0
    assert server.sent < 2 * transport.HEAD + 4096


def test_side_cars_and_shards_lie_beside_the_file(server: Server, save: Save, tmp_path: Path) -> None:
    one, two = (save(tmp_path / name, {name[0]: 1}).read_bytes() for name in ("a.safetensors", "b.safetensors"))
    server.files = {
        "run/model.safetensors.index.json": b'{"weight_map": {"a": "x y.safetensors", "b": "b.safetensors"}}',
        "run/x y.safetensors": one, "run/b.safetensors": two, "run/config.json": b'{"model_type": "llama"}',
    }  # fmt: skip
    server.files["run/x%20y.safetensors"] = server.files.pop("run/x y.safetensors")
    checkpoint = open_checkpoint(server.at("run/model.safetensors.index.json"))
    assert list(checkpoint.tensors) == ["a", "b"]
    assert checkpoint.config["model_type"] == "llama"
    del server.files["run/b.safetensors"]
    assert open_checkpoint(server.at("run/model.safetensors.index.json")).missing == ("b",)


def test_a_server_that_answers_every_question_with_a_page_has_no_side_cars(
    server: Server, save: Save, tmp_path: Path
) -> None:
    content = save(tmp_path / "a.safetensors", {"w": 1}).read_bytes()
    server.files = dict.fromkeys(("config.json", "trainer_state.json", "x.bin"), b"<!doctype html>")
    server.files["a.safetensors"] = content
    checkpoint = open_checkpoint(server.at("a.safetensors"))
    assert (len(checkpoint.notes), checkpoint.config) == (1, {})
    assert "this is a web page" in refused(server.at("x.bin"))


def test_passwords_and_signatures_are_sent_and_never_shown(server: Server, save: Save, tmp_path: Path) -> None:
    server.files = {"a.safetensors": save(tmp_path / "a.safetensors", {"w": 1}).read_bytes()}
    plain = server.at("a.safetensors")
    address = plain.replace("http://", "http://me:hush@") + "?signature=hush"
    found = compare(address, address)
    assert set(server.paths()) >= {"/a.safetensors?signature=hush", "/config.json?signature=hush"}
    for text in (found.to_text(), found.to_html(), found.to_json(), refused(address.replace("a.s", "b.s"))):
        assert "hush" not in text
    assert found.report.a.source == plain


def test_a_file_travels_by_its_address(server: Server, save: Save, tmp_path: Path) -> None:
    server.files = {"a.safetensors": save(tmp_path / "a.safetensors", {"w": 3}).read_bytes()}
    tensor = open_checkpoint(server.at("a.safetensors")).tensors["w"]
    packed = pickle.dumps(tensor)
    assert len(packed) < 1000
    assert pickle.loads(packed).read_all().tolist() == [[3] * 3] * 2
    file = RemoteFile.at(server.at("a.safetensors"))
    assert pickle.loads(pickle.dumps(file)) == file
    assert file.digested("d").digest == "d"


def test_small_reads_come_from_a_few_pieces(server: Server) -> None:
    content = np.random.default_rng(0).integers(0, 256, 5 << 20, dtype=np.uint8).tobytes()
    server.files = {"x": content}
    with RemoteFile.at(server.at("x")).stream() as stream:
        assert stream.read() == content
    assert len(server.asked) <= 12
    assert len(content) <= server.sent <= len(content) + AHEAD
    server.asked.clear()
    server.sent = 0
    file = RemoteFile.at(server.at("x"))
    for offset in (0, 8, 100, 60_000):
        assert file.read(offset, 16).tobytes() == content[offset : offset + 16]
    assert server.asked == [("/x", f"bytes=0-{transport.HEAD - 1}")]
    file.read(3 << 20, AHEAD)[:] = 0
    assert server.asked[1:] == [("/x", f"bytes={3 << 20}-{(4 << 20) - 1}")]
    first = file.read(0, 4)
    first[:] = 0
    assert file.read(0, 4).tobytes() == content[:4]
    assert file.read(7, 0).size == 0
    with pytest.raises(FormatError, match="ends too soon"):
        file.read(len(content) - 1, 2)


def whole(handler: Handler, content: bytes, *_: int) -> bool:
    handler.answer(200, content)
    return True


def test_a_server_that_ignores_ranges_is_refused_before_it_sends_much(server: Server) -> None:
    server.files = {"x.safetensors": bytes(64 << 20)}
    server.habit = whole
    with pytest.raises(SourceError, match="ignores Range") as caught:
        open_checkpoint(server.at("x.safetensors"))
    assert caught.value.args[0].count(server.at("x.safetensors")) == 1
    assert server.asked == [("/x.safetensors", f"bytes=0-{transport.HEAD - 1}")]


def test_small_files_may_come_whole(server: Server, save: Save, tmp_path: Path) -> None:
    server.files = {"a.safetensors": save(tmp_path / "a.safetensors", {"w": 1}).read_bytes()}
    server.habit = whole
    assert open_checkpoint(server.at("a.safetensors")).tensors["w"].read_all()[0, 0] == 1


def endless(handler: Handler, *_: object) -> bool:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for _ in range(1 << 14):
        handler.wfile.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
        handler.server.sent += 1 << 16
    return True


def silent(handler: Handler, *_: object) -> bool:
    time.sleep(1.5)
    return True


def lying(**headers: str) -> Callable[[Handler, bytes, int, int], bool]:
    def habit(handler: Handler, content: bytes, first: int, last: int) -> bool:
        handler.part(content, first, last, **headers)
        return True

    return habit


def cut(handler: Handler, content: bytes, first: int, last: int) -> bool:
    handler.part(content[: last // 2], first, last // 2 - 1, Content_Length=str(last + 1))
    handler.close_connection = True
    return True


def short(handler: Handler, content: bytes, first: int, last: int) -> bool:
    handler.answer(206, content[first : last // 2], {"Content-Range": f"bytes {first}-{last}/{len(content)}"})
    return True


def failing(status: int) -> Callable[..., bool]:
    return lambda handler, *_: handler.answer(status, b"no") or True


def circle(handler: Handler, *_: object) -> bool:
    handler.answer(302, b"", {"Location": handler.path})
    return True


@pytest.mark.parametrize(
    ("habit", "said"),
    [
        (endless, "ignores Range"),
        (lying(Content_Range=""), "does not say how large"),
        (lying(Content_Range="bytes 0-99/*"), "does not say how large"),
        (lying(Content_Range="bytes 5-104/5000"), "another part"),
        (lying(Content_Range="bytes 0-9999/5000"), "another part"),
        (lying(Content_Range="bytes 0-99/9999999"), "ends too soon"),
        (lying(Content_Encoding="gzip"), "packs it on the way"),
        (cut, "cannot be read"),
        (short, "ends too soon"),
        (failing(500), "HTTP 500"),
        (failing(403), "Check your access"),
        (failing(410), "no such file"),
        (circle, "TooManyRedirects"),
    ],
)
def test_what_servers_do_wrong_ends_in_a_sentence(server: Server, habit: Callable[..., bool], said: str) -> None:
    server.files = {"x.safetensors": bytes(5000)}
    server.habit = habit
    message = refused(server.at("x.safetensors"))
    assert said in message
    assert message.startswith(server.at("x.safetensors"))
    assert server.sent < 16 << 20


def test_a_silent_server_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFAI_TIMEOUT", "0.2")
    server.files = {"x.safetensors": bytes(5000)}
    server.habit = silent
    assert "did not answer in 0.2 s" in refused(server.at("x.safetensors"))
    assert len(server.asked) == 1


@pytest.mark.parametrize("given", ["", "x", "-1", "inf", "nan"])
def test_a_time_that_is_none_is_ignored(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("DIFFAI_TIMEOUT", given)
    assert transport._seconds() == transport.SECONDS


def test_nobody_listens(server: Server) -> None:
    server.shutdown()
    server.server_close()
    assert "cannot be read" in refused(server.at("x.safetensors"))


def test_a_redirect_is_followed(server: Server, save: Save, tmp_path: Path) -> None:
    server.files = dict.fromkeys(("old", "new"), save(tmp_path / "a.safetensors", {"w": 1}).read_bytes())

    def moved(handler: Handler, *_: object) -> bool:
        if handler.path == "/old":
            handler.answer(302, b"", {"Location": "/new"})
        return handler.path == "/old"

    server.habit = moved
    assert list(open_checkpoint(server.at("old")).tensors) == ["w"]


@pytest.mark.parametrize("change", ["etag", "size"])
def test_a_file_that_changes_underneath_is_noticed(server: Server, change: str) -> None:
    server.files = {"x": bytes(3 << 20)}
    file = RemoteFile.at(server.at("x"))
    if change == "etag":
        server.habit = lying(ETag='"2"')
    else:
        server.files = {"x": bytes((3 << 20) + 1)}
    with pytest.raises(SourceError, match="changed while it was being compared"):
        file.read(1 << 20, 100)


def test_a_lost_connection_is_tried_once_more(server: Server) -> None:
    content = bytes(range(100))
    server.files = {"x": content}
    broken = iter([True])

    def habit(handler: Handler, *_: object) -> bool:
        if next(broken, False):
            handler.close_connection = True
            return True
        return False

    server.habit = habit
    assert RemoteFile.at(server.at("x")).read(0, 100).tobytes() == content


def test_an_empty_file(server: Server) -> None:
    server.files = {"x.safetensors": b""}
    assert "the file is empty" in refused(server.at("x.safetensors"))


def test_folders_over_http_cannot_be_listed(server: Server) -> None:
    assert "cannot be listed over HTTP" in refused(server.at("run/"))
    assert server.asked == []


@pytest.mark.parametrize("name", ["../x", "/x", "a//b", "a\\b", "", "a:b"])
def test_names_stay_inside(server: Server, name: str) -> None:
    place = RemotePlace(server.at("run"))
    for use in (place.has, place.file, place.inside):
        with pytest.raises(FormatError, match="not a plain path"):
            use(name)
    assert server.asked == []
    assert place.has("%2e%2e/x") is False
    assert server.paths() == ["/run/%252e%252e/x"]


def test_a_folder_elsewhere(memory: Any, save: Save, tmp_path: Path) -> None:
    content = save(tmp_path / "a.safetensors", {"w": 1}).read_bytes()
    memory.pipe({"/hub/run/model.safetensors": content, "/hub/run/.hidden.safetensors": b"", "/hub/run/logs/x": b"1"})
    memory.pipe("/hub/run/config.json", b'{"model_type": "bert"}')
    for address in ("memory://hub/run", "memory://hub/run/", "MEMORY://hub/run", "memory://hub/run/model.safetensors"):
        checkpoint = open_checkpoint(address)
        assert list(checkpoint.tensors) == ["w"]
        assert checkpoint.config["model_type"] == "bert"
        assert checkpoint.files[0].path == "memory://hub/run/model.safetensors"
    place = RemotePlace("memory://hub/run")
    assert (place.names(), place.folders()) == (["config.json", "model.safetensors"], ["logs"])
    assert place.inside("logs").names() == ["x"]
    found = [place.has(name) for name in ("x.json", "logs", "logs/x", "logs/y")]
    assert found == [False, False, True, False]
    assert "give one of them" in refused("memory://hub")


def test_headers_alone_of_other_file_systems(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe({f"/m/{seed}.safetensors": bytes_of(tmp_path, seed, 256) for seed in (0, 1)})
    read = []
    original = type(memory).cat_file

    def counted(self: Any, path: str, start: int | None = None, end: int | None = None, **said: Any) -> bytes:
        assert start is not None
        assert end is not None
        read.append(end - start)
        return original(self, path, start=start, end=end, **said)

    monkeypatch.setattr(type(memory), "cat_file", counted)
    found = compare("memory://m/0.safetensors", "memory://m/1.safetensors", architecture_comparison=True)
    assert found.exit_code == 1
    assert sum(read) <= 2 * (transport.HEAD + 8)
    assert isinstance(found, Comparison)
    values = compare("memory://m/0.safetensors", "memory://m/1.safetensors")
    assert values.report.coverage.compared == len(values.pair.a.tensors)


@pytest.mark.parametrize(
    ("given", "wrong"),
    [(b"x" * 100, "ignores Range"), (b"", "ends too soon")],
)
def test_other_file_systems_that_send_what_was_not_asked_for(
    memory: Any, monkeypatch: pytest.MonkeyPatch, given: bytes, wrong: str
) -> None:
    memory.pipe("/m/x.safetensors", bytes(1000))
    asked = []
    monkeypatch.setattr(type(memory), "cat_file", lambda *_, **said: asked.append(said) or given)
    assert wrong in refused("memory://m/x.safetensors")
    assert asked == [{"start": 0, "end": 8}]


def test_errors_of_other_libraries_end_in_a_sentence(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        msg = "boom https://host/x?token=hush\nsecond line"
        raise RuntimeError(msg)

    monkeypatch.setattr(type(memory), "info", broken)
    message = refused("memory://m/x.safetensors")
    assert "RuntimeError: boom https://host/x)" in message
    assert "hush" not in message
    assert "second" not in message


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ftp://host/a.safetensors", "addresses of this kind are not read"),
        ("python://os", "addresses of this kind are not read"),
        ("simplecache::s3://bucket/a", "chained"),
        ("https://host/a.zip::memory://b", "chained"),
        ("memory://nothing/here.safetensors", "no such file or folder"),
        ("s3://bucket/a.safetensors", "needs s3fs: pip install s3fs"),
        ("gs://bucket/a.safetensors", "needs gcsfs"),
        ("abfs://box@account.dfs.core.windows.net/a", "needs adlfs"),
        ("file://elsewhere/a.safetensors", "only files of this machine"),
        ("http://[/x.safetensors", "this is no address"),
        ("file://[/x.safetensors", "this is no address"),
    ],
)
def test_addresses_that_are_refused(address: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("s3fs", "gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, package, None)
    assert said in refused(address)


def test_an_address_of_this_machine_is_its_path(save: Save, tmp_path: Path) -> None:
    path = save(tmp_path / "a b.safetensors", {"w": 1})
    checkpoint = open_checkpoint(path.as_uri())
    assert (list(checkpoint.tensors), checkpoint.source) == (["w"], str(path))
    assert list(open_checkpoint(tmp_path.as_uri()).tensors) == ["w"]


def test_without_the_packages_the_line_that_installs_them_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    transport._http.cache_clear()
    transport._file_system_for.cache_clear()
    monkeypatch.setitem(sys.modules, "fsspec", None)
    for address in ("memory://a/b", "https://host/a.safetensors"):
        with pytest.raises(MissingPackageError, match=r"pip install 'diffai-jupyter\[remote\]'"):
            open_checkpoint(address)


def test_nothing_of_the_network_is_loaded_for_local_files(tmp_path: Path, save: Save) -> None:
    path = save(tmp_path / "a.safetensors", {"w": 1})
    program = (
        f"import sys; from diffai_jupyter.readers import open_checkpoint; open_checkpoint({str(path)!r}); "
        "print({'fsspec', 'aiohttp', 'huggingface_hub', 'asyncio'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["a.npz", "a.h5"])
def test_scattered_headers_of_other_formats_are_read_in_small_pieces(memory: Any, tmp_path: Path, name: str) -> None:
    arrays = {key.replace(".", "/"): value for key, value in transformer(hidden=256).items()}
    if name == "a.npz":
        np.savez(tmp_path / name, **arrays)
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(tmp_path / name, "w") as file:
            for key, value in arrays.items():
                file[key] = value
    content = (tmp_path / name).read_bytes()
    memory.pipe(f"/m/{name}", content)
    read: list[int] = []

    class Counted(RemoteFile):
        def _fetch(self, offset: int, count: int) -> bytes:
            read.append(count)
            return super()._fetch(offset, count)

    container = open_container(Counted.at(f"memory://m/{name}"))
    assert len(container.tensors) == len(arrays)
    assert sum(read) < len(content) / 4
    local = open_checkpoint(tmp_path / name).tensors
    assert all((tensor.read_all() == local[key].read_all()).all() for key, tensor in container.tensors.items())
