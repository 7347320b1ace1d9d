"""LoRA adapters on a frozen model: y = base(x) + multiplier * alpha / rank * up(down(x)).

An adapter wraps the forward of the module that it adapts, so it does not care what the base weights are (bf16, fp16,
fp8 behind a wrapped forward). Adapters are float32 and compute in whatever autocast says. Knows no family: the block
classes and the patterns come from the family's `keys.py`. Given up: adapters on text encoders.
"""

from __future__ import annotations

import ast
import difflib
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..contract.errors import OptionError, WeightsError

NETWORK_MODULE = "networks.lora"  # a family's own is called networks.lora_<family>
_LATER_MODULES = ("loha", "lokr", "lycoris")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def check_network_module(name: str) -> None:
    """Accept the values of `--network_module` that mean LoRA; OptionError for what does not exist (yet).

    Which family's LoRA it is was checked with the options.
    """
    if name == NETWORK_MODULE or name.startswith(f"{NETWORK_MODULE}_"):
        return
    if any(word in name for word in _LATER_MODULES):
        raise OptionError(
            f"--network_module {name} comes with a later release; LoRA is what can be trained now.",
            "Use --network_module networks.lora.",
        )
    raise OptionError(f"--network_module {name} is unknown.", "Leave it out: the family's own is the default.")


def _patterns(text: str) -> list[str]:
    """One regular expression, or a Python list of them."""
    if not text.lstrip().startswith("["):
        return [text]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # '\\.' without an r before the quotes means what the person thinks it means
        value = ast.literal_eval(text)
    if not all(isinstance(entry, str) for entry in value):
        raise ValueError("not a list of strings")
    return list(value)


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("neither True nor False")
    return text.lower() == "true"


_NETWORK_ARGS: dict[str, tuple[Callable[[str], Any], str]] = {
    "conv_dim": (int, "a whole number, e.g. conv_dim=4"),
    "conv_alpha": (float, "a number, e.g. conv_alpha=1"),
    "rank_dropout": (float, "a number below 1, e.g. rank_dropout=0.1"),
    "module_dropout": (float, "a number below 1, e.g. module_dropout=0.1"),
    "loraplus_lr_ratio": (float, "a number, e.g. loraplus_lr_ratio=4"),
    "exclude_patterns": (_patterns, "a regular expression or a list, e.g. \"exclude_patterns=[r'.*ffn.*']\""),
    "include_patterns": (_patterns, "a regular expression or a list, e.g. \"include_patterns=[r'.*head.*']\""),
    "verbose": (_switch, "True or False"),
}


def parse_network_args(arguments: Sequence[str]) -> dict[str, Any]:
    """`--network_args key=value …` as typed values; OptionError for an unknown key or a value that does not fit."""
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise OptionError(f"--network_args {argument!r} is not of the form key=value.")
        if key not in _NETWORK_ARGS:
            near = difflib.get_close_matches(key, _NETWORK_ARGS, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(_NETWORK_ARGS)}."
            raise OptionError(f"--network_args has no key {key!r}.", hint)
        convert, wanted = _NETWORK_ARGS[key]
        try:
            values[key] = convert(text)
        except (ValueError, SyntaxError) as error:
            raise OptionError(f"--network_args {key}={text} does not fit.", f"It takes {wanted}.") from error
    return values


@dataclass(frozen=True)
class NormStats:
    """What `--scale_weight_norms` did: modules scaled down, mean and largest norm afterwards."""

    scaled: int
    average: float
    largest: float


