"""The header of a safetensors file: what it says about its tensors, without reading any.

Raises plain OSError and ValueError; callers know what the file is for and turn them into a message.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT_BYTES = 100_000_000


@dataclass(frozen=True)
class Described:
    """One tensor as the header has it: the format's name for its dtype, and where its bytes are in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    length: int


@dataclass(frozen=True)
class Header:
    """`size` is the file's length in bytes, `end` where the header says that it should end."""

    tensors: dict[str, Described]
    metadata: dict[str, str]
    size: int
    end: int


def read_header(path: Path) -> Header:
    """Read and parse a header. ValueError: the file is not a safetensors file, or the header itself is cut short."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, LIMIT_BYTES):
            raise ValueError("its header is cut short")
        text = file.read(length)
    try:
        header: dict[str, Any] = json.loads(text)
        metadata = {str(key): str(value) for key, value in header.pop("__metadata__", {}).items()}
        tensors = {name: _described(entry, 8 + length) for name, entry in header.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its header is damaged ({error!r})") from error
    end = max((tensor.start + tensor.length for tensor in tensors.values()), default=8 + length)
    return Header(tensors, metadata, size, end)


def in_order(data: bytes) -> bytes:
    """The same file with its metadata sorted; the library writes them in a different order in every process."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors stay aligned
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _described(entry: dict[str, Any], data_start: int) -> Described:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(isinstance(number, int) for number in (begin, end, *shape)) or not 0 <= begin <= end:
        raise ValueError(f"its header is damaged (a tensor {shape} from byte {begin} to {end})")
    return Described(str(entry["dtype"]), shape, data_start + begin, end - begin)
