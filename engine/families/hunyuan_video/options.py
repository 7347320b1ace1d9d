"""HunyuanVideo's own options and defaults, SkyReels V1's too. Standard library only: ComfyUI and `--help` read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
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
    StepCaching,
    Timesteps,
    TrainingMemory,
    TrainingModels,
    TrainingPrecision,
)
from ...contract.options.accepted import ACCEPTED
from ...contract.options.models import Dtype
from ...contract.rules import generates, need_models
from ...contract.schema import Section, opt, redefault, require
from ...parts.hunyuan_options import LIGHTER as LIGHTER
from ...parts.hunyuan_options import TEXT_FILES as TEXT_FILES
from ...parts.hunyuan_options import TEXT_TOKENS, TILE, TextEncoders, VaeTiles
from ...parts.hunyuan_vae_public import SPACE_STRIDE, TIME_STRIDE
from ...parts.step_caching import rows_kept
from ...parts.workload import BlockRun, VaeWork, Work, video_latents

if TYPE_CHECKING:
    from ...contract.job import Job
    from .detect import HunyuanVideoConfig

TITLE = "HunyuanVideo"
NODE_NAME = "HunyuanVideo"  # in the ids of its ComfyUI nodes, for ever
ARCHITECTURE = "hv"
ARCHITECTURE_FULL = "hunyuan_video"
NATIVE_FPS = 24
LATENT_SCALE = 0.476986
NETWORK_MODULE = "networks.lora"
LORA_FORMAT = "other"  # under the others ComfyUI leaves out the 80 layers of the double blocks' MLPs
SIZE_STEP = 2 * SPACE_STRIDE  # pixels: the DiT takes patches of 2 x 2 latents
MODELSPEC_ARCHITECTURE = "hunyuan-video"
MODELSPEC_IMPLEMENTATION = "https://github.com/Tencent/HunyuanVideo"
IMAGE_FILES = ()
PROMPT_LETTERS = {"g": "guidance_scale"}  # embedded guidance, as in musubi-tuner's sample prompts; --l is the other

IMAGE_CHANNELS = 32  # of a DiT that takes an image's latents beside the noisy ones
TASKS = {16: "t2v", IMAGE_CHANNELS: "skyreels-i2v"}


@dataclass(frozen=True, kw_only=True)
class HunyuanDit(Section, title="HunyuanVideo"):
    """Which DiT it is; its sizes are read from the file."""

    dit_in_channels: int | None = opt(
        None, "Input channels: 32 for SkyReels V1 image-to-video, 16 for all others. Default: the file's in "
        "generation, 16 in training.", advanced=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.dit_in_channels not in (None, *TASKS):
            raise OptionError(
                f"--dit_in_channels {self.dit_in_channels}: HunyuanVideo DiTs take {' or '.join(map(str, TASKS))}.",
                hint="Use 32 for SkyReels V1 image-to-video, else leave it out.",
                names=("dit_in_channels",),
            )


@dataclass(frozen=True, kw_only=True)
class HunyuanTrainedDit(HunyuanDit, title="HunyuanVideo"):
    """Which DiT it is; its sizes are read from the file."""

    dit_dtype: Dtype | None = opt(None, "Number format of the DiT's weights. Default: the file's.", advanced=True)


@dataclass(frozen=True, kw_only=True)
class HunyuanText(TextEncoders, title="Text encoders"):
    """LLaVA-LLaMA-3 for the details, CLIP-L for the gist."""

    text_encoder_dtype: Dtype | None = opt(
        None, "Number format in which the text encoders compute. Default: float16.", advanced=True
    )


@dataclass(frozen=True, kw_only=True)
class HunyuanTextCaching(HunyuanText, title="Text encoders"):
    """LLaVA-LLaMA-3 for the details, CLIP-L for the gist."""

    text_encoder1: str = require(HunyuanText, "text_encoder1")
    text_encoder2: str = require(HunyuanText, "text_encoder2")


@dataclass(frozen=True, kw_only=True)
class HunyuanNetwork(Network, title="LoRA"):
    """HunyuanVideo's LoRA sits in all linear layers of every block but the modulation."""

    network_module: str = redefault(Network, "network_module", NETWORK_MODULE)


