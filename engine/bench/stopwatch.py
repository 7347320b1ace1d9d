"""Times and memory of this process: synchronised with the GPU, medians, peaks.

Knows no command: it reads events, calls functions, and gives plain numbers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch

from ..contract.events import Event, Metric, Progress, Say

GIB = 1 << 30
SUSTAINED_SIDE = 8192  # of the matrices whose product shows what the device can do
SUSTAINED_TIMES = 20


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was told; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def step_of(event: Event, *, training: bool) -> int | None:
    """The number of the training or denoising step, or of the cached clip, that an event says is done; else None."""
    if training:
        return event.step if isinstance(event, Metric) and "loss/current" in event.values else None
    return event.done if isinstance(event, Progress) and event.unit in ("steps", "clips") else None


class Stopwatch:
    """Listens to a job as its `say`, and stamps the time at every step, when the device has come that far."""

    def __init__(self, say: Say, device: torch.device, *, training: bool):
        self._say, self._device, self._training = say, device, training
        self.stamps: list[tuple[float, int]] = []
        self.losses: list[float] = []
        self.first_at: float | None = None  # by the wall clock

    def __call__(self, event: Event) -> None:
        step = step_of(event, training=self._training)
        if step is not None:
            synchronize(self._device)
            self.stamps.append((time.perf_counter(), step))
            if self.first_at is None:
                self.first_at = time.time()
            if isinstance(event, Metric):
                self.losses.append(event.values["loss/current"])
        self._say(event)

    def seconds(self, *, warm_up: int) -> list[float]:
        """Of each step, without the first `warm_up`."""
        return list(step_times(self.stamps, warm_up=warm_up))


def step_times(stamps: Iterable[tuple[float, int]], *, warm_up: int = 0) -> Iterator[float]:
    """Seconds a step between two reports, of which there may be fewer than steps; none from before step `warm_up`."""
    for (before, first), (after, last) in pairwise(stamps):
        if last > first >= warm_up:
            yield (after - before) / (last - first)


def repeated(call: Callable[[], Any], device: torch.device, *, times: int, warm_up: int = 2) -> list[float]:
    """Seconds of each of `times` calls, after some that do not count."""
    for _ in range(warm_up):
        call()
    found = []
    for _ in range(times):
        synchronize(device)
        started = time.perf_counter()
        call()
        synchronize(device)
        found.append(time.perf_counter() - started)
    return found


def timed(seconds: list[float], *, averaged: bool = False) -> dict[str, Any]:
    """The figures of a row that are times: the median, or the mean of steps that differ."""
    if not seconds:
        return {"seconds": None, "n": 0}
    middle = statistics.fmean(seconds) if averaged else statistics.median(seconds)
    return {"seconds": round(middle, 6), "fastest_s": round(min(seconds), 6), "n": len(seconds)}


# ------------------------------------------------------------------------------------------------------------- memory


def peaks(device: torch.device) -> dict[str, float]:
    """The most memory that this process has had so far, of the GPU and of the machine, GiB."""
    found = {"peak_ram_gib": round(peak_ram_bytes() / GIB, 2)}
    if device.type == "cuda":
        found["peak_alloc_gib"] = round(torch.cuda.max_memory_allocated(device) / GIB, 2)
        found["peak_reserved_gib"] = round(torch.cuda.max_memory_reserved(device) / GIB, 2)
    return found


def peak_ram_bytes() -> int:
    """The most main memory that this process has had, mapped files included; on macOS what it has now."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the starting process had
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) << 10
    memory = psutil.Process().memory_info()
    return int(getattr(memory, "peak_wset", memory.rss))


# -------------------------------------------------------------------------------------------------------- the device


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def sustained_tflops(device: torch.device) -> float:
    """TFLOP/s that large bf16 products reach here: what utilisation is a share of. Takes memory: read peaks before."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_per_process_memory_fraction(1.0, device.index or 0)  # whatever limit the job had set itself
    side, times = (SUSTAINED_SIDE, SUSTAINED_TIMES) if on_gpu else (256, 2)
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))

    def products() -> None:
        for _ in range(times):
            torch.mm(left, right)

    seconds = repeated(products, device, times=3, warm_up=1)
    return 2 * side**3 * times / statistics.median(seconds) / 1e12
