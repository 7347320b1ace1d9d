"""LoRA files: reading every public naming, writing musubi-tuner's and diffusion-pipe's.

A name is matched against the names of the model's own modules, never guessed from underscores, so `proj_mlp` and
`to_out.0` come out right. Knows no family: diffusers names are translated by the `rename` that a family passes in.
Given up: LoHa and LoKr, which come with a later release, and DoRA.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..contract.errors import WeightsError
from ..contract.files import write_bytes

_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "model.", "unet.")
_KOHYA_PREFIXES = ("lora_unet__", "lora_unet_", "lora_transformer_")
_PARTS = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".alpha": "alpha",
    ".diff_b": "diff_b",
    ".diff": "diff",
}
_ADVICE = "Free some space, or choose another --output_dir."
_OTHER_KINDS = {".hada_w": "LoHa", ".lokr_w": "LoKr", ".dora_scale": "DoRA", ".lora_mid.": "LoCon (CP)", ".oft_": "OFT"}

Rename = Callable[[str], "str | None"]


@dataclass(frozen=True)
class LoraWeights:
    """One adapted module: down [rank, in, …kernel], up [out, rank, …1]; the weight changes by alpha/rank up @ down."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def change(self, device: torch.device | str = "cpu") -> Tensor:
        """The change of the module's weight, float32, in the weight's shape (a kernel larger than 1 included)."""
        down = self.down.to(device, torch.float32)
        up = self.up.to(device, torch.float32)
        change = up.flatten(1) @ down.flatten(1)
        return (change * (self.alpha / self.rank)).reshape(up.shape[0], *down.shape[1:])


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file understood in terms of one model's modules.

    `differences` are full changes of single parameters ("path.weight", "path.bias") that some files hold besides.
    `unmatched` are keys that belong to no module of the model.
    """

    path: Path
    modules: dict[str, LoraWeights]
    differences: dict[str, Tensor] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def dims(self) -> dict[str, tuple[int, float]]:
        """Path -> (rank, alpha), for `network.create(dims=…)`."""
        return {path: (weights.rank, weights.alpha) for path, weights in self.modules.items()}

    def kohya(self, name_prefix: str = "lora_unet_") -> dict[str, Tensor]:
        """The weights under musubi-tuner's names, for `LoraNetwork.load_state` or a file."""
        return to_kohya(self.modules, name_prefix=name_prefix)


def read_lora(
    path: Path | str, *, module_names: Iterable[str], role: str = "--lora_weight", rename: Rename | None = None
) -> LoraFile:
    """Read a LoRA for the model that has these modules.

    `role` is the flag that named the file. `rename` translates a public weight name ("….weight") to ours, or None.
    WeightsError: not readable, not a LoRA, another family's LoRA (no name fits), or an incomplete pair.
    """
    path = Path(path)
    tensors, metadata = _tensors(path, role)
    names = list(module_names)
    exact = set(names)
    flat = {name.replace(".", "_"): name for name in names}
    parts: dict[str, dict[str, Tensor]] = {}
    unmatched = []
    for key, tensor in tensors.items():
        stem, part = _split(key, path)
        name = None if part is None else _module_of(stem, exact, flat, rename)
        if part is None or name is None:
            unmatched.append(key)
        else:
            parts.setdefault(name, {})[part] = tensor
    if not parts:
        first = next(iter(tensors))
        raise WeightsError(
            f"{role} {path.name}: none of its {len(tensors)} tensors belongs to this model (first: {first}).",
            "It is a LoRA of another model family, or no LoRA at all.",
        )
    modules = {name: _pair(path, name, found) for name, found in parts.items() if {"down", "up"} & found.keys()}
    differences = {}
    for name, found in parts.items():
        for part, parameter in (("diff", "weight"), ("diff_b", "bias")):
            if part in found:
                differences[f"{name}.{parameter}"] = found[part]
    return LoraFile(path, modules, differences, tuple(unmatched), metadata)


