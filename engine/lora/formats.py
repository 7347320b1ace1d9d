"""The names under which a LoRA is written: musubi-tuner's, ComfyUI's, diffusers'.

`default` is musubi-tuner's and kohya's, with alpha. `other` is what diffusion-pipe and ComfyUI use: the module's own
path after a prefix. `diffusers` has the layers that diffusers has, which are parts of ours in some families. The
change of every weight is the same in all three. Which readers know alpha (ComfyUI a125cd84, diffusers 0.42.1, PEFT
0.21.2): ComfyUI, of every kind; diffusers and PEFT, of none. Knows no family.
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
    """Module path as LoRA files of kohya and musubi-tuner write it."""
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

    sqrt(alpha / rank) is folded into both halves, so that readers that know no alpha get it right; `keep_alpha` leaves
    the halves alone and writes alpha. LoHa and LoKr keep theirs in any case.
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
    """diffusers' layers after `transformer.`; `parts_of` is the family's `diffusers_parts`.

    Alpha is folded into the parts of every kind, unless `keep_alpha`. A layer that is several in diffusers is cut: each
    but the last has as many rows as the model is wide, which is the number of its columns. WeightsError for what cannot
    be cut.
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
    """Each of diffusers' layers with its first row and one past its last."""
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
    """Changes of biases as PEFT has them, which multiplies them by alpha / rank (`keep_alpha`) as it does the halves.

    PEFT's `lora_bias` is one word for all layers, so those without a change get zeros. Empty, which leaves the changes
    without a name, unless all are of modules with a LoRA: of DoRA, LoHa and LoKr PEFT knows no bias.
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
    """The parts without alpha: the scale has gone into those whose product the change is, in equal shares, in float32.

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
    """Full changes of single parameters: `….diff` of a weight (or of a parameter that stands alone), `….diff_b`.

    `prefix` None is musubi-tuner's naming, else what stands before the module's own path.
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
    """The tensors of a file in the format that is wanted; `prefix` None takes that format's usual one.

    WeightsError for `differences` in diffusers' format, which has no place for them but for biases of LoRAs.
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
