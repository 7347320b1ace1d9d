"""Devices and number formats, from the words that people use for them to torch's; the memory of a device."""

from __future__ import annotations

import os

import psutil
import torch

from ..contract.errors import OptionError

DTYPES = {
    "float": torch.float32, "float32": torch.float32, "fp32": torch.float32, "no": torch.float32,
    "float16": torch.float16, "fp16": torch.float16, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
}  # fmt: skip


def choose_device(name: str | None) -> torch.device:
    """`name` as torch spells it ("cuda", "cuda:1", "cpu", "mps"); None: the GPU if there is one. OptionError."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(
            f"--device {name}: torch does not know such a device.", "Use cuda, cuda:0, cpu or mps."
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise OptionError(
            f"--device {name}: torch {torch.__version__} sees no CUDA GPU on this machine.",
            "Leave out --device to use what there is, or run `python -m env_bootstrap status` to see the torch build.",
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OptionError(f"--device {name}: there are {torch.cuda.device_count()} GPUs, counted from 0.")
    return device


def device_of_process(device: torch.device) -> torch.device:
    """The device of this process: of several processes each has a GPU of its own. OptionError: too few GPUs."""
    local = os.environ.get("LOCAL_RANK")
    if local is None or os.environ.get("WORLD_SIZE", "1") == "1" or device.type == "cpu":
        return device
    if device.type != "cuda":
        raise OptionError(f"Several processes cannot share the device {device}.", "Use --device cuda or cpu.")
    count = torch.cuda.device_count()
    if int(local) >= count:
        raise OptionError(
            f"--num_processes needs a GPU for each process, but torch sees {count}.",
            f"Use --num_processes {count}, or check --gpu_ids.",
        )
    return torch.device("cuda", int(local))


def dtype_of(name: str | None, default: torch.dtype, *, flag: str) -> torch.dtype:
    """The torch dtype for a word like "bf16"; None: `default`. `flag` names the option in the OptionError."""
    if name is None:
        return default
    if name.lower() not in DTYPES:
        raise OptionError(f"{flag} {name}: not a number format.", f"Choose from {', '.join(DTYPES)}.")
    return DTYPES[name.lower()]


def free_memory(device: torch.device) -> None:
    """Return unused cached memory to the driver, so that the next model can have it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def forget_peaks(device: torch.device) -> None:
    """Count the peaks of memory in use from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def memory_in_use(device: torch.device) -> dict[str, float]:
    """MiB that this process holds: `ram_mib`; on CUDA `vram_mib`, `vram_peak_mib` and `vram_reserved_peak_mib`."""
    mib = 1 << 20
    found = {"ram_mib": psutil.Process().memory_info().rss / mib}
    if device.type == "cuda":
        found["vram_mib"] = torch.cuda.memory_allocated(device) / mib
        found["vram_peak_mib"] = torch.cuda.max_memory_allocated(device) / mib
        found["vram_reserved_peak_mib"] = torch.cuda.max_memory_reserved(device) / mib
    return found


def free_bytes(device: torch.device) -> int | None:
    """Bytes that this process could still allocate, its own cache included; None if that is unknown (CPU, MPS)."""
    if device.type != "cuda":
        return None
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + cached
    limit = _limits.get(torch.device("cuda", device.index or 0))
    return free if limit is None else min(free, limit - torch.cuda.memory_allocated(device))


_limits: dict[torch.device, int] = {}


def limit_memory(device: torch.device, limit: int) -> None:
    """Let torch take at most `limit` bytes of this GPU; it frees unused cached memory before it gives up."""
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)
    _limits[torch.device("cuda", device.index or 0)] = limit


def lift_limits() -> None:
    """Undo every `limit_memory`."""
    for device in _limits:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    _limits.clear()
