"""`demo`: the whole main job on a small scale, through the same commands that a person types.

Clips and captions → dataset file → latent cache → text cache → LoRA training → a video generated with that LoRA. Then
the proof that training works: one clip learned by heart, and the same at learning rate 0, in one chart.
A demo that was killed goes on: finished steps are remembered in the folder and not done again.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from pathlib import Path

from ..contract.children import module_command
from ..contract.errors import DataError, DiskError, EngineError, OutOfMemoryError, Stopped
from ..contract.events import STOP_WITH_STDIN, Artifact, Control, Log, Say, Stage
from ..contract.files import write_text
from ..contract.home import results_folder
from ..contract.job import Job
from ..contract.options import Demo
from ..contract.packages import RUN
from ..demo.kits import Kit
from ..demo.one_clip import OneClip, draw, judge, prepare_one_clip, read_losses
from ..demo.prepare import Prepared, Step, prepare
from ..demo.show import newest_videos, write_comparison, write_contact_sheet
from ..training.states import find_latest_state

HOME = "out"  # the option that says where results go
_OF_STATUS = {error.exit_status: error for error in (DataError, OutOfMemoryError, DiskError)}


def home(job: Job) -> Path:
    return Path(job[Demo].prepare_only or job[Demo].out or results_folder("demo"))


class Progressed:
    """Which steps of the demo under way are done, on disk; forgotten once all are, so that the next one is new."""

    def __init__(self, path: Path, family: str):
        self.path, self.family = path, family
        self.began_s, self.done = time.time(), list[str]()
        said = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if said.get("family") == family:
            self.began_s, self.done = said["began_s"], said["done"]
        else:
            self._write()

    def add(self, step: str) -> None:
        self.done.append(step)
        self._write()

    def _write(self) -> None:
        write_text(self.path, json.dumps({"family": self.family, "began_s": self.began_s, "done": self.done}))

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)


def run(job: Job, say: Say, control: Control) -> str:
    options = job[Demo]
    only = options.prepare_only
    folder = home(job)
    say(Stage(name="Preparing", message=f"clips, captions and small models in {folder}"))
    prepared = prepare(folder, options.family)
    if only:
        _list_steps(prepared, say)
        return ""
    started = time.monotonic()
    progressed = Progressed(folder / "progress.json", options.family)
    one_clip = prepare_one_clip(prepared)
    count = len(prepared.steps) + (one_clip is not None)
    for number, step in enumerate(prepared.steps, 1):
        _announce(say, f"Step {number} of {count}", step.purpose)
        if step.name in progressed.done:
            say(Log(message="This is done already."))
            continue
        _run_step([*step.command, *_going_on(step, prepared, progressed)], say, control)
        progressed.add(step.name)
    shown = ""
    if one_clip is not None:
        _announce(
            say, f"Step {count} of {count}", "Does training work? One clip by heart, and the same at learning rate 0."
        )
        shown = _prove(one_clip, say, control)
    progressed.forget()
    _announce(say, "The demo is complete", f"{count} steps in {time.monotonic() - started:.0f} s. Look at:")
    _show(prepared, one_clip, say)
    return shown


def _prove(one_clip: OneClip, say: Say, control: Control) -> str:
    """What one clip shows, in a line. EngineError when it shows that training does not work."""
    for step in one_clip.steps:
        _run_step(step.command, say, control)
    learning, still = read_losses(one_clip.learning), read_losses(one_clip.still)
    draw(learning, still, one_clip.chart)
    return judge(learning, still)


def _announce(say: Say, name: str, message: str) -> None:
    """A headline with air above it: what stands there is another command's."""
    say(Log(message=""))
    say(Stage(name=name, message=message))


def _going_on(step: Step, prepared: Prepared, progressed: Progressed) -> list[str]:
    """A training that was cut off in this demo goes on from its last state."""
    if step.verb != "train":
        return []
    state = find_latest_state(prepared.lora.parent, prepared.lora.stem)
    return ["--resume", str(state)] if state and state.stat().st_mtime >= progressed.began_s else ["--fresh"]


def _run_step(command: list[str], say: Say, control: Control) -> None:
    """Run one engine command as a person would; its output goes straight to the screen."""
    say(Log(message=f"$ {RUN} {shlex.join(command)}"))
    # a killed demo leaves no step behind that goes on writing: the end of its stdin stops it
    environment, arguments = {**os.environ, STOP_WITH_STDIN: "1"}, module_command("engine", *command)
    with subprocess.Popen(arguments, env=environment, stdin=subprocess.PIPE) as process:
        status = process.wait()
    if control.stop_requested:
        raise Stopped("The demo was stopped. The same command resumes where it left off.")
    if status:
        raise _OF_STATUS.get(status, EngineError)(
            f"The step `{command[0]} {command[1]}` ended with status {status}; its own message stands above.",
            hint="Run the same demo command again: finished steps are not repeated.",
        )


def _list_steps(prepared: Prepared, say: Say) -> None:
    for step in prepared.steps:
        say(Artifact(kind="job file", path=str(step.file)))
    say(Log(message="Run them in this order:"))
    for step in prepared.steps:
        say(Log(message=f"{RUN} {shlex.join(step.command)}"))


def _show(prepared: Prepared, one_clip: OneClip | None, say: Say) -> None:
    kit = prepared.kit
    videos = newest_videos(prepared.videos, len(kit.prompts))
    if len(videos) < len(kit.prompts) or not prepared.lora.exists():
        raise DataError(f"The steps ended well but left too few videos in {prepared.videos}, or no LoRA.")
    curve = prepared.lora.with_name(prepared.lora.stem + "_loss.png")
    results = {"LoRA": prepared.lora, "video": videos[-1], "contact sheet": write_contact_sheet(prepared, videos)}
    results |= {"without and with the LoRA": write_comparison(prepared, videos)} if kit.concept else {}
    results |= {"loss curve": curve} | ({"loss curves of one clip": one_clip.chart} if one_clip is not None else {})
    for kind, path in results.items():
        say(Artifact(kind=kind, path=str(path)))
    say(Log(message=_what_to_see(kit)))


def _what_to_see(kit: Kit) -> str:
    if kit.concept:
        return f"The model had never seen {kit.concept}. The LoRA has: compare the same prompts without and with it."
    return "The models were made on the spot from random weights, so the video shows colours only."
