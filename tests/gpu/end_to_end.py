"""`python -m tests.gpu.end_to_end OUT.json [MODEL ...] [--scratch DIR] [--tiny]`

Full-size models of random weights, in files of a public layout, through every command of the engine: a clip of video is
cached, its caption too, a LoRA is trained for a step, and a video is generated in a step with that LoRA and decoded.
Each command is a process of its own, whose seconds and peaks of memory are written. A model that has two experts as
well runs with both (`wan-a14b`: the same file twice). Text and image encoders are small ones of the width that the DiT
wants. Exit status 1 when a command fails or leaves no result.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.bench.cases import Case
from engine.bench.files import CAPTION, Input, Models, command_line, write_dataset, write_videos
from engine.families import names, part
from engine.families.values import BenchModel

PEAKS = "peaks.json"
START = """
import json, sys, torch
from pathlib import Path
from engine.__main__ import main
status = main(sys.argv[2:])
here = torch.cuda.is_available()
found = {"peak_alloc_gib": torch.cuda.max_memory_allocated() / 2**30,
         "peak_reserved_gib": torch.cuda.max_memory_reserved() / 2**30} if here else {}
found |= {"device": torch.cuda.get_device_name() if here else "cpu", "torch": torch.__version__}
Path(sys.argv[1]).write_text(json.dumps(found))
sys.exit(status)
"""
EXPERTS = {"t2v-14B": "t2v-A14B"}  # task of one model -> that of two such


@dataclass(frozen=True)
class Run:
    """A model through all commands. `changed`: by verb what is said besides or instead."""

    name: str
    family: str
    model: BenchModel
    changed: dict[str, dict[str, Any]] = field(default_factory=dict)


def runs() -> Iterator[Run]:
    """Models of one family follow each other, and those of the same files."""
    for family in names():
        for model in part(family, "bench").MODELS:
            yield Run(model.name, family, model)
            both = EXPERTS.get(model.options.get("train", {}).get("task", ""))
            if both:
                yield Run(f"{family}-{both.lower()}", family, model, both_experts(both))


def both_experts(task: str) -> dict[str, dict[str, Any]]:
    """Enough steps, and noise levels even enough, that each expert has its turn; fp8, since two fill most cards."""
    return {
        "train": {"task": task, "max_train_steps": 2, "fp8_scaled": True},
        "generate": {"task": task, "infer_steps": 2, "flow_shift": 1.0, "fp8_scaled": True, "lazy_loading": True},
    }


def commands(run: Run, files: dict[str, dict[str, Any]], folder: Path, given: Input) -> Iterator[tuple[str, list[str]]]:
    """(verb, words) of each command, in order."""
    dataset = write_dataset(run.family, folder, given)
    write_videos(run.family, folder, given, count=1)
    training, generating = (
        {**files[verb], **run.model.options.get(verb, {}), **run.changed.get(verb, {})}
        for verb in ("train", "generate")
    )
    lora = {"lora_weight": folder / "out" / "lora.safetensors"}
    if run.changed:
        training["dit_high_noise"] = generating["dit_high_noise"] = training["dit"]
        lora["lora_weight_high_noise"] = folder / "out" / "lora_high_noise.safetensors"
    learning = {"dataset_config": dataset, "mixed_precision": "bf16", "network_dim": 32, "network_alpha": 32,
                "gradient_checkpointing": True, "max_train_steps": 1, "output_dir": folder / "out",
                "output_name": "lora"}  # fmt: skip
    video = {"prompt": CAPTION, "video_size": (given.size.height, given.size.width), "video_length": given.size.frames,
             "infer_steps": 1, "save_path": folder / "videos"}  # fmt: skip
    caching = {name: path for name, path in generating.items() if name in ("vae", "image_encoder")}
    reading = {name: path for name, path in generating.items() if name in ("t5", "text_encoder1", "text_encoder2")}
    for verb, options in (
        ("cache-latents", {"dataset_config": dataset, **caching}),
        ("cache-text", {"dataset_config": dataset, **reading}),
        ("train", {**learning, "seed": 1, **training}),
        ("generate", {**video, "seed": 1, **generating, **lora}),
    ):
        switches = tuple(f"--{name}" for name, value in options.items() if value is True)
        given_values = {name: value for name, value in options.items() if value is not True}
        yield verb, command_line(verb, run.family, given_values, switches)


def carried_out(words: list[str], folder: Path) -> dict[str, Any]:
    """Run one command. What it took, and `status`."""
    peaks = folder / PEAKS
    peaks.unlink(missing_ok=True)
    started = time.monotonic()
    status = subprocess.run([sys.executable, "-c", START, str(peaks), *words], check=False).returncode
    took = {"status": status, "whole_s": round(time.monotonic() - started, 1)}
    found = json.loads(peaks.read_text()) if peaks.exists() else {}
    return took | {name: round(value, 2) if isinstance(value, float) else value for name, value in found.items()}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.end_to_end")
    parser.add_argument("out", type=Path)
    parser.add_argument("models", nargs="*", choices=[[], *(run.name for run in runs())], default=[])
    parser.add_argument("--scratch", type=Path, help="folder with 35 GB of room")
    parser.add_argument("--tiny", action="store_true", help="small models, to try this file out")
    options = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="end-to-end-", dir=options.scratch))
    models = Models(folder / "models", tiny=options.tiny, say=lambda event: None)
    rows: list[dict[str, Any]] = []
    for run in runs():
        if options.models and run.name not in options.models:
            continue
        case = Case(name=run.name, group="train", kind="train", family=run.family, size=run.model.train[-1], modes={},
                    model=run.model)  # fmt: skip
        files, place = models.of(case), folder / run.name
        place.mkdir()
        given = Input.of(case, tiny=options.tiny)
        for verb, words in commands(run, files, place, given):
            print(f"\n== {run.name}: {verb}", flush=True)
            row = {"case": f"end-to-end-{run.name}", "mode": verb, "flags": " ".join(words)}
            rows.append(row | carried_out(words, place))
            options.out.write_text(json.dumps(rows, indent=1))
            if rows[-1]["status"] != 0:
                break
        rows[-1]["video"] = sum(path.stat().st_size for path in place.glob("videos/*.mp4"))
        options.out.write_text(json.dumps(rows, indent=1))
    shutil.rmtree(folder)
    return 0 if all(row["status"] == 0 for row in rows) and all(row.get("video", 1) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
