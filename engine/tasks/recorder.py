"""What a training has to say on its way out: losses remembered for the curve, and what memory is in use."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from ..contract.errors import DiskError
from ..contract.events import Artifact, Event, Metric, Resource, Say, Warning_
from ..media.charts import loss_curve
from ..ops.device import memory_in_use

RESOURCES_EVERY_S = 5.0


class Recorder:
    """Passes events on, adds what memory is in use, and remembers the losses for the curve at the end."""

    def __init__(self, say: Say, device: torch.device):
        self._say, self._device = say, device
        self._looked_at_s = -RESOURCES_EVERY_S
        self._steps: list[int] = []
        self._losses: list[float] = []
        self._validation: list[tuple[int, float]] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Metric) and "loss/current" in event.values:
            self._steps.append(event.step)
            self._losses.append(event.values["loss/current"])
            self._look()
        elif isinstance(event, Metric) and "loss/validation" in event.values:
            self._validation.append((event.step, event.values["loss/validation"]))
        self._say(event)

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked_at_s >= RESOURCES_EVERY_S:
            self._looked_at_s = now
            self._say(Resource(values=memory_in_use(self._device)))

    def state_dict(self) -> dict[str, list[Any]]:
        """The losses so far, for a state: the curve of a training that goes on from it begins where it began."""
        return {"steps": list(self._steps), "losses": list(self._losses), "validation": list(self._validation)}

    def load_state_dict(self, state: dict[str, list[Any]]) -> None:
        self._steps, self._losses = list(state["steps"]), list(state["losses"])
        self._validation = list(state.get("validation", ()))

    def draw(self, path: Path) -> None:
        """Write the loss curve as a PNG, given enough steps to make a line. What the disk refuses is a warning."""
        if len(self._steps) < 2:
            return
        title = path.stem.removesuffix("_loss")
        try:
            loss_curve(self._steps, self._losses, path, title=title, validation=self._validation)
        except DiskError as error:
            self._say(Warning_(message=f"There is no loss curve. {error.message}"))
        else:
            self._say(Artifact(kind="loss curve", path=str(path)))
