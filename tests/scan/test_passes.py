"""The pass against NumPy on the whole arrays, and against itself under every way of running it."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import subprocess
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from builders import checkpoint_of, pair_of, to_codes, write_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import bits

from diffai_jupyter.checkpoint.dtypes import DTYPES, dtype_of
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.storage import StoredFile
from diffai_jupyter.checkpoint.tensor import ArrayTensor
from diffai_jupyter.checkpoint.views import Transposed
from diffai_jupyter.comparison import compare
from diffai_jupyter.errors import SourceError
from diffai_jupyter.readers import open_checkpoint
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints
from diffai_jupyter.scan.passes import stats
from diffai_jupyter.scan.run import Run
from diffai_jupyter.scan.slots import Both, Side

SHAPES = [
    (),
    (1,),
    (0,),
    (0, 7),
    (7, 0),
    (5,),
    (70_000,),
    (300, 257),
    (3, 40_000),
    (3, 140_000),
    (2, 70_001),
    (40, 3, 5, 5),
    (66_000, 1),
]


def arrays(shape: tuple[int, ...], seed: int, dtype: str = "f4") -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_record_equals_numpy(shape):
    a, b = arrays(shape, 0), arrays(shape, 1)
    b.reshape(-1)[::3] = a.reshape(-1)[::3]
    (record,) = stats(pair_of({"w": a}, {"w": b}))
    x, y = a.astype("f8"), b.astype("f8")
    assert record.a is not None
    assert record.b is not None
    assert record.both is not None
    assert record.both.changed == np.count_nonzero(a != b)
    assert record.both.finite == a.size
    assert record.a.squares == pytest.approx((x * x).sum(), rel=1e-13)
    assert record.both.d_squares == pytest.approx(((y - x) ** 2).sum(), rel=1e-13)
    assert record.both.product == pytest.approx((x * y).sum(), rel=1e-9, abs=1e-9)
    if a.size:
        assert record.both.d_variance == pytest.approx((y - x).var() * a.size, rel=1e-9, abs=1e-12)
        assert record.b.mean == pytest.approx(y.mean(), rel=1e-9, abs=1e-12)
        assert record.b.std == pytest.approx(y.std(), rel=1e-9, abs=1e-12)
        assert (record.b.min, record.b.max) == (y.min(), y.max())
        assert record.both.largest == np.abs(y - x).max()
        where = record.both.where_largest
        assert where is None or np.abs(y - x).reshape(-1)[where] == record.both.largest


def test_nonfinite_elements_are_counted_located_and_masked():
    a, b = arrays((600, 500), 0), arrays((600, 500), 1)
    b[7, 11], b[400, 3], b[400, 4] = np.nan, np.inf, -np.inf
    a[0, 0] = np.nan
    (record,) = stats(pair_of({"w": a}, {"w": b}))
    assert record.b is not None
    assert record.a is not None
    assert record.both is not None
    counts = [record.b.count(slot) for slot in (Side.NAN, Side.POSITIVE_INF, Side.NEGATIVE_INF)]
    assert counts == [1, 1, 1]
    assert record.b.first_bad == 7 * 500 + 11
    assert record.a.first_bad == 0
    mask = np.isfinite(a) & np.isfinite(b)
    d = (b.astype("f8") - a.astype("f8"))[mask]
    assert record.both.finite == mask.sum() == 600 * 500 - 4
    assert record.both.d_squares == pytest.approx((d * d).sum(), rel=1e-13)
    assert record.both.changed == 600 * 500
    assert record.b.mean == pytest.approx(b[np.isfinite(b)].astype("f8").mean(), rel=1e-9)


def test_all_nan_has_no_mean_and_no_change():
    a = np.full((4, 5), np.nan, "f4")
    (record,) = stats(pair_of({"w": a}, {"w": a.copy()}))
    assert record.both is not None
    assert record.both.changed == 0
    assert record.a is not None
    assert np.isnan(record.a.mean)


def test_signed_zero_is_equal_in_value_and_not_in_bits():
    (record,) = stats(pair_of({"w": np.zeros((3, 3), "f4")}, {"w": np.full((3, 3), -0.0, "f4")}))
    assert record.both is not None
    assert record.both.changed == 0
    assert record.both.count(Both.BITS_CHANGED) == 9


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "u1", "i4", "i8", "u8", "?", "c8", "c16"])
def test_every_numpy_dtype_is_compared(dtype):
    draw = np.random.default_rng(0)
    values = draw.normal(size=(30, 40)) * 20
    a = (np.abs(values) if dtype[0] == "u" else values).astype(dtype)
    b = a.copy()
    b[3, 4] = not b[3, 4] if dtype == "?" else b[3, 4] + 1
    (record,) = stats(pair_of({"w": a}, {"w": b}))
    assert record.both is not None
    assert record.both.changed == 1
    assert record.both.where_largest == 3 * 40 + 4
    assert record.both.d_squares == pytest.approx(1.0, rel=1e-2)


def test_large_integers_are_compared_exactly():
    a = np.array([2**62, 2**62 + 1, -5], dtype="i8")
    b = np.array([2**62 + 1, 2**62 + 1, -5], dtype="i8")
    (record,) = stats(pair_of({"w": a}, {"w": b}))
    assert record.both is not None
    assert record.both.changed == 1


def test_saturated_and_subnormal_elements_are_counted():
    values = np.array([65504.0, -65504.0, 1e-6, 0.0, 1.0, 2.0], "f2")
    (record,) = stats(pair_of({"w": values}, {"w": values}))
    assert record.a is not None
    assert record.a.count(Side.SATURATED) == 2
    assert record.a.count(Side.SUBNORMAL) == 1
    assert record.a.count(Side.ZEROS) == 1


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_huge_numbers_give_no_warning_and_an_honest_result(dtype):
    largest = np.finfo(dtype).max
    a = np.array([[largest, -largest, 1.0, 0.0]] * 3, dtype)
    found = compare({"w": a}, {"w": a / 2}, all=True)
    row = found.report.tensors[0]
    assert row.numbers["changed"] == 9
    assert row.numbers["max_abs_delta"] == largest / 2
    exact = dtype == "f4"
    assert row.numbers["relative_change"] == (pytest.approx(0.5) if exact else None)


def test_epsilon_hides_small_differences():
    a = np.array([1.0, 2.0, 3.0, np.nan], "f8")
    b = np.array([1.0 + 1e-9, 2.1, 3.0, np.nan], "f8")
    pair = pair_checkpoints(checkpoint_of({"w": a}), checkpoint_of({"w": b}), epsilon=1e-6)
    (record,) = stats(pair)
    assert record.both is not None
    assert record.both.changed == 1


def test_rows_columns_and_psi_equal_numpy():
    a, b = arrays((900, 700), 0), arrays((900, 700), 1) * 1.5
    b[10:30] = 0
    a[:, 5] = 0
    (record,) = stats(pair_of({"w": a}, {"w": b}))
    digest = record.digest
    assert digest.dead_rows == (0, 20)
    assert digest.dead_cols == (1, 0)
    assert digest.new_dead_rows == 20
    assert digest.first_dead_rows == tuple(range(10, 18))
    cuts = np.quantile(a, np.arange(1, 20) / 20)
    share_a, share_b = (
        np.maximum(np.histogram(values, np.concatenate(([-np.inf], cuts, [np.inf])))[0] / values.size, 1e-4)
        for values in (a, b)
    )
    exact = ((share_b - share_a) * np.log(share_b / share_a)).sum()
    # The record samples 262,144 of the 630,000 elements.
    assert digest.psi == pytest.approx(exact, rel=0.03)
    assert digest.counts_a is not None
    assert digest.counts_a.sum() == digest.sampled == 1 << 18


def test_psi_of_a_small_tensor_is_exact():
    a, b = arrays((50, 60), 0), arrays((50, 60), 1) + 0.3
    (record,) = stats(pair_of({"w": a}, {"w": b}))
    ordered = np.sort(a.ravel())
    cuts = [ordered[k * 3000 // 20] for k in range(1, 20)]
    counts_a = np.bincount(np.searchsorted(cuts, a.ravel()), minlength=20) / 3000
    counts_b = np.maximum(np.bincount(np.searchsorted(cuts, b.ravel()), minlength=20) / 3000, 1e-4)
    assert record.digest.psi == pytest.approx(
        ((counts_b - counts_a) * np.log(counts_b / counts_a)).sum(), rel=1e-9
    )


@given(
    st.sampled_from([(300, 257), (3, 270_001), (66_000, 3), (130, 132_000), (390_000,)]),
    st.integers(1, 600), st.integers(1, 4), st.sampled_from(["f4", "f2"]),
)  # fmt: skip
@settings(max_examples=8, deadline=None)
def test_same_bits_for_any_block_size_and_thread_count(shape, block_tiles, workers, dtype):
    a, b = arrays(shape, 0, dtype), arrays(shape, 1, dtype)
    first = stats(pair_of({"w": a, "v": a[:2]}, {"w": b, "v": a[:2]}, workers=1, block_tiles=4))
    second = stats(
        pair_of({"w": a, "v": a[:2]}, {"w": b, "v": a[:2]}, workers=workers, block_tiles=block_tiles)
    )
    assert bits(first) == bits(second)


def test_same_bits_for_a_transposed_storage():
    a, b = arrays((500, 300), 0), arrays((500, 300), 1)
    plain = pair_of({"w": a}, {"w": b})
    entry = plain.tensors[0]
    turned = [Transposed(ArrayTensor(np.ascontiguousarray(x.T), DTYPES["f32"], ("w",))) for x in (a, b)]
    other = Pair(plain.a, plain.b, (dataclasses.replace(entry, a=turned[0], b=turned[1]),))
    assert bits(stats(plain)) == bits(stats(other))


@pytest.fixture
def files(tmp_path):
    def file(name: str, seed: int):
        draw = np.random.default_rng(seed)
        states = {f"w{i}": ("BF16", to_codes("bf16", draw.normal(size=(400, 300)))) for i in range(6)}
        return write_safetensors(tmp_path / f"{name}.safetensors", states)

    return file("a", 0), file("b", 1)


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_same_bits_on_any_executor(files, pool):
    opened = [open_checkpoint(path) for path in files]
    here = stats(pair_checkpoints(*opened, Run(workers=1)))
    with pool(2) as executor:
        there = stats(pair_checkpoints(*opened, Run(executor=executor)))
    assert bits(here) == bits(there)


def test_file_that_shrinks_is_one_clear_error(files):
    opened = [open_checkpoint(path) for path in files]
    files[1].write_bytes(files[1].read_bytes()[:-1000])
    with pytest.raises(SourceError, match=r"b\.safetensors: the file changed"):
        stats(pair_checkpoints(*opened))


def test_progress_counts_up_to_all_bytes(files):
    seen = []
    opened = [open_checkpoint(path) for path in files]
    stats(pair_checkpoints(*opened, Run(tick=lambda stage, done, total: seen.append((stage, done, total)))))
    assert seen[-1] == ("scan", 2 * 6 * 400 * 300 * 2, 2 * 6 * 400 * 300 * 2)


def test_interrupt_stops_and_leaves_no_thread(files):
    script = textwrap.dedent("""
        import threading
        import numpy as np
        from diffai_jupyter.comparison import compare, run_comparison
        from diffai_jupyter.options import Request
        state = {f"w{i}": np.zeros((2000, 5000), "f4") for i in range(8)}
        def tick(stage, done, total):
            raise KeyboardInterrupt
        try:
            run_comparison(state, {k: v + 1 for k, v in state.items()}, Request(), tick=tick)
        except KeyboardInterrupt:
            print("stopped", [t.name for t in threading.enumerate() if "diffai" in t.name])
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "stopped []"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory that Linux reports")
@pytest.mark.parametrize("kernel", ["numpy", "compiled"])
@pytest.mark.parametrize("shape", ["(50_000_000, 1)", "(1, 50_000_000)", "(500_000, 100)", "(7000, 7000)"])
def test_extra_memory_stays_below_64_mib(shape, kernel, tmp_path):
    # A file with a hole: it takes no room on the disk and reads as zeros.
    script = textwrap.dedent(f"""
        import json, math, re, struct
        shape = {shape}
        size = 2 * math.prod(shape)
        header = json.dumps({{"w": {{"dtype": "BF16", "shape": shape, "data_offsets": [0, size]}}}}).encode()
        for name in ("a", "b"):
            with open(name + ".safetensors", "wb") as file:
                file.write(struct.pack("<Q", len(header)) + header)
                file.seek(size // 2, 1)
                file.write(name.encode() * 4096)
                file.truncate(8 + len(header) + size)
        from diffai_jupyter.readers import open_checkpoint
        from diffai_jupyter.scan.pairing import pair_checkpoints
        from diffai_jupyter.scan.passes import stats
        from diffai_jupyter.scan.run import Run
        def peak():
            return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
        pair = pair_checkpoints(open_checkpoint("a.safetensors"), open_checkpoint("b.safetensors"), Run(workers=2))
        if "{kernel}" == "compiled":
            # The compiler's own memory does not grow with the files.
            from diffai_jupyter.scan.kernels.program import sums_of_tiles
            for is_single in (True, False):
                sums_of_tiles(("bf16", "bf16"), is_single)
        before = peak()
        found = stats(pair)
        assert found[0].both.changed == 2048, found[0].both.changed
        print((peak() - before) // 1024)
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False,
        env={**os.environ, "DIFFAI_KERNEL": kernel},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64


def test_one_tensor_on_both_sides_is_read_once_and_counts_as_equal():
    values = np.random.default_rng(0).normal(size=(40, 30)).astype("f4")
    values[3, 4], values[5] = np.nan, 0

    class Counted(ArrayTensor):
        reads = 0

        def codes(self, rows, cols):
            Counted.reads += 1
            return super().codes(rows, cols)

    tensor = Counted(values, dtype_of(values), ("w",))
    copy = ArrayTensor(values.copy(), dtype_of(values), ("w",))
    records = [
        stats(pair_checkpoints(Checkpoint("a", "live", {"w": a}), Checkpoint("b", "live", {"w": b})))[0]
        for a, b in ((tensor, tensor), (copy, tensor))
    ]
    assert Counted.reads == 2
    for part in ("a", "b", "both"):
        one, other = (getattr(record, part).sums.tobytes() for record in records)
        assert one == other


@pytest.mark.skipif(not hasattr(os, "SEEK_DATA"), reason="the system does not tell where holes are")
@pytest.mark.parametrize(
    ("dtype", "shape"), [("BF16", (9000, 4096)), ("F16", (36_000_000,)), ("F8_E8M0", (36_000_000,))]
)
def test_a_hole_counts_as_the_zeros_that_it_reads_as(dtype, shape, tmp_path, monkeypatch):
    width = {"BF16": 2, "F16": 2, "F8_E8M0": 1}[dtype]
    size = width * int(np.prod(shape))
    header = json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}).encode()
    for name in ("a", "b", "full-a", "full-b"):
        with (tmp_path / f"{name}.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            if name.startswith("full"):
                file.write(bytes(size))
            file.truncate(8 + len(header) + size)
            file.seek(-100 * width, os.SEEK_END)
            file.write(bytes([63, name[-1] == "b"] * 50 * width))

    def records(*names: str):
        sides = (open_checkpoint(tmp_path / f"{name}.safetensors") for name in names)
        return stats(pair_checkpoints(*sides, Run(workers=1)))

    expected = bits(records("full-a", "full-b"))
    read = []
    original = StoredFile.read_into
    monkeypatch.setattr(
        StoredFile, "read_into", lambda self, at, room: read.append(room.size) or original(self, at, room)
    )
    assert bits(records("a", "b")) == expected
    # The first slab shares a page with the header; a code of zero is not the number zero in every dtype.
    assert (sum(read) < 1.2 * size) == (dtype != "F8_E8M0")
