"""FramePack's own options and defaults. Standard library only: ComfyUI and `--help` read this file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...contract.errors import OptionError
from ...contract.options import (
    Attention,
    AttentionMode,
    Caching,
    GenerationMemory,
    GenerationModels,
    GenerationPrecision,
    LatentCaching,
    LoraStack,
    Models,
    Output,
    Prompting,
    Timesteps,
    TrainingMemory,
    TrainingModels,
    TrainingPrecision,
)
from ...contract.schema import Section
from .flags import (
    MAGCACHE,
    FramePack,
    FramePackGuidance,
    FramePackImage,
    FramePackImageCaching,
    FramePackInputs,
    FramePackLength,
    FramePackMagCache,
    FramePackNetwork,
    FramePackOneFrame,
    FramePackOneFrameCaching,
    FramePackOutput,
    FramePackPrompting,
    FramePackSingle,
    FramePackText,
    FramePackTextCaching,
    FramePackTextGeneration,
    FramePackVae,
    FramePackWindow,
)
from .flags import NATIVE_FPS as NATIVE_FPS
from .flags import NETWORK_MODULE as NETWORK_MODULE
from .sections import TIME_STRIDE, parse_one_frame, parse_paddings, parse_sections, sections_wanted

if TYPE_CHECKING:
    from ...contract.job import Job

TITLE = "FramePack"
ARCHITECTURE = "fp"
ARCHITECTURE_FULL = "framepack"
LATENT_SCALE = 1.0  # cached latents are scaled already
MODELSPEC_ARCHITECTURE = "framepack"
MODELSPEC_IMPLEMENTATION = "https://github.com/lllyasviel/FramePack"
TEXT_FILES = ("text_encoder1", "text_encoder2")
IMAGE_FILES = ("image_encoder",)
MODEL_FILES = ("dit", "vae", *TEXT_FILES, *IMAGE_FILES)
PROMPT_LETTERS = {
    "f": "video_seconds",
    "vs": "video_sections",
    "mcrr": "magcache_retention_ratio",
    "mct": "magcache_threshold",
    "mck": "magcache_k",
}
SECTION_SOLVER = "unipc-3"
"""What --sample_solver unipc means here: the UniPC that the model was published with."""
TILE_PIXELS = 256

# The family's part of each command. A subclass takes the place of the shared section it is made from.
SECTIONS: dict[str, tuple[type[Section], ...]] = {
    "cache-latents": (FramePack, Models, FramePackVae, FramePackImageCaching, LatentCaching, FramePackOneFrameCaching),
    "cache-text": (FramePackTextCaching, Caching),
    "train": (
        FramePackWindow, TrainingModels, FramePackVae, FramePackText, FramePackImage, TrainingPrecision,
        TrainingMemory, Attention, FramePackNetwork, FramePackOneFrame,
    ),
    "generate": (
        FramePackWindow, GenerationModels, FramePackVae, FramePackTextGeneration, FramePackImage, GenerationPrecision,
        GenerationMemory, AttentionMode, FramePackPrompting, FramePackLength, LoraStack, FramePackOutput,
        FramePackInputs, FramePackGuidance, FramePackSingle, FramePackMagCache,
    ),
}  # fmt: skip

# musubi-tuner's scripts for this family.
SCRIPTS = {
    "fpack_cache_latents": "cache-latents",
    "fpack_cache_text_encoder_outputs": "cache-text",
    "fpack_train_network": "train",
    "fpack_generate_video": "generate",
}


# ---------------------------------------------------------------------------------------------- from job to values


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What FramePack was made for; flow_shift None is worked out from the size."""

    video_length: int
    infer_steps: int = 25
    flow_shift: float | None = None
    guidance_scale: float = 1.0
    negative_prompt: str = ""


