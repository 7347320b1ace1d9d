"""What PEFT and diffusers store about a LoRA besides its weights: alpha, and how it is applied.

PEFT writes `adapter_config.json` beside the file, diffusers puts the same into the metadata of the file itself. Neither
has `alpha` among the tensors. Module names are those of the file.
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
"""Key of a file's metadata: the settings of its adapter, alpha among them. To be dropped when alpha is folded into the
weights, or diffusers would apply it twice."""
_PARTS = ("transformer.", "unet.")


@dataclass(frozen=True)
class PeftSettings:
    """The settings of one adapter. `alphas`: exceptions, end of a module's name (a regular expression) -> alpha."""

    alpha: float | None = None
    alphas: dict[str, float] = field(default_factory=dict)
    rank_stabilised: bool = False

    def alpha_of(self, module: str, rank: int) -> float | None:
        """The alpha for which alpha / rank is the scale that PEFT uses; None if there is no setting."""
        alpha = next((value for end, value in self.alphas.items() if _ends_with(module, end)), self.alpha)
        return alpha if alpha is None or not self.rank_stabilised else alpha * math.sqrt(rank)


def find_weights(path: Path, *, role: str) -> Path:
    """The file of weights in a PEFT folder; a file is returned as is. WeightsError: none, or several others."""
    if not path.is_dir():
        return path
    for name in WEIGHTS:
        if (path / name).is_file():
            return path / name
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    count = f"{len(found)} .safetensors files" if found else "no LoRA file"
    raise WeightsError(f"{role}: the folder {path} has {count}.", "Give the file instead of the folder.")


def peft_settings(path: Path, metadata: dict[str, str]) -> PeftSettings:
    """The settings of the LoRA file `path`, all None if it has none. WeightsError: they cannot be read."""
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


def _settings(config: dict[str, Any]) -> PeftSettings:
    alpha = config.get("lora_alpha")
    return PeftSettings(
        alpha=None if alpha is None else float(alpha),
        alphas={str(end): float(value) for end, value in (config.get("alpha_pattern") or {}).items()},
        rank_stabilised=bool(config.get("use_rslora")),
    )


def _unprefixed(config: dict[str, Any]) -> dict[str, Any]:
    """The transformer's settings among diffusers', whose keys begin with a part of the pipeline."""
    return {key.removeprefix(part): value for part in _PARTS for key, value in config.items() if key.startswith(part)}


def _ends_with(module: str, end: str) -> bool:
    return re.fullmatch(rf"(?:.*\.)?(?:{end})", module) is not None
