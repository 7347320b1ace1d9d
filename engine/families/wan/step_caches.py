"""What is published of step caches for Wan: MagCache's ratios, TeaCache's polynomials, thresholds. No torch.

Ratios are MagCache's (Zehong-Ma/MagCache, Apache 2.0; the conditional prediction's, from which the other's differ in
the fourth digit), polynomials TeaCache's (ali-vilab/TeaCache, Apache 2.0) for the modulation that blocks are given,
which it calls use_ret_steps. Thresholds are the slower ones of those that the authors recommend. Models of 480p and
720p cannot be told apart by their files, so the size of the video decides. Given up: numbers of Wan2.2's 5B, which
nothing here runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...parts.step_caching import StepCacheSettings, Usual, settled
from ..values import Request

if TYPE_CHECKING:
    from torch import nn

_WIDTHS_AND_BLOCKS = {"1.3B": (1536, 30), "14B": (5120, 40)}
_PIXELS_720P = 2 * 480 * 832  # from here on a video counts as 720p

_T2V_1_3B = (
    1.0, 1.0124, 1.00166, 0.99791, 0.99682, 0.99634, 0.99567, 0.99416, 0.99578, 0.9957, 0.99511, 0.99535, 0.99552,
    0.99541, 0.9954, 0.99489, 0.99518, 0.99484, 0.99481, 0.99415, 0.99419, 0.99396, 0.99388, 0.99349, 0.99309, 0.9927,
    0.99228, 0.99171, 0.99137, 0.99068, 0.99005, 0.98944, 0.98849, 0.98758, 0.98644, 0.98504, 0.9836, 0.98202, 0.97977,
    0.97717, 0.9741, 0.97003, 0.96538, 0.9593, 0.95086, 0.94013, 0.92402, 0.90241, 0.86821, 0.81838,
)  # fmt: skip
_T2V_14B = (
    1.0, 1.02504, 1.00025, 0.9985, 0.99779, 0.9966, 0.99482, 0.99467, 0.99664, 0.99434, 0.99533, 0.99468, 0.99438,
    0.99516, 0.99384, 0.99404, 0.99517, 0.99409, 0.99428, 0.99347, 0.99418, 0.99271, 0.99313, 0.99215, 0.99218, 0.99216,
    0.99163, 0.99138, 0.98982, 0.98996, 0.9887, 0.98772, 0.98767, 0.98573, 0.98501, 0.9838, 0.98177, 0.98037, 0.97678,
    0.97546, 0.97184, 0.96711, 0.96349, 0.95629, 0.94926, 0.93964, 0.92511, 0.90693, 0.8796, 0.86111,
)  # fmt: skip
_I2V_480P = (
    1.0, 0.98783, 0.97559, 0.98311, 0.98202, 0.9888, 0.98762, 0.98957, 0.99052, 0.99383, 0.98857, 0.99065, 0.98845,
    0.99057, 0.98957, 0.98601, 0.98823, 0.98756, 0.98808, 0.98721, 0.98571, 0.98543, 0.98157, 0.98411, 0.97952, 0.98149,
    0.9774, 0.97825, 0.97355, 0.97085, 0.97056, 0.96588, 0.96113, 0.9567, 0.94961, 0.93973, 0.93217, 0.91878, 0.90955,
    0.92617,
)  # fmt: skip
_I2V_720P = (
    1.0, 0.99428, 0.98588, 0.98273, 0.99018, 0.98911, 0.98646, 0.99454, 0.9891, 0.99124, 0.99102, 0.99215, 0.99515,
    0.99576, 0.99068, 0.99097, 0.99166, 0.99041, 0.99201, 0.99101, 0.98599, 0.98845, 0.98848, 0.98862, 0.98718, 0.98497,
    0.98264, 0.98389, 0.97938, 0.97535, 0.97498, 0.973, 0.96827, 0.96261, 0.95335, 0.94649, 0.93397, 0.91636, 0.89088,
    0.8679,
)  # fmt: skip
_VACE_1_3B = (
    1.0, 1.00129, 1.00056, 0.99776, 0.99726, 0.99725, 0.9958, 0.99703, 0.99863, 0.99735, 0.99714, 0.99697, 0.9969,
    0.99695, 0.99697, 0.99608, 0.99721, 0.99649, 0.99659, 0.99727, 0.99603, 0.99652, 0.99635, 0.9958, 0.99581, 0.99573,
    0.99531, 0.99505, 0.99481, 0.99426, 0.99403, 0.99357, 0.99302, 0.99243, 0.9916, 0.99085, 0.98985, 0.98857, 0.98717,
    0.98551, 0.98301, 0.9805, 0.97635, 0.97183, 0.96496, 0.95526, 0.94102, 0.91809, 0.87871, 0.80141,
)  # fmt: skip
# Of 40 steps, cut where the second expert takes over, whose first ratio is 1 by definition.
_T2V_A14B = (
    (1.0, 1.00124, 0.99822, 0.99696, 0.99703, 0.9966, 0.99602, 0.99578, 0.99484, 0.99633, 0.99659, 0.99534, 0.99584,
     0.99681, 0.99563, 0.9944, 0.99594, 0.99466, 0.99453, 0.99389, 0.99391, 0.99354, 0.99283, 0.99268, 0.99057,
     0.99125),
    (1.0, 0.98808, 0.98765, 0.9851, 0.98311, 0.9805, 0.97776, 0.97278, 0.96731, 0.95857, 0.94385, 0.92118, 0.88108,
     0.80263),
)  # fmt: skip
_I2V_A14B = (
    (1.0, 0.99191, 0.99356, 0.99326, 0.99251, 0.99393, 0.9943, 0.99276, 0.99389, 0.99274, 0.99316, 0.99379, 0.99268,
     0.99222, 0.99175),
    (1.0, 0.98931, 0.99087, 0.98852, 0.98895, 0.98806, 0.9871, 0.98613, 0.98434, 0.983, 0.98185, 0.98131, 0.9783,
     0.97619, 0.97264, 0.97088, 0.96568, 0.96045, 0.95322, 0.94579, 0.93297, 0.91699, 0.89174, 0.8541, 0.79823),
)  # fmt: skip


def _mag(*ratios: tuple[float, ...], threshold: float = 0.12, start: float = 0.2, most: int = 4) -> Usual:
    return Usual(threshold=threshold, start=start, most_in_a_row=most, numbers=ratios)


def _tea(*coefficients: float, threshold: float) -> Usual:
    return Usual(threshold=threshold, start=0.1, numbers=(coefficients,))  # 5 of 50 steps


PUBLISHED: dict[str, dict[str, Usual]] = {
    "t2v-1.3B": {
        "magcache": _mag(_T2V_1_3B),
        "teacache": _tea(-5.21862437e4, 9.23041404e3, -5.28275948e2, 13.6987616, -4.99875664e-2, threshold=0.05),
    },
    "t2v-14B": {
        "magcache": _mag(_T2V_14B),
        "teacache": _tea(-3.03318725e5, 4.90537029e4, -2.65530556e3, 58.7365115, -0.315583525, threshold=0.1),
    },
    "i2v-14B": {
        "magcache": _mag(_I2V_480P),
        "teacache": _tea(2.57151496e5, -3.54229917e4, 1.40286849e3, -13.5890334, 0.132517977, threshold=0.2),
    },
    "i2v-14B 720p": {
        "magcache": _mag(_I2V_720P),
        "teacache": _tea(8.1070546e3, 2.13393892e3, -3.72934672e2, 16.6203073, -4.17769401e-2, threshold=0.2),
    },
    "vace-1.3B": {"magcache": _mag(_VACE_1_3B, threshold=0.02, most=3)},
    "vace-14B": {"magcache": _mag(_T2V_14B, threshold=0.02, most=3)},
    "t2v-A14B": {"magcache": _mag(*_T2V_A14B, threshold=0.06, start=0.4, most=2)},
    "i2v-A14B": {"magcache": _mag(*_I2V_A14B, threshold=0.06, start=0.1, most=2)},
}
PUBLISHED["t2i-14B"] = PUBLISHED["t2v-14B"]  # the same files


def settings(request: Request, dit: nn.Module) -> StepCacheSettings | None:
    """What the request asks of this DiT, None where it asks for no step cache. OptionError for missing numbers.

    Only names and shapes of the DiT are needed.
    """
    asked = request.settings.get("step_cache")
    if asked is None:
        return None
    task, config = request.settings["task"], dit.config
    published = _WIDTHS_AND_BLOCKS["1.3B" if "1.3B" in task else "14B"] == (config.dim, config.num_layers)
    large = task == "i2v-14B" and request.width * request.height >= _PIXELS_720P
    return settled(
        asked,
        PUBLISHED.get(f"{task} 720p" if large else task, {}) if published else {},
        model=f"--task {task}" if published else "a model of these sizes",
        experts=1 + len(request.further_guidance),
    )
