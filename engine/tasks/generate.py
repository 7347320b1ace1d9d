"""`generate <family>`: videos from prompts, or frames from a latent that was saved earlier.

Pictures and videos to start from are encoded first, then all prompts, then all latents are made, then all are decoded,
so that only one large model is in memory at a time; with `--interactive` they stay. Files are looked at before anything
is loaded. A stop keeps what is finished: latents that are complete are decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..contract.errors import DataError, OptionError, Stopped
from ..contract.events import Control, Log, Meter, Say, Warning_
from ..contract.job import Job
from ..contract.options import (
    AttentionMode,
    GenerationMemory,
    GenerationPrecision,
    LoraStack,
    Output,
    Prompting,
    Run,
)
from ..families import part
from ..families.contract import Request
from ..media.latents import load_latent
from ..ops.device import free_memory
from ..parts.weights import write_weights
from ..sampling.guidance import guided, guided_batch
from ..sampling.samplers import Step, sample
from .denoiser import Loras, arrange_blocks, load_dit, meta_dit, read_loras, tune_backends
from .encoders import Encoders
from .needs import needed
from .requests import metadata_of, requests_of, typed_request
from .results import Result, is_file_name, write_latent_file, write_pictures

Texts = dict[str, dict[str, Tensor]]


def home(job: Job) -> Path:
    path = Path(job[Output].save_path or ".")
    return path.parent if is_file_name(path) else path


def run(job: Job, say: Say, control: Control) -> str:
    studio = Studio(job, say, control)
    if job[Output].latent_path:
        return _decode_saved(job, studio)
    if job[LoraStack].save_merged_model:
        return _save_merged(job, studio)
    needed(job[Output].save_path, "--save_path", "the folder for the results")
    if job[Prompting].interactive:
        return _converse(job, studio)
    requests = requests_of(job)
    studio.check_files()
    inputs = [studio.prepare(request) for request in requests]
    studio.encoders.forget("image", "vae")
    texts = studio.encode_all(requests)
    studio.encoders.forget("text")
    finished = []
    for number, (request, given) in enumerate(zip(requests, inputs, strict=True), 1):
        label = f"video {number} of {len(requests)}"
        try:
            finished.append((request, studio.latents(request, texts, given, label=label)))
        except Stopped:
            say(Warning_(message=f"Stopped in {label}; those before it are written."))
            break
    studio.forget_dit()
    for request, latents_BCTHW in finished:
        studio.write(request, latents_BCTHW)
    return f"{len(finished)} of {len(requests)} written to {job[Output].save_path}"


class Studio:
    """The models of one generation, each loaded when it is first needed and forgotten when told."""

    def __init__(self, job: Job, say: Say, control: Control):
        self.job, self.say, self.control = job, say, control
        self.options = part(job.family, "options")
        self.encoders = Encoders(job, say)
        self.device = self.encoders.device
        tune_backends(job[GenerationMemory])

    @cached_property
    def loras(self) -> Loras:
        """The LoRA stack, read whole: small files, so a wrong one is known before anything large is loaded."""
        stack = self.job[LoraStack]
        return read_loras(
            self.job,
            self.encoders.file("dit", "the DiT file"),
            stack.lora_weight,
            stack.multipliers,
            role="--lora_weight",
            say=self.say,
            include=stack.include_patterns,
            exclude=stack.exclude_patterns,
        )

    @cached_property
    def dit(self) -> Any:
        path = self.encoders.file("dit", "the DiT file")
        precision = self.job[GenerationPrecision]
        dit = load_dit(
            self.job,
            path,
            device=self.device,
            loras=self.loras,
            weight_format=precision.weight_format,
            attention_backend=self.job[AttentionMode].backend,
            say=self.say,
        )
        self._stream = arrange_blocks(self.job, dit, device=self.device)
        return dit

    def check_files(self) -> None:
        """A file that is missing, damaged or of another kind is refused now, not when it is reached."""
        meta_dit(self.job, self.encoders.file("dit", "the DiT file"))
        _ = self.loras
        self.encoders.identity(self.options.TEXT_FILES, "the text encoder file")
        if self.job[Output].output_type != "latent":
            self.encoders.identity(("vae",), "the VAE file")

    def forget_dit(self) -> None:
        """Let go of the DiT and give its memory back."""
        self.__dict__.pop("dit", None)
        self._stream = None
        free_memory(self.device)

    def encode_all(self, requests: Sequence[Request]) -> Texts:
        """Every text that the requests need once, in main memory."""
        texts = part(self.job.family, "sample").texts
        wanted = list(dict.fromkeys(text for request in requests for text in texts(request)))
        encode, encoder = part(self.job.family, "text").encode, self.encoders.text
        meter = Meter(self.say, total=len(wanted), unit="prompts", label="encoding")
        encoded = {}
        for text in wanted:
            encoded[text] = {name: tensor.cpu() for name, tensor in encode(encoder, [text])[0].items()}
            meter.advance()
        meter.close()
        return encoded

    def prepare(self, request: Request) -> dict[str, Any]:
        """What the pictures and videos of one request become, in main memory."""
        return part(self.job.family, "sample").prepare(request, self.encoders)

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

    def write(self, request: Request, latents_BCTHW: Tensor) -> None:
        """Write one result in the forms that the job asks for, latents first: they cannot be lost to the decoder."""
        output = self.job[Output]
        loras = [Path(path).name for path in self.job[LoraStack].lora_weight]
        width, height, frames = self.pixels(latents_BCTHW)
        metadata = metadata_of(request, width=width, height=height, frames=frames) | ({"lora": loras} if loras else {})
        result = Result(output, request.seed, {} if output.no_metadata else metadata)
        if output.output_type in ("latent", "both", "latent_images"):
            write_latent_file(result, latents_BCTHW[0], say=self.say)
        if output.output_type in ("video", "both"):
            write_pictures(result, self.frames(latents_BCTHW), as_images=False, say=self.say)
        elif output.output_type in ("images", "latent_images"):
            write_pictures(result, self.frames(latents_BCTHW), as_images=True, say=self.say)


class Denoising:
    """What a family's sample.py is handed as `denoise` (families/contract.py)."""

    def __init__(self, studio: Studio, request: Request, label: str):
        self._studio, self._request, self._label = studio, request, label

    def __call__(
        self,
        conditional: Any,
        unconditional: Any,
        noise_BCTHW: Tensor,
        *,
        both: Any = None,
        clean_BCTHW: Tensor | None = None,
        strength: float = 1.0,
        shift: float | None = None,
        solver: str | None = None,
        rescale: float = 0.0,
        label: str = "",
    ) -> Tensor:
        request, studio = self._request, self._studio
        name = ", ".join(filter(None, (self._label, label)))
        width, height, frames = studio.pixels(noise_BCTHW)
        studio.say(Log(message=f"{name}: seed {request.seed}, {width}x{height}, {frames} frames"))
        if both is not None and request.guided:
            velocity = guided_batch(both, request.guidance, rescale=rescale)
        else:
            velocity = guided(conditional, unconditional, request.guidance, rescale=rescale)
        meter: Meter | None = None

        def seen(step: Step) -> None:
            nonlocal meter
            if meter is None:
                meter = Meter(studio.say, total=step.total, unit="steps", label=name)
            meter.advance()
            if studio.control.stop_requested and step.done < step.total:
                raise Stopped("Stopped while denoising.")

        return sample(
            velocity,
            noise_BCTHW,
            solver=solver or studio.job[Prompting].sample_solver,
            steps=request.steps,
            shift=request.shift if shift is None else shift,
            clean=clean_BCTHW,
            strength=strength,
            on_step=seen,
        )


