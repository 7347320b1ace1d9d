"""Whether a training starts or resumes, and from where; what it may overwrite, and which options may have changed.

Beside the LoRA is the record of its training: which training the files of that name belong to, with what options, and
whether it is finished. States carry the id of their training, so `--fresh` need not delete anything: what an earlier
training left behind is never resumed from, however far it got.

    stopped, killed or failed, same options      resume from the newest complete state
    finished, same options                       nothing to do, and say so; with more steps, resume from its last state
    another training's LoRA, or other options    refused: --fresh, or another --output_name

Whether an option may change is decided here, by name: those in `_FIXED` may not, those about files, logs and the
machine may, and all others may with a warning that names them.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..contract import saved_names
from ..contract.errors import DiskError, OptionError
from ..contract.events import Log, Say, Warning_
from ..contract.files import write_text
from ..contract.job import Job, changed
from ..contract.options import (
    Attention,
    HuggingFace,
    Launch,
    Logging,
    Metadata,
    Network,
    Run,
    Samples,
    Saving,
    TrainingMemory,
    Validation,
)
from ..contract.saved_names import AVERAGE
from ..contract.schema import options
from ..data.batches import TrainItem
from ..training import upload
from ..training.states import Owner, Position, complaint, read_owner, read_position, states_of
from .experts import experts_of

AUTO = "auto"
_DATASET = "the dataset"
_QUIET_SECTIONS = (Run, Launch, Saving, Samples, Validation, Logging, Metadata, HuggingFace, TrainingMemory, Attention)
_QUIET = {
    "max_train_steps", "max_train_epochs", "max_train_minutes", "max_not_finite_steps", "max_data_loader_n_workers",
    "persistent_data_loader_workers", "show_timesteps", "network_weights", "exploding_loss_factor", "ema_device",
    "gradient_accumulation_steps",  # the loop reports its effect itself
}  # fmt: skip
_FIXED = {
    _DATASET, "seed", "task", "network_module", "network_dim", "network_alpha", "network_args", "dim_from_weights",
    "base_weights", "base_weights_multiplier", "optimizer_type", "optimizer_args", "lr_scheduler_type",
    "lr_scheduler_args", "validation_split",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Record:
    """What the record of a training says.

    `training`: its id; `options`: those that identify it (`binding_options`); `finished_steps`: its steps once it is
    finished; `origin`: the state of another training that it started from; `started`: YYYYmmddHHMMSS.
    """

    training: str
    options: Mapping[str, Any] = field(default_factory=dict)
    finished_steps: int | None = None
    origin: str | None = None
    started: str = ""


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a training starts: from `state`, at `position`, or from scratch. `record`: that of an earlier training."""

    state: Path | None = None
    position: Position | None = None
    record: Record | None = None

    @property
    def seed(self) -> int | None:
        """The seed of the training being resumed or, without a state, of the earlier attempt."""
        if self.position is not None:
            return self.position.seed
        return None if self.record is None else self.record.options.get("seed")

    @property
    def first_step(self) -> int:
        """From 1."""
        return 1 if self.position is None else self.position.step + 1


def find_start(job: Job, say: Say) -> Start:
    """Where this job starts, given `--resume` and `--fresh`. WeightsError if the named state is broken."""
    saving = job[Saving]
    record = read_record(job)
    if saving.fresh:
        return Start()
    if saving.resume == AUTO:
        state = None if record is None else _newest(job, record, say)
    elif job[HuggingFace].resume_from_huggingface:
        state = upload.fetch_state(upload.hub(job[HuggingFace].huggingface_token), saving.resume, say=say)
    else:
        state = Path(saving.resume)
    return Start(state=state, position=None if state is None else read_position(state), record=record)


def _newest(job: Job, record: Record, say: Say) -> Path | None:
    """The newest complete state of a training; warns about broken ones."""
    saving = job[Saving]
    origin = [] if record.origin is None else [Path(record.origin)]
    for folder in (*states_of(saving.output_dir, saving.output_name), *origin):
        if folder not in origin and read_owner(folder).training not in (record.training, ""):
            continue
        why = complaint(folder)
        if not why and (folder in origin or read_owner(folder).training):
            return folder
        if why:
            say(Warning_(message=f"The state {folder} cannot be used: {why}. Looking for the one before it."))
    return None


