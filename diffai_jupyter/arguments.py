"""The grammar of ``%diffai`` and ``diffai``, read off the options and the declared analyses.

Own code instead of argparse: its help text and messages differ between Python versions, it takes
only strings (a cell hands over live objects), and ``nargs="?"`` swallows the word after a bare flag.
Own splitting instead of shlex: ``{expression}`` must stay whole, quotes and spaces included.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.contract.declaration import Group
from diffai_jupyter.errors import ArgumentError
from diffai_jupyter.options import OPTIONS, PATH_FLAGS, Kind, Layer, Live, Option, Request
from diffai_jupyter.report.request import ALL, known_flags, refuse_flag, request_of
from diffai_jupyter.wording import show_name

EXAMPLES = """\
  diffai before.safetensors after.safetensors                   what changed, in one screen
  diffai run/step-100 run/step-200 --anomaly-detection          folders, and one of the analyses
  diffai model_a model_b --all                                  variables, and every analysis
  diffai prod.safetensors next.safetensors --output json        the same for a program
"""
INTRODUCTION = """\
Compare checkpoint A with checkpoint B: files, folders, or in a notebook the names of variables.
Also org/model@revision in the Hugging Face cache, and addresses: hf://org/model, https://, s3://.
In a notebook write %diffai, or %%diffai with flags on the lines below it; in a terminal, diffai.
In a notebook, $name and {expression} stand for values; {{ and }} for braces.
A flag with [=PATH] takes a path only after the equals sign.
Settings may also stand in diffai.toml or [tool.diffai] of pyproject.toml, and in DIFFAI_ variables.

  diffai A B [flags]
  diffai demo [DIR]      make small real checkpoints in DIR and compare them (terminal only)
  diffai clean NOTEBOOK  repair notebooks that GitHub refuses for their widgets (terminal only)
  diffai cache info      say what earlier runs have kept; cache clear removes it (terminal only)
  diffai config [flags]  print every setting, where it came from and what it takes (terminal only)