@dataclass(frozen=True, kw_only=True)
class HunyuanOutput(Output, title="Output"):
    """HunyuanVideo was trained on 24 frames a second."""

    fps: int = redefault(Output, "fps", NATIVE_FPS)


@dataclass(frozen=True, kw_only=True)
class HunyuanPrompting(Prompting, title="What to generate"):
    """Prompt, size, length and the way through the noise."""

    video_length: int = redefault(Prompting, "video_length", 129)
    infer_steps: int = redefault(Prompting, "infer_steps", 50)
    guidance_scale: float = redefault(Prompting, "guidance_scale", 1.0)
    flow_shift: float = redefault(Prompting, "flow_shift", 7.0)
    sample_solver: Literal["unipc", "dpm++", "euler", "vanilla"] = redefault(Prompting, "sample_solver", "euler")


@dataclass(frozen=True, kw_only=True)
class HunyuanLoraStack(LoraStack, title="LoRA"):
    """LoRA files that are merged into the model."""

    exclude_single_blocks: bool = opt(False, "Merge into the double-stream blocks only.", advanced=True)

    @property
    def excluded(self) -> tuple[str, ...]:
        """`exclude_patterns`, one for each file, with the single-stream blocks where these are left out."""
        if not self.exclude_single_blocks:
            return self.exclude_patterns
        given = (*self.exclude_patterns, *[""] * len(self.lora_weight))[: len(self.lora_weight)]
        return tuple(f"(?:{pattern})|{SINGLE_BLOCKS}" if pattern else SINGLE_BLOCKS for pattern in given)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "exclude_patterns", self.excluded)
        object.__setattr__(self, "exclude_single_blocks", False)


SINGLE_BLOCKS = "single_blocks"


@dataclass(frozen=True, kw_only=True)
class HunyuanGuidance(Section, title="Guidance", accepted=ACCEPTED):
    """The scale that the model takes as an input (embedded), and how the other kind is computed."""

    embedded_cfg_scale: float = opt(
        6.0, "Guidance built into the model, which does not double the time. SkyReels: 1.", low=0, high=100
    )
    split_uncond: bool = opt(
        False, "With --guidance_scale: compute the two predictions one after the other. Slower, less memory."
    )
    split_attn: bool = opt(False, "Compute attention one item of the batch at a time.", advanced=True)
    img_in_txt_in_offloading: bool = redefault(TrainingMemory, "img_in_txt_in_offloading", False)


