"""Guidance that is not the same in every step: left out in some, or strengthened by skipping layers.

For families whose `sample.py` hands the denoising what it takes (families/values.py, Denoise).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import OptionError
from ..schema import Section, opt


@dataclass(frozen=True, kw_only=True)
class GuidanceSteps(Section, title="Guidance", late=True):
    """Guidance that is left out in some steps, or made by skipping layers."""

    cfg_skip_mode: Literal["early", "late", "middle", "early_late", "alternate", "none"] = opt(
        "none", "In which steps to skip guidance, which makes them twice as fast: the first, the last, "
                "those in the middle or at both ends, or at regular intervals. Needs --cfg_apply_ratio.", advanced=True,
    )  # fmt: skip
    cfg_apply_ratio: float | None = opt(
        None, "Share of the steps that use guidance. Needs --cfg_skip_mode.", low=0, high=1, advanced=True
    )
    slg_layers: str | None = opt(
        None, "Blocks that skip layer guidance leaves out, counted from 0, such as 4,5,6. Needs --slg_mode.",
        advanced=True, metavar="N,N",
    )  # fmt: skip
    slg_scale: float = opt(3.0, "Strength of skip layer guidance in mode original.", low=0, advanced=True)
    slg_start: float = opt(0.0, "Where it begins, as a share of the steps.", low=0, high=1, advanced=True)
    slg_end: float = opt(0.3, "Where it ends, as a share of the steps.", low=0, high=1, advanced=True)
    slg_mode: Literal["original", "uncond"] | None = opt(
        None, "original adds a third prediction, in which blocks are skipped; uncond uses it in place "
              "of the unconditional one. Needs --slg_layers.", advanced=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        _together(cfg_skip_mode=self.cfg_skip_mode != "none", cfg_apply_ratio=self.cfg_apply_ratio is not None)
        _together(slg_layers=self.slg_layers is not None, slg_mode=self.slg_mode is not None)
        if self.slg_mode is not None and self.slg_start >= self.slg_end:
            raise OptionError(
                f"--slg_start {self.slg_start:g} and --slg_end {self.slg_end:g} leave no step between them.",
                "The first must be below the second.",
                names=("slg_start", "slg_end"),
            )
        _ = self.layers

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks of `slg_layers`, counted from 0. Raises OptionError."""
        if self.slg_layers is None:
            return ()
        words = [word.strip() for word in self.slg_layers.split(",")]
        if not all(word.isdecimal() for word in words):
            raise OptionError(
                f"--slg_layers {self.slg_layers!r} is not a list of numbers.",
                "Write block numbers with commas, such as --slg_layers 4,5,6.",
                names=("slg_layers",),
            )
        return tuple(int(word) for word in words)

    def check_layers(self, blocks: int) -> None:
        """OptionError for a block that a model of so many has not. The reference skips nothing then, in silence."""
        beyond = [layer for layer in self.layers if layer >= blocks]
        if beyond:
            raise OptionError(
                f"--slg_layers names block {beyond[0]}, but this model has {blocks}.",
                f"Choose from 0 to {blocks - 1}.",
                names=("slg_layers",),
            )


def _together(**given: bool) -> None:
    """OptionError when one of two options is given without the other."""
    if len(set(given.values())) > 1:
        one, other = sorted(given, key=lambda name: not given[name])
        raise OptionError(
            f"--{one} does nothing without --{other}.", f"Add --{other}, or leave out --{one}.", names=(one, other)
        )