class Adapter(nn.Module):
    """One low-rank pair beside one Linear or convolution; wraps that module's forward while attached."""

    alpha: Tensor

    def __init__(
        self,
        module: nn.Module,
        *,
        path: str,
        dim: int,
        alpha: float | None,
        dropouts: tuple[float, float, float] = (0.0, 0.0, 0.0),
        generator: torch.Generator | None = None,
    ) -> None:
        """`dropouts` are (dropout, rank_dropout, module_dropout), probabilities 0 <= p < 1."""
        super().__init__()
        self.path = path
        self.dim = dim
        alpha = float(alpha) if alpha else float(dim)
        self.scale = alpha / dim
        self.dropout, self.rank_dropout, self.module_dropout = dropouts
        self.multiplier = 1.0
        self.enabled = True
        weight = getattr(module, "weight", None)
        device = "meta" if isinstance(weight, Tensor) and weight.is_meta else "cpu"
        self.lora_down, self.lora_up = _pair(module, dim, device)
        if device != "meta":
            nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5), generator=generator)
            nn.init.zeros_(self.lora_up.weight)
        self.register_buffer("alpha", torch.tensor(alpha, dtype=torch.float32, device=device))
        self._convolution = isinstance(module, _CONVOLUTIONS)
        self._attached = False
        self._attach(module)

    def _attach(self, module: nn.Module) -> None:
        self._base_forward = module.forward
        module.forward = self.forward
        self._attached = True

    def detach_from(self, module: nn.Module) -> None:
        """Give the module its own forward back."""
        if self._attached:
            module.forward = self._base_forward
            self._attached = False

    def forward(self, x: Tensor) -> Tensor:
        base = self._base_forward(x)
        if not self.enabled or self.multiplier == 0:
            return base
        hidden = self.lora_down(self._fitting(x))
        scale = self.scale * self.multiplier
        if self.training:
            hidden, scale = self._drop(hidden, scale)
        change = self.lora_up(hidden) * scale
        if self.training and self.module_dropout:
            change = change * (torch.rand((), device=change.device) >= self.module_dropout)
        return (base + change).to(base.dtype)

    def _fitting(self, x: Tensor) -> Tensor:
        """Autocast casts by itself; without it the input takes the adapter's precision."""
        if torch.is_autocast_enabled(x.device.type):
            return x
        return x.to(self.lora_down.weight.dtype)

    def _drop(self, hidden: Tensor, scale: float) -> tuple[Tensor, float]:
        if self.dropout:
            hidden = functional.dropout(hidden, p=self.dropout)
        if self.rank_dropout:
            axis = 1 if self._convolution else hidden.ndim - 1
            shape = [1] * hidden.ndim
            shape[0], shape[axis] = hidden.shape[0], self.dim
            hidden = hidden * (torch.rand(shape, device=hidden.device) >= self.rank_dropout)
            scale = scale / (1.0 - self.rank_dropout)
        return hidden, scale

    def squared_norm(self) -> Tensor:
        """Squared Frobenius norm of alpha / rank * up @ down, without building that matrix."""
        up = self.lora_up.weight.flatten(1).float()
        down = self.lora_down.weight.flatten(1).float()
        return ((up.T @ up) * (down @ down.T)).sum().clamp(min=0.0) * self.scale**2


def _is_linear(module: nn.Module) -> bool:
    """A Linear, or something that replaces one (quantised): what matters are its two sizes."""
    return isinstance(module, nn.Linear) or (hasattr(module, "in_features") and hasattr(module, "out_features"))


def _is_pointwise(module: nn.Module) -> bool:
    return _is_linear(module) or all(size == 1 for size in module.kernel_size)  # type: ignore[union-attr]


def _pair(module: Any, dim: int, device: str) -> tuple[Any, Any]:
    if _is_linear(module):
        down = nn.Linear(module.in_features, dim, bias=False, device=device, dtype=torch.float32)
        up = nn.Linear(dim, module.out_features, bias=False, device=device, dtype=torch.float32)
        return down, up
    assert isinstance(module, _CONVOLUTIONS)
    kind = next(kind for kind in _CONVOLUTIONS if isinstance(module, kind))
    shape = {name: getattr(module, name) for name in ("kernel_size", "stride", "padding", "dilation")}
    narrow = kind(module.in_channels, dim, **shape, bias=False, device=device, dtype=torch.float32)
    return narrow, kind(dim, module.out_channels, 1, bias=False, device=device, dtype=torch.float32)


