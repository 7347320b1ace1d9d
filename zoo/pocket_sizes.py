"""What the sizes of every pocket model have, whichever family it is of."""

from __future__ import annotations

from dataclasses import dataclass

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class PocketSizes:
    """`vae_widths`: channels at full, half, quarter and eighth size; by default those of the published models."""

    vae_widths: tuple[int, int, int, int] = (24, 48, 64, 48)
