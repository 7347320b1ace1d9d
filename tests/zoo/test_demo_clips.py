"""The demo's clips are those that the zoo draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.demo.kits import POCKET
from engine.families import part
from engine.media.images import read_image
from engine.media.video import read_frames
from engine.parts.pocket import CLIP_TOKENIZER
from zoo import first_frames
from zoo.captions import VOCABULARY, read_caption
from zoo.demo_clips import write
from zoo.facts import NEW_SHAPE, facts
from zoo.pocket_hunyuan import write_clip_tokenizer


def test_the_shipped_clips_are_drawn_anew_alike(tmp_path: Path) -> None:
    shipped = POCKET / part("wan", "pocket").CONCEPT.replace(" ", "_")
    drawn = write(tmp_path)
    assert sorted(path.name for path in shipped.glob("*.mp4")) == sorted(path.name for path in drawn)
    for path in drawn:
        beside = shipped / path.name
        assert path.with_suffix(".txt").read_text() == beside.with_suffix(".txt").read_text()
        for ours, theirs in zip(read_frames(path), read_frames(beside), strict=True):
            assert np.abs(ours.astype(int) - theirs).mean() < 2, "another encoder may differ a little"


def test_the_shipped_first_frames_are_drawn_anew_alike_and_show_what_the_prompts_say(tmp_path: Path) -> None:
    drawn, pocket = first_frames.write(tmp_path), part("framepack", "pocket")
    assert [f"first_frames/{path.name}" for path in drawn] == list(pocket.FIRST_FRAMES)
    for path, scene, prompt in zip(drawn, first_frames.SCENES, pocket.PROMPTS, strict=True):
        assert (read_image(path) == read_image(POCKET / "first_frames" / path.name)).all()
        assert read_caption(prompt) == facts(scene)


def test_the_shipped_tokenizer_is_the_zoos(tmp_path: Path) -> None:
    write_clip_tokenizer(tmp_path)
    assert (tmp_path / CLIP_TOKENIZER).read_bytes() == (POCKET / CLIP_TOKENIZER).read_bytes()


@pytest.mark.parametrize("family", ["wan", "hunyuan_video", "framepack"])
def test_the_demo_asks_in_words_that_the_model_has_tokens_for(family: str) -> None:
    for prompt in part(family, "pocket").PROMPTS:
        assert set(prompt.split()) <= set(VOCABULARY) and read_caption(prompt).shape == NEW_SHAPE
