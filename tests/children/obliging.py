"""An engine that does nothing and says it did: reads its job file, writes the files that the job names, reports.

Takes the engine's command line. OBLIGING_FAILS makes it fail with that kind; OBLIGING_WAITS makes it wait for `stop`.
Each start is noted in the file that OBLIGING_STARTS names. `serve` does so with job after job; there OBLIGING_LEAVES
makes it leave after the first, OBLIGING_DEAF makes it take no command while a job is under way.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib


def say(event: str, **values: object) -> None:
    sys.stdout.write(json.dumps({"event": event, **values}) + "\n")
    sys.stdout.flush()


def made(verb: str, job: dict) -> list[tuple[str, Path]]:
    """Kind and path of what this job would write."""
    if verb == "train":
        folder = Path(job["output_dir"])
        return [
            ("LoRA", folder / f"{job['output_name']}-step00000002.safetensors"),
            ("LoRA", folder / f"{job['output_name']}.safetensors"),
            ("loss curve", folder / "loss.png"),
        ]
    if verb == "generate":
        first = Path(job["save_path"])
        lines = Path(job["from_file"]).read_text().splitlines() if "from_file" in job else [""]
        return [("video", first.with_stem(f"{first.stem}_{n}") if n else first) for n in range(len(lines))]
    if verb == "dataset":
        return [("contact sheet", Path(job["sheet_path"]))]
    if verb.startswith("cache"):
        tables = tomllib.loads(Path(job["dataset_config"]).read_text())["datasets"]
        ending = "_wan_te" if verb == "cache-text" else "_wan"
        return [("cache", Path(table["cache_directory"]) / f"clip{ending}.safetensors") for table in tables]
    return [(verb, Path(job[name])) for name in ("output", "output_file", "save_merged_model") if name in job]


def note(line: str) -> None:
    with open(os.environ["OBLIGING_STARTS"], "a") as starts:
        starts.write(line + "\n")


def main() -> int:
    words = sys.argv[1:]
    if words == ["serve"]:
        return serve()
    note(" ".join(words[: words.index("--config_file")]))
    job_file, folder = Path(words[words.index("--config_file") + 1]), Path(words[words.index("--job_dir") + 1])
    return oblige(words[0], tomllib.loads(job_file.read_text()), folder)


def serve() -> int:
    note(f"serve {os.getpid()}")
    say("hello", protocol=1, version="test", job="serve")
    for line in sys.stdin:
        order = json.loads(line)
        if order["command"] != "run":
            continue
        job = tomllib.loads((Path(order["job"]) / "job.toml").read_text())
        note(f"run {job['command']} {job['family']}")
        while "OBLIGING_DEAF" in os.environ:
            time.sleep(0.05)
        sys.stderr.write(f"a word about {job.get('prompt')}\n")
        sys.stderr.flush()
        status = oblige(job["command"], job, Path(order["job"]))
        leaving = "OBLIGING_LEAVES" in os.environ
        say("finished", job=order["job"], status=status, leaving=leaving)
        if leaving:
            return 70
    return 0


def oblige(verb: str, job: dict, folder: Path) -> int:
    """Do a job; its exit status."""
    say("hello", protocol=1, version="test", job=str(folder))
    if os.environ.get("OBLIGING_FAILS"):
        say("failed", kind=os.environ["OBLIGING_FAILS"], message="--dit is another model.", hint="Change --dit.")
        return 2
    stopped = False
    if os.environ.get("OBLIGING_WAITS"):
        say("metric", step=1, values={"loss/current": 0.5})
        stopped = any("stop" in line for line in iter(sys.stdin.readline, ""))
    for kind, path in made(verb, job):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{kind} of {verb}")
        say("artifact", kind=kind, path=str(path))
    say("done", message="obliged", stopped=stopped)
    return 0


if __name__ == "__main__":
    sys.exit(main())