def going_on(job: Job, say: Say) -> Callable[[Job], Job]:
    """A function that turns a failed job into one that resumes from the newest state of this start, or leaves it as it
    is if there is none. Call `going_on` before the job runs."""
    before = read_record(job)

    def follow(broken_off: Job) -> Job:
        record = read_record(broken_off)
        earlier = before is not None and record is not None and record.training == before.training
        if record is None or (earlier and job[Saving].fresh):
            return broken_off
        state = _newest(broken_off, record, say)
        if state is None:
            return broken_off
        return changed(broken_off, {"resume": str(state), "fresh": False, "resume_from_huggingface": False})

    return follow


def finished_already(job: Job, start: Start, now: Mapping[str, Any], *, steps: int) -> str:
    """The message for starting a finished training again; "" if there is something to do.

    `now`: the `binding_options`. OptionError if resuming, or starting, would destroy something.
    """
    saving, record = job[Saving], start.record
    final = final_lora(job)
    finished = saving.resume == AUTO and final.exists() and _is_finished(record, steps)
    if not finished:
        _check_names(job)
    if start.state is not None and not finished:
        _check_state(job, start, now)
        return ""
    if saving.fresh:
        return ""
    changed = [] if record is None else changes(record.options, now)
    if record is not None and finished and not changed:
        return (
            f"Nothing to do: this training is finished, with {record.finished_steps} steps: {final}. For more, give a "
            "higher --max_train_steps; --fresh trains it from scratch."
        )
    if (record is None or changed or record.finished_steps is not None) and _loras(job):
        raise _would_be_lost(saving, final, record, changed)
    return ""


def _check_names(job: Job) -> None:
    """Refuse a name that gives another training's LoRA as an expert's, as the average, or as the best."""
    saving, folder = job[Saving], Path(job[Saving].output_dir)
    for name in saved_names.taken(saving.output_name, _endings(job), best=job[Validation].save_best_validation)[1:]:
        if (folder / saved_names.record(name)).exists():
            raise OptionError(
                f"--output_name {saving.output_name} would write over {saved_names.lora(name)} in {folder}, which "
                "belongs to another training.",
                "Choose another --output_name.",
                names=("output_name",),
            )


def final_lora(job: Job) -> Path:
    """The file of the finished LoRA."""
    return Path(job[Saving].output_dir) / saved_names.lora(job[Saving].output_name)


def _is_finished(record: Record | None, steps: int) -> bool:
    return record is not None and record.finished_steps is not None and record.finished_steps >= steps


def _would_be_lost(saving: Saving, final: Path, record: Record | None, changed: list[str]) -> OptionError:
    if record is None:
        what = "already exist, and there is no record of how they were made"
    elif changed:
        what = f"belong to a training with other options ({'; '.join(changed)})"
    else:
        what = f"belong to a training that ended after {record.finished_steps} steps and left no state to resume from"
    more = "" if record is None or changed else f" --network_weights {final} starts from it under another name."
    return OptionError(
        f"LoRA files called {saving.output_name} in {saving.output_dir} {what}.",
        f"Choose another --output_name, or overwrite them with --fresh.{more}",
        names=("output_name", "fresh"),
    )


def _check_state(job: Job, start: Start, now: Mapping[str, Any]) -> None:
    """Refuse a state of another job, and one whose training would overwrite another LoRA."""
    saving, state = job[Saving], start.state
    assert state is not None
    owner = read_owner(state)
    own = owner.training and start.record is not None and start.record.training == owner.training
    beside = state in list(states_of(saving.output_dir, saving.output_name))
    origin = start.record is not None and start.record.origin == str(state)
    if not (own or beside or origin) and _loras(job):
        raise OptionError(
            f"--resume {state} would write over LoRA files called {saving.output_name} in {saving.output_dir}, which "
            "belong to another training.",
            "Choose another --output_name.",
            names=("resume", "output_name"),
        )
    if not owner.options:
        return
    fixed = changes(owner.options, now, only=True)
    if fixed:
        raise OptionError(
            f"The training saved in {state} cannot continue with other options: {'; '.join(fixed)}.",
            "Put them back as they were, or start over with --fresh or another --output_name; --network_weights starts "
            "from what it has learnt.",
            names=tuple(name.split()[0] for name in fixed),
        )


def report_changes(start: Start, now: Mapping[str, Any], say: Say) -> None:
    """Say which state training resumes from, and warn of options that have changed since."""
    if start.state is None:
        return
    owner = read_owner(start.state)
    changed = changes(owner.options, now) if owner.options else []
    say(Log(message=f"Resuming from {start.state}."))
    if changed:
        say(Warning_(message=f"Options changed from here on: {'; '.join(changed)}."))


# ------------------------------------------------------------------------------------------------ options that count


