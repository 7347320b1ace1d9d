"""What a running training is asked to do between two steps: by the person, a signal, or the clock."""

from __future__ import annotations

import math
from typing import NamedTuple

from ..contract.events import Control, Log, Say
from .group import Group
from .setup import Settings, Setup

RETRY_S = 60.0
"""After how long a state that the disk refused is tried again."""


class Asked(NamedTuple):
    """`state`: a state is due, because the last one is old or was refused by the disk."""

    stop: bool
    save: bool
    sample: bool
    state: bool


class Requests:
    """Collects requests in process 0, which alone hears them and keeps the time, and passes them to all."""

    def __init__(self, setup: Setup, settings: Settings, group: Group) -> None:
        self._control: Control = setup.control
        self._say: Say = setup.say
        self._clock, self._settings, self._group = setup.clock, settings, group
        self._started_s = setup.clock()
        self.state_saved()

    def take(self) -> Asked:
        """What was requested since the last call. A stop stays requested."""
        control = self._control
        if self._group.leads and self._time_is_over() and not control.stop_requested:
            limit = f"--max_train_minutes {self._settings.max_minutes:g}"
            self._say(Log(message=f"{limit} are up: saving."))
            control.request_stop()
        state_due = self._clock() >= self._state_due_s
        asked = Asked(control.stop_requested, control.take_save(), control.take_sample(), state_due)
        return self._group.broadcast(asked)

    def state_saved(self) -> None:
        """Restart the clock for `save_state_every_minutes`."""
        every = self._settings.save_state_every_minutes
        self._state_due_s = self._clock() + 60 * every if every else math.inf

    def state_failed(self) -> None:
        """Ask for a state again soon, whatever `save_state_every_minutes` says."""
        self._state_due_s = self._clock() + RETRY_S

    def _time_is_over(self) -> bool:
        limit = self._settings.max_minutes
        return limit is not None and self._clock() - self._started_s >= 60 * limit
