"""A step that breaks off, as when memory runs out: whether what it leaves may be saved, and what it holds meanwhile."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ..contract.errors import is_out_of_memory


class StepWatch:
    """Knows whether an optimizer broke off within a step. Then its weights are neither those before it nor those after,
    and who goes on from them would repeat a part of it."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.halfway = False
        # The hooks that fetch what a step needs come before these: where they find no room, nothing has moved yet.
        optimizer.register_step_pre_hook(lambda *_: self._note(halfway=True))
        optimizer.register_step_post_hook(lambda *_: self._note(halfway=False))

    @contextmanager
    def unfinished(self) -> Iterator[None]:
        """What belongs to the step too, and is wrong where it breaks off: an average of the weights."""
        self.halfway = True
        yield
        self.halfway = False

    def _note(self, *, halfway: bool) -> None:
        self.halfway = halfway


@contextmanager
def where_memory_runs_out(save: Callable[[], None]) -> Iterator[None]:
    """Call `save` before such a failure is passed on, with the memory free that the step had taken.

    What is being handled keeps the functions alive that it has ended, activations and all; and to save takes room on
    the device where a schedule-free optimizer shows its average for that.
    """
    try:
        yield
    except Exception as failure:
        if is_out_of_memory(failure):
            _let_go(failure)
            save()
        raise


def _let_go(failure: BaseException) -> None:
    chain: BaseException | None = failure
    while chain is not None:
        traceback.clear_frames(chain.__traceback__)
        chain = chain.__cause__ or chain.__context__
