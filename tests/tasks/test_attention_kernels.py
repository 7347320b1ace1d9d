from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from engine.ops.attention_choice import Choice
from engine.tasks import attention_kernels
from engine.tasks.attention_kernels import settle_attention

DIT = SimpleNamespace(config=SimpleNamespace(head_dim=128))
GPU = torch.device("cuda", 0)


@pytest.fixture
def told(monkeypatch):
    """What is said for a backend, and what was tried out for it."""
    asked = []
    times = {False: {"cudnn": 0.4, "flash": 0.6, "efficient": 1.2}, True: {"cudnn": 2.0, "flash": 1.0}}

    def choose_kernel(device, dtype, head_dim, *, learning, file):
        asked.append((dtype, head_dim, learning, file))
        return Choice("flash" if learning else "cudnn", times[learning], remembered=learning)

    monkeypatch.setattr(attention_kernels, "choose_kernel", choose_kernel)

    def tell(device=GPU, backend="auto", learning=False):
        said = []
        settle_attention(DIT, device, dtype=torch.bfloat16, backend=backend, learning=learning, say=said.append)
        return [event.message for event in said], asked

    return tell


def test_a_training_hears_of_both_ways(told, monkeypatch, tmp_path):
    monkeypatch.setenv("MUSUBI_HOME", str(tmp_path))
    said, asked = told(learning=True)
    assert said == [
        "Attention: cuDNN, as just tried (0.40 ms; PyTorch's FlashAttention 0.60, "
        "PyTorch's memory-efficient attention 1.20).",
        "Attention and its gradients: PyTorch's FlashAttention, as tried here before (1.00 ms; cuDNN 2.00).",
    ]
    file = tmp_path / "attention.json"
    assert asked == [(torch.bfloat16, 128, False, file), (torch.bfloat16, 128, True, file)]


def test_a_generation_needs_no_gradients(told, monkeypatch):
    monkeypatch.delenv("MUSUBI_HOME", raising=False)
    said, asked = told()
    assert len(said) == 1 and asked == [(torch.bfloat16, 128, False, None)]


def test_a_kernel_that_was_asked_for_is_named_and_not_tried_out(told):
    assert told(backend="8bit", learning=True) == (["Attention: 8bit, as asked for."], [])


def test_a_cpu_has_no_choice(told):
    assert told(device=torch.device("cpu")) == ([], [])
