"""Caching: dataset -> latent caches. Captions: text_pipeline.py.

Decoding, encoding and writing run at the same time, and memory stays bounded however long the clips are. Fresh caches
are skipped before anything is decoded; stale, missing and foreign ones (made by musubi-tuner, which leaves no
fingerprint) are made. `skip_existing` keeps foreign ones too, `recache` makes all of them again. A source that cannot
be read is reported and left out; with `strict` it ends the run. Finished caches stay, whatever happens later. Several
processes can share the work (company.py): number 0 surveys the dataset and tidies up, all of them encode. Knows no
family: the encoder is a function, and whatever affects its result comes in `settings`.
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
from . import advice, cache, clips, fingerprints
from .clips import Clip, Window
from .company import Company, Message
from .config import Dataset, DatasetConfig
from .report import CacheReport, Errand, Ledger, announce, check_count, one_at_a_time, reason_of, usable
from .stages import GIB, ClipQueue, Decoders, Queued, Run, Writer
from .survey import Recipe, Rules, WindowCaches, all_sources, caches_of, described, planned_caches, survey, tidy_latents

Sample = Mapping[str, Tensor]
# Where several processes share the work, none may hoard it: at the end it would be busy while the others wait.
CLIPS_AHEAD = 2
WINDOWS_OF_A_PIECE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipBatch:
    """Clips of the same size and dataset, RGB -1..1, on the encoder's device. Each control has its own size.

    `alphas_BHW`, 0..1: the alpha channels of an image's controls; None for a control without one.
    """

    frames_BCFHW: Tensor
    controls_BCFHW: tuple[Tensor, ...]
    alphas_BHW: tuple[Tensor | None, ...]
    dataset: Dataset


EncodeClips = Callable[[ClipBatch], Sequence[Sample | Sequence[Sample]]]


# ---------------------------------------------------------------------------------------------------- one process


def cache_latents(
    config: DatasetConfig,
    recipe: Recipe,
    rules: Rules,
    *,
    encode: EncodeClips,
    say: Say,
    control: Control,
    workers: int = 4,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    max_bytes: int = GIB,
    max_clips: int = 8,
    company: Company | None = None,
) -> CacheReport:
    """Cache every window of the dataset file that is not fresh.

    `encode(batch)` gets pixels of `dtype` on `device`, controls only if the recipe uses them, and returns for each clip
    its tensors under plain names ("latents" is CTHW, no batch dimension), or a list of those, one per sample.
    `workers` threads decode; `max_bytes` and `max_clips` bound the clips between decoding and encoding.
    `company`: the processes that share the work; the report is empty in all but number 0.
    DataError if nothing could be cached. Stopped if `control` asked to stop: what was encoded is on disk by then.
    """
    company = company or Company()
    run = Run(lambda: control.stop_requested)
    ledger = Ledger(one_at_a_time(say), run, rules.strict)
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
    planned = planned_caches(surveyed, recipe, ledger.fail)
    ledger.conclude(0, unit="clips", stop_requested=False)
    wanted = [entry for entry in planned if rules.wants(entry.state)]
    announce(ledger.say, [entry.state for entry in planned], len(wanted), unit="clips")
    news, every = {entry.window.source.path for entry in wanted}, [entry.window for entry in planned]
    advice.before_caching(config, every, news, native_fps=recipe.native_fps, say=ledger.say)
    for entry in planned:
        if entry.state == "fresh" and not rules.recache:
            for path in entry.paths:
                fingerprints.adopt(path, entry.expected)
    for folder in {path.parent for entry in wanted for path in entry.paths}:
        clean_leftovers(folder)
    pieces = _pieces(wanted, windows=None if company.count == 1 else WINDOWS_OF_A_PIECE)
    windows = {(*entry.window.source.key, entry.window.start, entry.window.count): entry.window for entry in wanted}
    with company.listening(lambda message: _hear(message, encoder, ledger, windows), ledger.run):
        if wanted:
            ledger.start(len(wanted), unit="clips", label="caching latents")
        work = company.share_out(pieces, describe=described)
        _encode_windows(work, encoder, workers=min(workers, len(pieces)))
    ledger.conclude(len(wanted), unit="clips", stop_requested=control.stop_requested)
    _retire_unmade(wanted, encoder.unmade)
    purged = tidy_latents(config.datasets, surveyed, planned, recipe, keep=rules.keep_cache)
    skipped = len(planned) - len(wanted)
    report = CacheReport(done=ledger.done, skipped=skipped, failed=tuple(ledger.failed), purged=purged)
    return usable(report, config)


class Encoder:
    """The middle stage: groups clips of equal shape, encodes a group, and passes the result to the writer."""

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
        """Add a clip to its group; returns the group once it is full, else []."""
        clip = queued.clip
        shapes = (clip.frames_FHWC.shape, *(frames.shape for frames in clip.controls_FHWC))
        key = (clip.window.source.dataset.index, *shapes, *(alpha is None for alpha in clip.alphas_HW))
        group = self._groups.setdefault(key, [])
        group.append(queued)
        return self._groups.pop(key) if len(group) >= self._batch_size else []

    def largest(self) -> list[Queued]:
        """The fullest of the incomplete groups; empty if there is none."""
        if not self._groups:
            return []
        return self._groups.pop(max(self._groups, key=lambda key: len(self._groups[key])))

    def encode(self, group: list[Queued], writer: Writer, planned: Mapping[Path, WindowCaches]) -> None:
        """Encode one group and free its room. A DataError of the encoder fails only the clip at fault."""
        try:
            self._encode_and_put([queued.clip for queued in group], writer, planned)
        finally:
            self.room.release(sum(queued.nbytes for queued in group), clips=len(group))

    def _encode_and_put(self, group: list[Clip], writer: Writer, planned: Mapping[Path, WindowCaches]) -> None:
        try:
            results = self._call(group)
        except DataError as error:
            if len(group) > 1:  # find out which clip it is
                for clip in group:
                    self._encode_and_put([clip], writer, planned)
            else:
                self.broken([group[0].window], reason_of(error))
            return
        check_count(results, len(group))
        for clip, result in zip(group, results, strict=True):
            samples = [result] if isinstance(result, Mapping) else result
            writer.put((planned[_name(clip.window)], samples))

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
        """uint8 0..255 RGB pictures to one tensor BCFHW, -1..1; converted on the encoder's device."""
        bytes_BFHWC = torch.from_numpy(np.stack(pictures_FHWC)).to(self._device)
        clips_BCFHW = bytes_BFHWC.permute(0, 4, 1, 2, 3).to(torch.float32, memory_format=torch.contiguous_format)
        return clips_BCFHW.div_(127.5).sub_(1.0).to(self._dtype)

    def _shares(self, alphas_HW: Sequence[np.ndarray]) -> Tensor:
        """uint8 0..255 to one tensor BHW, 0..1."""
        return torch.from_numpy(np.stack(alphas_HW)).to(self._device).to(torch.float32).div_(255.0)

    def write(self, item: tuple[WindowCaches, Sequence[Sample]]) -> None:
        """Write the samples of one window: cache, then fingerprint. Runs on the writer's thread."""
        entry, samples = item
        check_count(samples, len(entry.paths))
        width, height = cache.named_size(entry.window)
        frame_count = None if entry.window.source.media == "image" else entry.window.count
        try:
            for path, sample in zip(entry.paths, samples, strict=True):
                cache.write_latents(
                    path,
                    sample,
                    architecture=self.recipe.architecture_full,
                    width=width,
                    height=height,
                    frame_count=frame_count,
                )
                fingerprints.write(path, entry.expected)
        except DataError as error:
            self.broken([entry.window], reason_of(error))
        else:
            self.ledger.finish()

    def broken(self, windows: Sequence[Window], reason: str) -> None:
        """Record windows of one source that could not be cached; called from any thread."""
        self.unmade.update(_name(window) for window in windows)
        self.ledger.fail(windows[0].source, reason, windows)


