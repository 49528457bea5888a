"""What is measured and how large, as it is asked for on the command line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Choices:
    """Sizes and repetitions.

    Parameters
    ----------
    mib : int
        MiB of one checkpoint in BF16; all encodings hold the same numbers, so F32 takes twice as much.
    runs : int
        Repetitions.
    threads : tuple of int
        Of the scan and of torch.
    big_mib : int
        MiB of one checkpoint in BF16 of the pair that memory is measured with.
    sparse_gb : int
        10^9 bytes of one file with holes.
    tensors : int
        How many small ones.
    folder : Path
        Where files are made.
    """

    mib: int
    runs: int
    threads: tuple[int, ...]
    big_mib: int
    sparse_gb: float
    tensors: int
    folder: Path

    @property
    def most_threads(self) -> int:
        """The most of them."""
        return max(self.threads)


def parser_of(description: str, topics: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser("python tests/benchmarks", description=description)
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=f"one of {', '.join(topics)}; all by default")
    parser.add_argument("--mib", type=int, default=192, help="MiB of one checkpoint in BF16 (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="repetitions (default: %(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=_threads(), help="default: 1 and one per core")
    parser.add_argument(
        "--big-mib", type=int, default=2100, help="MiB of one checkpoint of the large pair (default: %(default)s)"
    )
    parser.add_argument(
        "--sparse-gb", type=float, default=50, help="10^9 bytes of a file with holes (default: %(default)s)"
    )
    parser.add_argument("--tensors", type=int, default=100_000, help="how many small tensors (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where files are made; a temporary folder by default")
    parser.add_argument("--only-print", action="store_true", help="print the tables and leave the page as it is")
    return parser


def choices_of(asked: argparse.Namespace, folder: Path) -> Choices:
    """Return what was asked for, with files in a folder."""
    return Choices(
        asked.mib, asked.runs, tuple(sorted(set(asked.threads))), asked.big_mib, asked.sparse_gb, asked.tensors, folder
    )


def _threads() -> list[int]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return sorted({1, min(8, cores)})
