"""The demo: its training against independent arithmetic, its checkpoints, and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import deserialize
from safetensors.numpy import load_file
from sklearn.metrics import accuracy_score, log_loss

from diffai_jupyter.cli.demo.checkpoints import SIZES, WHOLE_PLAN
from diffai_jupyter.cli.demo.network import loss_and_gradient, start
from diffai_jupyter.cli.demo.training import Plan, load_digits, train


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run ``diffai demo`` as a user would, once; return its folder and what it printed."""
    home = tmp_path_factory.mktemp("demo")
    done = run_demo(home, "made")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return home / "made", done.stdout


def run_demo(home: Path, folder: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "diffai_jupyter", "demo", folder]
    return subprocess.run(
        command, cwd=home, env=environment, capture_output=True, encoding="utf-8", check=False, timeout=240
    )


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights(folder: Path, name: str) -> dict[str, Any]:
    return dict(load_file(folder / "checkpoints" / name / "model.safetensors"))


def state(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def probabilities(weights: dict[str, Any], images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Run the network in float64, written without looking at the demo's own arithmetic."""
    out = images.astype(np.float64)
    for layer in range(3):
        out = np.einsum("bi,oi->bo", out, weights[f"layers.{layer}.weight"], dtype=np.float64)
        out = out + weights[f"layers.{layer}.bias"]
        out = np.where(out > 0, out, 0) if layer < 2 else out
    power = np.exp(out - out.max(axis=1)[:, None])
    return power / power.sum(axis=1)[:, None]


class TestArithmetic:
    def test_the_gradient_is_the_slope_of_the_loss(self) -> None:
        random = np.random.default_rng(3)
        parameters: Any = {name: value.astype(np.float64) for name, value in start((5, 4, 3), seed=7).items()}
        images: Any = random.standard_normal((6, 5))
        labels = random.integers(0, 3, 6)
        _, gradient = loss_and_gradient(parameters, images, labels)
        for name, value in parameters.items():
            for where in np.ndindex(value.shape):
                ends = []
                for step in (1e-6, -1e-6):
                    moved = {**parameters, name: value.copy()}
                    moved[name][where] += step
                    ends.append(loss_and_gradient(moved, images, labels)[0])
                assert gradient[name][where] == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-8)

    def test_the_rate_rises_to_its_peak_and_falls_to_zero(self) -> None:
        plan = Plan(steps=100, warmup=20, peak=0.5, seed=0)
        rates = [plan.rate(step) for step in range(1, 101)]
        assert rates[9] == pytest.approx(0.25)
        assert rates[19] == max(rates) == 0.5
        assert rates[59] == pytest.approx(0.25)
        assert rates[99] == pytest.approx(0, abs=1e-15)

    def test_training_twice_gives_the_same_bits(self) -> None:
        plan = Plan(steps=40, warmup=5, peak=0.05, seed=1)
        (one,), (two,) = (train(start((64, 8, 10), 0), load_digits(), plan, keep=(40,)) for _ in range(2))
        assert one.log == two.log
        assert all(np.array_equal(one.parameters[name], two.parameters[name]) for name in one.parameters)

    @pytest.mark.torch
    def test_the_log_and_the_weights_are_those_of_torch(self) -> None:
        import torch

        digits = load_digits()
        layers = torch.nn.ModuleList(torch.nn.Linear(i, o) for i, o in pairwise(SIZES))
        for name, value in start(SIZES, seed=0).items():
            layers.get_parameter(name.removeprefix("layers.")).data = torch.from_numpy(value.copy())
        optimizer = torch.optim.SGD(layers.parameters(), lr=1.0, momentum=0.9)
        order = np.random.default_rng(WHOLE_PLAN.seed).permutation(1200)
        losses, norm = [], 0.0
        for step in range(1, 21):
            # torch's momentum leaves the rate out of the velocity, so it may change from step to step.
            optimizer.param_groups[0]["lr"] = WHOLE_PLAN.rate(step)
            batch = order[(step - 1) * 32 : step * 32]
            out = torch.from_numpy(digits.images[batch])
            for index, layer in enumerate(layers):
                out = layer(out).relu() if index < 2 else layer(out)
            loss = torch.nn.functional.cross_entropy(out, torch.from_numpy(digits.labels[batch]))
            optimizer.zero_grad()
            loss.backward()
            norm = float(torch.nn.utils.clip_grad_norm_(layers.parameters(), float("inf")))
            optimizer.step()
            losses.append(float(loss.detach()))
        (moment,) = train(start(SIZES, seed=0), digits, WHOLE_PLAN, keep=(20,))
        assert [entry["step"] for entry in moment.log] == [10, 20]
        assert moment.log[0]["loss"] == pytest.approx(np.mean(losses[:10]), rel=1e-5)
        assert moment.log[1]["loss"] == pytest.approx(np.mean(losses[10:]), rel=1e-5)
        assert moment.log[1]["grad_norm"] == pytest.approx(norm, rel=1e-4)
        for name, value in moment.parameters.items():
            expected = layers.get_parameter(name.removeprefix("layers.")).detach().numpy()
            np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)


