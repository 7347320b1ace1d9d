"""Which steps a training does not take, and when it gives up: losses that are no numbers, and losses that explode.

Losses of single steps differ by a factor of ten and more, since noise levels and clips do: compared with each other
they show an explosion late, or one that is none. There is a measure that holds for all: what a model would cost that
always answers zero, mean((noise - clean)²), about 1 plus the latents' own. Two things are looked at.

- A LoRA that learns too fast ruins the model. DiTs normalise what leaves their blocks, so the answers keep their size:
  no large loss, but one above that of answering zero, at every noise level. A useful base is far below it, and a LoRA
  begins with the base. So most of RECENT steps above it are an explosion, if the first step was below.
- A single loss that is `factor` times what is normal: weights that grow without bounds, or a damaged cache. Normal is
  the lowest that the median of HISTORY steps has been, each counted as answering zero where it was better.

A base of random weights, as in tests and demos, is no better than zero from the start, so only the second rule is left
for it. Errors are compared without the weights of noise levels, which differ by powers of ten. Gradients are not looked
at but for being finite: to clip a large one is what --max_grad_norm is for. Every process comes to the same verdict,
since all have the same sums.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any, NamedTuple

from ..contract.errors import OptionError
from .tally import Measured

USEFUL = 0.9  # of what answering zero costs: a base below it has learnt something
RECENT = 5  # steps, of which most have to be worse than answering zero
HISTORY = 50  # steps whose median is what is normal
WARM_UP = 10  # steps before something is known to be normal


class Fault(NamedTuple):
    """Why a step is not taken."""

    exploded: bool
    text: str


class Guard:
    """Judges steps, and counts those in a row that were not taken. `stored` is the `state` of a training that goes on.

    What was given up begins to count anew: somebody started it again.
    """

    def __init__(self, *, factor: float, patience: int, stored: Mapping[str, Any] | None = None) -> None:
        """`factor`: times what is normal; 0: nothing is an explosion. `patience`: steps in a row."""
        stored = stored or {}
        self._factor, self._patience = factor, patience
        self._history = deque(stored.get("history", ()), maxlen=HISTORY)
        self._normal: float = stored.get("normal", math.inf)
        self._useful: bool | None = stored.get("useful")  # the base, by the first step
        self._worse = deque(stored.get("worse", ()), maxlen=RECENT)  # than answering zero
        in_a_row = stored.get("in_a_row", 0)
        self.in_a_row: int = in_a_row if in_a_row < patience else 0
        self.exploding: bool = bool(self.in_a_row) and stored.get("exploding", False)

    def state(self) -> dict[str, Any]:
        """Plain values that give the same Guard again."""
        if self._useful is None:
            return {"in_a_row": self.in_a_row}
        return {
            "history": list(self._history),
            "normal": self._normal,
            "useful": self._useful,
            "worse": list(self._worse),
            "in_a_row": self.in_a_row,
            "exploding": self.exploding,
        }

    def fault(self, step: Measured, *, scaled: bool = False) -> Fault | None:
        """Why this step must not be taken. `scaled`: an overflow of the gradients is left to a loss scaler."""
        numbers = step.losses if scaled else [*step.losses, step.gradient_norm]
        if not all(map(math.isfinite, numbers)):
            return Fault(False, "the loss or its gradient is not a finite number")
        if not self._factor:
            return None
        if len(self._history) >= WARM_UP and step.error > self._factor * self._normal:
            times = step.error / self._normal
            return Fault(True, f"the loss has exploded to {step.error:.4g}, {times:.0f} times what is normal here")
        if self._useful and sum([*self._worse, _is_worse(step)][-RECENT:]) > RECENT // 2:
            return Fault(True, f"the loss has exploded: most of the last {RECENT} are worse than no answer at all")
        return None

    def note(self, step: Measured, fault: Fault | None) -> None:
        """Take in a step and whether it was taken."""
        if fault is None:
            self.in_a_row, self.exploding = 0, False
            if self._useful is None:
                self._useful = step.error < USEFUL * step.idle
            self._history.append(max(step.error, step.idle))
            self._normal = min(self._normal, median(self._history))
        else:
            self.in_a_row += 1
            self.exploding = self.exploding or fault.exploded
        if math.isfinite(step.error):
            self._worse.append(_is_worse(step))

    @property
    def gives_up(self) -> bool:
        """Whether there were too many in a row."""
        return self.in_a_row >= self._patience

    def surrender(self, step: int, *, named: str, kept: str) -> OptionError:
        """What ends the training after `step`. `named`: the items at fault, in words; `kept`: the LoRA that is good."""
        if not self.exploding:
            return OptionError(
                f"The loss was not a finite number in {self.in_a_row} steps in a row, up to step {step}.{named} "
                f"The LoRA as it was before them is {kept}.",
                "Lower --learning_rate, use --mixed_precision bf16 instead of fp16, or look at these items' caches.",
            )
        good = f"The newest one from before is {kept}." if kept else "None was saved before, since this start."
        return OptionError(
            f"The loss exploded: {self.in_a_row} steps in a row were skipped, up to step {step}.{named} The LoRA as it "
            f"is now was not saved. {good}",
            "Lower --learning_rate: the same command then goes on from the newest state, and begins anew with --fresh. "
            "Where this is no explosion, --exploding_loss_factor 0 looks for none.",
        )


def _is_worse(step: Measured) -> bool:
    return step.error > step.idle
