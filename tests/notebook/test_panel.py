from __future__ import annotations

import base64
import importlib

import ipywidgets as widgets
import numpy as np
import pytest
from builders import transformer
from panels import Displays, Loop
from safetensors.numpy import save_file

import diffai_jupyter
from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.analyses.shown.pictures import change_against_size
from diffai_jupyter.comparison import Comparison
from diffai_jupyter.notebook.panel import made_panel, panel
from diffai_jupyter.notebook.panel import recent as recent_module
from diffai_jupyter.notebook.panel.choice import COMBINATIONS
from diffai_jupyter.notebook.panel.fixed import FixedPanel
from diffai_jupyter.notebook.panel.live import Panel
from diffai_jupyter.notebook.panel.plain import WITHOUT_KERNEL
from diffai_jupyter.notebook.panel.session import Session
from diffai_jupyter.notebook.panel.sources import offered
from diffai_jupyter.notebook.panel.view import MOST_CHARTS
from diffai_jupyter.options import ORDERS
from diffai_jupyter.render import charts
from diffai_jupyter.report.request import request_of


@pytest.fixture(scope="module")
def states():
    before = transformer()
    draw = np.random.default_rng(5)
    after = {name: (values + draw.normal(0, 0.01, values.shape)).astype(np.float32) for name, values in before.items()}
    return before, after


