"""Handing over to the engine, the demo and the tests."""

from __future__ import annotations

import ast
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from env_bootstrap import cli
from env_bootstrap.home import PACK
from env_bootstrap.launch import pytest_command

from .conftest import World


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A working directory with things in it that must not get in the way."""
    folder = tmp_path / "else where"
    (folder / "engine").mkdir(parents=True)
    (folder / "engine" / "__main__.py").write_text("raise SystemExit('the wrong engine')\n")
    (folder / "json.py").write_text("raise SystemExit('the wrong json')\n")
    return folder


def bootstrap(world: World, pack: Path, folder: Path, *argv: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, str(pack / "env_bootstrap"), *argv]
    return subprocess.Popen(
        command, cwd=folder, env=world.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["demoo"], "Did you mean demo?"),
        (["train", "wan", "--dit", "a b"], "python -m env_bootstrap run -- train wan --dit 'a b'"),
        (["generate", "wan"], "python -m env_bootstrap run -- generate wan"),
        (["wan_train_network.py"], "python -m env_bootstrap run -- wan_train_network.py"),
    ],
    ids=str,
)
def test_the_engine_s_commands_are_told_where_they_stand(
    words: list[str], hint: str, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """They were answered with argparse's list of choices."""
    assert world.main(*words) == 2
    assert hint in " ".join(capsys.readouterr().err.split())


def test_nothing_typed_shows_what_can_be(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.main() == 0 and "make the environment" in capsys.readouterr().out
    assert all(name in cli.parser().format_help() for name in cli.OURS)


def test_run_keeps_the_folder_the_arguments_and_the_status(world: World, copied_pack: Path, elsewhere: Path) -> None:
    """From any folder, from a pack whose path has spaces, and nothing in the folder shadows the engine."""
    world.main("create")
    child = bootstrap(world, copied_pack, elsewhere, "run", "--", "train", "wan", "--x", "a b", "fail")
    out, err = child.communicate()
    assert child.returncode == 7, err
    told = json.loads(out)
    assert told["argv"] == ["train", "wan", "--x", "a b", "fail"] and told["cwd"] == str(elsewhere)


def test_run_leaks_nothing_of_the_calling_python(world: World, copied_pack: Path, elsewhere: Path) -> None:
    world.main("create")
    world.environment |= {"PYTHONPATH": "/leak", "VIRTUAL_ENV": "/leak", "MINE": "kept"}
    out = bootstrap(world, copied_pack, elsewhere, "run", "--", "doctor").communicate()[0]
    environment = json.loads(out)["env"]
    assert "/leak" not in environment.values() and environment["MINE"] == "kept"


@pytest.mark.skipif(sys.platform == "win32", reason="a shell that closes streams")
def test_run_hands_over_with_stderr_closed(world: World, copied_pack: Path, elsewhere: Path) -> None:
    world.main("create")
    command = ["sh", "-c", '"$0" "$@" 2>&-', sys.executable, str(copied_pack / "env_bootstrap"), "run", "--", "doctor"]
    ran = subprocess.run(command, cwd=elsewhere, env=world.environment, text=True, stdout=subprocess.PIPE)
    assert ran.returncode == 0 and json.loads(ran.stdout)["argv"] == ["doctor"]


def test_a_signal_reaches_the_engine(world: World, copied_pack: Path) -> None:
    world.main("create")
    child = bootstrap(world, copied_pack, world.folder, "run", "--", "wait")
    assert child.stdout
    child.stdout.readline()
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=5)
    assert child.returncode == -signal.SIGTERM


def test_run_without_an_environment_says_how_to_get_one(world: World, copied_pack: Path) -> None:
    child = bootstrap(world, copied_pack, world.folder, "run", "--", "doctor")
    err = child.communicate()[1]
    assert child.returncode == 2 and "env_bootstrap create" in err


def test_the_demo_makes_the_environment_and_hands_its_arguments_on(world: World, copied_pack: Path) -> None:
    child = bootstrap(world, copied_pack, world.folder, "demo", "--out", "here")
    out, err = child.communicate()
    assert child.returncode == 0 and "[1/4]" in err
    assert json.loads(out)["argv"] == ["demo", "--out", "here"]
    again = bootstrap(world, copied_pack, world.folder, "demo")
    assert again.communicate()[1] == ""


def test_the_tests_run_in_the_packs_folder(world: World, copied_pack: Path) -> None:
    (copied_pack / "tests").mkdir()
    (copied_pack / "tests" / "test_it.py").write_text(
        "import os\n\ndef test_it():\n    assert os.path.isdir('engine')\n"
    )
    child = bootstrap(world, copied_pack, world.folder, "test", "-q", "tests/test_it.py")
    out = child.communicate()[0]
    assert child.returncode == 0 and "1 passed" in out
    assert "pytest" in world.stamp()["versions"]
    assert not (copied_pack / ".pytest_cache").exists()


def test_a_failing_test_is_the_exit_status(world: World, copied_pack: Path) -> None:
    (copied_pack / "test_it.py").write_text("def test_it():\n    assert False\n")
    child = bootstrap(world, copied_pack, world.folder, "test", "-q", "test_it.py")
    child.communicate()
    assert child.returncode == 1


def test_no_cache_folder_in_the_pack() -> None:
    parallel = ["-n", "auto", "--dist", "worksteal"]
    assert pytest_command("python", ["-k", "x"]) == [
        "python", "-m", "pytest", "-p", "no:cacheprovider", *parallel, "-k", "x"
    ]  # fmt: skip


@pytest.mark.parametrize("command", ["run", "demo", "test"])
def test_help_makes_nothing(world: World, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.main(command, "--help") == 0
    assert command in capsys.readouterr().out and not world.home.path.exists()


def test_help_is_fast_and_names_every_command(world: World) -> None:
    best = 9.0
    for _ in range(6):
        started = time.monotonic()
        child = world.start("--help")
        out = child.communicate()[0]
        best = min(best, time.monotonic() - started)
        assert child.returncode == 0
        assert all(word in out for word in "create status repair remove python run demo test MUSUBI_HOME".split())
    assert best < 0.3


def test_an_unknown_command_is_exit_2(world: World) -> None:
    child = world.start("install")
    child.communicate()
    assert child.returncode == 2


def test_an_old_python_can_read_the_door() -> None:
    """`__main__.py` and `__init__.py` are all that an old Python sees before it is turned away."""
    for name in ("__main__.py", "__init__.py"):
        text = (PACK / "env_bootstrap" / name).read_text(encoding="utf-8")
        assert text.isascii()
        tree = ast.parse(text, feature_version=(3, 4))
        assert not [node for node in ast.walk(tree) if isinstance(node, (ast.JoinedStr, ast.AnnAssign))]
        assert "__future__" not in text


def test_output_that_nobody_reads_is_no_error(world: World) -> None:
    world.main("create")
    child = world.start("status", "--quick")
    assert child.stdout
    child.stdout.close()
    child.wait(timeout=10)
    assert child.stderr and "Traceback" not in child.stderr.read()
