"""Finished latents as files, and the names of outputs.

The format is musubi-tuner's, so that either side decodes what the other has sampled: one safetensors file with the
tensor `latent` and metadata whose values are all text. Knows nothing of models.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..contract.errors import WeightsError
from ..contract.files import write_bytes
from ..contract.wording import first_few

KEY = "latent"
SUFFIX = "_latent.safetensors"
METADATA_KEYS = (
    "seeds",
    "prompt",
    "height",
    "width",
    "video_length",
    "infer_steps",
    "guidance_scale",
    "embedded_cfg_scale",
    "negative_prompt",
)
"""What the reference writes, in its order; height and width are pixels, video_length is pixel frames."""


def save_latent(path: str | Path, latent_CTHW: Tensor, *, metadata: Mapping[str, Any] | None = None) -> Path:
    """Write a latent [C, T, H, W] as it is (dtype kept), whole or not at all.

    Metadata values become text; None is left out. DiskError when it cannot be written.
    """
    path = Path(path)
    if latent_CTHW.ndim != 4:
        raise ValueError(f"a latent file holds [C, T, H, W], not {tuple(latent_CTHW.shape)}")
    texts = {str(name): str(value) for name, value in (metadata or {}).items() if value is not None}
    write_bytes(path, save({KEY: latent_CTHW.detach().cpu().contiguous()}, texts or None))
    return path


def load_latent(path: str | Path, *, flag: str = "--latent_path") -> tuple[Tensor, dict[str, str]]:
    """Read a latent file: ([C, T, H, W], metadata). Also a bare tensor saved by torch (.pt, .pth), without metadata.

    Raises WeightsError naming the file and what it is instead.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"There is no latent file {path}.", hint=f"Change {flag}.")
    if path.suffix.lower() in (".pt", ".pth"):
        latent, metadata = _load_torch(path, flag), dict[str, str]()
    else:
        latent, metadata = _load_safetensors(path, flag)
    if latent.ndim == 5 and latent.shape[0] == 1:
        latent = latent[0]
    if latent.ndim != 4:
        raise WeightsError(f"{path} holds {tuple(latent.shape)}, not a latent [C, T, H, W].", hint=f"Change {flag}.")
    return latent, metadata


def _load_safetensors(path: Path, flag: str) -> tuple[Tensor, dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if KEY in names:
                return file.get_tensor(KEY), dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is no readable safetensors file: {error}.", hint=f"Change {flag}.") from error
    held = first_few(sorted(names)) or "nothing"
    raise WeightsError(f"{path} holds no tensor named {KEY!r}, but {held}.", hint=f"Give {flag} a saved latent.")


def _load_torch(path: Path, flag: str) -> Tensor:
    try:
        latent = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds; all mean that the file is not what it should be
        raise WeightsError(f"{path} is no tensor saved by torch: {error}.", hint=f"Change {flag}.") from error
    if not isinstance(latent, Tensor):
        raise WeightsError(f"{path} holds a {type(latent).__name__}, not a tensor.", hint=f"Change {flag}.")
    return latent


def time_stamp(now_s: float | None = None) -> str:
    """Local time as `20250131-235959-123` (milliseconds last), the reference's way to name outputs."""
    now_s = time.time() if now_s is None else now_s
    whole_s = int(now_s)
    return f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(whole_s))}-{int((now_s - whole_s) * 1000):03d}"


def output_stem(folder: str | Path, seed: int, *, source: str = "", now_s: float | None = None) -> Path:
    """`<folder>/<time>_<seed>`, to which the writer adds `.mp4`, `_latent.safetensors` or nothing (image folder).

    source: the name of the latent that was decoded, appended with an underscore. When anything of that name exists
    already (two videos in one millisecond), `_1`, `_2` … is appended: nothing is ever overwritten.
    """
    folder = Path(folder)
    name = f"{time_stamp(now_s)}_{seed}" + (f"_{source}" if source else "")
    taken = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    number, candidate = 0, name
    while any(_belongs(entry, candidate) for entry in taken):
        number += 1
        candidate = f"{name}_{number}"
    return folder / candidate


def _belongs(entry: str, stem: str) -> bool:
    return entry == stem or entry == stem + SUFFIX or entry.startswith(stem + ".")
