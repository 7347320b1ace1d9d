from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.contract.errors import WeightsError
from engine.memory.fp8 import Fp8Linear, QuantizeOnLoad, dequantize, quantize, quantize_model

MODES = ["block", "channel", "tensor"]


def layer(inputs=128, outputs=48, *, bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs, bias=bias).to(dtype)
    with torch.no_grad():
        linear.weight[0] *= 100  # an outlier row
    return linear.requires_grad_(False)


@pytest.mark.parametrize(
    "mode, shape, scale_shape",
    [
        ("block", (8, 128), (8, 2, 1)),
        ("block", (8, 100), (8, 1)),
        ("block", (8,), ()),
        ("channel", (8, 128), (8, 1)),
        ("channel", (4, 2, 3), ()),
        ("tensor", (8, 128), ()),
        ("cast", (8, 128), ()),
    ],
)
def test_shapes_and_fallbacks(mode, shape, scale_shape):
    codes, scale = quantize(torch.randn(shape), mode)
    assert codes.shape == shape and codes.dtype == torch.float8_e4m3fn and scale.shape == scale_shape


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_that_of_three_mantissa_bits(mode, dtype):
    weight = (torch.randn(32, 128, generator=torch.Generator().manual_seed(1)) + 2).to(dtype)
    codes, scale = quantize(weight, mode)
    assert scale.dtype == dtype
    relative = (dequantize(codes, scale) - weight.float()).abs() / weight.float().abs()
    assert relative.median() < 0.04 and relative[weight.abs() > 0.5].max() < 2**-4 + 2**-7


@pytest.mark.parametrize("mode", [*MODES, "cast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zeros_stay_zero(mode, dtype):
    """In fp16 the reference's smallest scale underflows to zero."""
    codes, scale = quantize(torch.zeros(4, 64, dtype=dtype), mode)
    assert torch.equal(dequantize(codes, scale), torch.zeros(4, 64))


def test_a_plain_cast_saturates_instead_of_making_nan():
    codes, scale = quantize(torch.tensor([[1e4, -1e4, 1.0]]), "cast")
    assert dequantize(codes, scale).tolist() == [[448.0, -448.0, 1.0]]


def test_unknown_mode():
    with pytest.raises(ValueError, match="rows"):
        quantize(torch.zeros(2, 2), "rows")


@pytest.mark.parametrize("mode", [*MODES, "cast"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_and_input_gradient_are_the_dequantised_linears(mode, bias, dtype):
    linear = layer(bias=bias, dtype=dtype)
    quantized = Fp8Linear.from_linear(linear, mode)
    weight = dequantize(quantized.weight, quantized.scale_weight, dtype)
    x = torch.randn(2, 3, 128, dtype=dtype)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, expected = quantized(ours), nn.functional.linear(theirs, weight, linear.bias)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    upstream = torch.randn_like(out)
    out.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-6 if dtype == torch.float32 else 1e-2)


def test_backward_keeps_codes_and_no_multiplied_out_weight():
    """The reference's fp8 forward leaves a bf16 copy of every weight for backward."""
    quantized = Fp8Linear.from_linear(layer(), "block")
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.dtype) or tensor, lambda t: t):
        quantized(torch.randn(2, 128, requires_grad=True))
    assert saved == [torch.float8_e4m3fn, torch.float32]


def test_under_autocast():
    quantized = Fp8Linear.from_linear(layer(), "block")
    x = torch.randn(2, 128, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = quantized(x)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert x.grad.dtype == torch.float32


def test_a_wrapped_forward_adds_an_adapter_and_trains_it():
    model = nn.Sequential(layer(128, 64), nn.GELU(), layer(64, 32))
    quantize_model(model, wanted=lambda name: True)
    down, up = nn.Parameter(torch.randn(4, 128) * 0.1), nn.Parameter(torch.randn(64, 4) * 0.1)
    target, base = model[0], model[0].forward
    target.forward = lambda x: base(x) + x @ down.t() @ up.t()
    x = torch.randn(3, 128)
    model(x).square().sum().backward()
    weight = dequantize(target.weight, target.scale_weight) + up @ down
    hidden = nn.functional.gelu(nn.functional.linear(x, weight, target.bias))
    last = dequantize(model[2].weight, model[2].scale_weight)
    expected = nn.functional.linear(hidden, last, model[2].bias).square().sum()
    grads = torch.autograd.grad(expected, (down, up))
    torch.testing.assert_close((down.grad, up.grad), grads, rtol=1e-4, atol=1e-4)


def test_only_wanted_plain_linears_are_replaced():
    class Special(nn.Linear):
        pass

    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(64, 64), Special(64, 64)]), "head": nn.Linear(64, 8)})
    assert quantize_model(model, wanted=lambda name: name.startswith("blocks.")) == ["blocks.0"]
    assert isinstance(model["blocks"][0], Fp8Linear) and isinstance(model["blocks"][0], nn.Linear)
    assert type(model["blocks"][1]) is Special and type(model["head"]) is nn.Linear


