"""fp8 codes and scales against the reference's quantiser: both exactly. And another tool's."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from engine.ops.fp8 import dequantize, quantize
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


def check_blissful(golden: Golden) -> Iterable[Row]:
    """Another tool's codes, one scale for the tensor. It divides in the weight's own dtype: in float32 the codes are
    ours, in bfloat16 some lie a code further from the weight than they have to.
    """
    for key, theirs in golden.tensors.items():
        if not key.startswith("out.") or not key.endswith(".weight"):
            continue
        _, dtype, name, _ = key.split(".")
        weight = golden.tensors[f"in.{dtype}.{name}.weight"]
        codes, scale = quantize(weight, "tensor")
        label, their_scale = f"{dtype} {name}", golden.tensors[key.removesuffix("weight") + "scale_weight"]
        yield row(f"{label} scale", scale.reshape(1), their_scale, 0.0)
        steps = codes.view(torch.uint8).int() - theirs.int()
        yield row(f"{label} codes apart", steps.abs().amax(), torch.tensor(0), 0.0 if dtype == "float32" else 1.0)
        values = dequantize(theirs.view(torch.float8_e4m3fn), their_scale)
        errors = [(one - weight.float()).abs() for one in (dequantize(codes, scale), values)]
        yield row(f"{label} never further off", (errors[0] - errors[1]).clamp(min=0).amax(), torch.tensor(0.0), 1e-6)


CHECKS = {"musubi_fp8*": check, "blissful_fp8*": check_blissful}
