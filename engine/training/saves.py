"""What the loop saves, and what it does where the disk refuses: it is full, a quota is used up, a drive is gone.

In the middle of a training that is a warning: training goes on, and a state is tried again every minute. Before the
process ends, saving waits for room, since the steps after the last state exist nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..contract.errors import DiskError, OptionError
from ..contract.events import Log, Say, Warning_
from ..contract.patience import until_written
from ..contract.saved_names import BEST
from .best import Best
from .group import Group
from .requests import Requests
from .setup import Setup
from .states import Position


class Saves:
    """Saves in process 0; the others wait for it in the next step's exchange.

    OptionError for weights that are not finite. DiskError only before the process ends, as of contract/patience.py.
    """

    def __init__(
        self,
        setup: Setup,
        requests: Requests,
        group: Group,
        parameters: Sequence[Tensor],
        *,
        best: Mapping[str, Any],
        say: Say,
    ) -> None:
        """`best`: as a state has it (`Position`)."""
        self.best = Best(best, measure="" if setup.validation is None else setup.validation.measure)
        self._setup, self._requests, self._group, self._parameters, self._say = setup, requests, group, parameters, say
        self._checkpoints = setup.checkpoints
        self.gave_up = False  # waiting for the disk before the end
        self._refused = False  # the last attempt, so that it is said once

    def step(self, position: Position, *, with_state: bool, stopping: bool) -> None:
        """What is due after a step; with its state where one is asked for, or where the process ends (`stopping`)."""
        self._save(
            lambda: self._checkpoints.save_step(self._setup.parts, position, with_state=with_state, stopping=stopping),
            step=position.step,
            ending=stopping,
            state=with_state or stopping or self._checkpoints.keep.save_state,
        )

    def passing_state(self, position: Position, *, ending: bool = False) -> None:
        """A state alone. `ending`: the process ends after it."""
        self._save(
            lambda: self._checkpoints.save_passing_state(self._setup.parts, position),
            step=position.step,
            ending=ending,
            state=True,
        )

    def epoch(self, number: int, position: Position) -> None:
        """What is due after an epoch (from 1)."""
        self._save(
            lambda: self._checkpoints.save_epoch(number, self._setup.parts, position), step=position.step, ending=False
        )

    def best_so_far(self, loss: float, position: Position) -> None:
        """The LoRA, if such are kept and its loss on held-out clips is the lowest so far.

        What training began with sets the mark, but is not saved. Where the disk refuses, what lies there stays the one
        to compare with.
        """
        if not self._keeps_best or not self._group.leads:
            return
        if self.best.outdated:
            text = "Validation is not what it was when this training began: the best LoRA is chosen anew"
            self._say(Log(message=f"{text} from step {position.step} on."))
        if not loss < self.best.loss:  # also where it is not a number
            return
        if position.step == 0:
            self.best.keep(loss, 0)
        else:
            self._save(lambda: self._save_best(loss, position), step=position.step, ending=False)

    def _save_best(self, loss: float, position: Position) -> None:
        self._checkpoints.save_best(self._setup.parts, position)
        self.best.keep(loss, position.step)

    def last(self, epochs: int, position: Position) -> None:
        """The finished LoRA."""
        self._save(
            lambda: self._checkpoints.save_last(epochs, self._setup.parts, position), step=position.step, ending=True
        )
        if self._keeps_best and self.best.step is not None:
            self._say(Log(message=self._which_was_best()))

    @property
    def _keeps_best(self) -> bool:
        return self._setup.validation is not None and self._setup.validation.keep_best

    def _which_was_best(self) -> str:
        best, name = self.best, f"{self._checkpoints.name}{BEST}"
        if not best.step:
            return f"No validation loss was lower than before the first step, {best.loss:.4f}: there is no {name}."
        return f"The lowest validation loss was {best.loss:.4f}, after step {best.step}: that LoRA is {name}."

    def _save(self, save: Callable[[], object], *, step: int, ending: bool, state: bool = False) -> None:
        if not self._group.leads:
            return
        if not all(bool(parameter.isfinite().all()) for parameter in self._parameters):
            raise OptionError(
                f"After step {step} the LoRA's weights are no longer finite numbers. They were not saved.",
                "Earlier saves are good. Start again with a lower --learning_rate, or with --max_grad_norm 1.",
            )
        if ending:
            self._insist(save, step)
            return
        try:
            save()
        except DiskError as error:
            self._requests.state_failed()
            if not self._refused:
                text = f"Step {step} is not saved. {error.message} Training goes on, and a state is tried again every"
                self._say(Warning_(message=f"{text} minute: until then its steps are in memory alone."))
            self._refused = True
            return
        if state:
            self._requests.state_saved()
            self._refused = False

    def _insist(self, save: Callable[[], object], step: int) -> None:
        setup = self._setup
        try:
            until_written(
                save, what=f"Step {step}", folder=self._checkpoints.folder, say=self._say, control=setup.control,
                clock=setup.clock, sleep=setup.sleep,
            )  # fmt: skip
        except DiskError:
            self.gave_up = True
            raise
