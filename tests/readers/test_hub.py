"""Models by name: the local cache against the hub's own library, and a hub on this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import huggingface_hub
import pytest
from builders import transformer, write_safetensors
from huggingface_hub import snapshot_download

from diffai_jupyter.comparison import compare
from diffai_jupyter.errors import MissingPackageError, SourceError
from diffai_jupyter.notebook.scope import Scope
from diffai_jupyter.readers import open_checkpoint
from diffai_jupyter.readers.sources import transport
from diffai_jupyter.readers.sources.folder import NoWeights
from diffai_jupyter.readers.sources.hub import HubName, cache_folder, cached_snapshot, hub_name
from diffai_jupyter.wording import say

Save = Callable[..., Path]
API = "/api/models/org/model"
OLD, NEW, OTHER = "a" * 40, "0123456789abcdef0123456789abcdef01234567", "f" * 40


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGINGFACE_", "TRANSFORMERS_OFFLINE", "XDG_CACHE")):
            monkeypatch.delenv(name)
    folder = tmp_path / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return folder


@pytest.fixture
def keep(hub_cache: Path, save: Save, tmp_path: Path) -> Callable[..., Path]:
    """Put a snapshot into the cache as the library does: blobs, and links to them."""

    def kept(value: float, commit: str = NEW, refs: tuple[str, ...] = ("main",)) -> Path:
        home = hub_cache / "models--org--model"
        snapshot = home / "snapshots" / commit
        content = save(tmp_path / "w.safetensors", {"w": value}).read_bytes()
        files = {"model.safetensors": content, "config.json": b'{"model_type": "llama"}'}
        for name, data in files.items():
            blob = home / "blobs" / f"{commit[:4]}-{name.replace('/', '-')}"
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(data)
            path = snapshot / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(os.path.relpath(blob, path.parent))
        for ref in refs:
            path = home / "refs" / ref
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(commit)
        return snapshot

    return kept


def value_of(source: str) -> float:
    return float(open_checkpoint(source).tensors["w"].read_all()[0, 0])


def notes(source: str) -> list[str]:
    return [say(note.template, note.said) for note in open_checkpoint(source).notes]


def refused(source: str) -> str:
    with pytest.raises(SourceError) as caught:
        open_checkpoint(source)
    return str(caught.value)


def test_a_cached_model_by_name(keep: Callable[..., Path]) -> None:
    keep(1, OLD, ("v1.0",))
    keep(2, NEW, ("main", "refs/pr/3"))
    for name, value in (("", 2), ("@main", 2), ("@v1.0", 1), ("@refs/pr/3", 2), (f"@{OLD}", 1), (f"@{NEW}", 2)):
        for source in (f"org/model{name}", f"hf://org/model{name}"):
            assert value_of(source) == value
    checkpoint = open_checkpoint("org/model")
    assert checkpoint.config["model_type"] == "llama"
    assert notes("org/model") == [f"org/model@main is commit {NEW}, read from the local Hugging Face cache."]
    assert value_of("hf://org/model@v1.0/model.safetensors") == 1


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/3", "release/x", NEW, OLD])
def test_the_resolver_agrees_with_the_library(keep: Callable[..., Path], hub_cache: Path, revision: str) -> None:
    keep(1, OLD, ("v1.0", "release/x"))
    keep(2, NEW, ("main", "refs/pr/3"))
    theirs = snapshot_download("org/model", revision=revision, local_files_only=True, cache_dir=hub_cache)
    commit, ours = cached_snapshot(HubName("org/model", revision))
    assert os.path.realpath(theirs) == os.path.realpath(ours)
    assert ours.name == commit


@pytest.mark.parametrize("revision", ["nope", NEW[:7], OTHER])
def test_what_the_library_does_not_resolve_is_told_with_what_there_is(
    keep: Callable[..., Path], hub_cache: Path, revision: str
) -> None:
    keep(1, OLD, ("v1.0", "refs/pr/3"))
    keep(2, NEW)
    with pytest.raises(Exception, match=r"cached|snapshot|found"):
        snapshot_download("org/model", revision=revision, local_files_only=True, cache_dir=hub_cache)
    message = refused(f"org/model@{revision}")
    assert f"It holds main, refs/pr/3, v1.0, {NEW}, {OLD}. Write hf://org/model@{revision}" in message
    assert ("the short commit" in message) == (revision == NEW[:7])


def test_a_model_that_is_not_cached(hub_cache: Path) -> None:
    message = refused("org/model@v2")
    assert "no such file or folder" in message
    assert str(hub_cache) in message
    assert message.endswith("Write hf://org/model@v2 to allow the network, or download it and give its folder.")


def test_a_slip_in_a_path_is_hinted_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "later").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert refused("runs/late").endswith("Did you mean 'runs/later'?")


def test_a_path_on_this_machine_wins(
    keep: Callable[..., Path], save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(1)
    save(tmp_path / "org" / "model" / "model.safetensors", {"w": 9})
    monkeypatch.chdir(tmp_path)
    assert value_of("org/model") == 9
    assert value_of("org/model@main") == 1


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of huggingface_hub.constants, which reads the variables when it is imported."""
    names = ("XDG_CACHE_HOME", "HF_HOME", "HUGGINGFACE_HUB_CACHE", "HF_HUB_CACHE")
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    program = "import huggingface_hub.constants as c; print(c.HF_HUB_CACHE)"
    for i, name in enumerate(("", *names)):
        if name:
            monkeypatch.setenv(name, f"~/$HOME_OF_TEST/{i}")
            monkeypatch.setenv("HOME_OF_TEST", "x")
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True)
        assert str(cache_folder()) == done.stdout.strip()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"../../../../etc", "40 hexadecimal digits"),
        (b"", "40 hexadecimal digits"),
        (b"g" * 40, "40 hexadecimal digits"),
        (b"a" * 41, "40 hexadecimal digits"),
        (b"\xff" * 40, "40 hexadecimal digits"),
        (b"A" * 40, "40 hexadecimal digits"),
        (b"x" * 100_000, "40 hexadecimal digits"),
        (OTHER.encode(), f"commit {OTHER} is not in the Hugging Face cache"),
    ],
)
def test_a_damaged_reference(keep: Callable[..., Path], hub_cache: Path, content: bytes, said: str) -> None:
    keep(1)
    (hub_cache / "models--org--model" / "refs" / "main").write_bytes(content)
    assert said in refused("org/model")


