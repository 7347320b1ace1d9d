"""Wan's variants, own options and own defaults. Standard library only: ComfyUI and `--help` read this file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

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
    Network,
    Output,
    Prompting,
    TrainingMemory,
    TrainingModels,
    TrainingPrecision,
)
from ...contract.schema import Section, opt, redefault, require

if TYPE_CHECKING:
    from ...contract.job import Job

TITLE = "Wan 2.1"
ARCHITECTURE = "wan"
ARCHITECTURE_FULL = "wan"
NATIVE_FPS = 16
DEFAULT_TASK = "t2v-14B"
NETWORK_MODULE = "networks.lora_wan"
MODELSPEC_ARCHITECTURE = "wan2.1"
MODELSPEC_IMPLEMENTATION = "https://github.com/Wan-Video/Wan2.1"
NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"
    "杂乱的背景，三条腿，背景人很多，倒着走"
)
NEGATIVE_PROMPT_FLF2V = "镜头切换，" + NEGATIVE_PROMPT

# The files of the folder that Wan-AI publishes; the DiT is the folder itself, in shards.
OFFICIAL_FILES = {"dit": "", "vae": "Wan2.1_VAE.pth", "text_encoder": "models_t5_umt5-xxl-enc-bf16.pth"}

_SIZES_480 = ((480, 832), (832, 480))
_SIZES_720 = ((720, 1280), (1280, 720), *_SIZES_480)


@dataclass(frozen=True, kw_only=True)
class TaskDefaults:
    """What a task was made for. Sizes are (height, width); `boundary` is the sigma where two experts meet."""

    in_channels: int
    image_encoder: bool
    infer_steps: int
    flow_shift: float
    guidance_scale: float
    guidance_scale_high_noise: float | None = None
    boundary: float | None = None
    video_length: int = 81
    video_sizes: tuple[tuple[int, int], ...] = _SIZES_720
    negative_prompt: str = NEGATIVE_PROMPT


def _task(in_channels: int, steps: int, *, image: bool = False, **other: Any) -> TaskDefaults:
    values = {"flow_shift": 5.0, "guidance_scale": 5.0, **other}
    return TaskDefaults(in_channels=in_channels, image_encoder=image, infer_steps=steps, **values)


VARIANTS: dict[str, TaskDefaults] = {
    "t2v-1.3B": _task(16, 50, video_sizes=_SIZES_480),
    "t2v-14B": _task(16, 50),
    "t2i-14B": _task(16, 50, video_length=1, video_sizes=(*_SIZES_720, (1024, 1024))),
    "i2v-14B": _task(36, 40, image=True),
    "flf2v-14B": _task(36, 40, image=True, negative_prompt=NEGATIVE_PROMPT_FLF2V),
    "t2v-1.3B-FC": _task(48, 50, image=True, video_sizes=_SIZES_480),
    "t2v-14B-FC": _task(48, 50, image=True),
    "i2v-14B-FC": _task(48, 40, image=True),
    "t2v-A14B": _task(
        16, 40, flow_shift=12.0, guidance_scale=3.0, guidance_scale_high_noise=4.0, boundary=0.875
    ),
    "i2v-A14B": _task(36, 40, guidance_scale=3.5, guidance_scale_high_noise=3.5, boundary=0.9),
}  # fmt: skip
TASKS = tuple(VARIANTS)

_IMAGE = "image-to-video"
_CONTROL = "Fun-Control"
_ONE_FRAME = "one-frame inference and training"
_EXPERTS = "Wan 2.2 with its two experts"
_GUIDANCE = "skipping guidance and layer guidance"

# What Wan cannot do yet: delete a row when the work is done. A key is an option, or `option=choice`.
PENDING = {
    "task=i2v-14B": _IMAGE,
    "task=flf2v-14B": "first-and-last-frame-to-video",
    "task=t2v-1.3B-FC": _CONTROL,
    "task=t2v-14B-FC": _CONTROL,
    "task=i2v-14B-FC": _CONTROL,
    "task=t2v-A14B": _EXPERTS,
    "task=i2v-A14B": _EXPERTS,
    "i2v": _IMAGE,
    "clip": _IMAGE,
    "image_path": _IMAGE,
    "end_image_path": _IMAGE,
    "video_path": "video-to-video",
    "control_path": _CONTROL,
    "one_frame": _ONE_FRAME,
    "one_frame_inference": _ONE_FRAME,
    "control_image_path": _ONE_FRAME,
    "control_image_mask_path": _ONE_FRAME,
    "dit_high_noise": _EXPERTS,
    "timestep_boundary": _EXPERTS,
    "offload_inactive_dit": _EXPERTS,
    "lazy_loading": _EXPERTS,
    "force_v2_1_time_embedding": _EXPERTS,
    "guidance_scale_high_noise": _EXPERTS,
    "lora_weight_high_noise": _EXPERTS,
    "lora_multiplier_high_noise": _EXPERTS,
    "cfg_skip_mode": _GUIDANCE,
    "cfg_apply_ratio": _GUIDANCE,
    "slg_layers": _GUIDANCE,
    "slg_scale": _GUIDANCE,
    "slg_start": _GUIDANCE,
    "slg_end": _GUIDANCE,
    "slg_mode": _GUIDANCE,
}


@dataclass(frozen=True, kw_only=True)
class Wan(Section, title="Wan", pending=PENDING):
    """Which Wan model it is."""

    task: str = opt(DEFAULT_TASK, "What the checkpoint was made for.", choices=TASKS)


@dataclass(frozen=True, kw_only=True)
class WanText(Section, title="Text encoder"):
    """The UMT5 text encoder."""

    t5: str | None = opt(
        None, "UMT5-XXL file: the original .pth, a transformers folder or ComfyUI's single file.",
        file_kind="text_encoder", metavar="FILE",
    )  # fmt: skip
    fp8_t5: bool = opt(False, "Keep the text encoder in fp8: half the memory.")
    tokenizer: str | None = opt(
        None, "Tokenizer file or folder. Default: looked for in the text encoder's file, beside it and in the local "
        "hub cache.", file_kind="tokenizer", advanced=True, metavar="PATH",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class WanTextCaching(WanText, title="Text encoder"):
    """The UMT5 text encoder."""

    t5: str = require(WanText, "t5")


@dataclass(frozen=True, kw_only=True)
class WanVae(Section, title="VAE"):
    """How the Wan VAE works through a clip."""

    vae_cache_cpu: bool = opt(False, "Keep the VAE's features between chunks in main memory: less GPU memory.")


@dataclass(frozen=True, kw_only=True)
class WanCheckpoints(Section, title="Checkpoint folder"):
    """All model files in the official folder layout."""

    ckpt_dir: str | None = opt(
        None, "Folder as downloaded from Wan-AI: DiT, VAE and text encoder are found in it; single paths win.",
        file_kind="folder", metavar="DIR",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class WanNetwork(Network, title="LoRA"):
    """Wan's LoRA sits in the attention and feed-forward layers of every block."""

    network_module: str = redefault(Network, "network_module", NETWORK_MODULE)


