"""Trainable adapters beside one frozen layer: y = base(x) + multiplier * change(x), for LoRA, LoHa and LoKr.

An adapter wraps the forward of the layer that it adapts, so it does not care what the base weights are (bf16, fp16,
fp8 behind a wrapped forward). It is float32 unless made bf16, and computes in whatever autocast says. Names, shapes,
first values and scale are those of musubi-tuner 30c658c and lycoris-lora 4.1.3; the change is computed without building
the full weight where the kind allows it. LoHa and LoKr adapt linear layers only, as musubi-tuner's do.
DoRA brings the rows of the changed weight to lengths that are trained; the norm it divides by counts as a constant in
backward, as its paper proposes (section 4.3), which lycoris does not do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ..ops.fp8 import dequantize
from .kronecker import Shape, lokr_shapes
from .weights import AdapterWeights, LohaWeights, LokrWeights, LoraWeights, understand

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_ROWS_AT_ONCE = 2048


def is_linear(module: nn.Module) -> bool:
    """A Linear, or something that replaces one (quantised): what matters are its two sizes."""
    return isinstance(module, nn.Linear) or (hasattr(module, "in_features") and hasattr(module, "out_features"))


class Adapter(nn.Module):
    """One adapter on one layer; wraps that layer's forward while attached. Subclasses say what the change is."""

    alpha: Tensor
    dora_scale: Tensor
    name: ClassVar[str]
    linear_only: ClassVar[bool] = True

    def __init__(
        self,
        module: nn.Module,
        *,
        path: str,
        dim: int,
        alpha: float | None,
        dropouts: tuple[float, float, float] = (0.0, 0.0, 0.0),
        generator: torch.Generator | None = None,
        decompose: bool = False,
        **options: Any,
    ) -> None:
        """`dropouts` are (dropout, rank_dropout, module_dropout), probabilities 0 <= p < 1.

        `decompose` is DoRA, for linear layers. `options` are the kind's own (see `_make`).
        """
        super().__init__()
        self.path, self.dim = path, dim
        self.dropout, self.rank_dropout, self.module_dropout = dropouts
        self.multiplier = 1.0
        self.enabled = True
        layer: Any = module
        self._base = (layer,)  # in a tuple, so that the layer does not become a part of the adapter
        weight = getattr(module, "weight", None)
        on_meta = isinstance(weight, Tensor) and weight.is_meta
        with torch.device("meta" if on_meta else "cpu"):
            alpha = self._make(module, float(alpha) if alpha else float(dim), **options)
            self.register_buffer("alpha", torch.tensor(alpha, dtype=torch.float32))
            if decompose:
                norms = torch.empty(layer.out_features, 1) if on_meta else self._base_norms()
                self.dora_scale = nn.Parameter(norms)
        if not on_meta:
            self._first_values(generator)
        self.scale = alpha / dim
        self._base_forward = module.forward
        module.forward = self.forward
        self._attached = True

    @classmethod
    def like(cls, module: nn.Module, weights: AdapterWeights, **values: Any) -> Adapter:
        """An adapter of the same sizes as one from a file; its values are still to be loaded."""
        decompose = weights.dora is not None
        return cls(module, dim=weights.rank, alpha=weights.alpha, decompose=decompose, **values)

    def _make(self, module: Any, alpha: float) -> float:
        """Make the parameters, unset; returns alpha, which a kind may set itself."""
        raise NotImplementedError

    def _first_values(self, generator: torch.Generator | None) -> None:
        """Set the parameters so that nothing changes yet."""
        raise NotImplementedError

    def _change(self, x: Tensor) -> Tensor:
        """The change of the output, alpha included, rank dropout and dropout too while training."""
        raise NotImplementedError

    def _rows(self, start: int, stop: int) -> Tensor:
        """Rows of the change of the weight, float32, [stop - start, in], alpha included."""
        raise NotImplementedError

    def factors(self) -> list[Tensor]:
        """The parameters whose product the change is: to scale it by s, each takes s ** (1 / count)."""
        raise NotImplementedError

    def squared_norm(self) -> Tensor:
        """Squared Frobenius norm of the change of the weight."""
        raise NotImplementedError

    def detach_from(self, module: nn.Module) -> None:
        """Give the module its own forward back."""
        if self._attached:
            module.forward = self._base_forward
            self._attached = False

    def refresh(self) -> None:
        """Take over alpha after values were loaded."""
        self.scale = float(self.alpha) / self.dim

    def weights(self) -> AdapterWeights:
        """The same as a LoRA file would hold it, not copied."""
        state = {name: value.detach() for name, value in self.state_dict().items()}
        return understand(state, alpha=float(self.alpha), where=self.path)

    def forward(self, x: Tensor) -> Tensor:
        base = self._base_forward(x)
        if not self.enabled or self.multiplier == 0:
            return base
        change = self._change(self._fitting(x))
        if "dora_scale" in self._parameters:
            change = self._decomposed(base, change)
        if self.training and self.module_dropout:
            change = change * (torch.rand((), device=change.device) >= self.module_dropout)
        return (base + change * self.multiplier).to(base.dtype)

    def _fitting(self, x: Tensor) -> Tensor:
        """Autocast casts by itself; without it the input takes the adapter's precision."""
        return x if torch.is_autocast_enabled(x.device.type) else x.to(self.factors()[0].dtype)

    def _dropped(self, change: Tensor) -> Tensor:
        """For kinds without ranks to drop: whole output features, and single values."""
        if self.training and self.rank_dropout:
            kept = torch.rand(change.shape[-1], device=change.device) >= self.rank_dropout
            change = change * (kept / (1.0 - self.rank_dropout))
        return functional.dropout(change, p=self.dropout, training=self.training)

    def _decomposed(self, base: Tensor, change: Tensor) -> Tensor:
        """What DoRA adds to the base's output: rows of weight + change at their trained lengths, minus the base's."""
        bias = getattr(self._base[0], "bias", None)
        plain = base if bias is None else base - bias
        gain = (self.dora_scale / self._changed_norms()).flatten()
        return (gain - 1) * plain + gain * change

    @torch.no_grad()
    def _changed_norms(self) -> Tensor:
        """Lengths of the rows of weight + change, [out, 1]."""
        step = self._rows_at_once()
        parts = []
        for start in range(0, self._base[0].out_features, step):
            weight = self._base_rows(start, start + step)
            parts.append((weight + self._rows(start, start + len(weight))).norm(dim=1, keepdim=True))
        return torch.cat(parts).clamp(min=torch.finfo(torch.float32).eps)

    @torch.no_grad()
    def _base_norms(self) -> Tensor:
        return self._base_rows(0, self._base[0].out_features).norm(dim=1, keepdim=True).cpu()

    def _base_rows(self, start: int, stop: int) -> Tensor:
        """Rows of the frozen weight, float32, multiplied out where it is fp8 with scales."""
        module: Any = self._base[0]
        scale = getattr(module, "scale_weight", None)
        if scale is None:
            return module.weight[start:stop].float()
        part = scale if scale.ndim == 0 or scale.shape[0] == 1 else scale[start:stop]
        return dequantize(module.weight[start:stop], part)

    def _rows_at_once(self) -> int:
        return _ROWS_AT_ONCE


