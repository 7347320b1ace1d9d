"""Toy trainings, one after the other, in one process or in several that meet over gloo: `run(folder, count, cases)`."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.faults.kit import environment

LIMIT_S = 180
Found = list[dict[str, Any]]
"""What each process found, number 0 first."""


def run(folder: Path, count: int, cases: dict[str, dict[str, Any]]) -> dict[str, Found]:
    """Train each case in `count` processes. Its values are those of `toy_job.job`, and `resume`, a state folder.

    `damaged`: (epoch, item) whose latents are ten thousand times too large.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True)
    children = []
    for number in range(count):
        told = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        words = [sys.executable, "-m", __name__, str(folder), json.dumps(cases)]
        place = environment(**{name: str(value) for name, value in told.items()} if count > 1 else {})
        children.append(subprocess.Popen(words, env=place))
    try:
        assert [child.wait(LIMIT_S) for child in children] == [0] * count
    finally:
        for child in children:
            child.kill()
            child.wait()
    return {
        name: [json.loads((folder / name / f"found-{number}.json").read_text()) for number in range(count)]
        for name in cases
    }


def main(folder: Path, cases: dict[str, dict[str, Any]]) -> None:
    for name, values in cases.items():
        (folder / name).mkdir(exist_ok=True)
        group, found = train(folder / name, values)
        (folder / name / f"found-{group.number}.json").write_text(json.dumps(found))
    group.leave()


def train(folder: Path, values: dict[str, Any]):
    import torch

    from engine.contract.events import Artifact, Metric, Warning_
    from engine.training.checkpoints import Keep
    from engine.training.experts import TrainedExperts
    from engine.training.group import Group, join
    from engine.training.validation import Validation
    from tests.training.toy_job import batches, job

    accelerator = join(torch.device("cpu"), mixed_precision=values.get("mixed_precision", "no"), timeout_minutes=1)
    group = Group(accelerator)
    resume = values.pop("resume", None)
    values["keep"] = Keep(**values.pop("keep", {}))
    damaged = values.pop("damaged", [])
    seen: list[tuple[int, int]] = []

    def mine(epoch: int, first: int):
        for batch in list(batches(epoch, 0, count=values.get("count", 5)))[first + group.number :: group.count]:
            seen.append((epoch, int(batch["t5"][0][0])))
            harm = 1e4 if list(seen[-1]) in damaged else 1.0
            yield {**batch, "latents": harm * batch["latents"]}

    setup: dict[str, Any] = {"accelerator": accelerator, "batches": mine}
    if "validated_on" in values:
        clips, sigmas = list(batches(0, 0, count=values.pop("validated_on"))), values.pop("sigmas")
        setup["validation"] = Validation(
            clips=lambda first, every: [(str(n), clips[n]) for n in range(first, len(clips), every)],
            count=len(clips),
            sigmas=sigmas,
            seed=1,
            every_n_steps=2,
            keep_best=True,
        )
    if starts := values.pop("experts", None):
        setup["experts"] = TrainedExperts(starts=starts, names=("low", "high"), use=lambda number: turn.append(number))
        turn = [0]
        values["velocity"] = lambda x_BCTHW, timestep_B, cond: (1 + turn[-1]) * some.dit(x_BCTHW, timestep_B, cond)
    some = job(folder, setup=setup, **values)
    if group.number and not resume:  # as if each had begun from weights of its own
        for parameter in some.network.parameters():
            parameter.data.add_(1.0)
    outcome = some.resume(Path(resume)) if resume else some.run()
    return group, {
        "seen": seen,
        "step": outcome.step,
        "metrics": [event.values for event in some.said(Metric)],
        "saved": [Path(event.path).name for event in some.said(Artifact)],
        "warnings": [event.message for event in some.said(Warning_)],
        "weights": {name: value.flatten().tolist() for name, value in some.network.state().items()},
        "average": [value.flatten().tolist() for value in some.setup.ema.state_dict()["averages"]]
        if some.setup.ema
        else [],
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