def rules(job: Job) -> None:
    """What FramePack's options demand of each other. Raises OptionError."""
    if job.command.verb != "generate":
        return
    length, window = job[FramePackLength], job[FramePackWindow].latent_window_size
    if job[Prompting].video_length is not None and job[FramePackSingle].one_frame_inference is None:
        if length.video_sections is not None:
            raise OptionError(
                "--video_length and --video_sections both say how long the video is.",
                hint="Keep one of them.",
                names=("video_length", "video_sections"),
            )
        _sections_of(job[Prompting].video_length, window, "--video_length")
    if job[FramePack].f1:
        for name, given in (
            ("latent_paddings", length.latent_paddings),
            ("end_image_path", job[FramePackInputs].end_image_path),
        ):
            if given is not None:
                raise OptionError(
                    f"--{name} has no meaning with --f1, which goes forward in time.",
                    hint=f"Leave out --{name}, or use the first FramePack without --f1.",
                    names=(name, "f1"),
                )
    if job[Output].latent_path or job[LoraStack].save_merged_model is not None:
        return
    given = job.values()
    for name, what in (
        ("text_encoder1", "to encode the prompt"),
        ("text_encoder2", "to encode the prompt"),
        ("image_encoder", "to show the model its start image"),
    ):
        if given[name] is None:
            raise OptionError(f"--{name} is required {what}.", hint=f"Add --{name} with the file.", names=(name,))


def files(job: Job) -> dict[str, str | None]:
    """The model files of this command by their options."""
    given = job.values()
    return {name: given[name] for name in MODEL_FILES if name in given}


def vae_arguments(job: Job) -> dict[str, Any]:
    """For vae.load."""
    vae = job[FramePackVae]
    return {"tile_pixels": vae.vae_spatial_tile_sample_min_size or (TILE_PIXELS if vae.vae_tiling else None)}


def text_arguments(job: Job) -> dict[str, Any]:
    """For text.load."""
    text = job[FramePackText]
    found: dict[str, Any] = {"fp8": text.fp8_llm, "tokenizer": (text.tokenizer1, text.tokenizer2)}
    if FramePackTextGeneration in job:
        found["system_prompt"] = job[FramePackTextGeneration].custom_system_prompt
    return found


def dit_arguments(job: Job) -> dict[str, Any]:
    """For model.load."""
    return {"task": "f1" if job[FramePack].f1 else "i2v"}


def latent_settings(job: Job) -> dict[str, Any]:
    """For vae.training_samples: whose history is cached."""
    return {"f1": job[FramePack].f1}


def takes_controls(job: Job) -> bool:
    """Sections have no controls."""
    return False


def conditioning_arguments(job: Job) -> dict[str, Any]:
    """For model.cond_from_batch and model.check_cache."""
    return {"guidance_scale": job[Timesteps].guidance_scale}


def decode_arguments(job: Job) -> dict[str, Any]:
    """For vae.decode_frames."""
    window = job[FramePackWindow]
    return {"window": window.latent_window_size, "bulk": window.bulk_decode}


def trim_tail_frames(job: Job) -> int:
    """FramePack's videos are whole."""
    return 0


def generation_defaults(job: Job, line: Any) -> Defaults:
    """What FramePack was made for; the length is that of the sections that are wanted, or one frame."""
    if line.one_frame or job[FramePackSingle].one_frame_inference:
        return Defaults(video_length=1)
    return Defaults(video_length=_sections(job, line) * job[FramePackWindow].latent_window_size * TIME_STRIDE + 1)


