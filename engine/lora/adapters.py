"""Trainable adapters on one frozen layer: y = base(x) + multiplier * change(x), for LoRA, LoHa and LoKr.

An adapter wraps the forward of its layer, so the base weights may be stored in any way (bf16, fp16, fp8 behind a
wrapped forward). It is float32 unless converted to bf16, and computes in autocast's precision. Names, shapes and scale
are those of musubi-tuner 30c658c and lycoris-lora 4.1.3. lycoris computes the initial values and the change of LoHa and
LoKr (lycoris_functions.py, imported only when such an adapter is made); dropout, fp8 bases and DoRA are ours, because
lycoris' modules lack them or differ. LoHa and LoKr adapt linear layers only, as in musubi-tuner.
DoRA scales the rows of the changed weight to trained lengths; the norm it divides by counts as a constant in backward,
as its paper proposes (section 4.3) and lycoris does not.
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
from .weights import AdapterWeights, LohaWeights, LokrWeights, LoraWeights, understand

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_ROWS_AT_ONCE = 2048


def is_linear(module: nn.Module) -> bool:
    """Whether it is a Linear or replaces one (quantised): anything that has its two sizes."""
    return isinstance(module, nn.Linear) or (hasattr(module, "in_features") and hasattr(module, "out_features"))


class Adapter(nn.Module):
    """One adapter on one layer; wraps that layer's forward while attached. Subclasses define the change."""

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
        """`dropouts`: (dropout, rank_dropout, module_dropout), probabilities 0 <= p < 1. `alpha` 0 or None: `dim`.

        `decompose`: DoRA, for linear layers. `options`: those of the kind (see `_make`).
        """
        super().__init__()
        self.path, self.dim = path, dim
        self.dropout, self.rank_dropout, self.module_dropout = dropouts
        self.multiplier = 1.0
        self.enabled = True
        layer: Any = module
        self._base = (layer,)  # in a tuple, so that the layer does not become a submodule
        weight = getattr(module, "weight", None)
        on_meta = isinstance(weight, Tensor) and weight.is_meta
        with torch.device("meta" if on_meta else "cpu"):
            alpha = self._make(module, float(alpha) if alpha else float(dim), generator, **options)
            self.register_buffer("alpha", torch.tensor(alpha, dtype=torch.float32))
            if decompose:
                norms = torch.empty(layer.out_features, 1) if on_meta else self._base_norms()
                self.dora_scale = nn.Parameter(norms)
        self.scale = alpha / dim
        self._base_forward = module.forward
        module.forward = self.forward
        self._attached = True

    @property
    def is_plain(self) -> bool:
        """Whether a block that contains it may be recomputed for its gradients alone (memory/recomputing.py): it draws
        no random numbers and does no checkpointing of its own."""
        return False

    @classmethod
    def like(cls, module: nn.Module, weights: AdapterWeights, **values: Any) -> Adapter:
        """An adapter with the sizes of one from a file; its values are not loaded yet."""
        decompose = weights.dora is not None
        return cls(module, dim=weights.rank, alpha=weights.alpha, decompose=decompose, **values)

    def _make(self, module: Any, alpha: float, generator: torch.Generator | None) -> float:
        """Create the parameters such that the change is zero; returns alpha, which a kind may override."""
        raise NotImplementedError

    def _change(self, x: Tensor) -> Tensor:
        """The change of the output, including alpha and, in training, rank dropout and dropout."""
        raise NotImplementedError

    def _rows(self, start: int, stop: int) -> Tensor:
        """Rows of the change of the weight, float32, [stop - start, in], alpha included."""
        raise NotImplementedError

    def factors(self) -> list[Tensor]:
        """The parameters whose product is the change: to scale it by s, scale each by s ** (1 / count)."""
        raise NotImplementedError

    def squared_norm(self) -> Tensor:
        """Squared Frobenius norm of the change of the weight."""
        raise NotImplementedError

    def detach_from(self, module: nn.Module) -> None:
        """Restore the module's own forward."""
        if self._attached:
            module.forward = self._base_forward
            self._attached = False

    def refresh(self) -> None:
        """Recompute the scale after values, alpha among them, were loaded."""
        self.scale = float(self.alpha) / self.dim

    def weights(self) -> AdapterWeights:
        """This adapter as a LoRA file would hold it; the tensors are not copied."""
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
        if self.multiplier != 1:
            change = change * self.multiplier
        return (base + change).to(base.dtype)

    def _fitting(self, x: Tensor) -> Tensor:
        """`x` in the adapter's precision; unchanged under autocast, which casts by itself."""
        return x if torch.is_autocast_enabled(x.device.type) else x.to(self.factors()[0].dtype)

    def _dropped(self, change: Tensor) -> Tensor:
        """Dropout for kinds without ranks to drop: of whole output features (rank dropout) and of single values."""
        if self.training and self.rank_dropout:
            kept = torch.rand(change.shape[-1], device=change.device) >= self.rank_dropout
            change = change * (kept / (1.0 - self.rank_dropout))
        return functional.dropout(change, p=self.dropout, training=self.training)

    def _decomposed(self, base: Tensor, change: Tensor) -> Tensor:
        """What to add to the base's output so that the rows of weight + change have their trained lengths (DoRA)."""
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
        """Rows of the frozen weight, float32; scaled fp8 is dequantised."""
        module: Any = self._base[0]
        scale = getattr(module, "scale_weight", None)
        if scale is None:
            return module.weight[start:stop].float()
        part = scale if scale.ndim == 0 or scale.shape[0] == 1 else scale[start:stop]
        return dequantize(module.weight[start:stop], part)

    def _rows_at_once(self) -> int:
        return _ROWS_AT_ONCE


