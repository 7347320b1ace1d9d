"""What the loop saves, and what it does where the disk refuses: it is full, a quota is used up, a drive is gone.

In the middle of a training that is a warning: training goes on, and a state is tried again every minute. Before the
process ends, saving waits for room, since the steps after the last state exist nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from ..contract.errors import DiskError, OptionError
from ..contract.events import Say, Warning_
from ..contract.patience import until_written
from .group import Group
from .requests import Requests
from .setup import Setup
from .states import Position


class Saves:
    """Saves in process 0; the others wait for it in the next step's exchange.

    Each method returns the file or folder it wrote; an empty path in the other processes, and where the disk refused
    and training goes on. OptionError for weights that are not finite. DiskError only before the process ends, as of
    contract/patience.py.
    """

    def __init__(
        self, setup: Setup, requests: Requests, group: Group, parameters: Sequence[Tensor], *, say: Say
    ) -> None:
        self._setup, self._requests, self._group, self._parameters, self._say = setup, requests, group, parameters, say
        self._checkpoints = setup.checkpoints
        self.gave_up = False  # waiting for the disk before the end
        self._refused = False  # the last attempt, so that it is said once

    def step(self, position: Position, *, with_state: bool, stopping: bool) -> Path:
        """What is due after a step; with its state where one is asked for, or where the process ends (`stopping`)."""
        return self._save(
            lambda: self._checkpoints.save_step(self._setup.parts, position, with_state=with_state, stopping=stopping),
            step=position.step,
            ending=stopping,
            state=with_state or stopping or self._checkpoints.keep.save_state,
        )

    def passing_state(self, position: Position, *, ending: bool = False) -> Path:
        """A state alone. `ending`: the process ends after it."""
        return self._save(
            lambda: self._checkpoints.save_passing_state(self._setup.parts, position),
            step=position.step,
            ending=ending,
            state=True,
        )

    def epoch(self, number: int, position: Position) -> Path:
        """What is due after an epoch (from 1)."""
        return self._save(
            lambda: self._checkpoints.save_epoch(number, self._setup.parts, position), step=position.step, ending=False
        )

    def last(self, epochs: int, position: Position) -> Path:
        """The finished LoRA."""
        return self._save(
            lambda: self._checkpoints.save_last(epochs, self._setup.parts, position), step=position.step, ending=True
        )

    def _save(self, save: Callable[[], Path], *, step: int, ending: bool, state: bool = False) -> Path:
        if not self._group.leads:
            return Path()
        if not all(bool(parameter.isfinite().all()) for parameter in self._parameters):
            raise OptionError(
                f"After step {step} the LoRA's weights are no longer finite numbers. They were not saved.",
                "Earlier saves are good. Start again with a lower --learning_rate, or with --max_grad_norm 1.",
            )
        if ending:
            return self._insist(save, step)
        try:
            path = save()
        except DiskError as error:
            self._requests.state_failed()
            if not self._refused:
                text = f"Step {step} is not saved. {error.message} Training goes on, and a state is tried again every"
                self._say(Warning_(message=f"{text} minute: until then its steps are in memory alone."))
            self._refused = True
            return Path()
        if state:
            self._requests.state_saved()
            self._refused = False
        return path

    def _insist(self, save: Callable[[], Path], step: int) -> Path:
        setup = self._setup
        try:
            return until_written(
                save, what=f"Step {step}", folder=self._checkpoints.folder, say=self._say, control=setup.control,
                clock=setup.clock, sleep=setup.sleep,
            )  # fmt: skip
        except DiskError:
            self.gave_up = True
            raise
