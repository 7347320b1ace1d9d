"""A family's DiT shared out over two processes (threads here) gives the velocities and gradients of a whole one."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from engine.contract.cli import parse
from engine.contract.job import Job
from engine.families import part
from engine.lora.network import create
from engine.memory.sharing import Shares
from engine.parts.weights import write_weights
from engine.tasks.denoiser import arrange_blocks, load_dit
from tests.families.framepack import tiny as framepack
from tests.families.hunyuan_video import test_model as hunyuan_video
from tests.families.wan import test_model as wan
from tests.memory.company import Member, together

CPU = torch.device("cpu")
SEEDING = threading.Lock()  # threads have one source of random numbers
HEADS = {"head_dim": "32"}
DITS = {
    "wan": (lambda: wan.randomised(wan.TINY), lambda: wan.inputs(wan.TINY), HEADS),
    "hunyuan-video": (hunyuan_video.randomised, hunyuan_video.inputs, HEADS),
    "framepack": (framepack.randomised, framepack.inputs, HEADS),
}


def trained(job: Job, inputs: Any, member: Member | None, *, weight_format: str) -> list[torch.Tensor]:
    """Velocities and the adapters' gradients of two steps and a sample, as a training arranges its DiT."""
    shares = None if member is None else Shares(member, device=CPU)
    with SEEDING:
        x_BCTHW, timestep_B, cond = inputs()
        dit = load_dit(
            job, job.values()["dit"], device=CPU, weight_format=weight_format, say=lambda _: None, shares=shares
        )
        network = adapted(job, dit)
    arrange_blocks(job, dit, device=CPU, checkpointing={"attention": "recompute"}, shares=shares)
    velocity, found = part(job.family, "model").velocity, []
    for _ in range(2):
        out = velocity(dit, x_BCTHW, timestep_B, cond)
        out.square().mean().backward()
        found.append(out.detach())
    with torch.no_grad():
        found.append(velocity(dit, x_BCTHW, timestep_B, cond))
    return [*found, *(parameter.grad for parameter in network.parameters())]


def adapted(job: Job, dit: nn.Module) -> nn.Module:
    keys = part(job.family, "keys")
    network = create(dit, block_classes=keys.LORA_BLOCKS, exclude=keys.LORA_EXCLUDE, dim=2, seed=3)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    return network


@pytest.mark.parametrize("weight_format", ["stored", "fp8_scaled"])
@pytest.mark.parametrize("family", list(DITS))
def test_velocities_and_gradients_are_those_of_a_whole_one(family: str, weight_format: str, tmp_path: Path) -> None:
    make, inputs, metadata = DITS[family]
    path = tmp_path / "dit.safetensors"
    write_weights(path, make().state_dict(), metadata=metadata)
    job = parse(["train", family, "--dit", str(path), "--dataset_config", "none.toml"])
    with torch.random.fork_rng():
        expected = trained(job, inputs, None, weight_format=weight_format)
        both = together(2, lambda member: trained(job, inputs, member, weight_format=weight_format))
    for found in both:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_what_lies_outside_of_the_blocks_is_whole_and_a_part_of_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "dit.safetensors"
    model = wan.randomised(wan.TINY)
    write_weights(path, model.state_dict(), metadata=DITS["wan"][2])
    job = parse(["train", "wan", "--dit", str(path), "--dataset_config", "none.toml"])

    def kept(member: Member) -> tuple[int, int]:
        shares = Shares(member, device=CPU)
        dit = load_dit(job, str(path), device=CPU, say=lambda _: None, shares=shares)
        assert torch.equal(dit.patch_embedding.weight, model.patch_embedding.weight)
        storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in dit.parameters()}
        return shares.device_bytes, sum(storages.values())

    inside = sum(value.nbytes for value in model.blocks.parameters())
    outside = sum(value.nbytes for value in model.parameters()) - inside
    for parts, resident in together(2, kept):
        assert inside / 2 <= parts < 0.55 * inside
        assert outside <= resident < outside + 1024
