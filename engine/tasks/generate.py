"""`generate <family>`: videos from prompts, or frames from a latent that was saved earlier.

Pictures and videos to start from are encoded first, then all prompts, then all latents are made, then all are decoded,
so that only one large model is in memory at a time; with `--interactive` they stay. Files are looked at before anything
is loaded. Each latent is a file as soon as it is finished: whatever happens then, `--latent_path` makes a video of it.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..contract.errors import DataError, OptionError, Stopped
from ..contract.events import Control, Log, Say, Warning_
from ..contract.job import Job
from ..contract.options import GenerationPrecision, LoraStack, Output, Prompting, Run
from ..contract.patience import until_written
from ..contract.rules import generates
from ..families.values import Request
from ..media.latents import load_latent
from .kept import Kept
from .lora_merge import write_merged
from .needs import needed
from .optimized import optimized, possible
from .requests import requests_of, typed_request
from .results import Result, folder_of, write_pictures
from .studio import Studio
from .within_memory import within_memory

HOME = "save_path"  # the option that says where results go
KEEPS = True  # what is loaded may stay for the next job: `run` takes `kept`


def home(job: Job) -> Path:
    return folder_of(job[Output].save_path)


def run(job: Job, say: Say, control: Control, *, kept: Kept | None = None) -> str:
    if not generates(job):
        return _generate(job, say, control, kept=kept)

    def task(fitted: Job, say: Say, control: Control) -> str:
        return _generate(possible(job, fitted, say), say, control, kept=kept)

    return within_memory(optimized(job), say, control, task, held=0 if kept is None else kept.host_bytes)


def _generate(job: Job, say: Say, control: Control, *, kept: Kept | None) -> str:
    studio = Studio(job, say, control, kept=kept)
    if job[Output].latent_path:
        return _decode_saved(job, studio)
    if job[LoraStack].save_merged_model:
        return _save_merged(job, studio)
    needed(job[Output].save_path, "--save_path", "the folder for the results")
    if job[Prompting].interactive:
        return _converse(job, studio)
    requests = requests_of(job)
    studio.check_files()
    inputs, texts = studio.encoded(requests)
    finished = []
    for number, (request, given) in enumerate(zip(requests, inputs, strict=True), 1):
        label = f"video {number} of {len(requests)}"
        try:
            latents_BCTHW = studio.latents(request, texts, given, label=label)
            finished.append(_kept(studio, request, latents_BCTHW, label))
        except Stopped:
            say(Warning_(message=f"Stopped in {label}; those before it are written."))
            break
    studio.forget_dit()
    for result in finished:
        studio.write(result)
    studio.encoders.forget("vae")
    return f"{len(finished)} of {len(requests)} written to {job[Output].save_path}"


def _kept(studio: Studio, request: Request, latents_BCTHW: Tensor, label: str) -> Result:
    return until_written(
        lambda: studio.keep(request, latents_BCTHW),
        what=label.capitalize(),
        folder=folder_of(studio.job[Output].save_path),
        say=studio.say,
        control=studio.control,
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
            label = f"video {count + 1}"
            latents_BCTHW = studio.latents(request, texts, inputs, label=label)
        except (OptionError, DataError) as error:
            studio.say(Warning_(message=f"{error.message} {error.hint}".strip()))
            continue
        except Stopped:
            break
        studio.write(_kept(studio, request, latents_BCTHW, label))
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
    studio.encoders.forget("vae")
    return f"{len(output.latent_path)} decoded to {output.save_path}"


def _save_merged(job: Job, studio: Studio) -> str:
    """Each DiT with its LoRAs, under its checkpoint's own names."""
    target = Path(job[LoraStack].save_merged_model)
    if job[GenerationPrecision].weight_format != "stored":
        raise OptionError("--save_merged_model writes the weights as they are stored, not in fp8.", "Leave out --fp8…")
    written = []
    for expert, loras in zip(studio.experts.members, studio.experts.loras, strict=True):
        if loras:
            path = target.with_name(f"{target.stem}{expert.ending}{target.suffix}")
            write_merged(
                str(job.family), expert.dit, str(path), loras, role=expert.flag, device=studio.device, say=studio.say
            )
            written.append(path.name)
    return f"Merged LoRAs into {' and '.join(written)} in {target.parent}"
