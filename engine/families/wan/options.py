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
from .image_options import WanImageCaching, WanImageTraining, WanInputs, settings_of
from .variants import DEFAULT_TASK, TASKS, VARIANTS, TaskDefaults, task_defaults

if TYPE_CHECKING:
    from ...contract.job import Job

TITLE = "Wan 2.1"
ARCHITECTURE = "wan"
ARCHITECTURE_FULL = "wan"
NATIVE_FPS = 16
LATENT_SCALE = 1.0
NETWORK_MODULE = "networks.lora_wan"
MODELSPEC_ARCHITECTURE = "wan2.1"
MODELSPEC_IMPLEMENTATION = "https://github.com/Wan-Video/Wan2.1"
# The files of the folder that Wan-AI publishes; the DiT is the folder itself, in shards.
OFFICIAL_FILES = {
    "dit": "",
    "vae": "Wan2.1_VAE.pth",
    "t5": "models_t5_umt5-xxl-enc-bf16.pth",
    "clip": "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
}
TEXT_FILES = ("t5",)
IMAGE_FILES = ("clip",)
PROMPT_LETTERS: dict[str, str] = {}

_EXPERTS = "Wan 2.2 with its two experts"
_GUIDANCE = "skipping guidance and layer guidance"

# What Wan cannot do yet: delete a row when the work is done. A key is an option, or `option=choice`.
PENDING = {
    "task=t2v-A14B": _EXPERTS,
    "task=i2v-A14B": _EXPERTS,
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

EXAMPLES = {
    "cache-latents": "--dataset_config dataset.toml --vae wan_2.1_vae.safetensors",
    "cache-text": "--dataset_config dataset.toml --t5 models_t5_umt5-xxl-enc-bf16.pth",
    "train": "--dataset_config dataset.toml --dit wan2.1_t2v_1.3B_bf16.safetensors --task t2v-1.3B "
    "--learning_rate 2e-4 --network_dim 32 --gradient_checkpointing",
    "generate": "--dit wan2.1_t2v_1.3B_bf16.safetensors --vae wan_2.1_vae.safetensors "
    '--t5 models_t5_umt5-xxl-enc-bf16.pth --task t2v-1.3B --prompt "a cat" --save_path videos',
}


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


def files(job: Job) -> dict[str, str | None]:
    """The model files of this command by their options, with what `--ckpt_dir` has for them."""
    given: dict[str, str | None] = {}
    if Models in job:
        given["vae"] = job[Models].vae
    if GenerationModels in job:
        given["dit"] = job[GenerationModels].dit
    if WanText in job:
        given["t5"] = job[WanText].t5
    for section in (WanImageCaching, WanInputs):
        if section in job:
            given["clip"] = job[section].clip
    folder = job[WanCheckpoints].ckpt_dir if WanCheckpoints in job else None
    if folder is None:
        return given
    return {name: path or "/".join(filter(None, (folder, OFFICIAL_FILES[name]))) for name, path in given.items()}


def vae_arguments(job: Job) -> dict[str, Any]:
    """For vae.load."""
    return {"cache_on_cpu": job[WanVae].vae_cache_cpu}


def text_arguments(job: Job) -> dict[str, Any]:
    """For text.load."""
    return {"fp8": job[WanText].fp8_t5, "tokenizer": job[WanText].tokenizer}


def dit_arguments(job: Job) -> dict[str, Any]:
    """For model.load."""
    return {"task": job[Wan].task}


def latent_settings(job: Job) -> dict[str, Any]:
    """For vae.training_samples: which images are cached with a clip. Those that are not asked for are left out."""
    images = job[WanImageCaching]
    asked = {
        "i2v": (images.i2v or images.clip is not None) and not (images.flf2v or images.one_frame),
        "flf2v": images.flf2v,
        "one_frame": images.one_frame,
    }
    return {name: True for name, wanted in asked.items() if wanted}


def takes_controls(job: Job) -> bool:
    """A dataset that has controls has them for Fun-Control, or for one-frame training."""
    return True


def conditioning_arguments(job: Job) -> dict[str, Any]:
    """For model.cond_from_batch and model.check_cache."""
    return {"task": job[Wan].task}


def decode_arguments(job: Job) -> dict[str, Any]:
    """For vae.decode_frames."""
    return {}


def trim_tail_frames(job: Job) -> int:
    """How many frames are left out at the end of a video."""
    return job[WanInputs].trim_tail_frames


def generation_defaults(job: Job, line: Any) -> TaskDefaults:
    """What the job's task was made for; one-frame inference makes one frame."""
    height, width = job[Prompting].video_size
    found = task_defaults(job[Wan].task, video_size=(line.height or height, line.width or width))
    if line.one_frame or job[WanInputs].one_frame_inference:
        return dataclasses.replace(found, video_length=1)
    return found


def request_settings(job: Job, line: Any) -> dict[str, Any]:
    """What a video starts from (image_options.py). Raises OptionError for what the task cannot do."""
    return settings_of(job[WanInputs], line, task=job[Wan].task, has_clip=bool(files(job)["clip"]))
