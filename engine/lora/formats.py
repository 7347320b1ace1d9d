"""The names under which a LoRA is written: musubi-tuner's, ComfyUI's, diffusers'.

`default` is musubi-tuner's and kohya's, with alpha. `other` is what diffusion-pipe and ComfyUI use: the module's own
path after a prefix. `diffusers` has diffusers' layers, which in some families are parts of ours. The change of every
weight is the same in all three. Which readers honour alpha (ComfyUI a125cd84, diffusers 0.42.1, PEFT 0.21.2): ComfyUI
for every kind of adapter, diffusers and PEFT for none. Knows no family.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from ..contract.errors import WeightsError
from .names import Parts
from .weights import PARTS, AdapterWeights, LoraWeights

Format = Literal["default", "other", "diffusers"]
OTHER_PREFIX, DIFFUSERS_PREFIX = "diffusion_model", "transformer"
_LENGTHS = ".dora_scale"
_HALVES = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}


def kohya_name(path: str, prefix: str = "lora_unet_") -> str:
    """A module path as LoRA files of kohya and musubi-tuner have it."""
    return prefix + path.replace(".", "_")


def to_default(modules: Mapping[str, AdapterWeights], *, prefix: str = "lora_unet_") -> dict[str, Tensor]:
    """musubi-tuner's naming: `lora_unet_…` with `.alpha`, `.lora_down.weight`, `.lora_up.weight` and the like."""
    return {
        f"{kohya_name(path, prefix)}.{name}": tensor
        for path, weights in modules.items()
        for name, tensor in weights.tensors().items()
    }


def to_other(
    modules: Mapping[str, AdapterWeights], *, prefix: str = OTHER_PREFIX, keep_alpha: bool = False
) -> dict[str, Tensor]:
    """The naming of diffusion-pipe and ComfyUI: `{prefix}.path.lora_A/B.weight`.

    sqrt(alpha / rank) is folded into each half, so that readers that ignore alpha get it right; with `keep_alpha` the
    halves are left alone and alpha is written. LoHa and LoKr always keep theirs.
    """
    tensors: dict[str, Tensor] = {}
    for path, weights in modules.items():
        fold = isinstance(weights, LoraWeights) and not keep_alpha
        tensors |= _dotted(f"{prefix}.{path}", weights, fold=fold)
    return tensors


def _dotted(name: str, weights: AdapterWeights, *, fold: bool) -> dict[str, Tensor]:
    parts = folded(weights) if fold else weights.tensors()
    return {f"{name}.{_HALVES.get(part, part)}": tensor for part, tensor in parts.items()}


def to_diffusers(
    modules: Mapping[str, AdapterWeights],
    *,
    parts_of: Parts,
    prefix: str = DIFFUSERS_PREFIX,
    keep_alpha: bool = False,
) -> dict[str, Tensor]:
    """diffusers' naming: its layers after `transformer.`. `parts_of`: the family's `diffusers_parts`.

    Alpha is folded into the parts of every kind, unless `keep_alpha`. A layer that is several in diffusers is cut: each
    part but the last has as many rows as the layer has columns, the model's width. WeightsError: it cannot be cut.
    """
    apart: dict[str, AdapterWeights] = {}
    for path, weights in modules.items():
        names = parts_of(path)
        if len(names) == 1:
            apart[names[0]] = weights
            continue
        if not isinstance(weights, LoraWeights):  # others would lose their kind, or could not be read by diffusers
            raise WeightsError(
                f"diffusers has {len(names)} layers for {path}, and a {weights.kind} cannot be split.",
                "Choose --target other.",
            )
        apart |= {name: weights.rows(start, stop) for name, start, stop in _rows(weights, names)}
    tensors: dict[str, Tensor] = {}
    for name, weights in apart.items():
        tensors |= _dotted(f"{prefix}.{name}", weights, fold=not keep_alpha)
    return {
        _peft_name(name): tensor.squeeze(1) if name.endswith(_LENGTHS) else tensor for name, tensor in tensors.items()
    }