class LoraAdapter(Adapter):
    """up(down(x)) * alpha / rank; also for convolutions."""

    name = "LoRA"
    linear_only = False

    @property
    def is_plain(self) -> bool:
        return not any((self.dropout, self.rank_dropout, self.module_dropout))

    def _make(self, module: Any, alpha: float, generator: torch.Generator | None) -> float:
        self._convolution = isinstance(module, CONVOLUTIONS)
        self.lora_down, self.lora_up = _pair(module, self.dim)
        nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.lora_up.weight)
        return alpha

    def _change(self, x: Tensor) -> Tensor:
        hidden, scale = self.lora_down(x), self.scale
        if self.training:
            hidden, scale = self._drop(hidden, scale)
        return self.lora_up(hidden * scale)  # not the result, whose gradient would be as wide as the layer's

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
        """From rank x rank products; the full matrix is never built."""
        up = self.lora_up.weight.flatten(1).float()
        down = self.lora_down.weight.flatten(1).float()
        return ((up.T @ up) * (down @ down.T)).sum().clamp(min=0.0) * self.scale**2


class FactoredAdapter(Adapter):
    """What LoHa and LoKr share: their parameters are factors created by lycoris."""

    def _register(self, parts: Mapping[str, Tensor]) -> None:
        for name, value in parts.items():
            self.register_parameter(name, nn.Parameter(value.float()))

    def _fitting(self, x: Tensor) -> Tensor:
        """`x` in autocast's precision or, without autocast, the adapter's: lycoris' backward and kernels ignore it."""
        device = x.device.type
        return x.to(torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.factors()[0].dtype)

    def _parts(self, dtype: torch.dtype) -> dict[str, Tensor]:
        return {name: part.to(dtype) for name, part in self.named_parameters() if name != "dora_scale"}

    def factors(self) -> list[Tensor]:
        return [part for name, part in self.named_parameters() if name != "dora_scale"]


