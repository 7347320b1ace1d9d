"""Fun-Control models without pictures, and V1.1's reference image: what stands in for what is not given."""

from __future__ import annotations

import torch

from engine.families.wan import model, tiny


def dit(variant: str):
    config = tiny.CONFIGS[variant]
    built = model.build(config, device="cpu")
    built.load_state_dict(tiny.dit_tensors(1, config))
    return built


def asked(built, **cond):
    generator = torch.Generator().manual_seed(2)
    x_BCTHW = torch.randn(1, 16, 2, 4, 4, generator=generator)
    text = [torch.randn(300, 64, generator=generator)]
    y_BCTHW = torch.randn(1, 32, 2, 4, 4, generator=generator)
    return model.velocity(built, x_BCTHW, torch.tensor([500.0]), {"text": text, "y": y_BCTHW, **cond})


def test_no_start_image_is_zeros_for_the_image_attention():
    """musubi-tuner sends the first 257 text tokens through the image keys and values, and only the rest as text."""
    built = dit("t2v-1.3B-FC")
    zeros = torch.zeros(1, 257, tiny.tiny_clip.WIDTH)
    plain = asked(built)
    assert torch.equal(plain, asked(built, clip=zeros))
    assert (plain - asked(built, clip=torch.randn(zeros.shape))).abs().max() > 1e-5


def test_no_reference_image_is_zeros_for_v1_1():
    built = dit("fun-v1.1")
    zeros = torch.zeros(1, 16, 4, 4)
    plain = asked(built)
    assert plain.shape == (1, 16, 2, 4, 4) and torch.equal(plain, asked(built, reference=zeros))
    assert (plain - asked(built, reference=zeros + 1.0)).abs().max() > 1e-5
