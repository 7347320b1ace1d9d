"""What is published of step caches for HunyuanVideo; SkyReels V1 has the same blocks. No torch.

Sources: parts/hunyuan_step_caches.py. Thresholds are the slower ones of those that the authors recommend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...parts import hunyuan_step_caches as numbers
from ...parts.step_caching import StepCacheSettings, Usual, settled
from ..values import Request

if TYPE_CHECKING:
    from torch import nn

_PIXELS_720P = 600 * 1100  # between 544 x 960 and 720 x 1280


def settings(request: Request, dit: nn.Module) -> StepCacheSettings | None:
    """What the request asks of this DiT, None where it asks for no step cache. OptionError for missing numbers.

    Only names and shapes of the DiT are needed.
    """
    asked = request.settings.get("step_cache")
    if asked is None:
        return None
    config = dit.config
    published = (config.dim, config.num_double_blocks, config.num_single_blocks) == numbers.WIDTH_AND_BLOCKS
    large = request.width * request.height >= _PIXELS_720P
    return settled(
        asked,
        _published(large) if published else {},
        model="HunyuanVideo" if published else "a model of these sizes",
    )


def _published(large: bool) -> dict[str, Usual]:
    ratios = numbers.RATIOS_720P if large else numbers.RATIOS_540P
    return {
        "magcache": Usual(threshold=0.12, start=0.2, most_in_a_row=4, numbers=(ratios,)),
        "teacache": Usual(threshold=0.1, start=0.0, numbers=(numbers.TEACACHE,)),
        "first_block": Usual(threshold=numbers.FIRST_BLOCK_THRESHOLD, start=0.1),
    }
