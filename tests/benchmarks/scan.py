"""Speed and memory of the scan beside a plain read of the same bytes, in one run.

    python tests/benchmarks/scan.py [--mib 800] [--threads 1 2] [--runs 3]

Files are made in a temporary folder and read once before timing, so that they come from the page cache.
Nothing is asserted: machines differ, and on a shared one only the ratios of one run mean something.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SIDE = 2048
BUFFER = 4 << 20


def main() -> None:
    """Make the files, time, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=800, help="size of each file")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}"
    )
    print(
        f"files of {asked.mib} MiB, page-cached, median of {asked.runs} runs; GB/s of both files together\n"
    )
    print("| dtype | B is | threads | plain read | scan | scan / read | peak extra memory |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("F32", "BF16"):
            a = write(Path(folder) / f"a-{dtype}.safetensors", dtype, asked.mib, 0.0)
            for word, noise in (("equal", 0.0), ("changed", 1e-3)):
                b = write(Path(folder) / f"b-{dtype}.safetensors", dtype, asked.mib, noise)
                for threads in asked.threads:
                    print(row(dtype, word, a, b, threads, asked.runs), flush=True)


def write(path: Path, dtype: str, mib: int, noise: float) -> Path:
    """Write a file of square matrices; `noise` is added to each element."""
    width = {"F32": 4, "BF16": 2}[dtype]
    nbytes = SIDE * SIDE * width
    count = max(1, (mib << 20) // nbytes)
    header = json.dumps({
        f"layers.{i}.weight": {"dtype": dtype, "shape": [SIDE, SIDE], "data_offsets": [i * nbytes, (i + 1) * nbytes]}
        for i in range(count)
    }).encode()  # fmt: skip
    base = np.random.default_rng(0).standard_normal((SIDE, SIDE), dtype=np.float32) * np.float32(0.02)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for i in range(count):
            values = np.roll(base, i, axis=0)
            if noise:
                values = values + np.random.default_rng(i).standard_normal(
                    base.shape, dtype=np.float32
                ) * np.float32(noise)
            codes = values if dtype == "F32" else ((values.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
            file.write(codes.tobytes())
    return path


def row(dtype: str, word: str, a: Path, b: Path, threads: int, runs: int) -> str:
    """Time plain reads and scans in turn."""
    size = (a.stat().st_size + b.stat().st_size) / 1e9
    plain(a, b)
    reads, scans, peaks = [], [], []
    for _ in range(runs):
        reads.append(size / plain(a, b))
        seconds, peak = scan(a, b, threads)
        scans.append(size / seconds)
        peaks.append(peak)
    read, scanned = statistics.median(reads), statistics.median(scans)
    cells = (dtype, word, threads, f"{read:.2f}", f"{scanned:.2f}", f"{scanned / read:.3f}", f"{max(peaks):.0f} MiB")
    return f"| {' | '.join(map(str, cells))} |"


def plain(*paths: Path) -> float:
    """Return the seconds that reading the files into one buffer takes."""
    buffer = bytearray(BUFFER)
    start = time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - start


def scan(a: Path, b: Path, threads: int) -> tuple[float, float]:
    """Return the seconds of the pass and its peak extra memory in MiB, in a process of its own."""
    script = (
        "import re, sys, time\n"
        "from diffai_jupyter.readers import open_checkpoint\n"
        "from diffai_jupyter.scan.pairing import pair_checkpoints\n"
        "from diffai_jupyter.scan.passes import stats\n"
        "from diffai_jupyter.scan.run import Run\n"
        "a, b = (open_checkpoint(path) for path in sys.argv[1:3])\n"
        "pair = pair_checkpoints(a, b, Run(workers=int(sys.argv[3])))\n"
        # getrusage would also count what the parent held before it started this process.
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "before, start = peak(), time.perf_counter()\n"
        "stats(pair)\n"
        "print(time.perf_counter() - start, (peak() - before) / 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(a), str(b), str(threads)],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, peak = map(float, done.stdout.split())
    return seconds, peak


if __name__ == "__main__":
    main()