@dataclass(frozen=True, kw_only=True)
class HunyuanInputs(Section, title="Image and video", late=True):
    """A picture or a video that the generation starts from."""

    image_path: str | None = opt(
        None, "Image that the video starts from, for SkyReels V1 image-to-video.", file_kind="image", metavar="FILE"
    )
    video_path: str | None = opt(
        None, "Video to be remade; its first frames are used.", file_kind="video", metavar="FILE"
    )
    strength: float = opt(
        0.8, "How much of --video_path is remade: the share of the steps that are run.", low=0.01, high=1
    )

    def __post_init__(self) -> None:
        if self.image_path is not None and self.video_path is not None:
            raise OptionError(
                "--image_path and --video_path are two ways to start a video.",
                hint="Keep one of them.",
                names=("image_path", "video_path"),
            )


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What HunyuanVideo was made for."""

    video_length: int = 129
    infer_steps: int = 50
    flow_shift: float = 7.0
    guidance_scale: float = 1.0
    negative_prompt: str = ""


# The family's part of each command. A subclass takes the place of the shared section it is made from.
SECTIONS: dict[str, tuple[type[Section], ...]] = {
    "cache-latents": (Models, VaeTiles, LatentCaching),
    "cache-text": (HunyuanTextCaching, Caching),
    "train": (
        TrainingModels, HunyuanTrainedDit, VaeTiles, HunyuanText, TrainingPrecision, TrainingMemory, Attention,
        HunyuanNetwork,
    ),
    "generate": (
        HunyuanPrompting, GenerationModels, HunyuanDit, VaeTiles, HunyuanText, GenerationPrecision, GenerationMemory,
        AttentionMode, HunyuanGuidance, HunyuanLoraStack, HunyuanOutput, HunyuanInputs,
        StepCaching,
    ),
}  # fmt: skip

# musubi-tuner's scripts for this family.
SCRIPTS = {
    "cache_latents": "cache-latents",
    "cache_text_encoder_outputs": "cache-text",
    "hv_train_network": "train",
    "hv_generate_video": "generate",
}

EXAMPLES = {
    "cache-latents": "--dataset_config dataset.toml --vae hunyuan_video_vae_bf16.safetensors",
    "cache-text": "--dataset_config dataset.toml --text_encoder1 llava_llama3_fp16.safetensors "
    "--text_encoder2 clip_l.safetensors",
    "train": "--dataset_config dataset.toml --dit mp_rank_00_model_states.pt --timestep_sampling shift "
    "--discrete_flow_shift 7 --learning_rate 2e-4 --network_dim 32 --gradient_checkpointing "
    "--fp8_scaled",
    "generate": "--dit mp_rank_00_model_states.pt --vae hunyuan_video_vae_bf16.safetensors "
    "--text_encoder1 llava_llama3_fp16.safetensors --text_encoder2 clip_l.safetensors "
    '--prompt "a cat" --save_path videos',
}


def rules(job: Job) -> None:
    """What the options demand of each other. Raises OptionError."""
    if job.command.verb != "generate" or not generates(job):
        return
    need_models(job)
    for name in TEXT_FILES:
        if getattr(job[HunyuanText], name) is None:
            raise OptionError(
                f"--{name} is required to encode the prompt.",
                hint="Add --text_encoder1 with LLaVA-LLaMA-3-8B and --text_encoder2 with CLIP-L.",
                names=(name,),
            )
    if job[HunyuanInputs].image_path is not None and job[HunyuanDit].dit_in_channels == 16:
        raise OptionError(
            "--image_path needs a DiT of 32 input channels, but --dit_in_channels is 16.",
            hint="Leave out --dit_in_channels and give a SkyReels V1 image-to-video --dit.",
            names=("image_path", "dit_in_channels"),
        )


def resolved(job: Job) -> dict[str, Any]:
    """The kind of DiT that the job is for; there is no negative prompt of HunyuanVideo's own."""
    found: dict[str, Any] = {"negative_prompt": Defaults().negative_prompt}
    if HunyuanInputs not in job:
        return found | {"dit_in_channels": 16}
    return found | ({} if job[HunyuanInputs].image_path is None else {"dit_in_channels": IMAGE_CHANNELS})


def task(job: Job) -> str | None:
    """What the job asks of the checkpoint: "t2v", "skyreels-i2v", or None: each prompt says whether it has an image."""
    channels = job[HunyuanDit].dit_in_channels
    return None if channels is None else TASKS[channels]


def files(job: Job) -> dict[str, str | None]:
    """Every model file of this command by the name of its option."""
    values = job.values()
    return {name: values[name] for name in ("dit", "vae", *TEXT_FILES) if name in values}


def vae_arguments(job: Job) -> dict[str, Any]:
    """The VAE is read off its file."""
    return {}


def text_arguments(job: Job) -> dict[str, Any]:
    """For text.load."""
    text = job[HunyuanText]
    return {"dtype": text.text_encoder_dtype, "fp8": text.fp8_llm, "tokenizer": (text.tokenizer1, text.tokenizer2)}


def dit_arguments(job: Job) -> dict[str, Any]:
    """For model.load."""
    precise = job[HunyuanTrainedDit].dit_dtype if HunyuanTrainedDit in job else None
    return {"task": task(job), "dit_dtype": precise}


