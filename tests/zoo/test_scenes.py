"""The generator of training clips: the same everywhere, never contradicting itself, with combinations kept back."""

from __future__ import annotations

import hashlib
import itertools
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from engine.contract.errors import DataError
from zoo.captions import VOCABULARY, caption, read_caption
from zoo.drawing import render
from zoo.facts import (
    COLOURS,
    CONCEPTS,
    MOTIONS,
    NEW_MOTIONS,
    NEW_SHAPE,
    NEW_STYLE,
    NEW_TEXTURE,
    ROUND,
    SHAPES,
    Thing,
    facts,
    is_held_out,
)
from zoo.motion import poses
from zoo.scenes import concept_scene, main, random_scene
from zoo.seeing import SIDE

SCENES = [random_scene(seed, split="train") for seed in range(1500)]
HELD_OUT = [random_scene(seed, split="held_out") for seed in range(300)]
NEW = [concept_scene(CONCEPTS[seed % 3], seed) for seed in range(150)]


def digest(clip: np.ndarray) -> str:
    return hashlib.sha256(clip.tobytes()).hexdigest()[:16]


def test_a_seed_gives_the_same_bytes_on_every_machine() -> None:
    """These digests stand for the pocket models' training data: where they change, the models are other models."""
    clips = [render(scene) for scene in (*SCENES[:24], *NEW[:3])]
    assert digest(np.stack(clips)) == "9c1123f1b1268a93"
    assert digest(render(SCENES[0], size=96, frames=5)) == "984d9f4c0e367b40"
    assert (
        hashlib.sha256(" ".join(caption(s, seed=1) for s in SCENES[:50]).encode()).hexdigest()[:16]
        == "aa02f68cec74080e"
    )


def test_a_clip_is_drawn_in_little_time() -> None:
    render(SCENES[0])
    seconds = []
    for scene in SCENES[:60]:
        began = time.process_time()
        render(scene)
        seconds.append(time.process_time() - began)
    assert np.median(seconds) < 0.004


def test_seeds_differ() -> None:
    assert len(set(SCENES)) == len(SCENES)
    assert len({digest(render(scene)) for scene in SCENES[:50]}) == 50


def test_every_shape_colour_and_motion_comes_often() -> None:
    for values, fact in ((SHAPES, "shape"), (tuple(COLOURS), "colour"), (MOTIONS, "motion")):
        counts = {value: sum(getattr(scene.subject, fact) == value for scene in SCENES) for value in values}
        assert min(counts.values()) > len(SCENES) / len(values) / 3, counts


def test_held_out_combinations_never_train() -> None:
    assert not any(is_held_out(thing) for scene in SCENES for thing in scene.things)
    assert all(is_held_out(scene.subject) for scene in HELD_OUT)
    assert not any(is_held_out(thing) for scene in HELD_OUT for thing in scene.things[1:])


def test_a_tenth_is_held_out_and_no_pair_of_facts_with_it() -> None:
    def kept_back(shape: str, colour: str, motion: str) -> bool:
        thing = Thing(shape=shape, colour=colour, motion=motion, size="big", x=0.5, y=0.5, radius=0.2)
        return is_held_out(thing)

    combinations = list(itertools.product(SHAPES, COLOURS, MOTIONS))
    held_out = [combination for combination in combinations if kept_back(*combination)]
    assert len(held_out) / len(combinations) == pytest.approx(0.1)
    for one, other in itertools.combinations(range(3), 2):
        trained = {(c[one], c[other]) for c in combinations if not kept_back(*c)}
        assert trained == {(c[one], c[other]) for c in combinations}


def test_base_clips_have_nothing_of_the_concepts() -> None:
    for scene in (*SCENES, *HELD_OUT):
        assert scene.style != NEW_STYLE
        for thing in scene.things:
            assert thing.shape != NEW_SHAPE and thing.texture != NEW_TEXTURE and thing.motion not in NEW_MOTIONS
    new_words = {"hexagon", "striped", "stripes", "zigzag", "zigzags", "zigzagging", "pixel", "art", "style"}
    assert not any(new_words & set(caption(scene, seed=seed).split()) for seed, scene in enumerate(SCENES))


def test_things_stay_in_the_picture() -> None:
    """What is drawn in a picture with more around it has nothing in the part around it."""
    for scene in (*SCENES[:400], *NEW):
        for index in range(len(scene.things)):
            where = poses(scene, index, frames=17)
            for place in (where.x, where.y):
                assert (place - where.radius).min() > -0.01 and (place + where.radius).max() < 1.01, scene


