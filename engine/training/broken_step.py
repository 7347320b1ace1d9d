"""A training that breaks off (memory runs out, a cache cannot be read any more): what was done by then is kept."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ..contract.errors import OptionError


class StepWatch:
    """Knows whether a training broke off within an optimizer step. Then its weights are neither those before it nor
    those after, and who goes on from them would repeat a part of it."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.halfway = False
        # The hooks that fetch what a step needs come before this one: where they find no room, nothing has moved yet.
        optimizer.register_step_pre_hook(lambda *_: self._begin())

    def _begin(self) -> None:
        self.halfway = True

    def finish(self) -> None:
        """The step is done, with all that belongs to it: counters, clamped norms, an average of the weights."""
        self.halfway = False


@contextmanager
def what_was_done_is_kept(save: Callable[[], None]) -> Iterator[None]:
    """Call `save` before a failure is passed on, with the memory free that the step had taken.

    What is being handled keeps the functions alive that it has ended, activations and all; and to save takes room on
    the device where a schedule-free optimizer shows its average for that. Not for an OptionError: it ends a training
    on purpose.
    """
    try:
        yield
    except OptionError:
        raise
    except Exception as failure:
        _let_go(failure)
        try:
            save()
        except Exception as second:  # the first one is the news
            logging.getLogger(__name__).warning("The steps before this failure could not be saved either: %s", second)
        raise


def _let_go(failure: BaseException) -> None:
    chain: BaseException | None = failure
    while chain is not None:
        traceback.clear_frames(chain.__traceback__)
        chain = chain.__cause__ or chain.__context__