@dataclass(frozen=True, kw_only=True)
class WanOutput(Output, title="Output"):
    """Wan was trained on 16 frames a second."""

    fps: int = redefault(Output, "fps", NATIVE_FPS)


@dataclass(frozen=True, kw_only=True)
class WanImageCaching(Section, title="Images", late=True, pending=PENDING):
    """What image-to-video models need in the caches."""

    i2v: bool = opt(False, "Cache the first frame as the image that a clip starts from.", advanced=True)
    clip: str | None = opt(
        None, "CLIP vision file, for Wan 2.1 image-to-video; implies --i2v.", file_kind="clip_vision", advanced=True,
        metavar="FILE",
    )  # fmt: skip
    one_frame: bool = opt(False, "Cache for one-frame training.", advanced=True)


@dataclass(frozen=True, kw_only=True)
class WanImageTraining(Section, title="Images", late=True, pending=PENDING):
    """What samples of image-to-video models need."""

    clip: str | None = opt(
        None, "CLIP vision file, for samples of Wan 2.1 image-to-video.", file_kind="clip_vision", advanced=True,
        metavar="FILE",
    )  # fmt: skip
    one_frame: bool = opt(False, "Make samples as single frames.", advanced=True)


@dataclass(frozen=True, kw_only=True)
class WanInputs(Section, title="Images and control", late=True, pending=PENDING):
    """Pictures and videos that a generation starts from."""

    image_path: str | None = opt(None, "Image that the video starts from.", file_kind="image", metavar="FILE")
    end_image_path: str | None = opt(
        None, "Image that the video ends with.", file_kind="image", advanced=True, metavar="FILE"
    )
    clip: str | None = opt(
        None, "CLIP vision file, for Wan 2.1 image-to-video.", file_kind="clip_vision", metavar="FILE"
    )
    video_path: str | None = opt(None, "Video to start from.", file_kind="video", advanced=True, metavar="FILE")
    control_path: str | None = opt(
        None, "Control video, or a folder of images, for Fun-Control models.", file_kind="video", advanced=True,
        metavar="PATH",
    )  # fmt: skip
    one_frame_inference: str | None = opt(
        None, "Make one frame only, such as target_index=1,control_index=0;2.", advanced=True, metavar="SETTINGS"
    )
    control_image_path: tuple[str, ...] = opt(
        (), "Control images of one-frame inference.", file_kind="image", advanced=True, metavar="FILE"
    )
    control_image_mask_path: tuple[str, ...] = opt(
        (), "Masks of the control images.", file_kind="image", advanced=True, metavar="FILE"
    )
    trim_tail_frames: int = opt(
        0, "Leave out so many frames at the end of the video.", low=0, unit="frames", advanced=True
    )