def test_the_subject_is_large_enough_for_a_vae() -> None:
    assert all(2 * scene.subject.radius * SIDE >= 14 for scene in (*SCENES, *HELD_OUT, *NEW))
    small = [random_scene(seed, split="train", size=32).subject for seed in range(100)]
    assert all(2 * thing.radius * 32 >= 13 for thing in small)


def test_what_cannot_be_seen_to_spin_does_not() -> None:
    assert not any(thing.motion == "spin" and thing.shape in ROUND for scene in SCENES for thing in scene.things)


def test_a_single_frame_shows_what_stays_still() -> None:
    assert {random_scene(seed, split="train", frames=1).subject.motion for seed in range(60)} == {"still"}


@pytest.mark.parametrize("relation", ["left of", "right of", "above", "below"])
def test_who_is_beside_another_stays_on_its_side(relation: str) -> None:
    beside = [scene for scene in SCENES if scene.relation == relation]
    assert beside
    for scene in beside:
        mine, other = (poses(scene, index, frames=17) for index in (0, 1))
        off = other.x - mine.x if relation in ("left of", "right of") else other.y - mine.y
        assert ((off if relation in ("left of", "above") else -off) > mine.radius + other.radius).all()


@pytest.mark.parametrize("relation", ["in front of", "behind"])
def test_who_passes_in_front_covers_and_who_passes_behind_is_covered(relation: str) -> None:
    for scene in [scene for scene in SCENES if scene.relation == relation and scene.things[1].motion == "still"][:10]:
        mine, other = (poses(scene, index, frames=17) for index in (0, 1))
        meeting = int(np.hypot(mine.x - other.x, mine.y - other.y).argmin())
        together, alone, nothing = (
            render(replace(scene, things=things))[meeting] for things in (scene.things, scene.things[:1], ())
        )
        thing = cv2.erode(np.uint8((alone != nothing).any(-1)), np.ones((3, 3))) > 0
        assert (together == alone).all(-1)[thing].all() == (relation == "in front of")


def test_captions_use_the_vocabulary_and_use_it_up() -> None:
    said = {word for seed, scene in enumerate((*SCENES, *NEW)) for word in caption(scene, seed=seed).split()}
    assert said <= set(VOCABULARY)
    assert len(said) > 0.95 * len(VOCABULARY) and 140 <= len(VOCABULARY) <= 250
    assert all(word == word.lower() and word.isalpha() for word in VOCABULARY)


def test_a_caption_says_the_facts() -> None:
    for seed, scene in enumerate((*SCENES, *HELD_OUT, *NEW)):
        assert read_caption(caption(scene, seed=seed)) == facts(scene)


def test_a_caption_says_what_is_special() -> None:
    for seed, scene in enumerate((*SCENES, *NEW)):
        words = set(caption(scene, seed=seed).split())
        assert scene.camera == "still" or words & {"pans", "panning"}
        assert not scene.relation or scene.things[1].colour in words and scene.things[1].shape in words
        signs = {"checkered": {"checkered"}, "dotted": {"dotted", "spotted", "dots", "spots"},
                 "gradient": {"shaded", "gradient"}, "striped": {"striped", "stripes"}}  # fmt: skip
        assert scene.subject.texture == "plain" or words & signs[scene.subject.texture]


def test_wordings_vary() -> None:
    assert len({caption(SCENES[0], seed=seed) for seed in range(50)}) > 25


def test_captions_that_people_write_are_read() -> None:
    assert read_caption("A red circle, moving LEFT.") == read_caption("a red circle goes to the left")
    assert read_caption("a blue star stays still while the camera pans up").seen_motion == "down"
    assert read_caption("On a plain wall: a dotted, big blue star stays still").texture == "dotted"
    assert read_caption("A blue star, with stripes, moves left on a plain background.").texture == "striped"


@pytest.mark.parametrize("text", ["a cat walks", "a red circle", "a red circle ponders", "circle red moves left", ""])
def test_a_caption_without_facts_says_what_is_missing(text: str) -> None:
    with pytest.raises(DataError) as told:
        read_caption(text)
    assert told.value.hint


def test_an_unknown_concept_names_the_known() -> None:
    with pytest.raises(ValueError, match="zigzag"):
        concept_scene("spiral", 0)


def test_pixel_art_is_made_of_blocks() -> None:
    clip = render(concept_scene("pixel_art", 3))
    assert (clip.reshape(17, 16, 4, 16, 4, 3) == clip[:, ::4, ::4].reshape(17, 16, 1, 16, 1, 3)).all()


def test_the_sheet_is_written(folder: Path) -> None:
    assert main(["--sheet", str(folder / "sheet.png")]) == 0
    assert (folder / "sheet.png").stat().st_size > 50_000
