"""`plan train wan …`: what a command will take of the GPU and of main memory, and which options make it fit.

Nothing is loaded: headers of files and the dataset's settings are all that is read, in about a second. It takes torch,
and seconds more, where headers do not tell: a PyTorch file, and LoRAs that are merged into blocks that wait on disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..contract.cli import write_result
from ..contract.errors import OptionError
from ..contract.events import Control, PlannedStage, Say
from ..contract.events import Plan as PlanEvent
from ..contract.job import Job
from ..contract.options import Run
from ..memory.estimate import GIB, Stage, largest
from ..parts.scratch_place import ADVICE, taken, too_little
from .fitting import PLANNED, Plan, plan
from .optimized import optimized
from .planning import Survey, described

MIB = 1 << 20
FROM_DISK = "Main memory has no room for the streamed blocks, so they are read from disk: steps may be as slow as it."
SHOWN_FROM = GIB // 20  # what would be 0.0 in the tables is left out of them


def run(job: Job, say: Say, control: Control) -> str:
    if job.command.verb not in PLANNED:
        verbs = " or ".join(f"plan {verb} wan" for verb in PLANNED[:3])
        raise OptionError("plan needs the command that is to be planned.", hint=f"Write {verbs}, with its options.")
    job = optimized(job)
    survey = Survey(job)
    found = plan(job, survey=survey)
    if job[Run].events:
        say(event_of(found))
        return verdict(found)
    write_result("\n".join(report(job, survey, found)) + "\n")
    return ""


def event_of(found: Plan) -> PlanEvent:
    """The plan for whoever reads events; sizes in MiB."""
    return PlanEvent(
        stages=[_told(stage) for stage in found.planned],
        asked_mib=largest(found.asked).needed_bytes / MIB,
        needed_mib=found.needed / MIB,
        limit_mib=None if found.limits.card is None else found.limits.card / MIB,
        ram_mib=found.main / MIB,
        fits=found.fits,
        options=found.options,
        message=verdict(found),
        scratch_mib=found.scratch / MIB,
        scratch_folder=str(found.scratch_folder) if found.scratch else "",
        scratch_free_mib=None if found.limits.disk is None else found.limits.disk / MIB,
    )


def _told(stage: Stage) -> PlannedStage:
    return {
        "name": stage.name,
        "device_mib": {name: size / MIB for name, size in stage.device.items()},
        "main_mib": {name: size / MIB for name, size in stage.main.items()},
        "needed_mib": stage.needed_bytes / MIB,
    }


# ------------------------------------------------------------------------------------------------------- for a person


def verdict(found: Plan) -> str:
    """Whether it fits, and with what; else what would."""
    return " ".join([*_of_memory(found), *_of_disk(found)])


def _of_memory(found: Plan) -> Iterator[str]:
    needed = f"{gib(found.needed)} GiB"
    if found.limits.card is None:
        yield f"{needed} are needed on the GPU. --vram 12GB plans for a GPU of that size."
        return
    room = f"{gib(found.limits.card)} GiB"
    if found.fits or found.only_disk_is_short:
        but = "" if found.fits else ", but not on the disk"
        yield f"{needed} of {room}: it fits{f' with {found.flags}' if found.options else ''}{but}."
        if "block_swap_from_disk" in found.options:
            yield FROM_DISK
        return
    least = f"It does not fit: {largest(found.planned).name} needs at least {needed} of {room}"
    yield f"{least}{f', with {found.flags}' if found.options else ''}."
    yield from _ways_out(found)


def _of_disk(found: Plan) -> Iterator[str]:
    """What is written to scratch files, and where."""
    if found.disk_is_short:
        told = too_little(found.scratch, found.scratch_folder, found.limits.disk or 0, processes=found.processes)
        yield f"{told} {ADVICE}"
    elif found.scratch >= SHOWN_FROM:
        yield f"{taken(found.scratch, found.scratch_folder, processes=found.processes)}."


def _ways_out(found: Plan) -> Iterator[str]:
    if found.with_more_main is not None:
        yield f"With {gib(found.with_more_main.needs.main)} GiB of main memory free it would fit."
    if found.longest is not None and found.longest > 1:
        yield f"With these options up to {found.longest} frames of this size fit."


def report(job: Job, survey: Survey, found: Plan) -> list[str]:
    """The tables: of each stage that matters, what takes memory as asked for, and with the planned options."""
    lines = [f"{job.name}: {', '.join(dict.fromkeys(map(described, survey.clips)))}"]
    if found.card is not None:
        lines.append(f"{found.card.name}: {gib(found.card.free)} of {gib(found.card.total)} GiB are free")
    worst = worst_of_each(found.asked), worst_of_each(found.planned)
    for name in dict.fromkeys([*worst[0], *worst[1]]):
        lines += ["", *_table(worst[0][name], worst[1][name], found.processes, planned_too=bool(found.options))]
    return [*lines, "", verdict(found)]


def worst_of_each(stages: Iterable[Stage]) -> dict[str, Stage]:
    """Of stages of one name (clips of several sizes) the largest."""
    found: dict[str, Stage] = {}
    for stage in stages:
        if stage.name not in found or stage.needed_bytes > found[stage.name].needed_bytes:
            found[stage.name] = stage
    return found


def _table(asked: Stage, planned: Stage, processes: int, *, planned_too: bool = False) -> list[str]:
    columns = (asked, planned) if planned_too else (asked,)
    head = f"{asked.name}, GiB" + " " * max(1, 40 - len(asked.name))
    lines = [head + "".join(f"{title:>10}" for title in ("as asked", "planned")[: len(columns)])]

    def row(name: str, sizes: Iterable[int]) -> None:
        values = list(sizes)
        if max(values) >= SHOWN_FROM:
            lines.append(f"  {name:<43}" + "".join(f"{gib(size):>10}" for size in values))

    for name in dict.fromkeys(name for stage in columns for name in stage.device):
        row(name, (stage.device.get(name, 0) for stage in columns))
    row("tensors together", (stage.device_bytes for stage in columns))
    row("with gaps and CUDA itself", (stage.needed_bytes for stage in columns))
    main, scratch = "main memory", "scratch file on disk"
    if processes > 1:
        main, scratch = f"main memory of {processes} processes", f"scratch files of {processes} processes on disk"
    row(main, (processes * stage.main_bytes for stage in columns))
    row(scratch, (processes * stage.scratch for stage in columns))
    return lines


def gib(size: int) -> str:
    return f"{size / GIB:.1f}"
