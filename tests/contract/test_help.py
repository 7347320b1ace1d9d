"""`--help` answers at once, without torch, and fits the screen."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from engine.contract import cli, help
from engine.contract.commands import COMMANDS, example_of, family_names, find, sections_of
from engine.contract.packages import RUN
from engine.contract.schema import options, summary

PACK = Path(cli.__file__).parents[2]
LIMIT_S = 0.3
HEAVY = {"torch", "numpy", "transformers", "rich", "accelerate", "PIL", "av"}
LINES = [
    ["--help"],
    ["dataset"],
    *([*c.verb.split(), *(["wan"] if c.family else []), "--help"] for c in COMMANDS if c.available),
]


def child(words: list[str], *, after: str = "pass", **environment: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; from engine.__main__ import main\nassert main({words!r}) == 0\n{after}"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=PACK, env={**os.environ, **environment}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip


@pytest.mark.parametrize("words", [["--help"], ["train", "wan", "--help"], ["generate", "wan", "--help"]], ids=" ".join)
def test_it_takes_less_than_its_limit(words: list[str], tmp_path: Path) -> None:
    """Processor time of the whole child, interpreter included: it does not depend on what else the machine does.

    From the second time on it is compiled, as it is for a person.
    """
    best = LIMIT_S * 10
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        child(words, PYTHONDONTWRITEBYTECODE="", PYTHONPYCACHEPREFIX=str(tmp_path))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert best < LIMIT_S


def test_it_loads_nothing_heavy() -> None:
    done = child(["train", "wan", "--help"], after="sys.stderr.write(' '.join(sys.modules))")
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert not loaded & HEAVY and "engine" in loaded


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_it_fits_the_screen(
    words: list[str], width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert cli.parse(words) is None
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if len(line) > width] == []
    assert printed.endswith("\n") and "SUPPRESS" not in printed and "None" not in printed


def test_every_option_is_listed_with_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    cli.parse(["train", "wan", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    for section in sections_of(find("train"), "wan"):
        assert f"{section.title}:" in printed
        for option in options(section):
            assert option.flag in printed
            assert "".join(option.help.split()) in "".join(printed.split())


@pytest.mark.parametrize(
    "words", [line for line in LINES if line[-1] == "--help" and line[0] != "--help"], ids=" ".join
)
def test_it_ends_with_an_example_that_is_read(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cli.parse(words)
    printed = capsys.readouterr().out
    command = find(" ".join(word for word in words[:-1] if word != "wan"))
    example = example_of(command, "wan" if "wan" in words else None)
    shown = " ".join(printed.partition("\nexample:\n")[2].replace("\\\n", " ").split())
    assert shown == (" ".join([RUN, *words[:-1], *example.split()]) if example else "")


def test_plan_shows_what_it_is_written_with_and_the_size_of_the_card(capsys: pytest.CaptureFixture[str]) -> None:
    """`plan train wan --help` was train's own page, and `plan --help` did not say how a card's size is given."""
    cli.parse(["plan", "--help"])
    assert "plan train wan --dataset_config" in capsys.readouterr().out
    cli.parse(["plan", "train", "wan", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert f"usage: {RUN} plan train wan --dataset_config FILE" in printed and find("plan").help in printed
    cli.parse(["plan", "train", "--help"])
    assert f"{RUN} plan train wan --help" in capsys.readouterr().out


def test_what_a_section_says_of_itself_is_a_whole_sentence() -> None:
    """Only the first line of its docstring is shown, so a sentence must not run on into the second."""
    sections = {s for c in COMMANDS for f in (family_names() if c.family else [None]) for s in sections_of(c, f)}
    assert [s.__name__ for s in sections if not summary(s).endswith(".")] == []


def test_common_options_come_before_advanced_ones(capsys: pytest.CaptureFixture[str]) -> None:
    cli.parse(["train", "wan", "--help"])
    usage, _, listed = capsys.readouterr().out.partition("[options]")
    assert listed.index("--network_dim") < listed.index("--network_module")
    assert "--dataset_config" in usage and "--task" not in usage


def test_the_overview_lists_every_available_command_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["-h"], ["help"]):
        assert cli.parse(words) is None
        printed = capsys.readouterr().out
        listed = printed.partition("commands:")[2].partition("families:")[0]
        for command in COMMANDS:
            assert (f"  {command.verb}" in listed) == command.available
        examples = printed.partition("examples:")[2]
        assert examples.count(f"{RUN} cache-latents wan") == 1


def test_the_examples_can_be_run(capsys: pytest.CaptureFixture[str]) -> None:
    import shlex

    for command in COMMANDS:
        if command.available and command.verb != "demo":
            for family in family_names() if command.family else [None]:
                if command.family and not example_of(command, family):
                    continue  # a family need not have examples
                words = [*command.verb.split(), *filter(None, [family]), *shlex.split(example_of(command, family))]
                assert cli.parse(words) is not None
    assert capsys.readouterr().out == ""


def test_help_of_a_command_without_its_family_lists_the_families(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.parse(["train", "--help"]) is None
    assert f"{RUN} train wan --help" in capsys.readouterr().out


def test_on_a_terminal_without_rich_it_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setitem(sys.modules, "rich_argparse", None)
    assert "\x1b" not in help.command(find("train"), "wan")


def test_on_a_terminal_with_rich_it_is_coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich_argparse")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "--network_dim" in help.command(find("train"), "wan")