def latent_settings(job: Job) -> dict[str, Any]:
    """What is cached depends on the tiles, a little."""
    return {"tile_pixels": job[VaeTiles].tile}


def cut_clip(frames: int, *, window: int, tile_pixels: int | None = None) -> None:
    """A clip of any length is one sample."""


def takes_controls(job: Job) -> bool:
    """HunyuanVideo has no controls."""
    return False


def conditioning_arguments(job: Job) -> dict[str, Any]:
    """For model.cond_from_batch, in training."""
    return {"guidance_scale": job[Timesteps].guidance_scale, "first_frame": task(job) == "skyreels-i2v"}


def decode_arguments(job: Job) -> dict[str, Any]:
    """For vae.decode_frames: videos are always decoded in tiles, as their authors do."""
    return {"tile_pixels": job[VaeTiles].tile or TILE}


def generation_defaults(job: Job, line: Any) -> Defaults:
    """The same for every prompt."""
    return Defaults()


def request_settings(job: Job, line: Any) -> dict[str, Any]:
    """What sample.py wants to know beside the prompt. OptionError for what HunyuanVideo cannot do."""
    for name in ("end_image_path", "control_video_path", "control_image_path", "control_image_mask_path", "one_frame"):
        if getattr(line, name):
            raise OptionError(f"{line.where}: HunyuanVideo takes no {name}.", hint="Remove it from the prompt.")
    inputs, guidance = job[HunyuanInputs], job[HunyuanGuidance]
    image = line.image_path or inputs.image_path
    scale = guidance.embedded_cfg_scale if line.guidance_scale is None else line.guidance_scale
    settings = {"embedded_cfg_scale": scale, "split_uncond": guidance.split_uncond}
    asked = job[StepCaching].asked
    settings |= {} if asked is None else {"step_cache": asked}
    if image:
        settings |= {"image_path": Path(image)}
    if inputs.video_path:
        settings |= {"video_path": Path(inputs.video_path), "strength": inputs.strength}
    if image or inputs.video_path:
        settings |= {"tile_pixels": job[VaeTiles].tile}
    return settings


def latent_size(job: Job, *, width: int, height: int, frames: int) -> tuple[int, int, int]:
    """(T, H, W) of what the DiT works on at once: the whole video."""
    return video_latents(width=width, height=height, frames=frames)


def dit_work(job: Job, config: HunyuanVideoConfig, latent_size: tuple[int, int, int]) -> Work:
    """Text tokens go through all blocks. Guidance with --guidance_scale makes two samples of one."""
    frames, height, width = latent_size
    guided = Prompting in job and job[Prompting].guidance_scale != 1
    twice = guided and not job[HunyuanGuidance].split_uncond
    method = job[StepCaching].step_cache if StepCaching in job else "none"
    double = BlockRun(kind="double", prefix="double_blocks", count=config.num_double_blocks, ffn_dim=config.ffn_dim)
    single = BlockRun(kind="single", prefix="single_blocks", count=config.num_single_blocks, ffn_dim=config.ffn_dim)
    return Work(
        dim=config.dim,
        tokens=frames * (height // config.patch_size[1]) * (width // config.patch_size[2]) + TEXT_TOKENS,
        runs=(double, single),
        at_once=2 if twice else 1,
        waiting=rows_kept(method, predictions=2 if guided and not twice else 1),
    )


def vae_work(job: Job, *, decoding: bool) -> VaeWork:
    """Videos are always decoded in tiles."""
    return VaeWork(kind="tiles", tile=job[VaeTiles].tile or (TILE if decoding else None))


def trim_tail_frames(job: Job) -> int:
    """No frames are left out."""
    return 0


def frame_step(job: Job) -> int:
    """After the first frame, each latent frame is four."""
    return TIME_STRIDE


def sample_options(job: Job) -> dict[str, Any]:
    """Samples are as everywhere."""
    return {}
