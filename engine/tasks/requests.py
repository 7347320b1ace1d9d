"""From flags and prompt lines to requests: what is to be generated, with nothing left open."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..contract.errors import OptionError
from ..contract.job import Job
from ..contract.options import GuidanceSteps, Prompting
from ..contract.rules import check_video_size
from ..families import part
from ..families.values import Request
from ..sampling.prompts import GENERATE, PromptLine, parse_line, read_prompts
from .experts import further_experts
from .needs import needed


def letters(job: Job) -> Mapping[str, str]:
    """What the letters of a prompt line mean in this family."""
    return {**GENERATE, **part(job.family, "options").PROMPT_LETTERS}


def requests_of(job: Job) -> list[Request]:
    """The videos that `--prompt` or `--from_file` asks for."""
    prompting = job[Prompting]
    if prompting.from_file:
        lines = read_prompts(prompting.from_file, letters=letters(job))
        return [make_request(job, line) for line in lines]
    text = needed(prompting.prompt, "--prompt", "what the video shows (or --from_file, --interactive, --latent_path)")
    return [make_request(job, PromptLine(prompt=text, where="--prompt"))]


def typed_request(job: Job, text: str) -> Request:
    """The video that a line typed by a person asks for."""
    return make_request(job, parse_line(text, letters=letters(job)))


def make_request(job: Job, line: PromptLine) -> Request:
    """What a prompt line says, then the flags, then what the task was made for."""
    prompting, options = job[Prompting], part(job.family, "options")
    defaults = options.generation_defaults(job, line)
    height, width = line.height or prompting.video_size[0], line.width or prompting.video_size[1]
    frames = _first(line.frame_count, prompting.video_length, defaults.video_length)
    guidance = _first(line.cfg_scale, prompting.guidance_scale, defaults.guidance_scale)
    _check_size(job, line.where, width=width, height=height, frames=frames)
    return Request(
        prompt=line.prompt,
        negative_prompt=_first(line.negative_prompt, prompting.negative_prompt, defaults.negative_prompt),
        width=width,
        height=height,
        frames=frames,
        steps=_first(line.sample_steps, prompting.infer_steps, defaults.infer_steps),
        shift=_first(line.discrete_flow_shift, prompting.flow_shift, defaults.flow_shift),
        guidance=guidance,
        seed=_first(line.seed, prompting.seed, random.SystemRandom().randrange(2**32)),
        cpu_noise=prompting.cpu_noise,
        skip_layers=job[GuidanceSteps].layers if GuidanceSteps in job else (),
        further_guidance=tuple(_first(expert.guidance, guidance) for expert in further_experts(job)),
        settings=options.request_settings(job, line),
    )


def metadata_of(request: Request, *, width: int, height: int, frames: int) -> dict[str, Any]:
    """What a result says about itself, as the reference writes it into latent files; files by their names only.

    Sizes in pixels are those that it has, which an input image may have changed.
    """
    said = {
        "seeds": request.seed,
        "prompt": request.prompt,
        "height": height,
        "width": width,
        "video_length": frames,
        "infer_steps": request.steps,
        "guidance_scale": request.guidance,
        "flow_shift": request.shift,
        "negative_prompt": request.negative_prompt,
    }
    own = {name: _said(value) for name, value in request.settings.items() if value not in (None, "", (), False)}
    return {**said, **own}


def _said(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_said(one) for one in value]
    return value.name if isinstance(value, Path) else value


def _first(*values: Any) -> Any:
    """The first value that was given, None when none was."""
    return next((value for value in values if value is not None), None)


def _check_size(job: Job, where: str, *, width: int, height: int, frames: int) -> None:
    """A prompt line's sizes go by the rules of `--video_size` and `--video_length`, whose check this is."""
    facts = part(job.family, "options")
    steps = {"size_step": facts.SIZE_STEP, "frame_step": facts.frame_step(job)}
    try:
        check_video_size(height=height, width=width, frames=frames, **steps)
    except OptionError as error:
        if where.startswith("--"):
            raise
        raise OptionError(f"{where}: {error.message}", hint=error.hint) from None
