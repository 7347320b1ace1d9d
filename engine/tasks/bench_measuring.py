"""How `bench` measures: case by case, each mode in a process of its own, each row kept as soon as it is there."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..bench.cases import KERNELS, Case
from ..bench.files import (
    Input,
    Models,
    Options,
    command_line,
    config_of,
    decoding_options,
    generation_options,
    training_options,
    write_dataset,
    write_videos,
)
from ..bench.kernels import block_linears
from ..bench.table import Row, compared, drawn
from ..bench.work import trained_work
from ..contract.children import module_command
from ..contract.cli import write_result
from ..contract.errors import EngineError, OptionError, Stopped
from ..contract.events import Artifact, Control, Log, Progress, Say, Stage, Warning_, read
from ..contract.files import write_text
from ..contract.job import Job
from ..contract.options import Bench, Run
from ..contract.wording import counted
from ..families import part
from ..ops.device import choose_device
from .bench_case import Order

WARM_UP = {"train": 3, "denoise": 2, "encode": 1, "decode": 1}
STEPS, CALLS, AVERAGED_STEPS = 5, 20, 23
TINY_TOKENS, TINY_HEADS, TINY_LAYERS = 64, (2, 32), ((64, 32),)
LOG = "measurements.log"


def measured(asked: Sequence[tuple[Case, Sequence[str]]], job: Job, folder: Path, say: Say, control: Control) -> str:
    """Measure modes of cases into `folder`; the job's last sentence. OptionError where the device will not do."""
    measuring = Measuring(job, folder, _device(job), say, control)
    try:
        for number, (case, modes) in enumerate(asked, 1):
            measuring.measure(case, modes, label=f"{number} of {len(asked)}")
    finally:
        measuring.models.remove()
        shutil.rmtree(measuring.scratch, ignore_errors=True)
    return measuring.report([case for case, _ in asked])


def _device(job: Job) -> str:
    """Where to measure. OptionError where full-size models would run on a CPU."""
    asked = job[Run].device
    if job[Bench].tiny:
        return asked or "cpu"
    device = choose_device(asked)
    if device.type == "cpu":
        raise OptionError(
            "bench measures full-size models, which need a GPU.",
            "Without one, --tiny tries out bench itself on small models.",
            names=("tiny", "device"),
        )
    return asked or str(device)


