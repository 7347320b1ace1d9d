"""Two ComfyUIs on one output folder: what one has under way, the other shows and leaves alone."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.contract.events import Progress, Resource, Stage
from engine.talk import JobFolder

from .conftest import PACK, part

answers = part("nodes.answers")
OTHER = """
import pathlib, sys
from tests.nodes.conftest import part
runs = part("nodes.records").Runs()
run = runs.begin(pathlib.Path(sys.argv[1]), title="Trainer", verb="train", family="wan", node="7", prompt="p")
run.change("running", message="The engine is starting.")
print(run.id, flush=True)
sys.stdin.readline()
run.change("done", message="Trained 5 steps.")
print("done", flush=True)
sys.stdin.readline()
"""


class Other:
    """Another ComfyUI with a run under way."""

    def __init__(self, folder: Path):
        self.process = subprocess.Popen(
            [sys.executable, "-c", OTHER, str(folder)], cwd=PACK, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self.run = self._heard()
        self.folder = folder / self.run

    def _heard(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def finish(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self._heard() == "done"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def folder(comfy: Path) -> Path:
    return part("nodes.paths").jobs()


@pytest.fixture
def other(folder: Path) -> Iterator[Other]:
    found = Other(folder)
    with found.process:
        yield found
        found.process.kill()


def listed() -> dict[str, Any]:
    (summary,) = answers.answered(answers.runs, answers.Asked()).data["runs"]
    return summary


def asked(function: str, run: str, **more: Any) -> Any:
    return answers.answered(getattr(answers, function), answers.Asked(run=run, **more))


def test_a_run_of_another_comfyui_is_running_there(other: Other) -> None:
    summary = listed()
    assert (summary["state"], summary["ended"], summary["error"]) == ("running", None, None)
    assert summary["elsewhere"] == {"process": other.process.pid, "machine": platform.node()}
    whole = asked("run", other.run).data
    assert whole["state"] == "running" and whole["elsewhere"] == summary["elsewhere"]
    assert whole["message"] == "The engine is starting."


def test_it_is_neither_ended_nor_taken_off_the_list_here(other: Other) -> None:
    for answer in (asked("remove", other.run), asked("command", other.run, body={"command": "cancel"})):
        assert answer.status == 409
        said = answer.data["error"]["message"]
        assert said == f"The run is under way in another ComfyUI, process {other.process.pid} on {platform.node()}."
    assert (other.folder / "run.json").is_file()


def test_its_end_is_seen_and_then_it_is_a_run_as_any_other(other: Other) -> None:
    other.finish()
    summary = listed()
    assert (summary["state"], summary["elsewhere"], summary["message"]) == ("done", None, "Trained 5 steps.")
    assert asked("remove", other.run).status == 200 and not other.folder.exists()


def test_a_killed_comfyui_is_no_longer_at_work(other: Other) -> None:
    other.kill()
    summary = listed()
    assert summary["state"] == "failed" and "ComfyUI ended" in summary["error"]["message"]
    assert asked("remove", other.run).status == 200


def test_an_engine_that_outlives_its_comfyui_is_left_to_save(other: Other) -> None:
    """Its stdin has ended, so it ends by itself; its folder is not moved away under it."""
    record = JobFolder(other.folder, "")
    other.kill()
    assert (listed()["state"], listed()["elsewhere"]) == ("running", {})
    answer = asked("remove", other.run)
    assert answer.status == 409 and "still saves" in answer.data["error"]["message"]
    record.close()
    assert listed()["state"] == "failed" and asked("remove", other.run).status == 200


def test_how_far_it_is_comes_from_the_engines_record(other: Other) -> None:
    record = JobFolder(other.folder, "")
    for event in (
        Stage(name="Training"), Resource(values={"vram_mib": 1.0}), Progress(done=3, total=9, unit="steps"),
    ):  # fmt: skip
        record.record(event)
    whole = asked("run", other.run).data
    assert (whole["stage"], whole["progress"]["done"], whole["progress"]["total"]) == ("Training", 3, 9)
    assert time.time() - whole["resources"]["vram_mib"][0][0] < 60
    (other.folder / "log.txt").write_text("step 3\n")
    assert asked("log", other.run).data["text"] == "step 3\n"
    record.close()


def test_a_run_that_is_over_is_held_by_nobody(comfy: Path, folder: Path) -> None:
    runs = part("nodes.jobs").runs
    run = runs.begin(folder, title="", verb="train", family="wan", node="", prompt="")
    assert part("nodes.runs").at_work(run.folder) is not None and listed()["elsewhere"] is None
    run.change("failed")
    assert part("nodes.runs").at_work(run.folder) is None
