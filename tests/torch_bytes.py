"""Files as torch.save writes them, made without torch: `from torch_bytes import saved, ...`."""

from __future__ import annotations

import importlib.util
import itertools
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_PATH = Path(__file__).parent / "readers" / "hostile_pickles.py"
_SPEC = importlib.util.spec_from_file_location("opcodes", _PATH)
assert _SPEC
assert _SPEC.loader
opcodes: Any = importlib.util.module_from_spec(_SPEC)
sys.modules["opcodes"] = opcodes
_SPEC.loader.exec_module(opcodes)
"""Writers of single opcodes."""

KINDS = {"<f4": "FloatStorage", "<f8": "DoubleStorage", "|u1": "ByteStorage", "<i8": "LongStorage"}


class Instance:
    """An instance of a class, as it is pickled: with a state, or made by a call of the class."""

    def __init__(self, name: str, state: Mapping[str, Any] | None = None, args: tuple[Any, ...] | None = None) -> None:
        self.module, _, self.name = name.rpartition(".")
        self.state, self.args = state, args


class Raw:
    """Opcodes as they are."""

    def __init__(self, ops: bytes) -> None:
        self.ops = ops


def saved(path: Path, root: Any) -> Path:
    """Write an object: dicts, lists, tuples, plain values, arrays of NumPy as tensors, and instances."""
    storages: dict[str, bytes] = {}
    ops = b"\x80\x02" + _ops(root, storages) + b"."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(opcodes.archive(ops, storages))
    return path


def _ops(found: Any, storages: dict[str, bytes]) -> bytes:
    if isinstance(found, Raw):
        return found.ops
    if isinstance(found, np.ndarray):
        return _tensor(found, storages)
    if isinstance(found, Instance):
        return _instance(found, storages)
    if isinstance(found, Mapping):
        return b"}(" + b"".join(_ops(part, storages) for pair in found.items() for part in pair) + b"u"
    if isinstance(found, list):
        return b"](" + b"".join(_ops(part, storages) for part in found) + b"e"
    if isinstance(found, tuple):
        return b"(" + b"".join(_ops(part, storages) for part in found) + b"t"
    if found is None or isinstance(found, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[found]
    if isinstance(found, int):
        return opcodes.number(found)
    return b"G" + struct.pack(">d", found) if isinstance(found, float) else opcodes.text(found)


def _tensor(found: np.ndarray, storages: dict[str, bytes]) -> bytes:
    key = str(len(storages))
    storages[key] = np.ascontiguousarray(found).tobytes()
    strides = tuple(step // found.itemsize for step in np.ascontiguousarray(found).strides)
    where = opcodes.storage(opcodes.text(key), found.size, KINDS[found.dtype.str])
    return opcodes.tensor(found.shape, strides if found.ndim else (), 0, where)


def _instance(found: Instance, storages: dict[str, bytes]) -> bytes:
    if found.args is not None:
        return opcodes.called(found.module, found.name, *(_ops(part, storages) for part in found.args))
    return opcodes.named(found.module, found.name) + b")\x81" + _ops(found.state, storages) + b"b"


def adam_state(
    shapes: list[tuple[int, ...]], split: tuple[int, ...] = (), step: float = 7, seed: int = 0, **settings: Any
) -> dict[str, Any]:
    """Return the state of AdamW for parameters of these shapes; groups begin at 0 and at each of `split`."""
    draw = np.random.default_rng(seed)
    state = {
        i: {
            "step": np.array(step, "<f4"),
            "exp_avg": draw.normal(size=shape).astype("<f4"),
            "exp_avg_sq": np.square(draw.normal(size=shape)).astype("<f4"),
        }
        for i, shape in enumerate(shapes)
    }
    plain = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "amsgrad": False, "foreach": None}
    edges = (0, *split, len(shapes))
    groups = [
        {**plain, **settings, "params": list(range(first, last))}
        for first, last in itertools.pairwise(edges)
    ]
    return {"state": state, "param_groups": groups}
