"""Experts that share the noise levels: each level as often as without them, no sample lost, the idle one untouched."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from engine.contract.errors import OptionError
from engine.contract.events import Metric
from engine.lora.several import LoraNetworks
from engine.training.checkpoints import Checkpoints, Keep
from engine.training.experts import TrainedExperts, choose_expert, draw_within
from engine.training.sigmas import SigmaSampling, draw
from tests.training import toy_job

SIZE = (16, 16)
STARTS = (0.0, 0.6)
SAMPLINGS = [
    SigmaSampling(mode="uniform"),
    SigmaSampling(mode="shift", discrete_flow_shift=5.0),
    SigmaSampling(mode="sigma", weighting_scheme="logit_normal"),
    SigmaSampling(mode="flux_shift", min_timestep=300, max_timestep=900, preserve_shape=True),
]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def turns(sampling: SigmaSampling, *, steps: int, batch: int) -> torch.Tensor:
    """The noise levels of a training of so many steps."""
    experts = TrainedExperts(starts=STARTS, names=("low", "high"), use=lambda number: None)
    levels = []
    for step in range(steps):
        number = choose_expert(sampling, STARTS, latent_size=SIZE, generator=generator(2 * step))
        low, high = experts.bounds(number)
        sigma_B, timestep_B = draw_within(
            sampling, (low, high), count=batch, latent_size=SIZE, generator=generator(2 * step + 1)
        )
        assert len(sigma_B) == len(timestep_B) == batch
        assert ((sigma_B >= low) & (sigma_B < high)).all()
        assert ((timestep_B - 1000 * sigma_B).abs() <= 1.001).all()
        levels.append(sigma_B)
    return torch.cat(levels)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda sampling: sampling.mode)
def test_no_sample_is_lost_and_levels_come_as_often_as_ever(sampling):
    """The reference's batch shrinks when a level cannot be redrawn, without its target."""
    found = turns(sampling, steps=1500, batch=2)
    wanted, _ = draw(sampling, count=20_000, latent_size=SIZE, generator=generator(9))
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert abs(found.quantile(quantile) - wanted.quantile(quantile)) < 0.04


def test_uniforms_that_a_batch_brings_are_kept_where_they_fit():
    uniforms = torch.tensor([0.1, 0.7, 0.5, 0.95])
    sigma_B, _ = draw_within(
        SAMPLINGS[0], (0.6, math.inf), count=4, latent_size=SIZE, generator=generator(0), uniform_B=uniforms
    )
    assert sigma_B[[1, 3]].tolist() == uniforms[[1, 3]].tolist() and (sigma_B >= 0.6).all()


def test_one_expert_draws_exactly_what_it_always_drew():
    for sampling in SAMPLINGS:
        one = draw(sampling, count=8, latent_size=SIZE, generator=generator(3))
        same = draw_within(sampling, (0.0, math.inf), count=8, latent_size=SIZE, generator=generator(3))
        assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))


def test_levels_that_never_come_are_an_error():
    narrow = SigmaSampling(mode="uniform", min_timestep=0, max_timestep=100)
    with pytest.raises(OptionError, match="Hardly any noise level falls into 600..1000"):
        draw_within(narrow, (0.6, math.inf), count=2, latent_size=SIZE, generator=generator(0))


# ----------------------------------------------------------------------------------------------------- the loop


