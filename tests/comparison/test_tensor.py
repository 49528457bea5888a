"""One tensor before and after, against NumPy on its values."""

from __future__ import annotations

import json

import numpy as np
import pytest
from bank import UP, network, noised, pair_called, pair_from
from builders import write_safetensors

from diffai_jupyter.checkpoint.storage import StoredFile
from diffai_jupyter.comparison import Comparison, compare
from diffai_jupyter.contract.blocks import Facts
from diffai_jupyter.errors import ArgumentError
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.facts.change import tensor_spectra
from diffai_jupyter.report.request import request_of

RNG = np.random.default_rng(20)


def values_of(array_a, array_b):
    found = compare({"w": array_a}, {"w": array_b})
    return found.tensor("w").values


def known(value):
    assert value.evidence is Evidence.MEASURED
    return value.value


@pytest.mark.parametrize("shape", [(80, 50), (16, 3, 5, 5), (600, 40)])
def test_numbers_are_those_of_numpy(shape):
    a = RNG.normal(size=shape)
    b = a + 0.1 * RNG.normal(size=shape)
    view = compare({"w": a}, {"w": b}).tensor("w")
    values = view.values
    for key, measure in {
        "mean": np.mean, "std": np.std, "min": np.min, "max": np.max, "norm": np.linalg.norm,
    }.items():  # fmt: skip
        expected = [measure(side) if key != "norm" else np.linalg.norm(side.ravel()) for side in (a, b)]
        assert known(values[key]) == pytest.approx(expected, rel=1e-9), key
    delta = b - a
    assert known(values["relative_change"]) == pytest.approx(np.linalg.norm(delta.ravel()) / np.linalg.norm(a.ravel()))
    assert known(values["cosine"]) == pytest.approx((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))
    assert known(values["changed"]) == delta.size
    assert known(values["largest_change"]) == pytest.approx(np.abs(delta).max())
    assert tuple(known(values["largest_change_at"])) == np.unravel_index(np.abs(delta).argmax(), shape)
    spectra = [np.linalg.svd(side.reshape(shape[0], -1), compute_uv=False) for side in (a, b, delta)]
    stable = [(s**2).sum() / s[0] ** 2 for s in spectra]
    effective = [np.exp(-(s / s.sum() * np.log(s / s.sum())).sum()) for s in spectra]
    assert known(values["stable_rank"]) == pytest.approx(stable[:2])
    assert known(values["effective_rank"]) == pytest.approx(effective[:2], rel=1e-5)
    assert known(values["update_stable_rank"]) == pytest.approx(stable[2])
    assert known(values["update_effective_rank"]) == pytest.approx(effective[2], rel=1e-5)
    rows = np.array(view.spectrum.rows, dtype=float)
    assert view.spectrum.columns == ("place", "A", "B", "B − A")
    for column, expected in enumerate(spectra, 1):
        assert rows[:, column] == pytest.approx(expected, rel=1e-5, abs=1e-7 * expected[0])


def test_the_histogram_has_64_common_bins_that_hold_every_element():
    a, b = RNG.normal(size=(40, 50)), 2 * RNG.normal(size=(40, 50))
    table = compare({"w": a}, {"w": b}).tensor("w").histogram
    low, high, counts_a, counts_b = np.array(table.rows).T
    assert len(table) == 64
    assert low[0] == min(a.min(), b.min())
    assert high[-1] == max(a.max(), b.max())
    edges = np.append(low, high[-1])
    assert low[1:] == pytest.approx(high[:-1])
    assert counts_a.tolist() == np.histogram(a, edges)[0].tolist()
    assert counts_b.tolist() == np.histogram(b, edges)[0].tolist()


def test_a_rank_that_was_planted_is_found():
    a = RNG.normal(size=(64, 48))
    values = values_of(a, a + RNG.normal(size=(64, 3)) @ RNG.normal(size=(3, 48)))
    assert known(values["update_rank"]) == 3


