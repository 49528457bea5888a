from __future__ import annotations

from fractions import Fraction

import pytest

from diffai_jupyter.errors import SettingError
from diffai_jupyter.options import LATER, OPTIONS, Kind, Request, name_source, resolve


def test_without_layers_every_option_has_its_default():
    settings = resolve()
    assert set(settings) == set(OPTIONS)
    assert all(settings[key] == option.default for key, option in OPTIONS.items())
    assert all(source == "default" for _, _, source in settings.effective())
    assert len(settings.effective()) == len(settings) == len(OPTIONS)


def test_later_layers_win_and_say_so():
    settings = resolve(("one", {"top": 5, "brief": True}), ("two {key}", {"top": 6}), ("three", {}))
    assert (settings["top"], settings.source("top")) == (6, "two top")
    assert (settings["brief"], settings.source("brief")) == (True, "one")
    assert ("top", 6, "two top") in settings.effective()


def test_none_means_not_given():
    settings = resolve(("one", {"top": 5}), ("two", {"top": None}))
    assert (settings["top"], settings.source("top")) == (5, "one")


@pytest.mark.parametrize(
    ("key", "given", "value"),
    [
        ("top", "1", 1),
        ("top", 1000, 1000),
        ("epsilon", "1e-3", 0.001),
        ("epsilon", Fraction(1, 4), 0.25),
        ("workers", 3.0, 3),
        ("sort_by", "role_z", "role_z"),
        ("ignore_keys_regex", r"bias$|\d{2}", r"bias$|\d{2}"),
        ("into", "report", "report"),
        ("set", {"a.b": 1, "c": 0.5}, ("a.b=1", "c=0.5")),
        ("set", "a=1", ("a=1",)),
        ("set", ["a=1", "b=2"], ("a=1", "b=2")),
    ],
)
def test_values_are_read_in_their_own_type(key, given, value):
    read = resolve(("x", {key: given}))[key]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("key", "given", "message"),
    [
        ("top", 0, "The 'top' option must be in [1, 1000]. Got 0 from --top."),
        ("top", "0", "The 'top' option must be in [1, 1000]. Got 0 from --top."),
        ("top", 1001, "The 'top' option must be in [1, 1000]. Got 1001 from --top."),
        ("top", "many", "The 'top' option must be an integer in [1, 1000]. Got many from --top."),
        ("top", 7.5, "The 'top' option must be an integer in [1, 1000]. Got 7.5 from --top."),
        ("top", True, "The 'top' option must be an integer in [1, 1000]. Got True from --top."),
        ("epsilon", -1e-9, "The 'epsilon' option must be in [0, inf). Got -1e-09 from --epsilon."),
        ("epsilon", float("nan"), "The 'epsilon' option must be in [0, inf). Got nan from --epsilon."),
        ("epsilon", "inf", "The 'epsilon' option must be in [0, inf). Got inf from --epsilon."),
        (
            "workers",
            float("inf"),
            "The 'workers' option must be an integer in [1, inf). Got inf from --workers.",
        ),
        (
            "sort_by",
            "size",
            (
                "The 'sort_by' option must be one of rel, abs, energy, max, frac, role_z. "
                "Got 'size' from --sort-by."
            ),
        ),
        ("into", "my report", "The 'into' option must be a variable name. Got 'my report' from --into."),
        ("path", "", "The 'path' option must be text. Got '' from --path."),
        ("brief", "yes", "The 'brief' option must be true or false. Got 'yes' from --brief."),
        ("set", "a", "The 'set' option must be KEY=VALUE. Got 'a' from --set."),
        ("topp", 1, "Unknown option 'topp' from --topp. Did you mean 'top'?"),
        ("zzz", 1, "Unknown option 'zzz' from --zzz."),
    ],
)
def test_a_wrong_value_is_refused_with_its_source(key, given, message):
    with pytest.raises(SettingError) as caught:
        resolve(("--{flag}", {key: given}))
    assert str(caught.value) == message


def test_a_broken_pattern_is_refused_with_the_reason():
    with pytest.raises(SettingError, match=r"must be a regular expression \(.*\)\. Got '\(' from x\."):
        resolve(("x", {"ignore_keys_regex": "("}))


def test_names_do_not_collide():
    assert all(key == option.key and key.isidentifier() for key, option in OPTIONS.items())
    assert not {option.flag for option in OPTIONS.values()} & set(LATER)
    shorts = [option.short for option in OPTIONS.values() if option.short]
    assert len(set(shorts)) == len(shorts)
    assert all(option.choices for option in OPTIONS.values() if option.kind is Kind.CHOICE)


def test_sources_keep_other_braces():
    assert name_source("{x} {key}", "sort_by") == "{x} sort_by"


def test_an_empty_request_holds_the_defaults():
    assert Request().settings == resolve()
    assert Request().analyses == ()
