"""Files that torch writes, read without it: torch is the oracle."""

from __future__ import annotations

import argparse
import io
import pathlib
import pickle
import string
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.storage import StoredFile
from diffai_jupyter.errors import FormatError
from diffai_jupyter.readers import open_checkpoint
from diffai_jupyter.readers.formats.pytorch.reader import read_objects
from diffai_jupyter.wording import say

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

WIDE = (
    "float16", "bfloat16", "float32", "float64", "complex64", "complex128", "uint8", "int8", "int16", "uint16",
    "int32", "uint32", "int64", "uint64", "bool",
)
EIGHT = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
LEGACY = {"_use_new_zipfile_serialization": False}
BOTH = pytest.mark.parametrize("options", [{}, LEGACY], ids=["archive", "old"])


def made(name: str, shape: tuple[int, ...] = (16, 16)) -> Any:
    kind = getattr(torch, name)
    draw = torch.Generator().manual_seed(0)
    if name in EIGHT:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw).view(kind)
    return torch.randint(0, 100, shape, generator=draw).to(kind)


def numbers(tensor: Any) -> np.ndarray:
    """Return the values that torch sees."""
    tensor = tensor.detach()
    if tensor.dtype.is_floating_point and tensor.dtype != torch.float64:
        tensor = tensor.to(torch.float32)
    return np.asarray(tensor.numpy())


def same(checkpoint: Checkpoint, state: dict[str, Any]) -> None:
    """Check names, shapes and values against what torch has, and that parts are parts of the whole."""
    assert list(checkpoint.tensors) == sorted(state)
    for name, tensor in state.items():
        found = checkpoint.tensors[name]
        assert found.shape == tuple(tensor.shape), name
        assert np.array_equal(found.read_all(), numbers(tensor).reshape(found.grid), equal_nan=True), name
        again = pickle.loads(pickle.dumps(found))
        rows, cols = found.grid
        part = (rows // 3, rows), (cols // 3, cols - cols // 4)
        assert np.array_equal(again.read(*part), found.read_all()[slice(*part[0]), slice(*part[1])], equal_nan=True)


def sentences(checkpoint: Checkpoint) -> list[str]:
    return [say(note.template, note.said) for note in checkpoint.notes]


def network() -> Any:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Sequential(torch.nn.Linear(4, 2))
    )
    net.register_buffer("fleeting", torch.ones(2), persistent=False)
    net.register_parameter("absent", None)
    return net


