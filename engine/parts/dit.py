"""What all families do with a DiT in the same way: build it frozen, load it. dit_sizes.py reads sizes off checkpoints.

A family supplies what differs: how a checkpoint is recognised, which model it becomes, and its names. Knows no family.
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
    """A frozen model; on "meta" it has only names and shapes and takes no memory, elsewhere weights are
    uninitialised."""
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
    """Open a checkpoint and detect its variant. WeightsError: unreadable, another kind of file, or not the job's
    task."""
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

    `dtype` None: the one that most of the weights have. `transform(name, tensor)` gets each tensor before it is cast.
    """
    dtype = main_dtype(file) if dtype is None else dtype
    model = build(variant.config, dtype=dtype, attention_backend=attention_backend)
    load_into(model, file, rename=rename, device=device, dtype=dtype, transform=transform)
    model.variant = variant
    return model
