"""Attention and linear layers by themselves, at the sizes of a case: time, and error against float32.

The functions are those that the blocks call: ops/attention.py and memory/fp8.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..contract.errors import as_failed
from ..memory.fp8 import Fp8Linear
from ..ops.attention import attention
from .stopwatch import repeated, timed
from .work import attention_operations

COMPARED_ROWS = 64  # of the result, in float32; all of them would need the whole attention matrix
BACKWARD = 2.5  # operations of attention's backward pass: it computes the weights again, then four products
FP8_MODES = {"fp8_row": "channel", "fp8_tensor": "tensor"}
SEED = 3


def attention_rows(
    backends: Sequence[str], *, tokens: int, heads: int, head_dim: int, device: torch.device, times: int
) -> Iterator[dict[str, Any]]:
    """A row for each backend: forward, and backward where it has one. `failed` where it cannot do this."""
    torch.manual_seed(SEED)
    q, k, v = (torch.randn(1, tokens, heads, head_dim, device=device, dtype=torch.bfloat16) for _ in range(3))
    exact = attention(q[:, :COMPARED_ROWS].float(), k.float(), v.float(), backend="math")
    tflop = attention_operations(tokens, heads=heads, head_dim=head_dim) / 1e12
    for backend in backends:
        row = {"mode": backend, "shape": [tokens, heads, head_dim], "tflop": tflop}

        def forward(name: str = backend) -> Tensor:
            return attention(q, k, v, backend=name)

        try:
            with torch.no_grad():
                row |= timed(repeated(forward, device, times=times))
                row["error"] = relative_error(forward()[:, :COMPARED_ROWS], exact)
        except Exception as error:  # kernels refuse sizes and devices with all kinds of errors
            yield {**row, "failed": told(error)}
            continue
        yield row | _backward(forward, (q, k, v), device, times, tflop=BACKWARD * tflop)


def linear_rows(
    formats: Sequence[str], layers: Sequence[tuple[int, int]], *, tokens: int, device: torch.device, times: int
) -> Iterator[dict[str, Any]]:
    """A row for each format of the weight and each (out, in) of `layers`: y = x·Wᵀ, and the gradient of x."""
    for rows, columns in layers:
        torch.manual_seed(SEED)
        linear = nn.Linear(columns, rows, bias=False, device=device, dtype=torch.bfloat16).requires_grad_(False)
        x = torch.randn(tokens, columns, device=device, dtype=torch.bfloat16)
        exact = x[:COMPARED_ROWS].float() @ linear.weight.float().t()
        tflop = 2.0 * tokens * rows * columns / 1e12
        for name in formats:
            layer = linear if name not in FP8_MODES else Fp8Linear.from_linear(linear, FP8_MODES[name])

            def forward(layer: nn.Module = layer, x: Tensor = x) -> Tensor:
                return layer(x)

            with torch.no_grad():
                row = timed(repeated(forward, device, times=times))
                error = relative_error(forward()[:COMPARED_ROWS], exact)
            row |= {"mode": name, "shape": [tokens, rows, columns], "tflop": tflop, "error": error}
            yield row | _backward(forward, (x,), device, times, tflop=tflop)


def _backward(
    forward: Callable[[], Tensor], inputs: tuple[Tensor, ...], device: torch.device, times: int, *, tflop: float
) -> dict[str, Any]:
    for tensor in inputs:
        tensor.requires_grad_(True)
    try:
        out = forward()
        grad = torch.randn_like(out)
        found = repeated(lambda: torch.autograd.grad(out, inputs, grad, retain_graph=True), device, times=times)
    except Exception as error:  # some kernels have no backward pass
        return {"backward_failed": told(error)}
    finally:
        for tensor in inputs:
            tensor.requires_grad_(False)
    return {"backward_seconds": timed(found)["seconds"], "backward_tflop": tflop}


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Length of the difference as a share of the exact result's length."""
    return float((found.float() - exact).norm() / exact.norm())


def block_linears(blocks: Sequence[nn.Module]) -> list[tuple[int, int]]:
    """(out, in) of each size of linear layer in these blocks, the largest first."""
    linears = (module for block in blocks for module in block.modules() if isinstance(module, nn.Linear))
    return sorted({(one.out_features, one.in_features) for one in linears}, reverse=True)


def told(error: BaseException) -> dict[str, str]:
    """What went wrong, for a row of figures."""
    failed, _ = as_failed(error)
    return {"kind": failed.kind, "message": failed.message, "hint": failed.hint}
