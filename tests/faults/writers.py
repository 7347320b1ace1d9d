"""Everything that the engine writes, each as one function that a process can be killed in.

`write(path, value, pause)` writes something that depends on `value` (1 or 2) and calls `pause` in the middle, where
there is a middle. `read(path)` gives the value back, or raises when what is there is not whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.bench.files import write_random
from engine.demo.prepare import prepare
from engine.lora.files import write_lora
from engine.media.charts import loss_curve
from engine.media.images import read_image, write_image
from engine.media.latents import load_latent, save_latent
from engine.media.sheet import contact_sheet
from engine.media.video import read_frames
from engine.media.writing import write_images, write_png, write_preview, write_video
from engine.parts.weight_shards import stream_shards
from engine.parts.weights import open_weights, write_weights
from engine.talk import JobFolder
from engine.training.states import Position, StateParts, find_latest_state, read_position, write_state
from tests.faults.kit import hold, pausing

Pause = Callable[[], None]


@dataclass(frozen=True)
class Writer:
    """`name` is the file's or folder's; `middle` whether `pause` is called while it is written."""

    name: str
    write: Callable[[Path, int, Pause], object]
    read: Callable[[Path], int]
    middle: bool = False


def _frames(value: int, pause: Pause) -> Iterator[np.ndarray]:
    """Four frames of noise around a grey that tells the value; the pause comes before the third."""
    random = np.random.default_rng(value)
    for index in range(4):
        if index == 2:
            pause()
        yield (random.integers(0, 40, (160, 160, 3)) + 100 * value - 40).astype(np.uint8)


def _seen(frame_HWC: np.ndarray) -> int:
    return round((float(frame_HWC.mean()) + 20) / 100)


def _random(path: Path, value: int, pause: Pause) -> None:
    """A checkpoint of random weights, whose first tensor's length tells the value."""
    for number, _ in enumerate(write_random(path, {"norm.weight": (value,), "a.weight": (200, 200), "a.bias": (40,)})):
        if number == 1:
            pause()


def _tensors(value: int) -> dict[str, torch.Tensor]:
    return {f"part{index}": torch.full((40, 40), float(value)) for index in range(8)}


class _Network:
    """What a state keeps of a network; asked for its weights after some files are written already."""

    def __init__(self, value: int) -> None:
        self.value = value

    def state(self) -> dict[str, torch.Tensor]:
        return _tensors(self.value)


class _Pausing:
    """An optimizer whose state is asked for in the middle of writing a state folder."""

    def __init__(self, value: int, pause: Pause) -> None:
        self.value, self.pause = value, pause

    def state_dict(self) -> dict[str, Any]:
        self.pause()
        return {"moments": _tensors(self.value)}


def _write_state(path: Path, value: int, pause: Pause) -> None:
    optimizer = _Pausing(value, pause)
    parts = StateParts(network=_Network(value), optimizer=optimizer, scheduler=optimizer)
    write_state(path, parts, Position(step=value))


def _read_state(path: Path) -> int:
    """The step of the state that a person would be told to go on from."""
    found = find_latest_state(path.parent, path.name.removesuffix("-state"))
    assert found is not None
    return read_position(found).step


def _write_job(path: Path, value: int, pause: Pause) -> None:
    JobFolder(path.parent, f"value = {value}\n" * 2000).close()


def _weights_value(path: Path) -> int:
    file = open_weights(path, role="--dit")
    return int(sum(float(file.read(name).mean()) for name in file.shapes) / len(file.shapes))


def _curve_value(path: Path) -> int:
    """Titles of different lengths make different pictures: the value is what gives the same one again."""
    image = read_image(path)
    for value in (1, 2):
        _write_curve(path.with_name("again.png"), value, lambda: None)
        again = read_image(path.with_name("again.png"))
        path.with_name("again.png").unlink()
        if np.array_equal(image, again):
            return value
    raise AssertionError("neither of the two curves")


def _write_curve(path: Path, value: int, pause: Pause) -> None:
    loss_curve([1, 2, 3], [1.0, 0.5, 0.5], path, title="curve " * value)


WRITERS: dict[str, Writer] = {
    "LoRA": Writer(
        "a.safetensors", lambda path, value, pause: write_lora(path, _tensors(value), metadata={}), _weights_value
    ),
    "merged model": Writer(
        "b.safetensors", lambda path, value, pause: write_weights(path, _tensors(value)), _weights_value
    ),
    "latent": Writer(
        "c_latent.safetensors",
        lambda path, value, pause: save_latent(path, torch.full((16, 2, 20, 20), float(value))),
        lambda path: int(load_latent(path)[0].mean()),
    ),
    "state": Writer("d-step00000001-state", _write_state, _read_state, middle=True),
    "job.toml": Writer("job.toml", _write_job, lambda path: 1 + ("value = 2" in path.read_text().splitlines()[-1])),
    "loss curve": Writer("e_loss.png", _write_curve, _curve_value),
    "contact sheet": Writer(
        "f.png",
        lambda path, value, pause: contact_sheet(
            [(str(index), list(_frames(value, pause))) for index in range(4)], path
        ),
        lambda path: 1 + (float(read_image(path)[60:180, 40:180].mean()) > 120),
    ),
    "image": Writer(
        "g.jpg",
        lambda path, value, pause: write_image(path, next(_frames(value, pause))),
        lambda path: _seen(read_image(path)),
    ),
    "png": Writer(
        "h.png",
        lambda path, value, pause: write_png(path, next(_frames(value, pause)), metadata={"seeds": value}),
        lambda path: _seen(read_image(path)),
    ),
    "preview": Writer(
        "p.webp",
        lambda path, value, pause: write_preview(path, np.stack([*_frames(value, lambda: None)]), fps=8),
        lambda path: _seen(read_image(path)),
    ),
    "video": Writer(
        "i.mp4",
        lambda path, value, pause: write_video(path, _frames(value, pause), fps=8),
        lambda path: _seen(list(read_frames(path))[3]),
        middle=True,
    ),
    "animation": Writer(
        "j.gif",
        lambda path, value, pause: write_video(path, _frames(value, pause), fps=8),
        lambda path: _seen(read_image(path)),
        middle=True,
    ),
    "random weights": Writer(
        "m.safetensors",
        _random,
        lambda path: open_weights(path, role="--dit").shapes["norm.weight"][0],
        middle=True,
    ),
}


def _write_shards(path: Path, value: int, pause: Pause) -> None:
    tensors = _tensors(value)

    def read(name: str) -> torch.Tensor:
        if name == "part5":
            pause()
        return tensors[name]

    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    stream_shards(path, layout, read, shard_bytes=20_000)


# Folders that never take another's place.
FOLDERS: dict[str, Writer] = {
    "images": Writer(
        "k",
        lambda path, value, pause: write_images(path, _frames(value, pause)),
        lambda path: _seen(read_image(path / f"{path.name}_003.png")),
        middle=True,
    ),
    "shards": Writer("l", _write_shards, _weights_value, middle=True),
}


def write_slowly(flag: str, name: str, path: str, how: str) -> None:
    """What the child does: reach the point at which it is killed. `how`: "middle", "half" or "renaming"."""
    writer = (WRITERS | FOLDERS)[name]
    if how != "middle":
        hold(flag, writer.name, how)
    writer.write(Path(path), 2, pausing(flag) if how == "middle" else lambda: None)


def prepare_slowly(flag: str, folder: str, family: str, ending: str, how: str) -> None:
    """Prepare a demo until the first file whose name ends so."""
    hold(flag, ending, how)
    prepare(Path(folder), family)
