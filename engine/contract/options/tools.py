"""Options of the LoRA tools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import OptionError
from ..schema import Section, opt


@dataclass(frozen=True, kw_only=True)
class LoraConvert(Section, title="Conversion"):
    """From one LoRA naming to another."""

    input: str = opt(None, "LoRA file to read.", required=True, file_kind="lora", metavar="FILE")
    output: str = opt(None, "LoRA file to write.", required=True, metavar="FILE")
    target: Literal["other", "default"] = opt(
        None, "default: musubi-tuner's and kohya's names; other: diffusers' and ComfyUI's.", required=True
    )
    diffusers_prefix: str | None = opt(
        None, "First part of the names for --target other. Default: diffusion_model.", metavar="NAME"
    )


@dataclass(frozen=True, kw_only=True)
class LoraMerge(Section, title="Merging"):
    """LoRAs into a model file."""

    dit: str = opt(None, "DiT file to merge into.", required=True, file_kind="dit", metavar="FILE")
    dit_in_channels: int | None = opt(
        None, "Input channels of the DiT; read from the file, so it need not be given.", low=1, advanced=True
    )
    lora_weight: tuple[str, ...] = opt(
        None, "LoRA files, merged in this order.", required=True, file_kind="lora", metavar="FILE"
    )
    lora_multiplier: tuple[float, ...] = opt(
        (1.0,), "Strength of each LoRA; those that are left out count 1.", metavar="X"
    )
    save_merged_model: str = opt(None, "Model file to write.", required=True, metavar="FILE")


@dataclass(frozen=True, kw_only=True)
class LoraInfo(Section, title="LoRA"):
    """What is in a LoRA file."""

    path: tuple[str, ...] = opt(None, "LoRA files.", required=True, positional=True, file_kind="lora", metavar="FILE")


@dataclass(frozen=True, kw_only=True)
class LoraEma(Section, title="Averaging"):
    """One LoRA out of several checkpoints of a training."""

    path: tuple[str, ...] = opt(
        None, "LoRA files of one training.", required=True, positional=True, file_kind="lora", metavar="FILE"
    )
    output_file: str = opt(None, "LoRA file to write.", required=True, metavar="FILE")
    no_sort: bool = opt(False, "Take the files in the order given, not by their time.")
    beta: float = opt(0.95, "How much the average so far counts.", low=0, high=1)
    beta2: float | None = opt(None, "How much it counts at the last file; in between it changes evenly.", low=0,
                              high=1)  # fmt: skip
    sigma_rel: float | None = opt(
        None, "Width of a power-function average (arXiv 2312.02696) instead of --beta.", low=0.0001, high=0.2886
    )

    def __post_init__(self) -> None:
        if len(self.path) < 2:
            raise OptionError("An average needs two LoRA files or more.", hint="Name them all.", names=("path",))