class TestCheckpoints:
    @pytest.mark.parametrize("name", ["early", "late", "head-tuned"])
    def test_the_last_logged_evaluation_is_true(self, demo: tuple[Path, str], name: str) -> None:
        folder = demo[0] / "checkpoints" / name
        last = state(folder)["log_history"][-1]
        assert last["step"] == state(folder)["global_step"]
        digits = load_digits()
        images = digits.held_images.reshape(-1, 8, 8)
        if name == "head-tuned":
            images = np.pad(images, ((0, 0), (0, 0), (1, 0)))[:, :, :8]
        guess = probabilities(weights(demo[0], name), images.reshape(-1, 64))
        assert last["eval_loss"] == pytest.approx(log_loss(digits.held_labels, guess), rel=1e-4)
        assert last["eval_accuracy"] == accuracy_score(digits.held_labels, guess.argmax(axis=1))

    def test_early_is_on_the_way_to_late(self, demo: tuple[Path, str]) -> None:
        early, late = (state(demo[0] / "checkpoints" / name) for name in ("early", "late"))
        assert (early["global_step"], late["global_step"]) == (150, 900)
        assert late["log_history"][: len(early["log_history"])] == early["log_history"]
        first, last = (log[-2]["loss"] for log in (early["log_history"], late["log_history"]))
        assert last < first < late["log_history"][0]["loss"]

    def test_only_the_last_layer_of_the_tuned_one_moved(self, demo: tuple[Path, str]) -> None:
        late, tuned = (weights(demo[0], name) for name in ("late", "head-tuned"))
        moved = {name for name in late if not np.array_equal(late[name], tuned[name])}
        assert moved == {"layers.2.weight", "layers.2.bias"}

    def test_the_cast_is_the_nearest_bfloat16(self, demo: tuple[Path, str]) -> None:
        late = weights(demo[0], "late")
        stored = dict(deserialize((demo[0] / "checkpoints" / "late-bf16" / "model.safetensors").read_bytes()))
        assert stored.keys() == late.keys()
        for name, value in late.items():
            assert stored[name]["dtype"] == "BF16"
            assert tuple(stored[name]["shape"]) == value.shape
            assert bytes(stored[name]["data"]) == value.astype(ml_dtypes.bfloat16).tobytes()

    def test_the_damaged_one_differs_in_one_nan(self, demo: tuple[Path, str]) -> None:
        late, damaged = (weights(demo[0], name) for name in ("late", "late-damaged"))
        differing = [(name, *at) for name in late for at in np.argwhere(late[name] != damaged[name]).tolist()]
        assert differing == [("layers.1.weight", 17, 5)]
        assert np.isnan(damaged["layers.1.weight"][17, 5])


class TestWhatItLeaves:
    def test_it_says_where_everything_is(self, demo: tuple[Path, str]) -> None:
        folder, printed = demo
        for made in ("report.html", "report.md", "demo.ipynb"):
            assert (folder / made).stat().st_size > 0
            assert str(Path("made") / made) in printed
        assert "-m jupyter lab" in printed

    def test_the_page_stands_alone(self, demo: tuple[Path, str]) -> None:
        page = (demo[0] / "report.html").read_text(encoding="utf-8")
        assert "<html" in page
        assert "change_summary: " in page
        assert "<script" not in page
        assert "://" not in page

    def test_the_markdown_shows_its_charts(self, demo: tuple[Path, str]) -> None:
        text = (demo[0] / "report.md").read_text(encoding="utf-8")
        shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
        assert shown
        for target in shown:
            assert (demo[0] / target).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")

    @pytest.mark.slow
    def test_a_second_run_is_the_same_to_the_byte(self, demo: tuple[Path, str]) -> None:
        first = contents(demo[0])
        assert run_demo(demo[0].parent, "made").returncode == 0
        assert contents(demo[0]) == first

    def test_it_does_not_write_among_other_files(self, tmp_path: Path) -> None:
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "report.md").write_text("mine", encoding="utf-8")
        done = run_demo(tmp_path, "made")
        assert done.returncode == 2
        assert "already holds something else" in done.stderr
        assert [path.name for path in (tmp_path / "made").iterdir()] == ["report.md"]
