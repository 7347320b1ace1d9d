"""What a step cache is set to for a model, from what was asked for and what is published."""

from __future__ import annotations

import shlex
from types import SimpleNamespace

import pytest

from engine.contract import cli
from engine.contract.errors import OptionError
from engine.families import part
from engine.families.values import Request
from engine.parts.step_caching import ENDLESS, USUAL, Usual, settled
from engine.sampling.prompts import PromptLine
from engine.tasks.requests import make_request
from tests.clips import draw_image

KNOWN = {"teacache": Usual(threshold=0.3, start=0.4, numbers=((1.0, 2.0),))}
FILES = {
    "wan": "--task t2v-14B --t5 t",
    "hunyuan_video": "--text_encoder1 a --text_encoder2 b",
    "framepack": "--text_encoder1 a --text_encoder2 b --image_encoder i",
}


def request(words: str, family: str = "wan") -> Request:
    line = f"generate {family.replace('_', '-')} --dit d --vae v --save_path out --prompt bar {FILES[family]} {words}"
    return make_request(cli.parse(shlex.split(line)), PromptLine(prompt="bar", where="--prompt"))


def of(words: str, *, family: str = "wan", config=None):
    facts = config or part(family, "detect").fullest()
    return part(family, "step_caches").settings(request(words, family), SimpleNamespace(config=facts))


def test_what_is_asked_for_wins_over_the_model_s_and_that_over_the_method_s():
    found = settled({"method": "teacache", "start": 0.5}, KNOWN, model="m")
    assert (found.threshold, found.start, found.most_in_a_row, found.numbers) == (0.3, 0.5, ENDLESS, ((1.0, 2.0),))
    own = settled({"method": "teacache", "numbers": ((3.0,),), "threshold": 0.0, "most_in_a_row": 2}, {}, model="m")
    assert (own.threshold, own.start, own.most_in_a_row) == (0.0, USUAL["teacache"].start, 2)
    assert settled(None, KNOWN, model="m") is None


@pytest.mark.parametrize("method", ["magcache", "teacache"])
def test_a_model_without_numbers_is_told_how_to_get_some(method):
    with pytest.raises(OptionError, match="there are no published numbers for m") as caught:
        settled({"method": method}, {}, model="m")
    assert "--step_cache_calibrate" in caught.value.hint and "first_block" in caught.value.hint
    assert settled({"method": method, "calibrate": True}, {}, model="m").calibrate
    assert settled({"method": "first_block"}, {}, model="m").threshold == 0.05


def test_each_expert_needs_numbers():
    with pytest.raises(OptionError, match="numbers for 1 experts, but 2 work on this video"):
        settled({"method": "teacache"}, KNOWN, model="m", experts=2)


@pytest.mark.parametrize("family", FILES)
@pytest.mark.parametrize("method", ["magcache", "teacache", "first_block"])
def test_published_models_need_no_numbers(family, method):
    found = of(f"--step_cache {method}", family=family)
    assert found.method == method and found.threshold > 0 and 0 <= found.start <= 0.2
    assert (len(found.numbers) == 1) == (method != "first_block")
    if method == "magcache":
        (ratios,) = found.numbers
        assert len(ratios) == 50 and ratios[0] == 1.0 and all(0.7 < ratio < 1.3 for ratio in ratios)
    assert of("", family=family) is None


@pytest.mark.parametrize("family", FILES)
def test_models_of_other_sizes_are_not_the_published_ones(family):
    tiny = SimpleNamespace(dim=64, num_layers=2, num_single_layers=2, num_double_blocks=2, num_single_blocks=2)
    with pytest.raises(OptionError, match="there are no published numbers for a model of these sizes"):
        of("--step_cache teacache", family=family, config=tiny)


def test_the_size_of_the_video_tells_480p_and_720p_apart(tmp_path):
    image = draw_image(tmp_path / "start.png", number=5, size=(80, 60))
    wan, hunyuan = f"--task i2v-14B --clip c --image_path '{image}' --step_cache", "--step_cache magcache --video_size"
    for method in ("magcache", "teacache"):
        small, large = (of(f"{wan} {method} --video_size {size}") for size in ("480 832", "720 1280"))
        assert small.numbers != large.numbers
    small, large = (of(f"{hunyuan} {size}", family="hunyuan_video") for size in ("544 960", "720 1280"))
    assert small.numbers[0][1] == 1.06971 and large.numbers[0][1] == 1.0754


def test_two_experts_have_two_lists():
    two = "--task t2v-A14B --dit_high_noise h --step_cache"
    high, low = of(f"{two} magcache").numbers
    assert (len(high), len(low)) == (26, 14) and high[0] == low[0] == 1.0
    with pytest.raises(OptionError, match="there are no published numbers for --task t2v-A14B"):
        of(f"{two} teacache")
    assert of(f"{two} teacache --step_cache_coefficients 1,0;2,0").numbers == ((1.0, 0.0), (2.0, 0.0))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--step_cache_threshold 0.1", "--step_cache_threshold does nothing without --step_cache"),
        ("--step_cache_calibrate", "--step_cache_calibrate does nothing without --step_cache"),
        ("--step_cache teacache --step_cache_ratios 1,1", "--step_cache_ratios is for --step_cache magcache"),
        ("--step_cache_coefficients 1,1", "--step_cache_coefficients is for --step_cache teacache"),
        ("--step_cache magcache --step_cache_ratios 1,0", "is not a list of numbers above 0"),
        ("--step_cache magcache --step_cache_ratios 1,,1", "is not a list of numbers"),
        ("--step_cache teacache --step_cache_coefficients 1,nan", "is not a list of numbers"),
        ("--step_cache often", "--step_cache"),
        ("--step_cache first_block --step_cache_start 1.5", "--step_cache_start"),
    ],
)
def test_contradictions_are_refused(words, said):
    with pytest.raises(OptionError, match=said):
        request(words)


@pytest.mark.parametrize(
    ("family", "words", "rows"),
    [
        ("wan", "", 0),
        ("wan", "--step_cache magcache", 2),  # a residual for each of two predictions
        ("wan", "--step_cache teacache --guidance_scale 1", 1),
        ("wan", "--step_cache first_block", 4),
        ("hunyuan_video", "--step_cache first_block", 2),
        ("hunyuan_video", "--step_cache first_block --guidance_scale 3", 2),  # both in one batch
        ("hunyuan_video", "--step_cache first_block --guidance_scale 3 --split_uncond", 4),
        ("framepack", "--step_cache teacache", 3),
        ("framepack", "--magcache_mag_ratios 0 --guidance_scale 2", 2),
    ],
)
def test_the_planner_knows_what_a_cache_keeps(family, words, rows):
    line = f"generate {family.replace('_', '-')} --dit d --vae v --save_path out --prompt bar {FILES[family]} {words}"
    options, config = part(family, "options"), part(family, "detect").fullest()
    job = cli.parse(shlex.split(line))
    work = options.dit_work(job, config, (3, 8, 8))
    plain = options.dit_work(cli.parse(shlex.split(line.replace(words, ""))), config, (3, 8, 8)) if words else work
    assert work.waiting - plain.waiting == rows
