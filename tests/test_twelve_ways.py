"""One network saved in twelve ways: each of the 144 comparisons says that nothing changed but the dtype."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import to_codes, transformer, write_safetensors
from gguf_models import llama_as_gguf

from diffai_jupyter.comparison import compare

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

HEADS, KV = 4, 2
WAYS = (
    "safetensors F32", "safetensors BF16", "safetensors F16", "sharded", "pt zip", "pt legacy", "whole module",
    "npz", "mat", "gguf F16", "lightning", "live",
)  # fmt: skip
SAME = {"identical", "renamed", "re-sharded", "cast"}


def network() -> dict[str, np.ndarray]:
    """Return a Llama-like state with grouped keys and values that no narrower dtype holds exactly."""
    draw = np.random.default_rng(3)
    state = {}
    for name, values in transformer(layers=2, hidden=64, inner=96, vocab=80).items():
        shape = (64 * KV // HEADS, 64) if "k_proj" in name or "v_proj" in name else values.shape
        scale, centre = (0.1, 1.0) if len(shape) == 1 else (0.2, 0.0)
        state[name] = (centre + scale * draw.normal(size=shape)).astype("f4")
    return state


def module_of(state: dict[str, Any]) -> Any:
    """Return a tree of torch's own modules whose state dict has these names."""

    def made(inside: dict[str, Any]) -> Any:
        if set(inside) == {"weight"}:
            leaf = torch.nn.Linear(1, 1, bias=False)
            leaf.weight = torch.nn.Parameter(inside["weight"])
            return leaf
        return torch.nn.ModuleDict({key: made(part) for key, part in inside.items()})

    tree: dict[str, Any] = {}
    for name, values in state.items():
        at = tree
        *path, last = name.split(".")
        for piece in path:
            at = at.setdefault(piece, {})
        at[last] = values
    return made(tree)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    import scipy.io

    folder: Path = tmp_path_factory.mktemp("ways")
    state = network()
    tensors = {name: torch.from_numpy(values) for name, values in state.items()}
    ways: dict[str, Any] = {}
    for dtype in ("f32", "bf16", "f16"):
        path = folder / dtype / "model.safetensors"
        written = {n: (dtype.upper(), to_codes(dtype, v)) for n, v in state.items()}
        ways[f"safetensors {dtype.upper()}"] = write_safetensors(path, written)
    names = list(state)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in shards.items():
        write_safetensors(folder / "sharded" / file, {n: ("F32", state[n]) for n in held})
    weight_map = {name: file for file, held in shards.items() for name in held}
    (folder / "sharded" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    ways["sharded"] = folder / "sharded"
    (folder / "pt").mkdir()
    torch.save(tensors, folder / "pt" / "zip.pt")
    torch.save(tensors, folder / "pt" / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(module_of(tensors), folder / "pt" / "module.pt")
    lightning = {
        "epoch": 3, "global_step": 900, "pytorch-lightning_version": "2.6.0", "loops": {}, "callbacks": {},
        "state_dict": {f"net.{name}": values for name, values in tensors.items()},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}],
        "lr_schedulers": [], "hyper_parameters": {"hidden": 64},
    }  # fmt: skip
    torch.save(lightning, folder / "pt" / "last.ckpt")
    ways |= {"pt zip": folder / "pt" / "zip.pt", "pt legacy": folder / "pt" / "legacy.pt"}
    ways |= {"whole module": folder / "pt" / "module.pt", "lightning": folder / "pt" / "last.ckpt"}
    np.savez(folder / "all.npz", **state)
    scipy.io.savemat(folder / "all.mat", state)
    llama_as_gguf(folder / "model-F16.gguf", state, HEADS, KV, "F16")
    ways |= {"npz": folder / "all.npz", "mat": folder / "all.mat", "gguf F16": folder / "model-F16.gguf"}
    return ways | {"live": tensors}


@pytest.mark.parametrize("a", WAYS)
@pytest.mark.parametrize("b", WAYS)
def test_each_way_holds_the_same_network(saved: dict[str, Any], a: str, b: str) -> None:
    found = compare(saved[a], saved[b], change_summary=True)
    assert found.report.change.kind in SAME, found.to_text()
    assert found["change_summary"].values["layers_changed"].value == 0
    assert found.report.coverage.not_compared == ()
    statuses = {row.status for row in found.report.tensors}
    assert statuses <= {"equal", "cast"}
    assert len(found.report.tensors) == len(network())
    exact = {"safetensors BF16", "safetensors F16", "gguf F16"}
    if a == b or not {a, b} & exact:
        assert found.exit_code == 0
