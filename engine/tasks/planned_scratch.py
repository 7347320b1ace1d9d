"""What a job with streamed blocks on disk writes to scratch files: what it does not use as its checkpoints have it.

By the rule that loading goes by (`stays_in_file` in memory/rules.py), from headers. LoRAs alone are read whole, with
torch, as the job reads them: less would not tell which weights they change.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..contract.job import Job
from ..contract.options import LoraStack, Memory, Network
from ..families.values import Expert
from ..memory.rules import spread

Count = tuple[int, ...]
"""Bytes of each block that go to the scratch file when it waits on disk."""


@dataclass
class PlannedScratch:
    """`dits`: the PlannedDits of the job, ascending by noise level; `further`: the experts beside the first."""

    job: Job
    dits: tuple[Any, ...]
    further: tuple[Expert, ...]
    _counted: dict[tuple[Any, ...], list[Count]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def size(self, job: Job, *, mode: str | None, number_format: str | None) -> int:
        """Bytes with these options, which stream blocks from disk.

        `mode`: how weights become fp8, None: they do not. `number_format`: of all weights, None: the one of the DiT
        that is loaded first, which is the last of them.
        """
        used_as = number_format or self.dits[-1].headers.main_format
        if (mode, used_as) not in self._counted:
            pairs = zip(self.dits, self._merged, strict=True)
            self._counted[mode, used_as] = [dit.scratch(mode, used_as, merged) for dit, merged in pairs]
        counts = self._counted[mode, used_as]
        chosen = spread(job[Memory].blocks_to_swap or 0, len(counts[0]))
        sizes = [sum(count[index] for index in chosen) for count in counts]
        one_at_a_time = any(expert.waits == "file" for expert in self.further)
        return max(sizes) if one_at_a_time else sum(sizes)

    @cached_property
    def _merged(self) -> list[Collection[str]]:
        """The weights of each DiT that LoRAs change."""
        own = self.job[Network].base_weights if Network in self.job else self.job[LoraStack].lora_weight
        if not own and not any(expert.loras for expert in self.further):
            return [()] * len(self.dits)
        import torch

        from ..lora.merge import changed_by
        from .experts import Experts

        experts = Experts(
            self.job,
            device=torch.device("cpu"),
            weight_format="stored",
            attention_backend="auto",
            say=lambda event: None,  # the job itself says it
        )
        return [{name for file, _ in loras for name in changed_by(file)} for loras in experts.loras]
