"""What a LoRA file contains, as numbers and as lines of text. Reads and writes no files."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .files import LoraFile

_BAR = 30
_TRAINING = {  # key of the metadata -> what a person calls it
    "modelspec.title": "title",
    "ss_output_name": "name",
    "modelspec.architecture": "made for",
    "ss_base_model_version": "base model",
    "ss_sd_model_name": "trained on",
    "ss_network_module": "network module",
    "ss_network_args": "network arguments",
    "ss_steps": "steps",
    "ss_epoch": "epochs",
    "ss_learning_rate": "learning rate",
    "ss_optimizer": "optimizer",
    "ss_lr_scheduler": "schedule",
    "ss_ema_decay": "average (EMA), decay",
    "ss_num_train_items": "training items",
    "ss_timestep_sampling": "noise levels",
    "ss_discrete_flow_shift": "flow shift",
    "ss_seed": "seed",
    "ss_mixed_precision": "precision",
    "ss_training_comment": "comment",
    "modelspec.date": "date",
    "modelspec.license": "license",
    "merged_lora": "merged from",
}


@dataclass(frozen=True)
class LoraInfo:
    """`kinds`, `ranks`, `alphas`: how many modules have each. `norms`: block -> Frobenius norm of all its changes."""

    kinds: dict[str, int]
    ranks: dict[int, int]
    alphas: dict[float, int]
    modules: int
    parameters: int
    dtypes: dict[str, int]
    differences: int
    unmatched: int
    norms: dict[str, float]

    @property
    def norm(self) -> float:
        """Frobenius norm of all changes together."""
        return math.sqrt(sum(value**2 for value in self.norms.values()))

    def values(self) -> dict[str, float]:
        """The numbers, for events."""
        single = {
            "modules": self.modules,
            "parameters": self.parameters,
            "norm": self.norm,
            "unmatched": self.unmatched,
        }
        ranks = {"rank/lowest": min(self.ranks, default=0), "rank/highest": max(self.ranks, default=0)}
        return {**single, **ranks, **{f"norm/{block}": value for block, value in self.norms.items()}}


def describe(file: LoraFile, *, on_module: Callable[[], None] = lambda: None) -> LoraInfo:
    """Count and measure. `on_module` is called after each module, for progress: norms of large LoHas take a while."""
    squares: dict[str, float] = {}
    dtypes: Counter[str] = Counter()
    parameters = 0
    for path, weights in file.modules.items():
        block = _block_of(path)
        squares[block] = squares.get(block, 0.0) + weights.squared_norm()
        tensors = weights.tensors() if weights.kind != "assembled" else {}
        for name, tensor in tensors.items():
            if name != "alpha":
                dtypes[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
                parameters += tensor.numel()
        on_module()
    each = list(file.modules.values())
    kinds = Counter(weights.kind + (" with DoRA" if weights.dora is not None else "") for weights in each)
    return LoraInfo(
        kinds=dict(kinds),
        ranks=dict(sorted(Counter(weights.rank for weights in each).items())),
        alphas=dict(sorted(Counter(weights.alpha for weights in each).items())),
        modules=len(file.modules),
        parameters=parameters + sum(value.numel() for value in file.differences.values()),
        dtypes=dict(dtypes),
        differences=len(file.differences),
        unmatched=len(file.unmatched),
        norms={block: math.sqrt(squares[block]) for block in sorted(squares, key=_by_number)},
    )


def lines(info: LoraInfo, metadata: Mapping[str, str]) -> list[str]:
    """Text for a person: the facts, the training, and the norm of each block as a bar."""
    facts = [
        ("kind", _counted(info.kinds)),
        ("rank", _counted(info.ranks)),
        ("alpha", _counted({f"{alpha:g}": count for alpha, count in info.alphas.items()})),
        ("modules", f"{info.modules}, {info.parameters / 1e6:.1f} M parameters, {_counted(info.dtypes, unit='')}"),
    ]
    facts += [("full changes", f"{info.differences} parameters")] if info.differences else []
    facts += [(words, _short(metadata[key])) for key, words in _TRAINING.items() if metadata.get(key, "None") != "None"]
    width = max(len(word) for word, _ in facts)
    found = [f"{word:<{width}}  {text}" for word, text in facts]
    found.append(f"norm of the change: {info.norm:.4g}, by block:")
    highest, wide = max(info.norms.values(), default=0.0), max(map(len, info.norms), default=0)
    for block, value in info.norms.items():
        bar = "█" * round(_BAR * value / highest) if highest > 0 else ""
        found.append(f"  {block:<{wide}}  {value:9.4g}  {bar}".rstrip())
    return found


def _block_of(path: str) -> str:
    """ "double_blocks.3" of "double_blocks.3.img_attn_qkv"; the path itself outside blocks."""
    found = re.match(r"(.*?\.\d+)\.", path)
    return found[1] if found else path


def _by_number(block: str) -> tuple[str, int]:
    """Sort key for the model's order of blocks; files sort them alphabetically, 10 before 2."""
    name, _, number = block.rpartition(".")
    return (name, int(number)) if number.isdecimal() else (block, 0)


def _counted(counts: Mapping[Any, int], *, unit: str = " modules") -> str:
    """The only value, or each value with its count."""
    if len(counts) == 1 or not unit:
        return ", ".join(str(value) for value in counts) or "none"
    return ", ".join(f"{value} ({count}{unit})" for value, count in counts.items())


def _short(text: str, length: int = 100) -> str:
    try:
        value = json.loads(text)
        text = ", ".join(f"{key}={one}" for key, one in value.items()) if isinstance(value, dict) else text
    except ValueError:
        pass  # not every text is JSON
    return text if len(text) <= length else text[: length - 1] + "…"