def test_large_matrices_are_sketched_and_larger_ones_refused(monkeypatch):
    a = RNG.normal(size=(90, 80)) / np.arange(1, 81) ** 2
    monkeypatch.setattr(tensor_spectra, "BLOCK_SIDE", 8)
    monkeypatch.setattr(tensor_spectra, "WHOLE_SIDE", 8)
    view = compare({"w": a}, {"w": a}).tensor("w")
    exact = np.linalg.svd(a, compute_uv=False)
    assert view.values["stable_rank"].source == "the 64 leading singular values"
    assert known(view.values["stable_rank"])[0] == pytest.approx((exact**2).sum() / exact[0] ** 2, rel=1e-3)
    assert "never overstates" in view.spectrum.table.note
    monkeypatch.setattr(tensor_spectra, "HELD_ELEMENTS", 100)
    view = compare({"w": a}, {"w": a}).tensor("w")
    assert (view.values["stable_rank"].reason, view.values["stable_rank"].detail) == ("TOO_LARGE", "grid=90x80")
    assert view.spectrum is None
    assert "spectrum" not in view.charts


def test_what_cannot_be_known_says_why():
    reasons = {key: value.reason for key, value in values_of(RNG.normal(size=60), RNG.normal(size=60)).items()}
    assert (reasons["psi"], reasons["stable_rank"], reasons["update_rank"]) == ("TOO_SMALL",) * 3
    assert reasons["mean"] is None
    nothing = values_of(np.full((20, 20), np.nan), np.ones((20, 20)))
    assert known(nothing["mean"]) == (None, 1.0)
    assert nothing["relative_change"].reason == "ALL_NONFINITE"
    assert known(nothing["nan"]) == (400, 0)
    zero = values_of(np.zeros((20, 20)), np.ones((20, 20)))
    assert known(zero["relative_change"]) == np.inf
    assert zero["cosine"].reason == zero["stable_rank"].reason == "ZERO_REFERENCE"
    same = values_of(np.eye(30), np.eye(30))
    assert known(same["relative_change"]) == 0
    assert same["update_rank"].reason == "TOO_SMALL"


def test_added_removed_and_reshaped_tensors():
    both = {"w": RNG.normal(size=(30, 40))}
    a = {**both, "old": RNG.normal(size=(20, 20)), "r": RNG.normal(size=(20, 30, 2))}
    b = {**both, "new": RNG.normal(size=(20, 20)), "r": RNG.normal(size=(20, 31, 2))}
    found = compare(a, b)
    new, old, reshaped = (found.tensor(name) for name in ("new", "old", "r"))
    assert (known(new.values["status"]), known(old.values["status"])) == ("added", "removed")
    assert known(new.values["mean"]) == pytest.approx(b["new"].mean())
    assert (new.values["relative_change"].reason, new.values["relative_change"].detail) == (
        "NO_COMMON", "tensor=only in B",
    )  # fmt: skip
    assert new.a is None
    assert np.array_equal(new.b, b["new"])
    assert new.histogram.columns == ("lower edge", "upper edge", "B")
    assert set(new.charts) == {"distribution", "spectrum"}
    assert known(reshaped.values["shape"]) == ([20, 30, 2], [20, 31, 2])
    assert reshaped.values["relative_change"].reason == "SHAPE_MISMATCH"
    assert reshaped.histogram is None
    assert "There is no histogram: A and B are not compared by value." in reshaped.to_text()


@pytest.mark.parametrize("name", ["nan and inf in B", "hostile names", "quantized", "fp16", "0-d only", "retyped"])
def test_every_tensor_can_be_shown(name):
    found = Comparison(pair_called(name), request_of((), {}))
    for tensor in found.tensors[:12]:
        view = found.tensor(tensor)
        for text in (view.to_text(), view.to_html(), view.to_markdown()):
            assert "\x1b" not in text
            assert "\u202e" not in text
        assert all((value.reason is None) == value.is_known for value in view.values.values())
        assert view.values["status"].value == next(row.status for row in found.report.tensors if row.name == tensor)


def test_every_number_is_shown_once():
    view = Comparison(pair_called("moved"), request_of((), {})).tensor(UP)
    (section,) = view.document().sections
    shown = [fact.value for block in section.blocks if isinstance(block, Facts) for fact in block.facts]
    assert shown == list(view.values.values())
    # No table is so long that a notebook folds it.
    assert "<details" not in view.to_html()


