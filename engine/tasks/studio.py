"""What makes a video: the models of a generation, and the walk from noise to clean latents that families are handed.

`generate` runs it on requests, a training on its samples. Knows no prompt file and no family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from itertools import starmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..contract.errors import Stopped
from ..contract.events import Artifact, Control, Log, Meter, Say, Warning_
from ..contract.job import Job
from ..contract.options import (
    AttentionMode,
    GenerationMemory,
    GenerationPrecision,
    GuidanceSteps,
    Output,
    Prompting,
)
from ..contract.wording import beginning
from ..families import part
from ..families.values import Request, StepCache
from ..media.latents import load_latent, save_latent
from ..ops.device import free_memory
from ..parts.step_caching import StepCacheSettings
from ..parts.tokenizers import TokenCount
from ..sampling.guidance import GuidancePlan, Predictions, Velocity, guided_along, in_turn
from ..sampling.samplers import Step, sample, schedule_of
from ..sampling.schedules import TRAIN_TIMESTEPS
from .attention_kernels import check_attention, settle_attention
from .denoiser import tune_backends
from .encoders import Encoders
from .experts import Experts
from .kept import Kept, Key
from .previews import Previewing
from .requests import metadata_of
from .results import Result, folder_of, write_pictures
from .step_caching import StepCaches

Texts = dict[str, dict[str, Tensor]]


class Studio:
    """The models of one generation, each loaded when it is first needed and forgotten when told.

    A training gives it a DiT of its own (`use_experts`): samples while training come about here too.
    """

    def __init__(self, job: Job, say: Say, control: Control, *, kept: Kept | None = None):
        """`kept`: what generations before this one left, and those after it will find."""
        self.job, self.say, self.control, self._kept = job, say, control, kept
        self.options = part(job.family, "options")
        self.encoders = Encoders(job, say, kept=kept)
        self.device = self.encoders.device
        self.previews = Previewing(job, self.device, say, folder=folder_of(job[Output].save_path))
        tune_backends(job[GenerationMemory])

    @cached_property
    def experts(self) -> Experts:
        """The DiT, or those that take turns."""
        backend, precision = self.job[AttentionMode].backend, self.job[GenerationPrecision]
        experts = Experts(
            self.job,
            device=self.device,
            weight_format=precision.weight_format,
            attention_backend=backend,
            say=self.say,
        )
        if self._kept is not None:
            self._dit_key = experts.key()  # of the files as they are before they are read
            self._kept.let_go("dit", unless=self._dit_key)
        return experts

    @cached_property
    def dit(self) -> nn.Module:
        kept = None
        if self._kept is not None:
            kept = self._kept.take("dit", self._dit_key, self.say)
        if kept is None:
            self.experts.arrange()
        else:
            self.experts = kept
            kept.go_on(self.job, self.say)
        dit, backend = self.experts.dit, self.job[AttentionMode].backend
        settle_attention(dit, self.device, dtype=dit.dtype, backend=backend, learning=False, say=self.say)
        return dit

    def check_files(self) -> None:
        """A file that is missing, damaged or of another kind is refused now, not when it is reached; and attention that
        this device has no kernels for."""
        check_attention(self.job[AttentionMode].backend, self.device, learning=False, say=self.say)
        self._bare_dit = self.experts.check()
        if GuidanceSteps in self.job:
            self.job[GuidanceSteps].check_layers(len(part(self.job.family, "model").blocks(self._bare_dit)))
        self.encoders.identity(self.options.TEXT_FILES, "the text encoder file")
        if self.job[Output].output_type != "latent":
            self.encoders.identity(("vae",), "the VAE file")
        if self.encoders.has_image_encoder():
            self.encoders.identity(self.options.IMAGE_FILES, "the image encoder file")
        self.previews.check()

    def use_experts(self, experts: Experts) -> None:
        """Generate with this DiT as it is, LoRA and all, instead of loading one."""
        self.experts, self.dit = experts, experts.dit

    def forget_dit(self) -> None:
        """Let go of the DiT and give its memory back."""
        loaded, experts = self.__dict__.pop("dit", None) is not None, self.__dict__.pop("experts", None)
        if self._kept is not None and loaded and experts.may_rest:
            self._kept.put(
                "dit", self._dit_key, experts, self.say, weights=experts.weights(), stream=experts.stream
            )  # fmt: skip
        del experts
        free_memory(self.device)

    def encoded(self, requests: Sequence[Request]) -> tuple[list[dict[str, Any]], Texts]:
        """What the pictures of each request become, and all texts; each encoder is gone before the next is loaded."""
        inputs = [self.prepare(request) for request in requests]
        self.encoders.forget("image", "vae")
        texts = self.encode_all(requests)
        self.encoders.forget("text")
        return inputs, texts

    def encode_all(self, requests: Sequence[Request]) -> Texts:
        """Every text that the requests need once, in main memory."""
        texts = part(self.job.family, "sample").texts
        wanted = list(dict.fromkeys(text for request in requests for text in texts(request)))
        family, known = part(self.job.family, "text"), self._known_texts()
        missing = [text for text in wanted if text not in known]
        meter = Meter(self.say, total=len(missing), unit="prompts", label="encoding")
        for text in missing:
            self._warn_if_cut(text, family.token_counts(self.encoders.text, [text])[0])
            tensors = family.encode(self.encoders.text, [text])[0]
            known[text] = {name: tensor.cpu() for name, tensor in tensors.items()}
            meter.advance()
        meter.close()
        encoded = {text: known[text] for text in wanted}
        if self._kept is not None:
            self._kept.put("texts", self._texts_key, encoded, self.say)
        return encoded

    def _warn_if_cut(self, text: str, count: TokenCount) -> None:
        """Say so if the encoder does not read a prompt to its end."""
        if count.read < count.tokens:
            what = f'The prompt "{beginning(text, most=40)}"'
            self.say(
                Warning_(
                    message=f"{what} has {count.tokens} tokens, of which the text encoder reads only {count.read}. "
                    "Shorten it, or put the important words first."
                )
            )

    def _known_texts(self) -> Texts:
        """Those that the generation before this one has encoded with the same encoder."""
        if self._kept is None:
            return {}
        self._texts_key = Key(repr(self.encoders.key("text")))
        return self._kept.take("texts", self._texts_key, self.say) or {}

    def prepare(self, request: Request) -> dict[str, Any]:
        """What the pictures and videos of one request become, in main memory."""
        family = part(self.job.family, "sample")
        if hasattr(family, "check_request"):
            family.check_request(request, self._bare_dit)
        return family.prepare(request, self.encoders)

    def latents(self, request: Request, texts: Texts, inputs: dict[str, Any], *, label: str) -> Tensor:
        """The finished latents of one request, BCTHW on the CPU. Raises Stopped when a stop was asked for."""
        latents_BCTHW = part(self.job.family, "sample").video_latents(
            self.dit,
            request,
            texts=texts,
            inputs=inputs,
            denoise=Denoising(self, request, label),
            device=self.device,
        )
        return latents_BCTHW.cpu()

    def pixels(self, latents_BCTHW: Tensor) -> tuple[int, int, int]:
        """Width, height and frames of the video that such latents become."""
        family = part(self.job.family, "vae")
        latent_frames, height, width = latents_BCTHW.shape[2:]
        return width * family.SPACE_STRIDE, height * family.SPACE_STRIDE, (latent_frames - 1) * family.TIME_STRIDE + 1

    def frames(self, latents_BCTHW: Tensor) -> Iterator[Tensor]:
        """Decoded frames HWC uint8 RGB, one after the other, without those that are trimmed."""
        family = part(self.job.family, "vae")
        _, _, total = self.pixels(latents_BCTHW)
        trim = min(self.options.trim_tail_frames(self.job), total - 1)
        meter = Meter(self.say, total=total, unit="frames", label="decoding")
        done = 0
        arguments = self.options.decode_arguments(self.job)
        for chunk_BCFHW in family.decode_frames(self.encoders.vae, latents_BCTHW, **arguments):
            pixels_FHWC = ((chunk_BCFHW[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).cpu()
            for frame_HWC in pixels_FHWC:
                done += 1
                if done <= total - trim:
                    yield frame_HWC
            meter.advance(len(pixels_FHWC))
        meter.close()

    def keep(
        self, request: Request, latents_BCTHW: Tensor, *, name: str = "", notes: Mapping[str, Any] | None = None
    ) -> Result:
        """Give finished latents a file, which no trouble with the decoder can take away.

        `name` takes the place of the file's usual one, `notes` are added to what it says about itself.
        """
        output = self.job[Output]
        loras = [Path(path).name for expert in self.experts.members for path in expert.loras]
        width, height, frames = self.pixels(latents_BCTHW)
        metadata = metadata_of(request, width=width, height=height, frames=frames) | ({"lora": loras} if loras else {})
        result = Result(output, request.seed, {} if output.no_metadata else {**metadata, **(notes or {})}, name=name)
        save_latent(result.latent, latents_BCTHW[0], metadata=result.metadata)
        return result

    def write(self, result: Result) -> Path:
        """Make of kept latents what the job asks for, and return the path of what was written last.

        The latents' file stays where it was asked for, or where no pictures could be made of it.
        """
        output, wanted = self.job[Output], self.job[Output].output_type in ("latent", "both", "latent_images")
        path = result.latent
        if wanted:
            self.say(Artifact(kind="latent", path=str(path)))
        if output.output_type == "latent":
            return path
        latents_BCTHW = load_latent(path)[0].unsqueeze(0)
        as_images = output.output_type in ("images", "latent_images")
        try:
            made = write_pictures(result, self.frames(latents_BCTHW), as_images=as_images, say=self.say)
        except Exception:
            self.say(Warning_(message=f"The denoised latents are kept: generate --latent_path {path} decodes them."))
            raise
        self.previews.remove()
        if not wanted:
            path.unlink()
        return made


class Denoising:
    """What a family's sample.py is handed as `denoise` (families/values.py)."""

    def __init__(self, studio: Studio, request: Request, label: str):
        self._studio, self._request, self._label = studio, request, label
        self._caches = StepCaches()

    def step_cache(self, settings: StepCacheSettings, *, label: str) -> StepCache:
        return self._caches.make(settings, label=label)

    def __call__(
        self,
        conditional: Any,
        unconditional: Any,
        noise_BCTHW: Tensor,
        *,
        both: Any = None,
        skipped: Any = None,
        clean_BCTHW: Tensor | None = None,
        strength: float = 1.0,
        shift: float | None = None,
        solver: str | None = None,
        rescale: float = 0.0,
        label: str = "",
        shown: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        request, studio = self._request, self._studio
        name = ", ".join(filter(None, (self._label, label)))
        width, height, _ = studio.pixels(noise_BCTHW)
        length = "one frame" if request.frames == 1 else f"{request.frames} frames"  # the noise may be of a part only
        studio.say(Log(message=f"{name}: seed {request.seed}, {width}x{height}, {length}"))
        walk = {
            "solver": solver or studio.job[Prompting].sample_solver,
            "steps": request.steps,
            "shift": request.shift if shift is None else shift,
            "strength": 1.0 if clean_BCTHW is None else strength,
        }
        whole = schedule_of(**{**walk, "strength": 1.0}).timesteps.tolist()
        first = len(whole) - len(schedule_of(**walk))
        at_work = [studio.experts.number_at(timestep / TRAIN_TIMESTEPS) for timestep in whole]
        self._caches.begin(at_work, first=first)
        numbers = at_work[first:]
        scales = [(request.guidance, *request.further_guidance)[number] for number in numbers]
        models = Predictions(conditional=conditional, unconditional=unconditional, both=both, skipped=skipped)
        velocities = guided_along(_plan(studio.job), models, scales, rescale=rescale)
        velocity = in_turn(list(starmap(self._by_expert, zip(range(len(numbers)), numbers, velocities, strict=True))))
        meter = Meter(studio.say, total=len(numbers), unit="steps", label=name)

        def seen(step: Step) -> None:
            meter.advance()
            if studio.control.stop_requested and step.done < step.total:
                raise Stopped("Stopped while denoising.")
            studio.previews.show(step, label=name, shown=shown)

        clean = sample(
            velocity,
            noise_BCTHW,
            clean=clean_BCTHW,
            on_step=seen,
            **walk,
        )
        for line in self._caches.finish():
            studio.say(Log(message=f"{name}, {line}"))
        return clean

    def _by_expert(self, index: int, number: int, velocity: Velocity) -> Velocity:
        """A velocity of step `index`, for which this expert is brought in."""

        def with_expert(x_BCTHW: Tensor, timestep_B: Tensor) -> Tensor:
            self._studio.experts.use(number)
            self._caches.walk.go_to(index)
            return velocity(x_BCTHW, timestep_B)

        return with_expert


def _plan(job: Job) -> GuidancePlan:
    """In which steps guidance acts; in all of them where the family has no such options."""
    if GuidanceSteps not in job:
        return GuidancePlan()
    return GuidancePlan(**{field.name: getattr(job[GuidanceSteps], field.name) for field in fields(GuidancePlan)})