def _tensors(path: Path, role: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise WeightsError(f"{role} {path}: there is no such file.")
    if path.suffix != ".safetensors":
        return _pickled(path, role), {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a method, not a dict)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{role} {path}: not a readable safetensors file ({error}).", "Fetch it again.") from error
    if not tensors:
        raise WeightsError(f"{role} {path}: the file holds no tensors.")
    return tensors, metadata


def _pickled(path: Path, role: str) -> dict[str, Tensor]:
    """A .pt, .pth or .bin file, read without running anything in it."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is no checkpoint
        raise WeightsError(f"{role} {path}: not a readable LoRA file ({type(error).__name__}).") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    tensors = content if isinstance(content, dict) else {}
    tensors = {str(key): value for key, value in tensors.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{role} {path}: the file holds no tensors.")
    return tensors


def _split(key: str, path: Path) -> tuple[str, str | None]:
    """Key -> (module part, which tensor it is)."""
    for suffix, part in _PARTS.items():
        if key.endswith(suffix):
            return key.removesuffix(suffix), part
    for marker, kind in _OTHER_KINDS.items():
        if marker in key:
            raise WeightsError(f"{path.name} is a {kind} file ({key}); reading these comes with a later release.")
    return key, None


def _module_of(stem: str, exact: set[str], flat: Mapping[str, str], rename: Rename | None) -> str | None:
    for prefix in _KOHYA_PREFIXES:
        if stem.startswith(prefix):
            return flat.get(stem.removeprefix(prefix))
    candidate = stem
    while True:
        if candidate in exact:
            return candidate
        if rename is not None:
            renamed = rename(f"{candidate}.weight")
            if renamed is not None and renamed.removesuffix(".weight") in exact:
                return renamed.removesuffix(".weight")
        before = next((prefix for prefix in _PREFIXES if candidate.startswith(prefix)), None)
        if before is None:
            return None
        candidate = candidate.removeprefix(before)


def _pair(path: Path, name: str, found: Mapping[str, Tensor]) -> LoraWeights:
    if "down" not in found or "up" not in found:
        raise WeightsError(f"{path.name}: {name} has only one half of its LoRA pair.", "The file is incomplete.")
    down, up = found["down"], found["up"]
    if down.shape[0] != up.shape[1]:
        raise WeightsError(f"{path.name}: the two halves of {name} have ranks {down.shape[0]} and {up.shape[1]}.")
    if any(size != 1 for size in up.shape[2:]):
        raise WeightsError(f"{path.name}: {name} has an up half with a kernel {tuple(up.shape[2:])}, which is unknown.")
    alpha = float(found["alpha"]) if "alpha" in found else float(down.shape[0])
    return LoraWeights(down, up, alpha)


def to_kohya(modules: Mapping[str, LoraWeights], *, name_prefix: str = "lora_unet_") -> dict[str, Tensor]:
    """musubi-tuner's naming: `lora_unet_…` with `.alpha`, `.lora_down.weight`, `.lora_up.weight`."""
    tensors = {}
    for path, weights in modules.items():
        name = name_prefix + path.replace(".", "_")
        tensors[f"{name}.alpha"] = torch.tensor(weights.alpha, dtype=torch.float32)
        tensors[f"{name}.lora_down.weight"] = weights.down
        tensors[f"{name}.lora_up.weight"] = weights.up
    return tensors


def to_other(modules: Mapping[str, LoraWeights], *, prefix: str = "diffusion_model") -> dict[str, Tensor]:
    """The naming of diffusion-pipe and ComfyUI: `{prefix}.path.lora_A/B.weight`, no alpha.

    sqrt(alpha / rank) is folded into both halves, in float32, so that readers that know no alpha get it right.
    """
    tensors = {}
    for path, weights in modules.items():
        root = math.sqrt(weights.alpha / weights.rank)
        for half, value in (("A", weights.down), ("B", weights.up)):
            tensors[f"{prefix}.{path}.lora_{half}.weight"] = (value.float() * root).to(value.dtype)
    return tensors


def write_lora(
    path: Path | str,
    tensors: Mapping[str, Tensor],
    *,
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = None,
) -> None:
    """Write a LoRA file whole or not at all; adds the two hashes that LoRA browsers index by.

    `dtype` None keeps each tensor's. DiskError when the disk is full or cannot be written.
    """
    path = Path(path)
    ready = {name: value.detach().to("cpu", dtype).contiguous().clone() for name, value in tensors.items()}
    model_hash, legacy_hash = hashes(ready, metadata)
    metadata = {**metadata, "sshs_model_hash": model_hash, "sshs_legacy_hash": legacy_hash}
    write_bytes(path, safetensors.torch.save(ready, metadata), advice=_ADVICE)


def hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[str, str]:
    """(sshs_model_hash, sshs_legacy_hash): SHA-256 of the tensor data, and the old short hash of a piece of the file.

    Both are taken of the file as it would be with only the `ss_` metadata, the way sd-scripts defines them.
    """
    kept = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    content = memoryview(safetensors.torch.save(dict(tensors), kept))
    header = int.from_bytes(content[:8], "little")
    model_hash = hashlib.sha256(content[8 + header :]).hexdigest()
    legacy_hash = hashlib.sha256(content[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]
    return model_hash, legacy_hash
