"""The adapters of a frozen model: where they go, and how they are trained and written as a whole.

Knows no family: the block classes and the patterns come from the family's keys.py, the kind of adapter from
arguments.py. Given up: adapters on text encoders.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..contract.errors import OptionError, WeightsError
from ..contract.wording import first_few
from .adapters import CONVOLUTIONS, KINDS, Adapter, LoraAdapter, is_linear
from .formats import kohya_name
from .weights import AdapterWeights

__all__ = ["LoraNetwork", "NormStats", "create", "kohya_name", "targets"]


@dataclass(frozen=True)
class NormStats:
    """What `--scale_weight_norms` did: modules scaled down, mean and largest norm afterwards."""

    scaled: int
    average: float
    largest: float

    def named(self) -> dict[str, float]:
        """Under the names that sd-scripts logs."""
        return {
            "keys_scaled": float(self.scaled),
            "average_key_norm": self.average,
            "max_key_norm": self.largest,
        }


class LoraNetwork(nn.Module):
    """All adapters of a model, under the names that LoRA files use."""

    def __init__(self, dit: nn.Module, adapters: Mapping[str, Adapter], *, rates: Mapping[str, float] | None = None):
        """`rates`: regular expression for whole module paths -> learning rate of these; the first match counts."""
        super().__init__()
        self._rates = dict(rates or {})
        self.adapters = nn.ModuleDict(adapters)
        self._bases = {name: dit.get_submodule(adapter.path) for name, adapter in adapters.items()}

    @property
    def paths(self) -> dict[str, str]:
        """Name in the file (without suffix) -> path of the module in the model."""
        return {name: adapter.path for name, adapter in self._each()}

    @property
    def kinds(self) -> list[str]:
        """The kinds of the adapters, in words, sorted."""
        return sorted({adapter.name for _, adapter in self._each()})

    @property
    def ranks(self) -> list[int]:
        """The ranks of the adapters, smallest first."""
        return sorted({adapter.dim for _, adapter in self._each()})

    @property
    def alphas(self) -> list[float]:
        """The alphas of the adapters, smallest first."""
        return sorted({float(adapter.alpha) for _, adapter in self._each()})

    @property
    def has_wide_convolutions(self) -> bool:
        """Whether any adapter is on a convolution with a kernel larger than 1."""
        return any(not _is_pointwise(base) for base in self._bases.values())

    @property
    def multiplier(self) -> float:
        """How strongly the adapters act; 0 skips them."""
        return next(adapter.multiplier for _, adapter in self._each())

    @multiplier.setter
    def multiplier(self, value: float) -> None:
        for _, adapter in self._each():
            adapter.multiplier = float(value)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside this block the model is the base model."""
        for _, adapter in self._each():
            adapter.enabled = False
        try:
            yield
        finally:
            for _, adapter in self._each():
                adapter.enabled = True

    def detach(self) -> None:
        """Take all adapters off the model again."""
        for name, adapter in self._each():
            adapter.detach_from(self._bases[name])

    def learning_in(self, block: nn.Module) -> list[nn.Parameter] | None:
        """Parameters of the adapters inside a block of the model; None if one is not plain (`Adapter.is_plain`)."""
        modules = set(block.modules())
        inside = [adapter for name, adapter in self._each() if self._bases[name] in modules]
        if not all(adapter.is_plain for adapter in inside):
            return None
        return [parameter for adapter in inside for parameter in adapter.parameters()]

    def state(self) -> dict[str, Tensor]:
        """Tensors under kohya names (`….alpha`, `….lora_down.weight`, `….hada_w1_a` …), not copied."""
        return {name.removeprefix("adapters."): value.detach() for name, value in self.state_dict().items()}

    def weights(self) -> dict[str, AdapterWeights]:
        """Module path -> what its adapter changes, for writing other formats; not copied."""
        return {adapter.path: adapter.weights() for _, adapter in self._each()}

    def check_state(self, tensors: Mapping[str, Tensor]) -> None:
        """WeightsError unless all weights are there, under kohya names, and fit. On "meta" too."""
        own = self.state()
        missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
        if missing or unknown:
            shown = first_few(missing or unknown)
            raise WeightsError(
                f"These LoRA weights do not belong to this network: {len(missing)} tensors missing, "
                f"{len(unknown)} unknown (first: {shown}).",
                "Use the same --network_module and --network_args, and the same kind of model, as when they were "
                "saved, or take all of it from the file with --dim_from_weights.",
            )
        for name, value in own.items():
            if value.shape != tensors[name].shape:
                raise WeightsError(
                    f"{name} has shape {tuple(tensors[name].shape)}, the network needs {tuple(value.shape)}.",
                    "Use the --network_dim of that file, or --dim_from_weights. If a width differs, the file was made "
                    "for another size of the model.",
                )

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Load weights under kohya names; all must be there and fit (WeightsError otherwise)."""
        self.check_state(tensors)
        self.load_state_dict({f"adapters.{name}": value for name, value in tensors.items()})
        for _, adapter in self._each():
            adapter.refresh()

    def parameter_groups(self, lr: float, loraplus_lr_ratio: float | None = None) -> list[dict[str, Any]]:
        """Groups for an optimizer, each with `lr` and a `name` ("unet", "unet plus", "unet reg_1") for the log.

        LoRA+ (arXiv 2402.12354): the up matrices learn `loraplus_lr_ratio` times as fast.
        """
        self.requires_grad_(True)
        groups: dict[str, dict[str, Any]] = {}
        for _, adapter in self._each():
            name, rate = "unet", lr
            for number, (pattern, own) in enumerate(self._rates.items(), 1):
                if re.fullmatch(pattern, adapter.path):
                    name, rate = f"unet reg_{number}", own
                    break
            for parameter_name, parameter in adapter.named_parameters():
                fast = bool(loraplus_lr_ratio) and parameter_name.startswith("lora_up")
                called = f"{name} plus" if fast else name
                value = rate * (loraplus_lr_ratio or 1.0) if fast else rate
                groups.setdefault(called, {"params": [], "lr": value, "name": called})["params"].append(parameter)
        return sorted(groups.values(), key=lambda group: group["name"])

    @torch.no_grad()
    def weight_norm(self) -> float:
        """Frobenius norm of all changes of weights together: 0 until something is learnt. Waits for the device."""
        return float(torch.stack([adapter.squared_norm() for _, adapter in self._each()]).sum().sqrt())

    @torch.no_grad()
    def clamp_norms(self, max_norm: float) -> NormStats:
        """Shrink every change of a weight whose Frobenius norm exceeds `max_norm`; waits for the device once."""
        each = [adapter for _, adapter in self._each()]
        norms = torch.stack([adapter.squared_norm() for adapter in each]).sqrt()
        ratios = (max_norm / norms.clamp(min=max_norm / 2)).clamp(max=1.0)
        for adapter, ratio in zip(each, ratios.unbind(), strict=True):
            factors = adapter.factors()
            for factor in factors:
                factor.mul_(ratio ** (1 / len(factors)))
        after = norms * ratios
        scaled, average, largest = torch.stack([(ratios < 1).sum().float(), after.mean(), after.max()]).tolist()
        return NormStats(int(scaled), average, largest)

    def _each(self) -> Iterator[tuple[str, Adapter]]:
        return iter(self.adapters.items())  # type: ignore[arg-type]


def targets(
    dit: nn.Module, *, block_classes: Iterable[str], exclude: Sequence[str] = (), include: Sequence[str] = ()
) -> dict[str, nn.Module]:
    """Path -> module of every Linear and convolution in blocks of these classes, in the model's order.

    A pattern must match the whole path; what `include` matches is kept even if `exclude` matches it too.
    """
    without, within = _compiled("exclude_patterns", exclude), _compiled("include_patterns", include)
    classes = set(block_classes)
    found: dict[str, nn.Module] = {}
    for block_path, block in dit.named_modules():
        if type(block).__name__ not in classes:
            continue
        for name, module in block.named_modules(prefix=block_path):
            if not is_linear(module) and not isinstance(module, CONVOLUTIONS):
                continue
            excluded = any(pattern.fullmatch(name) for pattern in without)
            if not excluded or any(pattern.fullmatch(name) for pattern in within):
                found[name] = module
    return found


def _compiled(key: str, patterns: Sequence[str]) -> list[re.Pattern[str]]:
    try:
        return [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise OptionError(f"--network_args {key}: {error.pattern!r} is not a regular expression ({error}).") from error


def create(
    dit: nn.Module,
    *,
    block_classes: Iterable[str],
    exclude: str | Sequence[str],
    include_patterns: Sequence[str] = (),
    exclude_patterns: Sequence[str] = (),
    kind: type[Adapter] = LoraAdapter,
    options: Mapping[str, Any] | None = None,
    decompose: bool = False,
    dim: int = 4,
    alpha: float | None = 1.0,
    dropout: float | None = None,
    rank_dropout: float | None = None,
    module_dropout: float | None = None,
    conv_dim: int | None = None,
    conv_alpha: float | None = 1.0,
    ranks: Mapping[str, int] | None = None,
    rates: Mapping[str, float] | None = None,
    name_prefix: str = "lora_unet_",
    seed: int | None = None,
) -> LoraNetwork:
    """Put adapters on a model and freeze the model itself.

    `exclude`: the family's own patterns; `exclude_patterns`: the person's; `include_patterns` bring back what either
    excludes. `options`: those of the kind. `decompose`: DoRA. `alpha` 0 or None means the rank. Convolutions with
    kernels larger than 1 are adapted only with `conv_dim` or a rank in `ranks`, and no convolution at all by a kind for
    linear layers or with DoRA. `ranks`: regular expression for whole paths -> rank, instead of `dim`; the first match
    counts. `rates`: see LoraNetwork. `seed` makes the initial values repeatable. Adapters of a model on "meta" are on
    "meta", all others on the CPU.
    OptionError: nothing is left to adapt, or a value does not fit.
    """
    if dim < 1:
        raise OptionError(f"--network_dim {dim} must be at least 1.")
    patterns = [*([exclude] if isinstance(exclude, str) else exclude), *exclude_patterns]
    modules = targets(
        dit, block_classes=block_classes, exclude=[one for one in patterns if one], include=include_patterns
    )
    linear_only = kind.linear_only or decompose
    sizes: dict[str, tuple[int, float | None]] = {}
    for path, module in modules.items():
        if linear_only and not is_linear(module):
            continue
        rank, own_alpha = (dim, alpha) if _is_pointwise(module) else (conv_dim or 0, conv_alpha)
        rank = next((own for pattern, own in (ranks or {}).items() if re.fullmatch(pattern, path)), rank)
        if rank:
            sizes[path] = (rank, own_alpha)
    common = {**_common(dropout, rank_dropout, module_dropout, seed), "decompose": decompose, **(options or {})}
    adapters = {
        path: kind(modules[path], path=path, dim=rank, alpha=own_alpha, **common)
        for path, (rank, own_alpha) in sizes.items()
    }
    return _attach(dit, adapters, name_prefix, rates)


def create_like(
    dit: nn.Module,
    modules: Mapping[str, AdapterWeights],
    *,
    dropout: float | None = None,
    rank_dropout: float | None = None,
    module_dropout: float | None = None,
    rates: Mapping[str, float] | None = None,
    name_prefix: str = "lora_unet_",
    seed: int | None = None,
) -> LoraNetwork:
    """Put adapters of the kinds, ranks and alphas of a LoRA file on exactly its modules; values are not loaded yet.

    WeightsError for an adapter that exists only in pieces (`pieces.Assembled`).
    """
    common = _common(dropout, rank_dropout, module_dropout, seed)
    adapters = {}
    for path, weights in modules.items():
        if (kind := KINDS.get(type(weights))) is None:
            raise WeightsError(
                f"{path} cannot be trained further: its {weights.kind} adapter was cut or joined to fit this model.",
                "Give a LoRA of this model, or merge this one with --base_weights.",
            )
        adapters[path] = kind.like(dit.get_submodule(path), weights, path=path, **common)
    return _attach(dit, adapters, name_prefix, rates)


def _attach(
    dit: nn.Module, adapters: Mapping[str, Adapter], name_prefix: str, rates: Mapping[str, float] | None
) -> LoraNetwork:
    if not adapters:
        raise OptionError("No module of the model is left to adapt.", "Relax exclude_patterns in --network_args.")
    dit.requires_grad_(False)
    named = {kohya_name(path, name_prefix): adapter for path, adapter in adapters.items()}
    return LoraNetwork(dit, named, rates=rates)


def _is_pointwise(module: Any) -> bool:
    return is_linear(module) or all(size == 1 for size in module.kernel_size)


def _common(
    dropout: float | None, rank_dropout: float | None, module_dropout: float | None, seed: int | None
) -> dict[str, Any]:
    """The arguments that all adapters of a network share."""
    named = {"--network_dropout": dropout, "rank_dropout": rank_dropout, "module_dropout": module_dropout}
    for name, value in named.items():
        if value is not None and not 0 <= value < 1:
            raise OptionError(f"{name} {value:g} is not a probability: it must be at least 0 and below 1.")
    return {
        "dropouts": (dropout or 0.0, rank_dropout or 0.0, module_dropout or 0.0),
        "generator": None if seed is None else torch.Generator().manual_seed(seed),
    }
