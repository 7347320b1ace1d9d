"""What cannot be used yet parses, is printed, says so in help, and is one clear error; never ignored."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from engine.contract import cli, schema
from engine.contract.commands import COMMANDS, find, sections_of
from engine.contract.errors import OptionError
from engine.contract.help import explained
from engine.contract.job import load_job
from engine.contract.options.pending import ACCEPTED, PENDING
from engine.contract.schema import Section, listed, opt, options
from engine.families.wan.image_options import WanInputs

ENGINE = Path(cli.__file__).parents[1]
GENERATE = "generate wan --dit d --vae v --t5 t --save_path out --prompt cat"


@pytest.fixture
def to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """An option that cannot be used yet."""
    monkeypatch.setattr(schema, "_LISTED", {})
    monkeypatch.setattr(WanInputs, "pending", {"control_image_mask_path": "masks"})


def test_using_it_is_one_error_that_names_it(to_come) -> None:
    with pytest.raises(OptionError) as caught:
        cli.parse(shlex.split(f"{GENERATE} --control_image_mask_path m"))
    assert caught.value.message.startswith("Not available yet: --control_image_mask_path (masks")


def test_a_job_file_that_uses_it_is_refused_as_well(to_come, tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    wanted = "dit = 'd'\nvae = 'v'\nt5 = 't'\nprompt = 'p'\nsave_path = 'o'\ncontrol_image_mask_path = ['m']\n"
    path.write_text(f"command = 'generate'\nfamily = 'wan'\n{wanted}", encoding="utf-8")
    with pytest.raises(OptionError, match="Not available yet: --control_image_mask_path"):
        load_job(path)


def test_the_printed_config_shows_it_with_the_reason(to_come, capsys: pytest.CaptureFixture[str]) -> None:
    cli.parse([*shlex.split(GENERATE), "--control_image_mask_path", "m", "--print_config"])
    assert 'control_image_mask_path = ["m"]  # not available yet: masks' in capsys.readouterr().out
    cli.parse([*shlex.split(GENERATE), "--print_config"])
    assert "control_image_mask_path" not in capsys.readouterr().out


def test_help_tells(to_come) -> None:
    found = listed(sections_of(find("generate"), "wan"))
    assert "(not available yet: masks" in explained(found["control_image_mask_path"])
    assert "accepted, but changes nothing: " in explained(found["force_v2_1_time_embedding"])


def test_a_single_choice_may_be_to_come() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Colours(Section, title="Colours", pending={"colour=blue": "blue paint"}):
        """Colours."""

        colour: Literal["red", "blue"] = opt("red", "Which colour.")

    (option,) = options(Colours)
    assert option.pending_choices == {"blue": "blue paint"} and not option.pending
    assert "not available yet: blue" in explained(option)


def test_every_row_of_the_tables_is_about_an_option() -> None:
    known: set[str] = set()
    for command in COMMANDS:
        for option in listed(sections_of(command, "wan" if command.family else None)).values():
            told = {f"{option.name}={choice}" for choice in option.pending_choices}
            known |= told | ({option.name} if option.pending or option.accepted else set())
    assert set(PENDING) | set(ACCEPTED) <= known


# Read through their section, by a property or as the value that they set, instead of by name.
THROUGH_PROPERTIES = {
    "network_dim", "fp8", "fp8_base", "fp8_scaled", "sdpa", "flash_attn", "flash3", "xformers", "sage_attn",
    "attn_mode", "lora_multiplier", "compile_args", "config_file", "print_config", "metadata_reso", "gpu_ids",
    "dynamo_backend", "dynamo_mode", "dynamo_fullgraph", "dynamo_dynamic", "slg_layers",
    "gradient_checkpointing_attention",
}  # fmt: skip


def test_an_option_that_nothing_reads_is_marked_so() -> None:
    """Every option of an available command is used somewhere in the engine, or its help says that it is not."""
    code = "\n".join(path.read_text(encoding="utf-8") for path in ENGINE.rglob("*.py") if "contract" not in path.parts)
    unread = [
        f"{command.verb}: {name}"
        for command in COMMANDS
        if command.available
        for name, option in listed(sections_of(command, "wan" if command.family else None)).items()
        if not (option.pending or option.accepted or name in THROUGH_PROPERTIES) and not re.search(rf"\.{name}\b", code)
    ]
    assert not unread, f"Silently ignored: {unread}"
