"""What an adapter changes: LoRA, LoHa and LoKr as their files hold them.

One class per kind, all with the members of `AdapterWeights`. Knows no model, no file and no prefix. The numbers are
those of lycoris-lora 4.1.3's forward pass, not of its merging, which applies the scale of LoHa and LoKr twice.
Papers: LoRA 2106.09685, LoHa 2108.06098, LoKr 2309.14859, DoRA 2402.09353.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..contract.errors import WeightsError

Device = torch.device | str


class AdapterWeights(Protocol):
    """What all kinds have. `scale`: what the product of the parts is multiplied by, mostly alpha / rank."""

    @property
    def kind(self) -> str: ...
    @property
    def rank(self) -> int: ...
    @property
    def alpha(self) -> float: ...
    @property
    def scale(self) -> float: ...
    @property
    def dora(self) -> Tensor | None: ...
    @property
    def out_features(self) -> int: ...

    def change(self, device: Device = "cpu") -> Tensor:
        """The change of the weight, float32, without DoRA, in the weight's shape, [out, in, …kernel]."""

    def tensors(self) -> dict[str, Tensor]:
        """The parts by their names in a file, `alpha` first. WeightsError for what has no file format."""

    def rows(self, start: int, stop: int) -> AdapterWeights | None:
        """The adapter of output features `start` to `stop` alone; None if the kind cannot be cut there."""

    def as_lora(self) -> LoraWeights:
        """The same change as one low-rank pair, exactly. WeightsError for a LoHa or LoKr of a convolution."""

    def squared_norm(self) -> float:
        """Squared Frobenius norm of `change`."""


@dataclass(frozen=True)
class LoraWeights:
    """down [rank, in, …kernel], up [out, rank, …1]: the weight changes by alpha / rank * up @ down.

    `mid` [rank, rank, …kernel] stands between the two in a Tucker decomposition of a convolution. `dora`: the lengths
    that rows ([out, 1]) or columns ([1, in]) of the changed weight are scaled to; None without DoRA.
    """

    down: Tensor
    up: Tensor
    alpha: float
    dora: Tensor | None = None
    mid: Tensor | None = None
    kind = "LoRA"

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def out_features(self) -> int:
        return self.up.shape[0]

    def change(self, device: Device = "cpu") -> Tensor:
        up, down = _on(device, self.up.flatten(1), self.down.flatten(1))
        if self.mid is not None:
            (mid,) = _on(device, self.mid)
            return torch.einsum("pi,ij...,jq->pq...", up, mid, down) * self.scale
        return (up @ down * self.scale).reshape(self.up.shape[0], *self.down.shape[1:])

    def tensors(self) -> dict[str, Tensor]:
        found = {"alpha": _number(self.alpha), "lora_down.weight": self.down, "lora_up.weight": self.up}
        return found | _present({"lora_mid.weight": self.mid, "dora_scale": self.dora})

    def rows(self, start: int, stop: int) -> LoraWeights:
        return replace(self, up=self.up[start:stop], dora=_rows_of_dora(self.dora, start, stop))

    def as_lora(self) -> LoraWeights:
        return self

    def squared_norm(self) -> float:
        """From rank x rank products if there is no `mid`; the full matrix is not built."""
        if self.mid is not None:
            return float(self.change().square().sum())
        up, down = _on("cpu", self.up.flatten(1), self.down.flatten(1))
        return float(((up.T @ up) * (down @ down.T)).sum().clamp(min=0.0)) * self.scale**2