class LoraAdapter(Adapter):
    """up(down(x)) * alpha / rank; also of convolutions."""

    name = "LoRA"
    linear_only = False

    def _make(self, module: Any, alpha: float) -> float:
        self._convolution = isinstance(module, CONVOLUTIONS)
        self.lora_down, self.lora_up = _pair(module, self.dim)
        return alpha

    def _first_values(self, generator: torch.Generator | None) -> None:
        nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.lora_up.weight)

    def _change(self, x: Tensor) -> Tensor:
        hidden, scale = self.lora_down(x), self.scale
        if self.training:
            hidden, scale = self._drop(hidden, scale)
        return self.lora_up(hidden) * scale

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

    def _rows(self, start: int, stop: int) -> Tensor:
        return self.lora_up.weight[start:stop].float() @ self.lora_down.weight.float() * self.scale

    def factors(self) -> list[Tensor]:
        return [self.lora_up.weight, self.lora_down.weight]

    def squared_norm(self) -> Tensor:
        """Without building the matrix that it is the norm of."""
        up = self.lora_up.weight.flatten(1).float()
        down = self.lora_down.weight.flatten(1).float()
        return ((up.T @ up) * (down @ down.T)).sum().clamp(min=0.0) * self.scale**2


class LohaAdapter(Adapter):
    """The elementwise product of two low-rank matrices, which is built anew in backward instead of being kept."""

    name = "LoHa"
    hada_w1_a: Tensor
    hada_w1_b: Tensor
    hada_w2_a: Tensor
    hada_w2_b: Tensor

    def _make(self, module: Any, alpha: float) -> float:
        for side in ("1", "2"):
            self.register_parameter(f"hada_w{side}_a", _unset(module.out_features, self.dim))
            self.register_parameter(f"hada_w{side}_b", _unset(self.dim, module.in_features))
        return alpha

    def _first_values(self, generator: torch.Generator | None) -> None:
        nn.init.normal_(self.hada_w1_a, std=0.1, generator=generator)
        nn.init.normal_(self.hada_w1_b, std=1.0, generator=generator)
        nn.init.zeros_(self.hada_w2_a)
        nn.init.normal_(self.hada_w2_b, std=1.0, generator=generator)

    def _change(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            change = checkpoint(_hadamard_product, x, *self.factors(), use_reentrant=False, preserve_rng_state=False)
        else:
            change = _hadamard_product(x, *self.factors())
        return self._dropped(change * self.scale)

    def _rows(self, start: int, stop: int) -> Tensor:
        w1_a, w1_b, w2_a, w2_b = (factor.float() for factor in self.factors())
        return (w1_a[start:stop] @ w1_b) * (w2_a[start:stop] @ w2_b) * self.scale

    def factors(self) -> list[Tensor]:
        return [self.hada_w1_a, self.hada_w1_b, self.hada_w2_a, self.hada_w2_b]

    def squared_norm(self) -> Tensor:
        parts = [
            self._rows(start, start + _ROWS_AT_ONCE).square().sum()
            for start in range(0, self.hada_w1_a.shape[0], _ROWS_AT_ONCE)
        ]
        return torch.stack(parts).sum()


def _hadamard_product(x: Tensor, w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor) -> Tensor:
    return functional.linear(x, (w1_a @ w1_b) * (w2_a @ w2_b))


class LokrAdapter(Adapter):
    """A Kronecker product, applied factor by factor: the full matrix is never built."""

    name = "LoKr"
    lokr_w1_a: Tensor
    lokr_w1_b: Tensor
    lokr_w2: Tensor
    lokr_w2_a: Tensor
    lokr_w2_b: Tensor

    def _make(
        self,
        module: Any,
        alpha: float,
        *,
        factor: int = -1,
        full_matrix: bool = False,
        decompose_both: bool = False,
        shapes: Mapping[str, Shape] | None = None,
    ) -> float:
        """`shapes` are those of an adapter from a file, and replace the other options. Two whole factors scale by 1."""
        if shapes is None:
            shapes = lokr_shapes(
                module.out_features, module.in_features, self.dim, factor=factor, whole=full_matrix, both=decompose_both
            )
        for name, shape in shapes.items():
            self.register_parameter(name, _unset(*shape))
        return float(self.dim) if {"lokr_w1", "lokr_w2"} <= shapes.keys() else alpha

    def refresh(self) -> None:
        whole = {"lokr_w1", "lokr_w2"} <= self._parameters.keys()
        self.scale = 1.0 if whole else float(self.alpha) / self.dim

    @classmethod
    def like(cls, module: nn.Module, weights: AdapterWeights, **values: Any) -> Adapter:
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.tensors().items() if name.startswith("lokr_")}
        return super().like(module, weights, shapes=shapes, **values)

    def _first_values(self, generator: torch.Generator | None) -> None:
        for name, parameter in self.named_parameters():
            if name in ("lokr_w2", "lokr_w2_b"):
                nn.init.zeros_(parameter)
            elif name != "dora_scale":
                nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=generator)

    def _first(self) -> Tensor:
        whole = self._parameters.get("lokr_w1")
        return self.lokr_w1_a @ self.lokr_w1_b if whole is None else whole

    def _second(self) -> Tensor:
        whole = self._parameters.get("lokr_w2")
        return self.lokr_w2_a @ self.lokr_w2_b if whole is None else whole

    def _change(self, x: Tensor) -> Tensor:
        first = self._first()
        hidden = x.unflatten(-1, (first.shape[1], -1))
        if "lokr_w2" in self._parameters:
            hidden = functional.linear(hidden, self.lokr_w2)
        else:
            hidden = functional.linear(functional.linear(hidden, self.lokr_w2_b), self.lokr_w2_a)
        return self._dropped((first @ hidden).flatten(-2) * self.scale)

    def _rows(self, start: int, stop: int) -> Tensor:
        second = self._second().float()
        first = self._first().float()[start // len(second) : -(-stop // len(second))]
        return torch.kron(first, second) * self.scale

    def _rows_at_once(self) -> int:
        """Whole rows of the first factor."""
        height = len(self.lokr_w2 if "lokr_w2" in self._parameters else self.lokr_w2_a)
        return height * -(-_ROWS_AT_ONCE // height)

    def factors(self) -> list[Tensor]:
        return [parameter for name, parameter in self.named_parameters() if name.startswith("lokr_")]

    def squared_norm(self) -> Tensor:
        """The norm of a Kronecker product is the product of the norms."""
        return self._first().float().square().sum() * self._second().float().square().sum() * self.scale**2


KINDS: dict[type, type[Adapter]] = {LoraWeights: LoraAdapter, LohaWeights: LohaAdapter, LokrWeights: LokrAdapter}
"""What a file holds -> the adapter that trains it."""


def _unset(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=torch.float32))


def _pair(module: Any, dim: int) -> tuple[Any, Any]:
    if is_linear(module):
        down = nn.Linear(module.in_features, dim, bias=False, dtype=torch.float32)
        return down, nn.Linear(dim, module.out_features, bias=False, dtype=torch.float32)
    assert isinstance(module, CONVOLUTIONS)
    kind = next(kind for kind in CONVOLUTIONS if isinstance(module, kind))
    shape = {name: getattr(module, name) for name in ("kernel_size", "stride", "padding", "dilation")}
    narrow = kind(module.in_channels, dim, **shape, bias=False, dtype=torch.float32)
    return narrow, kind(dim, module.out_channels, 1, bias=False, dtype=torch.float32)
