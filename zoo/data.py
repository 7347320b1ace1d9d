"""Clips and tokenised captions, drawn by processes of their own while the training already runs.

All of them write into memory that they share with the trainer, one clip after the other, so clip n of a set is the same
however many processes there were. Drawing has to begin before CUDA does: the processes are forks.
Knows scenes and tokens, not what is learned from them.
"""

from __future__ import annotations

import mmap
import multiprocessing
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal

import numpy as np

from engine.parts.tokenizers import Tokenizer, from_sentencepiece

from . import scenes
from .tokenizer import word_tokenizer

TOKENS, CAPTIONS = 48, 4  # tokens of the longest caption with its end; captions that each clip has
HELD_OUT_SEED = 1 << 40
_PATIENCE_S = 600

Split = Literal["train", "held_out"]


def own_tokenizer() -> tuple[bytes, Tokenizer]:
    """The tokenizer's file and the tokenizer."""
    model = word_tokenizer(scenes.VOCABULARY)
    return model, from_sentencepiece(model, source="Pocket tokenizer")


def padded_ids(tokenizer: Tokenizer, caption: str) -> np.ndarray:
    """Token ids with the end, int16 [TOKENS]; what is too long is cut before the end."""
    ids = tokenizer.ids(caption, limit=TOKENS)
    return np.pad(np.array(ids, np.int16), (0, TOKENS - len(ids)), constant_values=tokenizer.pad_id)


class Clips:
    """`count` clips of a split, of which the first `ready()` are drawn.

    frames_NFHWC uint8, ids_NKL int16 with CAPTIONS captions each. `first`: the number of the first one, for processes
    that train together. Use it in a `with`: leaving ends the drawing.
    """

    def __init__(self, count: int, *, split: Split, size: int, frames: int, workers: int, first: int = 0) -> None:
        self.count, self.workers, self.first = count, max(1, min(workers, count)), first
        self._split: Split = split
        self.frames_NFHWC = _shared((count, frames, size, size, 3), np.uint8)
        self.ids_NKL = _shared((count, CAPTIONS, TOKENS), np.int16)
        self._done = _shared((self.workers,), np.int64)
        forks = multiprocessing.get_context("fork")
        self._processes: list[Any] = [
            forks.Process(target=self._draw, args=(worker,), daemon=True) for worker in range(self.workers)
        ]

    def __enter__(self) -> Clips:
        for process in self._processes:
            process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()

    def ready(self) -> int:
        """How many clips are drawn from the first on, without a gap."""
        rounds = int(self._done.min())
        extra = int((np.cumprod(self._done > rounds)).sum())
        return min(self.count, rounds * self.workers + extra)

    def wait_for(self, count: int, *, say: Callable[[str], None]) -> None:
        """Return when so many clips are drawn. RuntimeError when a process has died of an error."""
        begun, told = time.monotonic(), time.monotonic()
        while self.ready() < min(count, self.count):
            if any(process.exitcode not in (None, 0) for process in self._processes):
                raise RuntimeError("a process that draws clips has died; its error stands above")
            if time.monotonic() - begun > _PATIENCE_S:
                raise RuntimeError(f"after {_PATIENCE_S} s only {self.ready()} of {count} clips are drawn")
            if time.monotonic() - told > 5:
                told = time.monotonic()
                say(f"drawing: {self.ready():,} of {count:,} clips")
            time.sleep(0.05)

    def _draw(self, worker: int) -> None:
        _, tokenizer = own_tokenizer()
        first_seed = self.first + (0 if self._split == "train" else HELD_OUT_SEED)
        frames, size = self.frames_NFHWC.shape[1:3]
        for index in range(worker, self.count, self.workers):
            seed = first_seed + index
            scene = scenes.random_scene(seed, split=self._split, size=size, frames=frames)
            self.frames_NFHWC[index] = scenes.render(scene, size=size, frames=frames)
            for number in range(CAPTIONS):
                caption = scenes.caption(scene, seed=CAPTIONS * seed + number)
                self.ids_NKL[index, number] = padded_ids(tokenizer, caption)
            self._done[worker] += 1
        sys.stdout.flush()


def held_out_clips(count: int, *, size: int, frames: int) -> tuple[np.ndarray, list[str]]:
    """Clips that no training sees, [N, F, H, W, 3] uint8, and a caption of each."""
    found = [scenes.random_scene(HELD_OUT_SEED + n, split="held_out", size=size, frames=frames) for n in range(count)]
    clips = np.stack([scenes.render(scene, size=size, frames=frames) for scene in found])
    return clips, [scenes.caption(scene, seed=HELD_OUT_SEED + n) for n, scene in enumerate(found)]


def _shared(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An array of zeros that forked processes share. Memory is taken page by page, when it is written."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, max(size, 1)), dtype=dtype)[: int(np.prod(shape))].reshape(shape)
