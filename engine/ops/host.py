"""Page-locked host memory, from which a GPU copies at full speed and without waiting.

PyTorch's own pinned allocator rounds every buffer up to a power of two, which for blocks of hundreds of MiB wastes up
to half of the machine's memory; here ordinary memory of the exact size is locked in place.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from ..contract.errors import OutOfMemoryError


def host_bytes(count: int, *, pinned: bool, advice: str) -> Tensor:
    """A uint8 tensor of `count` bytes in main memory; if `pinned`, page-locked while it lives.

    OutOfMemoryError: there is not enough memory, or it may not be locked. `advice`: how to need less, without a full
    stop, e.g. "Lower --blocks_to_swap".
    """
    try:
        buffer = torch.empty(max(count, 1), dtype=torch.uint8, device="cpu")
    except RuntimeError as error:
        raise OutOfMemoryError(
            f"There is no room in main memory for another {count / 2**20:.0f} MiB.", hint=f"{advice}."
        ) from error
    if pinned:
        _lock(buffer, advice)
    return buffer


def _lock(buffer: Tensor, advice: str) -> None:
    runtime = torch.cuda.cudart()
    address = buffer.data_ptr()
    status = runtime.cudaHostRegister(address, buffer.nbytes, 0)
    if int(status) != 0:
        raise OutOfMemoryError(
            f"The system refuses to lock {buffer.nbytes / 2**20:.0f} MiB of main memory for the GPU ({status}).",
            hint=f"{advice}, or close other programs.",
        )
    # tied to the storage, which views of the buffer keep alive; unlocking must come before the memory is freed
    finalizer = weakref.finalize(buffer.untyped_storage(), runtime.cudaHostUnregister, address)
    finalizer.atexit = False
