"""Which steps a training skips, and when it gives up: losses that are not finite, and losses that explode.

Losses of single steps differ by a factor of ten or more, because noise levels and clips do: comparing them with each
other reveals an explosion late, or reports one where there is none. One yardstick holds for all of them: the loss of a
model that always answers zero, mean((noise - clean)²), about 1 plus the mean square of the latents. Two rules:

- A LoRA that learns too fast ruins the model. DiTs normalise the output of their blocks, so answers keep their size:
  the loss is not large, but above that of answering zero, at every noise level. A useful base model is far below, and
  a LoRA starts out as the base. So it is an explosion if most of RECENT steps are above, provided the first was below.
- A single loss that is `factor` times the normal one: weights that grow without bounds, or a damaged cache. Normal is
  the lowest median of HISTORY steps so far, where a step counts as at least the loss of answering zero.

A base of random weights, as in tests, is never better than zero, so only the second rule applies to it. Errors are
compared without the weights of noise levels, which differ by powers of ten. Gradients only have to be finite: clipping
large ones is the job of --max_grad_norm. All processes have the same sums and so come to the same verdict.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any, NamedTuple

from ..contract.errors import OptionError
from .tally import Measured

USEFUL = 0.9  # times the loss of answering zero: a base model below that has learnt something
RECENT = 5  # steps; an explosion if most of them are worse than answering zero
HISTORY = 50  # steps that the median is taken over
WARM_UP = 10  # steps before the normal loss is known


class Fault(NamedTuple):
    """Why a step is skipped."""

    exploded: bool
    text: str


class Guard:
    """Judges steps, and counts those skipped in a row. `stored`: the `state` of the training being resumed.

    A training that had given up starts counting from zero: somebody decided to start it again.
    """

    def __init__(self, *, factor: float, patience: int, stored: Mapping[str, Any] | None = None) -> None:
        """`factor`: times the normal loss; 0 never reports an explosion. `patience`: skipped steps in a row."""
        stored = stored or {}
        self._factor, self._patience = factor, patience
        self._history = deque(stored.get("history", ()), maxlen=HISTORY)
        self._normal: float = stored.get("normal", math.inf)
        self._useful: bool | None = stored.get("useful")  # is the base model useful? Judged by the first step
        self._worse = deque(stored.get("worse", ()), maxlen=RECENT)  # whether each was worse than answering zero
        in_a_row = stored.get("in_a_row", 0)
        self.in_a_row: int = in_a_row if in_a_row < patience else 0
        self.exploding: bool = bool(self.in_a_row) and stored.get("exploding", False)

    def state(self) -> dict[str, Any]:
        """Plain values from which to make the same Guard again."""
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
        """Why this step must be skipped, if it must. `scaled`: a loss scaler deals with overflowing gradients."""
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
        """Record a step, and whether it was skipped."""
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
        """Whether too many in a row were skipped."""
        return self.in_a_row >= self._patience

    def surrender(self, step: int, *, named: str, kept: str) -> OptionError:
        """The error that ends the training. `named`: the items at fault, in words; `kept`: path of the last good
        LoRA."""
        if not self.exploding:
            return OptionError(
                f"The loss was not a finite number in {self.in_a_row} steps in a row, up to step {step}.{named} "
                f"The LoRA from before them is {kept}.",
                "Lower --learning_rate, use --mixed_precision bf16 instead of fp16, or look at these items' caches.",
            )
        good = f"The last good one is {kept}." if kept else "None was saved since this start."
        return OptionError(
            f"The loss exploded: {self.in_a_row} steps in a row were skipped, up to step {step}.{named} The LoRA as it "
            f"is now was not saved. {good}",
            "Lower --learning_rate: the same command then resumes from the newest state, or starts over with --fresh. "
            "If this is not an explosion, switch the check off with --exploding_loss_factor 0.",
        )


def _is_worse(step: Measured) -> bool:
    return step.error > step.idle
