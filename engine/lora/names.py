"""Which module a tensor of a LoRA file belongs to, and which part of its adapter it is.

A name is matched against the names of the model's own modules, never guessed from underscores, so `proj_mlp` and
`to_out.0` come out right, and so do names in which a tool has turned every `_` into `.`. Knows no family: functions of
a family's keys.py know what other layouts call the modules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import nn

PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "model.", "unet.")
FLAT_PREFIXES = ("lora_unet__", "lora_unet_", "lora_transformer_", "lycoris_")
"""Prefixes of names whose dots were turned into underscores; the first is VideoX-Fun's."""

_SIDES = {"A": "down", "B": "up", "down": "down", "up": "up", "mid": "mid"}
_LORA_ENDINGS = (
    r"\.lora_(?P<side>down|up|mid)\.weight",  # kohya, musubi-tuner
    r"\.lora_(?P<side>A|B)(?:\.(?!(?:weight|bias)$)[^.]+)?(?:\.weight)?",  # PEFT, with or without the adapter's name
    r"(?:\.|_)lora\.(?P<side>down|up)\.weight",  # diffusers before PEFT
    r"\.lora_linear_layer\.(?P<side>down|up)\.weight",
)
_OTHER_ENDINGS = {
    r"\.lora_magnitude_vector(?:\.[^.]+)*": "dora_scale",
    r"\.dora_layer\.weight": "dora_scale",  # Blissful Tuner
    r"\.lora_B(?:\.[^.]+)?\.bias": "lora_up.bias",  # PEFT's lora_bias
    r"\.w_norm": "diff",
    r"\.b_norm": "diff_b",
    r"\.(?P<name>hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)|dora_scale|alpha|diff|diff_b|diff_m)": "",
}
_ENDINGS = [
    *((re.compile(rf"(?P<stem>.+?){ending}"), "") for ending in _LORA_ENDINGS),
    *((re.compile(rf"(?P<stem>.+?){ending}"), part) for ending, part in _OTHER_ENDINGS.items()),
]
UNREADABLE = {".oft_": "OFT", ".boft_": "BOFT", ".on_input": "(IA)^3", ".bm1.": "GLoRA", ".lora_E": "AdaLoRA"}

Rename = Callable[[str], "str | None"]
Parts = Callable[[str], "tuple[str, ...]"]


def split(key: str) -> tuple[str, str] | None:
    """(the file's name for the module, the part of its adapter), or None for a key of no known form.

    Parts are named as in kohya's files, without prefix: `lora_down.weight`, `hada_w1_a`, `alpha`, `dora_scale`, `diff`
    …; only PEFT has `lora_up.bias`.
    """
    for pattern, part in _ENDINGS:
        if found := pattern.fullmatch(key):
            groups = found.groupdict()
            if side := groups.get("side"):
                return groups["stem"], f"lora_{_SIDES[side]}.weight"
            return groups["stem"], part or groups["name"]
    return None


@dataclass(frozen=True)
class Place:
    """Where an adapter of a file belongs: to `modules`, usually one; of several it has the output rows in this order.

    `part` (from 0) of `of`: it is only one of several layers that make up the module.
    """

    modules: tuple[str, ...]
    part: int = 0
    of: int = 1


class LoraTarget:
    """The modules of a model, found under whatever name a LoRA file uses.

    `shapes`: path -> shape of its weight, () if it has none. `bare`: parameters that are not named weight or bias.
    `biasless`: modules that have a weight but no bias. The others are functions of a family's keys.py: `dit_name` (for
    `rename`), `diffusers_parts`, `lora_pieces`.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        bare: Iterable[str] = (),
        biasless: Iterable[str] = (),
        rename: Rename | None = None,
        diffusers_parts: Parts | None = None,
        lora_pieces: Parts | None = None,
    ) -> None:
        self.shapes = dict(shapes)
        self.bare, self.biasless = frozenset(bare), frozenset(biasless)
        self._rename, self._pieces = rename, lora_pieces
        self._flat: dict[str, Place] = {}
        for path in self.shapes:
            names = diffusers_parts(path) if diffusers_parts else ()
            for part, name in enumerate(names):
                self._flat[flattened(name)] = Place((path,), part, len(names))
        self._flat |= {flattened(path): Place((path,)) for path in (*self.shapes, *self.bare)}

    @classmethod
    def of(cls, model: nn.Module, **names: Callable[[str], object]) -> LoraTarget:
        """The target for `model`. `names`: `rename`, `diffusers_parts`, `lora_pieces`."""
        shapes, biasless = {}, []
        for path, module in model.named_modules():
            weight = getattr(module, "weight", None)
            if path:
                shapes[path] = () if weight is None else tuple(weight.shape)
            if weight is not None and getattr(module, "bias", None) is None:
                biasless.append(path)
        bare = [name for name, _ in model.named_parameters() if name.rpartition(".")[2] not in ("weight", "bias")]
        return cls(shapes, bare=bare, biasless=biasless, **names)  # type: ignore[arg-type]

    def find(self, stem: str) -> Place | None:
        """The place of the module that a file calls `stem`; None if the model has no such module."""
        for prefix in FLAT_PREFIXES:
            if stem.startswith(prefix):
                return self._look_up(stem.removeprefix(prefix))
        candidate = stem
        while True:
            if found := self._look_up(candidate):
                return found
            before = next((prefix for prefix in PREFIXES if candidate.startswith(prefix)), None)
            if before is None:
                return None
            candidate = candidate.removeprefix(before)

    def _look_up(self, name: str) -> Place | None:
        flat = flattened(name)
        if flat in self._flat:
            return self._flat[flat]
        if self._pieces is not None:
            modules = self._pieces(flat)
            if modules and all(module in self.shapes for module in modules):
                return Place(modules)
        renamed = self._rename(f"{name}.weight") if self._rename else None
        path = (renamed or "").removesuffix(".weight")
        return Place((path,)) if path in self.shapes else None


def flattened(path: str) -> str:
    """Dots replaced by underscores, as in kohya's names."""
    return path.replace(".", "_")
