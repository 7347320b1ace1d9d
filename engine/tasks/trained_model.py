"""A training's frozen DiT with its adapters, wrapped in checkpointing, streaming and compilation as the job says."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..contract.errors import OptionError
from ..contract.events import Log, Say, Warning_
from ..contract.job import Job
from ..contract.options import Network, Optimizer, TrainingMemory
from ..families import part
from ..families.values import Expert
from ..lora import network as lora
from ..lora.arguments import read_network_arguments
from ..lora.files import LoraFile, read_lora
from ..lora.formats import to_default
from ..lora.merge import report_unmatched
from .denoiser import tune_backends
from .experts import Experts
from .lora_targets import lora_target


class TrainedModel:
    """What the loop trains. `network` is everything that learns; `networks` holds one LoRA per expert."""

    def __init__(self, job: Job, experts: Experts, device: torch.device, seed: int, say: Say):
        self._model = part(job.family, "model")
        self._arguments = part(job.family, "options").conditioning_arguments(job)
        memory = job[TrainingMemory]
        tune_backends(memory)
        self.experts = experts
        self.dit = experts.dit
        self.networks = [
            _network(job, expert, self.dit, seed + number, say).to(device)
            for number, expert in enumerate(experts.members)
        ]
        self.network = experts.adapt(self.networks)
        experts.arrange(
            slots=memory.block_swap_ring_size,
            pinned=memory.block_swap_h2d_only,
            ffn_chunks=memory.ffn_chunks,
            checkpointing=memory.checkpointing,
            learning=self.network.learning_in,
        )

    def parameter_groups(self, job: Job) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer, each with its learning rate."""
        options = job[Network]
        ratio = read_network_arguments(options.network_module, options.network_args).loraplus_lr_ratio
        return self.network.parameter_groups(job[Optimizer].learning_rate, ratio)

    def velocity(self, x_BCTHW: torch.Tensor, timestep_B: torch.Tensor, cond: dict[str, Any]) -> torch.Tensor:
        return self._model.velocity(self.dit, x_BCTHW, timestep_B, cond)

    def prior(self, x_BCTHW: torch.Tensor, timestep_B: torch.Tensor, cond: dict[str, Any]) -> torch.Tensor:
        """The base model's velocity, without the adapters; it has no gradient."""
        with torch.no_grad(), self.network.disabled():
            return self.velocity(x_BCTHW, timestep_B, cond)

    def conditioning(self, batch: dict[str, Any]) -> dict[str, Any]:
        return self._model.cond_from_batch(batch, **self._arguments)


def check_networks(job: Job, experts: Experts, dit: nn.Module) -> None:
    """Refuse adapters that do not suit this DiT, and `--network_weights` that do not fit them, before weights are
    loaded.

    `dit` is on the meta device. OptionError, WeightsError.
    """
    for expert in experts.members:
        given = _given(job, expert, dit)
        network = _created(job, given, dit, seed=0)
        if given:
            state = to_default(given.modules)
            if state.keys() == network.state().keys():
                _check_rank(job[Network], expert, given, network)
            network.check_state(state)
        network.detach()


def _check_rank(options: Network, expert: Expert, given: LoraFile, network: lora.LoraNetwork) -> None:
    """OptionError where the file has one rank and the new adapters another. In LoKr, ranks may differ by module."""
    ranks = sorted({weights.rank for weights in given.modules.values()})
    if "LoKr" not in network.kinds and len(ranks) == len(network.ranks) == 1 and ranks != network.ranks:
        raise OptionError(
            f"--network_weights{expert.ending} {given.path.name} has rank {ranks[0]}, but --network_dim is "
            f"{options.rank}.",
            f"Give --network_dim {ranks[0]}, or --dim_from_weights.",
            names=("network_weights", "network_dim"),
        )


def _given(job: Job, expert: Expert, dit: nn.Module) -> LoraFile | None:
    """The `--network_weights` of an expert."""
    if not expert.network_weights:
        return None
    role = f"--network_weights{expert.ending}"
    return read_lora(expert.network_weights, lora_target(job.family, dit), role=role)


def _created(job: Job, given: LoraFile | None, dit: nn.Module, seed: int) -> lora.LoraNetwork:
    """New adapters, shaped by the options or like those in `given`."""
    options, keys = job[Network], part(job.family, "keys")
    arguments = read_network_arguments(options.network_module, options.network_args)
    if given and options.dim_from_weights:
        return lora.create_like(dit, given.modules, dropout=options.network_dropout, seed=seed, **arguments.like)
    return lora.create(
        dit,
        block_classes=keys.LORA_BLOCKS,
        exclude="" if arguments.all_linear else keys.LORA_EXCLUDE,
        dim=options.rank,
        alpha=options.network_alpha,
        dropout=options.network_dropout,
        seed=seed,
        **arguments.create,
    )


def _network(job: Job, expert: Expert, dit: nn.Module, seed: int, say: Say) -> lora.LoraNetwork:
    """New adapters for one expert, or those of its `--network_weights`."""
    options = job[Network]
    arguments = read_network_arguments(options.network_module, options.network_args)
    given = _given(job, expert, dit)
    network = _created(job, given, dit, seed)
    if given:
        if options.dim_from_weights and options.network_dim is not None:
            text = f"--network_dim {options.network_dim} is ignored: --dim_from_weights takes the rank of the file."
            say(Warning_(message=text))
        alphas = sorted({weights.alpha for weights in given.modules.values()})
        if not options.dim_from_weights and alphas != network.alphas:
            shown = ", ".join(f"{alpha:g}" for alpha in alphas)
            say(Log(message=f"{given.path.name} keeps its own alpha, {shown}; --network_alpha is not used."))
        report_unmatched(given, say)
        if given.differences:
            text = f"{given.path.name} also changes {len(given.differences)} parameters in full, which is left out."
            hint = "An adapter cannot hold that: merge the file with --base_weights to keep it."
            say(Warning_(message=f"--network_weights{expert.ending}: {text} {hint}"))
        network.load_state(to_default(given.modules))
    count = sum(parameter.numel() for parameter in network.parameters())
    kinds, ranks = " and ".join(network.kinds), ", ".join(map(str, network.ranks))
    say(Log(message=f"{kinds} of rank {ranks} on {len(network.paths)} modules, {count / 1e6:.1f} M parameters."))
    if "conv_dim" in arguments.values and not network.has_wide_convolutions:
        say(Warning_(message="--network_args conv_dim has no effect: no wide convolution of this model is adapted."))
    if arguments.values.get("verbose"):
        for name, path in network.paths.items():
            say(Log(message=f"{name}: {path}"))
    return network
