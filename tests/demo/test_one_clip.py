"""The demo's proof that training works: what it takes from the records of two trainings, and when it fails."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.contract.errors import EngineError
from engine.contract.events import Done, Hello, Metric, write
from engine.demo.kits import kit_of
from engine.demo.one_clip import LEAST_FALL, PASS, STEPS, Losses, draw, judge, percent, prepare_one_clip, read_losses
from engine.demo.prepare import Prepared


def losses(*, fall: float, moved: float = 0.0) -> Losses:
    """Of a training whose loss falls evenly from 4.0 by `fall`, under a noise that each pass has alike."""
    passes = STEPS // PASS
    each = [4.0 - 4.0 * fall * number / (passes - 1) + wave for number in range(passes) for wave in waves()]
    return Losses(each, [(step, 3.5 * (1 + moved * step)) for step in range(0, STEPS + 1, PASS)])


def waves() -> list[float]:
    return [2.0 * np.sin(2 * np.pi * number / PASS) for number in range(PASS)]


def test_what_is_smoothed_is_a_pass_through_the_noise_levels() -> None:
    learning = losses(fall=0.5)
    assert [step for step, _ in learning.smoothed] == list(range(PASS, STEPS + 1, PASS))
    assert learning.smoothed[0][1] == pytest.approx(4.0) and learning.smoothed[-1][1] == pytest.approx(2.0)
    assert learning.change == pytest.approx(-0.5) and losses(fall=0).change == pytest.approx(0)


def test_what_was_learned_is_told_in_a_line() -> None:
    told = judge(losses(fall=0.674), losses(fall=0.001))
    assert told == "One clip, 300 steps: loss -67 %; at learning rate 0: ±0 %."
    assert (percent(0.126), percent(-0.004), percent(0.004)) == ("+13 %", "±0 %", "±0 %")


def test_too_small_a_fall_is_an_error() -> None:
    assert judge(losses(fall=LEAST_FALL + 0.001), losses(fall=0))
    with pytest.raises(EngineError, match="changed by -39 %. It has to fall by 40 % at least") as caught:
        judge(losses(fall=LEAST_FALL - 0.01), losses(fall=0))
    assert caught.value.exit_status == 70


def test_any_change_at_learning_rate_0_is_an_error() -> None:
    """However small against the noise of single steps: the validation has none."""
    with pytest.raises(EngineError, match="learning rate 0"):
        judge(losses(fall=0.6), losses(fall=0, moved=1e-6))


def test_the_losses_are_those_of_the_last_run(tmp_path: Path) -> None:
    for number, loss in enumerate((9.0, 2.0)):
        record = tmp_path / "jobs" / f"run-{number}" / "events.jsonl"
        record.parent.mkdir(parents=True)
        events = [
            Hello(),
            Metric(step=0, values={"loss/validation": loss + 1, "loss/validation_sigma_0.5": 0.0}),
            Metric(step=1, values={"loss/current": loss, "loss/average": 0.0}, epoch=1),
            Done(),
        ]
        record.write_text("".join(write(event) + "\n" for event in events), encoding="utf-8")
        os.utime(record, (number, number))
    assert read_losses(tmp_path) == Losses([2.0], [(0, 3.0)])


def test_both_curves_are_in_one_picture(tmp_path: Path) -> None:
    image = np.asarray(Image.open(draw(losses(fall=0.6), losses(fall=0), tmp_path / "a.png")).convert("RGB")).astype(
        int
    )
    blue, orange = image[..., 2] > image[..., 0] + 100, image[..., 0] > image[..., 2] + 100
    assert image.shape[1] > 800 and blue.sum() > 500 and orange.sum() > 500
    assert np.argwhere(blue)[:, 0].max() > np.argwhere(orange)[:, 0].max(), "what was learned ends below"


@pytest.mark.parametrize("family", ["wan", "hunyuan_video", "framepack"])
def test_its_job_files_are_not_taken_for_the_demos(family: str, tmp_path: Path) -> None:
    """Whoever runs the demo's steps by hand finds each by its pattern, also once the proof was made."""
    one_clip = prepare_one_clip(Prepared(tmp_path, family, kit_of(family), ()))
    assert (one_clip is None) == (family == "framepack")
    assert len(list(tmp_path.rglob("*.toml"))) == (5 if one_clip else 0)
    for word in ("latents", "text", "train", "generate"):
        assert not list(tmp_path.rglob(f"*{word}*.toml"))