def test_references_that_are_no_files(keep: Callable[..., Path], hub_cache: Path, tmp_path: Path) -> None:
    keep(1)
    refs = hub_cache / "models--org--model" / "refs"
    (refs / "main").unlink()
    os.mkfifo(refs / "main")
    assert "not a regular file" in refused("org/model")
    (refs / "loop").symlink_to("loop")
    assert "revision loop is not in the Hugging Face cache" in refused("org/model@loop")
    (tmp_path / "secret").write_text(NEW)
    (refs / "out").symlink_to(tmp_path / "secret")
    assert "leads out of its folder" in refused("org/model@out")
    assert "is not in the Hugging Face cache" in refused("org/model@..%2F..%2Fblobs")


def test_a_snapshot_that_leads_elsewhere(
    keep: Callable[..., Path], hub_cache: Path, save: Save, tmp_path: Path
) -> None:
    keep(1)
    save(tmp_path / "elsewhere" / "model.safetensors", {"w": 5})
    (hub_cache / "models--org--model" / "snapshots" / OLD).symlink_to(tmp_path / "elsewhere")
    assert "leads out of its folder" in refused(f"org/model@{OLD}")
    snapshot = keep(3, OTHER, ())
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(tmp_path / "elsewhere" / "model.safetensors")
    assert "leads out of its folder" in refused(f"org/model@{OTHER}")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/model", HubName("org/model")),
        ("Org_1/My-model.v2@refs/pr/12", HubName("Org_1/My-model.v2", "refs/pr/12")),
        ("org/model@feature%2Fx", HubName("org/model", "feature/x")),
        ("org/model.safetensors", None),
        ("org/model.gguf", None),
        ("../model", None),
        ("org/..", None),
        ("org/model@", None),
        ("org/model@a/b", None),
        ("a/b/c", None),
        ("model", None),
        ("/model/x", None),
        ("org\\model", None),
        ("örg/model", None),
        ("org/model\n", None),
    ],
)
def test_what_is_a_name(text: str, name: HubName | None) -> None:
    assert hub_name(text) == name


def test_a_notebook_lets_names_and_addresses_through(keep: Callable[..., Path]) -> None:
    keep(4)
    scope = Scope({"model": 1})
    for word in ("org/model", "org/model@main", "hf://org/model", "s3://bucket/x"):
        assert scope.source(word) == (word, "")


@pytest.mark.parametrize("address", ["hf://", "hf://model", "hf://datasets/org/x", "hf://spaces/a/b", "hf://org/model@"])
def test_other_things_on_the_hub_are_refused(address: str) -> None:
    assert "only models are read from the hub" in refused(address)


@pytest.mark.parametrize("inside", ["../x", "a//b", "a\\b"])
def test_paths_stay_inside_the_model(inside: str) -> None:
    assert "not a plain path" in refused(f"hf://org/model/{inside}")


