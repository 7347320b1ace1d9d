"""What is found wrong with caches before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.contract import cli
from engine.contract.errors import DataError
from engine.data.batches import TrainItem
from engine.families.wan import tiny
from engine.tasks.training_data import _check_items


def item(width: int) -> TrainItem:
    return TrainItem(
        latent_path=Path("cat_wan.safetensors"),
        text_path=Path("cat_wan_te.safetensors"),
        dataset=0,
        key=(),
        shapes={"latents": (16, 1, 2, 2), "t5": (7, width)},
    )


def test_text_that_was_encoded_for_another_model_is_told(tmp_path: Path) -> None:
    """It was a bug's traceback from the first step: "mat1 and mat2 shapes cannot be multiplied"."""
    tiny.write_tiny_models(tmp_path)
    dit = tiny.tiny_model_options(tmp_path)["train"]["dit"]
    job = cli.parse(["train", "wan", "--dit", str(dit), "--task", "t2v-1.3B", "--dataset_config", "d.toml"])
    assert job is not None
    _check_items(job, [item(tiny.DIT_CONFIG.text_dim)], say=lambda event: None)
    with pytest.raises(DataError, match="cat_wan.safetensors cannot be trained on: its text has 4096 numbers a token"):
        _check_items(job, [item(4096)], say=lambda event: None)
