from __future__ import annotations

import re
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.arguments import Asked, help_text, is_silenced, parse, split
from diffai_jupyter.errors import ArgumentError, SettingError
from diffai_jupyter.options import LATER, OPTIONS, PATH_FLAGS, Live
from diffai_jupyter.report import request


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        ("  a \t b\n c ", ["a", "b", "c"]),
        ("'a b' \"c 'd'\" e\"f g\"h", ["a b", "c 'd'", "ef gh"]),
        ("a '' b", ["a", "", "b"]),
        (r"C:\runs\new\a.pt C:\t.pt", [r"C:\runs\new\a.pt", r"C:\t.pt"]),
        ("a b # c", ["a", "b", "#", "c"]),
        ("a b \\\n  --all", ["a", "b", "--all"]),
        ("a b \\\r\n--all", ["a", "b", "--all"]),
        ("a b;", ["a", "b"]),
        ("a b ;  \n", ["a", "b"]),
        ("a;b 'c;'", ["a;b", "c;"]),
        ("{f(1, 'x y')} b", ["{f(1, 'x y')}", "b"]),
        ("x{d['}']}y {{a b}}", ["x{d['}']}y", "{{a", "b}}"]),
        ("{open b", ["{open", "b"]),
        ("--path='a b'", ["--path=a b"]),
    ],
)
def test_a_line_is_split_into_words(line, words):
    assert split(line) == words


@pytest.mark.parametrize("line", ["a 'b", 'a "b c', "it's"])
def test_a_lonely_quote_is_an_error(line):
    with pytest.raises(ArgumentError, match=r"^The quote ['\"] at .* has no partner\.$"):
        split(line)


@given(st.lists(st.text(st.characters(exclude_characters="'\"{}\\;", exclude_categories=["Cs"]), max_size=8)))
def test_words_that_were_quoted_by_the_standard_library_come_back(words):
    assert split(" ".join(shlex.quote(word) for word in words)) == words


@pytest.mark.parametrize(
    ("line", "expected"), [("a b;", True), ("a b ; ", True), ("a b", False), ("a 'b;'", False)]
)
def test_a_semicolon_at_the_end_silences(line, expected):
    assert is_silenced(line) is expected


def words_of(line, **more):
    return parse(split(line), **more)


def test_flags_and_checkpoints_may_mix():
    call = words_of("--top 3 a --sort-by=abs b -q -ojson --change-summary")
    assert call.asked is Asked.COMPARISON
    assert call.sources == ("a", "b")
    assert call.request.analyses == ("change-summary",)
    settings = call.request.settings
    assert (settings["top"], settings["sort_by"], settings["quiet"], settings["output"]) == (
        3,
        "abs",
        True,
        "json",
    )
    assert settings.source("sort_by") == "--sort-by"


@pytest.mark.parametrize("typed", ["-o json", "-o=json", "-ojson", "--output json", "--output=json"])
def test_the_short_form_is_the_long_form(typed):
    assert words_of(f"a b {typed}").request.settings["output"] == "json"


def test_all_is_every_analysis():
    analyses = words_of("a b --all").request.analyses
    assert sorted(analyses) == sorted(all_analyses())


@pytest.mark.parametrize("flag", PATH_FLAGS)
def test_a_bare_flag_never_swallows_the_next_word(flag):
    call = words_of(f"--{flag} a b")
    assert call.sources == ("a", "b")
    assert call.request.paths == {}
    assert words_of(f"--{flag}=out a b").request.paths == {flag: "out"}


def test_a_value_may_begin_with_one_dash():
    assert words_of("a b --path -x").request.settings["path"] == "-x"


def test_two_dashes_end_the_flags():
    assert words_of("--brief -- --all -q").sources == ("--all", "-q")


def test_objects_stand_for_checkpoints_and_for_values():
    a = Live({"w": 1}, "model")
    call = parse([a, "b", "--top", Live(4, "n")])
    assert call.sources == (a, "b")
    assert call.request.settings["top"] == 4


def test_flags_win_over_the_layers_below():
    below = [("%config DiffAI.{key}", {"top": 9, "brief": True})]
    settings = words_of("a b --top 2", below=below).request.settings
    assert (settings["top"], settings.source("top")) == (2, "--top")
    assert (settings["brief"], settings.source("brief")) == (True, "%config DiffAI.brief")


