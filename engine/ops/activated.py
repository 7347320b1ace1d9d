"""The activation between the two products of a feed-forward layer.

What it gives is as wide as the layer, and the second product reads it once. A layer that can compute the activation as
it reads says so by a method `activating` (memory/fp8.py), and then nobody writes the activated values. They may differ
in last bits then: in a training where no adapter needs them, a checkpointed block's first run, which has no gradients,
is computed so, and its second is not.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Layer = Callable[[Tensor], Tensor]


def activated(layer: Layer, activation: Layer, hidden: Tensor) -> tuple[Layer, Tensor]:
    """(layer, activation(hidden)), or two others with the same product: what `layer` has for `hidden` itself."""
    activating = getattr(layer, "activating", None)
    own = None if activating is None else activating(activation, hidden)
    return (layer, activation(hidden)) if own is None else (own, hidden)