@BOTH
@pytest.mark.parametrize("name", WIDE + EIGHT)
def test_dtypes(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    tensor = made(name)
    if name in ("complex64", "complex128"):
        tensor = tensor + 1j * tensor.t()
    torch.save({"w": tensor, "turned": tensor.t()}, tmp_path / "a.pt", **options)
    checkpoint = open_checkpoint(tmp_path / "a.pt")
    same(checkpoint, {"w": tensor, "turned": tensor.t()})
    assert checkpoint.tensors["w"].nbytes == tensor.numel() * tensor.element_size()
    assert checkpoint.notes == ()
    assert checkpoint.tensors["w"].dtype == open_checkpoint({"w": tensor}).tensors["w"].dtype


@BOTH
def test_four_bit_floats(tmp_path: Path, options: dict[str, Any]) -> None:
    packed = torch.arange(256, dtype=torch.uint8).reshape(16, 16).view(torch.float4_e2m1fn_x2)
    torch.save({"w": packed, "part": packed[3:5]}, tmp_path / "a.pt", **options)
    checkpoint, live = open_checkpoint(tmp_path / "a.pt"), open_checkpoint({"w": packed, "part": packed[3:5]})
    for name, tensor in checkpoint.tensors.items():
        assert tensor.shape == live.tensors[name].shape
        assert tensor.nbytes == live.tensors[name].nbytes
        assert np.array_equal(tensor.read_all(), live.tensors[name].read_all())


@BOTH
def test_views(tmp_path: Path, options: dict[str, Any]) -> None:
    base = torch.arange(120.0)
    image = torch.arange(240.0).reshape(2, 4, 5, 6)
    state = {
        "base": base, "turned": base.reshape(10, 12).t(), "steps": base[3:40:5],
        "grid": base.reshape(10, 12)[2:7, 1::3],
        "expanded": base[:12].expand(7, 12), "column": base[:7, None].expand(7, 5), "row": base.reshape(10, 12)[4],
        "scalar": base[7], "empty": torch.zeros(0, 3), "channels_last": image.to(memory_format=torch.channels_last),
        "permuted": image.permute(3, 0, 2, 1), "windows": base.as_strided((30, 5), (3, 1)),
        "diagonal": base[:100].reshape(10, 10).diagonal(), "tied": base,
    }
    torch.save(state, tmp_path / "a.pt", **options)
    same(open_checkpoint(tmp_path / "a.pt"), state)
    assert (tmp_path / "a.pt").stat().st_size < 12_000  # storages are shared


@BOTH
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_state_dicts_in_every_protocol(tmp_path: Path, protocol: int, options: dict[str, Any]) -> None:
    state = network().state_dict()
    torch.save(state, tmp_path / "pytorch_model.bin", pickle_protocol=protocol, **options)
    checkpoint = open_checkpoint(tmp_path)
    same(checkpoint, state)
    assert checkpoint.notes == ()


@BOTH
@pytest.mark.parametrize("protocol", [2, 4])
def test_whole_modules_read_as_state_dicts(tmp_path: Path, protocol: int, options: dict[str, Any]) -> None:
    net = network()
    torch.save(net, tmp_path / "a.pt", pickle_protocol=protocol, **options)
    checkpoint = open_checkpoint(tmp_path / "a.pt")
    same(checkpoint, net.state_dict())
    (note,) = checkpoint.notes
    assert not note.is_warning
    assert "would import torch.nn.modules.container.Sequential" in sentences(checkpoint)[0]
    torch.save({"model": net, "epoch": 3, "date": "today"}, tmp_path / "a.pt", **options)
    same(open_checkpoint(tmp_path / "a.pt"), net.state_dict())


def test_modules_with_attributes_lists_and_parts_called_model(tmp_path: Path) -> None:
    net = torch.nn.Module()
    net.model = torch.nn.ModuleList([torch.nn.GRU(2, 3), torch.nn.MultiheadAttention(4, 2)])
    net.free = torch.ones(3)
    net.weights = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.zeros(2))])
    net.named = torch.nn.ParameterDict({"a": torch.nn.Parameter(torch.ones(4))})
    torch.save(net, tmp_path / "a.pt")
    same(open_checkpoint(tmp_path / "a.pt"), net.state_dict())
    net.normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 2))
    torch.save(net.state_dict(), tmp_path / "a.pt")
    same(open_checkpoint(tmp_path / "a.pt"), net.state_dict())


@pytest.mark.parametrize("make", [torch.jit.script, lambda net: torch.jit.trace(net, torch.ones(1, 3, 3, 3))])
def test_torchscript(tmp_path: Path, make: Callable[[Any], Any]) -> None:
    net = network()[:2].eval()
    torch.jit.save(make(net), tmp_path / "a.pt")
    checkpoint = open_checkpoint(tmp_path / "a.pt")
    found = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith("constants")}
    state = net.state_dict()
    assert sorted(found) == sorted(state)
    for name, tensor in found.items():
        assert np.array_equal(tensor.read_all(), numbers(state[name]).reshape(tensor.grid))
    assert checkpoint.notes == ()


def test_frozen_torchscript_keeps_its_numbers_in_its_constants(tmp_path: Path) -> None:
    net = torch.nn.Linear(3, 2).eval()
    torch.jit.save(torch.jit.freeze(torch.jit.script(net)), tmp_path / "a.pt")
    tensors = open_checkpoint(tmp_path / "a.pt").tensors
    found = {tuple(tensor.read_all().ravel().tolist()) for tensor in tensors.values()}
    assert all(name.startswith("constants.") for name in tensors)
    assert tuple(net.weight.detach().ravel().tolist()) in found


def trained() -> tuple[Any, Any, Any]:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.003)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for _ in range(3):
        net(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        scheduler.step()
    return net, optimizer, scheduler


@BOTH
def test_a_checkpoint_as_lightning_writes_it(tmp_path: Path, options: dict[str, Any]) -> None:
    net, optimizer, scheduler = trained()
    content = {
        "epoch": 1, "global_step": 3, "pytorch-lightning_version": "2.6.0", "state_dict": net.state_dict(),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5), "dirpath": "/x"}},
        "optimizer_states": [optimizer.state_dict()], "lr_schedulers": [scheduler.state_dict()],
        "hparams_name": "args", "hyper_parameters": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("/a")),
    }
    torch.save(content, tmp_path / "a.ckpt", **options)
    checkpoint = open_checkpoint(tmp_path / "a.ckpt")
    same(checkpoint, net.state_dict())
    assert checkpoint.training.step.value == 3
    ((step, rate),) = checkpoint.training.lr.value
    assert (step, rate) == (3, optimizer.param_groups[0]["lr"])
    assert checkpoint.training.lr.source == "a.ckpt"
    said = sentences(checkpoint)
    assert any("would import argparse.Namespace, pathlib.PurePosixPath" in text for text in said)
    assert any(text.startswith("state_dict was compared; left aside: epoch, global_step") for text in said)
    assert not any(note.is_warning for note in checkpoint.notes)