@dataclass(frozen=True, kw_only=True)
class WanExperts(Section, title="Wan 2.2 experts", late=True, pending=PENDING):
    """The expert for high noise beside the one for low noise, which is --dit."""

    dit_high_noise: str | None = opt(
        None, "DiT file of the high noise expert.", file_kind="dit", advanced=True, metavar="FILE"
    )
    timestep_boundary: float | None = opt(
        None, "Noise level where the experts change, 0 to 1 (or 0 to 1000). Default: the task's.", low=0, high=1000,
        advanced=True,
    )  # fmt: skip
    offload_inactive_dit: bool = opt(False, "Keep the expert that is not in use in main memory.", advanced=True)
    force_v2_1_time_embedding: bool = opt(
        False, "Use Wan 2.1's single time embedding in a 2.2 model: less memory.", advanced=True
    )

    def __post_init__(self) -> None:
        if self.timestep_boundary is not None and self.timestep_boundary > 1:
            object.__setattr__(self, "timestep_boundary", self.timestep_boundary / 1000)


@dataclass(frozen=True, kw_only=True)
class WanExpertsGeneration(WanExperts, title="Wan 2.2 experts"):
    """The expert for high noise beside the one for low noise, which is --dit."""

    lazy_loading: bool = opt(False, "Load each expert only when it is reached.", advanced=True)
    guidance_scale_high_noise: float | None = opt(
        None, "Guidance of the high noise expert. Default: the task's.", low=0, advanced=True
    )
    lora_weight_high_noise: tuple[str, ...] = opt(
        (), "LoRA files for the high noise expert.", file_kind="lora", advanced=True, metavar="FILE"
    )
    lora_multiplier_high_noise: tuple[float, ...] = opt((), "Their strengths.", advanced=True, metavar="X")


@dataclass(frozen=True, kw_only=True)
class WanGuidance(Section, title="Guidance", late=True, pending=PENDING):
    """Guidance that is skipped in some steps, or made by skipping layers."""

    cfg_skip_mode: Literal["early", "late", "middle", "early_late", "alternate", "none"] = opt(
        "none", "In which steps guidance is left out.", advanced=True
    )
    cfg_apply_ratio: float | None = opt(None, "Share of the steps that have guidance.", low=0, high=1, advanced=True)
    slg_layers: str | None = opt(None, "Blocks that are skipped, such as 4,5,6.", advanced=True, metavar="N,N")
    slg_scale: float = opt(3.0, "Strength of skip layer guidance.", low=0, advanced=True)
    slg_start: float = opt(0.0, "Where it begins, as a share of the steps.", low=0, high=1, advanced=True)
    slg_end: float = opt(0.3, "Where it ends, as a share of the steps.", low=0, high=1, advanced=True)
    slg_mode: Literal["original", "uncond"] | None = opt(
        None, "original adds a third prediction; uncond takes the place of the unconditional one.", advanced=True
    )


