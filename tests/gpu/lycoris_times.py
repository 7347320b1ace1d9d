"""What LoHa and LoKr cost on this GPU through lycoris' kernels and through PyTorch; run as a module of its own.

One JSON line a kind, layer and way: milliseconds of forward and backward of the adapter alone, on a layer that returns
zeros, and the peak of memory above what was there before. `first_s` is the first call, which compiles kernels.
"""

from __future__ import annotations

import json
import time

import torch
from torch import nn

from engine.lora import lycoris_functions
from engine.lora.adapters import Adapter, LohaAdapter, LokrAdapter

TOKENS, RANK, ROUNDS = 32_760, 16, 10
LAYERS = ((5120, 5120), (5120, 13824), (13824, 5120))


class Zeros(nn.Module):
    """Stands for a frozen layer."""

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__()
        self.in_features, self.out_features = columns, rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(()).expand(*x.shape[:-1], self.out_features)


def row(kind: type[Adapter], columns: int, rows: int, way: str) -> dict[str, object]:
    lycoris_functions._backend = lambda tensor: way  # type: ignore[assignment]
    layer = Zeros(columns, rows)
    adapter = kind(layer, path="", dim=RANK, alpha=RANK).cuda().requires_grad_(True)
    x = torch.randn(1, TOKENS, columns, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    given = torch.randn(1, TOKENS, rows, device="cuda", dtype=torch.bfloat16)

    def once() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            y = layer(x)
        y.backward(given)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    first = once()
    once()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    seconds = sorted(once() for _ in range(ROUNDS))[ROUNDS // 2]
    peak = torch.cuda.max_memory_allocated() - before
    return {
        "kind": adapter.name, "layer": f"{columns} to {rows}", "way": way, "ms": round(seconds * 1000, 2),
        "peak_mib": peak >> 20, "first_s": round(first, 2), "device": torch.cuda.get_device_name(),
    }  # fmt: skip


if __name__ == "__main__":
    for kind in (LohaAdapter, LokrAdapter):
        for columns, rows in LAYERS:
            for way in ("torch", "triton"):
                print(json.dumps(row(kind, columns, rows, way)), flush=True)