def test_numbers_are_those_of_the_report():
    found = Comparison(pair_called("moved"), request_of((), {}))
    for row in json.loads(found.to_json())["tensors"]:
        values = found.tensor(row["name"]).values
        for key in ("relative_change", "cosine", "psi"):
            number = row["numbers"][key]
            assert values[key].value == (None if number is None else pytest.approx(number, rel=1e-9))


def test_only_this_tensor_is_read(tmp_path, monkeypatch):
    state = {name: values.astype("<f4") for name, values in network().items()}
    for side, arrays in (("a", state), ("b", noised(state, 0.1))):
        write_safetensors(tmp_path / f"{side}.safetensors", {name: ("F32", array) for name, array in arrays.items()})
    reads = []
    monkeypatch.setattr(StoredFile, "read", _counted(StoredFile.read, reads))
    found = compare(tmp_path / "a.safetensors", tmp_path / "b.safetensors", architecture_comparison=True)
    assert not found.report.tensors
    reads.clear()
    view = found.tensor(UP)
    assert sum(reads) == 0
    assert view.values["changed"].value == state[UP].size
    view.to_text()
    # The pass, the spectra and the rank of the update read it anew.
    assert state[UP].nbytes <= max(reads) <= sum(reads) <= 16 * state[UP].nbytes
    assert sum(reads) < sum(values.nbytes for values in state.values())


def _counted(read, reads):
    def counted(self, offset, count):
        reads.append(count)
        return read(self, offset, count)

    return counted


def test_a_scan_is_not_repeated(monkeypatch):
    found = Comparison(pair_called("moved"), request_of((), {}))
    monkeypatch.setattr("diffai_jupyter.scan.passes._scan", lambda pair: pytest.fail("scanned again"))
    assert found.tensor(UP).values["mean"].is_known


def test_names_of_both_sides_find_it():
    found = Comparison(pair_called("renamed"), request_of((), {}))
    other = UP.replace("model.layers", "transformer.h")
    assert found.tensor(UP).name == found.tensor(other).name
    assert UP in found.tensors


def test_a_name_that_is_not_there_gets_close_ones():
    found = Comparison(pair_called("moved"), request_of((), {}))
    with pytest.raises(ArgumentError, match=r"Names that hold it: model\.layers\.0\.mlp\.up_proj\.weight, "):
        found.tensor("up_proj")
    with pytest.raises(ArgumentError, match=r"no tensor 'model\.layer\.1.*Did you mean 'model\.layers\.1"):
        found.tensor(UP.replace("layers", "layer"))
    left = compare({"w": np.ones(3), "v": np.ones(3)}, {"w": np.ones(3), "v": np.ones(3)}, ignore_keys_regex="v")
    with pytest.raises(ArgumentError, match="'v' was left out by --ignore-keys-regex"):
        left.tensor("v")


def test_figures_of_a_tensor():
    view = Comparison(pair_called("moved"), request_of((), {})).tensor(UP)
    figure = view.figure("spectrum")
    assert figure.axes[0].get_title(loc="left") == "Singular values before and after"
    assert len(figure.axes[0].lines) == 3
    with pytest.raises(ArgumentError, match=r"no chart 'x'. It has: distribution, spectrum."):
        view.figure("x")


def test_values_become_a_data_frame():
    pytest.importorskip("pandas")
    view = Comparison(pair_called("moved"), request_of((), {})).tensor(UP)
    frame = view.to_pandas().set_index("key")
    assert list(frame.index) == list(view.values)
    assert frame.at["mean", "value"] == view.values["mean"].value[1]
    assert frame.at["mean", "value_a"] == view.values["mean"].value[0]


def test_arrays_are_those_of_the_files():
    state = network()
    found = Comparison(pair_from((state, noised(state, 0.1))), request_of((), {}))
    view = found.tensor(UP)
    assert np.array_equal(view.a, state[UP])
    assert view.b.shape == state[UP].shape
    found.pair.run.matrix_bytes = 8
    with pytest.raises(ArgumentError, match=r"is too large to be read whole \(shape=64x48\)"):
        _ = found.tensor(UP).a