class LoraNetwork(nn.Module):
    """All adapters of a model, under the names that LoRA files use."""

    def __init__(self, dit: nn.Module, adapters: Mapping[str, Adapter]) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict(adapters)
        self._bases = {name: dit.get_submodule(adapter.path) for name, adapter in adapters.items()}

    @property
    def paths(self) -> dict[str, str]:
        """Name in the file (without suffix) -> path of the module in the model."""
        return {name: adapter.path for name, adapter in self._each()}

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

    def state(self) -> dict[str, Tensor]:
        """Tensors under kohya names (`….alpha`, `….lora_down.weight`, `….lora_up.weight`), not copied."""
        return {name.removeprefix("adapters."): value.detach() for name, value in self.state_dict().items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over weights under kohya names; all must be there and fit (WeightsError otherwise)."""
        own = self.state()
        missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
        if missing or unknown:
            shown = ", ".join((missing or unknown)[:3])
            raise WeightsError(
                f"These LoRA weights do not belong to this network: {len(missing)} tensors missing, "
                f"{len(unknown)} unknown (first: {shown}).",
                "Use the same --network_args and the same kind of model as when they were saved.",
            )
        for name, value in own.items():
            if value.shape != tensors[name].shape:
                raise WeightsError(
                    f"{name} has shape {tuple(tensors[name].shape)}, the network needs {tuple(value.shape)}.",
                    "Use the --network_dim of that file, or --dim_from_weights.",
                )
        self.load_state_dict({f"adapters.{name}": value for name, value in tensors.items()})
        for _, adapter in self._each():
            adapter.scale = float(adapter.alpha) / adapter.dim

    def parameter_groups(self, lr: float, loraplus_lr_ratio: float | None = None) -> list[dict[str, Any]]:
        """Groups for an optimizer, each with `lr` and a `name` ("unet", "unet plus") for the log.

        LoRA+ (arXiv 2402.12354): the up matrices learn `loraplus_lr_ratio` times as fast.
        """
        self.requires_grad_(True)
        if not loraplus_lr_ratio:
            return [{"params": list(self.parameters()), "lr": lr, "name": "unet"}]
        down = [adapter.lora_down.weight for _, adapter in self._each()]
        up = [adapter.lora_up.weight for _, adapter in self._each()]
        return [
            {"params": down, "lr": lr, "name": "unet"},
            {"params": up, "lr": lr * loraplus_lr_ratio, "name": "unet plus"},
        ]

    @torch.no_grad()
    def clamp_norms(self, max_norm: float) -> NormStats:
        """Shrink every up @ down whose Frobenius norm exceeds `max_norm`; waits for the device once."""
        each = [adapter for _, adapter in self._each()]
        norms = torch.stack([adapter.squared_norm() for adapter in each]).sqrt()
        ratios = (max_norm / norms.clamp(min=max_norm / 2)).clamp(max=1.0)
        roots = ratios.sqrt()
        for adapter, root in zip(each, roots.unbind(), strict=True):
            adapter.lora_up.weight.mul_(root)
            adapter.lora_down.weight.mul_(root)
        after = norms * ratios
        scaled, average, largest = torch.stack([(ratios < 1).sum().float(), after.mean(), after.max()]).tolist()
        return NormStats(int(scaled), average, largest)

    def _each(self) -> Iterator[tuple[str, Adapter]]:
        return iter(self.adapters.items())  # type: ignore[arg-type]


def kohya_name(path: str, prefix: str = "lora_unet_") -> str:
    """Module path as LoRA files of kohya and musubi-tuner write it."""
    return prefix + path.replace(".", "_")


def targets(
    dit: nn.Module, *, block_classes: Iterable[str], exclude: Sequence[str] = (), include: Sequence[str] = ()
) -> dict[str, nn.Module]:
    """Path -> module of every Linear and convolution in blocks of these classes, in the model's order.

    A pattern must match the whole path; what `include` matches is kept even when `exclude` matches it too.
    """
    without, within = _compiled("exclude_patterns", exclude), _compiled("include_patterns", include)
    classes = set(block_classes)
    found: dict[str, nn.Module] = {}
    for block_path, block in dit.named_modules():
        if type(block).__name__ not in classes:
            continue
        for name, module in block.named_modules(prefix=block_path):
            if not _is_linear(module) and not isinstance(module, _CONVOLUTIONS):
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
    include: Sequence[str] = (),
    dim: int = 4,
    alpha: float | None = 1.0,
    dropout: float | None = None,
    rank_dropout: float | None = None,
    module_dropout: float | None = None,
    conv_dim: int | None = None,
    conv_alpha: float | None = 1.0,
    name_prefix: str = "lora_unet_",
    dims: Mapping[str, tuple[int, float]] | None = None,
    seed: int | None = None,
) -> LoraNetwork:
    """Put adapters on a model and freeze the model itself.

    `alpha` 0 or None means the rank. Convolutions larger than one point are adapted only with `conv_dim`. `dims`
    (path -> rank, alpha) replaces `dim`, `alpha` and the patterns: exactly those modules get an adapter. `seed` makes
    the initial weights repeatable. Adapters of a model on "meta" are on "meta", all others on the CPU.
    """
    dropouts = _dropouts(dropout, rank_dropout, module_dropout)
    if dim < 1:
        raise OptionError(f"--network_dim {dim} must be at least 1.")
    if dims is not None:
        modules = {path: dit.get_submodule(path) for path in dims}
        sizes: dict[str, tuple[int, float | None]] = dict(dims)
    else:
        patterns = [exclude] if isinstance(exclude, str) else list(exclude)
        modules = targets(dit, block_classes=block_classes, exclude=[p for p in patterns if p], include=include)
        sizes = {path: _size(module, (dim, alpha), (conv_dim, conv_alpha)) for path, module in modules.items()}
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    dit.requires_grad_(False)
    adapters = {}
    for path, module in modules.items():
        rank, own_alpha = sizes[path]
        if rank:
            adapters[kohya_name(path, name_prefix)] = Adapter(
                module, path=path, dim=rank, alpha=own_alpha, dropouts=dropouts, generator=generator
            )
    if not adapters:
        raise OptionError(
            "No module of the model is left to put a LoRA on.", "Relax exclude_patterns in --network_args."
        )
    return LoraNetwork(dit, adapters)


def _size(
    module: nn.Module, linear: tuple[int, float | None], convolution: tuple[int | None, float | None]
) -> tuple[int, float | None]:
    if _is_pointwise(module):
        return linear
    return convolution[0] or 0, convolution[1]


def _dropouts(
    dropout: float | None, rank_dropout: float | None, module_dropout: float | None
) -> tuple[float, float, float]:
    named = {"--network_dropout": dropout, "rank_dropout": rank_dropout, "module_dropout": module_dropout}
    for name, value in named.items():
        if value is not None and not 0 <= value < 1:
            raise OptionError(f"{name} {value:g} is not a probability: it must be at least 0 and below 1.")
    return dropout or 0.0, rank_dropout or 0.0, module_dropout or 0.0
