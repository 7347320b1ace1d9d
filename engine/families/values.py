"""What tasks and families hand to each other: clips, requests, the denoiser, experts. `contract.py` says who to whom.

Tensor suffixes, units and ranges are those of `contract.py`. Free of torch when imported: `options.py` uses some.
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
"""`blocks -> tokens after them`: runs the blocks, or knows what they would add."""


class Variant(Protocol):
    """A member of a family: `name` is a task's name where one fits, `config` whatever `model.build` takes."""

    family: str
    name: str
    config: Any


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Clips of one size and one dataset, to be made into training samples. Pixels are RGB, -1..1.

    The settings are those of the dataset file: `window` is `fp_latent_window_size`, the others `fp_1f_…`.
    """

    frames_BCFHW: Tensor
    controls_BCFHW: tuple[Tensor, ...] = ()  # each control of the clips, at a size of its own
    alphas_BHW: tuple[Tensor | None, ...] = ()  # of each control image, 0..1; None where it has no alpha channel
    is_image: bool = False
    window: int = 9  # latent frames in a section
    clean_indices: tuple[int, ...] | None = None  # places in time of the controls (one-frame)
    target_index: int | None = None
    no_post: bool = False


@dataclass(frozen=True, kw_only=True)
class Request:
    """One video to make. Sizes in pixels as they were asked for, `frames` = 4n + 1.

    `settings` is what `options.request_settings` gave: the family's own, files as Path.
    """

    prompt: str
    negative_prompt: str
    width: int
    height: int
    frames: int
    steps: int
    shift: float | None  # None: the family works it out
    guidance: float  # classifier-free; 1 is none
    seed: int
    cpu_noise: bool = False
    skip_layers: tuple[int, ...] = ()  # blocks that skip layer guidance leaves out, see `Denoise`
    further_guidance: tuple[float, ...] = ()  # of the experts beside the first
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def guided(self) -> bool:
        """Whether the negative prompt plays a part."""
        return bool(self.skip_layers) or any(scale != 1.0 for scale in (self.guidance, *self.further_guidance))


class Encoders(Protocol):
    """Models that are loaded when they are first looked at. A family that needs neither costs nothing."""

    device: torch.device

    @property
    def vae(self) -> Any:
        """What `vae.load` gave."""

    @property
    def image(self) -> Any:
        """What `image.load` gave; OptionError when the job names no file for it."""


class Denoise(Protocol):
    """From noise to clean latents: solver, schedule, guidance, progress and stopping are inside."""

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
        """Clean latents, float32, where noise_BCTHW is.

        `both` takes a batch of twice the size, conditional first, and replaces the two others where guidance is on.
        `skipped`: the unconditional velocity without the request's `skip_layers`, where it has any.
        `clean_BCTHW` with `strength` below 1: begin that far up the schedule, from these latents under as much noise.
        `shift`, `solver` None: the request's and the job's. `label` tells several calls of one video apart.
        `shown`: of such clean latents those that a preview shows, on any device; None: all.
        """

    def step_cache(self, settings: StepCacheSettings, *, label: str) -> StepCache:
        """A step cache (sampling/step_caches.py) for one of the velocities of the next call; each needs one of its own.

        `label` says of which velocity, for the log.
        """


@dataclass(frozen=True, kw_only=True)
class Expert:
    """One of the DiTs of a job, which share the noise levels and take turns. Most families have one for all of them.

    `ending` is what its options end with, and its LoRA's file name in a training: "" or such as "_high_noise".
    """

    dit: str  # the file that `--dit` + ending names
    ending: str = ""
    starts_at: float = 0.0  # the lowest sigma that it works at; the next expert's ends its range
    loras: tuple[str, ...] = ()  # files that are merged into it
    multipliers: tuple[float, ...] = ()
    network_weights: str | None = None  # the LoRA that its training begins with
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
    """A clip that `bench` measures with, in pixels. `vram`: the card that its mode "least" plans for."""

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

    `options`: by verb what its commands say besides files and sizes; None leaves an option out. `modes`: flags that
    leave out part of the steps, so that the average of many counts.
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
    """The VAE of public size. `sizes` is empty where another family has the same one, which is measured there.

    `plain(tiny)` makes diffusers' VAE of random weights, for comparison: with `encode` and `decode` as theirs have.
    ImportError where diffusers is not installed. `options`: by verb what its commands say besides files and sizes.
    """

    name: str  # in names of cases: "wan"
    sizes: tuple[BenchSize, ...]
    shapes: Callable[[], Shapes]
    plain: Callable[[bool], Any]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Defaults(Protocol):
    """What a generation does where nothing is said."""

    video_length: int
    infer_steps: int
    flow_shift: float | None
    guidance_scale: float
    negative_prompt: str
