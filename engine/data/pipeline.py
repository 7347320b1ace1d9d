"""Caching: dataset -> latent caches, and captions -> text caches.

Decoding, encoding and writing run at the same time, and memory stays bounded whatever the clips' length. What is
fresh is skipped before it is decoded. By default fresh caches are skipped; stale, missing and foreign ones (made by
musubi-tuner, which leaves no fingerprint) are made. `skip_existing` keeps foreign ones too, `recache` makes all again.
A source that cannot be read is reported and left out; with `strict` it ends the run. Finished caches stay, whatever
happens later. Knows no family: the encoder is a function, and what shapes its result comes in `settings`.

Given up: encoding on several GPUs at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
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
from .config import Dataset, DatasetConfig
from .fingerprints import Fingerprint
from .items import Source, sources
from .report import CacheReport, Failure, Ledger, announce, one_at_a_time, reason_of, usable
from .stages import GIB, ClipQueue, Decoders, Queued, Run, Writer
from .survey import Job, Recipe, Rules, latent_jobs, survey, tidy_latents, tidy_texts

__all__ = ["CacheReport", "ClipBatch", "Failure", "cache_latents", "cache_text"]

Sample = Mapping[str, Tensor]


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
EncodeTexts = Callable[[list[str]], Sequence[Sample]]


# ------------------------------------------------------------------------------------------------------- latents


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
) -> CacheReport:
    """Cache every window of the dataset file that is not fresh.

    `encode(batch)` gets pixels of `dtype` on `device`, controls only with `use_controls`, and returns for each clip
    its tensors under plain names ("latents" is CTHW, no batch dimension), or a list of those, one a sample. `sections`
    says how many samples a window makes, which are then numbered; None from it or in its place: one. `architecture`
    is the short name, `architecture_full` the one in the metadata (empty: the same), `identity` names the model's
    weights. `workers` threads decode; `max_bytes` and `max_clips` bound the clips between decoding and encoding.
    DataError when nothing could be cached, Stopped when `control` asked to stop: what was encoded is on disk then.
    """
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
    room = ClipQueue(run, max_bytes=max_bytes, max_clips=max_clips)
    encoder = Encoder(encode, recipe, ledger, room, batch_size=batch_size, device=device, dtype=dtype)
    return _cache_windows(config, encoder, rules, workers=workers, control=control)


def _cache_windows(
    config: DatasetConfig, encoder: Encoder, rules: Rules, *, workers: int, control: Control
) -> CacheReport:
    recipe, ledger = encoder.recipe, encoder.ledger
    found = _sources(config, ledger.say, use_controls=recipe.use_controls)
    surveyed = survey(found, recipe, workers=workers, say=ledger.say, control=control, label="looking at files")
    jobs = latent_jobs(surveyed, recipe, ledger.fail)
    ledger.conclude(0, unit="windows", stop_requested=False)
    wanted = [job for job in jobs if rules.wants(job.state)]
    announce(ledger.say, [job.state for job in jobs], len(wanted), unit="windows")
    for job in jobs:
        if job.state == "fresh" and not rules.recache:
            for path in job.paths:
                fingerprints.adopt(path, job.expected)
    if wanted:
        ledger.start(len(wanted), unit="windows", label="caching latents")
        _encode_windows(wanted, encoder, workers=workers)
    ledger.conclude(len(wanted), unit="windows", stop_requested=control.stop_requested)
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
        ledger: Ledger,
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
        _check_count(results, len(group))
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
        _check_count(samples, len(job.paths))
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


def _encode_windows(wanted: Sequence[Job], encoder: Encoder, *, workers: int) -> None:
    """Run all stages until everything is encoded and written, or the run is over. No thread outlives the call."""
    run, native_fps = encoder.ledger.run, encoder.recipe.native_fps
    jobs = {_name(job.window): job for job in wanted}
    by_source: dict[tuple[int, Path], list[Window]] = {}
    for job in wanted:
        source = job.window.source
        by_source.setdefault((source.dataset.index, source.path), []).append(job.window)
    for folder in {path.parent for job in wanted for path in job.paths}:
        clean_leftovers(folder)
    writer = Writer(encoder.write, run=run)
    decoders = Decoders(
        list(by_source.values()),
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


# ---------------------------------------------------------------------------------------------------------- text


def cache_text(
    config: DatasetConfig,
    *,
    architecture: str,
    encode: EncodeTexts,
    identity: str,
    say: Say,
    control: Control,
    settings: Mapping[str, Any] | None = None,
    architecture_full: str = "",
    batch_size: int = 16,
    skip_existing: bool = False,
    recache: bool = False,
    keep_cache: bool = False,
    strict: bool = False,
) -> CacheReport:
    """Cache the encoded caption of every source. Equal captions are encoded once; batches span all datasets.

    `encode(captions)` returns for each caption its tensors under plain names ("varlen_t5"). Rules, arguments and
    errors are those of cache_latents.
    """
    rules = Rules(skip_existing=skip_existing, recache=recache, keep_cache=keep_cache, strict=strict)
    run = Run(lambda: control.stop_requested)
    ledger = Ledger(one_at_a_time(say), run, strict)
    owners = {cache.text_path(source, architecture): source for source in _sources(config, ledger.say)}
    expected = {path: _caption_fingerprint(source.caption, identity, settings) for path, source in owners.items()}
    states = {path: fingerprints.state(path, expected[path]) for path in owners}
    wanted = [path for path in owners if rules.wants(states[path])]
    announce(ledger.say, list(states.values()), len(wanted), unit="captions")

    def write(item: tuple[Path, Sample]) -> None:
        path, sample = item
        caption = owners[path].caption
        try:
            cache.write_text(path, sample, architecture=architecture_full or architecture, caption=caption)
            fingerprints.write(path, expected[path])
        except DataError as error:
            ledger.fail(owners[path], reason_of(error))
        else:
            ledger.finish()

    if wanted:
        ledger.start(len(wanted), unit="captions", label="caching text")
        _encode_captions({path: owners[path].caption for path in wanted}, encode, write, run, batch_size=batch_size)
    ledger.conclude(len(wanted), unit="captions", stop_requested=control.stop_requested)
    purged = tidy_texts(config.datasets, set(owners), architecture, keep=keep_cache)
    skipped = len(owners) - len(wanted)
    report = CacheReport(done=ledger.done, skipped=skipped, failed=tuple(ledger.failed), purged=purged)
    return usable(report, config)


def _caption_fingerprint(caption: str, identity: str, settings: Mapping[str, Any] | None) -> Fingerprint:
    digest = fingerprints.caption_digest(caption)
    return Fingerprint(settings={"family": dict(settings or {})}, model=identity, caption=digest)


def _encode_captions(
    wanted: Mapping[Path, str],
    encode: EncodeTexts,
    write: Callable[[tuple[Path, Sample]], None],
    run: Run,
    *,
    batch_size: int,
) -> None:
    by_caption: dict[str, list[Path]] = {}
    for path, caption in wanted.items():
        by_caption.setdefault(caption, []).append(path)
    for folder in {path.parent for path in wanted}:
        clean_leftovers(folder)
    captions = sorted(by_caption, key=len)  # alike lengths together: less padding in a batch
    writer = Writer(write, run=run)
    try:
        for start in range(0, len(captions), max(1, batch_size)):
            if run.over:
                break
            batch = captions[start : start + max(1, batch_size)]
            with torch.no_grad():
                results = encode(batch)
            _check_count(results, len(batch))
            for caption, result in zip(batch, results, strict=True):
                for path in by_caption[caption]:
                    writer.put((path, result))
    finally:
        writer.close()


# -------------------------------------------------------------------------------------------------------- common


def _sources(config: DatasetConfig, say: Say, *, use_controls: bool = False) -> list[Source]:
    """All sources of the dataset file; without their controls where nobody will look at them."""
    found: list[Source] = []
    for dataset in config.datasets:
        found.extend(sources(dataset, say=say))
    if not found:
        raise DataError(f"{config.path} names no image or video.", "Check the directories and jsonl files in it.")
    return found if use_controls else [dataclasses.replace(source, controls=()) for source in found]


def _check_count(results: Sequence[Any], expected: int) -> None:
    if len(results) != expected:
        raise RuntimeError(f"the encoder gave {len(results)} results where {expected} were due")
