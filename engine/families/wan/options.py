"""Wan's variants, own options and own defaults. Standard library only: ComfyUI and `--help` read this file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...contract.errors import OptionError
from ...contract.options import (
    Attention,
    AttentionMode,
    Caching,
    GenerationMemory,
    GenerationModels,
    GenerationPrecision,
    GuidanceSteps,
    LatentCaching,
    LoraStack,
    Models,
    Network,
    Output,
    Prompting,
    StepCaching,
    TrainingMemory,
    TrainingModels,
    TrainingPrecision,
)
from ...contract.rules import generates, need_models
from ...contract.schema import Section, opt, redefault, require
from ...parts.step_caching import rows_kept
from ...parts.workload import VaeWork, Work, video_latents
from ..values import Expert
from . import expert_options
from .expert_options import WanExperts, WanExpertsGeneration, WanExpertsTraining
from .image_options import WanImageCaching, WanImageTraining, WanInputs, settings_of
from .one_frame import USUAL_PLACES
from .variants import DEFAULT_TASK, SPACE_STRIDE, TASKS, TIME_STRIDE, VARIANTS, TaskDefaults, task_defaults

if TYPE_CHECKING:
    from ...contract.job import Job
    from .detect import WanConfig

TITLE = "Wan 2.1"
NODE_NAME = "Wan21"  # in the ids of its ComfyUI nodes, for ever
ARCHITECTURE = "wan"
ARCHITECTURE_FULL = "wan"
NATIVE_FPS = 16
LATENT_SCALE = 1.0
NETWORK_MODULE = "networks.lora_wan"
LORA_FORMAT = "default"
SIZE_STEP = 2 * SPACE_STRIDE  # pixels: the DiT takes patches of 2 x 2 latents
MODELSPEC_ARCHITECTURE = "wan2.1"
MODELSPEC_IMPLEMENTATION = "https://github.com/Wan-Video/Wan2.1"
# The files of the folder that Wan-AI publishes. The DiT is the folder itself, in shards; of two experts, a folder each.
OFFICIAL_FILES = {
    "vae": "Wan2.1_VAE.pth",
    "t5": "models_t5_umt5-xxl-enc-bf16.pth",
    "clip": "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
}
TEXT_FILES = ("t5",)
IMAGE_FILES = ("clip",)
PROMPT_LETTERS: dict[str, str] = {}
LIGHTER: dict[str, tuple[dict[str, Any], ...]] = {"text": ({"fp8_t5": True},), "vae": ({"vae_cache_cpu": True},)}


@dataclass(frozen=True, kw_only=True)
class Wan(Section, title="Wan"):
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


# The family's part of each command. A subclass takes the place of the shared section it is made from.
SECTIONS: dict[str, tuple[type[Section], ...]] = {
    "cache-latents": (Models, WanVae, LatentCaching, WanImageCaching),
    "cache-text": (WanTextCaching, Caching),
    "train": (
        Wan, TrainingModels, WanVae, WanText, TrainingPrecision, TrainingMemory, Attention, WanNetwork,
        WanImageTraining, WanExpertsTraining,
    ),
    "generate": (
        Wan, GenerationModels, WanVae, WanText, WanCheckpoints, GenerationPrecision, GenerationMemory, AttentionMode,
        Prompting, LoraStack, WanOutput, WanInputs, WanExpertsGeneration, GuidanceSteps,
        StepCaching,
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
    if WanExperts in job:
        expert_options.check_experts(job, task=job[Wan].task, has_folder=_folder(job) is not None)
    if job.command.verb == "train":
        _check_trains(job[Wan].task)
    if job.command.verb != "generate":
        return
    task, length = job[Wan].task, job[Prompting].video_length
    if VARIANTS[task].video_length == 1 and length not in (None, 1):
        raise OptionError(
            f"--task {task} makes single images, but --video_length is {length}.",
            hint="Leave out --video_length, or choose a t2v task.",
            names=("task", "video_length"),
        )
    if not generates(job) or job[WanCheckpoints].ckpt_dir is not None:
        return
    need_models(job)
    if job[WanText].t5 is None:
        raise OptionError(
            "--t5 is required to encode the prompt.", hint="Add --t5 with the UMT5-XXL file.", names=("t5",)
        )


def _check_trains(task: str) -> None:
    if not VARIANTS[task].trains:
        other = task.replace("vace", "t2v") if VARIANTS[task].takes_context else "i2v-14B"
        raise OptionError(
            f"--task {task} generates only: caches have no place for what its model is conditioned on.",
            hint=f"Train with --task {other} on a model of the same size: --task {task} takes that LoRA.",
            names=("task",),
        )


def files(job: Job) -> dict[str, str | None]:
    """The model files of this command by their options, with what `--ckpt_dir` has for them."""
    given: dict[str, str | None] = {}
    if Models in job:
        given["vae"] = job[Models].vae
    if GenerationModels in job:
        given["dit"] = job[GenerationModels].dit
    if WanExperts in job:
        given["dit_high_noise"] = job[WanExperts].dit_high_noise
    if WanText in job:
        given["t5"] = job[WanText].t5
    for section in (WanImageCaching, WanInputs):
        if section in job:
            given["clip"] = job[section].clip
    folder = _folder(job)
    if folder is None:
        return given
    return {name: path or _official_file(folder, name, job[Wan].task) for name, path in given.items()}


def _folder(job: Job) -> str | None:
    return job[WanCheckpoints].ckpt_dir if WanCheckpoints in job else None


def _official_file(folder: str, name: str, task: str) -> str | None:
    """What the published folder of this task has for an option."""
    two = VARIANTS[task].boundary is not None
    if name == "dit":
        return f"{folder}/low_noise_model" if two else folder
    if name == "dit_high_noise":
        return f"{folder}/high_noise_model" if two else None
    if name == "clip" and not VARIANTS[task].image_encoder:
        return None
    return f"{folder}/{OFFICIAL_FILES[name]}"


def further_experts(job: Job) -> tuple[Expert, ...]:
    """The expert for high noise, where there is one."""
    return expert_options.further_experts(job, task=job[Wan].task, dit=files(job)["dit_high_noise"])


def notes(job: Job) -> tuple[str, ...]:
    """What the job may have forgotten."""
    return expert_options.notes(job, task=job[Wan].task, dit=files(job)["dit_high_noise"])


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


def cut_clip(frames: int, *, window: int, i2v: bool = False, flf2v: bool = False, one_frame: bool = False) -> None:
    """A clip of any length is one sample."""


def takes_controls(job: Job) -> bool:
    """A dataset that has controls has them for Fun-Control, or for one-frame training."""
    return True


def conditioning_arguments(job: Job) -> dict[str, Any]:
    """For model.cond_from_batch and model.check_cache."""
    return {"task": job[Wan].task}


def decode_arguments(job: Job) -> dict[str, Any]:
    """For vae.decode_frames."""
    return {}


def latent_size(job: Job, *, width: int, height: int, frames: int) -> tuple[int, int, int]:
    """(T, H, W) of what the DiT works on at once: the whole video."""
    return video_latents(width=width, height=height, frames=frames)


def dit_work(job: Job, config: WanConfig, latent_size: tuple[int, int, int]) -> Work:
    """A reference image is one latent frame more; text is padded to its full length. Beside the blocks of a VACE model
    wait the control's tokens, and a hint."""
    frames, height, width = latent_size
    frames += 1 if config.has_ref_conv else 0
    frames += len(job[WanInputs].src_ref_images) if WanInputs in job else 0
    return Work(
        dim=config.dim,
        tokens=frames * (height // config.patch_size[1]) * (width // config.patch_size[2]),
        text_tokens=config.text_len,
        image_tokens=config.image_tokens or 0,
        runs=config.runs,
        waiting=(2 if config.vace_dim is not None else 0) + _rows_kept(job),
    )


def _rows_kept(job: Job) -> int:
    """Of step caches. TeaCache's looks at the time alone, and keeps no rows for it."""
    if StepCaching not in job:
        return 0
    method = job[StepCaching].step_cache
    scales = [job[Prompting].guidance_scale, *(expert.guidance for expert in further_experts(job))]
    predictions = 1 + any(scale != 1 for scale in scales) + (job[GuidanceSteps].slg_layers is not None)
    return rows_kept("magcache" if method == "teacache" else method, predictions=predictions)


def vae_work(job: Job, *, decoding: bool) -> VaeWork:
    """Whole pictures, four frames at a time, both ways."""
    return VaeWork(kind="chunks", past_on_cpu=job[WanVae].vae_cache_cpu)


def trim_tail_frames(job: Job) -> int:
    """How many frames are left out at the end of a video."""
    return job[WanInputs].trim_tail_frames


def frame_step(job: Job) -> int:
    """After the first frame, each latent frame is four."""
    return TIME_STRIDE


def sample_options(job: Job) -> dict[str, Any]:
    """With --one_frame, samples are single frames."""
    return {"one_frame_inference": USUAL_PLACES} if job[WanImageTraining].one_frame else {}


def resolved(job: Job) -> dict[str, Any]:
    """What the task decides. A line of a prompt file has a say in length and shift, so these stay open for it."""
    boundary = {"timestep_boundary": VARIANTS[job[Wan].task].boundary} if WanExperts in job else {}
    if job.command.verb != "generate":
        return boundary
    found = _defaults(job, job[Prompting].video_size, one_frame=False)
    names = ["infer_steps", "guidance_scale", "guidance_scale_high_noise", "negative_prompt"]
    if job[Prompting].prompt is not None:
        names += ["video_length", "flow_shift"]
    return {**boundary, **{name: getattr(found, name) for name in names}}


def generation_defaults(job: Job, line: Any) -> TaskDefaults:
    """What the job's task was made for; one-frame inference makes one frame."""
    height, width = job[Prompting].video_size
    return _defaults(job, (line.height or height, line.width or width), one_frame=bool(line.one_frame))


def _defaults(job: Job, video_size: tuple[int, int], *, one_frame: bool) -> TaskDefaults:
    found = task_defaults(job[Wan].task, video_size=video_size)
    if one_frame or job[WanInputs].one_frame_inference:
        return dataclasses.replace(found, video_length=1)
    return found


def request_settings(job: Job, line: Any) -> dict[str, Any]:
    """What a video starts from (image_options.py). Raises OptionError for what the task cannot do."""
    settings = settings_of(job[WanInputs], line, task=job[Wan].task, has_clip=bool(files(job)["clip"]))
    asked = job[StepCaching].asked
    settings |= {} if asked is None else {"step_cache": asked}
    for expert in further_experts(job):
        settings |= {"guidance_scale_high_noise": expert.guidance, "timestep_boundary": expert.starts_at}
    return settings
