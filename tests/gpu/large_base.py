"""`python -m tests.gpu.large_base OUT.json [MODEL] [--processes 2] [--card_gib 24] [--steps 4] [--scratch DIR]`

Trains a LoRA on a base that does not fit on one card, by the ordinary command: alone it must run out of memory, by
several processes that share the base out (`--shard_base`) it must not, and their losses must be those of as many
processes with cards large enough for all of it. Cards of this size are made by a limit of torch's allocator. Exit
status 1 when one of these does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from engine.bench.cases import Case
from engine.bench.files import Input, Models, command_line, config_of, training_options
from engine.contract.errors import STATUS
from engine.contract.events import Failed, Metric, read
from engine.families import names, part
from tests.gpu.end_to_end import PEAKS, START

LEAST = ("--gradient_checkpointing", "--gradient_checkpointing_cpu_offload", "--ffn_chunks", "8")
SHARE_OFF = 0.01  # losses in bf16, whose attention is not the same bit for bit from run to run
WARM_UP = 2


def trained(words: list[str], folder: Path, *, share_of_card: float | None) -> dict[str, Any]:
    """Run the command with at most this share of each GPU's memory. Status, losses, seconds a step, peaks."""
    peaks = folder / PEAKS
    peaks.unlink(missing_ok=True)
    kept = "expandable_segments:True"
    limited = kept if share_of_card is None else f"{kept},per_process_memory_fraction:{share_of_card:.4f}"
    losses, stamps, failed = [], [], ""
    with subprocess.Popen(
        [sys.executable, "-c", START, str(peaks), *words, "--events"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env={**os.environ, "PYTORCH_CUDA_ALLOC_CONF": limited},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            try:
                event = read(line)
            except ValueError:
                continue  # what a library prints
            if isinstance(event, Metric) and "loss/current" in event.values:
                losses.append(event.values["loss/current"])
                stamps.append(time.monotonic())
            if isinstance(event, Failed):
                failed = event.message
    steps = [after - before for before, after in zip(stamps, stamps[1:], strict=False)][WARM_UP - 1 :]
    found = json.loads(peaks.read_text()) if peaks.exists() else {}
    return {
        "status": process.returncode, "failed": failed, "losses": losses,
        "seconds": round(statistics.median(steps), 3) if steps else None,
        **{name: round(value, 2) if isinstance(value, float) else value for name, value in found.items()},
    }  # fmt: skip


def main(argv: list[str]) -> int:
    models = {model.name: (family, model) for family in names() for model in part(family, "bench").MODELS}
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.large_base")
    parser.add_argument("out", type=Path)
    parser.add_argument("model", nargs="?", choices=list(models), default="wan-14b")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--card_gib", type=float, default=24.0)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--scratch", type=Path, help="folder with 35 GB of room")
    parser.add_argument("--tiny", action="store_true", help="a small model on the CPU, to try this file out")
    options = parser.parse_args(argv)
    family, model = models[options.model]
    case = Case(name="large-base", group="train", kind="train", family=family, size=model.train[-1], modes={},
                model=model)  # fmt: skip
    on_gpu = torch.cuda.is_available()
    share = options.card_gib * 2**30 / torch.cuda.get_device_properties(0).total_memory if on_gpu else None
    with tempfile.TemporaryDirectory(prefix="large-base-", dir=options.scratch) as name:
        folder = Path(name)
        files = Models(folder / "models", tiny=options.tiny, say=lambda event: None).of(case)["train"]
        given = Input.of(case, tiny=options.tiny)
        base_gib = Path(files["dit"]).stat().st_size / 2**30

        def run(mode: str, *flags: str, share_of_card: float | None = None) -> dict[str, Any]:
            place = folder / mode.replace(" ", "-")
            place.mkdir()
            values = training_options(
                family, place, given, config_of(family, str(files["dit"])), steps=options.steps, on_gpu=on_gpu
            )
            values |= {**files, **model.options.get("train", {})}
            words = command_line("train", family, values, (*LEAST, *flags))
            print(f"\n== {mode}", flush=True)
            row = {"case": f"train-{options.model}-base-larger-than-a-card", "mode": mode, "flags": " ".join(flags)}
            return row | trained(words, place, share_of_card=share_of_card)

        several = ("--num_processes", str(options.processes))
        alone = run("alone", share_of_card=share)
        shared = run("shared out", *several, "--shard_base", share_of_card=share)
        whole = run("cards large enough", *several)
    off = max((abs(a / b - 1) for a, b in zip(shared["losses"], whole["losses"], strict=False)), default=1.0)
    checks = {
        "base_gib": round(base_gib, 2), "card_gib": options.card_gib,
        "alone_runs_out_of_memory": alone["status"] == STATUS["memory"],
        "shared_out_trains": shared["status"] == 0 and len(shared["losses"]) == options.steps,
        "largest_difference_of_losses": off, "losses_equal": off <= SHARE_OFF,
    }  # fmt: skip
    options.out.write_text(json.dumps([alone, shared, whole, checks], indent=1))
    print(json.dumps(checks, indent=1))
    held = [checks[name] for name in ("shared_out_trains", "losses_equal")]
    return 0 if all(held) and (checks["alone_runs_out_of_memory"] or not on_gpu) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
