"""What every family does alike with a DiT: frozen models, loading. Sizes read off a checkpoint are `dit_sizes`.

A family brings what differs: how a checkpoint is recognised, what model it becomes, and its names. Knows no family.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from .weights import WeightFile, load_into, main_dtype, open_weights

Model = TypeVar("Model", bound=nn.Module)
Variant = TypeVar("Variant")
Transform = Callable[[str, torch.Tensor], torch.Tensor]


def build_frozen(make: Callable[[], Model], *, device: torch.device | str, dtype: torch.dtype) -> Model:
    """A frozen model; on "meta" it takes no memory and has names and shapes only, elsewhere weights are unset."""
    with torch.device("meta"):
        model = make().to(dtype)
    if torch.device(device).type != "meta":
        model = model.to_empty(device=device)
    return model.eval().requires_grad_(False)


def recognised(
    path: str | Path,
    *,
    role: str,
    task: str | None,
    detect: Callable[..., Variant],
    check_task: Callable[[Variant, str], None],
) -> tuple[WeightFile, Variant]:
    """A checkpoint and what it is. WeightsError: no readable file, another kind of file, or not the job's task."""
    file = open_weights(path, role=role)
    variant = detect(file.shapes, file.metadata, source=f"{role} {file.path.name}")
    if task is not None:
        check_task(variant, task)
    return file, variant


def load_frozen(
    file: WeightFile,
    variant: Any,
    build: Callable[..., Model],
    *,
    rename: Callable[[str], str | None],
    device: torch.device | str,
    dtype: torch.dtype | None,
    transform: Transform | None,
    attention_backend: str,
) -> Model:
    """The model of `variant.config`, frozen, with the file's weights; `.variant` is set.

    dtype None takes the type that most of the weights have. `transform(name, tensor)` sees each before it is cast.
    """
    dtype = main_dtype(file) if dtype is None else dtype
    model = build(variant.config, dtype=dtype, attention_backend=attention_backend)
    load_into(model, file, rename=rename, device=device, dtype=dtype, transform=transform)
    model.variant = variant
    return model
