"""Options of the LoRA tools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import OptionError
from ..schema import Section, opt

SIGMA_REL_HIGH = 12**-0.5
"""A power-function average that never falls with time is not wider than this (arXiv 2312.02696, equation 126)."""

_FAMILY = "Model family of the LoRA. Default: recognised from its tensor names."


@dataclass(frozen=True, kw_only=True)
class LoraConvert(Section, title="Conversion"):
    """From one LoRA naming to another. Every layout is read; the effect of each weight stays the same."""

    input: str = opt(None, "LoRA file to read.", required=True, file_kind="lora", metavar="FILE")
    output: str = opt(None, "LoRA file to write.", required=True, metavar="FILE")
    target: Literal["other", "default", "diffusers"] = opt(
        None, "default: musubi-tuner's and kohya's names; other: ComfyUI's and diffusion-pipe's; diffusers: those of "
        "diffusers' pipelines and PEFT.", required=True,
    )  # fmt: skip
    diffusers_prefix: str | None = opt(
        None, "First part of the names for --target other (default diffusion_model; diffusion-pipe has transformer for "
        "HunyuanVideo) and diffusers (default transformer; PEFT without diffusers: base_model.model).", metavar="NAME",
    )  # fmt: skip
    keep_alpha: bool = opt(
        False, "For --target other and diffusers: write alpha instead of folding it into the weights. ComfyUI reads "
        "it, diffusers does not.", advanced=True,
    )  # fmt: skip
    family: str | None = opt(None, _FAMILY, metavar="FAMILY")
    dit: str | None = opt(
        None, "Model file that the LoRA is for. Needed only if the model does not have a published size.",
        file_kind="dit", advanced=True, metavar="FILE",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LoraMerge(
    Section, title="Merging", accepted={"dit_in_channels": "the number of input channels is read from the file"}
):
    """Merge LoRAs into a model file, or several into one LoRA."""

    dit: str | None = opt(None, "DiT file to merge into.", file_kind="dit", metavar="FILE")
    dit_in_channels: int | None = opt(None, "Input channels of the DiT.", low=1, advanced=True)
    lora_weight: tuple[str, ...] = opt(
        None, "LoRA files, merged in this order.", required=True, file_kind="lora", metavar="FILE"
    )
    lora_multiplier: tuple[float, ...] = opt(
        (1.0,), "Strength of each LoRA; those that are left out count 1.", metavar="X"
    )
    save_merged_model: str | None = opt(
        None, "Model file to write, in the layout and number format of --dit.", metavar="FILE"
    )
    max_shard_size: float | None = opt(
        None, "Write the model as a new folder, --save_merged_model, of files of at most this size with an index, as "
        "diffusers has them. Default: one file.", low=0.000001, unit="GB", advanced=True,
    )  # fmt: skip
    save_merged_lora: str | None = opt(
        None, "Instead of a model write one LoRA that does what all of them do together, under the names that ComfyUI "
        "loads whole.", metavar="FILE",
    )  # fmt: skip
    new_rank: int | None = opt(
        None, "Rank of the merged LoRA, the best one of that rank. Default: all ranks together, which is exact.", low=1
    )
    energy: float | None = opt(
        None, "Rank of each module: as few as hold this share of its squared norm, such as 0.99; at most --new_rank.",
        low=0.0, high=1.0,
    )  # fmt: skip
    family: str | None = opt(None, _FAMILY, metavar="FAMILY")

    def __post_init__(self) -> None:
        if (self.save_merged_model is None) == (self.save_merged_lora is None):
            raise OptionError(
                "One of --save_merged_model and --save_merged_lora says what to write.",
                hint="--save_merged_model writes a model, but --save_merged_lora a LoRA.",
                names=("save_merged_model", "save_merged_lora"),
            )
        if self.save_merged_model is not None and self.dit is None:
            raise OptionError("--save_merged_model needs the model to merge into.", hint="Add --dit.", names=("dit",))
        if self.save_merged_lora is None and (self.new_rank is not None or self.energy is not None):
            raise OptionError(
                "--new_rank and --energy are for --save_merged_lora; a merged model has no rank.",
                hint="Leave them out.",
                names=("new_rank", "energy", "save_merged_lora"),
            )
        if self.save_merged_model is None and self.max_shard_size is not None:
            raise OptionError(
                "--max_shard_size is for --save_merged_model; a LoRA is one file.",
                hint="Leave it out.",
                names=("max_shard_size", "save_merged_model"),
            )
        if len(self.lora_multiplier) > len(self.lora_weight):
            raise OptionError(
                f"--lora_multiplier has {len(self.lora_multiplier)} values for {len(self.lora_weight)} files.",
                hint="Give at most one per file.",
                names=("lora_multiplier", "lora_weight"),
            )

    @property
    def multipliers(self) -> tuple[float, ...]:
        """One multiplier for each file."""
        count = len(self.lora_weight)
        return (*self.lora_multiplier, *[1.0] * count)[:count]


@dataclass(frozen=True, kw_only=True)
class LoraInfo(Section, title="LoRA"):
    """What is in a LoRA file."""

    path: tuple[str, ...] = opt(None, "LoRA files.", required=True, positional=True, file_kind="lora", metavar="FILE")
    family: str | None = opt(None, _FAMILY, metavar="FAMILY")


@dataclass(frozen=True, kw_only=True)
class LoraEma(Section, title="Averaging"):
    """One LoRA out of several checkpoints of a training."""

    path: tuple[str, ...] = opt(
        None, "LoRA files of one training.", required=True, positional=True, file_kind="lora", metavar="FILE"
    )
    output_file: str = opt(None, "LoRA file to write.", required=True, metavar="FILE")
    no_sort: bool = opt(False, "Use the files in the order given, instead of sorting them by training step.")
    beta: float = opt(0.95, "Weight of the average so far.", low=0, high=1)
    beta2: float | None = opt(None, "Its weight at the last file; in between it changes linearly.", low=0,
                              high=1)  # fmt: skip
    sigma_rel: float | None = opt(
        None, "Width of a power-function average (arXiv 2312.02696) instead of --beta.", low=0.0001,
        high=SIGMA_REL_HIGH,
    )  # fmt: skip

    def __post_init__(self) -> None:
        if len(self.path) < 2:
            raise OptionError("An average needs at least two LoRA files.", hint="Name them all.", names=("path",))