def request_settings(job: Job, line: Any) -> dict[str, Any]:
    """What a video starts from and how its sections are made. OptionError for what FramePack cannot do."""
    _refuse_pending(line)
    inputs, guidance, f1 = job[FramePackInputs], job[FramePackGuidance], job[FramePack].f1
    end, paddings = line.end_image_path or inputs.end_image_path, job[FramePackLength].latent_paddings
    if f1 and line.end_image_path:
        raise OptionError(
            f"{line.where}: F1 goes forward in time and takes no end image.",
            hint="Leave out --ei, or use the first FramePack without --f1.",
        )
    images = parse_sections(line.image_path or inputs.image_path, role="--image_path")
    threshold = guidance.rope_scaling_timestep_threshold
    solver = job[Prompting].sample_solver
    embedded = line.guidance_scale
    single = _one_frame_settings(job, line)
    return {
        **single,
        "f1": f1,
        "video_sections": _sections(job, line) if single["one_frame"] is None else None,
        "latent_window_size": job[FramePackWindow].latent_window_size,
        "latent_paddings": parse_paddings(paddings) if paddings else (),
        "image_path": tuple((index, Path(path)) for index, path in sorted(images.items())),
        "end_image_path": None if end is None else Path(end),
        "embedded_cfg_scale": guidance.embedded_cfg_scale if embedded is None else embedded,
        "guidance_rescale": guidance.guidance_rescale,
        "rope_scaling": None if threshold is None else (guidance.rope_scaling_factor, float(threshold)),
        "solver": SECTION_SOLVER if solver == "unipc" else solver,
    }


def _one_frame_settings(job: Job, line: Any) -> dict[str, Any]:
    """What a single image is made from; "one_frame" is None for a video."""
    flags, window = job[FramePackSingle], job[FramePackWindow].latent_window_size
    places = line.one_frame or flags.one_frame_inference
    controls = tuple(map(Path, line.control_image_path or flags.control_image_path))
    masks = tuple(map(Path, line.control_image_mask_path or flags.control_image_mask_path))
    if places is None and (controls or masks):
        raise OptionError(
            f"{line.where}: control images are for single frames.",
            hint="Add --one_frame_inference default, or leave out --control_image_path.",
        )
    if len(masks) > len(controls):
        raise OptionError(
            f"{line.where}: {len(masks)} masks for {len(controls)} control images.",
            hint="Give --control_image_mask_path at most once for each --control_image_path.",
        )
    if places is not None:
        parse_one_frame(places, window=window).layout(max(1, len(controls)), window=window)
    return {
        "one_frame": places,
        "one_frame_auto_resize": flags.one_frame_auto_resize,
        "control_image_path": controls,
        "control_image_mask_path": masks,
    }


_LINE_PENDING = {
    "magcache_retention_ratio": MAGCACHE,
    "magcache_threshold": MAGCACHE,
    "magcache_k": MAGCACHE,
    "control_video_path": "control videos, which FramePack does not know",
}


def _refuse_pending(line: Any) -> None:
    for name, why in _LINE_PENDING.items():
        if getattr(line, name) not in (None, ()):
            raise OptionError(f"{line.where}: {name} is not available ({why}).", hint="Leave it out of the line.")


def _sections(job: Job, line: Any) -> int:
    """How many sections are made: what the line says comes before what the flags say."""
    length, window = job[FramePackLength], job[FramePackWindow].latent_window_size
    if line.video_sections is not None or line.video_seconds is not None:
        seconds = length.video_seconds if line.video_seconds is None else line.video_seconds
        return sections_wanted(seconds=seconds, sections=line.video_sections, window=window)
    if line.frame_count is not None:
        return _sections_of(line.frame_count, window, f"{line.where}: frame_count")
    if job[Prompting].video_length is not None:
        return _sections_of(job[Prompting].video_length, window, "--video_length")
    return sections_wanted(seconds=length.video_seconds, sections=length.video_sections, window=window)


def _sections_of(frames: int, window: int, flag: str) -> int:
    """The sections of a video of so many frames, which must be whole."""
    step = TIME_STRIDE * window
    count, rest = divmod(frames - 1, step)
    if count < 1 or rest:
        near = max(count, 1)
        raise OptionError(
            f"{flag}: FramePack makes a start frame and sections of {step} frames, so {frames} is not possible.",
            hint=f"Use {near * step + 1} or {(near + 1) * step + 1}, or --video_sections or --video_seconds.",
            names=("video_length",),
        )
    return count
