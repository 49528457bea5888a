"""What is measured inside of a process: `python -m benchmarks.child NAME ARGUMENT ...` prints figures as JSON.

Packages are imported before the clock starts, and only those that the one measurement needs.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

BUFFER = 4 << 20

Figures = dict[str, float]


def main() -> None:
    """Call the function that is named, with strings."""
    name, *arguments = sys.argv[1:]
    json.dump(FUNCTIONS[name](*arguments), sys.stdout)


def read(*paths: str, threads: int = 1) -> Figures:
    """Read files through into one buffer of 4 MiB that is used again; with two threads each takes its own file."""
    before, start = from_disk(), time.perf_counter()
    if threads == 1:
        for path in paths:
            _read_one(path)
    else:
        readers = [threading.Thread(target=_read_one, args=(path,)) for path in paths]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
    return {"seconds": time.perf_counter() - start, "disk": from_disk() - before}


def _read_one(path: str) -> None:
    buffer = bytearray(BUFFER)
    with Path(path).open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def read_together(*paths: str) -> Figures:
    """Read each file by a thread of its own."""
    return read(*paths, threads=len(paths))


def scan(a: str, b: str, threads: str, passes: str = "1") -> Figures:
    """Open and pair two checkpoints and take all statistics of every tensor; then again, in the same process."""
    from diffai_jupyter.readers import open_checkpoint
    from diffai_jupyter.scan.pairing import pair_checkpoints
    from diffai_jupyter.scan.passes import stats
    from diffai_jupyter.scan.run import Run

    took, loaded, before = [], peak(), from_disk()
    for _ in range(int(passes)):
        start = time.perf_counter()
        pair = pair_checkpoints(open_checkpoint(a), open_checkpoint(b), Run(workers=int(threads)))
        stats(pair)
        took.append(time.perf_counter() - start)
    disk = from_disk() - before
    return {"seconds": took[0], "again": min(took[1:], default=took[0]), "loaded": loaded, "disk": disk}


def torch_blocks(a: str, b: str, threads: str) -> Figures:
    """Take the same statistics with torch, block by block."""
    from benchmarks.torch_statistics import BLOCK

    return _torch(a, b, int(threads), BLOCK)


def torch_whole(a: str, b: str, threads: str) -> Figures:
    """Take the same statistics with torch, each tensor as a whole."""
    return _torch(a, b, int(threads), 0)


def _torch(a: str, b: str, threads: int, block: int) -> Figures:
    from benchmarks.torch_statistics import statistics_of_files

    loaded, before, start = peak(), from_disk(), time.perf_counter()
    statistics_of_files(a, b, threads, block)
    return {"seconds": time.perf_counter() - start, "loaded": loaded, "disk": from_disk() - before}


def magic(a: str, b: str) -> Figures:
    """Load the extension in a new IPython shell, and call the magic twice."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell = InteractiveShell.instance()
    figures = {"loaded": peak()}
    cells = {"load": "%load_ext diffai_jupyter", "call": f"%diffai {a} {b}", "again": f"%diffai {a} {b}"}
    for name, cell in cells.items():
        start = time.perf_counter()
        with capture_output():
            result = shell.run_cell(cell)
        result.raise_error()
        figures[name] = time.perf_counter() - start
    return {**figures, "seconds": figures["load"] + figures["call"]}


def tile(dtype: str, columns: str, repeats: str) -> Figures:
    """Sum one block of tiles of two arrays in memory again and again: the kernel and nothing else."""
    import numpy as np

    from benchmarks.checkpoints import CHANGED, values_of
    from benchmarks.encodings import stored
    from diffai_jupyter.checkpoint.dtypes import DTYPES
    from diffai_jupyter.scan.kernels import kernel_for
    from diffai_jupyter.scan.kernels.reference import Workspace
    from diffai_jupyter.scan.kernels.tile import BlockSide
    from diffai_jupyter.scan.tiles import TILE_ELEMENTS, Tiling

    kind, n_cols = DTYPES[dtype.lower()], int(columns)
    grid = 4 * TILE_ELEMENTS // n_cols, n_cols
    block = next(Tiling(*grid).blocks(0))
    codes = [stored(dtype, values_of(0, grid, what)) for what in ("base", CHANGED)]
    kernel = kernel_for((kind, kind), n_cols, 0.0, Workspace(TILE_ELEMENTS), 0)
    took = []
    for _ in range(int(repeats)):
        # Decoded values are kept by the side, so each turn has new ones.
        a, b = (BlockSide(kind, each.view(kind.code)) for each in codes)
        start = time.perf_counter()
        kernel.sums(block, a, b)
        took.append(time.perf_counter() - start)
    return {"seconds": float(np.median(took[1:] or took)), "elements": float(block.size)}


def cluster(workers: str) -> Figures:
    """Start a Dask cluster of processes here, print its address, and keep it until the input ends."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=int(workers), threads_per_worker=1, dashboard_address=None) as started:
        print(started.scheduler_address, flush=True)
        sys.stdin.read()
    return {}


def peak() -> float:
    """Return the bytes of resident memory that this process held at most so far; NaN where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():
        # The other count includes what the parent held.
        return float(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    try:
        import resource
    except ImportError:
        return float("nan")
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def from_disk() -> float:
    """Return the bytes that the system has fetched from a disk for this process; NaN where it does not tell."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return float("nan")
    return float(next(line.split()[1] for line in lines if line.startswith("read_bytes")))


FUNCTIONS: Mapping[str, Callable[..., Figures]] = {
    function.__name__: function
    for function in (read, read_together, scan, torch_blocks, torch_whole, magic, tile, cluster)
}

if __name__ == "__main__":
    main()