# The family's part of each command. A subclass takes the place of the shared section it is made from.
SECTIONS: dict[str, tuple[type[Section], ...]] = {
    "cache-latents": (Models, WanVae, LatentCaching, WanImageCaching),
    "cache-text": (WanTextCaching, Caching),
    "train": (
        Wan, TrainingModels, WanVae, WanText, TrainingPrecision, TrainingMemory, Attention, WanNetwork,
        WanImageTraining, WanExperts,
    ),
    "generate": (
        Wan, GenerationModels, WanVae, WanText, WanCheckpoints, GenerationPrecision, GenerationMemory, AttentionMode,
        Prompting, LoraStack, WanOutput, WanInputs, WanExpertsGeneration, WanGuidance,
    ),
}  # fmt: skip

# musubi-tuner's scripts for this family.
SCRIPTS = {
    "wan_cache_latents": "cache-latents",
    "wan_cache_text_encoder_outputs": "cache-text",
    "wan_train_network": "train",
    "wan_generate_video": "generate",
}


def task_defaults(task: str, *, video_size: tuple[int, int] | None = None) -> TaskDefaults:
    """What steps, shift, guidance, length and negative prompt are when they are not given.

    `video_size` is (height, width). Source: the task tables of Wan 2.1 and 2.2; image-to-video at 480p has shift 3.
    """
    defaults = VARIANTS[task]
    if task.startswith("i2v") and defaults.boundary is None and video_size in _SIZES_480:
        return dataclasses.replace(defaults, flow_shift=3.0)
    return defaults


def rules(job: Job) -> None:
    """What Wan's options demand of each other. Raises OptionError."""
    if job.command.verb != "generate":
        return
    task, length = job[Wan].task, job[Prompting].video_length
    if VARIANTS[task].video_length == 1 and length not in (None, 1):
        raise OptionError(
            f"--task {task} makes single images, but --video_length is {length}.",
            hint="Leave out --video_length, or choose a t2v task.",
            names=("task", "video_length"),
        )
    encodes = not job[Output].latent_path and job[LoraStack].save_merged_model is None
    if encodes and job[WanText].t5 is None and job[WanCheckpoints].ckpt_dir is None:
        raise OptionError(
            "--t5 is required to encode the prompt.", hint="Add --t5 with the UMT5-XXL file.", names=("t5",)
        )


def model_files(job: Job) -> dict[str, str | None]:
    """The files that generation needs, "dit", "vae" and "text_encoder", with what `--ckpt_dir` has for them."""
    models, folder = job[GenerationModels], job[WanCheckpoints].ckpt_dir
    given = {"dit": models.dit, "vae": models.vae, "text_encoder": job[WanText].t5}
    if folder is None:
        return given
    return {name: given[name] or "/".join(filter(None, (folder, file))) for name, file in OFFICIAL_FILES.items()}


def trim_tail_frames(job: Job) -> int:
    """How many frames are left out at the end of a video."""
    return job[WanInputs].trim_tail_frames


def dit_arguments(job: Job) -> dict[str, Any]:
    """What `model.load` takes beyond what every family's does."""
    return {"task": job[Wan].task}


def vae_arguments(job: Job) -> dict[str, Any]:
    """What `vae.load` takes beyond what every family's does."""
    return {"cache_on_cpu": job[WanVae].vae_cache_cpu}


def text_arguments(job: Job) -> dict[str, Any]:
    """What `text.load` takes beyond what every family's does."""
    return {"fp8": job[WanText].fp8_t5, "tokenizer": job[WanText].tokenizer}


def text_encoder_file(job: Job) -> tuple[str, str | None]:
    """The flag that names the text encoder, and the file given with it."""
    return "--t5", job[WanText].t5


def generation_defaults(job: Job) -> TaskDefaults:
    """What the job's task was made for."""
    return task_defaults(job[Wan].task, video_size=job[Prompting].video_size)