def binding_options(job: Job, items: Iterable[TrainItem], *, batch_sizes: Iterable[int], seed: int) -> dict[str, Any]:
    """The options that identify a training, as JSON values; the dataset as a hash of its caches' names.

    Model files count by name alone: they may have moved.
    """
    found: dict[str, Any] = {}
    for section in job.sections.values():
        if isinstance(section, _QUIET_SECTIONS):
            continue
        for option in options(type(section)):
            value = getattr(section, option.name)
            if option.file_kind and not option.name.startswith(("dit", "base_weights")):
                continue
            if option.name not in _QUIET and not option.secret:
                found[option.name] = _name_only(value) if option.file_kind else value
    validation = job[Validation]
    clips = sorted(
        (item.latent_path.name, item.dataset, item.repeats, *(["prior"] if item.preserves_prior else []))
        for item in items
    )
    told = json.dumps([clips, list(batch_sizes)])
    own = {
        "seed": seed,
        "validation_split": validation.validation_split,
        _DATASET: f"{len(clips)} clips, {hashlib.sha256(told.encode()).hexdigest()[:8]}",
    }
    return json.loads(json.dumps({**found, **own}))


def _name_only(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_name_only(entry) for entry in value]
    return Path(value).name if isinstance(value, str) else value


def changes(before: Mapping[str, Any], now: Mapping[str, Any], *, only: bool = False) -> list[str]:
    """Each option that differs, in words; `only`: those that cannot change during a training.

    An option that is in `now` alone did not exist in the engine then, so it is passed over.
    """
    names = [name for name in before if not only or _is_fixed(name)]
    return [f"{name} is {now.get(name)}, was {before[name]}" for name in names if now.get(name) != before[name]]


def _is_fixed(name: str) -> bool:
    return name in _FIXED or name.startswith("dit")


# ---------------------------------------------------------------------------------------------------------- the record


def record_path(job: Job) -> Path:
    return Path(job[Saving].output_dir) / saved_names.record(job[Saving].output_name)


def read_record(job: Job) -> Record | None:
    """The record of the training that the files of this name belong to; None without one."""
    try:
        values = json.loads(record_path(job).read_text(encoding="utf-8"))
        return Record(**values)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise OptionError(
            f"{record_path(job)} cannot be read ({error}).",
            "Delete it and choose the state with --resume, or start over with --fresh.",
            names=("resume", "fresh"),
        ) from error


def new_record(job: Job, start: Start, now: Mapping[str, Any]) -> Record:
    """The record of this start: the existing one if its training resumes from its newest state, else a new one."""
    before, state = start.record, start.state
    if before is not None and state is not None and (before.origin == str(state) or _goes_on(job, before, state)):
        return replace(before, options=now, finished_steps=None)
    return Record(
        training=f"{random.SystemRandom().getrandbits(64):016x}",
        options=now,
        origin=None if state is None else str(state),
        started=time.strftime("%Y%m%d%H%M%S"),
    )


def _goes_on(job: Job, before: Record, state: Path) -> bool:
    saving = job[Saving]
    ours = (
        place
        for place in states_of(saving.output_dir, saving.output_name)
        if read_owner(place).training == before.training and not complaint(place)
    )
    newest = next(ours, None)
    return newest is not None and newest.resolve() == state.resolve()


def owner_of(record: Record) -> Owner:
    """What is written into the states of a training."""
    return Owner(training=record.training, options=record.options)


def write_record(job: Job, record: Record) -> None:
    write_text(record_path(job), json.dumps(asdict(record), indent=1) + "\n")


def write_finished(job: Job, record: Record, say: Say, *, steps: int) -> None:
    """Note that the training came to its end. Where the disk refuses that, its last steps would only be done again."""
    try:
        write_record(job, replace(record, finished_steps=steps))
    except DiskError as error:
        say(Warning_(message=f"The training is finished, but its record does not say so. {error.message}"))


def _loras(job: Job) -> list[Path]:
    """The existing files that this training would write as LoRAs, during training or at its end."""
    folder, name = Path(job[Saving].output_dir), job[Saving].output_name
    if not folder.is_dir():
        return []
    ours = saved_names.loras_of(name, _endings(job), best=job[Validation].save_best_validation)
    return [path for path in folder.iterdir() if ours.fullmatch(path.name)]


def _endings(job: Job) -> list[str]:
    """Those of this training's LoRAs; other such names are other trainings'."""
    averages = ("", AVERAGE) if job[Network].use_ema else ("",)
    return [expert.ending + average for expert in experts_of(job) for average in averages]
