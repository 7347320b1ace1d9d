"""What families do alike with a DiT's checkpoint."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.contract.errors import WeightsError
from engine.parts.batching import moved
from engine.parts.dit import build_frozen
from engine.parts.dit_sizes import count_blocks, head_dim, only_part
from engine.parts.mmdit import from_patches
from engine.parts.weights import metadata_number, open_weights, write_weights


def test_blocks_are_counted_by_their_highest_number():
    names = ["blocks.0.a", "blocks.10.a", "other_blocks.30.a", "blocks.a"]
    assert count_blocks(names, "blocks") == 11
    with pytest.raises(KeyError, match="layers.0"):
        count_blocks(names, "layers")


@pytest.mark.parametrize("told", ["0", "4", "33", "48", "many"])
def test_a_head_size_that_cannot_be_is_refused(told):
    assert head_dim(256, {}, source="x") == 128 and head_dim(64, {"head_dim": "32"}, source="x") == 32
    with pytest.raises(WeightsError, match="x has width 64") as caught:
        head_dim(64, {"head_dim": told}, source="x")
    assert "head_dim" in caught.value.hint


def test_a_part_of_a_checkpoint_is_named_with_what_it_lacks():
    error = only_part("--dit a.safetensors", "a Wan DiT", KeyError("blocks.0"))
    assert "only part of a Wan DiT" in error.message and "blocks.0" in error.message


def test_models_are_frozen_and_empty_unless_a_device_is_named():
    made = [build_frozen(lambda: nn.Linear(2, 3), device=device, dtype=torch.bfloat16) for device in ("meta", "cpu")]
    assert [model.weight.device.type for model in made] == ["meta", "cpu"]
    assert all(not p.requires_grad and p.dtype == torch.bfloat16 for model in made for p in model.parameters())


def test_patches_become_the_video_that_they_were_cut_from():
    video = torch.arange(2 * 3 * 2 * 4 * 6.0).view(2, 3, 2, 4, 6)
    cells = video.unfold(2, 1, 1).unfold(3, 2, 2).unfold(4, 2, 2)  # B C t h w pt ph pw
    tokens = cells.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(1, 3)
    assert torch.equal(from_patches(tokens, (2, 2, 3), (1, 2, 2)), video)


def test_numbers_in_metadata(tmp_path):
    path = tmp_path / "some.safetensors"
    write_weights(path, {"a": torch.zeros(1)}, metadata={"groups": "4", "bad": "-1"})
    file = open_weights(path, role="--vae")
    assert metadata_number(file, "groups", default=32) == 4 and metadata_number(file, "none", default=32) == 32
    with pytest.raises(WeightsError, match="--vae: the metadata key bad of some.safetensors is '-1'"):
        metadata_number(file, "bad", default=32)


def test_a_conditioning_is_moved_but_for_its_numbers():
    cond = {"text": [torch.zeros(2)], "pooled": torch.zeros(1), "indices": [[0, 1]], "scaling": None, "guidance": 6.0}
    found = moved(cond, torch.device("meta"))
    assert found["text"][0].is_meta and found["pooled"].is_meta
    assert (found["indices"], found["scaling"], found["guidance"]) == ([[0, 1]], None, 6.0)
