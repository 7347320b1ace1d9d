"""Linear layers stored in fp8: close to the original, half the size of bf16, in any dtype."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.parts.fp8_linear import StoredFp8Linear, quantize_rows, store_linears_in_fp8


def stored(linear: nn.Linear) -> StoredFp8Linear:
    layer = StoredFp8Linear(linear)
    codes, layer.scale = quantize_rows(linear.weight.data)
    layer.codes.data = codes
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1.0, 1e-4, 1e3])
def test_close_to_the_original_at_any_scale(dtype, size):
    torch.manual_seed(0)
    linear = nn.Linear(64, 32)
    linear.weight.data *= size
    x = torch.randn(8, 64, dtype=dtype)
    wanted = linear(x.float())
    found = stored(linear).to(dtype=dtype)(x)
    assert found.dtype == dtype
    assert (found.float() - wanted).norm() / wanted.norm() < 0.05


def test_small_rows_survive_beside_large_ones():
    weight = torch.randn(4, 64) * torch.tensor([[1e-5], [1.0], [1e4], [0.0]])
    codes, scale = quantize_rows(weight)
    back = codes.float() * scale
    assert torch.equal(back[3], weight[3])
    for row in range(3):
        assert (back[row] - weight[row]).norm() / weight[row].norm() < 0.05


def test_every_linear_is_replaced_and_weight_is_not_a_tensor():
    """transformers casts activations to the type of `.weight`: fp8 activations would be the end of them."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"inner": nn.Linear(4, 2, bias=False)}), nn.LayerNorm(4))
    store_linears_in_fp8(model)
    layers = [model[0], model[1]["inner"]]
    assert all(isinstance(layer, StoredFp8Linear) and layer.weight is None for layer in layers)
    assert layers[0].codes.element_size() == 1 and layers[0].bias is not None and layers[1].bias is None
    assert isinstance(model[2], nn.LayerNorm)
