"""From prompt lines to videos: equal prompts with different pictures, and what a line changes."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from engine.families.wan import tiny
from tests.clips import draw_image


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("i2v")
    tiny.write_tiny_models(folder, variant="i2v-14B")
    for number, name in enumerate(("one", "two")):
        draw_image(folder / f"{name}.png", number=30000 * number, size=(64, 48))
    return folder


def generate(engine, workshop, out, *more):
    options = tiny.tiny_model_options(workshop, variant="i2v-14B")["generate"]
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return engine(
        "generate", "wan", *words, "--save_path", out, "--output_type", "latent", "--video_size", 48, 64,
        "--infer_steps", 1, "--guidance_scale", 1, *more,
    )  # fmt: skip


def test_equal_prompts_with_different_images_are_different_videos(engine, workshop, tmp_path):
    """musubi-tuner's batch mode keeps one conditioning for each prompt text: the second image replaces the first."""
    lines = [f"a cat --i {workshop / name}.png --f 5 --d 7" for name in ("one", "two")]
    (tmp_path / "prompts.txt").write_text("\n".join([*lines, lines[0]]))
    result = generate(engine, workshop, tmp_path / "out", "--from_file", tmp_path / "prompts.txt")
    assert result.status == 0, result.err
    first, second, again = (
        load_file(path)["latent"] for path in sorted((tmp_path / "out").glob("*_latent.safetensors"))
    )
    assert first.equal(again) and not first.equal(second)


def test_a_line_that_the_task_cannot_do_names_itself_before_anything_is_loaded(engine, workshop, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"a cat --i {workshop / 'one'}.png --f 5\na dog --f 5\n")
    result = generate(engine, workshop, tmp_path / "out", "--from_file", tmp_path / "prompts.txt")
    assert result.status == 2 and "prompts.txt:2" in result.err and "--image_path" in result.err
    assert "Loading" not in result.err
