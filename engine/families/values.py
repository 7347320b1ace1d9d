"""The values that tasks and families pass each other: clips, requests, the denoiser, experts. `contract.py` says how.

Tensor suffixes, units and ranges are those of `contract.py`. Importing it loads no torch: `options.py` uses some.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..parts.block_stack import BlockStack
    from ..parts.step_caching import StepCacheSettings

Shapes = Mapping[str, tuple[int, ...]]
Files = Mapping[str, str]
Velocity = Callable[["Tensor", "Tensor"], "Tensor"]
"""`(x_BCTHW, timestep_B) -> velocity_BCTHW`: the DiT under one conditioning."""
StepCache = Callable[["BlockStack"], "Tensor"]
"""`blocks -> tokens after them`: runs the blocks, or predicts what they would add."""


class Variant(Protocol):
    """A member of a family. `name`: the task's name, if one fits; `config`: whatever `model.build` takes."""

    family: str
    name: str
    config: Any


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Clips of the same size and dataset, to be made into training samples. Pixels are RGB, -1..1.

    The settings come from the dataset file: `window` is `fp_latent_window_size`, the others are `fp_1f_…`.
    """

    frames_BCFHW: Tensor
    controls_BCFHW: tuple[Tensor, ...] = ()  # one tensor per control; sizes may differ
    alphas_BHW: tuple[Tensor | None, ...] = ()  # one per control image, 0..1; None if it has no alpha channel
    is_image: bool = False
    window: int = 9  # latent frames in a section
    clean_indices: tuple[int, ...] | None = None  # places in time of the controls (one-frame)
    target_index: int | None = None
    no_post: bool = False


@dataclass(frozen=True, kw_only=True)
class Request:
    """One video to make. Sizes in pixels, as requested; `frames` = 4n + 1.

    `settings`: the family's own, from `options.request_settings`; files as Path.
    """

    prompt: str
    negative_prompt: str
    width: int
    height: int
    frames: int
    steps: int
    shift: float | None  # None: the family decides
    guidance: float  # classifier-free guidance scale; 1: off
    seed: int
    cpu_noise: bool = False
    skip_layers: tuple[int, ...] = ()  # blocks that skip layer guidance leaves out, see `Denoise`
    further_guidance: tuple[float, ...] = ()  # for the experts after the first
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def guided(self) -> bool:
        """Whether the negative prompt has any effect."""
        return bool(self.skip_layers) or any(scale != 1.0 for scale in (self.guidance, *self.further_guidance))


class Encoders(Protocol):
    """Models that are loaded on first access: a family that needs neither pays for neither."""

    device: torch.device

    @property
    def vae(self) -> Any:
        """The result of `vae.load`."""

    @property
    def image(self) -> Any:
        """The result of `image.load`; OptionError if the job names no file for it."""


class Denoise(Protocol):
    """From noise to clean latents. Takes care of solver, schedule, guidance, progress and stopping."""

    def __call__(
        self,
        conditional: Velocity,
        unconditional: Velocity | None,
        noise_BCTHW: Tensor,
        *,
        both: Velocity | None = None,
        skipped: Velocity | None = None,
        clean_BCTHW: Tensor | None = None,
        strength: float = 1.0,
        shift: float | None = None,
        solver: str | None = None,
        rescale: float = 0.0,
        label: str = "",
        shown: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Clean latents, float32, on the device of noise_BCTHW.

        `both` takes a batch of twice the size, conditional first, and replaces the other two when guidance is on.
        `skipped`: the unconditional velocity with the request's `skip_layers` left out, if it has any.
        `clean_BCTHW` with `strength` below 1: start that far up the schedule, from these latents with noise added.
        `shift`, `solver` None: those of the request and of the job. `label` tells several calls for one video apart.
        `shown`: picks from such clean latents the part that a preview shows, on any device; None: everything.
        """

    def step_cache(self, settings: StepCacheSettings, *, label: str) -> StepCache:
        """A step cache (sampling/step_caches.py) for one of the velocities of the next call; each needs its own.

        `label` names the velocity in the log.
        """


@dataclass(frozen=True, kw_only=True)
class Expert:
    """One of a job's DiTs, each for a range of noise levels. Most families have a single one for all levels.

    `ending` is the ending of its options and of its LoRA's file name, such as "_high_noise"; "" for the first.
    """

    dit: str  # the file that `--dit` + ending names
    ending: str = ""
    starts_at: float = 0.0  # its lowest sigma; the range ends where the next expert starts
    loras: tuple[str, ...] = ()  # files to merge into it
    multipliers: tuple[float, ...] = ()
    network_weights: str | None = None  # the LoRA that its training starts from
    guidance: float | None = None  # None: the request's
    waits: Literal["device", "memory", "file"] = "device"  # where its weights are while another one works

    @property
    def flag(self) -> str:
        return f"--dit{self.ending}"

    @property
    def name(self) -> str:
        """For the log, states and events."""
        return self.ending.strip("_") or "low_noise"


@dataclass(frozen=True, kw_only=True)
class BenchSize:
    """The size of a clip for `bench`, in pixels. `vram`: the card that mode "least" plans for."""

    height: int
    width: int
    frames: int
    vram: str = "12GB"
    label: str = ""  # in names of cases; "": 480x832x81

    @property
    def name(self) -> str:
        return self.label or f"{self.height}x{self.width}x{self.frames}"


@dataclass(frozen=True, kw_only=True)
class BenchModel:
    """A DiT of a public size that `bench` measures: `config` is what `model.build` takes.

    `options`: by verb, options beside files and sizes; None leaves an option out. `modes`: by name, flags that skip
    part of the steps, so that an average over many is measured.
    """

    name: str  # in names of cases: "wan-14b"
    config: Any
    heads: int
    head_dim: int
    train: tuple[BenchSize, ...]
    denoise: tuple[BenchSize, ...]
    window: int = 9  # latent frames in a section
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    modes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BenchVae:
    """The VAE in its public size. `sizes` is empty if another family has the same VAE and measures it.

    `plain(tiny)` makes diffusers' VAE with random weights for comparison, with its `encode` and `decode`; ImportError
    if diffusers is not installed. `options`: by verb, options beside files and sizes.
    """

    name: str  # in names of cases: "wan"
    sizes: tuple[BenchSize, ...]
    shapes: Callable[[], Shapes]
    plain: Callable[[bool], Any]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Defaults(Protocol):
    """What applies where a job and its prompt line say nothing."""

    video_length: int
    infer_steps: int
    flow_shift: float | None
    guidance_scale: float
    negative_prompt: str
