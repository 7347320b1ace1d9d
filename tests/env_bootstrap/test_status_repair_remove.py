"""Looking at an environment, mending it, taking it away."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from .conftest import NVIDIA_SMI, World


def state(world: World, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, object]]:
    capsys.readouterr()
    status = world.main("status", "--json", *options)
    return status, json.loads(capsys.readouterr().out)


def test_absent(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = state(world, capsys)
    assert (status, said["state"]) == (1, "absent") and "create" in str(said["next"])
    assert not world.home.path.exists()


@pytest.mark.parametrize("options", [(), ("--quick",)])
def test_ready(world: World, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]) -> None:
    world.main("create")
    status, said = state(world, capsys, *options)
    assert (status, said["state"], said["reasons"]) == (0, "ready", [])
    assert said["python"] == str(world.home.python) and said["torch"] == "2.13.0"


def test_the_table_for_a_person(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.main("create")
    capsys.readouterr()
    assert world.main("status") == 0
    table = capsys.readouterr().out
    assert table.startswith("state     ready\n") and "torch     2.13.0 (cpu build)" in table


@pytest.mark.parametrize("options", [(), ("--quick",)])
def test_a_lost_package_is_broken(world: World, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]) -> None:
    world.main("create")
    shutil.rmtree(world.packages() / "safetensors")
    status, said = state(world, capsys, *options)
    assert (status, said["state"]) == (1, "broken")
    assert "safetensors" in str(said["reasons"]) and "repair" in str(said["next"])
    assert world.main("python") == 2


def test_a_cut_file_is_broken_by_the_full_look(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.main("create")
    (world.packages() / "numpy" / "__init__.py").write_text("")
    status, said = state(world, capsys)
    assert (status, said["state"]) == (1, "broken") and "numpy" in str(said["reasons"])


def test_a_failing_import_is_broken(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.main("create")
    world.set(imports_failed=["av"])
    assert state(world, capsys)[1]["reasons"] == ["cannot import av: ModuleNotFoundError: gone"]


def test_a_python_that_is_gone_is_broken_and_built_anew(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """The base Python was removed or upgraded: the environment's link leads nowhere."""
    world.main("create")
    world.home.python.unlink()
    world.home.python.symlink_to("/no/such/python")
    assert state(world, capsys)[1]["state"] == "broken"
    assert world.main("repair") == 0
    assert state(world, capsys)[1]["state"] == "ready"


def test_incomplete(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.set(install=[{"match": "base.txt", "lines": ["ERROR: x"], "status": 1}])
    world.main("create")
    said = state(world, capsys)[1]
    assert said["state"] == "incomplete" and "packages of the engine" in str(said["reasons"])


def test_a_lost_stamp_is_incomplete_and_made_again(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.main("create")
    world.home.stamp.write_text("garbage")
    assert state(world, capsys)[1]["state"] == "incomplete"
    assert world.main("create") == 0 and state(world, capsys)[1]["state"] == "ready"


def test_repair_reinstalls_what_is_damaged(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.main("create")
    shutil.rmtree(world.packages() / "safetensors")
    world.forget_calls()
    assert world.main("repair") == 0
    assert "safetensors" in capsys.readouterr().err
    assert not any("venv" in call["argv"] for call in world.calls())
    assert state(world, capsys)[1]["state"] == "ready"


def test_repair_of_a_sound_one_installs_nothing(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.main("create")
    world.forget_calls()
    assert world.main("repair") == 0
    assert world.installs() == [] and "nothing to repair" in capsys.readouterr().err


def test_repair_with_a_broken_pip_builds_anew(world: World) -> None:
    world.main("create")
    (world.packages() / "pip-23.2.1.dist-info" / "RECORD").unlink()
    world.forget_calls()
    assert world.main("repair") == 0
    assert any("venv" in call["argv"] for call in world.calls())


def test_repair_builds_anew_when_reinstalling_was_not_enough(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.main("create")
    world.set(imports_failed=["av"])
    world.forget_calls()
    assert world.main("repair") == 1  # the fake never heals
    assert "Rebuilding" in capsys.readouterr().err
    assert any("venv" in call["argv"] for call in world.calls())


def test_repair_takes_up_a_new_gpu(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.main("create")
    world.script("nvidia-smi", NVIDIA_SMI)
    world.set(device="NVIDIA X")
    status, said = state(world, capsys)
    assert status == 0 and "repair installs it" in str(said["notes"])
    assert world.main("repair") == 0
    assert world.stamp()["build"] == "cu130"


def test_repair_keeps_a_build_that_the_person_chose(world: World) -> None:
    world.environment["MUSUBI_TORCH"] = "cu126"
    world.main("create")
    del world.environment["MUSUBI_TORCH"]
    assert world.main("repair") == 0
    assert world.stamp()["build"] == "cu126"


def test_repair_keeps_the_tests_packages(world: World) -> None:
    world.main("create", "--with_tests")
    assert world.main("repair", "--rebuild") == 0
    assert "pytest" in world.stamp()["versions"]


def test_remove_asks_first(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.main("create")
    child = world.start("remove")
    child.communicate()
    assert child.returncode == 2 and world.home.env.exists()


def test_remove_takes_what_was_made_and_no_more(world: World) -> None:
    world.main("create")
    mine = [
        world.home.path / "jobs" / "note.txt",
        world.home.path / "cache" / "compile" / "x",
        world.home.logs / "my.log",
    ]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    assert world.main("remove", "--yes") == 0
    left = sorted(path for path in world.home.path.rglob("*") if path.is_file())
    assert left == sorted(mine)


def test_remove_leaves_nothing_when_nothing_else_is_there(world: World) -> None:
    world.main("create")
    world.home.attention.write_text("{}")
    world.home.scratch.mkdir()
    (world.home.scratch / ".scratch-left").write_text("by a process that was killed where such files have names")
    assert world.main("remove", "--yes") == 0
    assert not world.home.path.exists()
    assert world.main("remove", "--yes") == 0


def test_an_interrupted_removal_is_finished_by_the_next_run(world: World) -> None:
    world.main("create")
    grave = world.home.path / "env.removing-1-2"
    world.home.env.rename(grave)
    assert world.main("create") == 0
    assert not grave.exists() and world.stamp()["ready"]


def test_python_prints_the_path_or_the_way_to_it(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.main("python") == 2
    said = capsys.readouterr()
    assert said.out == "" and "env_bootstrap create" in said.err
    world.main("create")
    capsys.readouterr()
    assert world.main("python") == 0
    assert Path(capsys.readouterr().out.strip()) == world.home.python