@pytest.fixture
def files(states, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, state in zip(("a.safetensors", "b.safetensors"), states, strict=True):
        save_file(state, name)
    return "a.safetensors", "b.safetensors"


@pytest.fixture
def opened(files):
    """Returns a panel on both files that is on display, with its fake displays as `view`."""

    def make(*flags, loop=None, texts=files, variables=None, **options):
        base = request_of(flags, options)
        session = Session(base, lambda text: (text, ""))
        made = Panel(base, session, texts, {} if variables is None else variables, loop, Displays())
        made.view = made._view
        made.view.create()
        return made

    return make


@pytest.fixture
def drawn(monkeypatch):
    """The charts that are drawn, by key; the drawing itself is left out."""
    keys = []

    def png(chart):
        keys.append(chart.key)
        return charts.Png(chart.key.encode(), 4, 3, f"what {chart.key} shows")

    monkeypatch.setattr(charts, "png", png)
    return keys


def press(button):
    button.click()


def every_control(box):
    for child in box.children:
        yield child
        if hasattr(child, "children"):
            yield from every_control(child)


def test_a_run_shows_the_comparison(opened):
    made = opened("change-summary")
    assert made.comparison is None
    press(made.controls.run)
    assert "change_summary: layers_changed=" in made.view.text
    assert isinstance(made.comparison, Comparison)
    assert made.controls.status.value == "Both checkpoints read. Shown: 1 analysis."


def test_ticking_updates_the_view_and_says_what_was_computed(opened):
    made = opened()
    press(made.controls.run)
    made.controls.boxes["anomaly-detection"].value = True
    assert "anomaly_detection: type=" in made.view.text
    assert made.controls.status.value.startswith("1 analysis run (anomaly-detection), nothing scanned")
    made.controls.boxes["anomaly-detection"].value = False
    assert "anomaly_detection: type=" not in made.view.text
    assert made.controls.status.value == "No analysis run, nothing scanned. Shown: 0 analyses."


def test_nothing_is_read_before_run_is_pressed(opened):
    made = opened()
    made.controls.boxes["change-summary"].value = True
    assert made.comparison is None
    assert made.view.handles[0].updates == 0


@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_combination_ticks_its_analyses_in_one_step(opened, name):
    made = opened("embedding-analysis")
    press(made.controls.run)
    before = made.view.handles[0].updates
    press(made.controls.combinations[name])
    assert made.controls.flags == set(COMBINATIONS[name])
    assert made.view.handles[0].updates == before + 1


def test_all_and_none(opened):
    made = opened()
    press(made.controls.every)
    assert made.controls.flags == set(all_analyses())
    press(made.controls.none)
    assert made.controls.flags == set()


def test_a_filter_is_of_the_view_and_both_say_so(opened):
    made = opened()
    press(made.controls.run)
    made.controls.layer.value = "1"
    made.controls.pattern.value = "mlp"
    lines = made.view.text
    assert "model.layers.1.mlp.up_proj.weight" in lines
    assert "model.layers.0" not in lines
    assert "Listed and drawn: 3 of 30 tensors (layer 1, name matches mlp)." in " ".join(lines.split())
    assert made.controls.status.value.endswith("Listed and drawn: layer 1, name matches mlp.")
    made.controls.pattern.value = "mlp["
    assert "is no regular expression" in made.controls.status.value
    assert made.view.text == lines


def test_the_order_and_the_number_of_tensors_can_be_chosen(opened, states):
    made = opened()
    press(made.controls.run)
    made.controls.top.value = 1
    first = {}
    for key in ("abs", "rel"):
        made.controls.sort_by.value = key
        first[key] = next(line.split()[1] for line in made.view.text.splitlines() if line.startswith("~ "))
    a, b = states
    norms = {name: np.linalg.norm((b[name] - a[name]).astype(np.float64)) for name in a}
    shares = {name: norms[name] / np.linalg.norm(a[name].astype(np.float64)) for name in a}
    assert first == {"abs": f"{max(norms, key=norms.get)}:", "rel": f"{max(shares, key=shares.get)}:"}
    assert {value for _, value in made.controls.sort_by.options} == set(ORDERS)


def test_a_limit_updates_the_view(opened):
    made = opened("anomaly-detection")
    press(made.controls.run)
    assert "type=none" in made.view.text
    _, field = made.controls.limits._fields["psi"]
    field.value = 0.0
    assert "type=weight_distribution_shift" in made.view.text
    press(made.controls.limits._reset)
    assert field.value == 0.25
    assert "type=none" in made.view.text


def test_only_the_limits_of_ticked_analyses_are_offered(opened):
    made = opened("anomaly-detection")
    limits = made.controls.limits
    assert [flag for _, flag in limits._of.options] == ["anomaly-detection"]
    fields = dict(limits._fields)
    for flag in ("alert-on-degradation", "change-summary"):
        made.controls.boxes[flag].value = True
    # What is being edited stays: the same controls, not others like them.
    assert limits._of.value == "anomaly-detection"
    assert limits._fields == fields
    press(made.controls.none)
    assert limits._of.options == ()
    assert limits._reset.disabled
    press(made.controls.combinations["Production deployment"])
    assert {flag for _, flag in limits._of.options} == set(COMBINATIONS["Production deployment"])
    limits._of.value = "risk-assessment"
    limits._part.value = "DTYPE"
    declared = {t.key: t for t in all_analyses()["risk-assessment"].thresholds if t.key.startswith("DTYPE.")}
    assert set(limits._fields) == set(declared)
    for name, (_, field) in limits._fields.items():
        threshold = declared[name]
        if threshold.words:
            assert [word for word, _ in field.options] == list(threshold.words)
        else:
            assert (field.min, field.max, field.value) == (threshold.low, threshold.high, threshold.default)


def test_a_reset_goes_to_the_declared_default_also_where_a_flag_moved_it(opened):
    made = opened("anomaly-detection", set={"psi": 0.5})
    _, field = made.controls.limits._fields["psi"]
    assert field.value == 0.5
    press(made.controls.limits._reset_all)
    assert field.value == 0.25
    assert made.controls.choice.limits["psi"] == 0.25


def test_charts_are_drawn_one_display_each_and_drawn_once(opened, drawn):
    made = opened()
    press(made.controls.run)
    assert made.view.pictures == []
    assert made.controls.charts.disabled
    made.controls.boxes["include-charts"].value = True
    shown = [key for _, key in made.controls.charts.options][:MOST_CHARTS]
    assert list(made.controls.charts.value) == shown == drawn
    assert len(made.view.pictures) == len(shown)
    made.controls.charts.value = shown[:2]
    assert len(made.view.pictures) == 2
    made.controls.boxes["include-charts"].value = False
    assert made.view.pictures == []
    made.controls.boxes["include-charts"].value = True
    assert len(made.view.pictures) == 2
    assert drawn == shown


def test_a_chart_is_a_picture_with_its_size_and_sentence(opened):
    made = opened()
    press(made.controls.run)
    chart = change_against_size(made.comparison.pair)
    made.view.draw(chart)
    made.view.place({chart.key: chart})
    (data,) = made.view.pictures
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    said = made.view.handles[1].metadata["image/png"]
    assert said["alt"] == data["text/plain"]
    assert min(said["width"], said["height"]) > 100


@pytest.mark.usefixtures("drawn")
def test_the_displays_are_made_once(opened):
    made = opened("include-charts")
    press(made.controls.run)
    press(made.controls.combinations["Quantization validation"])
    made.controls.boxes["include-charts"].value = True
    assert len(made.view.handles) == 1 + MOST_CHARTS <= 9


def test_the_same_choice_gives_the_same_bytes(opened):
    first, second = opened("change-summary"), opened("change-summary")
    for made in (first, second):
        press(made.controls.run)
    assert [h.data for h in first.view.handles] == [h.data for h in second.view.handles]


@pytest.mark.parametrize(
    ("form", "ending", "holds"),
    [("Markdown", ".md", "# diffai"), ("HTML page", ".html", "<!DOCTYPE html>"), ("JSON", ".json", '"schema"'),
     ("CSV", ".csv", "model.layers.0.mlp.up_proj.weight")],
)  # fmt: skip
def test_a_file_is_written_only_when_a_button_is_pressed(opened, tmp_path, form, ending, holds):
    made = opened()
    press(made.controls.exports[form])
    assert made.controls.status.value.startswith("Nothing is compared yet")
    press(made.controls.run)
    before = set(tmp_path.rglob("*"))
    made.controls.path.value = "out/found.md"
    assert set(tmp_path.rglob("*")) == before
    press(made.controls.exports[form])
    path = tmp_path / "out" / f"found{ending}"
    assert made.controls.path.value == f"out/found{ending}"
    assert holds in path.read_text(encoding="utf-8")
    assert made.controls.status.value.startswith(f"Written: {path} (")


def test_a_file_that_the_panel_did_not_write_is_replaced_only_when_asked_twice(opened, tmp_path):
    made = opened()
    press(made.controls.run)
    mine = tmp_path / "mine.json"
    mine.write_text("mine", encoding="utf-8")
    made.controls.path.value = "mine.json"
    press(made.controls.exports["JSON"])
    assert "exists. Press JSON again" in made.controls.status.value
    assert mine.read_text(encoding="utf-8") == "mine"
    press(made.controls.exports["JSON"])
    assert mine.read_text(encoding="utf-8").startswith("{")
    press(made.controls.exports["JSON"])
    assert made.controls.status.value.startswith("Written")


def test_an_export_holds_all_tensors_whatever_is_listed(opened, tmp_path, states):
    made = opened()
    press(made.controls.run)
    made.controls.role.value = "q"
    press(made.controls.exports["CSV"])
    text = (tmp_path / "diffai-report.csv").read_text(encoding="utf-8")
    assert all(name in text for name in states[0])


def test_a_path_that_cannot_be_written_is_said(opened, tmp_path):
    made = opened()
    press(made.controls.run)
    (tmp_path / "file").write_text("", encoding="utf-8")
    made.controls.path.value = "file/found.json"
    press(made.controls.exports["JSON"])
    assert "Choose a path that can be written" in made.controls.status.value


@pytest.mark.usefixtures("drawn")
def test_every_control_has_a_label_and_none_holds_a_result(opened):
    made = opened("risk-assessment", "include-charts")
    press(made.controls.run)
    controls = list(every_control(made.controls.box))
    assert len({type(c).__name__ for c in controls}) > 8
    for control in controls:
        assert not isinstance(control, (widgets.Output, widgets.HTML, widgets.Image))
        if not isinstance(control, (widgets.Box, widgets.Label)):
            assert control.description
    boxes = {c.description for c in controls if isinstance(c, widgets.Checkbox)}
    assert len(boxes) == len(all_analyses()) + 1
    # An Accordion or a Tab is not reached by the keyboard.
    assert not [c for c in controls if isinstance(c, (widgets.Accordion, widgets.Tab))]


def test_parts_open_and_close(opened):
    made = opened()
    for name, button in made.controls.parts.items():
        assert button.value == (name == "Analyses")
    made.controls.parts["Limits"].value = True
    assert made.controls.limits.box.layout.display is None
    made.controls.parts["Limits"].value = False
    assert made.controls.limits.box.layout.display == "none"


def test_an_unknown_source_is_said_and_the_view_stays(opened):
    made = opened()
    press(made.controls.run)
    shown = made.view.text
    made.controls.sources[1].widget.value = "nowhere.safetensors"
    press(made.controls.run)
    assert "nowhere.safetensors" in made.controls.status.value
    assert made.view.text == shown


def test_the_variable_of_into_follows_the_view(opened):
    variables = {}
    made = opened(into="found", variables=variables)
    press(made.controls.run)
    first = variables["found"]
    made.controls.boxes["memory-analysis"].value = True
    assert first is not variables["found"] is made.comparison
    assert "memory-analysis" in variables["found"].report.results


def test_with_a_loop_the_newest_choice_wins_and_stop_stops(opened):
    loop = Loop()
    made = opened(loop=loop)
    status = made.controls.status
    press(made.controls.run)
    assert not made.controls.stop.disabled
    for flag in ("embedding-analysis", "similarity-matrix", "attention-analysis"):
        made.controls.boxes[flag].value = True
    made.controls.boxes["similarity-matrix"].value = False
    loop.run_until(lambda: not made._work.is_busy)
    press(made.controls.run)
    loop.run_until(lambda: status.value.endswith("Shown: 2 analyses."))
    assert set(made.comparison.report.results) == {"embedding-analysis", "attention-analysis"}
    made.controls.boxes["clustering-change"].value = True
    press(made.controls.stop)
    loop.run_until(lambda: not made._work.is_busy)
    assert made.controls.stop.disabled
    assert set(made.comparison.report.results) == {"embedding-analysis", "attention-analysis"}
    assert status.value.startswith("Stopped.")


def test_what_was_opened_is_offered_again(opened, monkeypatch, files):
    monkeypatch.setattr(recent_module.RECENT, "sources", ())
    made = opened()
    press(made.controls.run)
    assert recent_module.RECENT.sources == files[::-1]
    assert made.controls.sources[0].widget.options[:2] == files[::-1]


def test_paths_and_variables_that_can_be_checkpoints_are_offered(tmp_path):
    for name in ("x.safetensors", "y.txt"):
        (tmp_path / name).write_text("", encoding="utf-8")
    (tmp_path / "runs").mkdir()
    variables = {"state": {"w": np.zeros(2)}, "_hidden": {"w": np.zeros(2)}, "number": 3, "names": {"a": 1}}
    found = offered(f"{tmp_path}/", variables, recent_module.Recent())
    assert found == ("state", f"{tmp_path}/runs/", f"{tmp_path}/x.safetensors")


def test_the_function_makes_a_panel_that_shows_itself(shell, outputs, files):
    shell.user_ns["made"] = made = panel(*files, change_summary=True, top=3)
    assert made.controls.top.value == 3
    shell.run_cell("made")
    controls, tables, *others = outputs()
    assert controls["text/plain"] == WITHOUT_KERNEL
    assert "application/vnd.jupyter.widget-view+json" in controls
    assert "change_summary: " in tables["text/plain"]
    assert {bundle["text/plain"] for bundle in others} == {""}
    assert not [bundle for bundle in (tables, *others) if "application/vnd.jupyter.widget-view+json" in bundle]
    assert diffai_jupyter.panel is panel


def test_it_takes_over_the_display_of_the_progress(shell, outputs, files, monkeypatch):
    home = importlib.import_module("diffai_jupyter.notebook.panel")
    real = home.run_comparison

    def slow(a, b, request, *, tick):
        tick._next = 0.0
        tick("scan", 1, 2)
        return real(a, b, request, tick=None)

    monkeypatch.setattr(home, "run_comparison", slow)
    shell.user_ns.update(panel=panel, files=files)
    shell.run_cell("panel(*files)", store_history=True)
    assert outputs()[0]["text/plain"] == WITHOUT_KERNEL
    assert not [bundle for bundle in outputs() if bundle["text/plain"].startswith("diffai: compared.")]
    shell.run_cell("later = panel(*files)", store_history=True)
    shell.run_cell("later", store_history=True)
    lines = [bundle["text/plain"] for bundle in outputs()]
    assert lines.count("diffai: compared.") == 1
    assert lines.count(WITHOUT_KERNEL) == 2


def test_a_terminal_gets_one_line_and_the_result(files):
    class TerminalInteractiveShell:
        pass

    made = made_panel(TerminalInteractiveShell(), request_of((), {}), (None, None), {})
    assert repr(made) == "The controls of diffai need a notebook. The result is static."


def test_live_objects_stay_what_they_are(shell, states):
    made = panel(*states)
    assert made.controls.texts == ("dict given as A", "dict given as B")
    press(made.controls.run)
    assert made.controls.status.value == "Both checkpoints read. Shown: 0 analyses."


def test_a_variable_is_looked_up_when_it_is_compared(shell, states):
    shell.user_ns.update(x=states[0], y=states[0])
    made = made_panel(shell, request_of((), {}), ((states[0], "x"), (states[0], "y")), shell.user_ns)
    shell.user_ns["y"] = states[1]
    press(made.controls.run)
    assert not made.comparison.report.change.is_equal


def test_without_widgets_it_is_one_line_and_the_static_result(shell, outputs, files, monkeypatch):
    monkeypatch.setenv("DIFFAI_STATIC", "1")
    made = panel(*files)
    assert isinstance(made, FixedPanel)
    shell.user_ns["made"] = made
    shell.run_cell("made")
    line, *result = outputs()
    assert line["text/plain"] == "The controls of diffai are off (DIFFAI_STATIC=1). The result is static."
    assert result[0]["text/plain"].startswith("diffai: ")
    assert "DIFFAI_STATIC" in repr(made)
    assert panel().comparison is None


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install ipywidgets" in panel().why


def test_folders_of_several_are_static(tmp_path):
    for side in "ab":
        for name in ("one", "two"):
            (tmp_path / side / name).mkdir(parents=True)
            save_file({"w": np.ones(3, np.float32)}, tmp_path / side / name / "model.safetensors")
    made = panel(str(tmp_path / "a"), str(tmp_path / "b"))
    assert made.why.startswith("The panel compares two checkpoints")
