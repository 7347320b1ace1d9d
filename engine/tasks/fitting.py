"""Making a job fit the card: what it takes as it was asked for, and with which options added it fits.

Used by `plan`, by `--memory auto` before anything is loaded, and for the advice after running out of memory. Reads
headers, and imports torch only for what planned_weights.py does. Each process of a job has a card of its own; main
memory and the disk they have in common, and nothing in them: each keeps and writes its own copy of the weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from ..contract.job import Job, changed
from ..contract.options import Run, TrainingMemory
from ..contract.options.memory import vram_gib
from ..families import part
from ..memory.choosing import Choice, Limits, Needs, Options, Row, choose, generation_rows, training_rows
from ..memory.estimate import GIB, Stage
from ..memory.machine import Card, find_card, main_memory
from ..parts.scratch_place import scratch_folder, scratch_free
from .planned_weights import processes
from .planning import Survey

PLANNED = ("train", "generate", "cache-latents", "cache-text")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A job as it was asked for and as it was made to fit. `options` are those added; `fits` says whether they do.

    Stages are one process's, of which there are `processes` on this machine.
    """

    asked: list[Stage]
    planned: list[Stage]
    job: Job
    options: Options
    fits: bool
    limits: Limits
    card: Card | None
    processes: int = 1
    with_more_main: Choice | None = None  # where it does not fit: what would if there were enough main memory
    longest: int | None = None  # where it does not fit: frames of a clip of this size that would

    @property
    def needs(self) -> Needs:
        return _needs(self.planned, self.processes)

    @property
    def needed(self) -> int:
        """Bytes that have to be free on each card for the planned job."""
        return self.needs.card

    @property
    def main(self) -> int:
        """Bytes of main memory that the planned job takes."""
        return self.needs.main

    @property
    def scratch(self) -> int:
        """Bytes that the planned job writes to scratch files, in `scratch_folder`."""
        return self.needs.disk

    @property
    def scratch_folder(self) -> Path:
        return scratch_folder()

    @property
    def disk_is_short(self) -> bool:
        """Whether that is more than its disk has free."""
        return not self.limits.disk_allows(self.needs)

    @property
    def only_disk_is_short(self) -> bool:
        return self.disk_is_short and replace(self.limits, disk=None).allow(self.needs)

    @property
    def flags(self) -> str:
        """The options to add, as they are typed."""
        return " ".join(flag(name, value) for name, value in self.options.items())


def flag(name: str, value: Any) -> str:
    """One option on a command line."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no_{name}"
    return f"--{name} {value}"


def limits_of(job: Job) -> tuple[Limits, Card | None]:
    """What there is: --vram, else what is free on the GPU; main memory; and the disk of scratch files."""
    card = find_card(job[Run].device or f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
    told = asked_size(job)
    room = told if told is not None else None if card is None else card.free
    return Limits(card=room, main=main_memory(), disk=scratch_free()), card


def plan(job: Job, *, limits: Limits | None = None, survey: Survey | None = None) -> Plan:
    """Choose what makes the job fit into `limits` (default: `limits_of`)."""
    found, card = limits_of(job)
    limits = limits or found
    survey = survey or Survey(job)

    @cache
    def stages(*options: tuple[str, Any]) -> Sequence[Stage]:
        return survey.stages(changed(job, dict(options)), room=limits.card)

    choice = _chosen(job, survey, stages, limits)
    if not choice.fits and (on_larger_disk := _chosen(job, survey, stages, replace(limits, disk=None))).fits:
        choice = replace(on_larger_disk, fits=False)
    more = None if choice.fits else _chosen(job, survey, stages, replace(limits, main=None))
    fitted = changed(job, choice.options)
    return Plan(
        asked=stages(),
        planned=stages(*sorted(choice.options.items())),
        job=fitted,
        options=choice.options,
        fits=choice.fits,
        limits=limits,
        card=card,
        processes=processes(job, here=True),
        with_more_main=more if more is not None and more.fits else None,
        longest=None if choice.fits else _longest(fitted, survey, limits),
    )


Stages = Callable[..., Sequence[Stage]]
"""Those of a job with further options, given as pairs."""


def _chosen(job: Job, survey: Survey, stages: Stages, limits: Limits) -> Choice:
    """The choices for all parts of a job together."""
    options: Options = {}
    fits, card, main, disk = True, 0, 0, 0
    for select, rows in _parts(job, survey):
        choice = _choose(job, stages, limits, select, rows, options)
        options, fits = {**options, **choice.options}, fits and choice.fits
        card, main = max(card, choice.needs.card), max(main, choice.needs.main)
        disk = max(disk, choice.needs.disk)
    return Choice(options=options, needs=Needs(card=card, main=main, disk=disk), fits=fits)


def _longest(job: Job, survey: Survey, limits: Limits) -> int | None:
    """Frames of the largest clips that fit with these options; None where not even single pictures do."""
    for frames in survey.shorter_lengths():
        stages = survey.with_length(frames).stages(job, room=limits.card)
        if limits.allow(_needs(stages, processes(job, here=True))):
            return frames
    return None


Select = Callable[[Stage], bool]


def _parts(job: Job, survey: Survey) -> Iterator[tuple[Select, Iterator[Row]]]:
    """Parts of a job that different options make smaller: which stages, and what may be tried."""
    lighter, known = part(str(job.family), "options").LIGHTER, job.values()

    def of(kind: str) -> Iterator[Row]:
        yield [{}]
        for options in lighter.get(kind, ()):
            if options.keys() <= known.keys():
                yield [{name: value for name, value in options.items() if known[name] != value}]

    yield lambda stage: "captions" in stage.device, of("text")
    yield lambda stage: "VAE weights" in stage.device and "DiT weights" not in stage.device, of("vae")
    if survey.blocks:
        rows = training_rows if TrainingMemory in job else generation_rows
        yield lambda stage: "DiT weights" in stage.device, rows(known, blocks=survey.blocks, may_fp8=survey.may_fp8)


def _choose(
    job: Job, stages: Stages, limits: Limits, select: Select, rows: Iterator[Row], before: Mapping[str, Any]
) -> Choice:
    count = processes(job, here=True)

    def measure(options: Options) -> Needs:
        found = stages(*sorted({**before, **options}.items()))
        return _needs([stage for stage in found if select(stage)], count)

    return choose(measure, rows, limits)


def _needs(stages: Sequence[Stage], count: int) -> Needs:
    """What one stage after the other takes at most, in so many processes."""
    return Needs(
        card=max((stage.needed_bytes for stage in stages), default=0),
        main=count * max((stage.main_bytes for stage in stages), default=0),
        disk=count * max((stage.scratch for stage in stages), default=0),
    )


def smaller(before: Plan, share: float = 0.85) -> Plan:
    """Another plan for a job that ran out of memory although it should have fitted: for a share of the room."""
    room = before.needed if before.limits.card is None else min(before.needed, before.limits.card)
    return plan(before.job, limits=replace(before.limits, card=int(share * room)))


def wanted(job: Job) -> bool:
    """Whether the job is to be made to fit."""
    return any(getattr(section, "memory", "off") == "auto" for section in job.sections.values())


def asked_size(job: Job) -> int | None:
    """Bytes of the GPU that --vram plans for."""
    told = [section.vram for section in job.sections.values() if getattr(section, "vram", None)]  # type: ignore[attr-defined]
    return int(vram_gib(told[0]) * GIB) if told else None
