"""What a running training is asked to do between two steps: by the person, a signal, or the clock."""

from __future__ import annotations

from typing import NamedTuple

from ..contract.events import Control, Log, Say
from .group import Group
from .setup import Settings, Setup


class Asked(NamedTuple):
    """`state`: a state is due, because the last one is old."""

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
        self._started_s = self._state_saved_s = setup.clock()

    def take(self) -> Asked:
        """What was requested since the last call. A stop stays requested."""
        control, every = self._control, self._settings.save_state_every_minutes
        if self._group.leads and self._time_is_over() and not control.stop_requested:
            limit = f"--max_train_minutes {self._settings.max_minutes:g}"
            self._say(Log(message=f"{limit} are up: saving."))
            control.request_stop()
        state = bool(every) and self._clock() - self._state_saved_s >= 60 * every
        asked = Asked(control.stop_requested, control.take_save(), control.take_sample(), state)
        return self._group.broadcast(asked)

    def state_saved(self) -> None:
        """Restart the clock for `save_state_every_minutes`."""
        self._state_saved_s = self._clock()

    def _time_is_over(self) -> bool:
        limit = self._settings.max_minutes
        return limit is not None and self._clock() - self._started_s >= 60 * limit