def _converse(job: Job, studio: Studio) -> str:
    """Ask for prompts until the input ends."""
    if job[Run].events:
        raise OptionError("--interactive reads prompts from stdin, which --events uses for commands.", "Leave one out.")
    studio.check_files()
    count = 0
    while not studio.control.stop_requested:
        try:
            typed = input("prompt (end with Ctrl-D): ").strip()
        except EOFError:
            break
        if not typed:
            continue
        try:
            request = typed_request(job, typed)
            inputs, texts = studio.prepare(request), studio.encode_all([request])
            latents_BCTHW = studio.latents(request, texts, inputs, label=f"video {count + 1}")
        except (OptionError, DataError) as error:
            studio.say(Warning_(message=f"{error.message} {error.hint}".strip()))
            continue
        except Stopped:
            break
        studio.write(request, latents_BCTHW)
        count += 1
    return f"{count} written to {job[Output].save_path}"


def _decode_saved(job: Job, studio: Studio) -> str:
    """Frames from latents that were saved earlier; neither DiT nor text encoder is needed."""
    output = job[Output]
    if job[Prompting].prompt or job[Prompting].from_file:
        studio.say(Log(message="A saved latent is decoded, so prompts play no part."))
    for path in output.latent_path:
        latent_CTHW, said = load_latent(path)
        seed = int(said.get("seeds", "0").split(",")[0] or 0)
        result = Result(output, seed, {} if output.no_metadata else said, source=Path(path).stem)
        frames = studio.frames(latent_CTHW.unsqueeze(0))
        write_pictures(result, frames, as_images=output.output_type == "images", say=studio.say)
    return f"{len(output.latent_path)} decoded to {output.save_path}"


def _save_merged(job: Job, studio: Studio) -> str:
    """The DiT with its LoRAs, under the original checkpoint's names."""
    target = Path(job[LoraStack].save_merged_model)
    if job[GenerationPrecision].weight_format != "stored":
        raise OptionError("--save_merged_model writes the weights as they are stored, not in fp8.", "Leave out --fp8…")
    merged = {name: tensor.contiguous() for name, tensor in studio.dit.state_dict().items()}
    names = ", ".join(Path(path).name for path in job[LoraStack].lora_weight)
    write_weights(target, merged, metadata={"merged_lora": names})
    return f"Merged {names} into {target}"
