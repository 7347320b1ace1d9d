"""`--ffn_chunks`: a training whose blocks run in pieces of the tokens learns what it would learn otherwise."""

from __future__ import annotations

import pytest

from engine.bench.files import Input, command_line, config_of, training_options
from engine.contract.cli import parse
from engine.contract.events import Control, Metric
from engine.families import names, part
from engine.families.values import BenchSize
from engine.memory import pieces
from engine.tasks import train

STEPS = 3


def losses_of(family, folder, *flags):
    """Of a short training on noise; the LoRA of each step makes the next one's loss."""
    tiny, found = part(family, "tiny"), []
    models = tiny.tiny_model_options(folder / "models")["train"]
    given = Input(BenchSize(height=48, width=64, frames=9), window=2)
    options = training_options(
        family,
        folder / "-".join(flags or ("plain",)),
        given,
        config_of(family, models["dit"]),
        steps=STEPS,
        on_gpu=False,
    )
    words = command_line("train", family, {**options, **models}, ("--gradient_checkpointing", *flags))
    job = parse([*words, "--device", "cpu", "--learning_rate", "0.01"])
    assert job is not None

    def say(event):
        if isinstance(event, Metric):
            found.append(event.values["loss/current"])

    train.run(job, say, Control())
    return found


@pytest.mark.parametrize("family", names(extra=False))
def test_a_training_in_pieces_goes_the_same_way(family, tmp_path, monkeypatch):
    monkeypatch.setitem(pieces.run_in_pieces.__kwdefaults__, "whole_below", 2)
    part(family, "tiny").write_tiny_models(tmp_path / "models")
    whole = losses_of(family, tmp_path)
    cut = losses_of(family, tmp_path, "--ffn_chunks", "3")
    assert len(whole) == STEPS and cut == pytest.approx(whole, rel=1e-5) and whole[0] != whole[-1]
