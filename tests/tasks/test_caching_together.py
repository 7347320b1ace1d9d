"""Caching in two processes, through the command line: the files of one process, one conversation, one end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from engine.contract.events import Done, Failed, Progress
from tests.faults.engine_child import EngineChild
from tests.faults.kit import LEFTOVERS, ROOT, environment, needs_kill
from tests.tasks.test_several_processes import gone, processes_of

pytestmark = [pytest.mark.slow, needs_kill]
VERBS = ("cache-latents", "cache-text")

# Found by Python at its start, in both processes. Each writes down what it encodes, and waits for the other's first.
WATCHED = """
import os, time
from pathlib import Path

place = Path(os.environ["WATCHED"])
number = os.environ.get("RANK", "0")  # number 0 gives itself its number later

def seen(names):
    with open(place / f"seen-{number}", "a") as file:
        file.writelines(f"{name}\\n" for name in names)
    while not (place / f"seen-{1 - int(number)}").exists():
        time.sleep(0.02)
    while number == "1" and (place / "hold").exists():
        time.sleep(0.02)

from engine.data import pipeline
from engine.families.wan import text

call, encode = pipeline.Encoder._call, text.encode

def watched_call(self, group):
    seen([clip.window.source.stem for clip in group])
    return call(self, group)

def watched_encode(encoder, captions):
    seen(captions)
    return encode(encoder, captions)

pipeline.Encoder._call, text.encode = watched_call, watched_encode
"""


@pytest.fixture(scope="module")
def alone(prepared, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The caches that one process makes."""
    from engine.__main__ import main

    folder = tmp_path_factory.mktemp("alone")
    for verb in VERBS:
        assert main([*words(prepared, verb, dataset_of(prepared, folder)), "--device", "cpu"]) == 0
    return contents(folder)


def dataset_of(prepared, folder: Path) -> Path:
    """The demo's dataset with its caches in another folder."""
    text = (prepared.folder / "dataset.toml").read_text()
    path = folder / "dataset.toml"
    path.write_text(text.replace((prepared.folder / "cache").as_posix(), (folder / "cache").as_posix()))
    return path


def words(prepared, verb: str, dataset: Path) -> list[str]:
    (step,) = (step for step in prepared.steps if step.verb == verb)
    size = ["--batch_size", "1"]  # one caption at a time, so that both processes get some
    return [*step.command, "--dataset_config", str(dataset), *size, "--job_dir", str(dataset.with_name(f"job-{verb}"))]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "cache").iterdir())}


@pytest.fixture
def together(prepared, tmp_path: Path):
    """Starts a command in two processes that write down what they encode."""
    (tmp_path / "sitecustomize.py").write_text(WATCHED)
    dataset = dataset_of(prepared, tmp_path)
    told = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "WATCHED": str(tmp_path)}

    def start(verb: str, *more: object) -> EngineChild:
        two = ("--num_processes", 2, "--device", "cpu")
        return EngineChild(*words(prepared, verb, dataset), *two, *more, folder=tmp_path, **told)

    return start


def seen(folder: Path) -> list[list[str]]:
    """What each of the two has encoded."""
    found = [(folder / f"seen-{number}") for number in (0, 1)]
    both = [path.read_text().splitlines() for path in found]
    for path in found:
        path.unlink()
    return both


def test_the_files_are_those_of_one_process_byte_for_byte(together, alone, tmp_path: Path) -> None:
    for verb in VERBS:
        with together(verb) as child:
            assert child.end() == 0, child.last
            assert child.last == Done(message=child.last.message) and child.last.message.startswith("6 ")
            bars = [event for event in child.heard if isinstance(event, Progress)]
            assert (bars[-1].done, bars[-1].total) == (6, 6) and len({bar.label for bar in bars}) == 1
        both = seen(tmp_path)
        assert all(both) and len([*both[0], *both[1]]) == len({*both[0], *both[1]}) == 6
    assert contents(tmp_path) == alone


def test_a_killed_process_is_the_job_s_error_and_the_next_run_goes_on(together, alone, tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    with together("cache-latents") as child:
        child.until(lambda event: isinstance(event, Progress) and event.done >= 1)
        (other,) = processes_of(child)
        os.kill(other, signal.SIGKILL)
        assert child.end() == 3
        assert isinstance(child.last, Failed) and "Process 1 of the job was killed" in child.last.message
    for name, content in contents(tmp_path).items():
        assert name.startswith(LEFTOVERS.rstrip("*")) or alone[name] == content
    (tmp_path / "hold").unlink()
    with together("cache-latents") as child:
        assert child.end() == 0, child.last
    latents = {name: content for name, content in alone.items() if "_te." not in name}
    assert contents(tmp_path) == latents


def test_a_stop_reaches_both_and_nobody_is_left(together, tmp_path: Path) -> None:
    """Ctrl-C in a terminal goes to every process."""
    (tmp_path / "hold").touch()
    with together("cache-latents") as child:
        child.until(lambda event: isinstance(event, Progress) and event.done >= 1)
        (other,) = processes_of(child)
        for number in (child.process.pid, other):
            os.kill(number, signal.SIGINT)
        (tmp_path / "hold").unlink()
        assert child.end() == 0, child.last
        assert isinstance(child.last, Done) and child.last.stopped and gone(other)


def test_processes_of_an_outer_launcher_share_the_work(prepared, alone, tmp_path: Path) -> None:
    """As torchrun and `accelerate launch` start them: each with the whole command line and a number."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    (tmp_path / "sitecustomize.py").write_text(WATCHED)
    told |= {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "WATCHED": str(tmp_path)}
    command = [*words(prepared, "cache-text", dataset_of(prepared, tmp_path)), "--device", "cpu"]
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "engine", *command],
            env=environment(**told, RANK=number, LOCAL_RANK=number),
            text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path,
        )
        for number in ("0", "1")
    ]  # fmt: skip
    said = [child.communicate(timeout=120)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    assert "6 captions cached" in said[0] and said[1] == "" and all(seen(tmp_path))
    assert contents(tmp_path) == {name: content for name, content in alone.items() if "_te." in name}
