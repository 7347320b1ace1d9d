"""`demo`: the whole main job on a small scale, through the same commands that a person types.

Clips and captions → dataset file → latent cache → text cache → LoRA training → a video generated with that LoRA.
A demo that was killed goes on: finished steps are remembered in the folder and not done again.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from ..contract.errors import DataError, DiskError, EngineError, OutOfMemoryError, Stopped
from ..contract.events import STOP_WITH_STDIN, Artifact, Control, Log, Say, Stage
from ..contract.files import write_text
from ..contract.job import Job
from ..contract.options import Demo
from ..demo.prepare import Prepared, Step, prepare
from ..demo.show import newest_video, write_contact_sheet
from ..training.states import find_latest_state

PACK = Path(__file__).resolve().parents[2]


def default_folder() -> Path:
    """Beside the engine's environment where there is one, else in the current folder."""
    home = os.environ.get("MUSUBI_HOME")
    return Path(home) / "demo" if home else Path("musubi-demo")


HOME = "out"  # the option that says where results go
_OF_STATUS = {error.exit_status: error for error in (DataError, OutOfMemoryError, DiskError)}


def home(job: Job) -> Path:
    return Path(job[Demo].prepare_only or job[Demo].out or default_folder())


class Progressed:
    """Which steps of the demo under way are done, on disk; forgotten once all are, so that the next one is new."""

    def __init__(self, path: Path):
        self.path = path
        self.began_s, self.done = time.time(), list[str]()
        if path.exists():
            said = json.loads(path.read_text(encoding="utf-8"))
            self.began_s, self.done = said["began_s"], said["done"]
        else:
            self._write()

    def add(self, verb: str) -> None:
        self.done.append(verb)
        self._write()

    def _write(self) -> None:
        write_text(self.path, json.dumps({"began_s": self.began_s, "done": self.done}))

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)


def run(job: Job, say: Say, control: Control) -> None:
    options = job[Demo]
    only = options.prepare_only
    folder = home(job)
    say(Stage(name="Preparing", message=f"clips, captions and small models in {folder}"))
    prepared = prepare(folder, options.family)
    if only:
        _list_steps(prepared, say)
        return
    started = time.monotonic()
    progressed = Progressed(folder / "progress.json")
    for number, step in enumerate(prepared.steps, 1):
        if step.verb in progressed.done:
            say(Log(message=f"Step {number} ({step.verb}) is done already."))
            continue
        say(Stage(name=f"Step {number} of {len(prepared.steps)}", message=step.purpose))
        _run_step([*step.command, *_going_on(step, prepared, progressed)], say, control)
        progressed.add(step.verb)
    progressed.forget()
    _show(prepared, say, time.monotonic() - started)


def _going_on(step: Step, prepared: Prepared, progressed: Progressed) -> list[str]:
    """A training that was cut off in this demo goes on from its last state."""
    if step.verb != "train":
        return []
    state = find_latest_state(prepared.lora.parent, prepared.lora.stem)
    return ["--resume", str(state)] if state and state.stat().st_mtime >= progressed.began_s else ["--fresh"]


def _run_step(command: list[str], say: Say, control: Control) -> None:
    """Run one engine command as a person would; its output goes straight to the screen."""
    say(Log(message=f"$ python -m engine {shlex.join(command)}"))
    # a killed demo leaves no step behind that goes on writing: the end of its stdin stops it
    environment = {**os.environ, "PYTHONPATH": str(PACK), STOP_WITH_STDIN: "1"}
    arguments = [sys.executable, "-m", "engine", *command]
    with subprocess.Popen(arguments, env=environment, stdin=subprocess.PIPE) as process:
        status = process.wait()
    if control.stop_requested:
        raise Stopped("The demo was stopped. The same command goes on where it was.")
    if status:
        raise _OF_STATUS.get(status, EngineError)(
            f"The step `{command[0]} {command[1]}` ended with status {status}; its own message stands above.",
            hint="Run the same demo command again: finished steps are not repeated.",
        )


def _list_steps(prepared: Prepared, say: Say) -> None:
    for step in prepared.steps:
        say(Artifact(kind="job file", path=str(step.file)))
    say(
        Log(message="Run them in this order, each with: python -m env_bootstrap run -- <verb> <family> --config_file F")
    )


def _show(prepared: Prepared, say: Say, seconds: float) -> None:
    video = newest_video(prepared.videos)
    if video is None or not prepared.lora.exists():
        raise DataError(f"The steps ended well but left no video in {prepared.videos}, or no LoRA.")
    sheet = write_contact_sheet(prepared, video)
    say(Stage(name="The demo is complete", message=f"four steps in {seconds:.0f} s. Look at:"))
    curve = prepared.lora.with_name(prepared.lora.stem + "_loss.png")
    for kind, path in (("LoRA", prepared.lora), ("video", video), ("loss curve", curve), ("contact sheet", sheet)):
        say(Artifact(kind=kind, path=str(path)))
    say(Log(message="These small models were made on the spot from random weights, so the video shows colours only."))
