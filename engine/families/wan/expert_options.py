"""Options of Wan 2.2's two experts, and what they come to. Standard library only.

`--dit` is the expert for low noise, and what ends in `_high_noise` belongs to the other. In musubi-tuner one LoRA is
trained for both; here each has its own, as public pairs of LoRAs and ComfyUI's workflows have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...contract.errors import OptionError
from ...contract.options import LoraStack, Timesteps
from ...contract.schema import Section, opt
from ..values import Expert
from .variants import VARIANTS

if TYPE_CHECKING:
    from ...contract.job import Job

HIGH_NOISE = "_high_noise"
_ONE_TIME = {"force_v2_1_time_embedding": "the frames of a video share one time, which is always embedded once"}


@dataclass(frozen=True, kw_only=True)
class WanExperts(Section, title="Wan 2.2 experts", late=True, accepted=_ONE_TIME):
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
        given = self.timestep_boundary
        if given is None:
            return
        boundary = given / 1000 if given > 1 else given
        if not 0 < boundary < 1:
            raise OptionError(
                f"--timestep_boundary {given:g} leaves one of the experts no noise level.",
                "Give a number between 0 and 1, such as 0.875.",
                names=("timestep_boundary",),
            )
        object.__setattr__(self, "timestep_boundary", boundary)


@dataclass(frozen=True, kw_only=True)
class WanExpertsTraining(WanExperts, title="Wan 2.2 experts"):
    """With --dit_high_noise both experts are trained in one run, each with its own LoRA: NAME and NAME_high_noise.

    Other LoRA options are about both.
    """

    network_weights_high_noise: str | None = opt(
        None, "LoRA file that the high noise expert's training begins with.", file_kind="lora", advanced=True,
        metavar="FILE",
    )  # fmt: skip
    base_weights_high_noise: tuple[str, ...] = opt(
        (), "LoRA files that are merged into the high noise expert before training.", file_kind="lora", advanced=True,
        metavar="FILE",
    )  # fmt: skip
    base_weights_multiplier_high_noise: tuple[float, ...] = opt((), "Their strengths.", advanced=True, metavar="X")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_count(self, "base_weights_multiplier_high_noise", "base_weights_high_noise")
        _check_alone(self, "network_weights_high_noise", "base_weights_high_noise")


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

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_count(self, "lora_multiplier_high_noise", "lora_weight_high_noise")
        if self.lazy_loading and self.offload_inactive_dit:
            raise OptionError(
                "--lazy_loading and --offload_inactive_dit are two places for the expert not in use.",
                "Keep --offload_inactive_dit if main memory has room for it, else --lazy_loading.",
                names=("lazy_loading", "offload_inactive_dit"),
            )


def check_experts(job: Job, *, task: str, has_folder: bool = False) -> None:
    """What the experts' options demand of the rest of the job. `has_folder`: --ckpt_dir names both. OptionError."""
    options = job[WanExperts]
    if options.dit_high_noise is None:
        if isinstance(options, WanExpertsGeneration) and not has_folder:
            _check_alone(options, "lora_weight_high_noise")
        return
    if _boundary(options, task) is None:
        raise OptionError(
            f"--task {task} has a single model, so it does not say where --dit_high_noise takes over.",
            "Choose --task t2v-A14B or i2v-A14B, or add --timestep_boundary.",
            names=("task", "dit_high_noise"),
        )
    if LoraStack in job and job[LoraStack].save_merged_model is not None:
        raise OptionError(
            "--save_merged_model merges one DiT at a time.",
            "Leave out --dit_high_noise, and merge the other expert in a separate run, as --dit.",
            names=("save_merged_model", "dit_high_noise"),
        )


def further_experts(job: Job, *, task: str, dit: str | None) -> tuple[Expert, ...]:
    """The expert for high noise, whose file is `dit`, where the job has one."""
    options = job[WanExperts]
    boundary = _boundary(options, task)
    if dit is None or boundary is None:
        return ()
    common = {"dit": dit, "ending": HIGH_NOISE, "starts_at": boundary}
    if isinstance(options, WanExpertsTraining):
        expert = Expert(
            **common,
            loras=options.base_weights_high_noise,
            multipliers=options.base_weights_multiplier_high_noise,
            network_weights=options.network_weights_high_noise,
            waits="memory" if options.offload_inactive_dit else "device",
        )
    else:
        waits = "file" if options.lazy_loading else "memory" if options.offload_inactive_dit else "device"
        guidance = options.guidance_scale_high_noise
        expert = Expert(
            **common,
            loras=options.lora_weight_high_noise,
            multipliers=options.lora_multiplier_high_noise,
            guidance=VARIANTS[task].guidance_scale_high_noise if guidance is None else guidance,
            waits=waits,
        )
    return (expert,)


def notes(job: Job, *, task: str, dit: str | None) -> tuple[str, ...]:
    """What a job with one of the two experts may have forgotten."""
    boundary = VARIANTS[task].boundary
    if boundary is None or dit is not None:
        return ()
    if Timesteps not in job:
        return (f"--task {task} has two experts, but --dit alone goes all the way. The other one is --dit_high_noise.",)
    limits = job[Timesteps]
    if limits.min_timestep is None and limits.max_timestep is None:
        level = f"{1000 * boundary:g}"
        return (
            f"--task {task} has two experts, but --dit alone is trained on all noise levels. Add --dit_high_noise to "
            f"train both, or train one on its own levels: --max_timestep {level} for low noise, --min_timestep {level} "
            "for high noise, with --preserve_distribution_shape.",
        )
    return ()


def _boundary(options: WanExperts, task: str) -> float | None:
    return VARIANTS[task].boundary if options.timestep_boundary is None else options.timestep_boundary


def _check_count(options: WanExperts, values: str, files: str) -> None:
    if len(getattr(options, values)) > len(getattr(options, files)):
        raise OptionError(
            f"--{values} has {len(getattr(options, values))} values, but --{files} names "
            f"{len(getattr(options, files))} files.",
            f"Give at most one value of --{values} for each file.",
            names=(values, files),
        )


def _check_alone(options: WanExperts, *names: str) -> None:
    for name in names:
        if getattr(options, name) and options.dit_high_noise is None:
            raise OptionError(
                f"--{name} is for the high noise expert, and there is none.",
                "Add --dit_high_noise, or give it without _high_noise for --dit.",
                names=(name, "dit_high_noise"),
            )
