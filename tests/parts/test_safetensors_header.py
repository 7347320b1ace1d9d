"""The one reader of safetensors headers: agrees with the library, and takes nothing for granted."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save, save_file

from engine.parts.safetensors_header import in_order, read_header


def garbled(path: Path, header: object, data: bytes = b"\0" * 8) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_it_says_what_the_library_wrote(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.zeros(0, 2)}
    save_file(tensors, path, metadata={"k": "v"})
    header = read_header(path)
    content = path.read_bytes()
    assert header.metadata == {"k": "v"} and header.size == header.end == len(content)
    assert {name: told.shape for name, told in header.tensors.items()} == {
        n: tuple(t.shape) for n, t in tensors.items()
    }
    told = header.tensors["a"]
    assert told.dtype == "F32" and content[told.start : told.start + told.length] == tensors["a"].numpy().tobytes()


@pytest.mark.parametrize(
    "header",
    [
        b"\xff\xfe{}",
        b"{]",
        [1, 2],
        {"a": 3},
        {"a": {"dtype": "F32", "shape": [1]}},
        {"a": {"dtype": "F32", "shape": None, "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4.0]}},
        {"__metadata__": [], "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
    ],
    ids=str,
)
def test_a_damaged_header_is_a_value_error(tmp_path: Path, header: object) -> None:
    with pytest.raises(ValueError):
        read_header(garbled(tmp_path / "a.safetensors", header))


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\0" * 64, b"\xff" * 64, struct.pack("<Q", 60) + b"{}"], ids=len)
def test_what_is_no_safetensors_file_is_a_value_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match="cut short"):
        read_header(tmp_path / "a")


def test_a_file_that_is_shorter_than_its_header_says_shows_it(tmp_path: Path) -> None:
    described = {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    header = read_header(garbled(tmp_path / "a.safetensors", described))
    assert header.end - header.size == 8


def test_metadata_are_put_in_order_and_the_rest_stays(tmp_path: Path) -> None:
    """The library writes them in an order of chance, so that equal files differ between processes."""
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}
    words = {"width": "64", "caption1": "ein Löwe 🦁", "architecture": "wan"}
    path = tmp_path / "a.safetensors"
    path.write_bytes(in_order(save(tensors, words)))
    header = read_header(path)
    assert header.metadata == words and list(header.metadata) == sorted(words) and header.end == header.size
    assert all(told.start % 8 == 0 for told in header.tensors.values() if told.dtype == "F32")
    again = load(path.read_bytes())
    assert again.keys() == tensors.keys() and all(torch.equal(again[name], tensors[name]) for name in tensors)
