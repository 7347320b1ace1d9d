"""Writing what exists nowhere else: where the disk refuses (it is full, a drive is gone), wait until it does not."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from .errors import DiskError
from .events import Control, Say, Stage, Warning_

PATIENCE_S = 3600.0
PAUSE_S = 10.0
T = TypeVar("T")


def until_written(
    write: Callable[[], T],
    *,
    what: str,
    folder: Path,
    say: Say,
    control: Control,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """The result of `write`, tried again every PAUSE_S. `what` is to be written, such as "Step 10", into `folder`.

    DiskError after PATIENCE_S, or once a stop is requested. One that was requested before has brought us here: it does
    not count.
    """
    stopping, until, waiting = control.stop_requested, clock() + PATIENCE_S, False
    while True:
        try:
            return write()
        except DiskError as error:
            if clock() >= until or (control.stop_requested and not stopping):
                raise
            if not waiting:
                text = f"{what} is not saved yet. {error.message} Make room: it is tried again for an hour"
                say(Warning_(message=f"{text}{'' if stopping else ', or until you stop it'}."))
                say(Stage(name="Waiting for the disk", message=str(folder)))
            waiting = True
        sleep(PAUSE_S)
