"""fp8 codes and scales against the reference's quantiser: both exactly."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from engine.memory.fp8 import quantize
from tests.golden.kit import Golden, Row, row, same

FORMATS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def check(golden: Golden) -> Iterable[Row]:
    """Tensor names: `in.<dtype>.<name>.weight`, `out.<dtype>.<mode>.<format>.<name>.weight` and `.scale_weight`."""
    for key in golden.tensors:
        if not key.startswith("out.") or not key.endswith(".weight"):
            continue
        _, dtype, mode, number_format, name, _ = key.split(".")
        weight = golden.tensors[f"in.{dtype}.{name}.weight"]
        codes, scale = quantize(weight, mode, codes_dtype=FORMATS[number_format])
        label = key.removeprefix("out.").removesuffix(".weight")
        yield row(f"{label} codes", codes.view(torch.uint8), golden.tensors[key], 0.0)
        their_scale = golden.tensors[key.removesuffix("weight") + "scale_weight"]
        yield row(f"{label} scale", scale, their_scale, 0.0)
        yield same(f"{label} scale dtype", scale.dtype, their_scale.dtype)


CHECKS = {"musubi_fp8*": check}
