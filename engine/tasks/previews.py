"""Previews: what the model has in mind of a video while it is being denoised, as a small moving picture in a file.

Each takes the place of the one before; when the finished video is there, the file is gone. Previews look at latents and
change none of them, draw no random numbers, and decode on a GPU only where it has room for that. What fails is a
warning and ends them: none is worth a video. Knows no family's latents: colours are the family's (`vae.COLOURS`), a
tiny autoencoder is the person's (`--preview_vae`, parts/tae.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ..contract.errors import as_failed
from ..contract.events import Log, Preview, Say, Warning_
from ..contract.job import Job
from ..contract.options import Output, Previews, Run
from ..families import part
from ..media.writing import write_preview
from ..ops.device import free_bytes, free_memory
from ..parts import tae
from ..sampling.samplers import Step

NAME = "latent_preview"  # as blissful-tuner calls it
COLOUR_PIXELS, VAE_PIXELS = 320, 512  # longer side of what is shown
MOST_FRAMES = 41
Shown = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Picture:
    """Frames of a preview: [F, 3, H, W], RGB 0..1, with how many of them a second has."""

    frames_F3HW: Tensor
    fps: float


class Previewing:
    """The previews of one job. Without `--preview_latent_every` it does nothing."""

    def __init__(self, job: Job, device: torch.device, say: Say, *, folder: Path):
        """`folder`: where the preview goes, unless the job's record has a place of its own."""
        self._every, self._vae_path = job[Previews].preview_latent_every, job[Previews].preview_vae
        self._fps, self._device, self._say = job[Output].fps, device, say
        self._folder = Path(job[Run].job_dir) if job[Run].job_dir else folder
        self._family = part(job.family, "vae")
        self._written: Path | None = None

    def check(self) -> None:
        """Refuse a file that is no tiny autoencoder for this family's latents. WeightsError."""
        if self._vae_path is None:
            return
        if not self._every:
            self._say(Log(message="--preview_vae plays no part: --preview_latent_every says how often there are any."))
            return
        colours = self._family.COLOURS
        _ = self._vae_file
        other = tae.other_kind(self._vae_path, wanted=colours.tiny_vae)
        if other:
            name = Path(self._vae_path).name
            self._say(
                Warning_(
                    message=f"--preview_vae {name} is {other} by its name, which has wrong colours for these latents. "
                    f"Use {colours.tiny_vae}. The video itself is not affected."
                )
            )

    def show(self, step: Step, *, label: str, shown: Shown | None = None) -> None:
        """Make the preview of a step if there is to be one: of every n-th step, and of the last.

        `shown`: the latents to show, of those that the step has; None: all.
        """
        if not self._every or (step.done % self._every and step.done < step.total):
            return
        began, failure = time.perf_counter(), None
        try:
            latents_BCTHW = step.clean if shown is None else shown(step.clean)
            path = self._write(self._picture(latents_BCTHW))
        except Exception as error:  # whatever it is, the video is made all the same
            failure = as_failed(error)[0]
            if failure.kind == "bug":
                logging.getLogger(__name__).error("A preview failed", exc_info=error)
        if failure is None:
            self._say(Preview(path=str(path), label=f"{label}, step {step.done} of {step.total}", passing=True))
            self._say(Log(message=f"A preview took {1000 * (time.perf_counter() - began):.0f} ms.", level="debug"))
            return
        free_memory(self._device)  # here the exception is gone, and with it the frames that held tensors
        self._every = 0
        self._say(Warning_(message=f"No previews from here on: {failure.message} The video is made all the same."))

    def remove(self) -> None:
        """The finished video takes the preview's place."""
        if self._written is not None:
            self._written.unlink(missing_ok=True)
            self._written = None

    # ---------------------------------------------------------------------------------------------------- pictures

    def _picture(self, latents_BCTHW: Tensor) -> Picture:
        if self._vae_path is None or not self._has_room(latents_BCTHW):
            frames_F3HW = self._family.COLOURS.frames(latents_BCTHW.to(self._device))
            return Picture(fitted(frames_F3HW, COLOUR_PIXELS), self._fps / self._family.TIME_STRIDE)
        count = (latents_BCTHW.shape[2] - 1) * self._family.TIME_STRIDE + 1
        nth = -(-count // MOST_FRAMES)
        self._vae.to(self._device)
        try:
            frames = self._vae.decode_frames(latents_BCTHW[:1].to(self._device))
            kept = [fitted(frame, VAE_PIXELS) for index, frame in enumerate(frames) if index % nth == 0]
        finally:
            self._vae.to("cpu")
        return Picture(torch.cat(kept), self._fps / nth)

    @cached_property
    def _vae_file(self) -> tae.ArrangedWeights:
        colours = self._family.COLOURS
        return tae.check(
            str(self._vae_path), latent_channels=len(colours.factors), wanted=colours.tiny_vae, role="--preview_vae"
        )

    @cached_property
    def _vae(self) -> tae.TinyAutoencoder:
        """In main memory between two previews."""
        return tae.load(self._vae_file, dtype=torch.float32 if self._device.type == "cpu" else torch.float16)

    def _has_room(self, latents_BCTHW: Tensor) -> bool:
        """Whether the device can decode beside what it holds; of those that do not tell, it is believed."""
        free = free_bytes(self._device)
        height, width = latents_BCTHW.shape[3:]
        if free is None or free > self._vae.working_bytes(height=height, width=width):
            return True
        self._say(Log(message="A preview in colours: the GPU has no room for --preview_vae beside the DiT."))
        return False

    def _write(self, picture: Picture) -> Path:
        frames_FHWC = (picture.frames_F3HW * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        path = write_preview(self._folder / NAME, frames_FHWC, fps=picture.fps)
        self._written = path
        return path


def fitted(frames_F3HW: Tensor, longest: int) -> Tensor:
    """Frames scaled, smoothly, so that their longer side has so many pixels, but no larger than eightfold."""
    height, width = frames_F3HW.shape[2:]
    scale = min(longest / max(height, width), tae.SPACE_STRIDE)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    return functional.interpolate(frames_F3HW, size=size, mode="bicubic", antialias=True).clamp(0, 1)
