"""Attention kernels tried out on a real GPU."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from engine.ops import attention, attention_choice
from engine.ops.hopper_attention import can_run
from engine.tasks.attention_kernels import milliseconds

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]


@pytest.fixture(autouse=True)
def nothing_chosen():
    attention_choice.forget()
    yield
    attention_choice.forget()


@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_choice_is_made_remembered_and_changes_no_random_number(tmp_path, learning, dtype):
    device = torch.device("cuda")
    remembered = {"file": tmp_path / "attention.json", "clock": partial(milliseconds, device=device)}
    before, held = torch.cuda.get_rng_state(), torch.cuda.memory_allocated()
    choice = attention.choose_kernel(device, dtype, 128, learning=learning, **remembered)
    assert torch.equal(torch.cuda.get_rng_state(), before) and torch.cuda.memory_allocated() <= held + (1 << 20)
    hopper = torch.cuda.get_device_capability()[0] == 9
    if learning and (dtype == torch.float16 or torch.cuda.get_device_capability()[0] < 9):
        assert choice is None  # FlashAttention's gradients are the only ones
        return
    assert not choice.remembered and not (hopper and choice.name not in ("cudnn", "hopper"))
    again = attention.choose_kernel(device, dtype, 128, learning=learning, **remembered)
    assert again.remembered and again.name == choice.name and again.milliseconds == choice.milliseconds


@pytest.mark.parametrize("name", ["cudnn", "flash", "efficient", "hopper"])
def test_every_kernel_that_can_be_chosen_computes_attention(name):
    if name == "hopper" and not can_run(torch.device("cuda", 0), torch.bfloat16, 128):
        pytest.skip("our kernel for Hopper cannot run here")
    torch.manual_seed(0)
    qkv = [torch.randn(1, length, 4, 128, device="cuda").bfloat16() for length in (1000, 512, 512)]
    exact = attention.attention(*(part.float() for part in qkv), backend="math")
    torch.testing.assert_close(attention._run(name, *qkv).float(), exact, rtol=0.02, atol=0.01)
