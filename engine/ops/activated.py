"""The activation between the two products of a feed-forward layer.

Its result is as wide as the layer, and the second product reads it once. A layer that can compute the activation as it
reads has a method `activating` (memory/fp8.py), and then the activated values are never written. Last bits may differ:
in a training where no adapter needs these values, a checkpointed block's first run, which has no gradients, is computed
in this way, and its second is not.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Layer = Callable[[Tensor], Tensor]


def activated(layer: Layer, activation: Layer, hidden: Tensor) -> tuple[Layer, Tensor]:
    """(layer, activation(hidden)), or (a layer that applies the activation itself, hidden): the same product."""
    activating = getattr(layer, "activating", None)
    own = None if activating is None else activating(activation, hidden)
    return (layer, activation(hidden)) if own is None else (own, hidden)
