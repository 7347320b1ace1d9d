"""The cases, and running them."""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from engine.contract.cli import parse
from engine.memory.estimate import GIB, largest
from engine.tasks.fitting import limits_of
from engine.tasks.planning import Survey
from tests.gpu.full_size.files import CAPTION, MODELS, config_of, write_dataset, write_models

WARM_UP = 3  # training steps that do not count
ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Case:
    """One row: a command on a model, at a size in pixels (height, width, frames), in one of MODES."""

    verb: str
    model: str
    size: tuple[int, int, int]
    mode: str
    steps: int
    swapped: int  # blocks that "swap" streams
    window: int = 9  # latent frames in a FramePack section

    @property
    def name(self) -> str:
        return f"{self.verb}-{self.model}-{'x'.join(map(str, self.size))}"


SIZES = {
    "wan-1.3b": ((480, 832, 33), (480, 832, 81)),
    "wan-14b": ((480, 832, 33), (480, 832, 81)),
    "hunyuan-video-13b": ((544, 960, 33),),
    "framepack": ((640, 640, 37),),
}
SWAPPED = {"wan-1.3b": 20, "wan-14b": 20, "hunyuan-video-13b": 30, "framepack": 30}
MODES: dict[str, tuple[str, ...]] = {
    "bf16": (),
    "fp8_scaled": ("--fp8_scaled",),
    "swap": ("--fp8_scaled", "--use_pinned_memory_for_block_swap", "--blocks_to_swap"),
    "compile": ("--compile",),
    "fp8_compile": ("--fp8_scaled", "--compile"),
    "magcache": ("--magcache_mag_ratios", "0"),
}


def cases() -> Iterator[Case]:
    """Those of one model follow each other, since only one checkpoint has room on the disk."""
    for model, sizes in SIZES.items():
        for mode in ("bf16", "fp8_scaled", "swap", "compile", "fp8_compile"):
            for size in sizes:
                yield Case("train", model, size, mode, 10, SWAPPED[model])
            yield Case("generate", model, sizes[0], mode, 6, SWAPPED[model])
        if model == "framepack":
            yield Case("generate", model, sizes[0], "magcache", 25, SWAPPED[model])


CASES = {f"{case.name}/{case.mode}": case for case in cases()}


# ---------------------------------------------------------------------------------------------------------- commands


def command_of(case: Case, paths: dict[str, Path], folder: Path, *, tiny: bool, device: str) -> list[str]:
    """The engine's command line for a case."""
    model, (height, width, frames) = MODELS[case.model], case.size
    common = [case.verb, model.command, *([] if tiny else model.task), "--dit", paths["dit"], "--device", device]
    common += ["--seed", 1, "--events", "--job_dir", folder / "job", *MODES[case.mode]]
    common += [case.swapped] if case.mode == "swap" else []
    if case.verb == "train":
        config = config_of(model, paths["dit"])
        dataset = write_dataset(model, folder, config, size=(height, width), frames=frames, window=case.window)
        return [
            *common, "--dataset_config", dataset, "--mixed_precision", "no" if device == "cpu" else "bf16",
            "--gradient_checkpointing", "--network_dim", 32, "--network_alpha", 32, "--learning_rate", "1e-4",
            "--timestep_sampling", "shift", "--discrete_flow_shift", "3.0", "--max_train_steps", case.steps,
            "--output_dir", folder / "out",
        ]  # fmt: skip
    encoders = [word for option, path in paths.items() if option != "dit" for word in (f"--{option}", path)]
    length = ["--video_length", frames]
    if model.family == "framepack":
        length += ["--latent_window_size", case.window]
    return [
        *common, *encoders, "--prompt", CAPTION, "--video_size", height, width, *length, "--infer_steps", case.steps,
        "--save_path", folder / "videos",
    ]  # fmt: skip


def tiny_case(case: Case) -> Case:
    """The same on small models: another size, fewer blocks to stream."""
    return replace(case, size=(48, 64, 9), steps=5, swapped=2, window=2)


# --------------------------------------------------------------------------------------------------------- measuring


