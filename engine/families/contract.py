"""What a family owes: the page to read first.

A family is a folder of plain functions, always in the same files: `options detect text vae model keys sample`. There is
no base class and nothing to override; a file is imported when it is needed (`families.part("wan", "vae")`), so caching
never loads the DiT and training never loads the text encoder. The Protocols below are those files: attributes are
module constants, methods are module functions. `FILES` maps file names to them, and a test compares every family.
A family may give a function further keyword arguments with defaults; its own `options.py` fills them.

Tensor suffixes: B batch, C channels, T latent frames, F pixel frames, H W height and width (of latents in latents),
L tokens, D width. sigma is 0 (clean) … 1 (noise); a timestep is 0..1000 and appears only where a model wants it.
Pixels say their range. `shapes` is {name: shape} as a file has them; `cond` is a dict that the loop only moves to the
device: tensors, lists of tensors, plain Python values.

What is not here, because no family implements it: LoRA, block streaming, checkpointing, compile, fp8 (they act on
`model.blocks`), samplers and guidance (they get a velocity function), the loss and its sampling of sigma.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Shapes = Mapping[str, tuple[int, ...]]


class Variant(Protocol):
    """A member of a family: `name` is a task's name where one fits, `config` whatever `model.build` takes."""

    family: str
    name: str
    config: Any


class Options(Protocol):
    """options.py: variants, own options, own defaults. Standard library only; ComfyUI and --help read it."""

    TITLE: str
    ARCHITECTURE: str  # in cache file names: "wan"
    ARCHITECTURE_FULL: str  # in cache metadata
    NATIVE_FPS: int  # what clips are resampled to
    NETWORK_MODULE: str  # musubi-tuner's name of the LoRA module, for the LoRA's metadata
    MODELSPEC_ARCHITECTURE: str


class Detect(Protocol):
    """detect.py: what a checkpoint is, from names, shapes and file metadata alone. Reads no weights."""

    def detect(self, shapes: Shapes, metadata: Mapping[str, str], *, source: str = "This file") -> Variant:
        """The variant of a DiT in any public layout. WeightsError names what the file looks like instead."""

    def role_of(self, shapes: Shapes) -> str | None:
        """One of "dit", "vae", "text-encoder", "clip-vision", "lora", another family's kind; None if unknown."""

    def check_task(self, variant: Any, task: str) -> None:
        """WeightsError when this checkpoint cannot do the job's task: says which --task would fit."""


class Text(Protocol):
    """text.py: captions to conditioning."""

    def load(
        self, path: str | Path, *, device: torch.device | str, dtype: torch.dtype, tokenizer: str | None = None
    ) -> Any:
        """The text encoder with its tokenizer, found offline first. WeightsError for another kind of file."""

    def encode(self, encoder: Any, captions: list[str]) -> list[Tensor]:
        """One [L, D] a caption, not padded."""

    def training_samples(self, encoder: Any, captions: list[str]) -> list[dict[str, Tensor]]:
        """For each caption the tensors of its cache file, by musubi-tuner's names without number format."""


class Vae(Protocol):
    """vae.py: clips to latents, latents to frames."""

    LATENT_CHANNELS: int
    TIME_STRIDE: int
    SPACE_STRIDE: int

    def compute_dtype(self, device: torch.device) -> torch.dtype:
        """The number format that this VAE is safe and fast in on this device."""

    def load(self, path: str | Path, *, device: torch.device | str, dtype: torch.dtype | None) -> Any:
        """The VAE, from any public layout. WeightsError for another kind of file."""

    def encode(self, vae: Any, clip_BCFHW: Tensor) -> Tensor:
        """RGB in -1..1, F = TIME_STRIDE * n + 1, to latents_BCTHW as caches keep them; memory does not grow with F."""

    def decode(self, vae: Any, latents_BCTHW: Tensor) -> Tensor:
        """The reverse: RGB in -1..1, clamped, [B, C, F, H, W]."""

    def decode_frames(self, vae: Any, latents_BCTHW: Tensor) -> Iterator[Tensor]:
        """`decode` in pieces along F, in order, for bounded memory."""

    def training_samples(self, vae: Any, clips_BCFHW: Tensor) -> list[dict[str, Tensor]]:
        """For each clip the tensors of its cache file; a family may make several samples of one clip (its windows)."""


class Model(Protocol):
    """model.py: the DiT."""

    def build(self, config: Any, *, device: torch.device | str = "meta", dtype: torch.dtype = ...) -> nn.Module:
        """A frozen model of this configuration; on "meta" names and shapes only, elsewhere with weights unset."""

    def load(
        self,
        path: str | Path,
        *,
        task: str | None,
        device: torch.device | str,
        dtype: torch.dtype | None = None,
        transform: Callable[[str, Tensor], Tensor] | None = None,
        attention_backend: str = "auto",
    ) -> nn.Module:
        """A frozen model with `.variant` set. `transform(name, tensor)` sees each weight first: LoRA merging."""

    def blocks(self, dit: nn.Module) -> Sequence[nn.Module]:
        """The blocks in the order in which they run. They take and return plain tensors (or None)."""

    def velocity(self, dit: nn.Module, x_BCTHW: Tensor, timestep_B: Tensor, cond: dict[str, Any]) -> Tensor:
        """Noise - clean, float32, of x's shape (without channels that conditioning adds). timestep_B in 0..1000.

        Must not wait for the device: no `.item()`, no branch on values.
        """

    def cond_from_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The conditioning in a training batch, whose keys are those of the cache files."""


class Keys(Protocol):
    """keys.py: weight names. Pure string functions, used for modules of LoRA files too."""

    LORA_BLOCKS: tuple[str, ...]  # class names of the blocks that a LoRA adapts
    LORA_EXCLUDE: str  # regular expression, full match on the module path

    def dit_name(self, name: str) -> str | None:
        """Our name, which is the original checkpoint's, for a name in any public layout; None drops it."""

    def is_fp8_weight(self, name: str) -> bool:
        """Whether this layer may be kept in fp8."""


class Sample(Protocol):
    """sample.py: how a whole video comes about."""

    def latent_shape(self, *, width: int, height: int, frames: int) -> tuple[int, ...]:
        """BCTHW of one video; width and height in pixels."""

    def draw_noise(self, shape: tuple[int, ...], *, seed: int, device: torch.device, on_cpu: bool = False) -> Tensor:
        """Standard normal noise, float32."""

    def video_latents(
        self,
        dit: nn.Module,
        *,
        text_LD: Tensor,
        negative_LD: Tensor | None,
        noise_BCTHW: Tensor,
        denoise: Callable[..., Tensor],
    ) -> Tensor:
        """Clean latents. `denoise(conditional, unconditional or None, noise)` holds solver, schedule and guidance."""


FILES: dict[str, type] = {
    "options": Options,
    "detect": Detect,
    "text": Text,
    "vae": Vae,
    "model": Model,
    "keys": Keys,
    "sample": Sample,
}