def test_the_last_of_two_values_counts_and_set_adds_up(monkeypatch):
    monkeypatch.setattr(request, "thresholds_given", lambda layers: {})
    settings = words_of("a b --top 2 --top 3 --set x=1 --set=y=2").request.settings
    assert settings["top"] == 3
    assert settings["set"] == ("x=1", "y=2")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a b --memory-analisys", "Unknown flag --memory-analisys. Did you mean '--memory-analysis'?"),
        ("a b --change-summ", "Unknown flag --change-summ. Did you mean '--change-summary'?"),
        ("a b --sort_by rel", "Unknown flag --sort_by. Did you mean '--sort-by'?"),
        ("a b --brie", "Unknown flag --brie. Did you mean '--brief'?"),
        ("a b -x", "Unknown flag -x."),
        ("a b -all", "Unknown flag -all. Did you mean '--all'?"),
        ("a b —all", "The flag —all begins with a long dash. Write --all."),
        ("a b --top", "The flag --top needs a value: --top N."),
        (
            "a b --sort-by --all",
            "The flag --sort-by needs a value: --sort-by rel|abs|energy|max|frac|role_z.",
        ),
        ("a b --brief=1", "The flag --brief takes no value. Got --brief=1."),
        ("a b --change-summary=1", "The flag --change-summary takes no value. Got --change-summary=1."),
        ("a b --base", "The flag --base is not built yet; leave it out."),
        ("a b --x\x1b[31m", "Unknown flag --x\\u001b[31m."),
    ],
)
def test_a_wrong_flag_is_refused(line, message):
    with pytest.raises(ArgumentError) as caught:
        words_of(line)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "Two checkpoints are needed. None was given. "),
        ("a", "Two checkpoints are needed. Got 1: a. "),
        ("a b c", "Two checkpoints are needed. Got 3: a, b, c. "),
        ("a b brief", "Two checkpoints are needed. Got 3: a, b, brief. Did you mean '--brief'? "),
        (
            "a b --markdown-output r.md",
            (
                "Two checkpoints are needed. Got 3: a, b, r.md. "
                "The path of --markdown-output is written --markdown-output=PATH. "
            ),
        ),
    ],
)
def test_a_wrong_number_of_checkpoints_says_what_was_given_and_how_to_write_it(line, message):
    with pytest.raises(ArgumentError) as caught:
        words_of(line)
    form = "Form: diffai A B [flags], for example: diffai before.safetensors after.safetensors --all"
    assert str(caught.value) == message + form


def test_a_value_out_of_range_names_the_flag():
    with pytest.raises(SettingError, match=r"^The 'top' option must be in \[1, 1000\]. Got 0 from --top.$"):
        words_of("a b --top 0")


@pytest.mark.parametrize("line", ["-h", "--help", "a --top zero -h", "--nonsense --help"])
def test_help_wins_over_everything(line):
    assert words_of(line).asked is Asked.HELP


def test_the_version_and_the_settings_need_no_checkpoints():
    assert words_of("--version").asked is Asked.VERSION
    assert words_of("--show-config --top 3").asked is Asked.SETTINGS
    assert words_of("a b --show-config").asked is Asked.COMPARISON
    with pytest.raises(ArgumentError, match=r"^Two checkpoints are needed, or none with --show-config\. Got 1: a\."):
        words_of("a --show-config")


@pytest.mark.parametrize("line", ["--help", "--version"])
def test_the_layers_below_are_not_read_for_the_help(line):
    def refused():
        raise SettingError("broken")
        yield

    words_of(line, below=refused())
    with pytest.raises(SettingError, match="broken"):
        words_of("a b", below=refused())


def test_the_help_begins_with_four_examples_that_parse():
    examples = help_text().splitlines()[:4]
    for example in examples:
        line = re.split(r"\s{3,}", example.strip())[0]
        assert line.startswith("diffai ")
        assert words_of(line.removeprefix("diffai ")).asked is Asked.COMPARISON
    assert help_text().splitlines()[4] == ""


def test_the_help_names_every_flag_once_with_its_first_line():
    text = help_text()
    for flag in ("all", *all_analyses(), *(option.flag for option in OPTIONS.values())):
        assert len(re.findall(rf"^  (?:-\w, )?--{flag}(?=[ \[\n])", text, re.MULTILINE)) == 1, flag
    flat = " ".join(text.split())
    for declaration in all_analyses().values():
        assert " ".join(declaration.summary.split()) in flat
    assert not [flag for flag in LATER if f"--{flag} " in text]
    assert max(map(len, text.splitlines())) <= 100