@dataclass(frozen=True)
class LohaWeights:
    """w_a [out, rank], w_b [rank, in]: the weight changes by alpha / rank * (w1_a @ w1_b) * (w2_a @ w2_b).

    With `t1`, `t2` [rank, rank, …kernel] it is a Tucker decomposition of a convolution, and w_a is [rank, out].
    """

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    alpha: float
    dora: Tensor | None = None
    t1: Tensor | None = None
    t2: Tensor | None = None
    kind = "LoHa"

    @property
    def rank(self) -> int:
        return self.w1_b.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def out_features(self) -> int:
        return self.w1_a.shape[0 if self.t1 is None else 1]

    def change(self, device: Device = "cpu") -> Tensor:
        w1_a, w1_b, w2_a, w2_b = _on(device, self.w1_a, self.w1_b, self.w2_a, self.w2_b)
        if self.t1 is None or self.t2 is None:
            return (w1_a @ w1_b) * (w2_a @ w2_b) * self.scale
        t1, t2 = _on(device, self.t1, self.t2)
        return _tucker(t1, w1_a, w1_b) * _tucker(t2, w2_a, w2_b) * self.scale

    def tensors(self) -> dict[str, Tensor]:
        found = {"alpha": _number(self.alpha), "hada_w1_a": self.w1_a, "hada_w1_b": self.w1_b}
        found |= {"hada_w2_a": self.w2_a, "hada_w2_b": self.w2_b}
        return found | _present({"hada_t1": self.t1, "hada_t2": self.t2, "dora_scale": self.dora})

    def rows(self, start: int, stop: int) -> LohaWeights:
        """Rows of a Hadamard product are products of rows."""
        dora = _rows_of_dora(self.dora, start, stop)
        if self.t1 is not None:
            return replace(self, w1_a=self.w1_a[:, start:stop], w2_a=self.w2_a[:, start:stop], dora=dora)
        return replace(self, w1_a=self.w1_a[start:stop], w2_a=self.w2_a[start:stop], dora=dora)

    def as_lora(self) -> LoraWeights:
        """Exact, with the rank squared: each column of one product times each of the other."""
        _plain_linear(self, self.t1, self.t2)
        w1_a, w1_b, w2_a, w2_b = _on("cpu", self.w1_a, self.w1_b, self.w2_a, self.w2_b)
        up = torch.einsum("oi,oj->oij", w1_a, w2_a).flatten(1)
        down = torch.einsum("in,jn->ijn", w1_b, w2_b).flatten(0, 1)
        return LoraWeights(down, up, self.scale * down.shape[0])

    def squared_norm(self) -> float:
        return float(self.change().square().sum())


