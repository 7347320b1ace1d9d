"""LoHa and LoKr through lycoris-lora on a GPU: its Triton kernels, and PyTorch's operations in a compiled block."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor, nn

from engine.lora import lycoris_functions
from engine.lora.arguments import read_network_arguments
from engine.lora.network import create
from engine.memory.compile import compile_blocks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]
WIDTH, TOKENS = 256, 300
KINDS = {
    "LoHa": ("networks.loha", []),
    "LoHa of rank 160": ("networks.loha", ["network_reg_dims=.*=160"]),  # more than the kernels take
    "LoHa with DoRA": ("networks.loha", ["dora_wd=True"]),
    "LoKr": ("networks.lokr", []),
    "LoKr by 2": ("networks.lokr", ["factor=2"]),  # factors larger than the kernels take
    "LoKr of four factors": ("networks.lokr", ["factor=16", "decompose_both=True"]),
    "LoKr whole": ("networks.lokr", ["full_matrix=True"]),
    "LoKr with DoRA": ("networks.lokr", ["dora_wd=True"]),
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(nn.functional.gelu(self.wide(x)))


def figures(name: str, device: str, *, autocast: bool = True, compiled: bool = False) -> dict[str, Tensor]:
    """Output and gradients of a block with adapters on both layers, float32 on the CPU."""
    torch.manual_seed(0)
    blocks = nn.ModuleList([Block()])
    module, arguments = KINDS[name]
    values = {"dim": 4, "alpha": 2.0, "seed": 1, **read_network_arguments(module, arguments).create}
    network = create(blocks, block_classes=["Block"], exclude="", **values)
    for key, parameter in network.named_parameters():
        if not key.endswith("dora_scale"):
            nn.init.normal_(parameter, std=0.15)
    x = torch.randn(2, TOKENS, WIDTH)
    blocks.to(device)
    network.to(device).requires_grad_(True)
    x = x.to(device).requires_grad_()
    if compiled:
        compile_blocks(blocks)
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        y = blocks[0](x)
    (y.float() * torch.linspace(-1, 1, WIDTH, device=device)).sum().backward()
    found = {"y": y.detach(), "x": x.grad, **{key: value.grad for key, value in network.named_parameters()}}
    return {key: value.float().cpu() for key, value in found.items()}


def off(ours: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    return {key: float((ours[key] - value).norm() / value.norm().clamp(min=1e-9)) for key, value in exact.items()}


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
@pytest.mark.parametrize("name", KINDS)
def test_bf16_on_the_gpu_is_float32_on_the_cpu_to_rounding(name: str, compiled: bool) -> None:
    torch._dynamo.reset()
    exact = figures(name, "cpu", autocast=False)
    distances = off(figures(name, "cuda", compiled=compiled), exact)
    assert max(distances.values()) < 0.03, distances


@pytest.mark.parametrize("name", ["LoHa", "LoKr"])
def test_the_kernels_and_pytorch_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = figures(name, "cuda")
    monkeypatch.setattr(lycoris_functions, "_backend", lambda tensor: "torch")
    distances = off(kernels, figures(name, "cuda"))
    assert max(distances.values()) < 0.02, distances


@pytest.mark.parametrize("name", ["LoHa", "LoKr"])
def test_the_same_start_gives_the_same_bits(name: str) -> None:
    first, second = figures(name, "cuda"), figures(name, "cuda")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_kernels_are_taken_where_they_can_be() -> None:
    if importlib.util.find_spec("triton") is None or torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no Triton here, or a GPU that it has no kernels for")
    assert lycoris_functions._backend(torch.ones(1, device="cuda")) == "triton"


def test_a_loha_keeps_no_full_matrix_for_backward() -> None:
    """Not compiled: there the compiler decides, within one checkpointed block."""
    kept: list[int] = []
    layer_size = 3 * WIDTH * WIDTH
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value.numel()) or value, lambda one: one)
    with hooks:
        figures("LoHa", "cuda")
    weights = 2  # the base's own, which are kept by reference
    assert sum(size == layer_size for size in kept) <= weights, kept
