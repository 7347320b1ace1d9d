"""The cases as data: their names are a contract with published figures, and a mode is a list of ordinary flags."""

from __future__ import annotations

import pytest

from engine.bench.cases import GROUPS, all_cases, chosen, listing
from engine.contract.errors import OptionError
from engine.families import names, part

BASELINE = {  # the cases whose figures were measured with other programs, and the modes that are compared with them
    "train-wan-14b-480x832x81": {"free", "least"},
    "train-wan-14b-480x832x33": {"free", "least"},
    "train-wan-1.3b-480x832x81": {"free", "least"},
    "train-hunyuan-13b-544x960x33": {"free", "least"},
    "train-framepack-640x640": {"free", "least"},
    "denoise-wan-14b-480x832x81": {"exact", "fast", "12gb"},
    "denoise-hunyuan-13b-544x960x33": {"exact", "fast", "12gb"},
    "vae-encode-wan-480x832x81": {"engine"},
    "vae-decode-wan-480x832x81": {"engine"},
    "vae-encode-hunyuan-544x960x33": {"engine"},
    "vae-decode-hunyuan-544x960x33": {"engine"},
}


@pytest.fixture(scope="module")
def cases():
    return list(all_cases(names(extra=False), lambda family: part(family, "bench"), backends=["sdpa", "auto"]))


def test_the_published_cases_are_there_under_their_names(cases):
    modes = {case.name: set(case.modes) for case in cases}
    assert {name: wanted & modes.get(name, set()) for name, wanted in BASELINE.items()} == BASELINE


def test_names_tell_cases_apart_and_every_group_has_some(cases):
    assert len({case.name for case in cases}) == len(cases)
    assert {case.group for case in cases} == set(GROUPS)


def test_the_first_mode_is_plain_pytorch_or_what_is_changed_about_it(cases):
    plain = {"train": "plain", "generate": "plain", "cache": "diffusers", "stream": "none", "attention": "sdpa",
             "linear": "bf16"}  # fmt: skip
    assert {(case.group, case.baseline) for case in cases} == set(plain.items())
    flags = next(case for case in cases if case.group == "train").modes["plain"].flags
    assert not {"--compile", "--fp8_scaled", "--blocks_to_swap"} & set(flags) and "recompute" in flags


def test_cases_of_one_model_follow_each_other(cases):
    models = [case.model.name for case in cases if case.group in ("train", "generate", "stream")]
    changes = sum(before != after for before, after in zip(models, models[1:], strict=False))
    assert changes == len(set(models)) - 1


def test_groups_families_and_beginnings_of_names_choose(cases):
    found = chosen(cases, what=["stream", "hunyuan-video"], names=[], modes=[])
    assert found and all(case.group == "stream" and case.family == "hunyuan_video" for case, _ in found)
    assert all(asked == ("none", "all", "disk") for _, asked in found)
    ((case, asked),) = chosen(cases, what=[], names=["train-wan-1.3b-480x832x8"], modes=["fp8", "plain"])
    assert case.name == "train-wan-1.3b-480x832x81" and asked == ("plain", "fp8")
    usual = chosen(cases, what=["train", "framepack"], names=[], modes=[])
    assert [asked for _, asked in usual] == [("plain", "free", "least")]


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ({"what": ["trane"]}, "train"),
        ({"names": ["train-wan-13b"]}, "train-wan-1"),
        ({"what": ["train"], "modes": ["fre"]}, "free"),
    ],
)
def test_a_word_that_means_nothing_is_an_error_that_names_the_nearest(cases, asked, near):
    with pytest.raises(OptionError) as error:
        chosen(cases, **{"what": [], "names": [], "modes": [], **asked})
    assert near in error.value.hint


def test_the_listing_shows_modes_that_only_run_when_asked_for_in_brackets(cases):
    lines = listing(cases).splitlines()
    assert len(lines) == len(cases)
    (line,) = (line for line in lines if " denoise-framepack-640x640 " in line)
    assert line.split()[2:] == [
        "plain",
        "exact",
        "fast",
        "12gb",
        "[8bit]",
        "[fp8]",
        "[fp8_compiled]",
        "[streamed]",
        "[magcache]",
    ]