class Pair:
    """A toy training of two experts: one module, two LoRAs, and a record of who was in and what was asked of it."""

    def __init__(self, folder: Path, **values) -> None:
        self.used: list[int] = []
        self.seen: list[tuple[int, torch.Tensor]] = []
        self.job = toy_job.job(folder, velocity=self._velocity, setup={"experts": self._experts()}, **values)
        more = toy_job.create(self.job.dit, block_classes=["Block"], exclude="", dim=4, alpha=4, seed=12)
        self.networks = LoraNetworks({"low": self.job.network, "high": more})
        groups = self.networks.parameter_groups(1e-2)
        built = toy_job.choose_optimizer("AdamW", [], lr=1e-2).build(groups)
        steps = self.job.settings.max_steps
        scheduler = toy_job.create_scheduler(
            toy_job.Schedule(name="cosine"), built.optimizer, total_steps=steps, schedule_free=False
        )

        def writer(number: int):
            return lambda path, step, epoch: toy_job.write_lora(path, self.networks[number].state(), metadata={})

        checkpoints = Checkpoints(
            folder, "toy", keep=values.get("keep") or Keep(), write_lora=writer(0), beside={"_high_noise": writer(1)},
            say=self.job.events.append,
        )  # fmt: skip
        for name, value in {
            "network": self.networks, "optimizer": built, "scheduler": scheduler, "checkpoints": checkpoints,
        }.items():  # fmt: skip
            object.__setattr__(self.job.setup, name, value)

    def _experts(self) -> TrainedExperts:
        return TrainedExperts(starts=STARTS, names=("low", "high"), use=self._use)

    def _use(self, number: int) -> None:
        self.used.append(number)
        self.networks.use(number)
        self.before = {name: value.clone() for name, value in self.networks.state().items()}

    def _velocity(self, x_BCTHW, timestep_B, cond):
        self.seen.append((self.used[-1], timestep_B))
        return self.job.dit(x_BCTHW, timestep_B, cond)


def test_a_step_is_one_experts_and_leaves_the_other_alone(tmp_path):
    pair = Pair(tmp_path, accumulation=2, max_steps=12, sampling=SigmaSampling(mode="uniform"))
    states = []
    use = pair._use

    def watching(number: int) -> None:
        states.append({name: value.clone() for name, value in pair.networks.state().items()})
        use(number)

    object.__setattr__(pair.job.setup.experts, "use", watching)
    pair.job.run()
    states.append(pair.networks.state())
    assert len(pair.used) == 12 and set(pair.used) == {0, 1}
    for number, timestep_B in pair.seen:
        assert ((timestep_B >= 601) == (number == 1)).all()
    for number, before, after in zip(pair.used, states[:-1], states[1:], strict=True):
        changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
        assert changed == {("low", "high")[number]}


def test_the_log_tells_the_experts_apart(tmp_path):
    pair = Pair(tmp_path, max_steps=12)
    pair.job.run()
    for number, event in zip(pair.used, pair.job.said(Metric), strict=True):
        name, other = (("low", "high"), ("high", "low"))[number]
        assert event.values[f"loss/{name}"] == event.values["loss/current"] and f"loss/{other}" not in event.values
        assert {"lr/unet low", "lr/unet high"} <= event.values.keys()


def test_both_loras_go_on_bit_for_bit(tmp_path):
    whole = Pair(tmp_path / "whole")
    whole.job.run()
    first = Pair(tmp_path / "parts", keep=Keep(save_every_n_steps=4, save_state=True))
    stop = first.job.setup.control
    say = first.job.setup.say
    object.__setattr__(
        first.job.setup,
        "say",
        lambda event: (say(event), isinstance(event, Metric) and event.step == 4 and stop.request_stop()),
    )
    assert first.job.run().stopped
    second = Pair(tmp_path / "parts")
    second.job.resume(tmp_path / "parts" / "toy-step00000004-state")
    assert first.used + second.used == whole.used
    assert first.job.losses + second.job.losses == whole.job.losses
    wanted = whole.networks.state()
    assert all(torch.equal(value, wanted[name]) for name, value in second.networks.state().items())


def test_each_lora_has_its_own_file_and_old_ones_go_together(tmp_path):
    pair = Pair(tmp_path, max_steps=6, keep=Keep(save_every_n_steps=2, save_last_n_steps=2))
    pair.job.run()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "toy-step00000004.safetensors", "toy-step00000006.safetensors", "toy.safetensors",
        "toy_high_noise-step00000004.safetensors", "toy_high_noise-step00000006.safetensors",
        "toy_high_noise.safetensors",
    ]  # fmt: skip
