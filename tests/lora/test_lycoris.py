"""What lycoris-lora is asked for: when it is imported, what it may decide by itself, what it keeps."""

from __future__ import annotations

import logging
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.lora.adapters import LohaAdapter, LokrAdapter
from engine.lora.arguments import read_network_arguments
from engine.lora.kronecker import lokr_shapes
from engine.lora.lycoris_functions import lokr_parts
from engine.lora.network import create
from engine.memory.compile import compile_blocks

PACK = Path(__file__).parents[2]
KINDS = {
    "LoHa": ("networks.loha", []),
    "LoKr": ("networks.lokr", []),
    "LoKr of four factors": ("networks.lokr", ["factor=8", "decompose_both=True"]),
    "LoHa with DoRA": ("networks.loha", ["dora_wd=True"]),
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.narrow(nn.functional.gelu(self.wide(x)))


def trained(name: str, *, compiled: bool = False) -> tuple[nn.ModuleList, nn.Module]:
    torch.manual_seed(0)
    blocks = nn.ModuleList([Block(), Block()])
    module, arguments = KINDS[name]
    values = {"dim": 2, "alpha": 1.0, "seed": 1, **read_network_arguments(module, arguments).create}
    network = create(blocks, block_classes=["Block"], exclude="", **values)
    for key, parameter in network.named_parameters():
        if not key.endswith("dora_scale"):
            nn.init.normal_(parameter, std=0.2)
    if compiled:
        compile_blocks(blocks, backend="aot_eager", fullgraph=True)
    return blocks, network.requires_grad_(True)


def figures(blocks: nn.ModuleList, network: nn.Module) -> list[torch.Tensor]:
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = blocks[1](blocks[0](x))
    y.float().square().sum().backward()
    return [y.detach(), x.grad, *[parameter.grad for parameter in network.parameters()]]


@pytest.mark.parametrize("name", KINDS)
def test_a_compiled_block_has_these_adapters_in_its_one_graph(name: str) -> None:
    torch._dynamo.reset()
    for ours, eager in zip(figures(*trained(name, compiled=True)), figures(*trained(name)), strict=True):
        assert ours.dtype == eager.dtype and torch.allclose(
            ours, eager, rtol=0.02, atol=0.02 * float(eager.abs().max())
        )


def test_it_compiles_and_measures_nothing_by_itself() -> None:
    from lycoris.kernels import available_backends, tuning_enabled

    assert "compile" not in available_backends() and not tuning_enabled()


def test_what_it_says_goes_to_the_log_and_not_into_the_event_stream(capsys, caplog) -> None:
    logging.getLogger("LyCORIS").warning("a kernel could not be built")
    assert caplog.messages == ["a kernel could not be built"] and not capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "columns", "rank"), [(5120, 13824, 4), (5120, 5120, 40), (48, 96, 1), (250, 127, 2), (13824, 5120, 60)]
)
def test_the_planner_counts_the_factors_that_lycoris_makes(rows: int, columns: int, rank: int) -> None:
    for factor, whole, both in product((-1, 4, 8, 1024), (False, True), (False, True)):
        options = {"factor": factor, "full_matrix": whole, "decompose_both": both}
        with torch.device("meta"):
            made = lokr_parts(rows, columns, rank, generator=None, **options)
        assert {name: tuple(part.shape) for name, part in made.items()} == lokr_shapes(
            rows, columns, rank, factor=factor, whole=whole, both=both
        )


@pytest.mark.parametrize("kind", [LohaAdapter, LokrAdapter])
def test_first_values_follow_the_seed_and_disturb_no_other_randomness(kind: type) -> None:
    def made(seed: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        both = [kind(nn.Linear(32, 64), path="", dim=2, alpha=1.0, generator=generator) for _ in range(2)]
        return [torch.cat([value.flatten() for value in one.factors()]) for one in both]

    layer = nn.Linear(32, 64)
    before = torch.get_rng_state()
    kind(layer, path="", dim=2, alpha=1.0, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before)
    (first, second), again, other = made(1), made(1), made(2)
    assert torch.equal(first, again[0]) and torch.equal(second, again[1])
    assert not torch.equal(first, second) and not torch.equal(first, other[0])


def test_the_second_side_of_a_loha_begins_at_zero() -> None:
    """As in musubi-tuner: first values of standard deviation 0.1 and 1, 0 and 1."""
    adapter = LohaAdapter(nn.Linear(200, 300), path="", dim=8, alpha=1.0)
    spread = [float(factor.detach().std()) for factor in adapter.factors()]
    assert spread == pytest.approx([0.1, 1.0, 0.0, 1.0], abs=0.1) and spread[2] == 0


@pytest.mark.parametrize("autocast", [False, True])
def test_a_loha_keeps_no_full_matrix_for_backward(autocast: bool) -> None:
    layer = nn.Linear(64, 128)
    layer.requires_grad_(False)
    LohaAdapter(layer, path="", dim=2, alpha=1.0).requires_grad_(True)
    kept: list[int] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value.numel()) or value, lambda one: one)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        layer(torch.randn(3, 64))
    assert kept and max(kept) <= 3 * 128


def child(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=PACK, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_only_training_a_loha_or_lokr_imports_it() -> None:
    """It takes seconds, and planning, merging and generating have no use for it."""
    code = (
        "import sys; from torch import nn; import engine.tasks.train, engine.tasks.plan, engine.lora.merge_file;"
        "from engine.lora.adapters import LoraAdapter;"
        "LoraAdapter(nn.Linear(4, 4), path='', dim=1, alpha=1); print('lycoris' in sys.modules)"
    )
    assert child(code) == "False" and "lycoris" in sys.modules


@pytest.mark.parametrize("missing", ["lycoris", "einops"])
def test_an_environment_without_it_is_told_what_mends_it(missing: str) -> None:
    """On a model without weights, as training makes one before it loads anything."""
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from torch import nn; from engine.contract.errors import as_failed\n"
        "from engine.lora.adapters import LohaAdapter\n"
        "try: LohaAdapter(nn.Linear(4, 4, device='meta'), path='', dim=1, alpha=1)\n"
        "except ModuleNotFoundError as error: told, status = as_failed(error)\n"
        "print(status, told.message, told.hint)"
    )
    told = child(code)
    assert told.startswith("2 ") and f"lacks the package {missing}" in told and "python -m env_bootstrap repair" in told
