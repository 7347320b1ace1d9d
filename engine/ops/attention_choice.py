"""Which of several attention kernels is the fastest on this GPU: tried out once, and remembered in a file.

That follows from the GPU, PyTorch and cuDNN together, and lists of it disagree: against FlashAttention people measured
cuDNN's kernel at 0.82 of its speed on an A100 and 1.0 on an L40S (huggingface/transformers#48163), and at 1.2 on the
architectures of RTX 30 and RTX 40, which is the L40S's too (pytorch/pytorch#192799). Knows no kernel and no model.
Given up: a choice for each number of tokens.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import monotonic

import torch

from ..contract.errors import DiskError
from ..contract.files import write_bytes

MARGIN = 0.95
"""Another kernel than the usual one takes at most so much of its time: what comes out differs in the last bits, and is
not to follow from how busy the GPU was."""

CLOSE = 1.3
"""Those that take at most so many times what the fastest takes are timed once more, by turns."""
WARM_SECONDS = 2.0
"""So long, of which the second half counts. A card that was idle runs faster than it can for long: on a cold H100 cuDNN
took 9.4 ms and our kernel 9.2, where in a job's steps it saves a sixth."""

_log = logging.getLogger(__name__)
Kernels = Mapping[str, Callable[[], object]]
Clock = Callable[[Callable[[], object]], float]


@dataclass(frozen=True)
class Asked:
    """What a choice is for: tokens of this type and head size on this GPU (`machine`: its name, and versions of what
    may be taken there), with or without gradients."""

    device: torch.device
    machine: str
    dtype: torch.dtype
    head_dim: int
    learning: bool

    def key(self, kernels: Kernels) -> str:
        """What the times follow from."""
        versions = f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}"
        dtype = str(self.dtype).removeprefix("torch.")
        way = "with gradients" if self.learning else "without gradients"
        return f"{self.machine}; {versions}; {dtype}, heads of {self.head_dim}, {way}; {' '.join(kernels)}"


@dataclass(frozen=True)
class Choice:
    """The kernel that is taken, and what those that came into question took for the same tokens, in milliseconds."""

    name: str
    milliseconds: Mapping[str, float]
    remembered: bool


_taken: dict[tuple[int, torch.dtype, int, bool], str] = {}  # a plain dict, which torch.compile sees through


def taken(device: torch.device, dtype: torch.dtype, head_dim: int, *, learning: bool) -> str | None:
    """The kernel that was chosen for these; None where none was."""
    return _taken.get((device.index or 0, dtype, head_dim, learning))


def choose(asked: Asked, kernels: Kernels, *, file: Path, clock: Clock) -> Choice | None:
    """Take the fastest of the kernels from now on; the usual one comes first.

    Those that fail here are left out; None where no two are left, or memory ran out, and then the file learns nothing.
    `file` remembers the times (a damaged one is made anew). `clock`: milliseconds of a run.
    """
    key = asked.key(kernels)
    told = _read(file)
    times = _times(told.get(key), kernels)
    remembered = times is not None
    if times is None:
        try:
            times = _try_out(kernels, clock)
        except torch.OutOfMemoryError:
            return None
        if len(times) < 2:
            return None
        with suppress(DiskError):  # tried out again next time
            write_bytes(file, (json.dumps({**told, key: times}, indent=1) + "\n").encode())
    usual = next(name for name in kernels if name in times)
    fastest = min(times, key=times.__getitem__)
    name = fastest if times[fastest] < MARGIN * times[usual] else usual
    _taken[asked.device.index or 0, asked.dtype, asked.head_dim, asked.learning] = name
    return Choice(name, times, remembered)


def forget() -> None:
    """As in a process that has chosen nothing."""
    _taken.clear()


def _try_out(kernels: Kernels, clock: Clock) -> dict[str, float]:
    """Of those that run here. Where several are close, of these alone, on a warm card: beside such times those of a
    cold one would look too good."""
    times = _timed(kernels, clock)
    close = {name: kernels[name] for name in _close(times)}
    return times if len(close) < 2 else _by_turns(close, clock)


def _timed(kernels: Kernels, clock: Clock) -> dict[str, float]:
    """Once each; those that fail are left out."""
    times = {}
    for name, run in kernels.items():
        try:
            times[name] = round(clock(run), 4)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # packages and compilers fail in ways of their own; nobody asked for this kernel
            _log.debug("attention by %s fails here: %s", name, error)
    return times


def _close(times: Mapping[str, float]) -> list[str]:
    fastest = min(times.values(), default=0)
    return [name for name, time in times.items() if time <= CLOSE * fastest]


def _by_turns(kernels: Kernels, clock: Clock) -> dict[str, float]:
    """On a card as warm as a job makes it; those that fail in a later turn are left out too."""
    rounds: list[dict[str, float]] = []
    end = monotonic() + WARM_SECONDS
    while not rounds or monotonic() < end:
        rounds.append(_timed(kernels, clock))
    late = rounds[len(rounds) // 2 :]
    return {name: round(median(one[name] for one in late), 4) for name in kernels if all(name in one for one in rounds)}


def _read(file: Path) -> dict[str, object]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _times(found: object, kernels: Kernels) -> dict[str, float] | None:
    """What the file remembers, if it is what would be written there."""
    if (
        not isinstance(found, dict)
        or len(found) < 2
        or not all(name in kernels and isinstance(time, float) and time > 0 for name, time in found.items())
    ):
        return None
    return found
