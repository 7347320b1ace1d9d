"""The models of a generation that stay for the next one, in a process that stays (engine/serving.py).

Each has a name and a key: all that decides it, files by size and time. Between its uses a model rests in main memory,
also while the others of its generation work, so the GPU holds what it holds in an ordinary run: one large model at a
time. A model that nobody brought back, because its job failed, is gone. Knows no model from inside.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..contract.events import Log, Say, Stage
from ..memory.estimate import GIB
from ..memory.machine import main_memory
from ..memory.resting import Resting, weights_in
from ..memory.streaming import BlockStream
from ..parts.weight_paths import find_files

SPARE = 4 * GIB
"""Main memory that is left to everybody else: what has no room beside it is not kept."""
WORDS = {
    "dit": "DiT", "vae": "VAE", "image": "image encoder", "text": "text encoder", "texts": "encoded texts",
}  # fmt: skip


@dataclass(frozen=True)
class Stamp:
    """A file as it is now."""

    path: str
    size: int
    changed_ns: int


@dataclass(frozen=True)
class Key:
    """All that decides a model: its files, and in words what its loader is told."""

    told: str
    files: tuple[Stamp, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of the files."""
        return sum(file.size for file in self.files)


def stamps(path: str, *, role: str) -> list[Stamp]:
    """The weight files that a path stands for. `role` is the flag that names it. WeightsError."""
    found = [file.resolve() for file in find_files(Path(path).expanduser(), role=role)]
    return [Stamp(str(file), status.st_size, status.st_mtime_ns) for file in found for status in [file.stat()]]


@dataclass(frozen=True)
class _AtRest:
    key: Key
    model: Any
    weights: Resting


class Kept:
    """What rests, by its name in `WORDS`."""

    def __init__(self) -> None:
        self._at_rest: dict[str, _AtRest] = {}

    @property
    def host_bytes(self) -> int:
        """Main memory that it takes."""
        return sum(found.weights.host_bytes for found in self._at_rest.values())

    def take(self, name: str, key: Key, say: Say) -> Any | None:
        """The model of this name and key, awake and from now on the caller's. None: load it, there is room for it."""
        self.let_go(name, unless=key)
        found = self._at_rest.pop(name, None)
        if found is None:
            if main_memory() < SPARE + key.size:
                self.clear()
            return None
        say(Stage(name=f"Taking the {WORDS[name]} of the run before"))
        found.weights.wake(say, WORDS[name])
        return found.model

    def put(
        self, name: str, key: Key, model: Any, say: Say, *, weights: Iterable[Tensor] | None = None,
        stream: BlockStream | None = None,
    ) -> None:  # fmt: skip
        """Have a model rest that nobody uses now, if main memory has room for it.

        `weights`: all of its own, where the model is no module; `stream`: what streams the others.
        """
        found = list(weights_in(model) if weights is None else weights)
        if main_memory() < SPARE + sum(tensor.nbytes for tensor in found if tensor.device.type != "cpu"):
            say(Log(message=f"The {WORDS[name]} is not kept for the next run: main memory has no room for it."))
            return
        self._at_rest[name] = _AtRest(key, model, Resting(found, stream, say=say, label=WORDS[name]))

    def let_go(self, name: str, *, unless: Key) -> None:
        """Forget the model of this name unless it has this key."""
        if name in self._at_rest and self._at_rest[name].key != unless:
            del self._at_rest[name]
            _give_back()

    def clear(self) -> None:
        if self._at_rest:
            self._at_rest.clear()
            _give_back()


def _give_back() -> None:
    """Free what was let go of now: a DiT refers to itself, and its memory and its scratch file are planned for."""
    gc.collect()