@BOTH
def test_what_trainers_write_beside_the_weights(tmp_path: Path, options: dict[str, Any]) -> None:
    _, optimizer, scheduler = trained()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt", **options)
    checkpoint = open_checkpoint(tmp_path / "optimizer.pt")
    state = {
        f"state.{i}.{name}": tensor
        for i, entry in optimizer.state_dict()["state"].items() for name, tensor in entry.items()
    }
    same(checkpoint, state)
    torch.save(scheduler.state_dict(), tmp_path / "scheduler.pt", **options)
    with pytest.raises(FormatError, match="holds no tensors"):
        open_checkpoint(tmp_path / "scheduler.pt")
    objects = read_objects(StoredFile.at(tmp_path / "scheduler.pt"))
    assert isinstance(objects.root, dict)
    assert objects.root["_last_lr"] == scheduler.get_last_lr()
    random = {
        "python": (3, tuple(range(625)), None), "numpy": np.random.RandomState(0).get_state(),
        "cpu": torch.get_rng_state(),
    }
    torch.save(random, tmp_path / "rng_state.pth", **options)
    tensors = open_checkpoint(tmp_path / "rng_state.pth").tensors
    assert list(tensors) == ["cpu", "numpy.1"]
    assert np.array_equal(tensors["numpy.1"].read_all()[0], random["numpy"][1])
    assert np.array_equal(tensors["cpu"].read_all()[0], random["cpu"].numpy())


@pytest.mark.parametrize("key", ["model_state_dict", "module", "model", "net", "ema"])
def test_common_wrappers(tmp_path: Path, key: str) -> None:
    net, optimizer, _ = trained()
    content = {key: net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 2, "git": {"sha": "abc"}}
    torch.save(content, tmp_path / "a.pt")
    checkpoint = open_checkpoint(tmp_path / "a.pt")
    same(checkpoint, net.state_dict())
    assert sentences(checkpoint) == [f"{key} was compared; left aside: optimizer, epoch, git."]


def test_names_are_those_of_the_live_object(tmp_path: Path) -> None:
    content = {
        "generator": network().state_dict(), "list": [torch.ones(1), {"x": torch.ones(2)}, 3], 7: torch.ones(3),
        "pairs": {(1, "a"): torch.ones(4)}, "array": np.ones(5), "scalar": np.float32(6), "words": ["a"],
        "counts": Counter("ab"), "default": defaultdict(list, w=torch.ones(6)), "none": None,
    }
    torch.save(content, tmp_path / "a.pt")
    checkpoint, live = open_checkpoint(tmp_path / "a.pt"), open_checkpoint(content, "x")
    assert list(checkpoint.tensors) == list(live.tensors)
    for name, tensor in live.tensors.items():
        assert np.array_equal(checkpoint.tensors[name].read_all(), tensor.read_all()), name
    assert sentences(checkpoint) == sentences(live)


def test_one_tensor_and_parameters(tmp_path: Path) -> None:
    tensor = torch.nn.Parameter(torch.ones(2, 3))
    tensor.note = torch.zeros(3)
    torch.save(tensor, tmp_path / "a.pt")
    same(open_checkpoint(tmp_path / "a.pt"), {"array": tensor})
    torch.save([tensor, torch.nn.parameter.Buffer(torch.ones(1))], tmp_path / "a.pt")
    same(open_checkpoint(tmp_path / "a.pt"), {"0": tensor, "1": torch.ones(1)})


