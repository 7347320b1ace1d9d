"""The DiT of a job, which may be several experts over the noise levels: loading them, and having them take turns.

Training and generation do it alike. One expert for all levels is the ordinary case: then nothing here ever turns.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..contract.errors import OptionError, WeightsError
from ..contract.events import Log, Say, Warning_
from ..contract.job import Job
from ..contract.options import LoraStack, Memory, Network, TrainingModels
from ..families import part
from ..families.values import Expert
from ..lora.network import LoraNetwork
from ..lora.several import LoraNetworks
from ..memory.estimate import GIB
from ..memory.exchange import WeightSets
from ..memory.resting import weights_in
from ..memory.rules import check_streamed
from ..memory.sharing import Company, SharedBlocks, Shares
from ..memory.slots import COMPILED_WITH_GRAPHS
from ..memory.streaming import BlockStream
from ..memory.waiting import OnDisk
from ..ops.device import free_memory
from ..parts.weights import open_weights
from ..training.experts import TrainedExperts
from .denoiser import Loras, arrange_blocks, load_dit, meta_dit, read_loras
from .kept import Key, stamps
from .loading import loading_is_told
from .needs import needed


def experts_of(job: Job) -> tuple[Expert, ...]:
    """The experts of a training or a generation, ascending by noise level; mostly there is one."""
    return (_main_expert(job), *further_experts(job))


def further_experts(job: Job) -> tuple[Expert, ...]:
    """Those beside the one of `--dit`, which few families have."""
    tell = getattr(part(job.family, "options"), "further_experts", None)
    return tell(job) if tell else ()


def _main_expert(job: Job) -> Expert:
    if Network in job:
        network = job[Network]
        return Expert(
            dit=job[TrainingModels].dit,
            loras=network.base_weights,
            multipliers=network.base_weights_multiplier,
            network_weights=network.network_weights,
        )
    files, stack = part(job.family, "options").files(job), job[LoraStack]
    dit = needed(files["dit"], "--dit", "the DiT file")
    return Expert(dit=dit, loras=stack.lora_weight, multipliers=stack.multipliers)


class Experts:
    """One module, `dit`, in which the experts of a job take turns. The highest is first: videos begin in noise."""

    def __init__(self, job: Job, *, device: torch.device, weight_format: str, attention_backend: str, say: Say):
        self.members = experts_of(job)
        self._job, self._device, self._say = job, device, say
        self._format = {"weight_format": weight_format, "attention_backend": attention_backend}
        self._first = len(self.members) - 1
        self._adapters: LoraNetworks | None = None
        self._shares: Shares | None = None
        self._stream: Any = None
        self._sets: WeightSets | None = None

    def check(self) -> nn.Module:
        """Refuse now a file that is missing, damaged, of another kind or of another shape than the first, and more
        streamed blocks than there are.

        Returns the DiT without weights.
        """
        for note in getattr(part(self._job.family, "options"), "notes", lambda job: ())(self._job):
            self._say(Warning_(message=note))
        main, *further = (meta_dit(self._job, expert.dit, role=expert.flag) for expert in self.members)
        for expert, dit in zip(self.members[1:], further, strict=True):
            if _shapes(dit) != _shapes(main):
                raise WeightsError(
                    f"--dit and {expert.flag} are models of different shapes.",
                    "Experts of one model have the same shapes. Were the files mixed up?",
                )
        check_streamed(self._job[Memory].blocks_to_swap or 0, len(self._blocks(main)))
        files = {open_weights(expert.dit, role=expert.flag).identity() for expert in self.members} if further else ()
        if further and len(files) < len(self.members):
            self._say(Warning_(message="Two experts have the same weights: was one file given twice?"))
        _ = self.loras
        return main

    @cached_property
    def loras(self) -> list[Loras]:
        """For each expert what is merged into it, read whole: a wrong one is known before anything large is loaded."""
        role, patterns = ("--base_weights", {}) if Network in self._job else ("--lora_weight", _patterns(self._job))
        return [
            read_loras(
                self._job, expert.dit, expert.loras, expert.multipliers, role=role + expert.ending, say=self._say,
                **patterns,
            )
            for expert in self.members
        ]  # fmt: skip

    def share_out(self, company: Company) -> None:
        """Have the base shared out over these processes when it is loaded, which is to come. OptionError."""
        if company.count == 1:
            raise OptionError(
                "--shard_base shares the base out over several processes, but this is the only one.",
                "Add --num_processes 2 (a GPU for each), or leave out --shard_base.",
                names=("shard_base", "num_processes"),
            )
        if len(self.members) > 1:
            raise OptionError(
                f"--shard_base shares out one DiT, but {len(self.members)} take turns in this training.",
                f"Train one expert at a time (leave out {self.members[-1].flag}), or leave out --shard_base.",
                names=("shard_base",),
            )
        self._shares = Shares(company, device=self._device)

    @property
    def shared(self) -> SharedBlocks | None:
        """The blocks of a base that is shared out."""
        return self._stream if self._shares is not None else None

    def key(self) -> Key:
        """All that decides what is loaded for a generation and how it is arranged."""
        files = [stamp for expert in self.members for stamp in stamps(expert.dit, role=expert.flag)]
        for expert in self.members:
            files += [stamp for path in expert.loras for stamp in stamps(path, role="--lora_weight")]
        arguments = part(self._job.family, "options").dit_arguments(self._job)
        told = self._job.family, self._device, self.members, self._format, _patterns(self._job), arguments
        return Key(repr((*told, self._job[Memory])), tuple(files))

    @property
    def may_rest(self) -> bool:
        """Whether the weights may leave the device for a while: not from under recorded CUDA graphs, and those of
        experts that wait in their files are not worth it."""
        if len(self.members) > 1 and self._waits == "file":
            return False
        return not any(hasattr(block, COMPILED_WITH_GRAPHS) for block in self._blocks(self.dit))

    def weights(self) -> Iterator[Tensor]:
        """Those of all experts, streamed ones aside."""
        yield from weights_in(self.dit)
        if self._sets is not None:
            yield from self._sets.waiting()

    @property
    def stream(self) -> BlockStream | None:
        """What streams the blocks."""
        return self._stream if self._shares is None else None

    def go_on(self, job: Job, say: Say) -> None:
        """Work for another job of the same key."""
        self._job, self._say = job, say

    @cached_property
    def dit(self) -> nn.Module:
        """The frozen module, loaded when it is first looked at. `arrange` comes next, after adapters are attached."""
        return self._load(self._first)

    def adapt(self, networks: Sequence[LoraNetwork]) -> LoraNetwork | LoraNetworks:
        """Take over the LoRA of each expert, attached to `dit`, and give them as one. For training."""
        if len(networks) == 1:
            return networks[0]
        names = [expert.name for expert in self.members]
        self._adapters = LoraNetworks(dict(zip(names, networks, strict=True)))
        return self._adapters

    def arrange(self, **how: Any) -> None:
        """Compile, stream and checkpoint the blocks (denoiser.py, `arrange_blocks`), and get ready for turns."""
        memory = self._job[Memory]
        if memory.compile:
            self._say(Log(message=f"The blocks are compiled by {memory.compile_backend}: the first step takes longer."))
        dit = self.dit
        with loading_is_told(self._say, label="Moving blocks to main memory"):
            self._stream = arrange_blocks(self._job, dit, device=self._device, shares=self._shares, **how)
        if isinstance(self._stream, BlockStream) and isinstance(self._stream.home, OnDisk):
            self._say(Log(message=f"Streamed blocks are read from disk at {self._stream.home.speed() / 1e9:.1f} GB/s."))
        if self._shares is not None:
            kept = self._shares.device_bytes + self._shares.outside_bytes(self.dit)
            many = self._shares.company.count
            self._say(Log(message=f"The base is shared out over {many} processes: {kept / GIB:.2f} GiB each."))
        if len(self.members) > 1:
            self._sets = WeightSets(
                self.dit,
                self._blocks(self.dit),
                self._first,
                self._load_further,
                stream=self._stream,
                keep=self._waits != "file",
                pinned=memory.use_pinned_memory_for_block_swap and self._device.type == "cuda",
            )

    def use(self, number: int) -> None:
        """Have the expert of this number in the module. Between steps only."""
        if self._sets is not None:
            self._sets.use(number)
        if self._adapters is not None:
            self._adapters.use(number)

    def number_at(self, sigma: float) -> int:
        """Whose level this is."""
        return bisect_right([expert.starts_at for expert in self.members], sigma) - 1

    def levels(self, number: int) -> tuple[float, float]:
        """The sigmas that an expert works at."""
        starts = [expert.starts_at for expert in self.members]
        return starts[number], [*starts, 1.0][number + 1]

    def trained(self) -> TrainedExperts | None:
        """How they take turns in training; None for one alone."""
        if len(self.members) == 1:
            return None
        starts, names = zip(*((expert.starts_at, expert.name) for expert in self.members), strict=True)
        return TrainedExperts(starts=starts, names=names, use=self.use)

    @property
    def _waits(self) -> str:
        return self.members[-1].waits

    def _load(self, number: int, *, dtype: torch.dtype | None = None, waiting: bool = False) -> nn.Module:
        expert = self.members[number]
        return load_dit(
            self._job,
            expert.dit,
            role=expert.flag,
            device=self._device,
            loras=self.loras[number],
            say=self._say,
            dtype=dtype,
            waiting=waiting,
            shares=self._shares,
            **self._format,
        )

    def _load_further(self, number: int) -> tuple[nn.Module, nn.ModuleList]:
        free_memory(self._device)  # what waits in its file has just been let go
        dit = self._load(number, dtype=self.dit.dtype, waiting=self._waits == "memory")
        return dit, self._blocks(dit)

    def _blocks(self, dit: nn.Module) -> nn.ModuleList:
        return part(self._job.family, "model").blocks(dit)


def _patterns(job: Job) -> dict[str, Sequence[str]]:
    return {"include": job[LoraStack].include_patterns, "exclude": job[LoraStack].exclude_patterns}


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}
