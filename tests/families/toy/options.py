"""The toy's own options and defaults. Standard library only, as in every family."""

from __future__ import annotations

import math
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
from ...contract.rules import generates, need_models
from ...contract.schema import Section, opt, redefault, require
from ...parts.workload import BlockRun, VaeWork, Work, video_latents

if TYPE_CHECKING:
    from ...contract.job import Job
    from .detect import ToyConfig

TITLE = "Toy"
ARCHITECTURE = "toy"
ARCHITECTURE_FULL = "toy_blocks"
NATIVE_FPS = 8
LATENT_SCALE = 0.5
SIZE_STEP = 16
NETWORK_MODULE = "networks.lora_toy"
LORA_FORMAT = "default"
MODELSPEC_ARCHITECTURE = "toy-blocks"
MODELSPEC_IMPLEMENTATION = "https://example.org/toy-blocks"
TEXT_FILES = ("byte_table",)
IMAGE_FILES: tuple[str, ...] = ()
PROMPT_LETTERS: dict[str, str] = {}
LIGHTER: dict[str, tuple[dict[str, Any], ...]] = {}


@dataclass(frozen=True, kw_only=True)
class ToyText(Section, title="Text encoder"):
    """A table of bytes."""

    byte_table: str | None = opt(
        None, "File with an embedding for each byte.", file_kind="text_encoder", metavar="FILE"
    )


@dataclass(frozen=True, kw_only=True)
class ToyTextCaching(ToyText, title="Text encoder"):
    """A table of bytes."""

    byte_table: str = require(ToyText, "byte_table")


@dataclass(frozen=True, kw_only=True)
class ToyVae(Section, title="VAE"):
    """How the toy's pixels become latents."""

    toy_contrast: float = opt(1.0, "Multiplies the latents on their way to the DiT and back.", low=0.1, high=10.0)


@dataclass(frozen=True, kw_only=True)
class ToyNetwork(Network, title="LoRA"):
    """The toy's LoRA sits in both blocks."""

    network_module: str = redefault(Network, "network_module", NETWORK_MODULE)


@dataclass(frozen=True, kw_only=True)
class ToyOutput(Output, title="Output"):
    """The toy has no hurry."""

    fps: int = redefault(Output, "fps", NATIVE_FPS)


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What the toy was made for."""

    infer_steps: int = 4
    flow_shift: float = 1.0
    guidance_scale: float = 1.0
    video_length: int = 5
    negative_prompt: str = ""


# No tasks and no section about the model as a whole: a family need not have them.
SECTIONS: dict[str, tuple[type[Section], ...]] = {
    "cache-latents": (Models, ToyVae, LatentCaching),
    "cache-text": (ToyTextCaching, Caching),
    "train": (TrainingModels, ToyVae, ToyText, TrainingPrecision, TrainingMemory, Attention, ToyNetwork),
    "generate": (
        GenerationModels, ToyVae, ToyText, GenerationPrecision, GenerationMemory, AttentionMode, Prompting, LoraStack,
        ToyOutput,
    ),
}  # fmt: skip
SCRIPTS = {"toy_train_network": "train"}


def rules(job: Job) -> None:
    """What the toy's options demand of each other. Raises OptionError."""
    if job.command.verb != "generate":
        return
    if not generates(job):
        return
    need_models(job)
    if job[ToyText].byte_table is None:
        raise OptionError(
            "--byte_table is required to encode the prompt.", hint="Add --byte_table.", names=("byte_table",)
        )


def files(job: Job) -> dict[str, str | None]:
    """The model files of this command by their options."""
    given: dict[str, str | None] = {}
    if Models in job:
        given["vae"] = job[Models].vae
    if GenerationModels in job:
        given["dit"] = job[GenerationModels].dit
    if ToyText in job:
        given["byte_table"] = job[ToyText].byte_table
    return given


def vae_arguments(job: Job) -> dict[str, Any]:
    """For vae.load."""
    return {"contrast": job[ToyVae].toy_contrast}


def text_arguments(job: Job) -> dict[str, Any]:
    """For text.load."""
    return {}


def dit_arguments(job: Job) -> dict[str, Any]:
    """For model.load: the toy knows one task only, so none is checked."""
    return {"task": None}


def latent_settings(job: Job) -> dict[str, Any]:
    """For vae.training_samples: what the VAE was told shapes the caches, so they are made anew when it changes."""
    return vae_arguments(job)


def cut_clip(frames: int, *, window: int, contrast: float = 1.0) -> None:
    """A clip of any length is one sample."""


def takes_controls(job: Job) -> bool:
    """The toy looks at clips only."""
    return False


def conditioning_arguments(job: Job) -> dict[str, Any]:
    """For model.cond_from_batch and model.check_cache."""
    return {}


def decode_arguments(job: Job) -> dict[str, Any]:
    """For vae.decode_frames."""
    return {}


def generation_defaults(job: Job, line: Any) -> Defaults:
    """What generation does when it is not told."""
    return Defaults()


def request_settings(job: Job, line: Any) -> dict[str, Any]:
    """The toy's videos start from nothing but words."""
    return {}


def latent_size(job: Job, *, width: int, height: int, frames: int) -> tuple[int, int, int]:
    """Latents of a toy are as many as everybody's."""
    return video_latents(width=width, height=height, frames=frames)


def dit_work(job: Job, config: ToyConfig, latent_size: tuple[int, int, int]) -> Work:
    """Every latent pixel is a token."""
    run = BlockRun(kind="single", prefix="blocks", count=config.num_layers, ffn_dim=config.dim)
    return Work(dim=config.dim, tokens=math.prod(latent_size), runs=(run,))


def vae_work(job: Job, *, decoding: bool) -> VaeWork:
    """The toy has no network between pixels and latents."""
    return VaeWork(kind="chunks")


def trim_tail_frames(job: Job) -> int:
    """The toy leaves out no frames."""
    return 0


def frame_step(job: Job) -> int:
    """After the first frame, latents are made of four."""
    return 4


def sample_options(job: Job) -> dict[str, Any]:
    """Samples are as everywhere."""
    return {}
