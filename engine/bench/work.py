"""How many operations a step is, worked out from what a DiT's blocks work on: for TFLOP/s and utilisation.

Products of matrices and attention of the blocks; embeddings, norms and adapters are left out (below 2 %). What is
computed again in a backward pass does not count, so a faster step is a better use of the device, however it came about.
Agrees with the counts in tests/bench/test_measuring.py, within 1 % for a forward pass and 3 % for a training step.
"""

from __future__ import annotations

from typing import Any

from ..contract.cli import parse
from ..families import part
from ..families.values import BenchSize
from ..parts.workload import BlockRun, Work

TERA = 1e12


def trained_work(family: str, config: Any, size: BenchSize) -> Work:
    """What the blocks of a DiT of this `config` work on in training, for one clip of this size."""
    job, options = parse(["train", family, "--dit", "-", "--dataset_config", "-"]), part(family, "options")
    latents = options.latent_size(job, width=size.width, height=size.height, frames=size.frames)
    work: Work = options.dit_work(job, config, latents)
    return work


def forward_operations(work: Work) -> tuple[float, float]:
    """(of products with weights, of attention) in one sample's way through the blocks."""
    found = [_run(work, run) for run in work.runs]
    return sum(products for products, _ in found), sum(attention for _, attention in found)


def forward_tflop(work: Work) -> float:
    """One call of the DiT with one sample."""
    return sum(forward_operations(work)) / TERA


def training_tflop(work: Work) -> float:
    """One training step of one sample with frozen weights: forward, and gradients of the inputs alone, which is as
    much again for a product and twice as much for attention."""
    products, attention = forward_operations(work)
    return (2 * products + 3 * attention) / TERA


def attention_operations(length: int, *, heads: int, head_dim: int) -> float:
    """Attention of so many tokens to each other, forward; backward is 2.5 times as much."""
    return 4.0 * length * length * heads * head_dim


def _run(work: Work, run: BlockRun) -> tuple[float, float]:
    dim, tokens, seen = work.dim, work.tokens, work.text_tokens + work.image_tokens
    feed_forward = 2 * dim * run.ffn_dim
    if run.kind == "cross":  # q, k, v, o of each attention; k and v of the second are made of what is looked at
        products = tokens * (6 * dim * dim + feed_forward) + 2 * seen * dim * dim
        attention = 4.0 * tokens * dim * (tokens + seen)
    else:
        products = tokens * (4 * dim * dim + feed_forward)
        attention = 4.0 * tokens * tokens * dim
    return 2.0 * run.count * products, run.count * attention