"""
CLOSING = """\
Exit codes: 0 every value is equal, 1 something differs, 2 the call or a file is wrong, 3 --fail-on.
"""
FORM = "Form: diffai A B [flags], for example: diffai before.safetensors after.safetensors --all"
HELP_WIDTH = 100
HELP_COLUMN = 34
NOTEBOOK_ONLY = {
    "panel": "Name the analyses instead: diffai A B --all.",
    "summary_cell": "Write the summary instead: diffai A B --review-friendly --output markdown.",
}
"""Options that need cells, and what to do in a terminal."""
LONG_DASHES = ("–", "—")
QUOTES = ("'", '"')


class Asked(Enum):
    """What a call wants."""

    COMPARISON = "comparison"
    PANEL = "panel"
    SETTINGS = "settings"
    HELP = "help"
    VERSION = "version"


@dataclass(frozen=True, slots=True)
class Call:
    """A call, understood.

    Parameters
    ----------
    asked : Asked
        What is wanted.
    sources : tuple of str or Live
        A and B as they were given; empty unless a comparison is wanted.
    request : Request
        Analyses and settings.
    """

    asked: Asked
    sources: tuple[str | Live, ...] = ()
    request: Request = field(default_factory=Request)


def parse(tokens: Sequence[str | Live], below: Iterable[Layer] = ()) -> Call:
    """Understand a call.

    Parameters
    ----------
    tokens : sequence of str or Live
        Words as they were typed, or what they stand for.
    below : iterable of tuple of str and mapping
        Layers of settings that flags win over, weakest first. It is not looked at when help is asked for.

    Raises
    ------
    ArgumentError
        If a flag, a value or the number of checkpoints is wrong.
    """
    words = [token for token in tokens if isinstance(token, str)]
    if {"-h", "--help"} & set(words):
        return Call(Asked.HELP)
    if "--version" in words:
        return Call(Asked.VERSION)
    sources, given = _sort(tokens)
    request = request_of((), given, source="--{flag}", below=below)
    if not sources and request.settings["show_config"]:
        return Call(Asked.SETTINGS, (), request)
    if not sources and request.settings["panel"]:
        return Call(Asked.PANEL, (), request)
    if len(sources) != 2:
        raise _wrong_count(sources, given)
    return Call(Asked.COMPARISON, tuple(sources), request)


def help_text() -> str:
    """Return the help text, the same for the magic and the command line."""
    parts = [EXAMPLES, INTRODUCTION, "Analyses\n" + _entry(f"--{ALL}", "Run every analysis.")]
    for group in Group:
        entries = [_analysis_entry(flag, a.summary) for flag, a in all_analyses().items() if a.group is group]
        if entries:
            parts.append(f"{group.value}\n{''.join(entries)}")
    others = [_option_entry(option) for option in OPTIONS.values()]
    others += [_entry("-h, --help", "Show this text."), _entry("--version", "Show the version.")]
    return "\n".join([*parts, f"Options\n{''.join(others)}", CLOSING])


def _sort(tokens: Sequence[str | Live]) -> tuple[list[str | Live], dict[str, Any]]:
    """Return what stands for checkpoints, and the flags with their values by key."""
    sources: list[str | Live] = []
    given: dict[str, Any] = {}
    rest = iter(tokens)
    for token in rest:
        if token == "--":
            sources.extend(rest)
        elif isinstance(token, Live) or token == "-" or not token.startswith(("-", *LONG_DASHES)):
            sources.append(token)
        elif token.startswith(LONG_DASHES):
            shown = show_name(token)
            msg = f"The flag {shown} begins with a long dash. Write --{shown.lstrip('–—-')}."
            raise ArgumentError(msg)
        else:
            flag, value = _read_flag(token, rest)
            key = flag.replace("-", "_")
            if key in OPTIONS and OPTIONS[key].kind is Kind.PAIRS:
                given.setdefault(key, []).append(value)
            else:
                given[key] = value
    return sources, given


def _read_flag(token: str, rest: Iterator[str | Live]) -> tuple[str, object]:
    """Return a flag and its value, taking the value from `rest` where the flag needs one."""
    typed, equals, attached = token.partition("=")
    if not token.startswith("--"):
        equals = attached = token[2:].removeprefix("=")
        typed = _long_form(token)
    flag = typed[2:]
    if flag not in known_flags():
        raise refuse_flag(typed)
    option = OPTIONS.get(flag.replace("-", "_"))
    if option is None or option.kind is Kind.FLAG:
        if equals and flag not in PATH_FLAGS:
            msg = f"The flag --{flag} takes no value. Got {show_name(token)}."
            raise ArgumentError(msg)
        return flag, attached if equals else True
    value = attached if equals else next(rest, None)
    if value is None or (not equals and isinstance(value, str) and value.startswith("--")):
        msg = f"The flag --{flag} needs a value: --{flag} {option.metavar}."
        raise ArgumentError(msg)
    takes_object = option.kind in (Kind.OBJECT, Kind.EXECUTOR, Kind.CALLABLE)
    return flag, value.value if isinstance(value, Live) and not takes_object else value


def _long_form(token: str) -> str:
    for option in OPTIONS.values():
        if option.short and token[1] == option.short:
            return f"--{option.flag}"
    raise refuse_flag(token)


def _wrong_count(sources: Sequence[str | Live], given: Mapping[str, object]) -> ArgumentError:
    shown = ", ".join(show_name(s.name if isinstance(s, Live) else s) for s in sources)
    got = f"Got {len(sources)}: {shown}." if sources else "None was given."
    hints = [f" Did you mean '--{s}'?" for s in sources if s in known_flags()]
    bare = [flag for flag in PATH_FLAGS if given.get(flag.replace("-", "_")) is True]
    hints += [f" The path of --{flag} is written --{flag}=PATH." for flag in bare]
    else_none = ", or none with --show-config" if given.get("show_config") else ""
    return ArgumentError(f"Two checkpoints are needed{else_none}. {got}{''.join(hints)} {FORM}")


def _analysis_entry(flag: str, text: str) -> str:
    if flag in PATH_FLAGS:
        return _entry(f"--{flag}[=PATH]", f"{text} With PATH, write {PATH_FLAGS[flag]}.")
    return _entry(f"--{flag}", text)


def _option_entry(option: Option) -> str:
    flag = f"-{option.short}, --{option.flag}" if option.short else f"--{option.flag}"
    default = f" Default: {option.default}." if option.default else ""
    return _entry(f"{flag} {option.metavar}".rstrip(), option.help + default)


def _entry(flag: str, text: str) -> str:
    column = " " * HELP_COLUMN
    body = textwrap.fill(text, HELP_WIDTH, initial_indent=column, subsequent_indent=column) + "\n"
    head = f"  {flag}"
    return head + body[len(head) :] if len(head) < HELP_COLUMN - 1 else f"{head}\n{body}"


def split(line: str) -> list[str]:
    r"""Split the text behind a magic into words.

    Quotes group and are taken off, backslashes stay (``C:\runs\a.pt``) unless they end a line,
    ``{expression}`` stays whole, ``#`` is no comment, and a semicolon at the very end is dropped.

    Raises
    ------
    ArgumentError
        If a quote has no partner.

    Examples
    --------
    >>> split(r"C:\runs\a.pt 'my model.pt' {models['b c']} --path='x y';")
    ['C:\\runs\\a.pt', 'my model.pt', "{models['b c']}", '--path=x y']
    """
    text = re.sub(r"\\[ \t]*\r?\n", " \n", line).rstrip()
    if is_silenced(line):
        text = text[:-1]
    words: list[str] = []
    word: str | None = None
    at = 0
    while at < len(text):
        piece, at = _piece(text, at)
        if piece is None:
            words += [] if word is None else [word]
            word = None
        else:
            word = (word or "") + piece
    return words if word is None else [*words, word]


def is_silenced(line: str) -> bool:
    """Whether the text behind a magic ends in a semicolon, which silences the display."""
    return line.rstrip().endswith(";")


def _piece(text: str, at: int) -> tuple[str | None, int]:
    """Return the piece of a word that begins at `at` (None: white space) and where the next begins."""
    if text[at].isspace():
        return None, at + 1
    if text[at] in QUOTES:
        end = text.find(text[at], at + 1)
        if end < 0:
            msg = f"The quote {text[at]} at {show_name(text[at : at + 20])} has no partner."
            raise ArgumentError(msg)
        return text[at + 1 : end], end + 1
    if text.startswith("{{", at):
        return "{{", at + 2
    if text[at] == "{":
        end = closing_brace(text, at)
        return text[at : end + 1], end + 1
    return text[at], at + 1


def closing_brace(text: str, at: int) -> int:
    """Return where the brace that opens at `at` closes, or `at` itself where it never does."""
    depth, quote = 0, ""
    for i in range(at, len(text)):
        character = text[i]
        if quote:
            quote = "" if character == quote else quote
        elif character in QUOTES:
            quote = character
        elif character in "{}":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return i
    return at
