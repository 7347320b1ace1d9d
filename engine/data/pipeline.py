"""Caching: dataset -> latent caches. Captions: text_pipeline.py.

Decoding, encoding and writing run at the same time, and memory stays bounded whatever the clips' length. What is
fresh is skipped before it is decoded. By default fresh caches are skipped; stale, missing and foreign ones (made by
musubi-tuner, which leaves no fingerprint) are made. `skip_existing` keeps foreign ones too, `recache` makes all again.
A source that cannot be read is reported and left out; with `strict` it ends the run. Finished caches stay, whatever
happens later. Several processes may do it together (company.py): number 0 looks at the dataset and tidies up, all
encode. Knows no family: the encoder is a function, and what shapes its result comes in `settings`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..contract.errors import DataError
from ..contract.events import Control, Say
from ..contract.files import clean_leftovers
from . import cache, clips, fingerprints
from .clips import Clip, Window
from .company import Company, Message
from .config import Dataset, DatasetConfig
from .report import CacheReport, Errand, Ledger, announce, check_count, one_at_a_time, reason_of, usable
from .stages import GIB, ClipQueue, Decoders, Queued, Run, Writer
from .survey import Job, Recipe, Rules, all_sources, described, jobs_of, latent_jobs, survey, tidy_latents

Sample = Mapping[str, Tensor]
# Where several share the work, none may hoard it: at the end one would be busy while the others wait.
CLIPS_AHEAD = 2
WINDOWS_OF_A_PIECE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipBatch:
    """Clips of one size and one dataset, -1..1 RGB, on the encoder's device; each control at a size of its own.

    `alphas_BHW`, 0..1, belongs to the controls of images; None where a control has no alpha channel.
    """

    frames_BCFHW: Tensor
    controls_BCFHW: tuple[Tensor, ...]
    alphas_BHW: tuple[Tensor | None, ...]
    dataset: Dataset


EncodeClips = Callable[[ClipBatch], Sequence[Sample | Sequence[Sample]]]


# ------------------------------------------------------------------------------------------------ the whole of it


def cache_latents(
    config: DatasetConfig,
    *,
    architecture: str,
    native_fps: float,
    encode: EncodeClips,
    identity: str,
    say: Say,
    control: Control,
    settings: Mapping[str, Any] | None = None,
    architecture_full: str = "",
    workers: int = 4,
    batch_size: int = 1,
    skip_existing: bool = False,
    recache: bool = False,
    keep_cache: bool = False,
    strict: bool = False,
    use_controls: bool = False,
    sections: Callable[[Window], int | None] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    max_bytes: int = GIB,
    max_clips: int = 8,
    company: Company | None = None,
) -> CacheReport:
    """Cache every window of the dataset file that is not fresh.

    `encode(batch)` gets pixels of `dtype` on `device`, controls only with `use_controls`, and returns for each clip
    its tensors under plain names ("latents" is CTHW, no batch dimension), or a list of those, one a sample. `sections`
    says how many samples a window makes, which are then numbered; None from it or in its place: one. `architecture`
    is the short name, `architecture_full` the one in the metadata (empty: the same), `identity` names the model's
    weights. `workers` threads decode; `max_bytes` and `max_clips` bound the clips between decoding and encoding.
    DataError when nothing could be cached, Stopped when `control` asked to stop: what was encoded is on disk then.
    `company`: those who do it together; the report is empty in all but number 0.
    """
    company = company or Company()
    recipe = Recipe(
        architecture=architecture,
        architecture_full=architecture_full or architecture,
        identity=identity,
        settings=dict(settings or {}),
        native_fps=native_fps,
        use_controls=use_controls,
        sections=sections,
    )
    rules = Rules(skip_existing=skip_existing, recache=recache, keep_cache=keep_cache, strict=strict)
    run = Run(lambda: control.stop_requested)
    ledger = Ledger(one_at_a_time(say), run, strict)
    room = ClipQueue(run, max_bytes=max_bytes, max_clips=max_clips if company.count == 1 else CLIPS_AHEAD)
    helping = None if company.leads else Errand(run, company.tell)
    encoder = Encoder(encode, recipe, helping or ledger, room, batch_size=batch_size, device=device, dtype=dtype)
    if helping:
        _help(config, encoder, workers=workers, company=company, say=say)
        return CacheReport(done=0, skipped=0)
    return _cache_windows(config, encoder, ledger, rules, workers=workers, control=control, company=company)


def _cache_windows(
    config: DatasetConfig,
    encoder: Encoder,
    ledger: Ledger,
    rules: Rules,
    *,
    workers: int,
    control: Control,
    company: Company,
) -> CacheReport:
    recipe = encoder.recipe
    found = all_sources(config, ledger.say, use_controls=recipe.use_controls)
    surveyed = survey(found, recipe, workers=workers, say=ledger.say, control=control, label="looking at files")
    jobs = latent_jobs(surveyed, recipe, ledger.fail)
    ledger.conclude(0, unit="clips", stop_requested=False)
    wanted = [job for job in jobs if rules.wants(job.state)]
    announce(ledger.say, [job.state for job in jobs], len(wanted), unit="clips")
    for job in jobs:
        if job.state == "fresh" and not rules.recache:
            for path in job.paths:
                fingerprints.adopt(path, job.expected)
    for folder in {path.parent for job in wanted for path in job.paths}:
        clean_leftovers(folder)
    pieces = _pieces(wanted, windows=None if company.count == 1 else WINDOWS_OF_A_PIECE)
    windows = {(*job.window.source.key, job.window.start, job.window.count): job.window for job in wanted}
    with company.listening(lambda message: _hear(message, encoder, ledger, windows), ledger.run):
        if wanted:
            ledger.start(len(wanted), unit="clips", label="caching latents")
        work = company.share_out(pieces, describe=described)
        _encode_windows(work, encoder, workers=min(workers, len(pieces)))
    ledger.conclude(len(wanted), unit="clips", stop_requested=control.stop_requested)
    _retire_unmade(wanted, encoder.unmade)
    purged = tidy_latents(config.datasets, surveyed, jobs, recipe, keep=rules.keep_cache)
    skipped = len(jobs) - len(wanted)
    report = CacheReport(done=ledger.done, skipped=skipped, failed=tuple(ledger.failed), purged=purged)
    return usable(report, config)


class Encoder:
    """The middle stage: groups clips of equal shape, encodes a group, hands the result to the writer."""

    def __init__(
        self,
        encode: EncodeClips,
        recipe: Recipe,
        ledger: Ledger | Errand,
        room: ClipQueue,
        *,
        batch_size: int,
        device: torch.device | str,
        dtype: torch.dtype,
    ):
        self.recipe, self.ledger, self.room = recipe, ledger, room
        self.unmade: set[Path] = set()
        self._encode = encode
        self._batch_size, self._device, self._dtype = max(1, batch_size), device, dtype
        self._groups: dict[Any, list[Queued]] = {}

    def take_in(self, queued: Queued) -> list[Queued]:
        """Add a clip to its group; gives the group back once it is full."""
        clip = queued.clip
        shapes = (clip.frames_FHWC.shape, *(frames.shape for frames in clip.controls_FHWC))
        key = (clip.window.source.dataset.index, *shapes, *(alpha is None for alpha in clip.alphas_HW))
        group = self._groups.setdefault(key, [])
        group.append(queued)
        return self._groups.pop(key) if len(group) >= self._batch_size else []

    def largest(self) -> list[Queued]:
        """The fullest group, though not full; empty when there is none."""
        if not self._groups:
            return []
        return self._groups.pop(max(self._groups, key=lambda key: len(self._groups[key])))

    def encode(self, group: list[Queued], writer: Writer, jobs: Mapping[Path, Job]) -> None:
        """Encode one group and free its room. A DataError of the encoder fails the clip that it is about."""
        try:
            self._encode_and_put([queued.clip for queued in group], writer, jobs)
        finally:
            self.room.release(sum(queued.nbytes for queued in group), clips=len(group))

    def _encode_and_put(self, group: list[Clip], writer: Writer, jobs: Mapping[Path, Job]) -> None:
        try:
            results = self._call(group)
        except DataError as error:
            if len(group) > 1:  # find out which one it is
                for clip in group:
                    self._encode_and_put([clip], writer, jobs)
            else:
                self.broken([group[0].window], reason_of(error))
            return
        check_count(results, len(group))
        for clip, result in zip(group, results, strict=True):
            samples = [result] if isinstance(result, Mapping) else result
            writer.put((jobs[_name(clip.window)], samples))

    def _call(self, group: list[Clip]) -> Sequence[Sample | Sequence[Sample]]:
        controls = zip(*(clip.controls_FHWC for clip in group), strict=True)
        alphas = zip(*(clip.alphas_HW for clip in group), strict=True)
        batch = ClipBatch(
            frames_BCFHW=self._pixels([clip.frames_FHWC for clip in group]),
            controls_BCFHW=tuple(self._pixels(column) for column in controls),
            alphas_BHW=tuple(None if column[0] is None else self._shares(column) for column in alphas),
            dataset=group[0].window.source.dataset,
        )
        with torch.no_grad():
            return self._encode(batch)

    def _pixels(self, pictures_FHWC: Sequence[np.ndarray]) -> Tensor:
        """uint8 0..255 RGB pictures -> one tensor BCFHW, -1..1; converted where it is encoded."""
        bytes_BFHWC = torch.from_numpy(np.stack(pictures_FHWC)).to(self._device)
        clips_BCFHW = bytes_BFHWC.permute(0, 4, 1, 2, 3).to(torch.float32, memory_format=torch.contiguous_format)
        return clips_BCFHW.div_(127.5).sub_(1.0).to(self._dtype)

    def _shares(self, alphas_HW: Sequence[np.ndarray]) -> Tensor:
        """uint8 0..255 -> one tensor BHW, 0..1."""
        return torch.from_numpy(np.stack(alphas_HW)).to(self._device).to(torch.float32).div_(255.0)

    def write(self, item: tuple[Job, Sequence[Sample]]) -> None:
        """Write what one window became: cache, then fingerprint. Runs on the writer's thread."""
        job, samples = item
        check_count(samples, len(job.paths))
        width, height = cache.named_size(job.window)
        frame_count = None if job.window.source.media == "image" else job.window.count
        try:
            for path, sample in zip(job.paths, samples, strict=True):
                cache.write_latents(
                    path,
                    sample,
                    architecture=self.recipe.architecture_full,
                    width=width,
                    height=height,
                    frame_count=frame_count,
                )
                fingerprints.write(path, job.expected)
        except DataError as error:
            self.broken([job.window], reason_of(error))
        else:
            self.ledger.finish()

    def broken(self, windows: Sequence[Window], reason: str) -> None:
        """Note windows of one source that could not be made; called from all threads."""
        self.unmade.update(_name(window) for window in windows)
        self.ledger.fail(windows[0].source, reason, windows)