def measure(name: str, case: Case, paths: dict[str, Path], folder: Path, *, tiny: bool, device: str) -> dict[str, Any]:
    """Run one command. Step times come from its events as they arrive, memory from the process itself."""
    folder.mkdir(parents=True)
    command = command_of(case, paths, folder, tiny=tiny, device=device)
    peaks, errors = folder / "peaks.json", folder / "stderr.txt"
    expected = predicted([str(word) for word in command])
    started, times, values, failed = time.monotonic(), [], [], {}
    with open(errors, "w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.gpu.full_size.child", str(peaks), *map(str, command)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=ROOT,
        )  # fmt: skip
        assert process.stdout is not None
        for event in map(json.loads, process.stdout):
            step = step_of(event)
            if step is not None:
                times.append((time.monotonic(), step))
                values.append(event.get("values", {}).get("loss/current"))
            failed = event if event["event"] == "failed" else failed
    row = {"case": name.split("/")[0], "mode": case.mode, "torch": torch.__version__}
    if process.wait():
        return {**row, "failed": failed, "stderr": errors.read_text()[-1500:]}
    seconds = list(step_times(times))[WARM_UP - 1 if case.verb == "train" else 0 :]
    losses = {"losses": [round(value, 4) for value in values]} if case.verb == "train" else {}
    return {
        **row, "device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "n": len(seconds),
        "seconds": round(statistics.median(seconds), 3) if seconds else None,
        "first_step_after_s": round(times[0][0] - started, 1), "whole_s": round(time.monotonic() - started, 1),
        **with_prediction(json.loads(peaks.read_text()), expected), **losses,
    }  # fmt: skip


def predicted(command: list[str]) -> float:
    """GiB of tensors that the planner expects of a command: for "peak_alloc_gib"."""
    job = parse(command)
    assert job is not None
    stages = Survey(job).stages(job, room=limits_of(job)[0].card)
    return round(largest(stages).device_bytes / GIB, 2)


def with_prediction(measured: dict[str, float], expected: float) -> dict[str, float]:
    """The measured peaks, what was expected, and its share of the measured one."""
    found = {**measured, "predicted_gib": expected}
    if "peak_alloc_gib" in measured:
        found["predicted_to_measured"] = round(expected / measured["peak_alloc_gib"], 3)
    return found


def step_of(event: dict[str, Any]) -> int | None:
    """The number of the step that an event says is done; None for other events."""
    if event["event"] == "metric" and "loss/current" in event["values"]:
        return event["step"]
    return event["done"] if event["event"] == "progress" and event["unit"] == "steps" and event["label"] else None


def step_times(times: Iterable[tuple[float, int]]) -> Iterator[float]:
    """Seconds a step between two reports, of which there may be fewer than steps."""
    for (before, first), (after, last) in pairwise(times):
        if last > first:
            yield (after - before) / (last - first)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="tests.gpu.full_size", description=__doc__)
    parser.add_argument("target", type=Path, help="JSON file for the rows")
    parser.add_argument("cases", nargs="*", help="names, or beginnings of names; default: all")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written; default: a temporary folder")
    parser.add_argument("--tiny", action="store_true", help="small models on the CPU: does the script work?")
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    asked = parser.parse_intermixed_args(argv)
    chosen = [name for name in CASES if not asked.cases or name.startswith(tuple(asked.cases))]
    if asked.list or not chosen:
        print("\n".join(chosen or CASES))
        return 0 if chosen else 2
    device = "cpu" if asked.tiny else "cuda"
    folder = Path(tempfile.mkdtemp(prefix="full-size-", dir=asked.folder))
    rows: list[dict[str, Any]] = []
    paths: dict[str, Path] = {}
    written = ""
    for number, name in enumerate(chosen):
        case = tiny_case(CASES[name]) if asked.tiny else CASES[name]
        if case.model != written:
            shutil.rmtree(folder / "models", ignore_errors=True)
            started = time.monotonic()
            paths = write_models(MODELS[case.model], folder / "models", tiny=asked.tiny, device=device)
            written = case.model
            print(f"{case.model}: files written in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        rows.append(measure(name, case, paths, folder / f"case-{number}", tiny=asked.tiny, device=device))
        shutil.rmtree(folder / f"case-{number}")
        print(json.dumps(rows[-1]), flush=True)
        asked.target.write_text(json.dumps(rows, indent=1))
    shutil.rmtree(folder)
    return 1 if any("failed" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