class LohaAdapter(FactoredAdapter):
    """The elementwise product of two low-rank matrices, recomputed in backward instead of kept."""

    name = "LoHa"

    def _make(self, module: Any, alpha: float, generator: torch.Generator | None) -> float:
        from .lycoris_functions import loha_parts

        self._register(loha_parts(module.out_features, module.in_features, self.dim, generator=generator))
        return alpha

    def _product(self, dtype: torch.dtype, rows: slice = slice(None)) -> Tensor:
        from .lycoris_functions import loha_weight

        parts = self._parts(dtype)
        parts |= {name: parts[name][rows] for name in ("hada_w1_a", "hada_w2_a")}
        return loha_weight(parts, scale=self.scale)

    def _applied(self, x: Tensor) -> Tensor:
        return functional.linear(x, self._product(x.dtype))

    def _change(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            change = checkpoint(self._applied, x, use_reentrant=False, preserve_rng_state=False)
        else:
            change = self._applied(x)
        return self._dropped(change)

    def _rows(self, start: int, stop: int) -> Tensor:
        return self._product(torch.float32, slice(start, stop))

    def squared_norm(self) -> Tensor:
        height = self._base[0].out_features
        parts = [self._rows(start, start + _ROWS_AT_ONCE).square().sum() for start in range(0, height, _ROWS_AT_ONCE)]
        return torch.stack(parts).sum()


class LokrAdapter(FactoredAdapter):
    """A Kronecker product, applied factor by factor: the full matrix is never built."""

    name = "LoKr"

    def _make(
        self,
        module: Any,
        alpha: float,
        generator: torch.Generator | None,
        *,
        factor: int = -1,
        full_matrix: bool = False,
        decompose_both: bool = False,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> float:
        """`shapes`: those of an adapter from a file; they replace the other options. Two whole factors: scale 1."""
        from .lycoris_functions import lokr_parts

        if shapes is None:
            parts = lokr_parts(
                module.out_features, module.in_features, self.dim, factor=factor, full_matrix=full_matrix,
                decompose_both=decompose_both, generator=generator,
            )  # fmt: skip
        else:
            parts = {name: torch.zeros(shape) for name, shape in shapes.items()}
        self._register(parts)
        return float(self.dim) if self._whole("1") and self._whole("2") else alpha

    def refresh(self) -> None:
        self.scale = 1.0 if self._whole("1") and self._whole("2") else float(self.alpha) / self.dim

    @classmethod
    def like(cls, module: nn.Module, weights: AdapterWeights, **values: Any) -> Adapter:
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.tensors().items() if name.startswith("lokr_")}
        return super().like(module, weights, shapes=shapes, **values)

    def _whole(self, side: str) -> bool:
        return f"lokr_w{side}" in self._parameters

    def _change(self, x: Tensor) -> Tensor:
        from .lycoris_functions import lokr_applied

        return self._dropped(lokr_applied(x, self._parts(x.dtype), scale=self.scale))

    def _rows(self, start: int, stop: int) -> Tensor:
        from .lycoris_functions import lokr_weight

        parts, height = self._parts(torch.float32), self._height()
        first = "lokr_w1" if self._whole("1") else "lokr_w1_a"
        parts[first] = parts[first][start // height : -(-stop // height)]
        return lokr_weight(parts, scale=self.scale)

    def _rows_at_once(self) -> int:
        """A multiple of the second factor's height, which is one row of the first factor."""
        return self._height() * -(-_ROWS_AT_ONCE // self._height())

    def _height(self) -> int:
        """Rows of the second factor."""
        return len(self.get_parameter("lokr_w2" if self._whole("2") else "lokr_w2_a"))

    def squared_norm(self) -> Tensor:
        """The norm of a Kronecker product is the product of the norms."""
        parts = self._parts(torch.float32)
        sides = [
            parts[f"lokr_w{side}"] if self._whole(side) else parts[f"lokr_w{side}_a"] @ parts[f"lokr_w{side}_b"]
            for side in ("1", "2")
        ]
        return sides[0].square().sum() * sides[1].square().sum() * self.scale**2


KINDS: dict[type, type[Adapter]] = {LoraWeights: LoraAdapter, LohaWeights: LohaAdapter, LokrWeights: LokrAdapter}
"""What a file holds -> the adapter that trains it."""


class _Unset(nn.Linear):
    """A linear layer that draws no initial values, since the adapter sets them: a LoRA of rank 32 for Wan 14B has 153
    million, and drawing them twice takes most of a second."""

    def reset_parameters(self) -> None:
        return


def _pair(module: Any, dim: int) -> tuple[Any, Any]:
    if is_linear(module):
        down = _Unset(module.in_features, dim, bias=False, dtype=torch.float32)
        return down, _Unset(dim, module.out_features, bias=False, dtype=torch.float32)
    assert isinstance(module, CONVOLUTIONS)
    kind = next(kind for kind in CONVOLUTIONS if isinstance(module, kind))
    shape = {name: getattr(module, name) for name in ("kernel_size", "stride", "padding", "dilation")}
    narrow = kind(module.in_channels, dim, **shape, bias=False, dtype=torch.float32)
    return narrow, kind(dim, module.out_channels, 1, bias=False, dtype=torch.float32)
