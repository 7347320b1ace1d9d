"""Caching in a child process that writes down what it encodes, so that the record outlives it.

Imports whatever caching does, some of it needlessly early: forked children have it at once.
"""

from __future__ import annotations

import os
from typing import Any

import cv2  # noqa: F401
import ftfy  # noqa: F401
import torch
from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel  # noqa: F401

import engine.screen  # noqa: F401
import engine.tasks.cache_latents  # noqa: F401
import engine.tasks.cache_text  # noqa: F401
from engine.__main__ import main
from engine.data import cache, pipeline
from engine.families.wan import text, vae  # noqa: F401


def cache_counted(log: str, words: list[str]) -> None:
    """What a child does: one engine command. `log` gets a line for each clip or caption about to be encoded."""
    record = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    call, encode = pipeline.Encoder._call, text.encode

    def note(names: list[str]) -> None:
        os.write(record, "".join(f"{name}\n" for name in names).encode())  # one write: whole lines, kept by the kernel

    def counted_call(self: Any, group: list[Any]) -> Any:
        note([cache.latent_path(clip.window, "wan").name for clip in group])
        return call(self, group)

    def counted_encode(encoder: Any, captions: list[str]) -> Any:
        note(captions)
        return encode(encoder, captions)

    pipeline.Encoder._call, text.encode = counted_call, counted_encode  # type: ignore[method-assign]
    torch.set_num_threads(1)
    os._exit(main(words))
