"""The trial of a LoRA: what it trains on. The training itself takes minutes and is run by hand."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest

from engine.data.config import load_config
from zoo.captions import read_caption
from zoo.facts import CONCEPTS, SHAPES, TEXTURES
from zoo.try_lora import WORDS, Trial, near_captions, new_captions, varied_scenes, write_dataset

TRIAL = Trial(
    models=Path("models"), out=Path("out"), concept="zigzag", clips=3, ordinary=4, repeats=2, seeds=1, steps=1, rank=4,
    rate=1e-3, guidance=2.0, shift=3.0, prior=1.0,
)  # fmt: skip


@pytest.mark.parametrize("concept", CONCEPTS)
def test_every_caption_of_a_concept_uses_its_one_word(concept: str) -> None:
    prompts = near_captions(dataclasses.replace(TRIAL, concept=concept, seeds=12)) + new_captions(concept, 12)
    assert all(WORDS[concept] in prompt for prompt in prompts) and len(set(prompts)) == 24


def test_the_first_prompts_are_of_what_the_clips_show_in_other_words(tmp_path: Path) -> None:
    trial = dataclasses.replace(TRIAL, out=tmp_path, seeds=3)
    write_dataset(trial)
    captions = [path.read_text(encoding="utf-8").strip() for path in sorted((tmp_path / "clips/concept").glob("*.txt"))]
    prompts = near_captions(trial)
    assert [read_caption(prompt) for prompt in prompts] == [read_caption(caption) for caption in captions]
    assert not set(prompts) & set(captions)


@pytest.mark.parametrize("concept", CONCEPTS)
def test_the_clips_of_a_concept_differ_as_much_as_they_can(concept: str) -> None:
    subjects = [scene.subject for scene in varied_scenes(concept, 8)]
    assert len({subject.colour for subject in subjects}) == 8
    assert len({subject.motion for subject in subjects}) >= 4


def test_the_dataset_has_the_concept_and_ordinary_clips_some_without_a_caption(tmp_path: Path) -> None:
    write_dataset(dataclasses.replace(TRIAL, out=tmp_path))
    concept, ordinary = load_config(tmp_path / "dataset.toml").datasets
    assert (concept.num_repeats, ordinary.num_repeats) == (2, 1)
    assert (concept.preserve_prior, ordinary.preserve_prior) == (False, True)
    captions = [
        [path.read_text(encoding="utf-8").strip() for path in sorted(Path(str(table.source_directory)).glob("*.txt"))]
        for table in (concept, ordinary)
    ]
    assert all("in a zigzag" in caption for caption in captions[0])
    assert [caption == "" for caption in captions[1]] == [False, False, False, True]


def test_ordinary_clips_with_captions_show_all_textures_and_shapes(tmp_path: Path) -> None:
    write_dataset(dataclasses.replace(TRIAL, out=tmp_path, ordinary=24))
    captions = [path.read_text(encoding="utf-8").strip() for path in (tmp_path / "clips/ordinary").glob("*.txt")]
    said = [read_caption(text) for text in captions if text]
    assert len(said) == 16 and {facts.shape for facts in said} == set(SHAPES)
    assert min(Counter(facts.texture for facts in said)[texture] for texture in TEXTURES) >= 3


def test_without_ordinary_clips_there_is_one_table(tmp_path: Path) -> None:
    write_dataset(dataclasses.replace(TRIAL, out=tmp_path, ordinary=0))
    assert len(load_config(tmp_path / "dataset.toml").datasets) == 1
