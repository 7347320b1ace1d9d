"""How much memory this machine has, without torch: the GPU's driver is asked through its library, NVML.

Standard library and psutil. Given up: other GPUs than NVIDIA's, for which --vram gives the size.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from ..contract.errors import OptionError

_CONTAINER = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Card:
    """A GPU; bytes. `free`: not in use now. `capability`: CUDA's compute capability; None: unknown."""

    name: str
    total: int
    free: int
    capability: tuple[int, int] | None = None


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def find_card(device: str | None) -> Card | None:
    """The GPU that `--device` names, by default the first one; None if there is none, or the device is not CUDA.

    OptionError for a number that is none.
    """
    if device is not None and not device.startswith("cuda"):
        return None
    written = (device or "cuda:0").partition(":")[2] or "0"
    if not written.isdecimal():
        raise OptionError(f"--device {device}: there is no such device.", "Use cuda, cuda:0, cpu or mps.")
    number = _visible(int(written))
    library = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return None
    if nvml.nvmlInit_v2() != 0:
        return None
    try:
        return _asked(nvml, number)
    finally:
        nvml.nvmlShutdown()


def _visible(number: int) -> int | str:
    """The driver's number or id of the GPU that CUDA calls `number`."""
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    if number >= len(names):
        return number
    return int(names[number]) if names[number].isdecimal() else names[number]


def _asked(nvml: ctypes.CDLL, number: int | str) -> Card | None:
    handle, memory, name = ctypes.c_void_p(), _Memory(), ctypes.create_string_buffer(96)
    if isinstance(number, str):
        status = nvml.nvmlDeviceGetHandleByUUID(number.encode(), ctypes.byref(handle))
    else:
        status = nvml.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(handle))
    if status != 0 or nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) != 0:
        return None
    nvml.nvmlDeviceGetName(handle, name, len(name))
    major, minor = ctypes.c_int(), ctypes.c_int()
    known = nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor)) == 0
    capability = (major.value, minor.value) if known else None
    return Card(name.value.decode(errors="replace"), memory.total, memory.free, capability)


def main_memory() -> int:
    """Bytes of main memory that are available now, within a container's limit. A container's cached files that were not
    used lately count as free: the system drops them when memory is needed."""
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int((_CONTAINER / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used + _idle())
    return free


def own_memory() -> int:
    """Bytes of main memory that this process alone holds, without those of mapped files."""
    info = psutil.Process().memory_info()
    return int(info.rss - getattr(info, "shared", 0))


def _idle() -> int:
    """Bytes of the container's cached files that were not used lately."""
    with contextlib.suppress(OSError, ValueError):
        numbers = dict(line.split() for line in (_CONTAINER / "memory.stat").read_text().splitlines())
        return int(numbers.get("inactive_file", 0))
    return 0


def joins_freed_memory() -> bool:
    """Whether PyTorch's allocator joins freed pieces of GPU memory, which the engine asks for where it can
    (__main__.py), unless the person's own settings say otherwise."""
    settings = os.environ.get("PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", ""))
    return "expandable_segments:true" in settings.lower().replace(" ", "")
