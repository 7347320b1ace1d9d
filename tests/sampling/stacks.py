"""Stand-ins for a DiT's blocks, and walks through caches over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.parts.block_stack import BlockStack
from engine.sampling.step_caches import Method, StepCache, Walk


@dataclass
class Blocks:
    """Blocks that each add what they are told in this step, and count how often they run."""

    each: int = 3
    runs: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.runs = [0] * self.each

    def on(self, tokens_BLD: Tensor, added: Sequence[float | Tensor], *, modulated: Tensor | None = None) -> BlockStack:
        """The stack of one step: `added` by each block."""

        def through():
            x_BLD = tokens_BLD
            for number, one in enumerate(added):
                self.runs[number] += 1
                x_BLD = x_BLD + one
                yield x_BLD

        return BlockStack(tokens_BLD, through(), modulated=lambda x_BLD: x_BLD if modulated is None else modulated)


def steps_run(
    method: Method, signals: Sequence[Tensor], *, start: float = 0.0, most: int = 1000, experts: Sequence[int] = ()
) -> list[int]:
    """Which steps of a walk are run in full. `signals`: what TeaCache sees, and what the first block adds."""
    blocks, walk = Blocks(2), Walk(experts or [0] * len(signals))
    cache = StepCache(method, walk, start=start, most_in_a_row=most)
    ran = []
    for step, signal in enumerate(signals):
        walk.go_to(step)
        before = blocks.runs[-1]
        cache(blocks.on(torch.zeros_like(signal), [signal, 1.0], modulated=signal))
        ran += [step] if blocks.runs[-1] > before else []
    assert cache.calls == len(signals) and cache.left_out == len(signals) - len(ran)
    return ran


@dataclass
class Told:
    """A method that is told in which steps it finds little change."""

    little: Sequence[bool]
    name: str = "Told"
    forgot: int = 0

    def look(self, stack, walk) -> Tensor:
        self._step = walk.step
        return stack.tokens_BLD

    def finds_little_change(self) -> bool:
        return self.little[self._step]

    def runs(self) -> None:
        pass

    def forget(self) -> None:
        self.forgot += 1


def told(little: Sequence[bool]) -> tuple[StepCache, Walk]:
    """A cache over that method, and its walk; its only rules are the first step and the last one."""
    walk = Walk([0] * len(little))
    return StepCache(Told(little), walk, start=0.0, most_in_a_row=1000), walk


Ask = Callable[[int], Tensor]


def walked(cache: Callable[[BlockStack], Tensor], walk: Walk, stacks: Sequence[BlockStack]) -> list[Tensor]:
    """What comes out step by step."""
    found = []
    for step, stack in enumerate(stacks):
        walk.go_to(step)
        found.append(cache(stack))
    return found