def _pieces(wanted: Sequence[WindowCaches], *, windows: int | None) -> list[list[WindowCaches]]:
    """Entries grouped by source, since each source is read once; with `windows`, at most that many in a group."""
    by_source: dict[tuple[int, str], list[WindowCaches]] = {}
    for entry in wanted:
        by_source.setdefault(entry.window.source.key, []).append(entry)
    if windows is None:
        return list(by_source.values())
    return [
        planned[first : first + windows] for planned in by_source.values() for first in range(0, len(planned), windows)
    ]


def _encode_windows(work: Iterator[Sequence[WindowCaches]], encoder: Encoder, *, workers: int) -> None:
    """Run all stages until everything is encoded and written, or the run is over. No thread outlives this call."""
    run, native_fps = encoder.ledger.run, encoder.recipe.native_fps
    planned: dict[Path, WindowCaches] = {}

    def windows() -> Iterator[list[Window]]:
        for piece in work:
            planned.update({_name(entry.window): entry for entry in piece})
            yield [entry.window for entry in piece]

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
                encoder.encode(group, writer, planned)
            elif taken == "ended":
                break
    finally:
        run.end()
        decoders.join()
        writer.close()


def _retire_unmade(wanted: Sequence[WindowCaches], unmade: set[Path]) -> None:
    """Stale caches that could not be made again must not be trained on."""
    for entry in wanted:
        if entry.state == "stale" and _name(entry.window) in unmade:
            for path in entry.paths:
                fingerprints.retire(path)


def _name(window: Window) -> Path:
    """What identifies a window: its cache's path, whatever the architecture."""
    return cache.latent_path(window, "")


# ------------------------------------------------------------------------------------------------------- together


def _help(config: DatasetConfig, encoder: Encoder, *, workers: int, company: Company, say: Say) -> None:
    """The part of a process other than number 0: encode what it is given, and report."""
    run = encoder.ledger.run
    found = {source.key: source for source in all_sources(config, say, use_controls=encoder.recipe.use_controls)}
    with company.obeying(run):
        work = (caches_of(piece, found, encoder.recipe) for piece in company.pieces(run))
        _encode_windows(work, encoder, workers=workers)


def _hear(
    message: Message, encoder: Encoder, ledger: Ledger, windows: Mapping[tuple[int, str, int, int], Window]
) -> None:
    """Record what another process reports about its windows."""
    if "left_out" in message:
        index, path = message["left_out"]
        encoder.broken([windows[index, path, start, count] for start, count in message["spans"]], message["reason"])
    else:
        ledger.finish()
