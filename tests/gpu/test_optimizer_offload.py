"""`--optimizer_cpu_offload` with a real GPU: copies beside computing, into locked memory, change no bit."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from engine.training.optimizers import choose_optimizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]
WIDTH, LAYERS = 2048, 8


@pytest.mark.parametrize("name", ["AdamW", "AdamWScheduleFree", "Prodigy"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_same_numbers_and_no_state_between_steps(name, accumulation):
    plain, away = (_trained(name, accumulation, cpu_offload=on) for on in (False, True))
    for ours, theirs in zip(away["weights"], plain["weights"], strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(away["state"], plain["state"], strict=True):
        assert torch.equal(ours.cpu(), theirs.cpu())
    assert not any(value.is_cuda for value in away["state"]) and any(value.is_cuda for value in plain["state"])
    one = WIDTH * WIDTH * 4
    assert away["held"] <= (LAYERS + 1) * one, "more than the weights stays on the GPU while gradients are made"
    assert plain["held"] >= 3 * LAYERS * one


@pytest.mark.parametrize("name", ["AdamW", "Adam"])
def test_a_step_is_one_kernel_unless_told_otherwise(name):
    groups = [{"params": [nn.Parameter(torch.ones(2, 2, device="cuda"))], "lr": 1e-3}]

    def fused(*arguments, **told):
        chosen = choose_optimizer(name, arguments, lr=1e-3, device="cuda", **told)
        return bool(chosen.build(groups).optimizer.param_groups[0]["fused"])

    assert fused() and not fused("foreach=True") and not fused(loss_scaler=True)


def _trained(name, accumulation, *, cpu_offload):
    """Weights and state after a few steps, and the bytes on the GPU when the last step's gradients have been made."""
    gc.collect()  # what a test before left would be counted, or missed
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    before = torch.cuda.memory_allocated() - LAYERS * WIDTH * WIDTH * 4
    groups = [{"params": list(model.parameters()), "lr": 1e-3}]
    built = choose_optimizer(name, [], lr=1e-3, cpu_offload=cpu_offload, device="cuda").build(groups)
    built.train()
    draw = torch.Generator("cuda").manual_seed(1)
    for _ in range(4):
        for _ in range(accumulation):
            model(torch.randn(64, WIDTH, device="cuda", generator=draw)).square().mean().backward()
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated() - before
        built.gather()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        built.optimizer.step()
        built.optimizer.zero_grad()
    torch.cuda.synchronize()
    state = [value for one in built.optimizer.state.values() for value in one.values() if _is_large(value)]
    return {"weights": [value.detach().cpu() for value in model.parameters()], "state": state, "held": held}


def _is_large(value):
    return isinstance(value, torch.Tensor) and value.nbytes >= 1 << 20