def _pieces(wanted: Sequence[Job], *, windows: int | None) -> list[list[Job]]:
    """The jobs by their sources, each of which is read once; with `windows`, at most so many together."""
    by_source: dict[tuple[int, str], list[Job]] = {}
    for job in wanted:
        by_source.setdefault(job.window.source.key, []).append(job)
    if windows is None:
        return list(by_source.values())
    return [jobs[first : first + windows] for jobs in by_source.values() for first in range(0, len(jobs), windows)]


def _encode_windows(work: Iterator[Sequence[Job]], encoder: Encoder, *, workers: int) -> None:
    """Run all stages until everything is encoded and written, or the run is over. No thread outlives the call."""
    run, native_fps = encoder.ledger.run, encoder.recipe.native_fps
    jobs: dict[Path, Job] = {}

    def windows() -> Iterator[list[Window]]:
        for piece in work:
            jobs.update({_name(job.window): job for job in piece})
            yield [job.window for job in piece]

    writer = Writer(encoder.write, run=run)
    decoders = Decoders(
        windows(),
        read=lambda windows: clips.read(windows, target_fps=native_fps),
        room=encoder.room,
        run=run,
        workers=workers,
        broken=encoder.broken,
    )
    try:
        while True:
            taken = encoder.room.take()
            if run.over:
                break
            group = encoder.take_in(taken) if isinstance(taken, Queued) else encoder.largest()
            if group:
                encoder.encode(group, writer, jobs)
            elif taken == "ended":
                break
    finally:
        run.end()
        decoders.join()
        writer.close()


