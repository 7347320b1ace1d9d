"""What options of different sections demand of each other, one function a command. Rules within a section stand there.

Each raises an OptionError that names the flag to change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import OptionError
from .options import Attention, LatentCaching, LoraStack, Memory, Output, Prompting
from .schema import options

if TYPE_CHECKING:
    from .job import Job


def need(job: Job, name: str, why: str) -> None:
    """Demand that an option is given. It is looked up by name, because families own some of them."""
    for section in job.sections.values():
        for option in options(type(section)):
            if option.name == name:
                if getattr(section, name) in (None, (), ""):
                    raise OptionError(f"--{name} is required {why}.", hint=option.help, names=(name,))
                return


def cache_latents(job: Job) -> None:
    if job[LatentCaching].debug_mode is None:
        need(job, "vae", "to encode clips")


def train(job: Job) -> None:
    if job[Memory].compile_fullgraph and job[Attention].split_attn:
        raise OptionError(
            "--split_attn cannot be compiled as one graph.",
            hint="Leave out --split_attn or --compile_fullgraph.",
            names=("split_attn", "compile_fullgraph"),
        )


def generate(job: Job) -> None:
    """Something to generate, the models it takes, and a place for the result."""
    output, prompting = job[Output], job[Prompting]
    if job[LoraStack].save_merged_model is not None:
        need(job, "dit", "to merge LoRAs into it")
        return
    need(job, "save_path", "to know where the result goes")
    ways = [name for name in ("prompt", "from_file", "interactive") if getattr(prompting, name) not in (None, False)]
    if output.latent_path:
        need(job, "vae", "to decode a latent")
        return
    if not ways:
        raise OptionError(
            "Nothing to generate: neither --prompt, --from_file, --interactive nor --latent_path is given.",
            hint='Add --prompt "what the video shows".',
            names=("prompt",),
        )
    if job.values().get("ckpt_dir"):
        return  # a folder that holds all models
    need(job, "dit", "to generate")
    if output.output_type != "latent":
        need(job, "vae", "to decode the video (without it, use --output_type latent)")
