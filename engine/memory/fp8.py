"""Frozen linear layers with float8 weights: half the memory of bf16, and real fp8 products if the GPU has them.

The format of codes and scales is ops/fp8.py's. `Fp8Linear` computes y = x·Wᵀ + b from codes and scale; its
backward gives the gradient of the input only, since the weight is frozen. On CUDA with compute capability 8.9 or
newer, bf16 activations and a scale for the row or the tensor, both directions are `torch._scaled_mm` products with
activations scaled row by row; otherwise the weight is dequantised during the product only.
Without gradients such a layer can compute the GELU before it itself (ops/activated.py), if no adapter needs its result:
then the activated values, the widest that there are, are never written.
Norms, biases and modulation are left alone. Given up: training the weights, fp8 for convolutions and embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..contract.errors import WeightsError
from ..ops.fp8 import CODES, dequantize, quantize
from ..ops.quantize_rows import quantize_rows, spares_gelu
from .rules import FP8_PRODUCTS

Transform = Callable[[str, Tensor], Tensor]
SCALE = "scale_weight"
"""The name of an Fp8Linear's scale beside its `weight`."""
BIAS_FROM_ROWS = 256
"""With fewer (a short text) cuBLAS may lack a kernel that adds the bias too: seen up to 64 rows, with 8,960 columns."""


