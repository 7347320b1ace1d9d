"""What cannot be used yet parses, is printed, says so in help, and is one clear error; never ignored."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from engine.contract import cli
from engine.contract.commands import COMMANDS, find, sections_of
from engine.contract.errors import OptionError
from engine.contract.help import explained
from engine.contract.options.pending import ACCEPTED, PENDING
from engine.contract.schema import listed
from engine.families.wan import options as wan

ENGINE = Path(cli.__file__).parents[1]
TRAIN = "train wan --dit d --dataset_config c"
GENERATE = "generate wan --dit d --vae v --t5 t --save_path out --prompt cat"


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (f"{TRAIN} --task i2v-A14B --dit_high_noise h", "--task i2v-A14B, --dit_high_noise (Wan 2.2"),
        (f"{TRAIN} --sample_prompts p.txt", "--sample_prompts"),
        (f"{TRAIN} --huggingface_repo_id a/b --async_upload", "--huggingface_repo_id, --async_upload"),
        (f"{TRAIN} --network_module networks.lokr", "--network_module networks.lokr"),
        (f"{TRAIN} --dit_high_noise h", "--dit_high_noise"),
        (f"{GENERATE} --slg_mode uncond --slg_layers 4", "--slg_layers, --slg_mode"),
        (f"{GENERATE} --lycoris", "--lycoris"),
        ("cache-latents wan --dataset_config c --vae v --debug_mode video", "--debug_mode (showing clips"),
    ],
)
def test_using_it_is_one_error_that_names_it(line: str, named: str) -> None:
    with pytest.raises(OptionError) as caught:
        cli.parse(shlex.split(line))
    assert caught.value.message.startswith("Not available yet: ") and named in caught.value.message


def test_the_printed_config_shows_it_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    cli.parse([*shlex.split(TRAIN), "--task", "i2v-A14B", "--sample_at_first", "--print_config"])
    printed = capsys.readouterr().out
    assert 'task = "i2v-A14B"  # not available yet: Wan 2.2' in printed
    assert "sample_at_first = true  # not available yet: samples" in printed and "async_upload" not in printed


def test_its_default_is_no_use_of_it() -> None:
    assert cli.parse([*shlex.split(GENERATE), "--slg_scale", "3.0", "--cfg_skip_mode", "none"]) is not None


def test_help_tells() -> None:
    found = listed(sections_of(find("train"), "wan"))
    assert "(not available yet: " in explained(found["sample_at_first"])
    assert "not available yet: t2v-A14B" in explained(found["task"])
    assert "accepted, but changes nothing: " in explained(found["persistent_data_loader_workers"])


def test_every_row_of_the_tables_is_about_an_option() -> None:
    known: set[str] = set()
    for command in COMMANDS:
        for option in listed(sections_of(command, "wan" if command.family else None)).values():
            told = {f"{option.name}={choice}" for choice in option.pending_choices}
            known |= told | ({option.name} if option.pending or option.accepted else set())
    assert set(PENDING) | set(wan.PENDING) | set(ACCEPTED) <= known


# Read through a property of their section instead of by name.
THROUGH_PROPERTIES = {
    "network_dim", "fp8", "fp8_base", "fp8_scaled", "sdpa", "flash_attn", "flash3", "xformers", "sage_attn",
    "attn_mode", "lora_multiplier", "compile_args", "config_file", "print_config",
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