class Measuring:
    """The cases of one job, one after the other, with their results in `folder`."""

    def __init__(self, job: Job, folder: Path, device: str, say: Say, control: Control):
        options = job[Bench]
        self.folder, self.device = folder, device
        self.scratch = Path(options.scratch) / "musubi-bench" if options.scratch else folder / "scratch"
        self.models = Models(self.scratch / "models", tiny=options.tiny, say=say)
        self._options, self._events, self._say, self._control = options, job[Run].events, say, control

    # --- what is finished

    def file(self, case: Case) -> Path:
        return self.folder / f"{case.name}.json"

    def rows(self, case: Case) -> list[Row]:
        """What is known of a case so far."""
        path = self.file(case)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []

    def _keep(self, case: Case, new: Sequence[Row]) -> None:
        """Put new rows in the place of older ones of the same modes, in the order of the modes."""
        fresh = {row["mode"] for row in new}
        rows = [row for row in self.rows(case) if row["mode"] not in fresh] + list(new)
        order = list(case.modes)
        rows.sort(key=lambda row: order.index(row["mode"]) if row["mode"] in order else len(order))
        rows = [{"case": case.name, **row} for row in compared(rows, baseline=case.baseline)]
        write_text(self.file(case), json.dumps(rows, indent=1))

    def _finished(self, case: Case) -> set[str]:
        """Modes that are not to be measured again: also those that ran out of memory, which they would again."""
        if self._options.again:
            return set()
        rows = [row for row in self.rows(case) if row.get("tiny", False) == self._options.tiny]
        return {row["mode"] for row in rows if "seconds" in row or row.get("failed", {}).get("kind") == "memory"}

    # --- measuring

    def measure(self, case: Case, modes: Sequence[str], *, label: str) -> None:
        """Every mode that is not finished; kernels all in one process, as they cost less than its start."""
        finished = self._finished(case)
        left = tuple(mode for mode in modes if mode not in finished)
        if not left:
            self._say(Log(message=f"{case.name} is already finished; --again repeats it."))
            return
        for together in [left] if case.kind in KERNELS else [(mode,) for mode in left]:
            self._say(Stage(name=case.name, message=f"{', '.join(together)} ({label})"))
            self._keep(case, self._run(case, together))

    def _run(self, case: Case, modes: tuple[str, ...]) -> list[Row]:
        folder = self.scratch / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        order = replace(self._order(case, modes, folder), started=time.time())
        write_text(folder / "order.json", order.to_json())
        status = self._child(folder / "order.json", self.folder / LOG)
        if self._control.stop_requested:
            raise Stopped("bench was stopped. The same command resumes where it left off.")
        result = Path(order.result)
        if not result.exists():  # killed from outside: most likely main memory ran out
            failed = {"kind": "killed", "message": f"the process ended with status {status}", "hint": ""}
            return [{"mode": mode, "failed": failed} for mode in modes]
        rows: list[Row] = json.loads(result.read_text(encoding="utf-8"))
        for row in rows:
            if "failed" in row:
                told = row["failed"]
                self._say(Warning_(message=f"{case.name}, {row['mode']}: {told['message']} {told['hint']}".strip()))
        return [{**row, "tiny": True} for row in rows] if self._options.tiny else rows

    def _child(self, order: Path, log: Path) -> int:
        """Run one order; progress and warnings are passed on, all it says is added to the log."""
        command = module_command("engine.tasks.bench_case", str(order))
        with (
            open(log, "a", buffering=1, encoding="utf-8") as record,
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=record, text=True
            ) as process,
        ):
            assert process.stdout is not None and process.stdin is not None
            for line in process.stdout:
                record.write(line)
                self._pass_on(line)
                if self._control.stop_requested and not process.stdin.closed:
                    process.stdin.close()
            return process.wait()

    def _pass_on(self, line: str) -> None:
        try:
            event = read(line)
        except ValueError:  # what a library printed
            return
        if isinstance(event, (Progress, Warning_)):
            self._say(event)

    # --- what to measure

    def _order(self, case: Case, modes: tuple[str, ...], folder: Path) -> Order:
        mode, tiny = case.modes[modes[0]], self._options.tiny
        given = Input.of(case, tiny=tiny)
        size = given.size
        common: dict[str, Any] = {
            "kind": case.kind, "family": case.family, "modes": modes, "device": self.device, "tiny": tiny,
            "result": str(folder / "rows.json"),
        }  # fmt: skip
        if case.kind in KERNELS:
            times = self._options.steps or (2 if tiny else CALLS)
            return Order(**common, times=times, **self._sizes_of_kernels(case, given))
        times = self._options.steps or (AVERAGED_STEPS if mode.averaged else STEPS)
        words = self._words(case, modes[0], folder, given, steps=times + WARM_UP[case.kind])
        return Order(
            **common, times=times, words=tuple(words), warm_up=WARM_UP[case.kind], averaged=mode.averaged,
            diffusers=mode.diffusers, whole=mode.whole, size=(size.height, size.width, size.frames),
        )  # fmt: skip

    def _sizes_of_kernels(self, case: Case, given: Input) -> dict[str, Any]:
        if self._options.tiny:
            return {"tokens": TINY_TOKENS, "heads": TINY_HEADS, "layers": TINY_LAYERS}
        assert case.model is not None
        model, config = part(case.family, "model"), case.model.config
        return {
            "tokens": trained_work(case.family, config, given.size).tokens,
            "heads": (case.model.heads, case.model.head_dim),
            "layers": tuple(block_linears(model.blocks(model.build(config)))),
        }

    def _words(self, case: Case, mode: str, folder: Path, given: Input, *, steps: int) -> list[str]:
        """The command line of a case."""
        verb = {"train": "train", "denoise": "generate", "decode": "generate", "encode": "cache-latents"}[case.kind]
        files = self.models.of(case)
        options = {**self._inputs(case, mode, files, folder, given, steps), **files[verb], **case.options.get(verb, {})}
        flags = self._flags(case, mode, options)
        return [*command_line(verb, case.family, options, flags), "--device", self.device]

    def _inputs(self, case: Case, mode: str, files: Options, folder: Path, given: Input, steps: int) -> dict[str, Any]:
        if case.kind == "encode":
            dataset = write_dataset(case.family, folder, given)
            if case.modes[mode].whole:
                write_videos(case.family, folder, given, count=steps)
            return {"dataset_config": dataset}
        if case.kind == "decode":
            return decoding_options(case.family, folder, given)
        if case.kind == "denoise":
            return generation_options(folder, given, steps=steps)
        on_gpu = torch.device(self.device).type == "cuda"
        config = config_of(case.family, files["train"]["dit"])
        return training_options(case.family, folder, given, config, steps=steps, on_gpu=on_gpu)

    def _flags(self, case: Case, mode: str, options: dict[str, Any]) -> tuple[str, ...]:
        flags, stands_for = case.modes[mode].flags, {"{vram}": case.size.vram}
        if "{blocks}" in flags:
            work = trained_work(case.family, config_of(case.family, options["dit"]), case.size)
            stands_for["{blocks}"] = str(sum(run.count for run in work.runs))
        flags = tuple(stands_for.get(word, word) for word in flags)
        eager = ("--compile_backend", "eager") if self._options.tiny and "--compile" in flags else ()
        return (*flags, *eager)

    # --- telling

    def report(self, cases: Sequence[Case]) -> str:
        """The table, on the screen and in a file."""
        results = [(case.name, self.rows(case)) for case in cases]
        text, path = drawn(results) + "\n", self.folder / "table.txt"
        write_text(path, text)
        if not self._events:
            write_result(text)
        self._say(Artifact(kind="table", path=str(path)))
        failed = [row for _, rows in results for row in rows if row.get("failed", {}).get("kind", "memory") != "memory"]
        if failed:
            raise EngineError(
                f"{counted(len(failed), 'measurement')} failed.", f"The reasons are in {self.folder / LOG}."
            )
        return f"{counted(len(cases), 'case')}, measured in {path.parent}"
