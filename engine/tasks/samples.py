"""Samples while training: videos of the LoRA as it is, made by the generate task's own Studio.

The training's options become a `generate` job, each line of `--sample_prompts` a request of it. Texts and pictures are
encoded before the DiT is loaded and wait in main memory; then the Studio works with the DiT that is in training, and
what it makes is what `generate` makes with the saved LoRA. A sample that fails is a warning: none is worth a training.
Does not know the loop, which keeps random sources and modes as they were.
"""

from __future__ import annotations

import base64
import dataclasses
import logging
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..contract.commands import find, sections_of
from ..contract.errors import OptionError, Stopped, as_failed
from ..contract.events import Control, Log, Preview, Say, Stage, Warning_
from ..contract.job import Job, make_job
from ..contract.options import SAMPLE_DEFAULTS, Samples, Saving
from ..contract.schema import listed
from ..contract.wording import beginning
from ..families import part
from ..families.values import Request
from ..media.images import encoded, read_image
from ..media.sheet import spread, strip
from ..media.video import probe, read_frames
from ..ops.device import free_memory
from ..sampling.prompts import TRAIN, PromptLine, read_prompts
from ..training.trackers import Tracker
from .experts import Experts
from .requests import letters, make_request
from .studio import Studio

FOLDER = "sample"
SHOWN_FRAMES, SHOWN_PIXELS = 4, 256  # of a video in its preview: how many frames, and their longer side
OTHER_MEANING = ("seed", "guidance_scale")
"""Options of both commands that in training are about training: seed of its noise, embedded guidance that it sees."""


def generation_job(job: Job) -> Job:
    """The `generate` job whose prompt file is `--sample_prompts`. OptionError names what the training lacks."""
    command = find("generate")
    known = listed(sections_of(command, job.family))
    same = {
        name: value
        for name, value in job.values().items()
        if name in known and name not in OTHER_MEANING and not known[name].transient
    }
    own = {
        "from_file": job[Samples].sample_prompts,
        "save_path": str(Path(job[Saving].output_dir) / FOLDER),
        **SAMPLE_DEFAULTS,
        **part(job.family, "options").sample_options(job),
    }
    try:
        return make_job(command, job.family, {k: v for k, v in (same | own).items() if v is not None})
    except OptionError as error:
        raise OptionError(f"--sample_prompts: {error.message}", error.hint, names=error.names) from None


class TrainingSamples:
    """The samples of one training: read and checked at once, encoded before the DiT is loaded, then made repeatedly."""

    def __init__(self, job: Job, say: Say, control: Control):
        self._say, self._control = say, control
        self._trained = job[Saving].output_name
        self.job = generation_job(job)
        self._studio = Studio(self.job, say, control)
        lines = read_prompts(
            job[Samples].sample_prompts, letters={**letters(self.job), **TRAIN}, flag="--sample_prompts"
        )
        self._lines = [fitted(self.job, line, say) for line in lines]
        self._requests = [make_request(self.job, line) for line in self._lines]
        for line, request in zip(self._lines, self._requests, strict=True):
            if line.guidance_scale is not None and "embedded_cfg_scale" not in request.settings:
                say(Log(message=f"{line.where}: this model has no embedded guidance (--g); --l is the other kind."))
        self._studio.check_files()
        self._inputs: list[dict[str, Any]] = []
        self._texts: dict[str, Any] = {}

    def encode(self) -> None:
        """Turn texts and pictures into what the DiT takes; the encoders are gone afterwards."""
        self._inputs, self._texts = self._studio.encoded(self._requests)

    def make(self, experts: Experts, step: int, epoch: int | None, *, trackers: Sequence[Tracker] = ()) -> None:
        """Make and write all samples with this DiT. `epoch`: None when a step is the reason. Ends early at a stop."""
        self._say(Stage(name="making samples", message=f"after {step} steps"))
        self._studio.use_experts(experts)
        for index, line in enumerate(self._lines):
            if self._control.stop_requested:
                break
            free_memory(self._studio.device)  # of the training's step, or of a sample that failed
            try:
                self._make(index, step=step, epoch=epoch, trackers=trackers)
            except Stopped:
                self._say(Warning_(message=f"Stopped while making sample {index + 1} of {len(self._lines)}."))
            except Exception as error:  # whatever it is, the training goes on
                self._say(Warning_(message=f"Sample {index + 1} ({line.where}) was not made: {_reason(error)}"))
        self._studio.encoders.forget("vae")
        free_memory(self._studio.device)

    def _make(self, index: int, *, step: int, epoch: int | None, trackers: Sequence[Tracker]) -> None:
        request = self._seeded(index)
        label = f"sample {index + 1} of {len(self._requests)}"
        latents_BCTHW = self._studio.latents(request, self._texts, self._inputs[index], label=label)
        single = self._studio.pixels(latents_BCTHW)[2] == 1
        name = sample_name(self._trained, step=step, epoch=epoch, index=index, seed=request.seed, single=single)
        notes = {"trained": self._trained, "steps": step}
        path = self._studio.write(self._studio.keep(request, latents_BCTHW, name=name, notes=notes))
        picture = shown(path)
        jpeg = base64.b64encode(encoded(picture, "JPEG", quality=85)).decode("ascii")
        self._say(Preview(jpeg=jpeg, label=f"step {step}, {label}: {beginning(request.prompt, most=100)}"))
        for tracker in trackers:
            tracker.log_sample(f"sample_{index}", path, picture, step)

    def _seeded(self, index: int) -> Request:
        """A line without a seed gets a new one each time."""
        request = self._requests[index]
        if self._lines[index].seed is not None:
            return request
        return dataclasses.replace(request, seed=random.SystemRandom().randrange(2**32))