@dataclass(frozen=True)
class LokrWeights:
    """w1 [l, m], w2 [k, n]: the weight [l k, m n] changes by scale * kron(w1, w2).

    Each is whole, or the product of w_a and w_b. The scale is alpha / rank if any is a product, else 1. With `t2`
    [rank, rank, …kernel] w2 is a Tucker decomposition of a convolution, and w2_a is [rank, k].
    """

    w1: Tensor | None
    w2: Tensor | None
    alpha: float
    w1_a: Tensor | None = None
    w1_b: Tensor | None = None
    w2_a: Tensor | None = None
    w2_b: Tensor | None = None
    dora: Tensor | None = None
    t2: Tensor | None = None
    kind = "LoKr"

    @property
    def rank(self) -> int:
        """The rank of the products; with two whole factors alpha's value, which then has no effect."""
        product = self.w2_b if self.w2_b is not None else self.w1_b
        return max(1, round(self.alpha)) if product is None else product.shape[0]

    @property
    def scale(self) -> float:
        return 1.0 if self.w1 is not None and self.w2 is not None else self.alpha / self.rank

    @property
    def out_features(self) -> int:
        return self._first("cpu").shape[0] * self._second("cpu").shape[0]

    def _first(self, device: Device) -> Tensor:
        if self.w1 is not None:
            return _on(device, self.w1)[0]
        assert self.w1_a is not None and self.w1_b is not None
        w1_a, w1_b = _on(device, self.w1_a, self.w1_b)
        return w1_a @ w1_b

    def _second(self, device: Device) -> Tensor:
        if self.w2 is not None:
            return _on(device, self.w2)[0]
        assert self.w2_a is not None and self.w2_b is not None
        w2_a, w2_b = _on(device, self.w2_a, self.w2_b)
        return w2_a @ w2_b if self.t2 is None else _tucker(_on(device, self.t2)[0], w2_a, w2_b)

    def change(self, device: Device = "cpu") -> Tensor:
        first, second = self._first(device), self._second(device)
        first = first.reshape(*first.shape, *[1] * (second.ndim - 2))
        return torch.kron(first, second) * self.scale

    def tensors(self) -> dict[str, Tensor]:
        parts = {name: getattr(self, name) for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")}
        named = {f"lokr_{name}": value for name, value in parts.items()} | {"dora_scale": self.dora}
        return {"alpha": _number(self.alpha)} | _present(named)

    def rows(self, start: int, stop: int) -> LokrWeights | None:
        """A Kronecker product can be cut only where a row of w1 ends."""
        height = self._second("cpu").shape[0]
        if start % height or stop % height:
            return None
        part = slice(start // height, stop // height)
        dora = _rows_of_dora(self.dora, start, stop)
        if self.w1 is not None:
            return replace(self, w1=self.w1[part], dora=dora)
        assert self.w1_a is not None
        return replace(self, w1_a=self.w1_a[part], dora=dora)

    def as_lora(self) -> LoraWeights:
        """Exact: kron(w1, a b) = kron(w1, a) kron(1, b). Of a large rank if w2 is whole."""
        first, second = self._first("cpu"), self._second("cpu")
        _plain_linear(self, self.t2, second if second.ndim > 2 else None)
        if self.w2_a is not None and self.w2_b is not None:
            tall, wide = _on("cpu", self.w2_a, self.w2_b)
        elif second.shape[0] < second.shape[1]:
            tall, wide = torch.eye(second.shape[0]), second
        else:
            tall, wide = second, torch.eye(second.shape[1])
        up, down = torch.kron(first, tall), torch.kron(torch.eye(first.shape[1]), wide)
        return LoraWeights(down, up, self.scale * down.shape[0])

    def squared_norm(self) -> float:
        """The norm of a Kronecker product is the product of the norms."""
        return float(self._first("cpu").square().sum() * self._second("cpu").square().sum()) * self.scale**2


PARTS: dict[str, str] = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_mid.weight": "mid",
    **{f"hada_{name}": name for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{name}": name for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
}
"""A part's name in files -> the field that holds it."""


def understand(parts: Mapping[str, Tensor], *, alpha: float | None, where: str) -> AdapterWeights:
    """The adapter that the tensors of one module make up; names as in `PARTS`, and `dora_scale`.

    `alpha` 0 or None means the rank. `where`: how a WeightsError begins (parts missing, or sizes that disagree).
    """
    kinds = {name.partition("_")[0] for name in parts if name in PARTS}
    if len(kinds) != 1:
        raise WeightsError(f"{where} mixes {' and '.join(sorted(kinds)) or 'no'} tensors.", "The file is damaged.")
    dora = parts.get("dora_scale")
    fields: dict[str, Tensor | None] = {PARTS[name]: value for name, value in parts.items() if name in PARTS}
    kind = kinds.pop()
    if kind == "lora":
        return _lora(fields, alpha, dora, where)
    needed = ["w1_a", "w1_b", "w2_a", "w2_b"]
    made: type[LohaWeights | LokrWeights] = LohaWeights
    if kind == "lokr":
        made = LokrWeights
        needed = [name for name in needed if name.partition("_")[0] not in fields]
        fields = {"w1": None, "w2": None, **fields}
    if missing := [name for name in needed if name not in fields]:
        raise WeightsError(f"{where} lacks {', '.join(missing)} of its {made.kind}.", "The file is incomplete.")
    weights = made(**fields, alpha=alpha or 0.0, dora=_upright(dora))  # type: ignore[arg-type]
    return weights if alpha else replace(weights, alpha=float(weights.rank))


def _lora(fields: dict[str, Tensor | None], alpha: float | None, dora: Tensor | None, where: str) -> LoraWeights:
    down, up, mid = fields.get("down"), fields.get("up"), fields.get("mid")
    if down is None or up is None:
        raise WeightsError(f"{where} has only one half of its LoRA pair.", "The file is incomplete.")
    if down.shape[0] != up.shape[1]:
        raise WeightsError(f"{where}: the two halves have ranks {down.shape[0]} and {up.shape[1]}.")
    if any(size != 1 for size in up.shape[2:]):
        raise WeightsError(f"{where} has an up half with a kernel {tuple(up.shape[2:])}, which is not supported.")
    return LoraWeights(down, up, alpha or float(down.shape[0]), _upright(dora), mid)


def decomposed(changed: Tensor, lengths: Tensor) -> Tensor:
    """DoRA: scale the rows of a changed weight (`lengths` [out, 1]) or its columns ([1, in]) to these lengths.

    As in the paper and in lycoris, it divides by the norms of the changed weight; ComfyUI a125cd84 divides rows by the
    norm before the change.
    """
    by_rows = lengths.shape[0] == changed.shape[0]
    axes = [axis for axis in range(changed.ndim) if axis != (0 if by_rows else 1)]
    norms = torch.linalg.vector_norm(changed, dim=axes, keepdim=True).clamp(min=torch.finfo(changed.dtype).tiny)
    return changed * (lengths.to(changed.device, changed.dtype) / norms)


def _upright(dora: Tensor | None) -> Tensor | None:
    """[out] to [out, 1]: PEFT's lengths have one dimension."""
    return dora.unsqueeze(1) if dora is not None and dora.ndim == 1 else dora


def _rows_of_dora(dora: Tensor | None, start: int, stop: int) -> Tensor | None:
    if dora is None:
        return None
    if dora.shape[0] == 1:
        raise WeightsError(
            "A DoRA with lengths of columns cannot be cut by rows.", "Merge it in the tool that trained it."
        )
    return dora[start:stop]


def _plain_linear(weights: AdapterWeights, *extra: Tensor | None) -> None:
    if any(tensor is not None for tensor in extra):
        raise WeightsError(f"A {weights.kind} of a convolution cannot be turned into a LoRA.")


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("ij...,ip,jq->pq...", core, a, b)


def _on(device: Device, *tensors: Tensor) -> list[Tensor]:
    return [tensor.to(device, torch.float32) for tensor in tensors]


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def _present(parts: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: value for name, value in parts.items() if value is not None}