def _retire_unmade(wanted: Sequence[Job], unmade: set[Path]) -> None:
    """A stale cache that could not be made again is not trained on."""
    for job in wanted:
        if job.state == "stale" and _name(job.window) in unmade:
            for path in job.paths:
                fingerprints.retire(path)


def _name(window: Window) -> Path:
    """What identifies a window: its cache's path, whatever the architecture."""
    return cache.latent_path(window, "")


# ------------------------------------------------------------------------------------------------------- together


def _help(config: DatasetConfig, encoder: Encoder, *, workers: int, company: Company, say: Say) -> None:
    """The part of a process that is not number 0: encode what falls to it, and tell."""
    run = encoder.ledger.run
    found = {source.key: source for source in all_sources(config, say, use_controls=encoder.recipe.use_controls)}
    with company.obeying(run):
        work = (jobs_of(piece, found, encoder.recipe) for piece in company.pieces(run))
        _encode_windows(work, encoder, workers=workers)


def _hear(
    message: Message, encoder: Encoder, ledger: Ledger, windows: Mapping[tuple[int, str, int, int], Window]
) -> None:
    """Note what another process tells of its windows."""
    if "left_out" in message:
        index, path = message["left_out"]
        encoder.broken([windows[index, path, start, count] for start, count in message["spans"]], message["reason"])
    else:
        ledger.finish()
