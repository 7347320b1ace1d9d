"""FramePack's own options and defaults. Standard library only: ComfyUI and `--help` read this file."""

from __future__ import annotations

import math
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
    Prompting,
    StepCaching,
    Timesteps,
    TrainingMemory,
    TrainingModels,
    TrainingPrecision,
)
from ...contract.rules import generates, need_models
from ...contract.schema import Section
from ...parts.hunyuan_options import LIGHTER as LIGHTER
from ...parts.hunyuan_options import TEXT_FILES as TEXT_FILES
from ...parts.hunyuan_options import TEXT_TOKENS, TextEncoders, TextEncodersCaching, VaeTiles
from ...parts.hunyuan_vae_public import SPACE_STRIDE, TIME_STRIDE
from ...parts.step_caching import rows_kept
from ...parts.workload import BlockRun, VaeWork, Work, video_latents
from . import sections, step_caches
from .flags import NATIVE_FPS as NATIVE_FPS
from .flags import NETWORK_MODULE as NETWORK_MODULE
from .flags import (
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
    FramePackTextGeneration,
    FramePackWindow,
)
from .sections import HISTORY, parse_one_frame, parse_paddings, parse_sections, sections_wanted
from .sections import cut_clip as cut_clip

if TYPE_CHECKING:
    from ...contract.job import Job
    from .detect import FramePackConfig

TITLE = "FramePack"
NODE_NAME = "FramePack"  # in the ids of its ComfyUI nodes, for ever
ARCHITECTURE = "fp"
ARCHITECTURE_FULL = "framepack"
LATENT_SCALE = 1.0  # cached latents are scaled already
LORA_FORMAT = "default"
SIZE_STEP = 2 * SPACE_STRIDE  # pixels: the DiT takes patches of 2 x 2 latents
MODELSPEC_ARCHITECTURE = "framepack"
MODELSPEC_IMPLEMENTATION = "https://github.com/lllyasviel/FramePack"
IMAGE_FILES = ("image_encoder",)
MODEL_FILES = ("dit", "vae", *TEXT_FILES, *IMAGE_FILES)
PROMPT_LETTERS = {
    "f": "video_seconds",
    "vs": "video_sections",
    "mcrr": "magcache_retention_ratio",
    "mct": "magcache_threshold",
    "mck": "magcache_k",
}
IMAGE_TOKENS = 729  # of SigLIP for one image
SECTION_SOLVER = "unipc-3"
"""What --sample_solver unipc means here: the UniPC that the model was published with."""

# The family's part of each command. A subclass takes the place of the shared section it is made from.
SECTIONS: dict[str, tuple[type[Section], ...]] = {
    "cache-latents": (FramePack, Models, VaeTiles, FramePackImageCaching, LatentCaching, FramePackOneFrameCaching),
    "cache-text": (TextEncodersCaching, Caching),
    "train": (
        FramePackWindow, TrainingModels, VaeTiles, TextEncoders, FramePackImage, TrainingPrecision,
        TrainingMemory, Attention, FramePackNetwork, FramePackOneFrame,
    ),
    "generate": (
        FramePackWindow, GenerationModels, VaeTiles, FramePackTextGeneration, FramePackImage, GenerationPrecision,
        GenerationMemory, AttentionMode, FramePackPrompting, FramePackLength, LoraStack, FramePackOutput,
        FramePackInputs, FramePackGuidance, FramePackSingle, FramePackMagCache, StepCaching,
    ),
}  # fmt: skip

