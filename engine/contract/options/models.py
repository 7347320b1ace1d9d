"""Options of model files, number formats and attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import OptionError
from ..schema import Section, opt, require
from .accepted import ACCEPTED

Dtype = Literal["float32", "fp32", "float16", "fp16", "bfloat16", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Models(Section, title="Models"):
    """The files of the model."""

    vae: str | None = opt(None, "VAE file: .safetensors, .pth or a diffusers folder.", file_kind="vae", metavar="FILE")
    vae_dtype: Dtype | None = opt(
        None, "Number format in which the VAE computes. Default: what the family was made with.", advanced=True
    )


@dataclass(frozen=True, kw_only=True)
class GenerationModels(Models, title="Models"):
    """The files of the model; the DiT is the transformer that takes noise away."""

    dit: str | None = opt(
        None, "DiT file: .safetensors, the first of several shards, an index file or a folder.", file_kind="dit",
        metavar="FILE",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainingModels(GenerationModels, title="Models"):
    """The files of the model; training reads caches, so it needs the VAE only for samples."""

    dit: str = require(GenerationModels, "dit")


@dataclass(frozen=True, kw_only=True)
class Precision(Section, title="Precision"):
    """Number format of the frozen weights."""

    fp8_scaled: bool = opt(
        False, "Keep the frozen weights of the blocks in fp8 with scales: half the memory, close to bf16 in quality."
    )


@dataclass(frozen=True, kw_only=True)
class TrainingPrecision(Precision, title="Precision"):
    """Number formats in training."""

    mixed_precision: Literal["no", "fp16", "bf16"] | None = opt(
        None, "Compute in this format while the LoRA stays in fp32. Default: bf16 where the device has it."
    )
    fp8_base: bool = opt(
        False, "Keep the frozen weights in plain fp8. With --fp8_scaled, which is better, it need not be given."
    )

    @property
    def weight_format(self) -> Literal["stored", "fp8", "fp8_scaled"]:
        """How the frozen weights are kept: --fp8_scaled implies --fp8_base."""
        return "fp8_scaled" if self.fp8_scaled else ("fp8" if self.fp8_base else "stored")


@dataclass(frozen=True, kw_only=True)
class GenerationPrecision(Precision, title="Precision", accepted=ACCEPTED):
    """Number formats in generation."""

    fp8: bool = opt(
        False, "Keep the weights in plain fp8. With --fp8_scaled, which is better, it need not be given.",
        aliases=("fp8_base",),
    )  # fmt: skip
    fp8_fast: bool = opt(False, "Multiply in fp8 as well.", advanced=True)

    @property
    def weight_format(self) -> Literal["stored", "fp8", "fp8_scaled"]:
        """How the weights are kept: --fp8_scaled implies --fp8."""
        return "fp8_scaled" if self.fp8_scaled else ("fp8" if self.fp8 else "stored")


@dataclass(frozen=True, kw_only=True)
class Attention(Section, title="Attention", accepted=ACCEPTED):
    """Which attention training uses. Without a flag, the fastest one that works is used."""

    sdpa: bool = opt(False, "PyTorch's own scaled dot product attention.")
    flash_attn: bool = opt(False, "FlashAttention 2; needs the package flash-attn.")
    flash3: bool = opt(False, "FlashAttention 3; needs its package and a Hopper GPU.", advanced=True)
    xformers: bool = opt(False, "Attention from the xformers package.")
    attn_8bit: bool = opt(
        False, "Attention and its gradients in 8 bits, for H100 and H200: faster there; rounds about as much as "
        "--fp8_scaled.",
    )  # fmt: skip
    sage_attn: bool = opt(
        False, "SageAttention. It computes no gradients, so it only works for generation (--attn_mode sageattn).",
        advanced=True,
    )  # fmt: skip
    split_attn: bool = opt(
        False, "Compute attention one item of the batch at a time: less memory, slower.", advanced=True
    )

    def __post_init__(self) -> None:
        if self.sage_attn:
            raise OptionError(
                "--sage_attn cannot train: SageAttention computes no gradients.",
                hint="Leave it out (the best attention is chosen automatically), or use --sdpa.",
                names=("sage_attn",),
            )
        chosen = self._chosen()
        if len(chosen) > 1:
            raise OptionError(
                f"{' and '.join('--' + name for name in chosen)} were given, but only one attention can be used.",
                hint=f"Keep --{chosen[0]}, or leave out all of them: the best one is then chosen automatically.",
                names=tuple(chosen),
            )

    def _chosen(self) -> list[str]:
        return [name for name in ("sdpa", "flash_attn", "flash3", "xformers", "attn_8bit") if getattr(self, name)]

    @property
    def backend(self) -> str:
        """The name that `ops.attention` knows: auto, sdpa, flash, flash3, xformers or 8bit."""
        chosen = self._chosen()
        return {"flash_attn": "flash", "attn_8bit": "8bit"}.get(chosen[0], chosen[0]) if chosen else "auto"


@dataclass(frozen=True, kw_only=True)
class AttentionMode(Section, title="Attention"):
    """Which attention generation uses."""

    attn_mode: Literal[
        "auto", "torch", "sdpa", "math", "flash", "flash2", "flash3", "sageattn", "xformers", "8bit"
    ] = opt(
        "auto", "Attention: auto takes the fastest exact one; 8bit is faster on H100 and H200, and works from RTX 40 "
        "on; its rounding is that of --fp8_scaled; torch is the same as sdpa, flash the same as flash2.",
    )  # fmt: skip

    @property
    def backend(self) -> str:
        """The name that `ops.attention` knows."""
        return self.attn_mode
