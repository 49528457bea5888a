"""Everything that the pass records, as bytes, and files to pass over: `from recorded import ...`."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
from builders import to_codes, write_safetensors

from diffai_jupyter.readers import open_checkpoint
from diffai_jupyter.scan.pairing import pair_checkpoints
from diffai_jupyter.scan.passes import stats
from diffai_jupyter.scan.run import Run
from diffai_jupyter.scan.stats import TensorStats


def bits(found: tuple[TensorStats, ...]) -> list[bytes]:
    """Return everything the record holds, as bytes."""
    parts = []
    for record in found:
        for side in (record.a, record.b, record.both):
            parts.append(b"" if side is None else side.sums.tobytes())
        digest = record.digest
        parts.append(
            repr(
                [getattr(digest, name) for name in ("dead_rows", "repeated_rows", "row_gap", "sorted_col_gap", "psi")]
            ).encode()
        )
        parts += [b"" if x is None else x.tobytes() for x in (digest.edges, digest.counts_a, digest.counts_b)]
        for spread in digest.magnitudes:
            parts += [b""] if spread is None else [spread.counts.tobytes(), spread.squares.tobytes()]
    return parts


def scanned(files: tuple[Path, Path], **said: Any) -> list[bytes]:
    """Return the record of two files, computed as `said`."""
    return bits(stats(pair_checkpoints(*map(open_checkpoint, files), Run(**said))))


def write_pair(folder: Path, many: int = 40, slabs: bool = False) -> tuple[Path, Path]:
    """Write two files with `many` small matrices of several dtypes; with `slabs` also one tensor of three slabs."""

    def file(name: str, seed: int) -> Path:
        draw = np.random.default_rng(seed)
        tensors: dict[str, tuple[str, np.ndarray]] = {}
        for i in range(many):
            dtype = ("bf16", "f32", "f16")[i % 3]
            values = draw.normal(size=(5 + 7 * i, 64)).astype("f4")
            tensors[f"model.layers.{i}.mlp.up_proj.weight"] = (dtype.upper(), to_codes(dtype, values))
        if slabs:
            tensors["wide"] = ("U8", draw.integers(0, 9, (300, 65_537), dtype="u1"))
        return write_safetensors(folder / f"{name}.safetensors", tensors)

    return file("a", 0), file("b", 1)


class Shuffling(Executor):
    """Runs what waits in an order drawn at random, and loses some of it on request."""

    def __init__(self, seed: int, loses: Callable[[int], bool] = lambda number: False) -> None:
        self._draw, self._loses = random.Random(seed), loses
        self._waiting: list[tuple[Future[Any], Any]] = []
        self._change = threading.Condition()
        self._is_closed = False
        self.calls: list[tuple[Any, ...]] = []
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def submit(self, call: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        with self._change:
            self.calls.append(args)
            self._waiting.append((future, lambda: call(*args, **named)))
            self._change.notify()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._change:
            self._is_closed = True
            self._change.notify()
        self._thread.join()

    def _work(self) -> None:
        number = 0
        while True:
            with self._change:
                # Let some gather, so that there is an order to shuffle.
                self._change.wait_for(lambda: self._is_closed or len(self._waiting) > 8, timeout=0.01)
                if self._is_closed:
                    return
                if not self._waiting:
                    continue
                future, call = self._waiting.pop(self._draw.randrange(len(self._waiting)))
            if not future.set_running_or_notify_cancel():
                continue
            number += 1
            if self._loses(number):
                future.set_exception(CancelledError())
                continue
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
