"""Options of others that change nothing here say so, and no other option is silently ignored."""

from __future__ import annotations

import re
from pathlib import Path

from engine.contract import cli
from engine.contract.commands import COMMANDS, find, sections_of
from engine.contract.help import explained
from engine.contract.options.accepted import ACCEPTED
from engine.contract.schema import listed

ENGINE = Path(cli.__file__).parents[1]
GENERATE = "generate wan --dit d --vae v --t5 t --save_path out --prompt cat"


def test_help_tells() -> None:
    found = listed(sections_of(find("generate"), "wan"))
    assert "accepted, but changes nothing: " in explained(found["force_v2_1_time_embedding"])


def test_every_row_of_the_table_is_about_an_option() -> None:
    known: set[str] = set()
    for command in COMMANDS:
        for option in listed(sections_of(command, "wan" if command.family else None)).values():
            known |= {option.name} if option.accepted else set()
    assert set(ACCEPTED) <= known


# Read through their section, by a property or as the value that they set, instead of by name.
THROUGH_PROPERTIES = {
    "network_dim", "fp8", "fp8_base", "fp8_scaled", "sdpa", "flash_attn", "flash3", "xformers", "attn_8bit",
    "sage_attn", "attn_mode", "lora_multiplier", "compile_args", "config_file", "print_config", "metadata_reso",
    "gpu_ids", "dynamo_backend", "dynamo_mode", "dynamo_fullgraph", "dynamo_dynamic", "slg_layers",
    "gradient_checkpointing_attention", "step_cache_threshold", "step_cache_start", "step_cache_max_skips",
    "step_cache_ratios", "step_cache_coefficients", "step_cache_calibrate",
}  # fmt: skip


def test_an_option_that_nothing_reads_is_marked_so() -> None:
    """Every option of an available command is used somewhere in the engine, or its help says that it is not."""
    code = "\n".join(path.read_text(encoding="utf-8") for path in ENGINE.rglob("*.py") if "contract" not in path.parts)
    unread = [
        f"{command.verb}: {name}"
        for command in COMMANDS
        if command.available
        for name, option in listed(sections_of(command, "wan" if command.family else None)).items()
        if not (option.accepted or name in THROUGH_PROPERTIES) and not re.search(rf"\.{name}\b", code)
    ]
    how = "Let the engine read it by its name, or put it into THROUGH_PROPERTIES or ACCEPTED"
    assert not unread, f"Silently ignored: {', '.join(unread)}. {how}."
