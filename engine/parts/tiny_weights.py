"""What the writers of tiny models share: random tensors, colour axes of their VAEs, sentences for their tokenizers.

Nothing is trained. Knows no model.
"""

from __future__ import annotations

import torch
from torch import Tensor

COLOUR_AXES = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))
"""RGB to the three latent channels that are painted back: brightness, blueness, redness (BT.601)."""

SENTENCES = (
    "a red circle moves right in front of a night background",
    "a blue square moves left in front of a sand background",
    "a green triangle moves up in front of a mist background",
    "a yellow star moves down, and a purple hexagon waits",
    "a white dog runs over a sunny beach; slow camera, close-up, high quality",
    "two teal balls fall from an orange roof in the rain, 4k video",
    "the quick brown fox jumps over the lazy dog",
)
"""What tiny tokenizers are trained on; anything else they spell in bytes."""


class DrawnTensors(dict[str, Tensor]):
    """The tensors of one checkpoint, by name; random ones are all drawn from one seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, std: float) -> Tensor:
        return torch.randn(shape, generator=self.generator) * std

    def layer(self, name: str, weight: Tensor, bias: Tensor | None = None) -> None:
        """Add a layer's weight and bias; without `bias`, zeros."""
        self[f"{name}.weight"] = weight
        self[f"{name}.bias"] = torch.zeros(weight.shape[0]) if bias is None else bias
