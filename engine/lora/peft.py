"""What PEFT and diffusers say about a LoRA beside its weights: alpha, and how it counts.

PEFT writes `adapter_config.json` beside the file, diffusers puts the same into the metadata of the file itself. Both
leave `alpha` out of the tensors. Knows no module names: they come as the file has them.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..contract.errors import WeightsError

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors", "adapter_model.bin")
METADATA = "lora_adapter_metadata"
"""Of a file: the settings of the adapter that is in it, alpha among them. Not true any more of one that alpha is folded
into, which diffusers would count twice."""
_PARTS = ("transformer.", "unet.")


@dataclass(frozen=True)
class PeftSettings:
    """The settings of one adapter; `alphas` are exceptions: (end of a module's name as a regular expression, alpha)."""

    alpha: float | None = None
    alphas: dict[str, float] = field(default_factory=dict)
    rank_stabilised: bool = False

    def alpha_of(self, module: str, rank: int) -> float | None:
        """The alpha that makes alpha / rank the scale that PEFT uses; None when nothing is said."""
        alpha = next((value for end, value in self.alphas.items() if _ends_with(module, end)), self.alpha)
        return alpha if alpha is None or not self.rank_stabilised else alpha * math.sqrt(rank)


def find_weights(path: Path, *, role: str) -> Path:
    """The file that a PEFT folder stands for; a file stands for itself. WeightsError when there is none."""
    if not path.is_dir():
        return path
    for name in WEIGHTS:
        if (path / name).is_file():
            return path / name
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    told = f"{len(found)} .safetensors files" if found else "no LoRA file"
    raise WeightsError(f"{role}: the folder {path} has {told}.", "Give the file instead of the folder.")


def peft_settings(path: Path, metadata: dict[str, str]) -> PeftSettings:
    """What is known about the LoRA file `path`. WeightsError when the settings cannot be read."""
    beside = path.with_name(CONFIG)
    try:
        if METADATA in metadata:
            return _settings(_unprefixed(json.loads(metadata[METADATA])))
        if path.name.startswith("adapter_model.") and beside.is_file():
            return _settings(json.loads(beside.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError) as error:
        source = METADATA if METADATA in metadata else beside.name
        raise WeightsError(
            f"{path.name}: its PEFT settings ({source}) cannot be read: {error}.", "Fetch it again."
        ) from error
    return PeftSettings()


def _settings(told: dict[str, Any]) -> PeftSettings:
    alpha = told.get("lora_alpha")
    return PeftSettings(
        alpha=None if alpha is None else float(alpha),
        alphas={str(end): float(value) for end, value in (told.get("alpha_pattern") or {}).items()},
        rank_stabilised=bool(told.get("use_rslora")),
    )


def _unprefixed(told: dict[str, Any]) -> dict[str, Any]:
    """Of diffusers' settings, which have the part of the pipeline before each key, those of the transformer."""
    return {key.removeprefix(part): value for part in _PARTS for key, value in told.items() if key.startswith(part)}


def _ends_with(module: str, end: str) -> bool:
    return re.fullmatch(rf"(?:.*\.)?(?:{end})", module) is not None
