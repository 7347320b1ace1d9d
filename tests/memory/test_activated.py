"""An fp8 layer takes the GELU before it upon itself exactly where nobody else needs the activated values."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.nn import functional
from torch.nn.functional import gelu

from engine.families import names, part
from engine.lora.adapters import LoraAdapter
from engine.memory import fp8
from engine.memory.fp8 import Fp8Linear, quantize_model
from engine.ops.activated import activated
from engine.ops.quantize_rows import LONGEST_FUSED_ROW
from tests.memory.test_recomputing import conditions

GELU = nn.GELU(approximate="tanh")
LONG = LONGEST_FUSED_ROW + 64


@pytest.fixture(autouse=True)
def real_fp8(monkeypatch):
    """PyTorch has the fp8 product on the CPU too."""
    monkeypatch.setattr(fp8, "has_fp8_products", lambda device: True)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def layer(width=LONG, *, mode="channel", bias=True):
    torch.manual_seed(0)
    return Fp8Linear.from_linear(nn.Linear(width, 32, bias=bias).bfloat16(), mode)


def hidden(width=LONG, *, dtype=torch.bfloat16):
    return torch.randn(2, 3, width, generator=torch.Generator().manual_seed(1)).mul(3).to(dtype)


def adapted():
    quantized = layer()
    quantized.adapter = LoraAdapter(quantized, path="last", dim=2, alpha=2)
    return quantized.requires_grad_(False)


def once_adapted():
    quantized = adapted()
    quantized.adapter.detach_from(quantized)
    return quantized


def wrapped_by_a_function():
    quantized = layer()
    base = quantized.forward
    quantized.forward = lambda x: base(x) + x.mean()
    return quantized


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mode", ["channel", "tensor"])
def test_the_product_is_the_same(bias, mode):
    quantized, x = layer(bias=bias, mode=mode), hidden()
    with torch.no_grad():
        own, left = activated(quantized, GELU, x)
        assert left is x and own is not quantized
        assert torch.equal(own(left), quantized(GELU(x)))
        one, wanted = activated(quantized, GELU, x[0, 0])
        assert torch.equal(one(wanted), quantized(GELU(x[0, 0])))


@pytest.mark.parametrize("family", names(extra=False))
def test_feed_forward_layers_leave_it_to_their_last(monkeypatch, family):
    """Of all families: as many as are otherwise handed what a GELU gave. Single-stream blocks, whose last layer reads
    attention's result too, have none."""
    model, keys = part(family, "model"), part(family, "keys")
    dit = model.build(part(family, "tiny").DIT_CONFIG, device="cpu", dtype=torch.bfloat16)
    torch.manual_seed(0)
    for parameter in dit.parameters():
        parameter.data = torch.randn(parameter.shape).mul(0.05).bfloat16()
    quantize_model(dit, wanted=keys.is_fp8_weight, mode="channel")
    left_to_them, handed, given = [], [], []
    plain, plain_gelu = fp8._fp8_product, functional.gelu

    def counting(rows, *others, gelu=False):
        left_to_them.append(gelu)
        handed.append(any(rows.data_ptr() == values.data_ptr() for values in given))
        return plain(rows, *others, gelu=gelu)

    def noted(*values, **how):
        given.append(plain_gelu(*values, **how))
        return given[-1]

    def ran():
        torch.manual_seed(4)
        with torch.no_grad():
            return model.velocity(dit, torch.randn(1, 16, 3, 6, 8), torch.tensor([500.0]), conditions(family, 1))

    monkeypatch.setattr(fp8, "_fp8_product", counting)
    found = ran()
    count = sum(left_to_them)
    monkeypatch.setattr(Fp8Linear, "activating", lambda *others: None)
    monkeypatch.setattr(functional, "gelu", noted)
    handed.clear()
    assert torch.equal(found, ran())
    assert count == sum(handed)


CASES = {
    # layer, activation, hidden values, wanted
    "plain": (layer, GELU, hidden, True),
    "without a bias": (lambda: layer(bias=False), GELU, hidden, True),
    "an adapter": (adapted, GELU, hidden, False),
    "an adapter that was taken off": (once_adapted, GELU, hidden, True),
    "a forward of somebody else": (wrapped_by_a_function, GELU, hidden, False),
    "another GELU": (layer, nn.GELU(), hidden, False),
    "another activation": (layer, nn.SiLU(), hidden, False),
    "block scales": (lambda: layer(LONG, mode="block"), GELU, hidden, False),
    "an odd width": (lambda: layer(LONG + 8), GELU, lambda: hidden(LONG + 8), False),
    "32 bits": (layer, GELU, lambda: hidden(dtype=torch.float32), False),
    "no fp8": (lambda: nn.Linear(LONG, 32).bfloat16(), GELU, hidden, False),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_done_where_nobody_needs_the_activated_values(case):
    make, activation, values, wanted = CASES[case]
    quantized, x = make(), values()
    with torch.no_grad():
        assert (activated(quantized, activation, x)[0] is not quantized) == wanted
    assert activated(quantized, activation, x)[0] is quantized, "with gradients"


def test_autocast_to_another_type_prevents_it():
    quantized, x = layer(), hidden()
    for dtype, wanted in ((torch.bfloat16, True), (torch.float16, False)):
        with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
            assert (activated(quantized, GELU, x)[0] is not quantized) == wanted


def test_without_fp8_products_it_is_not_done(monkeypatch):
    monkeypatch.setattr(fp8, "has_fp8_products", lambda device: False)
    quantized = layer()
    with torch.no_grad():
        assert activated(quantized, GELU, hidden())[0] is quantized


@pytest.mark.parametrize(
    ("make", "width", "grad", "wanted"),
    [(layer, LONG, False, True), (layer, LONG, True, False), (adapted, LONG, False, False),
     (lambda: layer(128), 128, False, False)],
    ids=["plain", "gradient", "adapter", "short rows"],
)  # fmt: skip
def test_a_compiled_graph_has_the_operator_in_the_place_of_the_gelu(make, width, grad, wanted):
    """Short rows, where Inductor fuses all, have it as before."""
    quantized, x = make(), hidden(width).requires_grad_(grad)
    seen = []

    def look(graph, inputs):
        seen.extend((str(node.target), node.args[2:]) for node in graph.graph.nodes if node.op == "call_function")
        return make_boxed_func(graph.forward)

    def product(x):
        own, left = activated(quantized, GELU, x)
        return own(left)

    with torch.set_grad_enabled(grad):
        compiled = torch.compile(product, backend=aot_autograd(fw_compiler=look), fullgraph=True)
        assert torch.equal(compiled(x), product(x))
    operators = [more for target, more in seen if "musubi.quantize_rows" in target]
    assert [more == (True,) for more in operators].count(True) == wanted
    assert any("aten.gelu" in target for target, _ in seen) != wanted
    assert len(operators) == (width == LONG)


def test_an_adapter_that_comes_later_has_its_values():
    """A graph that was compiled before does not serve then."""
    quantized, x = layer(), hidden()

    @torch.compile(backend="eager")
    def product(x):
        own, left = activated(quantized, GELU, x)
        return own(left)

    with torch.no_grad():
        before = product(x)
        adapter = LoraAdapter(quantized, path="last", dim=2, alpha=2).bfloat16()
        adapter.lora_up.weight.data.fill_(0.1)
        after = product(x)
        assert torch.equal(after, quantized(gelu(x, approximate="tanh"))) and not torch.equal(after, before)
        adapter.detach_from(quantized)
        assert torch.equal(product(x), before)
