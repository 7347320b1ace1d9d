"""Fill a model whose linear layers are kept in float8 (fp8_linear.py) from a checkpoint, one tensor at a time.

Each weight is quantised as it is read, with a scale per row, so there are never two copies of the model. The codes of a
scaled fp8 file are kept as they are, with their scales: rounding twice would lose more.
Knows nothing of models. Given up: files that mix fp8 with other kinds of quantisation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .fp8_linear import quantize_rows
from .weights import FP8_DTYPES, WeightFile, load_into, open_weights


def load_into_fp8(
    model: nn.Module,
    file: WeightFile,
    *,
    rename: Callable[[str], str | None],
    device: torch.device | str,
    dtype: torch.dtype,
) -> None:
    """As `load_into`, for a model whose linear layers `store_linears_in_fp8` has replaced. `dtype`: of all other
    tensors.

    `rename` must drop layers that the caller has removed from the model. Raises WeightsError.
    """
    stored = open_weights(file.path, role=file.role, dequantize=False)
    scales = {  # which `file` hides because it dequantises
        name.rpartition(".")[0]: name
        for name in stored.shapes.keys() - file.shapes.keys()
        if "weight" in name.rpartition(".")[2]
    }
    linears = {name for name, _ in model.named_parameters() if name.endswith(".codes")}
    sources: dict[str, str] = {}

    def rename_codes(name: str) -> str | None:
        ours = rename(name) if name in file.shapes else None
        codes = (ours or "").removesuffix("weight") + "codes"
        if codes not in linears:
            return ours
        sources[codes] = name
        return codes

    def store(name: str, tensor: Tensor) -> Tensor:
        if name not in linears:
            return tensor.to(dtype)
        layer = model.get_submodule(name.removesuffix(".codes"))
        if tensor.dtype in FP8_DTYPES:
            scale = scales.get(sources[name].rpartition(".")[0])
            layer.scale = torch.ones((), device=device) if scale is None else stored.read(scale, device=device).float()
            return tensor
        codes, layer.scale = quantize_rows(tensor)
        return codes

    load_into(model, stored, rename=rename_codes, device=device, transform=store)
