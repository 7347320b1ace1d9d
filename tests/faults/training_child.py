"""A training in a child process that tells how far it is."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def train_flagged(flag: str, step: int, words: list[str]) -> None:
    """What a child does: train, and let the file `flag` appear when it has trained so many steps."""
    from engine.__main__ import main
    from engine.contract.events import Metric
    from engine.tasks.recorder import Recorder

    told, seen = Recorder.__call__, [0]

    def counting(self: Recorder, event: object) -> None:
        told(self, event)  # type: ignore[arg-type]
        seen[0] += isinstance(event, Metric)
        if seen[0] == step:
            Path(flag).touch()

    Recorder.__call__ = counting  # type: ignore[method-assign]
    torch.set_num_threads(1)
    os._exit(main(words))
