"""Run other programs that compare weights on seven ordinary pairs, and write what they say into docs/comparison.md.

They are asked in their own words and with their own defaults; what is quoted is a line of their output, as it is.
To run it, install them beside the project, which needs none of them:

    pip install . torch transformers modeldelta==0.4.4 weightscope==0.4.3 diffai-python==0.5.2 deepdiff==9.1.0
    python tests/benchmarks/peers.py
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "comparison.md"
HEADING = "## What each said\n"
sys.path.insert(0, str(ROOT / "docs" / "site"))
from copies import write_four_bit_copy  # noqa: E402

State = dict[str, torch.Tensor]
BASE = ROOT / "docs" / "site" / "checkpoints" / "step-600"
FILE = "model.safetensors"
TOUCHED = "model.layers.1.self_attn.q_proj.weight"
LONGEST = 220
PATIENCE = 300

ASSERT_CLOSE = """
import sys
from safetensors.torch import load_file
from torch.testing import assert_close
assert_close(load_file(sys.argv[1]), load_file(sys.argv[2]), rtol=0, atol=0)
"""
DEEPDIFF = """
import sys
from deepdiff import DeepDiff
from safetensors.torch import load_file
a, b = ({name: t.float().numpy() for name, t in load_file(path).items()} for path in sys.argv[1:])
found = DeepDiff(a, b)
print("; ".join(f"{kind}: {len(items)}" for kind, items in found.items()) or "{}")
"""
DIFFAI_PYTHON = """
import sys
import diffai
found = diffai.diff_paths(*sys.argv[1:])
print(f"{len(found)} differences", found[:1] or "")
"""


@dataclass(frozen=True, slots=True)
class Tool:
    """One of them: how it is called, which line of its output is quoted, which package it comes from.

    The exit code of a library says nothing; that of a failed assertion does.
    """

    name: str
    package: str
    call: tuple[str, ...]
    quoted: str
    takes_folder: bool
    is_program: bool = True


TOOLS = (
    Tool("diffai-jupyter", "diffai-jupyter", (sys.executable, "-m", "diffai_jupyter"), r"\A.+\n\n((?:.+\n)+)", True),
    Tool("cmp", "", ("cmp",), r"(.+differ.*|.+No such file.*)", False),
    Tool("assert_close", "torch", (sys.executable, "-c", ASSERT_CLOSE), r"(?s)AssertionError: (.+)", False),
    Tool("DeepDiff", "deepdiff", (sys.executable, "-c", DEEPDIFF), r"(.+)", False, False),
    Tool("diffai-python", "diffai-python", (sys.executable, "-c", DIFFAI_PYTHON), r"(.+)", False, False),
    Tool("modeldelta", "modeldelta", ("modeldelta",), r"(\S+ was .+|\w*Error: .+)", True),
    Tool("weightscope", "weightscope", ("weightscope", "diff"), r"> (.+\n> \*\(classification.+)", True),
)


def write_pairs(folder: Path) -> dict[str, tuple[str, str]]:
    """Write A and seven B, and return what is true of each B, by its name with its title."""
    state = load_file(BASE / FILE)
    _write(folder / "a", {FILE: state})
    _write(folder / "identical", {FILE: state})
    _write(folder / "cast", {FILE: {name: tensor.float() for name, tensor in state.items()}})
    _write(folder / "nan", {FILE: state | {TOUCHED: _with_nan(state[TOUCHED])}})
    _write(folder / "renamed", {FILE: {f"module.{name}": tensor for name, tensor in state.items()}})
    names = sorted(state)
    halves = {f"model-0000{at}-of-00002.safetensors": part for at, part in ((1, names[:14]), (2, names[14:]))}
    _write(folder / "sharded", {file: {name: state[name] for name in part} for file, part in halves.items()})
    index = {"metadata": {}, "weight_map": {name: file for file, part in halves.items() for name in part}}
    (folder / "sharded" / f"{FILE}.index.json").write_text(json.dumps(index))
    _write(folder / "small", {FILE: state | {TOUCHED: _with_update(state[TOUCHED])}})
    write_four_bit_copy(BASE, folder / "quantized")
    return {
        "identical": ("An identical copy", "Nothing differs."),
        "cast": ("The same values in f32", "A is bf16. Every value is equal; only the dtype differs."),
        "nan": ("One NaN", "One element of one matrix became NaN; nothing else differs."),
        "renamed": ("Renamed", "Every name got the prefix `module.`; every value is equal."),
        "sharded": ("In two files", "The same tensors in two shards with an index; every value is equal."),
        "small": ("A small update in bf16", "One of 29 tensors got an update of rank 4, 5 % of its norm."),
        "quantized": ("A quantized copy", "21 matrices were rounded to 4 bits and packed; nothing was trained."),
    }


def _write(folder: Path, files: Mapping[str, State]) -> None:
    folder.mkdir(parents=True)
    for name, state in files.items():
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / name, {"format": "pt"})
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(BASE / name, folder)


def _with_nan(tensor: torch.Tensor) -> torch.Tensor:
    changed = tensor.clone()
    changed[3, 5] = float("nan")
    return changed


def _with_update(tensor: torch.Tensor) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, 4, generator=draw) for size in tensor.shape)
    update = left @ right.T
    whole = tensor.float()
    return (whole + update * (0.05 * whole.norm() / update.norm())).to(tensor.dtype)


def run(tool: Tool, other: str, folder: Path) -> tuple[str, str]:
    """Return the exit code and the line that is quoted."""
    if not tool.takes_folder and not (folder / other / FILE).exists():
        return "", "not run: it compares two files"
    sides = [f"./{side}" if tool.takes_folder else f"./{side}/{FILE}" for side in ("a", other)]
    there = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        [*tool.call, *sides],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PATH": there, "COLUMNS": "400"},
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
        check=False,
    )
    found = re.search(tool.quoted, done.stdout) or re.search(tool.quoted, done.stderr)
    said = found[1] if found else (done.stdout or (done.stderr if done.returncode else "")).strip()[-LONGEST:]
    line = " ".join(re.sub(r"^> ", "", said, flags=re.MULTILINE).replace("**", "").split()) or "(no output)"
    return str(done.returncode) if tool.is_program else "", line if len(line) <= LONGEST else f"{line[:LONGEST]} …"


def tables(folder: Path, tell: Callable[[str], None]) -> str:
    """Return a table for each pair."""
    parts = []
    for other, (title, truth) in write_pairs(folder).items():
        rows = []
        for tool in TOOLS:
            tell(f"{other}: {tool.name}")
            code, line = run(tool, other, folder)
            rows.append(f"| {tool.name} | {code} | {_cell(line)} |")
        parts.append("\n".join([f"### {title}\n", f"{truth}\n", "| tool | exit | says |", "|---|---:|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    escaped = re.sub(r"([\\`*_\[\]<>|~])", r"\\\1", text)
    return escaped.replace("$", "\\$")


def versions() -> str:
    """Return the versions that were run."""
    listed = [f"{tool.package} {importlib.metadata.version(tool.package)}" for tool in TOOLS if tool.package]
    return f"Run with {', '.join(listed)}; Python {sys.version_info.major}.{sys.version_info.minor}.\n"


def main() -> None:
    """Run everything, and write the page anew from its heading on."""
    with tempfile.TemporaryDirectory() as folder:
        made = tables(Path(folder), lambda what: print(what, file=sys.stderr))
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(f"{text[: text.index(HEADING)]}{HEADING}\n{versions()}\n{made}", encoding="utf-8")


if __name__ == "__main__":
    main()
