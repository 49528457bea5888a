"""The command ``diffai``."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from diffai_jupyter import __version__
from diffai_jupyter.arguments import NOTEBOOK_ONLY, Asked, Call, help_text, parse
from diffai_jupyter.cli.cache import run_cache
from diffai_jupyter.cli.clean import run_clean
from diffai_jupyter.errors import ArgumentError, DiffaiError
from diffai_jupyter.options import OPTIONS
from diffai_jupyter.render.progress import ProgressLine
from diffai_jupyter.report.configuration import configured
from diffai_jupyter.report.settings import settings_text
from diffai_jupyter.wording import show_name

EXIT_INTERRUPTED = 130
DEMO_FOLDER = "diffai-demo"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        Words behind the command; those of the process by default.

    Returns
    -------
    int
        Exit code: 0 equal, 1 different, 2 a wrong call or unreadable input, 3 a failed gate,
        130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # The output lines hold an arrow, and a name may hold bytes that are no text.
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        code, text = _run(sys.argv[1:] if argv is None else argv)
    except DiffaiError as error:
        print(f"diffai: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("diffai: interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED
    return _write(text, code)


def _run(words: Sequence[str]) -> tuple[int, str]:
    """Return the exit code and what to print."""
    if words and words[0] == "demo":
        return _run_demo(words[1:]), ""
    if words and words[0] == "clean":
        return (0, help_text()) if {"-h", "--help"} & set(words) else run_clean(words[1:])
    if words and words[0] == "cache":
        return (0, help_text()) if {"-h", "--help"} & set(words) else run_cache(words[1:])
    if words and words[0] == "config":
        words = _flags_of_config(words[1:])
    call = parse(words, configured())
    for key, instead in NOTEBOOK_ONLY.items():
        if call.request.settings[key]:
            msg = f"The flag --{OPTIONS[key].flag} works in a notebook only. {instead}"
            raise ArgumentError(msg)
    if call.asked is not Asked.COMPARISON:
        return 0, _ANSWERS[call.asked](call)
    settings = call.request.settings
    if settings["into"]:
        msg = "The flag --into works in a notebook only. Redirect instead: diffai A B --output json > FILE."
        raise ArgumentError(msg)
    # Readers and the scan are not needed for --help.
    from diffai_jupyter.comparison import run_comparison
    from diffai_jupyter.comparison.interrupted import Interrupted
    from diffai_jupyter.report.gate import gate_error

    a, b = call.sources
    try:
        with ProgressLine(sys.stderr) as progress:
            comparison = run_comparison(a, b, call.request, tick=None if settings["quiet"] else progress.tick)
    except Interrupted as stopped:
        # Another program would take a part for the whole.
        if stopped.comparison is None or settings["quiet"] or settings["output"]:
            raise
        print("diffai: interrupted. This is what was known by then.", file=sys.stderr)
        return EXIT_INTERRUPTED, stopped.comparison.to_text(color=_is_colored())
    if comparison.failures:
        print(f"diffai: {gate_error(comparison.failures)}", file=sys.stderr)
    if settings["quiet"]:
        return comparison.exit_code, ""
    if settings["output"] is None:
        return comparison.exit_code, comparison.to_text(color=_is_colored())
    return comparison.exit_code, comparison.written(settings["output"])


def _is_colored() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _flags_of_config(words: Sequence[str]) -> list[str]:
    if words and not words[0].startswith("-"):
        msg = f"diffai config takes flags only. Got {show_name(words[0])}. For a file called config write ./config."
        raise ArgumentError(msg)
    return ["--show-config", *words]


def _run_demo(words: Sequence[str]) -> int:
    if {"-h", "--help"} & set(words):
        return _write(help_text(), 0)
    if len(words) > 1 or (words and words[0].startswith("-")):
        got = show_name(" ".join(words))
        msg = f"diffai demo takes one folder at most. Got {got}. For a file called demo write ./demo."
        raise ArgumentError(msg)
    # The demo brings scikit-learn.
    from diffai_jupyter.cli.demo import run_demo

    return run_demo(Path(words[0] if words else DEMO_FOLDER))


def _write(text: str, code: int) -> int:
    """Print, and return the exit code."""
    try:
        sys.stdout.write(text if not text or text.endswith("\n") else f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone, as `head` does. Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


_ANSWERS: Mapping[Asked, Callable[[Call], str]] = {
    Asked.HELP: lambda _: help_text(),
    Asked.VERSION: lambda _: f"diffai {__version__}\n",
    Asked.SETTINGS: lambda call: settings_text(call.request),
}
