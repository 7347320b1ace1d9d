"""What a job will take of memory, from its options and the headers of its files: `Survey`, for `plan` and `--memory`.

A survey reads each file once; `stages` then answers for any options of the job in a moment, which is what choosing them
needs (memory/choosing.py). Imports torch only for what planned_weights.py does. The formulas are memory/estimate.py's,
what a family's networks work on is told by its `options.py`.
Not considered: --network_args, and pictures that a generation starts from where they change its size.
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..contract.errors import DataError
from ..contract.job import Job
from ..contract.options import (
    SAMPLE_DEFAULTS,
    Caching,
    Data,
    Memory,
    Models,
    Output,
    Prompting,
    Samples,
)
from ..contract.wording import counted
from ..data.config import Dataset, load_config
from ..families import part
from ..memory.activations import FLOAT, HALF
from ..memory.estimate import Parts, Stage, adapters, denoising, text_stage, training, vae_stage
from ..memory.rules import check_streamed
from ..parts.safetensors_header import read_header
from ..parts.weight_headers import read_headers
from ..parts.workload import Work, video_pixels
from ..sampling.prompts import GENERATE, TRAIN, PromptLine, read_prompts
from .needs import needed
from .planned_weights import PlannedDit, how_generated, how_trained, weight_bytes

Size = tuple[int, int, int]
"""Width, height and frames in pixels."""
LatentSize = tuple[int, int, int]
"""(T, H, W)."""
_LATENTS = re.compile(r"latents_(\d+)x(\d+)x(\d+)_")  # the key of a cache's own latents
_NAMED = re.compile(r"_(\d{5,}-\d{3,}(?:-\d{4,})?_\d{4,}x\d{4,})_\w+\.safetensors")  # place and size of a video's clip
_NO_LINE = PromptLine(prompt="", where="")


@dataclass(frozen=True)
class Clip:
    """What is trained on or encoded together: `batch` clips of one size. One of the two sizes is known."""

    batch: int
    latents: LatentSize | None = None
    pixels: Size | None = None

    @property
    def size(self) -> Size:
        """In pixels."""
        return self.pixels or video_pixels(self.latents or (1, 1, 1))


class Survey:
    """The files of a job, looked at once. WeightsError, DataError and OptionError as when the job itself reads them."""

    def __init__(self, job: Job):
        self.job, self.options = job, part(str(job.family), "options")
        self._files = self.options.files(job)
        self.verb = job.command.verb
        self._dit = PlannedDit(job, needed(self._files.get("dit"), "--dit", "the DiT file")) if self._runs_dit else None
        if self._dit is not None:
            check_streamed(job[Memory].blocks_to_swap or 0, self.blocks)
        self._encoders = {name: read_headers(path, role=f"--{name}") for name, path in self._encoder_files()}
        self.clips = self._clips()

    @property
    def _runs_dit(self) -> bool:
        return self.verb == "train" or (self.verb == "generate" and not self.job[Output].latent_path)

    @property
    def blocks(self) -> int:
        """How many blocks the DiT has."""
        return 0 if self._dit is None else self._dit.block_count

    @property
    def may_fp8(self) -> bool:
        """Whether --fp8_scaled can be added."""
        return self._dit is not None and self._dit.may_become_fp8

    def stages(self, job: Job, *, room: int | None = None) -> list[Stage]:
        """What the job does one after the other with these options. `room`: bytes of the card that it may take."""
        if self.verb == "train":
            return self._training(job, room)
        if self.verb == "generate":
            return self._generation(job)
        if self.verb == "cache-latents":
            return [self._vae(job, clip, decoding=False, beside=self._weights_of("IMAGE_FILES")) for clip in self.clips]
        return [text_stage(self._text_weights(job))]

    def shorter_lengths(self) -> range:
        """Frames of clips that are shorter than the longest, the longest of these first."""
        longest = max(clip.size[2] for clip in self.clips)
        return range(longest - 4, 0, -4)

    def with_length(self, frames: int) -> Survey:
        """The same job on clips of at most so many frames."""
        other = copy.copy(self)
        sizes = [(clip.batch, clip.size) for clip in self.clips]
        other.clips = [Clip(batch, pixels=(w, h, min(count, frames))) for batch, (w, h, count) in sizes]
        return other

    # --- training and generation

    def _training(self, job: Job, room: int | None) -> list[Stage]:
        assert self._dit is not None
        weights = self._dit.weights(job, trained=True)
        alike = len(self.clips) == 1 and job[Samples].sample_prompts is None
        stages = [
            training(weights, self._work(job, clip), how_trained(job, clip.batch, alike=alike), room=room)
            for clip in self.clips
        ]
        if job[Samples].sample_prompts is None:
            return stages
        how, beside = how_generated(job), adapters(weights, how_trained(job, 1))
        for width, height, frames in self._samples():
            clip = Clip(1, pixels=(width, height, frames))
            stage = denoising(weights, self._work(job, clip), how, name="sample: denoising", beside=beside)
            resident = {name: size for name, size in stage.device.items() if name != "tokens of one block"}
            stages += [stage, self._vae(job, clip, decoding=True, beside=resident, name="sample: decoding")]
        return [text_stage(self._text_weights(job)), *stages]

    def _generation(self, job: Job) -> list[Stage]:
        if self._dit is None:
            return [self._vae(job, clip, decoding=True) for clip in self.clips]
        weights = self._dit.weights(job, trained=False)
        work = [self._work(job, clip) for clip in self.clips]
        stages = [denoising(weights, each, how_generated(job)) for each in work]
        if job[Output].output_type != "latent":
            stages += [self._vae(job, clip, decoding=True) for clip in self.clips]
        text = text_stage(self._text_weights(job))
        if not job[Prompting].interactive:
            return [text, *stages]
        stay = {**self._text_weights(job), "VAE weights": self._vae_weights()}  # nothing is let go of
        return [replace(stage, device={**stage.device, **stay}) for stage in (text, *stages)]

    def works(self, job: Job) -> list[Work]:
        """What the blocks of the DiT work on, for one sample of each size."""
        return [self._work(job, clip) for clip in self.clips]

    def _work(self, job: Job, clip: Clip) -> Work:
        assert self._dit is not None
        if clip.latents is not None:
            return self._dit.work(job, clip.latents)
        width, height, frames = clip.pixels or (1, 1, 1)
        return self._dit.work(job, self.options.latent_size(job, width=width, height=height, frames=frames))

    # --- the models around the DiT

    def _encoder_files(self) -> Iterator[tuple[str, str]]:
        sampling = self.verb == "train" and self.job[Samples].sample_prompts is not None
        wanted: list[str] = []
        if self.verb in ("generate", "cache-latents") or sampling:
            wanted += ["vae", *self.options.IMAGE_FILES]
        if self.verb == "cache-text" or (self.verb == "generate" and self._runs_dit) or sampling:
            wanted += self.options.TEXT_FILES
        for name in wanted:
            if self._files.get(name):
                yield name, str(self._files[name])

    def _weights_of(self, names: str) -> Parts:
        given = [name for name in getattr(self.options, names) if name in self._encoders]
        return {name: weight_bytes(self._encoders[name]) for name in given}

    def _text_weights(self, job: Job) -> Parts:
        fp8 = bool(self.options.text_arguments(job).get("fp8"))
        given = [name for name in self.options.TEXT_FILES if name in self._encoders]
        return {name: weight_bytes(self._encoders[name], fp8=fp8 and name == given[0]) for name in given}

    def _vae_weights(self) -> int:
        return weight_bytes(self._encoders["vae"]) if "vae" in self._encoders else 0

    def _vae(self, job: Job, clip: Clip, *, decoding: bool, beside: Parts | None = None, name: str = "") -> Stage:
        width, height, frames = clip.size
        wide = job[Models].vae_dtype in ("float32", "fp32")
        return vae_stage(
            self._vae_weights() * (2 if wide else 1), self.options.vae_work(job, decoding=decoding), width=width,
            height=height, frames=frames, decoding=decoding, batch=clip.batch, number_bytes=FLOAT if wide else HALF,
            beside=beside, name=name,
        )  # fmt: skip

    # --- sizes

    def _clips(self) -> list[Clip]:
        if Data in self.job:
            config = load_config(self.job[Data].dataset_config)
            if self.verb != "train":
                return [_allowed(dataset, self.job[Caching].batch_size or 1) for dataset in config.datasets]
            found = [self._trained_on(dataset) for dataset in config.datasets]
            return list(dict.fromkeys(clip for clips in found for clip in clips))
        saved = [Clip(1, latents=size) for path in self.job[Output].latent_path for size in _saved_size(path)]
        return saved or [Clip(1, pixels=size) for size in self._requested()]

    def _trained_on(self, dataset: Dataset) -> list[Clip]:
        """The sizes of its caches; before there are any, the largest that its settings allow."""
        sizes = set(cached_sizes(dataset, self.options.ARCHITECTURE))
        return [Clip(dataset.batch_size, latents=size) for size in sorted(sizes)] or [
            _allowed(dataset, dataset.batch_size)
        ]

    def _requested(self) -> set[Size]:
        prompting = self.job[Prompting]
        height, width = prompting.video_size
        if prompting.from_file is None:
            return {(width, height, self._length(self.job, _NO_LINE))}
        lines = read_prompts(prompting.from_file, letters=self._letters)
        return {(line.width or width, line.height or height, self._length(self.job, line)) for line in lines}

    @property
    def _letters(self) -> Any:
        return {**(TRAIN if self.verb == "train" else GENERATE), **self.options.PROMPT_LETTERS}

    def _length(self, job: Job, line: object) -> int:
        frames = getattr(line, "frame_count", None) or job[Prompting].video_length
        return int(frames or self.options.generation_defaults(job, line).video_length)

    def _samples(self) -> set[Size]:
        height, width = SAMPLE_DEFAULTS["video_size"]
        lines = read_prompts(str(self.job[Samples].sample_prompts), letters=self._letters, flag="--sample_prompts")
        frames = SAMPLE_DEFAULTS["video_length"]
        return {(line.width or width, line.height or height, line.frame_count or frames) for line in lines}


def described(clip: Clip) -> str:
    """`2 x 832x480, 81 frames`."""
    width, height, frames = clip.size
    many = f"{clip.batch} x " if clip.batch > 1 else ""
    return f"{many}{width}x{height}, {counted(frames, 'frame')}"


def cached_sizes(dataset: Dataset, architecture: str) -> Iterator[LatentSize]:
    """The latent sizes in a dataset's caches. Of clips that have one size by their names, one is looked at."""
    seen: set[str] = set()
    try:
        entries = sorted(entry.path for entry in os.scandir(dataset.cache_directory) if entry.is_file())
    except FileNotFoundError:
        return
    for path in entries:
        if not path.endswith(f"_{architecture}.safetensors"):
            continue
        named = _NAMED.search(path)
        kind = named[1].partition("-")[2] if named else path
        if kind not in seen:
            seen.add(kind)
            yield from _latent_size(path)


def _latent_size(path: str) -> Iterator[LatentSize]:
    try:
        names = read_header(Path(path)).tensors
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}.", "Run cache-latents again.") from error
    for name in names:
        if found := _LATENTS.match(name):
            yield int(found[1]), int(found[2]), int(found[3])


def _saved_size(path: str) -> Iterator[LatentSize]:
    """Of latents that are to be decoded. What is no safetensors file is told of when it is read."""
    with contextlib.suppress(OSError, ValueError):
        for tensor in read_header(Path(path)).tensors.values():
            if len(tensor.shape) >= 4:
                frames, height, width = tensor.shape[-3:]
                yield frames, height, width


def _allowed(dataset: Dataset, batch: int) -> Clip:
    """The largest clip that a dataset's settings allow."""
    width, height = dataset.resolution
    full = dataset.frame_extraction == "full"
    frames = 1 if dataset.kind == "image" else dataset.max_frames if full else max(dataset.target_frames)
    return Clip(batch, pixels=(width, height, frames))