def _rows(weights: LoraWeights, names: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """(name, first row, one past its last) of each of diffusers' layers."""
    width = weights.down.shape[1]
    stops = [*(width * number for number in range(1, len(names))), weights.out_features]
    return zip(names, [0, *stops], stops, strict=False)


def _peft_biases(
    modules: Mapping[str, AdapterWeights],
    differences: Mapping[str, Tensor],
    *,
    parts_of: Parts,
    prefix: str,
    keep_alpha: bool,
) -> dict[str, Tensor]:
    """Changes of biases as PEFT stores them: with `keep_alpha` it multiplies them by alpha / rank, like the halves.

    PEFT's `lora_bias` applies to all layers, so those without a change get zeros. Empty unless every change is of a
    bias in a module with a LoRA, and no module has a DoRA, LoHa or LoKr, for which PEFT has no bias.
    """
    loras = {path: one for path, one in modules.items() if isinstance(one, LoraWeights) and one.dora is None}
    if not differences or len(loras) < len(modules) or differences.keys() - {f"{path}.bias" for path in loras}:
        return {}
    dtype = next(iter(differences.values())).dtype
    tensors = {}
    for path, weights in loras.items():
        change = differences.get(f"{path}.bias", torch.zeros(weights.out_features, dtype=dtype))
        change = change / weights.scale if keep_alpha else change
        for name, start, stop in _rows(weights, parts_of(path)):
            tensors[f"{prefix}.{name}.lora_B.bias"] = change[start:stop]
    return tensors


def _peft_name(name: str) -> str:
    return name.removesuffix(_LENGTHS) + ".lora_magnitude_vector" if name.endswith(_LENGTHS) else name


def folded(weights: AdapterWeights) -> dict[str, Tensor]:
    """The parts without alpha: the scale is multiplied into the factors of the change, in equal shares, in float32.

    WeightsError for a negative alpha.
    """
    if weights.scale < 0:
        raise WeightsError(f"alpha {weights.alpha:g} is negative and cannot be folded.", "Keep alpha in the file.")
    parts = {name: tensor for name, tensor in weights.tensors().items() if name != "alpha"}
    share = weights.scale ** (1 / sum(name in PARTS for name in parts))
    return {
        name: (tensor.float() * share).to(tensor.dtype) if name in PARTS else tensor for name, tensor in parts.items()
    }


def differences_named(differences: Mapping[str, Tensor], *, prefix: str | None) -> dict[str, Tensor]:
    """Names for full changes: `….diff` of a weight or a parameter outside of any layer, `….diff_b` of a bias.

    `prefix` None: musubi-tuner's naming; else what precedes the module's own path.
    """
    tensors = {}
    for name, value in differences.items():
        path, _, parameter = name.rpartition(".")
        module, part = (path, {"weight": "diff", "bias": "diff_b"}[parameter]) if parameter in ("weight", "bias") else (
            name, "diff"
        )  # fmt: skip
        tensors[f"{kohya_name(module) if prefix is None else f'{prefix}.{module}'}.{part}"] = value
    return tensors


def named(
    modules: Mapping[str, AdapterWeights],
    wanted: Format,
    *,
    parts_of: Parts,
    differences: Mapping[str, Tensor] | None = None,
    prefix: str | None = None,
    keep_alpha: bool = False,
) -> dict[str, Tensor]:
    """The tensors of a file in the `wanted` format; `prefix` None takes that format's usual one.

    WeightsError for `differences` in diffusers' format, other than biases of LoRAs: it has no names for them.
    """
    if wanted == "default":
        return to_default(modules) | differences_named(differences or {}, prefix=None)
    if wanted == "other":
        prefix = prefix or OTHER_PREFIX
        rest = differences_named(differences or {}, prefix=prefix)
        return to_other(modules, prefix=prefix, keep_alpha=keep_alpha) | rest
    prefix = prefix or DIFFUSERS_PREFIX
    biases = _peft_biases(modules, differences or {}, parts_of=parts_of, prefix=prefix, keep_alpha=keep_alpha)
    if differences and not biases:
        raise WeightsError(
            f"diffusers has no names for full changes of parameters, of which this file has {len(differences)} "
            f"(first: {next(iter(differences))}).",
            "Choose --target other.",
        )
    return to_diffusers(modules, parts_of=parts_of, prefix=prefix, keep_alpha=keep_alpha) | biases
