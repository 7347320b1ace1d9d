"""Commands, families found by their folders, and who imports what."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import engine.families as families
from engine.contract import cli
from engine.contract.commands import (
    COMMANDS,
    FUTURE_SCRIPTS,
    Command,
    family_options,
    find_script,
    for_family,
    script_names,
    sections_of,
)
from engine.contract.errors import OptionError
from engine.contract.options import Run, Timesteps
from engine.contract.schema import listed, options
from engine.families.wan.options import NATIVE_FPS, VARIANTS, task_defaults

PACK = Path(cli.__file__).parents[2]
CONTRACT = sorted((PACK / "engine" / "contract").rglob("*.py"))
OPTIONAL = {"rich_argparse"}  # drawn with when it is there
TOY = '''"""A family that only tests know."""
from __future__ import annotations
from dataclasses import dataclass
from ...contract.options import Timesteps, TrainingModels
from ...contract.schema import Section, opt, redefault

@dataclass(frozen=True, kw_only=True)
class Toy(Section, title="Toy"):
    """A toy."""
    squeak: int = opt(1, "How loud.", low=0, high=11)

@dataclass(frozen=True, kw_only=True)
class ToyTimesteps(Timesteps, title="Noise levels"):
    """Toys like noise."""
    discrete_flow_shift: float = redefault(Timesteps, "discrete_flow_shift", 7.0)

SECTIONS = {"train": (Toy, TrainingModels, ToyTimesteps)}
SCRIPTS = {"toy_train_network": "train"}
'''


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[None]:
    folder = tmp_path / "toy_cat"
    folder.mkdir()
    (folder / "__init__.py").write_text('"""Toy."""\n', encoding="utf-8")
    (folder / "options.py").write_text(TOY, encoding="utf-8")
    before = list(families.__path__)
    families.extra_path(tmp_path)
    yield
    families.__path__[:] = before
    for name in [name for name in sys.modules if name.startswith("engine.families.toy_cat")]:
        del sys.modules[name]


def test_a_folder_is_all_a_family_needs(toy: None) -> None:
    assert "toy_cat" in families.names() and "toy_cat" not in families.names(extra=False)
    job = cli.parse(["train", "toy-cat", "--dit", "d", "--dataset_config", "c", "--squeak", "3"])
    assert job is not None and (job.family, job.name) == ("toy_cat", "train toy-cat")
    assert job[Timesteps].discrete_flow_shift == 7.0 and job.values()["squeak"] == 3
    assert [c.verb for c in for_family("toy_cat")] == ["train"]
    job = cli.parse(["accelerate", "launch", "toy_train_network.py", "--dit", "d", "--dataset_config", "c"])
    assert job is not None and job.family == "toy_cat"
    with pytest.raises(OptionError, match="generate does not exist for toy_cat"):
        cli.parse(["generate", "toy-cat", "--prompt", "x"])


def test_a_family_that_does_not_exist_is_a_key_error_that_lists_the_others() -> None:
    with pytest.raises(KeyError, match="wan"):
        families.part("nobody", "options")


def test_families_are_found_through_the_environment(tmp_path: Path) -> None:
    (tmp_path / "toy_dog").mkdir()
    (tmp_path / "toy_dog" / "options.py").write_text("", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", "import engine.families as f; print(f.names())"],
        cwd=PACK,
        text=True,
        check=True,
        capture_output=True,
        env={"MUSUBI_FAMILIES": str(tmp_path), "PATH": ""},
    )
    assert "toy_dog" in done.stdout and "wan" in done.stdout


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.verb)
def test_no_two_sections_of_a_command_share_a_name(command: Command) -> None:
    for family in families.names() if command.family else [None]:
        sections = sections_of(command, family)
        found = listed(sections)
        assert sections[-1] is Run and len(set(sections)) == len(sections)
        names = {name for option in found.values() for name in (option.name, *option.aliases)}
        assert not {f"no_{name}" for name in names} & names, "a flag would be another one's opposite"


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.available], ids=lambda command: command.verb)
def test_an_available_command_has_its_task(command: Command) -> None:
    assert (PACK / "engine" / "tasks" / f"{command.module}.py").is_file()


def test_every_section_tells_what_it_is_for() -> None:
    for command in COMMANDS:
        for section in sections_of(command, "wan" if command.family else None):
            assert section.title and section.__doc__ and not section.__doc__.startswith(section.__name__ + "(")
            for option in options(section):
                assert option.help[0].isupper() or option.help.startswith(option.choices or ("--",)), option.help
                assert option.help.endswith((".", "…")), f"{option.name}: {option.help}"


def test_every_script_is_known_once() -> None:
    names = script_names()
    assert len(set(names)) == len(names) and not set(FUTURE_SCRIPTS) & set(family_options("wan").SCRIPTS)
    found = find_script("convert_lora")
    assert found is not None and found[0].verb == "lora convert" and find_script("nonsense") is None


@pytest.mark.parametrize("path", CONTRACT, ids=lambda path: str(path.relative_to(PACK)))
def test_the_contract_imports_the_standard_library_only(path: Path) -> None:
    inside = len(path.relative_to(PACK / "engine" / "contract").parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level <= inside, f"{path}:{node.lineno} reaches out of the contract"
            names = [] if node.level else [node.module or ""]
        assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names | OPTIONAL, f"{path}: {names}"


def test_wan_s_tasks_have_the_published_values() -> None:
    assert NATIVE_FPS == 16 and len(VARIANTS) == 14
    told = {name: (t.in_channels, t.infer_steps, t.flow_shift, t.guidance_scale) for name, t in VARIANTS.items()}
    assert told["t2v-1.3B"] == told["t2v-14B"] == told["t2i-14B"] == (16, 50, 5.0, 5.0)
    assert told["i2v-14B"] == told["flf2v-14B"] == (36, 40, 5.0, 5.0)
    assert told["t2v-A14B"] == (16, 40, 12.0, 3.0) and told["i2v-A14B"] == (36, 40, 5.0, 3.5)
    assert told["vace-1.3B"] == told["vace-14B"] == (16, 50, 16.0, 5.0)
    assert told["camera-1.3B"] == told["camera-14B"] == (32, 50, 5.0, 6.0)
    assert (VARIANTS["t2v-A14B"].boundary, VARIANTS["i2v-A14B"].boundary) == (0.875, 0.9)
    assert VARIANTS["t2v-A14B"].guidance_scale_high_noise == 4.0
    assert VARIANTS["t2i-14B"].video_length == 1 and VARIANTS["t2v-14B"].video_length == 81


def test_image_to_video_has_its_own_shift_at_480p_only() -> None:
    assert task_defaults("i2v-14B", video_size=(480, 832)).flow_shift == 3.0
    assert task_defaults("i2v-14B", video_size=(832, 480)).flow_shift == 3.0
    assert task_defaults("i2v-14B", video_size=(720, 1280)).flow_shift == 5.0
    assert task_defaults("i2v-A14B", video_size=(480, 832)).flow_shift == 5.0
    assert task_defaults("t2v-14B", video_size=(480, 832)).flow_shift == 5.0