class Fp8Linear(nn.Linear):
    """A frozen nn.Linear of fp8 codes (`weight`) and their scale (`scale_weight`, float32). Wrap it like any Linear.

    Computes in the dtype of its input, or of autocast if that is on. `to` keeps the formats: a cast of the whole model
    to another dtype leaves codes and scale as they are.
    """

    def __init__(self, codes: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would allocate a weight
        self.out_features, self.in_features = codes.shape
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scale_weight = nn.Parameter(scale.float(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @classmethod
    def from_linear(cls, linear: nn.Linear, mode: str) -> Fp8Linear:
        """Quantise a layer: the reference's codes and scales for the weight's dtype."""
        return cls(*quantize(linear.weight, mode, scale_dtype=torch.float32), linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out] in the dtype of x (or of autocast)."""
        x = x.to(_computing_dtype(x))
        real_fp8 = x.dtype == torch.bfloat16 and self._multiplies_on(x.device)
        return _FrozenProduct.apply(x, self.weight, self.scale_weight, self.bias, real_fp8)

    def activating(self, activation: Callable[[Tensor], Tensor], hidden: Tensor) -> Callable[[Tensor], Tensor] | None:
        """For ops/activated.py: computes forward(activation(hidden)) from hidden, without writing activation(hidden).

        None if that has to be written: an activation other than GELU by tanh, an adapter or a gradient that needs it, a
        product that is not in fp8; or if nothing would be saved.
        """
        is_gelu = isinstance(activation, nn.GELU) and activation.approximate == "tanh"
        is_own = isinstance(self.forward, MethodType) and self.forward.__func__ is Fp8Linear.forward
        if not is_gelu or not is_own or torch.is_grad_enabled():
            return None
        is_bf16 = hidden.dtype == _computing_dtype(hidden) == torch.bfloat16
        real_fp8 = is_bf16 and self._multiplies_on(hidden.device)
        return self._of_gelu if real_fp8 and spares_gelu(hidden.device, hidden.shape[-1]) else None

    def _of_gelu(self, hidden: Tensor) -> Tensor:
        return _real_product(hidden, self.weight, self.scale_weight, self.bias, gelu=True)

    def _multiplies_on(self, device: torch.device) -> bool:
        """Whether fp8 products are possible: on this GPU, with at most a scale per row, and sizes in steps of 16."""
        fits = self.scale_weight.ndim <= 2 and self.in_features % 16 == 0 and self.out_features % 16 == 0
        return fits and self.weight.dtype == CODES and has_fp8_products(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Fp8Linear:
        kept = {name: getattr(self, name).data for name in ("weight", "scale_weight")}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            after = getattr(self, name)
            if after.dtype != before.dtype:
                after.data = before.to(after.device)
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale={list(self.scale_weight.shape)}"


def _computing_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def has_fp8_products(device: torch.device) -> bool:
    """Whether this device multiplies fp8 matrices (compute capability 8.9, Ada, or newer)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_PRODUCTS


class _FrozenProduct(torch.autograd.Function):
    """x·Wᵀ + b for frozen codes. Saves the codes for backward; F.linear would save the dequantised W."""

    @staticmethod
    def forward(ctx, x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, real_fp8: bool) -> Tensor:
        ctx.save_for_backward(codes, scale)
        ctx.real_fp8 = real_fp8
        if real_fp8:
            return _real_product(x, codes, scale, bias)
        bias = None if bias is None else bias.to(x.dtype)
        return functional.linear(x, dequantize(codes, scale, x.dtype), bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        codes, scale = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        if not ctx.real_fp8:
            return grad @ dequantize(codes, scale, grad.dtype), None, None, None, None
        # the row scales are along the summed axis here: they are multiplied into the gradient before it is quantised
        factors_N = scale.reshape(-1).expand(codes.shape[0])
        columns = codes.t().contiguous().t()  # the product needs its second factor in column-major order
        ones = torch.ones(1, codes.shape[1], device=grad.device)
        x_grad = _fp8_product(grad.reshape(-1, grad.shape[-1]), factors_N, columns, ones, None)
        return x_grad.view(*grad.shape[:-1], codes.shape[1]), None, None, None, None


def _real_product(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    """x·Wᵀ + b, with `gelu` GELU(x)·Wᵀ + b, by an fp8 product; bf16."""
    bias = None if bias is None else bias.to(x.dtype)
    scale_1N = scale.reshape(1, -1).expand(1, codes.shape[0])
    y = _fp8_product(x.reshape(-1, x.shape[-1]), None, codes.t(), scale_1N, bias, gelu=gelu)
    return y.view(*x.shape[:-1], codes.shape[0])


def _fp8_product(
    rows_MK: Tensor,
    factors_K: Tensor | None,
    codes_KN: Tensor,
    scale_1N: Tensor,
    bias: Tensor | None,
    *,
    gelu: bool = False,
) -> Tensor:
    """bf16 [M, N] = (rows·factors)·codes·scale, the rows (or their GELU) quantised with a scale each."""
    quantized, scale_M1 = quantize_rows(rows_MK, factors_K, gelu)
    added_later = bias is not None and rows_MK.shape[0] < BIAS_FROM_ROWS
    product = torch._scaled_mm(
        quantized,
        codes_KN,
        scale_a=scale_M1,
        scale_b=scale_1N.contiguous(),
        bias=None if added_later else bias,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    return product + bias if added_later else product


def quantize_model(model: nn.Module, *, wanted: Callable[[str], bool], mode: str = "block") -> list[str]:
    """Replace the linear layers whose path is `wanted` by Fp8Linear, one at a time. Returns their paths.

    Only plain nn.Linear is replaced: subclasses have a precision of their own. WeightsError: one is fp8 already.
    """
    names = list(_linears(model, wanted))
    for name in names:
        linear = model.get_submodule(name)
        if linear.weight.dtype.itemsize == 1:
            raise WeightsError(
                f"{name} is stored as {linear.weight.dtype}: these weights are fp8 already.",
                hint="Leave out --fp8_scaled, or use a bf16 checkpoint.",
            )
        _replace(model, name, Fp8Linear.from_linear(linear, mode))
    return names


class QuantizeOnLoad:
    """Quantise while loading, so that the whole bf16 model never exists: a transform, then `install`.

        quantizer = QuantizeOnLoad(dit_on_meta, wanted=…, mode="block", before=merge_loras)
        load_into(dit_on_meta, file, transform=quantizer, …)
        quantizer.install(dit)

    `before(name, tensor)` runs first, in the file's precision: a LoRA is merged before its weight is quantised.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        wanted: Callable[[str], bool],
        mode: str = "block",
        before: Transform | None = None,
    ) -> None:
        self.names = set(_linears(model, wanted))
        self.mode = mode
        self.before = before
        self.scales: dict[str, Tensor] = {}

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        if self.before is not None:
            tensor = self.before(name, tensor)
        path, _, kind = name.rpartition(".")
        if kind != "weight" or path not in self.names:
            return tensor
        if tensor.dtype.itemsize == 1:
            raise WeightsError(
                f"{name} is stored as {tensor.dtype}: these weights are fp8 already.",
                hint="Leave out --fp8_scaled, or use a bf16 checkpoint.",
            )
        codes, self.scales[path] = quantize(tensor, self.mode, scale_dtype=torch.float32)
        return codes

    @property
    def changed(self) -> set[str]:
        """Names of the weights that become codes."""
        return {f"{path}.weight" for path in self.names}

    def install(self, model: nn.Module) -> list[str]:
        """Turn the layers that were loaded as codes into Fp8Linear. Returns their paths."""
        for path, scale in self.scales.items():
            linear = model.get_submodule(path)
            codes = linear.weight.detach()
            _replace(model, path, Fp8Linear(codes, scale.to(codes.device), linear.bias))
        done, self.scales = list(self.scales), {}
        return done


def _linears(model: nn.Module, wanted: Callable[[str], bool]) -> Iterator[str]:
    return (name for name, module in model.named_modules() if type(module) is nn.Linear and wanted(name))


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, name, module)
