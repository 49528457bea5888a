"""Measure, print the tables, and write them into docs/benchmarks.md: `python tests/benchmarks [TOPIC ...]`."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

# The folder of this file would hide modules behind its own; what is imported is the package in it.
sys.path[0] = str(Path(__file__).resolve().parents[1])
sys.path.insert(1, str(Path(__file__).resolve().parents[2]))

from benchmarks import cold, end_to_end, kernel, memory, scan, tools  # noqa: E402
from benchmarks.choices import Choices, choices_of, parser_of  # noqa: E402
from benchmarks.machine import described  # noqa: E402
from benchmarks.page import PAGE, put  # noqa: E402

TOPICS = {"scan": scan, "cold": cold, "kernel": kernel, "tools": tools, "end-to-end": end_to_end, "memory": memory}


def main() -> None:
    """Measure each topic that is asked for; each is written as soon as it is there."""
    parser = parser_of(__doc__ or "", list(TOPICS))
    asked = parser.parse_args()
    topics = asked.topics or list(TOPICS)
    if unknown := [topic for topic in topics if topic not in TOPICS]:
        parser.error(f"no such topic: {', '.join(unknown)} (there are {', '.join(TOPICS)})")
    for topic in topics:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
            choices = choices_of(asked, Path(folder))
            made = f"{settings(choices)}\n\n{TOPICS[topic].measure(choices, tell)}"
        tell(f"{topic}: {time.perf_counter() - start:.0f} s")
        print(f"\n## {topic}\n\n{made}\n", flush=True)
        if not asked.only_print:
            PAGE.write_text(put(PAGE.read_text(encoding="utf-8"), topic, made), encoding="utf-8", newline="\n")


def settings(choices: Choices) -> str:
    """Return with what, and on what, something was measured."""
    return f"{described()} Checkpoints of {choices.mib} MiB in BF16, {choices.runs} runs."


def tell(what: str) -> None:
    """Say what is going on."""
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
