"""A whole training in miniature: a velocity net with LoRA, a loader that can begin anywhere, and an Accelerator."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn

from engine.contract.events import Control, Event, Metric
from engine.contract.saved_names import AVERAGE
from engine.lora.files import write_lora
from engine.lora.network import LoraNetwork, create
from engine.training.checkpoints import Checkpoints, Keep
from engine.training.ema import Ema
from engine.training.loop import Outcome, Settings, Setup, train
from engine.training.optimizers import BuiltOptimizer, choose_optimizer
from engine.training.schedules import Schedule, create_scheduler
from engine.training.sigmas import SigmaSampling
from engine.training.states import Position, StateParts, read_state

CHANNELS, ITEMS = 4, 5


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 4 * width)
        self.outer = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(torch.nn.functional.silu(self.inner(x)))


class Velocity(nn.Module):
    """Sees the noisy latents, the timestep and a text vector at each place; no mixing between places."""

    def __init__(self) -> None:
        super().__init__()
        width = 2 * CHANNELS + 2
        self.blocks = nn.ModuleList([Block(width), Block(width)])
        self.head = nn.Linear(width, CHANNELS)

    def forward(self, x_BCTHW: Tensor, timestep_B: Tensor, cond: dict[str, Any]) -> Tensor:
        x_BTHWC = x_BCTHW.movedim(1, -1)
        text = torch.stack(cond["text"])[:, None, None, None, :].expand(*x_BTHWC.shape[:4], -1)
        time = (timestep_B / 1000).view(-1, 1, 1, 1, 1).expand(*x_BTHWC.shape[:4], 2)
        hidden = torch.cat([x_BTHWC, text, time], dim=-1).to(self.head.weight.dtype)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden).movedim(-1, 1)


def batches(epoch: int, first: int, *, count: int = ITEMS) -> Iterator[dict[str, Any]]:
    """One item a batch, in an order that depends on the epoch only."""
    order = list(range(count))
    random.Random(epoch).shuffle(order)
    for number in order[first:]:
        generator = torch.Generator().manual_seed(number)
        latents = torch.randn(1, CHANNELS, 2, 3, 3, generator=generator) * 0.1 + number / ITEMS
        yield {"latents": latents, "t5": [torch.full((CHANNELS,), float(number))]}


@dataclass
class Job:
    """Everything of one training; `events` is what it said."""

    setup: Setup
    settings: Settings
    network: LoraNetwork
    dit: Velocity
    built: BuiltOptimizer
    events: list[Event] = field(default_factory=list)

    def run(self, start: Position | None = None) -> Outcome:
        return train(self.setup, self.settings, start=start)

    def resume(self, folder: Path) -> Outcome:
        return self.run(read_state(folder, self.setup.parts))

    @property
    def losses(self) -> list[float]:
        return [event.values["loss/current"] for event in self.events if isinstance(event, Metric)]

    def said(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def accelerator(mixed_precision: str = "no") -> Accelerator:
    """A fresh one: accelerate keeps its settings for the whole process otherwise."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    return Accelerator(cpu=True, mixed_precision=mixed_precision)


def job(
    folder: Path,
    *,
    lr: float = 1e-2,
    optimizer: str = "AdamW",
    optimizer_args: tuple[str, ...] = (),
    full_bf16: bool = False,
    cpu_offload: bool = False,
    schedule: Schedule | None = None,
    keep: Keep | None = None,
    sampling: SigmaSampling | None = None,
    mixed_precision: str = "no",
    dropout: float | None = None,
    base_dtype: torch.dtype = torch.float32,
    seed: int = 11,
    count: int = ITEMS,
    velocity: Callable[..., Tensor] | None = None,
    control: Control | None = None,
    ema: float | None = None,
    setup: dict[str, Any] | None = None,
    **settings: Any,
) -> Job:
    """A training of 10 steps unless told otherwise. `ema`: the decay of an average of its weights."""
    torch.manual_seed(1)
    dit = Velocity().to(base_dtype)
    network = create(
        dit, block_classes=["Block"], exclude="", dim=4, alpha=4, dropout=dropout, rank_dropout=dropout, seed=seed
    )
    settings = {"max_steps": 10, "accumulation": 1, **settings}
    groups = network.parameter_groups(lr)
    fused = bool(settings.get("fused_backward_pass"))
    chosen = choose_optimizer(
        optimizer, optimizer_args, lr=lr, full_bf16=full_bf16, cpu_offload=cpu_offload, fused=fused
    )
    built = chosen.build(groups)
    scheduler = create_scheduler(
        schedule
        or (Schedule(name=built.forced_schedule) if built.forced_schedule else Schedule(name="cosine", warmup=2)),
        built.optimizer,
        total_steps=settings["max_steps"],
        schedule_free=built.schedule_free,
    )
    events: list[Event] = []
    average = None if ema is None else Ema(built.parameters, decay=ema)

    def write(path: Path, step: int, epoch: int) -> None:
        write_lora(path, network.state(), metadata={"ss_steps": str(step), "ss_epoch": str(epoch)})

    def write_average(path: Path, step: int, epoch: int) -> None:
        with average.shown():
            write(path, step, epoch)

    checkpoints = Checkpoints(
        folder, "toy", keep=keep or Keep(), write_lora=write, say=events.append,
        beside={} if average is None else {AVERAGE: write_average},
    )  # fmt: skip
    parts = {
        "accelerator": (setup or {}).get("accelerator") or accelerator(mixed_precision),
        "network": network,
        "optimizer": built,
        "scheduler": scheduler,
        "velocity": velocity or dit,
        "conditioning": lambda batch: {"text": batch["t5"]},
        "batches": lambda epoch, first: batches(epoch, first, count=count),
        "batches_per_epoch": count,
        "checkpoints": checkpoints,
        "ema": average,
        "say": events.append,
        "control": control or Control(),
    }
    numbers = Settings(seed=seed, sampling=sampling or SigmaSampling(mode="uniform"), **settings)
    return Job(Setup(**{**parts, **(setup or {})}), numbers, network, dit, built, events)


def parts_of(some: Job) -> StateParts:
    return some.setup.parts