def fitted(job: Job, line: PromptLine, say: Say) -> PromptLine:
    """The line with sizes and length rounded down to what can be made, as musubi-tuner does it; what changes is said.

    Where single images are made, a length means nothing.
    """
    options = part(job.family, "options")
    fit = {name: _down(getattr(line, name), options.SIZE_STEP) for name in ("width", "height")}
    if line.frame_count is not None:
        single = options.generation_defaults(job, dataclasses.replace(line, frame_count=None)).video_length == 1
        step = options.frame_step(job)
        fit["frame_count"] = 1 if single else (line.frame_count - 1) // step * step + 1
    for name, value in fit.items():
        if value != getattr(line, name):
            say(Log(message=f"{line.where}: {name.replace('_', ' ')} {getattr(line, name)} becomes {value}."))
    return dataclasses.replace(line, **fit)


def _down(pixels: int | None, step: int) -> int | None:
    return None if pixels is None else max(step, pixels // step * step)


def sample_name(
    trained: str, *, step: int, epoch: int | None, index: int, seed: int, single: bool, now: str | None = None
) -> str:
    """A sample's file name without ending, as musubi-tuner has it; `index` from 0, `now` as 20260131235959."""
    reason = f"{step:06d}" if epoch is None else f"e{epoch:06d}"
    now = now or time.strftime("%Y%m%d%H%M%S")
    return f"{trained}_{reason}_{index:02d}_{now}_{seed}{'_000' if single else ''}"


def shown(path: Path) -> Image.Image:
    """A small picture of a written sample: the image, or some frames of the video side by side."""
    if path.suffix == ".png":
        return strip([read_image(path)], thumbnail=2 * SHOWN_PIXELS)
    info = probe(path)
    frames = read_frames(path, indices=spread(info.frames, SHOWN_FRAMES), info=info)
    return strip(list(frames), thumbnail=SHOWN_PIXELS)


def _reason(error: Exception) -> str:
    """Why a sample failed, in one line; of a bug the traceback goes to the log."""
    failure, _ = as_failed(error)
    if failure.kind == "memory":
        return f"{failure.message} Make it smaller: --w, --h, --f in its line. Training goes on."
    if failure.kind == "bug":
        logging.getLogger(__name__).error("A sample failed", exc_info=error)
        return f"{failure.message} (more in log.txt). Training goes on."
    return f"{failure.message} {failure.hint} Training goes on."
