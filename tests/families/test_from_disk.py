"""Every family's DiT with its streamed blocks on disk gives the velocities and gradients of one in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.contract.cli import parse
from engine.memory import disk_loading
from engine.parts.weights import write_weights
from tests.families.test_shared_base import DITS, trained

WAYS = {"in main memory": ("--blocks_to_swap", "2"), "on disk": ("--blocks_to_swap", "2", "--block_swap_from_disk")}


@pytest.mark.parametrize("weight_format", ["stored", "fp8_scaled"])
@pytest.mark.parametrize("family", list(DITS))
def test_velocities_and_gradients_are_those_of_one_in_memory(
    family: str, weight_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    scratch = disk_loading.Scratch
    monkeypatch.setattr(disk_loading, "Scratch", lambda size: made.append(size) or scratch(size))
    monkeypatch.setenv("MUSUBI_SCRATCH", str(tmp_path / "scratch"))
    make, inputs, metadata = DITS[family]
    path = tmp_path / "dit.safetensors"
    write_weights(path, make().state_dict(), metadata=metadata)

    def run(*more: str) -> list[torch.Tensor]:
        job = parse(["train", family, "--dit", str(path), "--dataset_config", "none.toml", *more])
        with torch.random.fork_rng():
            return trained(job, inputs, None, weight_format=weight_format)

    expected = run()
    for words in WAYS.values():
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(run(*words), expected, strict=True))
    assert len(made) == (weight_format != "stored"), "what is used as it is stored is not written"
