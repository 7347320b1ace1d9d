"""Which of several attention kernels is fastest on this GPU: measured once, and remembered in a file.

The answer depends on GPU, PyTorch and cuDNN together, and published figures disagree: cuDNN's kernel ran at 0.82 of
FlashAttention's speed on an A100 and at 1.0 on an L40S (huggingface/transformers#48163), but at 1.2 on the RTX 30 and
RTX 40 architectures, the latter being the L40S's (pytorch/pytorch#192799). Knows no kernel and no model.
Given up: a separate choice for each number of tokens.
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
"""A kernel replaces the usual one only if it takes at most this share of its time: results differ in the last bits, and
must not depend on how busy the GPU happened to be."""

CLOSE = 1.3
"""Kernels that take at most this many times as long as the fastest are timed again, by turns."""
WARM_SECONDS = 2.0
"""How long that takes; only the second half counts. A card that was idle runs faster than it can sustain: on a cold
H100 cuDNN took 9.4 ms and our kernel 9.2, though in the steps of a job ours saves a sixth."""

_log = logging.getLogger(__name__)
Kernels = Mapping[str, Callable[[], object]]
Clock = Callable[[Callable[[], object]], float]


@dataclass(frozen=True)
class Asked:
    """What a choice is for: tokens of this type and head size on this GPU, with or without gradients.

    `machine`: the GPU's name, and the versions of the packages to choose from.
    """

    device: torch.device
    machine: str
    dtype: torch.dtype
    head_dim: int
    learning: bool

    def key(self, kernels: Kernels) -> str:
        """Everything that the times depend on."""
        versions = f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}"
        dtype = str(self.dtype).removeprefix("torch.")
        way = "with gradients" if self.learning else "without gradients"
        return f"{self.machine}; {versions}; {dtype}, heads of {self.head_dim}, {way}; {' '.join(kernels)}"


@dataclass(frozen=True)
class Choice:
    """The chosen kernel, and how long each candidate took for the same tokens, in milliseconds."""

    name: str
    milliseconds: Mapping[str, float]
    remembered: bool


_taken: dict[tuple[int, torch.dtype, int, bool], str] = {}  # a plain dict, which torch.compile can trace


def taken(device: torch.device, dtype: torch.dtype, head_dim: int, *, learning: bool) -> str | None:
    """The kernel that was chosen for these; None if none was."""
    return _taken.get((device.index or 0, dtype, head_dim, learning))


def choose(asked: Asked, kernels: Kernels, *, file: Path, clock: Clock) -> Choice | None:
    """Use the fastest of the kernels from now on; the usual one comes first in `kernels`.

    Kernels that fail here are left out. None if fewer than two are left or memory runs out; nothing is remembered then.
    `file` remembers the times (a damaged file is replaced). `clock`: milliseconds that a run takes.
    """
    key = asked.key(kernels)
    stored = _read(file)
    times = _times(stored.get(key), kernels)
    remembered = times is not None
    if times is None:
        try:
            times = _try_out(kernels, clock)
        except torch.OutOfMemoryError:
            return None
        if len(times) < 2:
            return None
        with suppress(DiskError):  # then it is measured again next time
            write_bytes(file, (json.dumps({**stored, key: times}, indent=1) + "\n").encode())
    usual = next(name for name in kernels if name in times)
    fastest = min(times, key=times.__getitem__)
    name = fastest if times[fastest] < MARGIN * times[usual] else usual
    _taken[asked.device.index or 0, asked.dtype, asked.head_dim, asked.learning] = name
    return Choice(name, times, remembered)


def forget() -> None:
    """Drop all choices of this process."""
    _taken.clear()


def _try_out(kernels: Kernels, clock: Clock) -> dict[str, float]:
    """Milliseconds of the kernels that run here. If several are close, of these alone, on a warm card: next to such
    times those of a cold one would look too good."""
    times = _timed(kernels, clock)
    close = {name: kernels[name] for name in _close(times)}
    return times if len(close) < 2 else _by_turns(close, clock)


def _timed(kernels: Kernels, clock: Clock) -> dict[str, float]:
    """Milliseconds of each kernel, timed once; those that fail are left out."""
    times = {}
    for name, run in kernels.items():
        try:
            times[name] = round(clock(run), 4)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # packages and compilers raise anything; nobody asked for this kernel by name
            _log.debug("attention by %s fails here: %s", name, error)
    return times


def _close(times: Mapping[str, float]) -> list[str]:
    fastest = min(times.values(), default=0)
    return [name for name, time in times.items() if time <= CLOSE * fastest]


def _by_turns(kernels: Kernels, clock: Clock) -> dict[str, float]:
    """Median milliseconds on a card as warm as in a job; kernels that fail in any round are left out."""
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
    """`found`, if it has the form in which times are written."""
    if (
        not isinstance(found, dict)
        or len(found) < 2
        or not all(name in kernels and isinstance(time, float) and time > 0 for name, time in found.items())
    ):
        return None
    return found
