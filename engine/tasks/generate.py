"""`generate <family>`: videos from prompts, or frames from a latent that was saved earlier.

All prompts are encoded first, then all latents are made, then all are decoded, so that only one large model is in
memory at a time; with `--interactive` they stay. A stop keeps what is finished: latents that are complete are decoded.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..contract.errors import OptionError, Stopped
from ..contract.events import Control, Log, Meter, Say, Stage, Warning_
from ..contract.job import Job
from ..contract.options import (
    AttentionMode,
    GenerationMemory,
    GenerationModels,
    GenerationPrecision,
    LoraStack,
    Output,
    Prompting,
    Run,
)
from ..families import part
from ..media.latents import load_latent
from ..ops.device import choose_device, dtype_of, free_memory
from ..parts.weights import write_weights
from ..sampling.guidance import guided
from ..sampling.prompts import PromptLine, parse_line, read_prompts
from ..sampling.samplers import Step, sample
from .denoiser import arrange_blocks, load_dit, read_loras, tune_backends
from .needs import needed
from .results import Result, is_file_name, write_latent_file, write_pictures


def home(job: Job) -> Path:
    path = Path(job[Output].save_path or ".")
    return path.parent if is_file_name(path) else path


@dataclass(frozen=True, kw_only=True)
class Request:
    """One video to make, nothing left open. Sizes in pixels, `frames` = 4n + 1."""

    prompt: str
    negative_prompt: str
    width: int
    height: int
    frames: int
    steps: int
    shift: float
    guidance: float
    seed: int

    @property
    def guided(self) -> bool:
        return self.guidance != 1.0

    def metadata(self) -> dict[str, Any]:
        """As the reference writes it into latent files, and we into videos too."""
        return {
            "seeds": self.seed,
            "prompt": self.prompt,
            "height": self.height,
            "width": self.width,
            "video_length": self.frames,
            "infer_steps": self.steps,
            "guidance_scale": self.guidance,
            "flow_shift": self.shift,
            "negative_prompt": self.negative_prompt,
        }


def run(job: Job, say: Say, control: Control) -> str:
    studio = Studio(job, say, control)
    if job[Output].latent_path:
        return _decode_saved(job, studio)
    if job[LoraStack].save_merged_model:
        return _save_merged(job, studio)
    needed(job[Output].save_path, "--save_path", "the folder for the results")
    if job[Prompting].interactive:
        return _converse(job, studio)
    requests = _requests(job)
    texts = studio.encode_all(requests)
    studio.forget("text_encoder")
    finished = []
    for number, request in enumerate(requests, 1):
        try:
            finished.append((request, studio.latents(request, texts, label=f"video {number} of {len(requests)}")))
        except Stopped:
            say(Warning_(message=f"Stopped in video {number} of {len(requests)}; those before it are written."))
            break
    studio.forget("dit")
    for request, latents_BCTHW in finished:
        studio.write(request, latents_BCTHW)
    return f"{len(finished)} of {len(requests)} written to {job[Output].save_path}"


class Studio:
    """The models of one generation, each loaded when it is first needed and forgotten when told."""

    def __init__(self, job: Job, say: Say, control: Control):
        self.job, self.say, self.control = job, say, control
        self.options = part(job.family, "options")
        self.files = self.options.model_files(job)
        self.device = choose_device(job[Run].device)
        tune_backends(job[GenerationMemory])

    def file(self, name: str, flag: str) -> str:
        return needed(self.files[name], flag, f"the {name.replace('_', ' ')} file")

    @cached_property
    def text_encoder(self) -> Any:
        flag, _ = self.options.text_encoder_file(self.job)
        path = self.file("text_encoder", flag)
        self.say(Stage(name="Loading the text encoder", message=f"{path} on {self.device}"))
        arguments = self.options.text_arguments(self.job)
        return part(self.job.family, "text").load(path, device=self.device, dtype=torch.bfloat16, **arguments)

    @cached_property
    def dit(self) -> Any:
        stack = self.job[LoraStack]
        path = self.file("dit", "--dit")
        loras = read_loras(
            self.job,
            path,
            stack.lora_weight,
            stack.multipliers,
            role="--lora_weight",
            say=self.say,
            include=stack.include_patterns,
            exclude=stack.exclude_patterns,
        )
        precision = self.job[GenerationPrecision]
        dit = load_dit(
            self.job,
            path,
            device=self.device,
            loras=loras,
            weight_format=precision.weight_format,
            attention_backend=self.job[AttentionMode].backend,
            say=self.say,
        )
        self._stream = arrange_blocks(self.job, dit, device=self.device)
        return dit

    @cached_property
    def vae(self) -> Any:
        family = part(self.job.family, "vae")
        path = self.file("vae", "--vae")
        dtype = dtype_of(self.job[GenerationModels].vae_dtype, family.compute_dtype(self.device), flag="--vae_dtype")
        self.say(Stage(name="Loading the VAE", message=f"{path} on {self.device}"))
        return family.load(path, device=self.device, dtype=dtype, **self.options.vae_arguments(self.job))

    def forget(self, name: str) -> None:
        """Let go of one model and give its memory back."""
        self.__dict__.pop(name, None)
        if name == "dit":
            self._stream = None
        free_memory(self.device)

    def encode_all(self, requests: Sequence[Request]) -> dict[str, Tensor]:
        """Every prompt and negative prompt once, in main memory."""
        wanted = [request.prompt for request in requests]
        wanted += [request.negative_prompt for request in requests if request.guided]
        wanted = list(dict.fromkeys(wanted))
        encode, encoder = part(self.job.family, "text").encode, self.text_encoder
        meter = Meter(self.say, total=len(wanted), unit="prompts", label="encoding")
        encoded = {}
        for text in wanted:
            encoded[text] = encode(encoder, [text])[0].cpu()
            meter.advance()
        meter.close()
        return encoded

    def latents(self, request: Request, texts: dict[str, Tensor], *, label: str) -> Tensor:
        """The finished latents of one request, BCTHW on the CPU. Raises Stopped when a stop was asked for."""
        family, dit = part(self.job.family, "sample"), self.dit
        self.say(
            Log(message=f"{label}: seed {request.seed}, {request.width}x{request.height}, {request.frames} frames")
        )
        shape = family.latent_shape(width=request.width, height=request.height, frames=request.frames)
        noise = family.draw_noise(shape, seed=request.seed, device=self.device, on_cpu=self.job[Prompting].cpu_noise)
        meter = Meter(self.say, total=request.steps, unit="steps", label=label)

        def seen(step: Step) -> None:
            meter.advance()
            if self.control.stop_requested and step.done < step.total:
                raise Stopped("Stopped while denoising.")

        def denoise(conditional: Any, unconditional: Any, noise_BCTHW: Tensor) -> Tensor:
            velocity = guided(conditional, unconditional, request.guidance)
            solver = self.job[Prompting].sample_solver
            return sample(velocity, noise_BCTHW, solver=solver, steps=request.steps, shift=request.shift, on_step=seen)

        negative = texts[request.negative_prompt].to(self.device) if request.guided else None
        text = texts[request.prompt].to(self.device)
        return family.video_latents(dit, text_LD=text, negative_LD=negative, noise_BCTHW=noise, denoise=denoise).cpu()

    def frames(self, latents_BCTHW: Tensor) -> Iterator[Tensor]:
        """Decoded frames HWC uint8 RGB, one after the other, without those that are trimmed."""
        family, trim = part(self.job.family, "vae"), self.options.trim_tail_frames(self.job)
        total = (latents_BCTHW.shape[2] - 1) * family.TIME_STRIDE + 1
        meter = Meter(self.say, total=total, unit="frames", label="decoding")
        done = 0
        for chunk_BCFHW in family.decode_frames(self.vae, latents_BCTHW):
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
        metadata = request.metadata() | ({"lora": loras} if loras else {})
        result = Result(output, request.seed, {} if output.no_metadata else metadata)
        if output.output_type in ("latent", "both", "latent_images"):
            write_latent_file(result, latents_BCTHW[0], say=self.say)
        if output.output_type in ("video", "both"):
            write_pictures(result, self.frames(latents_BCTHW), as_images=False, say=self.say)
        elif output.output_type in ("images", "latent_images"):
            write_pictures(result, self.frames(latents_BCTHW), as_images=True, say=self.say)


def _requests(job: Job) -> list[Request]:
    prompting = job[Prompting]
    if prompting.from_file:
        return [_request(job, line) for line in read_prompts(prompting.from_file)]
    text = needed(prompting.prompt, "--prompt", "what the video shows (or --from_file, --interactive, --latent_path)")
    return [_request(job, PromptLine(prompt=text, where="--prompt"))]


def _request(job: Job, line: PromptLine) -> Request:
    """What a prompt line says, then the flags, then what the task was made for."""
    prompting, defaults = job[Prompting], part(job.family, "options").generation_defaults(job)
    height, width = line.height or prompting.video_size[0], line.width or prompting.video_size[1]
    frames = _first(line.frame_count, prompting.video_length, defaults.video_length)
    _check_size(line.where, width=width, height=height, frames=frames)
    return Request(
        prompt=line.prompt,
        negative_prompt=_first(line.negative_prompt, prompting.negative_prompt, defaults.negative_prompt),
        width=width,
        height=height,
        frames=frames,
        steps=_first(line.sample_steps, prompting.infer_steps, defaults.infer_steps),
        shift=_first(line.discrete_flow_shift, prompting.flow_shift, defaults.flow_shift),
        guidance=_first(line.cfg_scale, prompting.guidance_scale, defaults.guidance_scale),
        seed=_first(line.seed, prompting.seed, random.SystemRandom().randrange(2**32)),
    )


def _first(*values: Any) -> Any:
    """The first value that was given."""
    return next(value for value in values if value is not None)


def _check_size(where: str, *, width: int, height: int, frames: int) -> None:
    """A prompt line's sizes go by the rules of `--video_size` and `--video_length`, whose check this is."""
    try:
        Prompting(video_size=(height, width), video_length=frames)
    except OptionError as error:
        if where.startswith("--"):
            raise
        raise OptionError(f"{where}: {error.message}", hint=error.hint) from None


def _converse(job: Job, studio: Studio) -> str:
    """Ask for prompts until the input ends."""
    if job[Run].events:
        raise OptionError("--interactive reads prompts from stdin, which --events uses for commands.", "Leave one out.")
    count = 0
    while not studio.control.stop_requested:
        try:
            typed = input("prompt (end with Ctrl-D): ").strip()
        except EOFError:
            break
        if not typed:
            continue
        try:
            request = _request(job, parse_line(typed))
            latents_BCTHW = studio.latents(request, studio.encode_all([request]), label=f"video {count + 1}")
        except OptionError as error:
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
