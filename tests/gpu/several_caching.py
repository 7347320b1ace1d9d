"""`python -m tests.gpu.several_caching OUT.json [--processes 2] [--clips 48] [--tiny]`

Caches the latents of as many clips in one process, in several, and in one again, with a Wan VAE of full size and random
weights. Writes seconds a clip (from the first cached one to the last), how many times as many a second, and how far the
caches are from those of one process: a GPU may not even repeat itself to the last bit. Exit status 1 when several
processes are further off than one process from itself.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from engine.bench.cases import Case
from engine.bench.files import Input, Models, command_line, write_dataset, write_videos
from engine.contract.events import Progress, read
from engine.families.values import BenchSize

FAMILY = "wan"
SIZE = BenchSize(height=480, width=832, frames=33)
Caches = dict[str, dict[str, torch.Tensor]]  # of each file its tensors by name


def cached(words: list[str]) -> tuple[int, list[tuple[float, int]]]:
    """Run the command; its status, and when how many clips were done."""
    stamps: list[tuple[float, int]] = []
    with subprocess.Popen([sys.executable, "-m", "engine", *words, "--events"], stdout=subprocess.PIPE,
                          stdin=subprocess.PIPE, text=True) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            try:
                event = read(line)
            except ValueError:
                continue
            if isinstance(event, Progress) and event.unit == "clips" and event.done:
                stamps.append((time.monotonic(), event.done))
        return process.wait(), stamps


def furthest(caches: Caches, others: Caches) -> float:
    """The largest difference of two values; infinite where the files or their tensors are not the same."""
    if caches.keys() != others.keys() or any(caches[name].keys() != others[name].keys() for name in caches):
        return math.inf
    return max(
        float((caches[name][key].double() - others[name][key]).abs().max()) for name in caches for key in caches[name]
    )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.several_caching")
    parser.add_argument("out", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="several-caching-"))
    case = Case(name="caching", group="cache", kind="encode", family=FAMILY, size=SIZE, modes={})
    vae = Models(folder / "models", tiny=options.tiny, say=lambda event: None).of(case)["cache-latents"]["vae"]
    rows: list[dict[str, Any]] = []
    caches = []
    for name, count in (("one", 1), ("several", options.processes), ("again", 1)):
        place = folder / name
        place.mkdir()
        given = Input.of(case, tiny=options.tiny)
        words = {"dataset_config": write_dataset(FAMILY, place, given), "vae": vae, "num_processes": count}
        write_videos(FAMILY, place, given, count=options.clips)
        started = time.monotonic()
        status, stamps = cached(
            command_line("cache-latents", FAMILY, words, ("--device", "cpu") if options.tiny else ())
        )
        (first, before), (last, after) = stamps[0], stamps[-1]
        rows.append({
            "case": f"cache-latents-wan-{given.size.name}", "mode": f"{count} processes", "status": status,
            "seconds": round((last - first) / max(1, after - before), 4), "n": after - before,
            "whole_s": round(time.monotonic() - started, 1), "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        })  # fmt: skip
        caches.append({path.name: load_file(path) for path in (place / "cache").glob("*.safetensors")})
    one, several, again = caches
    checks = {
        "clips_a_second_times": round(rows[0]["seconds"] / max(rows[1]["seconds"], 1e-9), 3),
        "furthest_off": furthest(one, several),
        "one_process_from_itself": furthest(one, again),
    }
    rows.append({"case": rows[0]["case"], "mode": f"{options.processes} processes against 1", **checks})
    good = len(one) == options.clips and checks["furthest_off"] <= checks["one_process_from_itself"]
    options.out.write_text(json.dumps(rows, indent=1))
    print(json.dumps(rows, indent=1))
    shutil.rmtree(folder)
    return 0 if good and not any(row.get("status") for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