def test_tensors_without_plain_numbers_are_listed(tmp_path: Path) -> None:
    eye = torch.eye(3)
    content = {
        "w": torch.ones(2), "coo": eye.to_sparse(), "csr": eye.to_sparse_csr(), "meta": torch.ones(2, device="meta"),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "half": torch.zeros(2, dtype=torch.complex32), "conjugate": torch.tensor([1 + 2j]).conj(),
        "negative": torch.tensor([1 + 2j]).conj().imag, "embedding": torch.quantize_per_channel(
            torch.randn(4, 4), torch.rand(4) + 0.1, torch.zeros(4), 0, torch.quint4x2
        ),
    }
    torch.save(content, tmp_path / "a.pt")
    checkpoint = open_checkpoint(tmp_path / "a.pt")
    assert list(checkpoint.tensors) == ["w"]
    (note,) = (note for note in checkpoint.notes if "could not be compared" in note.template)
    assert note.is_warning
    said = say(note.template, note.said)
    assert said.startswith("8 arrays could not be compared: ")
    for part in (
        "coo (it is sparse", "csr (it is sparse", "meta (it is a meta tensor", "nested (it is nested",
        "half (its dtype is complex32", "conjugate (it is stored as the conjugate", "negative (it is stored as",
        "embedding (its dtype is quint4x2",
    ):
        assert part in said


def test_foreign_classes_and_numpy(tmp_path: Path) -> None:
    content = {
        "w": torch.ones(2), "arrays": OrderedDict(a=np.arange(3), b=np.ones((2, 2), order="F")),
        "path": pathlib.PosixPath("/x"), "names": argparse.Namespace(a=1), "text": string.Template("x"),
    }
    for protocol in (2, 3, 4, 5):
        torch.save(content, tmp_path / "a.pt", pickle_protocol=protocol)
        checkpoint = open_checkpoint(tmp_path / "a.pt")
        assert list(checkpoint.tensors) == ["arrays.a", "arrays.b", "w"]
        assert checkpoint.tensors["arrays.b"].read_all().tolist() == [[1, 1], [1, 1]]
        (warning,) = (note for note in checkpoint.notes if note.is_warning)
        assert "would call string.Template" in say(warning.template, warning.said)


def test_training_arguments(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path / "out"), report_to=[])
    torch.save(arguments, tmp_path / "training_args.bin")
    with pytest.raises(FormatError, match=r"holds no tensors; .*transformers\.training_args\.TrainingArguments"):
        open_checkpoint(tmp_path / "training_args.bin")


def test_big_endian_archives(tmp_path: Path) -> None:
    state = {name: made(name) for name in ("float32", "float64", "int16", "int64", "bfloat16", "complex64")}
    torch.save(state, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as file:
        members = {info.filename: file.read(info) for info in file.infolist()}
    swapped = io.BytesIO()
    with zipfile.ZipFile(swapped, "w") as file:
        for name, raw in members.items():
            file.writestr(name, b"big" if name.endswith("byteorder") else raw)
    (tmp_path / "b.pt").write_bytes(swapped.getvalue())
    # the numbers are nonsense now, the same nonsense for both
    same(open_checkpoint(tmp_path / "b.pt"), torch.load(tmp_path / "b.pt"))


def test_big_archives_with_zip64_headers(tmp_path: Path) -> None:
    state = network().state_dict()
    torch.save(state, tmp_path / "a.pt")
    wide = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "a.pt") as source, zipfile.ZipFile(wide, "w") as target:
        for info in source.infolist():
            with target.open(info.filename, "w", force_zip64=True) as member:
                member.write(source.read(info))
    (tmp_path / "b.pt").write_bytes(wide.getvalue())
    same(open_checkpoint(tmp_path / "b.pt"), state)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_pickles_of_tensors(tmp_path: Path, protocol: int) -> None:
    state = {"a": torch.arange(6.0).reshape(2, 3), "long": torch.arange(10_000), "f8": made("float8_e5m2")}
    state["tied"] = state["a"].t()
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"part": state}, protocol))
    checkpoint = open_checkpoint(tmp_path / "a.pkl")
    same(checkpoint, {f"part.{name}": tensor for name, tensor in state.items()})
    assert checkpoint.notes == ()


def test_reading_them_does_not_import_torch(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "a.pt")
    code = (
        "import sys; from diffai_jupyter.readers import open_checkpoint;"
        f"[t.read_all() for t in open_checkpoint({str(tmp_path / 'a.pt')!r}).tensors.values()];"
        "print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.slow
def test_a_hundred_thousand_tensors(tmp_path: Path) -> None:
    state = {f"layers.{i}.self_attn.weight": torch.full((1,), float(i)) for i in range(100_000)}
    torch.save(state, tmp_path / "a.pt")
    tensors = open_checkpoint(tmp_path / "a.pt").tensors
    assert len(tensors) == 100_000
    assert tensors["layers.4321.self_attn.weight"].read_all().tolist() == [[4321]]
