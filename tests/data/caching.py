"""What the tests of caching share: a small dataset on disk, an encoder that is arithmetic, a listener."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.contract.events import Control, Log, Progress, Warning_
from engine.data import config as dataset_file
from engine.data.config import DatasetConfig
from engine.data.pipeline import cache_latents
from engine.data.report import CacheReport
from engine.data.survey import Recipe, Rules
from engine.data.text_pipeline import cache_text
from engine.parts.tokenizers import TokenCount

from ..clips import draw_item

ARCHITECTURE = "wan"
DEADLOCK_S = 20.0


class Heard(list):
    """A `say` that keeps what it hears."""

    def __call__(self, event) -> None:
        self.append(event)

    @property
    def warnings(self) -> list[str]:
        return [event.message for event in self if isinstance(event, Warning_)]

    @property
    def logs(self) -> list[str]:
        return [event.message for event in self if isinstance(event, Log)]

    @property
    def progress(self) -> list[Progress]:
        return [event for event in self if isinstance(event, Progress)]


def encode_clips(clips_BCFHW: Tensor) -> list[dict[str, Tensor]]:
    """Latents of the right shape whose values tell which clip they came from: a mean over 8x8 pixels."""
    assert clips_BCFHW.dtype == torch.float32 and -1 <= clips_BCFHW.min() and clips_BCFHW.max() <= 1
    return [{"latents": _latents(clip)} for clip in clips_BCFHW]


def _latents(clip_CFHW: Tensor) -> Tensor:
    small = torch.nn.functional.avg_pool3d(clip_CFHW[:, ::4], (1, 8, 8))
    return small.mean(0, keepdim=True).expand(16, -1, -1, -1).to(torch.bfloat16)


def encode_captions(captions: list[str]) -> list[dict[str, Tensor]]:
    return [{"varlen_t5": torch.full((len(caption), 8), len(caption), dtype=torch.bfloat16)} for caption in captions]


def count_words(captions: list[str], *, limit: int = 100) -> list[TokenCount]:
    """As if each word were a token."""
    words = [len(caption.split()) for caption in captions]
    return [TokenCount(count, read=min(count, limit)) for count in words]


def make_dataset(
    folder: Path, *, clips: int = 3, size: tuple[int, int] = (64, 48), frames: int = 20, **settings
) -> DatasetConfig:
    """`clips` small videos with captions in `folder/videos`, caches in `folder/cache`, and the file to load."""
    for number in range(clips):
        name = f"clip_{number}.mp4"
        draw_item(
            folder / "videos", name, caption=f"clip {number}", size=size, frames=frames, first_number=100 * number
        )
    return write_config(folder, **settings)


def write_config(folder: Path, **settings) -> DatasetConfig:
    """Write and load `folder/dataset.toml` for the videos in `folder/videos`."""
    values = {
        "video_directory": str(folder / "videos"),
        "cache_directory": str(folder / "cache"),
        "caption_extension": ".txt",
        "resolution": [64, 48],
        "target_frames": [5],
        **settings,
    }
    lines = ["[[datasets]]"] + [f"{key} = {_toml(value)}" for key, value in values.items()]
    path = folder / "dataset.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return dataset_file.load_config(path)


def _toml(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def given(options: dict[str, Any]) -> tuple[Recipe, Rules, dict[str, Any]]:
    """The recipe and the rules among the options by their names, and the others."""

    def taken(kind: type) -> dict[str, Any]:
        return {field.name: options.pop(field.name) for field in fields(kind) if field.name in options}

    defaults = {"architecture": ARCHITECTURE, "architecture_full": ARCHITECTURE, "settings": {}}
    options = dict(options)
    return Recipe(**{**defaults, **taken(Recipe)}), Rules(**taken(Rules)), options


def latents(config: DatasetConfig, *, say=None, control=None, encode=encode_clips, **options) -> CacheReport:
    """cache_latents with the tests' defaults; a deadlock fails the test instead of hanging it."""
    recipe, rules, options = given({"identity": "vae-1", "native_fps": 16.0, "workers": 2, **options})
    return in_time(
        lambda: cache_latents(
            config,
            recipe,
            rules,
            encode=lambda batch: encode(
                batch.frames_BCFHW, **({"controls": batch.controls_BCFHW} if batch.controls_BCFHW else {})
            ),
            say=Heard() if say is None else say,
            control=control or Control(),
            **options,
        )
    )


def texts(
    config: DatasetConfig, *, say=None, control=None, encode=encode_captions, count=count_words, **options
) -> CacheReport:
    """cache_text with the tests' defaults."""
    recipe, rules, options = given({"identity": "t5-1", **options})
    return in_time(
        lambda: cache_text(
            config,
            recipe,
            rules,
            encode=encode,
            count=count,
            say=Heard() if say is None else say,
            control=control or Control(),
            **options,
        )
    )


def in_time(work: Callable[[], CacheReport]) -> CacheReport:
    """Run `work` on a thread; fails when it hangs or leaves threads behind, and raises what it raises."""
    before = set(threading.enumerate())
    result: list[CacheReport] = []
    raised: list[BaseException] = []

    def main() -> None:
        try:
            result.append(work())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    thread.join(DEADLOCK_S)
    assert not thread.is_alive(), f"deadlock: still running after {DEADLOCK_S} s"
    orphans = [orphan.name for orphan in set(threading.enumerate()) - before]
    assert not orphans, f"threads left behind: {orphans}"
    if raised:
        raise raised[0]
    return result[0]


def cache_names(config: DatasetConfig, pattern: str = "*") -> list[str]:
    return sorted(path.name for path in config.datasets[0].cache_directory.glob(pattern))