# musubi-tuner's scripts for this family.
SCRIPTS = {
    "fpack_cache_latents": "cache-latents",
    "fpack_cache_text_encoder_outputs": "cache-text",
    "fpack_train_network": "train",
    "fpack_generate_video": "generate",
}
EXAMPLES = {
    "cache-latents": "--dataset_config dataset.toml --vae hunyuan_video_vae_bf16.safetensors "
    "--image_encoder sigclip_vision_patch14_384.safetensors",
    "cache-text": "--dataset_config dataset.toml --text_encoder1 llava_llama3_fp16.safetensors "
    "--text_encoder2 clip_l.safetensors",
    "train": "--dataset_config dataset.toml --dit FramePackI2V_HY_bf16.safetensors --timestep_sampling shift "
    "--discrete_flow_shift 3 --learning_rate 2e-4 --network_dim 32 --gradient_checkpointing --fp8_scaled",
    "generate": "--dit FramePackI2V_HY_bf16.safetensors --vae hunyuan_video_vae_bf16.safetensors "
    "--text_encoder1 llava_llama3_fp16.safetensors --text_encoder2 clip_l.safetensors "
    "--image_encoder sigclip_vision_patch14_384.safetensors --image_path start.png "
    '--prompt "the cat turns its head" --video_seconds 5 --save_path videos',
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
    step_caches.check(job[FramePackMagCache], job[StepCaching])
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
    if not generates(job):
        return
    need_models(job)
    given = job.values()
    for name, what in (
        ("text_encoder1", "to encode the prompt"),
        ("text_encoder2", "to encode the prompt"),
        ("image_encoder", "to show the model its start image"),
    ):
        if given[name] is None:
            raise OptionError(f"--{name} is required {what}.", hint=f"Add --{name} with the file.", names=(name,))


def resolved(job: Job) -> dict[str, Any]:
    """What FramePack was made for. The length follows from --video_seconds, the shift from the size."""
    made_for = Defaults(video_length=1)
    found = {name: getattr(made_for, name) for name in ("infer_steps", "guidance_scale", "negative_prompt")}
    single = job.command.verb == "generate" and job[FramePackSingle].one_frame_inference is not None
    return found | {"video_length": made_for.video_length} if single and job[Prompting].prompt is not None else found


def files(job: Job) -> dict[str, str | None]:
    """The model files of this command by their options."""
    given = job.values()
    return {name: given[name] for name in MODEL_FILES if name in given}


def vae_arguments(job: Job) -> dict[str, Any]:
    """For vae.load."""
    return {"tile_pixels": job[VaeTiles].tile}


def text_arguments(job: Job) -> dict[str, Any]:
    """For text.load."""
    text = job[TextEncoders]
    found: dict[str, Any] = {"fp8": text.fp8_llm, "tokenizer": (text.tokenizer1, text.tokenizer2)}
    if FramePackTextGeneration in job:
        found["system_prompt"] = job[FramePackTextGeneration].custom_system_prompt
    return found


def dit_arguments(job: Job) -> dict[str, Any]:
    """For model.load."""
    return {"task": "f1" if job[FramePack].f1 else "i2v"}


def latent_settings(job: Job) -> dict[str, Any]:
    """For vae.training_samples: whose history is cached, or what stands beside a single image."""
    asked = job[FramePackOneFrameCaching]
    if not asked.one_frame:
        return {"f1": job[FramePack].f1}
    return {"one_frame": True, "no_2x": asked.one_frame_no_2x, "no_4x": asked.one_frame_no_4x}


def takes_controls(job: Job) -> bool:
    """Sections have no controls, single images do."""
    return job[FramePackOneFrameCaching].one_frame


def conditioning_arguments(job: Job) -> dict[str, Any]:
    """For model.cond_from_batch and model.check_cache."""
    return {"guidance_scale": job[Timesteps].guidance_scale}


def decode_arguments(job: Job) -> dict[str, Any]:
    """For vae.decode_frames."""
    window = job[FramePackWindow]
    return {"window": window.latent_window_size, "bulk": window.bulk_decode}


def latent_size(job: Job, *, width: int, height: int, frames: int) -> tuple[int, int, int]:
    """(T, H, W) of what the DiT works on at once: a section, however long the video; or a single frame."""
    _, high, wide = video_latents(width=width, height=height, frames=frames)
    window = job[FramePackWindow].latent_window_size if FramePackWindow in job else sections.WINDOW
    return (window if frames > 1 else 1), high, wide


def dit_work(job: Job, config: FramePackConfig, latent_size: tuple[int, int, int]) -> Work:
    """Beside the section its history: the start frame and the newest one, then two and sixteen frames with patches
    twice and four times as large; and the start image's and the text's tokens."""
    frames, height, width = latent_size

    def tokens(count: int, scale: int) -> int:
        steps = (step * scale for step in config.patch_size)
        return math.prod(-(-size // step) for size, step in zip((count, height, width), steps, strict=True))

    newest, middle, oldest = HISTORY
    seen = IMAGE_TOKENS if config.image_dim else 0
    apart = {"ffn_dim": config.ffn_dim, "joined": False}
    double = BlockRun(kind="double", prefix="transformer_blocks", count=config.num_layers, **apart)
    single = BlockRun(kind="single", prefix="single_transformer_blocks", count=config.num_single_layers, **apart)
    return Work(
        dim=config.dim,
        tokens=tokens(frames + 1 + newest, 1) + tokens(middle, 2) + tokens(oldest, 4) + seen + TEXT_TOKENS,
        runs=(double, single),
        waiting=_rows_kept(job),
    )


def _rows_kept(job: Job) -> int:
    """Of step caches, by either spelling."""
    if StepCaching not in job:
        return 0
    flags = job[FramePackMagCache]
    by_flags = flags.magcache_mag_ratios is not None or flags.magcache_calibration
    method = "magcache" if by_flags else job[StepCaching].step_cache
    return rows_kept(method, predictions=1 if job[Prompting].guidance_scale in (None, 1) else 2)


def vae_work(job: Job, *, decoding: bool) -> VaeWork:
    """Tiles in space only where they are asked for; a section is decoded together with its neighbour."""
    window = job[FramePackWindow] if FramePackWindow in job else None
    sections_at_once = decoding and window is not None and not window.bulk_decode
    frames = 2 * TIME_STRIDE * window.latent_window_size + 1 if sections_at_once else 65
    return VaeWork(kind="tiles", tile=job[VaeTiles].tile, frames=frames)


def trim_tail_frames(job: Job) -> int:
    """FramePack's videos are whole."""
    return 0


def frame_step(job: Job) -> int:
    """After the start frame, videos are made in sections."""
    return TIME_STRIDE * job[FramePackWindow].latent_window_size


def sample_options(job: Job) -> dict[str, Any]:
    """The shortest video is one section, the size decides the shift; with --one_frame, samples are single frames."""
    length = {"one_frame_inference": "default"} if job[FramePackOneFrame].one_frame else {"video_sections": 1}
    return {"video_length": None, "flow_shift": None, **length}


def generation_defaults(job: Job, line: Any) -> Defaults:
    """What FramePack was made for; the length is that of the sections that are wanted, or one frame."""
    if line.one_frame or job[FramePackSingle].one_frame_inference:
        return Defaults(video_length=1)
    return Defaults(video_length=_sections(job, line) * job[FramePackWindow].latent_window_size * TIME_STRIDE + 1)


def request_settings(job: Job, line: Any) -> dict[str, Any]:
    """What a video starts from and how its sections are made. OptionError for what FramePack cannot do."""
    if line.control_video_path is not None:
        raise OptionError(f"{line.where}: FramePack knows no control videos.", hint="Leave --cn out of the line.")
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
        "step_cache": step_caches.asked_for(job[FramePackMagCache], job[StepCaching], line),
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
