"""Making the environment: the order, what a second run does, what an end at any moment leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from engine.contract.events import Done, Failed, Hello, Progress, Stage, read
from env_bootstrap import maker, plan
from env_bootstrap.home import PACK

from .conftest import HEAVY, LIGHT, NVIDIA_SMI, World, is_alive

NETWORK = ["ERROR: host='x.example', port=443): Failed to establish a new connection"]


def named(installs: list[list[str]]) -> list[str]:
    """What each install was for: `torch` or the name of a requirements file."""
    names = []
    for words in installs:
        file = next((Path(words[index + 1]).stem for index, word in enumerate(words) if word == "-r"), "")
        names.append(file or words[-1] if file else next(word for word in words if "==" in word).split("==")[0])
    return names


def test_from_nothing_to_ready(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.main("create") == 0
    assert world.stamp()["ready"] and world.stamp()["build"] == "cpu"
    assert "torch" in world.stamp()["versions"] and "numpy" in world.stamp()["entries"]
    said = capsys.readouterr().err
    assert all(f"[{number}/4]" in said for number in range(1, 5)) and "ready:" in said
    assert sorted(os.listdir(world.home.path)) == ["cache", "env", "env.json", "lock", "logs"]
    assert not world.home.temporary.exists()


def test_torch_comes_first_and_alone_and_where_pip_finds_it(world: World) -> None:
    """A machine whose pip knows a local build gets that one: no index is named when there is no GPU."""
    world.main("create")
    assert named(world.installs()) == ["torch", "base"]
    assert not any("index" in word for words in world.installs() for word in words)


def test_a_second_create_answers_at_once_and_starts_nothing(world: World) -> None:
    world.main("create")
    world.forget_calls()
    started = time.monotonic()
    assert world.main("create") == 0
    assert time.monotonic() - started < 0.25
    assert world.calls() == []


def test_a_second_create_as_a_command_is_fast(world: World) -> None:
    world.main("create")
    best = 9.0
    for _ in range(6):
        started = time.monotonic()
        assert world.start("create").wait() == 0
        best = min(best, time.monotonic() - started)
    assert best < 0.5


def test_no_gpu_and_a_pip_that_would_take_cuda_uses_pytorchs_cpu_channel(world: World) -> None:
    world.set(report=HEAVY)
    world.main("create")
    words = world.installs()[0]
    assert words[words.index("--index-url") + 1].endswith("/whl/cpu")


def test_the_cpu_channel_out_of_reach_falls_back_with_one_line(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.set(report=HEAVY, install=[{"match": "--index-url", "lines": NETWORK, "status": 1}])
    assert world.main("create") == 0
    assert capsys.readouterr().err.count("taking the one that pip finds by itself") == 1


def test_a_build_that_was_asked_for_is_never_replaced(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.environment["MUSUBI_TORCH"] = "cpu"
    world.set(report=LIGHT, install=[{"match": "--index-url", "lines": NETWORK, "status": 1}])
    assert world.main("create") == 1
    assert "no connection to x.example" in capsys.readouterr().err


def test_a_gpu_gets_its_channel_and_the_optional_packages(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.script("nvidia-smi", NVIDIA_SMI)
    world.set(device="NVIDIA X", install=[{"match": "sageattention", "lines": ["ERROR: no compiler"], "status": 1}])
    assert world.main("create") == 0
    assert world.stamp()["build"] == "cu130"
    assert any("/whl/cu130" in word for word in world.installs()[0])
    assert world.stamp()["versions"]["torch"] == "2.13.0+cu130"
    said = capsys.readouterr().err
    assert said.count("warning:") == 1 and "sageattention is left out" in said


def test_a_gpu_that_torch_cannot_see_is_a_warning(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.environment["MUSUBI_TORCH"] = "cu130"
    assert world.main("create") == 0
    assert "sees no GPU" in capsys.readouterr().err


def test_uv_is_used_when_it_is_there(world: World) -> None:
    world.tool("path/uv")
    world.main("create")
    assert {Path(call["self"]).name for call in world.calls() if "install" in call["argv"]} >= {"uv"}
    assert not any(Path(call["self"]).name == "python" for call in world.calls() if "-r" in call["argv"])


def test_a_failing_uv_falls_back_to_pip_with_one_line(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.tool("path/uv")
    world.set(uv={"status": 2, "lines": ["error: Failed to fetch"]})
    assert world.main("create") == 0
    assert capsys.readouterr().err.count("uv could not install torch==2.13.0: trying pip.") == 1


def test_uv_is_not_used_where_pip_is_told_where_packages_are(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.tool("path/uv")
    world.set(pip_config="global.find-links='/wheels'")
    assert world.main("create") == 0
    assert not any(Path(call["self"]).name == "uv" for call in world.calls())
    assert "using pip" in capsys.readouterr().err


def test_an_environment_made_by_uv(world: World) -> None:
    world.tool("path/uv")
    world.set(probe={**world.scenario["probe"], "venv": False})
    assert world.main("create") == 0
    made = next(call["argv"] for call in world.calls() if call["argv"][0] == "venv")
    assert "--seed" in made and "--allow-existing" in made


def test_a_failed_step_is_repeated_and_the_done_ones_are_not(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.set(install=[{"match": "base.txt", "lines": NETWORK, "status": 1, "once": True}])
    assert world.main("create") == 1
    said = capsys.readouterr().err
    assert "no connection to x.example" in said and "it resumes" in said and "log:" in said
    assert set(world.stamp()["steps"]) == {"venv", "torch"}
    world.forget_calls()
    assert world.main("create") == 0
    assert named(world.installs()) == ["base"]
    assert not any("venv" in call["argv"] for call in world.calls())


@pytest.mark.parametrize("moment", ["venv", "torch", "base", "test"])
def test_killed_at_any_moment_it_goes_on(world: World, moment: str) -> None:
    """kill -9 of the maker: its installer ends too, the lock is free, and the next run ends well."""
    half = {"torch": "torch", "base": "numpy", "test": "pytest"}
    if moment == "venv":
        world.set(venv={"sleep": 20})
    else:
        match = "torch==" if moment == "torch" else f"{moment}.txt"
        world.set(install=[{"match": match, "half": half[moment], "sleep": 20, "once": True}])
    child = world.start("create", "--with_tests")
    if moment == "venv":
        world.wait_for(world.home.marker)
    else:
        world.wait_for(world.folder / "busy")
    child.send_signal(signal.SIGKILL)
    child.communicate()
    if moment != "venv":
        installer = int((world.folder / "busy").read_text())
        deadline = time.monotonic() + 5
        while is_alive(installer) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not is_alive(installer)
    world.set(venv={})
    assert world.main("status", "--quick") == 1
    assert world.main("create", "--with_tests", "--timeout", "5") == 0
    assert world.stamp()["ready"]
    assert maker.faults(world.home, maker.stamp.load(world.home.stamp)) == []  # type: ignore[arg-type]
    assert "0.0" not in world.stamp()["versions"].values()


def test_killed_after_everything_but_before_the_stamp(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maker, "_finish", lambda *arguments: (_ for _ in ()).throw(SystemExit(9)))
    with pytest.raises(SystemExit):
        world.main("create")
    monkeypatch.undo()
    assert not world.stamp()["ready"]
    world.forget_calls()
    assert world.main("create") == 0 and world.installs() == []


def test_killed_while_a_damaged_package_is_cleared_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.main("create")
    (world.packages() / "torch-2.13.0.dist-info" / "RECORD").unlink()
    monkeypatch.setattr(maker.integrity, "forget", lambda *arguments: (_ for _ in ()).throw(SystemExit(9)))
    with pytest.raises(SystemExit):
        world.main("repair")
    monkeypatch.undo()
    assert set(world.stamp()["steps"]) == {"venv"} and not world.stamp()["ready"]


def test_a_second_maker_waits_and_finds_it_done(world: World) -> None:
    world.set(install=[{"match": "torch==", "sleep": 1.0, "once": True}])
    first = world.start("create")
    world.wait_for(world.folder / "busy")
    second = world.start("create")
    assert first.wait() == 0
    said = second.communicate()[1]
    assert second.returncode == 0 and f"process {first.pid}" in said
    assert named(world.installs()) == ["torch", "base"]


def test_a_second_maker_with_a_timeout_gives_up(world: World) -> None:
    world.set(install=[{"match": "torch==", "sleep": 20}])
    first = world.start("create")
    world.wait_for(world.folder / "busy")
    second = world.start("create", "--timeout", "0.2")
    said = second.communicate()[1]
    first.kill()
    first.communicate()
    assert second.returncode == 1 and "being worked on by 'create'" in said


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(world: World, number: int, status: int) -> None:
    world.set(install=[{"match": "torch==", "sleep": 20, "once": True}])
    child = world.start("create")
    world.wait_for(world.folder / "busy")
    child.send_signal(number)
    said = child.communicate(timeout=10)[1]
    assert child.returncode == status
    assert "Run the same command again: it resumes" in said
    assert not is_alive(int((world.folder / "busy").read_text()))
    assert world.main("create") == 0


def test_events_can_be_read_with_the_engines_own_reader(world: World) -> None:
    child = world.start("create", "--events")
    out, err = child.communicate()
    events = [read(line) for line in out.splitlines()]
    assert child.returncode == 0 and err == ""
    assert isinstance(events[0], Hello) and isinstance(events[-1], Done)
    assert [event.name for event in events if isinstance(event, Stage)] == ["venv", "torch", "base", "check"]
    counts = [event.done for event in events if isinstance(event, Progress)]
    assert counts == sorted(counts)


def test_a_failure_is_the_last_event(world: World) -> None:
    world.set(install=[{"match": "torch==", "lines": ["ERROR: No space left on device"], "status": 1}])
    child = world.start("create", "--events")
    last = read(child.communicate()[0].splitlines()[-1])
    assert child.returncode == 4 and isinstance(last, Failed) and last.kind == "disk" and last.hint


@pytest.mark.parametrize("way", ["stop", "end of stdin", "stop, where SIGINT is ignored"])
def test_a_dialog_can_stop_it(world: World, way: str) -> None:
    """A ComfyUI that a script has started in the background ignores SIGINT, and hands that on."""
    world.set(install=[{"match": "torch==", "sleep": 20}])
    ignores = signal.SIG_IGN if "ignored" in way else signal.default_int_handler
    before = signal.signal(signal.SIGINT, ignores)
    try:
        child = world.start("create", "--events", stdin=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, before)
    world.wait_for(world.folder / "busy")
    assert child.stdin
    if way.startswith("stop"):
        child.stdin.write('{"command": "stop"}\n')
        child.stdin.flush()
    out = child.communicate(timeout=10)[0]
    last = read(out.splitlines()[-1])
    assert child.returncode == 0 and isinstance(last, Done) and last.stopped


def test_a_changed_list_repeats_that_step_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.main("create")
    requirements = world.folder / "requirements"
    shutil.copytree(plan.REQUIREMENTS, requirements)
    (requirements / "base.txt").write_text((requirements / "base.txt").read_text() + "extra==1.0\n")
    for module in (plan, maker):
        monkeypatch.setattr(module, "REQUIREMENTS", requirements)
    assert world.main("status", "--quick") == 1
    world.forget_calls()
    assert world.main("create") == 0
    assert named(world.installs()) == ["base"] and "extra" in world.stamp()["versions"]


def test_the_tests_packages_are_added_to_a_ready_environment(world: World) -> None:
    world.main("create")
    world.forget_calls()
    assert world.main("create", "--with-tests") == 0
    assert named(world.installs()) == ["test"]
    world.forget_calls()
    assert world.main("create") == 0 and world.main("create", "--with_tests") == 0
    assert world.calls() == []


def test_another_build_is_built_anew(world: World) -> None:
    world.main("create")
    (world.packages() / "left_over").mkdir()
    world.environment["MUSUBI_TORCH"] = "cu130"
    assert world.main("create") == 0
    assert world.stamp()["build"] == "cu130" and not (world.packages() / "left_over").exists()
    del world.environment["MUSUBI_TORCH"]
    world.forget_calls()
    assert world.main("create") == 0 and world.calls() == []


@pytest.mark.parametrize(("build", "gigabytes", "enough"), [("cpu", 2, False), ("cpu", 4, True), ("cu130", 4, False)])
def test_the_disk_is_looked_at_before(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    build: str,
    gigabytes: int,
    enough: bool,
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=gigabytes * 10**9))
    world.environment["MUSUBI_TORCH"] = build
    assert world.main("create") == (0 if enough else 4)
    said = capsys.readouterr().err
    assert enough or ("GB free" in said and "MUSUBI_HOME" in said and world.installs() == [])


@pytest.mark.parametrize("place", ["file/home", "file"])
def test_a_home_that_cannot_be_written(world: World, capsys: pytest.CaptureFixture[str], place: str) -> None:
    (world.folder / "file").write_text("in the way")
    world.environment["MUSUBI_HOME"] = str(world.folder / place)
    assert world.main("create") == 2
    said = capsys.readouterr().err
    assert "cannot be written" in said and "Set MUSUBI_HOME" in said


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions mean nothing to the superuser")
def test_a_read_only_home(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.home.path.mkdir(mode=0o500)
    assert world.main("create") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_an_env_folder_of_somebody_else_is_left_alone(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.home.env.mkdir(parents=True)
    (world.home.env / "precious").write_text("mine")
    assert world.main("create") == 2
    assert "was not made by this program" in capsys.readouterr().err
    assert world.main("remove", "--yes") == 2
    assert (world.home.env / "precious").read_text() == "mine"


def test_a_venv_that_fails_says_what_python_said(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.set(venv={"status": 1, "lines": ["Error: Command returned non-zero exit status 1."]})
    assert world.main("create") == 2
    assert "Python environment" in capsys.readouterr().err


def test_no_venv_module(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.set(probe={**world.scenario["probe"], "venv": False, "pip": False})
    assert world.main("create") == 2
    assert "sudo apt install python3.11-venv" in capsys.readouterr().err


def test_an_import_that_fails_in_the_end_is_not_ready(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.set(imports_failed=["cv2"])
    assert world.main("create") == 1
    said = capsys.readouterr().err
    assert "cannot import cv2" in said and "repair" in said
    assert not world.stamp()["ready"]


def test_the_installers_environment_is_clean_and_keeps_pips_settings(world: World) -> None:
    world.environment |= {
        "PYTHONPATH": "/leak",
        "PIP_TARGET": "/leak",
        "PIP_USER": "1",
        "VIRTUAL_ENV": "/leak",
        "CONDA_PREFIX": "/leak",
        "PIP_INDEX_URL": "https://mirror.example/simple",
        "HTTPS_PROXY": "http://proxy.example",
    }
    assert world.main("create") == 0
    for call in world.calls():
        assert not [name for name, value in call["env"].items() if value == "/leak" or name == "PIP_USER"]
        assert call["env"]["PIP_INDEX_URL"] == "https://mirror.example/simple"
        assert call["env"]["HTTPS_PROXY"] == "http://proxy.example"
    inside = [call["env"] for call in world.calls() if "install" in call["argv"]]
    assert all(str(world.home.path) in environment["TMPDIR"] for environment in inside)


def test_the_calling_python_is_not_touched(world: World) -> None:
    """Not one file of the calling Python's packages changes, and no call goes to its pip."""
    import pip

    packages = Path(pip.__file__).parents[1]
    before = sorted((path.name, path.stat().st_mtime_ns) for path in packages.iterdir())
    assert world.start("create", "--with_tests").wait() == 0
    assert sorted((path.name, path.stat().st_mtime_ns) for path in packages.iterdir()) == before
    for call in world.calls():
        if "install" in call["argv"]:
            assert call["self"] == str(world.home.python)


