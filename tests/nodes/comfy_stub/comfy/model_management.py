"""Stands for ComfyUI's model management: the Cancel flag, and how often models were unloaded."""

from __future__ import annotations

unloaded = 0
_interrupted = False


class InterruptProcessingException(BaseException):
    """As since ComfyUI 0.20."""


def reset() -> None:
    global unloaded, _interrupted
    unloaded, _interrupted = 0, False


def interrupt_current_processing(value: bool = True) -> None:
    global _interrupted
    _interrupted = value


def processing_interrupted() -> bool:
    return _interrupted


def unload_all_models() -> None:
    global unloaded
    unloaded += 1
    free_memory(1e30, get_torch_device())


def free_memory(memory_required: float, device: str, keep_loaded: object = ()) -> list[object]:
    return []


def soft_empty_cache() -> None:
    pass


def get_torch_device() -> str:
    return "cpu"


def get_free_memory(device: str | None = None) -> int:
    return 8 << 30


def get_total_memory(device: str | None = None) -> int:
    return 24 << 30
