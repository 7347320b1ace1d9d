"""The demo's clips are those that the zoo draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine.demo.kits import POCKET
from engine.families import part
from engine.media.video import read_frames
from zoo.captions import VOCABULARY, read_caption
from zoo.demo_clips import write
from zoo.facts import NEW_SHAPE


def test_the_shipped_clips_are_drawn_anew_alike(tmp_path: Path) -> None:
    shipped = POCKET / part("wan", "pocket").CONCEPT.replace(" ", "_")
    drawn = write(tmp_path)
    assert sorted(path.name for path in shipped.glob("*.mp4")) == sorted(path.name for path in drawn)
    for path in drawn:
        beside = shipped / path.name
        assert path.with_suffix(".txt").read_text() == beside.with_suffix(".txt").read_text()
        for ours, theirs in zip(read_frames(path), read_frames(beside), strict=True):
            assert np.abs(ours.astype(int) - theirs).mean() < 2, "another encoder may differ a little"


def test_the_demo_asks_in_words_that_the_model_has_tokens_for() -> None:
    for prompt in part("wan", "pocket").PROMPTS:
        assert set(prompt.split()) <= set(VOCABULARY) and read_caption(prompt).shape == NEW_SHAPE
