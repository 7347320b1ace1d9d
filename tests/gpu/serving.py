"""`python -m tests.gpu.serving OUT.json [MODEL] [--scratch DIR] [--tiny]`

Two generations of one full-size model with random weights by one `serve`: seconds from the order to the first step and
to the end, and how much of the GPU is taken while it waits. Exit status 1 when the second video is not the first's,
bit for bit, or its first step does not come sooner.
"""

from __future__ import annotations

import argparse
import json
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
from engine.bench.files import CAPTION, Input, Models, command_line
from engine.contract import cli
from engine.contract.events import Done, Finished, Progress, Stage, read
from engine.families import names, part


def carried_out(server: subprocess.Popen[str], folder: Path, words: list[str]) -> dict[str, Any]:
    """Have it generate. `first_step_s`, `whole_s`, and what was loaded."""
    folder.mkdir()
    job = cli.parse([*words, "--save_path", str(folder / "out"), "--output_type", "latent"])
    assert job is not None and server.stdin is not None and server.stdout is not None
    (folder / "job.toml").write_text(job.to_toml(), encoding="utf-8")
    begun, took, loaded, last = time.monotonic(), {}, [], None
    server.stdin.write(json.dumps({"command": "run", "job": str(folder)}) + "\n")
    server.stdin.flush()
    while not isinstance(last, Finished):
        before, last = last, read(server.stdout.readline())
        now = round(time.monotonic() - begun, 2)
        if isinstance(last, Progress) and last.unit == "steps" and last.done:
            took.setdefault("first_step_s", now)
        if isinstance(last, Stage) and last.name.startswith("Loading"):
            loaded.append(last.name)
    return {**took, "whole_s": now, "status": int(not isinstance(before, Done)), "loaded": loaded}


def taken_mib() -> int:
    """Of the GPU, by all processes but this one's context."""
    if not torch.cuda.is_available():
        return 0
    free, total = torch.cuda.mem_get_info()
    return (total - free) >> 20


def main(argv: list[str]) -> int:
    models = {model.name: (family, model) for family in names() for model in part(family, "bench").MODELS}
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.serving")
    parser.add_argument("out", type=Path)
    parser.add_argument("model", nargs="?", choices=list(models), default="wan-14b")
    parser.add_argument("--scratch", type=Path, help="folder with 35 GB of room")
    parser.add_argument("--tiny", action="store_true", help="a small model, to try this file out")
    options = parser.parse_args(argv)
    family, model = models[options.model]
    folder = Path(tempfile.mkdtemp(prefix="serving-", dir=options.scratch))
    case = Case(name="serving", group="generate", kind="denoise", family=family, size=model.train[-1], modes={},
                model=model)  # fmt: skip
    files = Models(folder / "models", tiny=options.tiny, say=lambda event: None).of(case)["generate"]
    given = Input.of(case, tiny=options.tiny)
    video = {"prompt": CAPTION, "video_size": (given.size.height, given.size.width), "infer_steps": 2, "seed": 1,
             "video_length": given.size.frames}  # fmt: skip
    values = {**video, **files, **model.options.get("generate", {})}
    switches = tuple(f"--{name}" for name, value in values.items() if value is True)
    words = command_line("generate", family, {n: v for n, v in values.items() if v is not True}, switches)
    server = subprocess.Popen([sys.executable, "-m", "engine", "serve"], text=True, encoding="utf-8",
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    rows: list[dict[str, Any]] = []
    for number in ("first", "second"):
        row = carried_out(server, folder / number, words)
        rows.append({"case": f"serve-{options.model}", "mode": number, **row, "taken_at_rest_mib": taken_mib()})
        options.out.write_text(json.dumps(rows, indent=1))
    server.communicate(timeout=60)
    first, second = (next(iter((folder / name / "out").glob("*_latent.safetensors"))) for name in ("first", "second"))
    same = torch.equal(load_file(first)["latent"], load_file(second)["latent"])
    rows[-1] |= {"same_video": same, "torch": torch.__version__,
                 "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"}  # fmt: skip
    options.out.write_text(json.dumps(rows, indent=1))
    print(json.dumps(rows, indent=1))
    shutil.rmtree(folder)
    return 0 if same and rows[1]["first_step_s"] < rows[0]["first_step_s"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
