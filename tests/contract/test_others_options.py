"""Every option that musubi-tuner's scripts have is an option here; blissful-tuner's further ones are known by name.

`others_options.json`: the options of each script's parser, musubi-tuner of 2026-06-24, and blissful-tuner e4ed1f0 where
it has more. `-` in names is `_`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from engine.contract import cli
from engine.contract.commands import COMMANDS, Command, family_names, family_options, find, sections_of
from engine.contract.errors import OptionError
from engine.contract.options.others import of_others
from engine.contract.schema import by_any_name, listed

THEIRS = json.loads(Path(__file__).with_name("others_options.json").read_text(encoding="utf-8"))
MUSUBI, BLISSFUL = THEIRS["musubi-tuner"], THEIRS["blissful-tuner"]


def command_of(script: str) -> tuple[Command, str | None]:
    for family in family_names():
        verb = family_options(family).SCRIPTS.get(script)
        if verb:
            return find(verb), family
    return next(command for command in COMMANDS if script in command.scripts), None


def ours(script: str) -> set[str]:
    return set(by_any_name(listed(sections_of(*command_of(script)))))


@pytest.mark.parametrize("script", MUSUBI)
def test_every_option_of_musubi_tuner_is_one_here(script: str) -> None:
    assert set(MUSUBI[script].split()) - ours(script) == set()


@pytest.mark.parametrize("script", BLISSFUL)
def test_every_further_option_of_blissful_tuner_is_one_here_or_answered_by_name(script: str) -> None:
    known = ours(script)
    assert [name for name in BLISSFUL[script].split() if name not in known and not of_others(name)] == []


def test_what_is_named_instead_exists() -> None:
    flags = {flag for command in COMMANDS for family in (family_names() if command.family else [None])
             for flag in by_any_name(listed(sections_of(command, family)))}  # fmt: skip
    for name in {name for names in BLISSFUL.values() for name in names.split()}:
        for flag in re.findall(r"--(\w+)", of_others(name)):
            assert flag in flags, f"{name}: {of_others(name)}"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("train wan --dit d --dataset_config c --noise_offset 0.1", "noise with an offset"),
        ("wan_train_network.py --dit d --dataset_config c --simple_modulation", "--force_v2_1_time_embedding"),
        ("generate wan --nag-scale 9", "normalized attention guidance"),
        ("hv_generate_video.py --optimized_compile", "--compile"),
    ],
)
def test_it_is_answered_without_a_guess_at_a_misspelling(line: str, told: str) -> None:
    with pytest.raises(OptionError, match="There is no option --") as caught:
        cli.parse(line.split())
    assert told in caught.value.hint and caught.value.hint.startswith("It is blissful-tuner's")


def test_in_a_file_as_well(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text("perp_neg = 1.5\n")
    with pytest.raises(OptionError, match="perp_neg in ") as caught:
        cli.parse(["generate", "wan", "--config_file", str(tmp_path / "job.toml")])
    assert "perpendicular" in caught.value.hint
