"""The LoRAs of several experts that take turns in one model: one network to the loop, one file each to the person.

All adapters wrap the same modules, nested; those whose expert is not in the model are switched off and do not learn.
Knows no model and exchanges no weights: the caller that swaps in an expert calls `use`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from ..contract.errors import WeightsError
from .network import LoraNetwork, NormStats


class LoraNetworks(nn.Module):
    """To the loop and to states the same as LoraNetwork. The keys of `networks` name the experts; none is empty."""

    def __init__(self, networks: Mapping[str, LoraNetwork]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)

    def __getitem__(self, number: int) -> LoraNetwork:
        return list(self._each().values())[number]

    def use(self, number: int) -> None:
        """Switch on the adapters of one expert and all others off."""
        for index, network in enumerate(self._each().values()):
            network.multiplier = 1.0 if index == number else 0.0
            network.requires_grad_(index == number)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """As LoraNetwork's, for all experts."""
        with ExitStack() as off:
            for one in self._each().values():
                off.enter_context(one.disabled())
            yield

    def learning_in(self, block: nn.Module) -> list[nn.Parameter] | None:
        """As LoraNetwork's, for all experts."""
        found = [one.learning_in(block) for one in self._each().values()]
        return None if None in found else [parameter for some in found if some for parameter in some]

    def state(self) -> dict[str, Tensor]:
        """All weights, under `expert.name`."""
        return {f"{name}.{key}": value for name, one in self._each().items() for key, value in one.state().items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `state` returned. WeightsError: it does not fit."""
        names = {key.partition(".")[0] for key in tensors}
        if names != set(self._each()):
            raise WeightsError(
                f"These LoRA weights are for {', '.join(sorted(names))}, not for {', '.join(self._each())}.",
                "A training of two experts goes on from a state of two experts, a training of one from a state of one.",
            )
        for name, one in self._each().items():
            start = f"{name}."
            one.load_state({key[len(start) :]: value for key, value in tensors.items() if key.startswith(start)})

    def parameter_groups(self, lr: float, loraplus_lr_ratio: float | None = None) -> list[dict[str, Any]]:
        """The groups of all experts, with the expert's name after each group's."""
        return [
            {**group, "name": f"{group['name']} {name}"}
            for name, one in self._each().items()
            for group in one.parameter_groups(lr, loraplus_lr_ratio)
        ]

    def weight_norm(self) -> float:
        """As LoraNetwork's, for all experts."""
        return math.hypot(*(one.weight_norm() for one in self._each().values()))

    def clamp_norms(self, max_norm: float) -> NormStats:
        """As LoraNetwork's, for all experts."""
        stats = [one.clamp_norms(max_norm) for one in self._each().values()]
        average = sum(one.average for one in stats) / len(stats)
        return NormStats(sum(one.scaled for one in stats), average, max(one.largest for one in stats))

    def _each(self) -> dict[str, LoraNetwork]:
        return dict(self.networks.items())  # type: ignore[arg-type]
