"""What options of different sections demand of each other, one function a command. Rules within a section stand there.

Each raises an OptionError that names the flag to change. What a family's options demand stands in its `options.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import OptionError
from .options import (
    Attention,
    HuggingFace,
    LatentCaching,
    Launch,
    LoraStack,
    Memory,
    Optimizer,
    Output,
    Processes,
    Prompting,
    Run,
    Samples,
    Saving,
    Training,
    TrainingPrecision,
)
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


def a_gpu_for_each_process(job: Job) -> None:
    """--device names one GPU, which several processes cannot share."""
    device, processes = job[Run].device, job[Processes].num_processes
    if processes > 1 and device is not None and ":" in device:
        raise OptionError(
            f"--device {device} is one GPU, but --num_processes {processes} needs one for each process.",
            hint="Leave out --device, and choose with --gpu_ids.",
            names=("device", "num_processes"),
        )


def cache_latents(job: Job) -> None:
    if job[LatentCaching].debug_mode is None:
        need(job, "vae", "to encode clips")
    a_gpu_for_each_process(job)


def cache_text(job: Job) -> None:
    a_gpu_for_each_process(job)


def train(job: Job) -> None:
    if job[Memory].compile_fullgraph and job[Attention].split_attn:
        raise OptionError(
            "--split_attn cannot be compiled as one graph.",
            hint="Leave out --split_attn or --compile_fullgraph.",
            names=("split_attn", "compile_fullgraph"),
        )
    a_gpu_for_each_process(job)
    if job[Launch].shard_base:
        _blocks_in_one_place(job[Memory])
    if job[Optimizer].fused_backward_pass:
        _fused_backward_pass(job)
    precision = job[TrainingPrecision].mixed_precision
    if job[Optimizer].full_bf16 and precision in ("no", "fp16"):
        raise OptionError(
            f"--full_bf16 keeps the LoRA in bf16, but --mixed_precision {precision} computes in another format.",
            hint="Use --mixed_precision bf16, or leave out --full_bf16.",
            names=("full_bf16", "mixed_precision"),
        )
    if job[Samples].sample_prompts is not None:
        need(job, "vae", "to make samples (--sample_prompts)")
    if job[HuggingFace].resume_from_huggingface and job[Saving].resume == "auto":
        raise OptionError(
            "--resume_from_huggingface needs to know which state.",
            hint="Add --resume owner/name/path-of-the-state.",
            names=("resume_from_huggingface", "resume"),
        )


def _blocks_in_one_place(memory: Memory) -> None:
    """With --shard_base the blocks are on the GPUs."""
    if memory.blocks_to_swap:
        name = "blocks_to_swap"
        other = f"--{name} {memory.blocks_to_swap} {'on disk' if memory.streams_from_disk else 'in main memory'}"
    elif memory.block_swap_from_disk:
        name = "block_swap_from_disk"
        other = f"--{name} on disk"
    else:
        return
    raise OptionError(
        f"--shard_base keeps the blocks on the GPUs, {other}.",
        hint="Leave out one of them.",
        names=("shard_base", name),
    )


def _fused_backward_pass(job: Job) -> None:
    """Where a gradient is not whole when it is ready."""
    accumulation, processes = job[Training].gradient_accumulation_steps, job[Launch].num_processes
    for clashes, name, given, other in (
        (accumulation > 1, "gradient_accumulation_steps", f"{accumulation} adds up the gradients of batches", "1"),
        (processes > 1, "num_processes", f"{processes} adds up the gradients of processes", "1"),
        (job[TrainingPrecision].mixed_precision == "fp16", "mixed_precision", "fp16 scales the gradients", "bf16"),
    ):
        if clashes:
            raise OptionError(
                f"--fused_backward_pass uses each gradient at once, but --{name} {given}.",
                hint=f"Use --{name} {other}, or leave out --fused_backward_pass.",
                names=("fused_backward_pass", name),
            )


def resolved_training(job: Job) -> dict[str, Any]:
    """What a training's options are when they are left out and others decide."""
    return {"metadata_title": job[Saving].output_name}


def serve(job: Job) -> None:
    """Each job says for itself where it computes and where its record goes."""
    for name in ("device", "job_dir"):
        if getattr(job[Run], name) is not None:
            raise OptionError(
                f"--{name} is for a job, not for the server that runs it.",
                hint=f"Leave it out here, and put {name} in the job's file.",
                names=(name,),
            )


def generates(job: Job) -> bool:
    """Whether a `generate` job makes something new, rather than decode a latent or merge LoRAs."""
    return not job[Output].latent_path and job[LoraStack].save_merged_model is None


def need_models(job: Job) -> None:
    """DiT and VAE, to make something new. For a family's `rules`, since it may have other ways to name them."""
    need(job, "dit", "to generate")
    if job[Output].output_type != "latent":
        need(job, "vae", "to decode the video (without it, use --output_type latent)")


def check_video_size(*, height: int, width: int, frames: int | None, size_step: int, frame_step: int) -> None:
    """Height and width are multiples of `size_step`, frames one more than a multiple of `frame_step`: what a family
    says of its model (families/contract.py)."""
    for what, pixels in (("height", height), ("width", width)):
        if pixels % size_step:
            below = pixels // size_step * size_step
            raise OptionError(
                f"--video_size: a {what} of {pixels} is not a multiple of {size_step}: "
                f"use {below} or {below + size_step}.",
                hint=f"The model works on squares of {size_step} x {size_step} pixels.",
                names=("video_size",),
            )
    if frames is not None and (frames - 1) % frame_step:
        below = (frames - 1) // frame_step * frame_step + 1
        raise OptionError(
            f"--video_length: {frames} is not {frame_step}n+1: use {below} or {below + frame_step}.",
            hint=f"After the first frame, the model makes frames {frame_step} at a time.",
            names=("video_length",),
        )


def generate(job: Job) -> None:
    """Something to generate, of a size that the model can make, and a place for the result."""
    from .commands import family_options  # which imports this module

    output, prompting = job[Output], job[Prompting]
    if job.family is not None:
        facts, (height, width) = family_options(job.family), prompting.video_size
        check_video_size(
            height=height,
            width=width,
            frames=prompting.video_length,
            size_step=facts.SIZE_STEP,
            frame_step=facts.frame_step(job),
        )
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
