"""`preserve_prior` of a dataset: the ordinary command trains with it, in every way of saving memory alike."""

from __future__ import annotations

import pytest

from engine.bench.files import Input, command_line, config_of, training_options, write_caches, write_dataset
from engine.contract.cli import parse
from engine.contract.events import Control, Metric
from engine.families import names, part
from engine.families.values import BenchSize
from engine.tasks import train

STEPS = 6
GIVEN = Input(BenchSize(height=48, width=64, frames=9), window=2)
WAYS = {
    "in pieces": ("--gradient_checkpointing", "--ffn_chunks", "3"),
    "half checkpointed": ("--gradient_checkpointing", "--gradient_checkpointing_blocks", "1"),
    "from disk": ("--gradient_checkpointing", "--blocks_to_swap", "2", "--block_swap_from_disk", "--ffn_chunks", "3"),
    "streamed": ("--gradient_checkpointing", "--blocks_to_swap", "1", "--block_swap_h2d_only"),
}


def values_of(family, folder, name, *flags, preserving=True):
    """The metrics of a short training on two clips of noise, one of them ordinary. Each step makes the next's loss."""
    tiny, found = part(family, "tiny"), []
    models = tiny.tiny_model_options(folder / "models")["train"]
    config = config_of(family, models["dit"])
    options = training_options(family, folder / name, GIVEN, config, steps=STEPS, on_gpu=False)
    ordinary = write_dataset(family, folder / name / "ordinary", GIVEN)
    write_caches(family, folder / name / "ordinary", GIVEN, config)
    table = ordinary.read_text().partition("[[datasets]]")[2]
    with options["dataset_config"].open("a") as file:
        file.write(f"[[datasets]]{table}preserve_prior = {str(preserving).lower()}\n")
    words = command_line("train", family, {**options, **models}, flags)
    job = parse([*words, "--device", "cpu", "--learning_rate", "0.001", "--prior_loss_weight", "2"])
    assert job is not None
    train.run(job, lambda event: found.append(event.values) if isinstance(event, Metric) else None, Control())
    return found


@pytest.mark.parametrize("family", names(extra=False))
def test_a_training_that_preserves_goes_the_same_way_however_memory_is_saved(family, tmp_path):
    part(family, "tiny").write_tiny_models(tmp_path / "models")
    plain = values_of(family, tmp_path, "plain")
    strayed = [values["loss/prior"] for values in plain if "loss/prior" in values]
    assert len(strayed) == STEPS // 2 and strayed[-1] > 0
    for name, flags in WAYS.items():
        for one, other in zip(values_of(family, tmp_path, name, *flags), plain, strict=True):
            assert one["loss/current"] == pytest.approx(other["loss/current"], rel=1e-4), name
            assert one.get("loss/prior", 0) == pytest.approx(other.get("loss/prior", 0), rel=0.02, abs=1e-9), name
    learned = values_of(family, tmp_path, "learned", preserving=False)
    assert not any("loss/prior" in values for values in learned)
    assert [values["loss/current"] for values in learned] != [values["loss/current"] for values in plain]