def test_a_calling_python_inside_an_environment_makes_one_from_its_base(world: World) -> None:
    base = getattr(sys, "_base_executable", sys.executable)
    text = "from env_bootstrap.interpreters import calling_python; print(calling_python())"
    told = subprocess.run([sys.executable, "-c", text], cwd=PACK, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == base


def test_a_fault_of_ours_keeps_its_traceback_in_the_log(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(*arguments: Any) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(maker, "check_space", wrong)
    assert world.main("create") == 70
    said = capsys.readouterr().err
    assert "ZeroDivisionError" in said and "Traceback" not in said
    assert "Traceback" in next(world.home.logs.glob("*.log")).read_text()


def test_the_log_has_everything_the_installers_said(world: World) -> None:
    world.main("create")
    text = next(world.home.logs.glob("*-create.log")).read_text()
    assert "Collecting numpy" in text and "pip install" in text


def test_a_terminal_gets_a_bar_and_a_pipe_gets_lines() -> None:
    import io

    from env_bootstrap.report import Report

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for screen, sign in ((Terminal(), "\r"), (io.StringIO(), "")):
        report = Report(screen=screen)
        report.stage("torch", "[1/2] torch")
        report._last_s = -99.0
        report.progress(0.5, "torch-2.13")
        assert " 50 %  torch-2.13" in screen.getvalue()
        assert ("\r" in screen.getvalue()) == bool(sign)


def test_json_on_stdout_stays_json_with_odd_characters(world: World) -> None:
    world.set(install=[{"match": "torch==", "lines": ["ERROR: näh ☃"], "status": 1}])
    out = world.start("create", "--events").communicate()[0]
    assert all(json.loads(line) for line in out.splitlines())