def test_plain_fp8_leaves_norms_biases_and_modulation_alone():
    """The reference's --fp8_base casts every parameter, norms and modulation included."""
    block = nn.Module()
    block.norm, block.ffn = nn.LayerNorm(64), nn.Linear(64, 64)
    block.modulation = nn.Parameter(torch.randn(1, 6, 64))
    quantize_model(block, wanted=lambda name: True, mode="cast")
    kinds = {name: parameter.dtype for name, parameter in block.named_parameters()}
    assert kinds.pop("ffn.weight") == torch.float8_e4m3fn
    assert set(kinds.values()) == {torch.float32}


def test_weights_that_are_fp8_already_are_refused():
    model = nn.Sequential(layer())
    model[0].weight.data = model[0].weight.data.to(torch.float8_e4m3fn)
    with pytest.raises(WeightsError, match="fp8 already"):
        quantize_model(model, wanted=lambda name: True)


def test_casting_the_model_keeps_the_formats():
    model = nn.Sequential(Fp8Linear.from_linear(layer(), "block"), nn.LayerNorm(48))
    before = model[0].weight.clone()
    model.to(torch.bfloat16)
    assert model[0].weight.dtype == torch.float8_e4m3fn and model[0].scale_weight.dtype == torch.float32
    assert torch.equal(model[0].weight.view(torch.uint8), before.view(torch.uint8))
    assert model[1].weight.dtype == torch.bfloat16


@pytest.mark.parametrize("mode", ["block", "channel", "cast"])
def test_quantising_while_loading_is_quantising_afterwards(mode):
    source = nn.Sequential(layer(), nn.LayerNorm(48), layer(48, 16))
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(128, 48), nn.LayerNorm(48), nn.Linear(48, 16))
    merged = []

    def merge(name, tensor):
        merged.append(name)
        return tensor + 1 if name == "0.weight" else tensor

    quantizer = QuantizeOnLoad(empty, wanted=lambda name: name != "2", mode=mode, before=merge)
    loaded = {name: quantizer(name, tensor) for name, tensor in source.state_dict().items()}
    for name, tensor in loaded.items():
        path, _, kind = name.rpartition(".")
        setattr(empty.get_submodule(path), kind, nn.Parameter(tensor, requires_grad=False))
    assert quantizer.install(empty) == ["0"]
    assert merged == list(source.state_dict())
    source[0].weight += 1
    quantize_model(source, wanted=lambda name: name != "2", mode=mode)
    x = torch.randn(2, 128)
    assert torch.equal(empty(x), source(x))
    assert type(empty[2]) is nn.Linear


def test_state_dict_names_are_the_worlds():
    names = set(Fp8Linear.from_linear(layer(), "block").state_dict())
    assert names == {"weight", "scale_weight", "bias"}


@pytest.mark.parametrize("mode", ["channel", "tensor", "cast"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 128), (2, 3, 128), (128,)])
def test_real_fp8_products_are_close_in_both_directions(monkeypatch, mode, bias, shape):
    """PyTorch has the fp8 product on the CPU too, slow but with the same rules for scales and strides."""
    quantized = Fp8Linear.from_linear(layer(bias=bias, dtype=torch.bfloat16), mode)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2)).bfloat16()
    exact_in, fast_in = x.clone().requires_grad_(), x.clone().requires_grad_()
    exact = quantized(exact_in)
    monkeypatch.setattr("engine.memory.fp8.has_fp8_products", lambda device: True)
    fast = quantized(fast_in)
    assert fast.shape == exact.shape and fast.dtype == torch.bfloat16 and not torch.equal(fast, exact)
    upstream = torch.randn(exact.shape, generator=torch.Generator().manual_seed(3)).bfloat16()
    exact.backward(upstream)
    fast.backward(upstream)
    for a, b in ((fast, exact), (fast_in.grad, exact_in.grad)):
        assert torch.cosine_similarity(a.float().flatten(), b.float().flatten(), dim=0) > 0.998


def test_block_scales_and_odd_sizes_never_take_the_fp8_product(monkeypatch):
    monkeypatch.setattr("engine.memory.fp8.has_fp8_products", lambda device: True)
    for quantized, width in (
        (Fp8Linear.from_linear(layer(dtype=torch.bfloat16), "block"), 128),
        (Fp8Linear.from_linear(layer(100, 48, dtype=torch.bfloat16), "channel"), 100),
        (Fp8Linear.from_linear(layer(128, 50, dtype=torch.bfloat16), "channel"), 128),
    ):
        x = torch.randn(4, width).bfloat16()
        weight = dequantize(quantized.weight, quantized.scale_weight, torch.bfloat16)
        torch.testing.assert_close(quantized(x), nn.functional.linear(x, weight, quantized.bias), rtol=0, atol=0)


def test_float32_input_is_computed_in_float32(monkeypatch):
    monkeypatch.setattr("engine.memory.fp8.has_fp8_products", lambda device: True)
    quantized = Fp8Linear.from_linear(layer(), "channel")
    x = torch.randn(4, 128)
    weight = dequantize(quantized.weight, quantized.scale_weight)
    torch.testing.assert_close(quantized(x), nn.functional.linear(x, weight, quantized.bias), rtol=0, atol=0)