class Hub(ThreadingHTTPServer):
    """A hub with one model, and a count of what it sent of its files."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.sent = 0
        self.status = 200
        self.commit: object = NEW


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.server.asked.append(path)
        if self.server.status != 200:
            self.answer(self.server.status, b"{}", {"X-Error-Code": ERRORS.get(self.server.status, "")})
        elif path in (f"{API}/revision/main", f"{API}/revision/{NEW}", API):
            body = {"id": "org/model", "modelId": "org/model", "sha": self.server.commit, "siblings": []}
            self.answer(200, json.dumps(body).encode())
        elif path.startswith(f"{API}/tree/{NEW}"):
            self.answer(200, json.dumps(self.listed(path.partition(NEW)[2].strip("/"))).encode())
        else:
            self.file(path.removeprefix(f"/org/model/resolve/{NEW}/"))

    do_HEAD = do_GET  # noqa: N815

    def listed(self, inside: str) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for name, content in self.server.files.items():
            if not name.startswith(f"{inside}/" if inside else ""):
                continue
            head, _, rest = name.removeprefix(f"{inside}/" if inside else "").partition("/")
            path = f"{inside}/{head}" if inside else head
            size = 0 if rest else len(content)
            found[path] = {"type": "directory" if rest else "file", "path": path, "size": size, "oid": "0" * 40}
        return list(found.values())

    def file(self, name: str) -> None:
        content = self.server.files.get(name)
        if content is None:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        first, last = map(int, re.findall(r"\d+", self.headers["Range"]))
        part = content[first : last + 1]
        self.server.sent += len(part)
        self.answer(206, part, {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(content)}"})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        said = {"Content-Length": str(len(body)), "Content-Type": "application/json"}
        for name, value in (said | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


ERRORS = {404: "RepoNotFound", 403: "GatedRepo"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    serving = Hub()
    thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{serving.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    huggingface_hub.HfFileSystem.clear_instance_cache()
    yield serving
    huggingface_hub.HfFileSystem.clear_instance_cache()
    serving.shutdown()
    serving.server_close()
    thread.join()


def test_a_model_over_the_network_is_pinned_to_its_commit(hub: Hub, save: Save, tmp_path: Path) -> None:
    content = save(tmp_path / "a.safetensors", {"w": 7}).read_bytes()
    hub.files = {"model.safetensors": content, "config.json": b'{"model_type": "bert"}', "sub/x.gguf": b"?"}
    assert value_of("hf://org/model") == 7
    checkpoint = open_checkpoint("hf://org/model@main")
    assert checkpoint.config["model_type"] == "bert"
    assert checkpoint.source == "hf://org/model@main"
    assert checkpoint.files[0].path == f"hf://org/model@{NEW}/model.safetensors"
    assert notes("hf://org/model") == [
        f"org/model@main is commit {NEW}, read from the hub.",
        "hf://org/model is read over the network; comparing values reads 24 B.",
    ]
    assert value_of("hf://org/model/model.safetensors") == 7
    assert not [path for path in hub.asked if path.startswith("/org/model/resolve/main")]


def test_headers_of_a_model_do_not_download_it(hub: Hub, tmp_path: Path) -> None:
    arrays = {name: ("F32", array) for name, array in transformer(hidden=256).items()}
    content = write_safetensors(tmp_path / "a.safetensors", arrays).read_bytes()
    hub.files = {"model.safetensors": content}
    found = compare("hf://org/model", "hf://org/model", memory_analysis=True)
    assert found.exit_code == 0
    assert hub.sent <= 2 * (transport.HEAD + 8) < len(content) / 10


def test_the_cache_is_asked_first_and_completed_by_the_network(
    hub: Hub, keep: Callable[..., Path], save: Save, tmp_path: Path
) -> None:
    snapshot = keep(1)
    assert value_of("hf://org/model") == 1
    assert hub.asked == []
    (snapshot / "model.safetensors").unlink()
    hub.files = {"model.safetensors": save(tmp_path / "a.safetensors", {"w": 7}).read_bytes()}
    with pytest.raises(NoWeights):
        open_checkpoint("org/model")
    assert value_of("hf://org/model") == 7
    index = {"weight_map": {"w": "x.safetensors", "v": "y.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    save(snapshot / "x.safetensors", {"w": 1})
    assert open_checkpoint("org/model").missing == ("v",)
    assert value_of("hf://org/model") == 7


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_is_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    assert "HF_HUB_OFFLINE forbids the network" in refused("hf://org/model")
    assert hub.asked == []


@pytest.mark.parametrize(
    ("status", "commit", "said"),
    [
        (404, NEW, "there is no such model, or it is private"),
        (403, NEW, "access to it has to be asked for"),
        (500, NEW, "the hub cannot be read (HfHubHTTPError"),
        (200, "../x", "does not say which commit"),
        (200, None, "does not say which commit"),
    ],
)
def test_what_goes_wrong_at_the_hub_ends_in_a_sentence(hub: Hub, status: int, commit: object, said: str) -> None:
    hub.status, hub.commit = status, commit
    message = refused("hf://org/model")
    assert message.startswith("hf://org/model: ")
    assert said in message


def test_nobody_listens(hub: Hub) -> None:
    hub.shutdown()
    hub.server_close()
    assert "the hub cannot be read" in refused("hf://org/model")


def test_without_the_library_the_line_that_installs_it_is_given(
    keep: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'diffai-jupyter\[hub\]'"):
        open_checkpoint("hf://org/model")
    keep(3)
    assert value_of("hf://org/model") == value_of("org/model") == 3
