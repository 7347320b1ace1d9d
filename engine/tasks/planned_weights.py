"""A DiT as it will lie in memory, from the header of its checkpoint: bytes of each block, parameters of its adapters.

Follows what loading does (denoiser.py): one number format for all weights, fp8 for those that the family's keys name;
and what of it goes to a scratch file where it waits on disk (`planned_scratch.py`, which puts several DiTs together).
Also turns a job's options into what the formulas take. Imports torch for a PyTorch file, and where planned_scratch.py
needs it.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from ..contract.job import Job
from ..contract.options import (
    Attention,
    AttentionMode,
    GenerationPrecision,
    Launch,
    Memory,
    Network,
    Optimizer,
    Processes,
    Run,
    Training,
    TrainingMemory,
    TrainingPrecision,
)
from ..families import part
from ..lora.kronecker import lokr_shapes
from ..memory.activations import FLOAT, HALF, How
from ..memory.estimate import OPTIMIZER_BYTES, OTHER_OPTIMIZER_BYTES, Weights
from ..memory.machine import find_card, joins_freed_memory
from ..memory.rules import FP8_PRODUCTS, fp8_mode, stays_in_file
from ..ops.fp8_scales import scale_bytes
from ..parts.arrangement import Rows, arranged_shapes
from ..parts.scratch_place import aligned
from ..parts.weight_headers import NUMBER_BYTES, Headers, read_headers
from ..parts.workload import Work
from .planned_scratch import Count, PlannedScratch

WHOLE_TILES: Mapping[str, Literal["always", "kept"]] = {"auto": "always", "8bit": "always", "sdpa": "kept"}
"""By --sdpa and the like: where gradients of attention go through ops/kept_attention.py, in 8 bits those of short
attention."""
Shapes = Mapping[str, tuple[int, ...]]
FORMATS = {"float": "F32", "float32": "F32", "fp32": "F32", "no": "F32", "float16": "F16", "fp16": "F16",
           "bfloat16": "BF16", "bf16": "BF16"}  # fmt: skip
"""The words of ops/device.py, in the format's own."""
_WITH_NUMBER = re.compile(r"(?P<prefix>.+?)\.(?P<number>\d+)\.")


@dataclass(frozen=True)
class _Tensor:
    """One weight of ours. `stored`: its format where a file has it whole, as it is read; None where none has."""

    name: str
    shape: tuple[int, ...]
    block: int | None
    may_be_fp8: bool
    stored: str | None

    @property
    def path(self) -> str:
        return self.name.rpartition(".")[0]

    def sizes(self, mode: str | None, each: int) -> tuple[int, ...]:
        """Bytes of its numbers, of which each takes so many unless they become fp8, and then of their scales."""
        numbers = math.prod(self.shape)
        if mode is None or not self.may_be_fp8:
            return (numbers * each,)
        return numbers, scale_bytes(mode, self.shape)


@dataclass
class PlannedDit:
    """The DiT of `path`, known by its header. `role` is the flag that names the file."""

    job: Job
    path: str
    role: str = "--dit"
    headers: Headers = field(init=False)
    config: Any = field(init=False)
    _counted: dict[tuple[str | None, int], Weights] = field(init=False, repr=False, compare=False, default_factory=dict)
    _adapted: tuple[Network, tuple[int, ...]] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        family = str(self.job.family)
        self.headers = read_headers(self.path, role=self.role)
        detect, keys = part(family, "detect"), part(family, "keys")
        source = f"{self.role} {self.path.replace(chr(92), '/').rpartition('/')[2]}"
        variant = detect.detect(self.headers.shapes, self.headers.metadata, source=source)
        task = part(family, "options").dit_arguments(self.job)["task"]
        if task is not None:
            detect.check_task(variant, task)
        self.config = variant.config
        arrangement = keys.arrange(self.headers.shapes)
        shapes = arranged_shapes(arrangement, self.headers.shapes, source=source)
        self._tensors = [
            _tensor(name, shape, self._places, keys.is_fp8_weight, self._stored(arrangement[name]))
            for name, shape in shapes.items()
        ]
        self._exclude = re.compile(keys.LORA_EXCLUDE)

    def work(self, job: Job, latent_size: tuple[int, int, int]) -> Work:
        """What its blocks work on."""
        work: Work = part(str(job.family), "options").dit_work(job, self.config, latent_size)
        return work

    @cached_property
    def _places(self) -> dict[tuple[str, int], int]:
        """(prefix, number) of a block -> which block that is, in the order in which they run."""
        runs = self.work(self.job, (1, 2, 2)).runs
        order = [(run.prefix, number) for run in runs for number in range(run.first, run.first + run.count)]
        return {place: index for index, place in enumerate(order)}

    @property
    def block_count(self) -> int:
        return len(self._places)

    @property
    def may_become_fp8(self) -> bool:
        """Not what is plain fp8 already: rounding it twice is refused when it is loaded."""
        return not self.headers.plain_fp8

    def weights(self, job: Job, *, trained: bool) -> Weights:
        """Its memory with these options; adapters when it is `trained`."""
        wanted = job[TrainingPrecision if trained else GenerationPrecision].weight_format
        mode = None if wanted == "stored" else fp8_mode(wanted, products=self._has_products)
        number_format = FORMATS.get(str(job.values().get("dit_dtype")).lower())
        resident = self._resident(mode, NUMBER_BYTES[number_format or self.headers.main_format])
        written = 0
        if job[Memory].streams_from_disk:
            written = self._scratch.size(job, mode=mode, number_format=number_format)
        return replace(
            resident,
            adapters=self._adapters(job) if trained else (),
            scratch=written,
            **_further(job, resident),
        )

    def scratch(self, mode: str | None, used_as: str, merged: Collection[str]) -> Count:
        """What each block would take of a scratch file, in this format. `merged`: weights that LoRAs change."""
        found = [0] * self.block_count
        for tensor in self._tensors:
            changed = tensor.name in merged or (mode is not None and tensor.may_be_fp8)
            if tensor.block is not None and not stays_in_file(
                changed=changed, stored_as=tensor.stored, used_as=used_as
            ):
                found[tensor.block] += sum(map(aligned, tensor.sizes(mode, NUMBER_BYTES[used_as])))
        return tuple(found)

    @cached_property
    def _scratch(self) -> PlannedScratch:
        further = _experts(self.job)
        others = [PlannedDit(self.job, expert.dit, expert.flag) for expert in further]
        return PlannedScratch(self.job, (self, *others), further)

    @cached_property
    def _has_products(self) -> bool:
        """Whether its GPU multiplies in fp8; one that is not here is thought of as a new one."""
        device = self.job[Run].device
        card = find_card(device)
        if card is None or card.capability is None:
            return device != "cpu"
        return card.capability >= FP8_PRODUCTS

    def _stored(self, parts: Sequence[Rows]) -> str | None:
        return self.headers.as_read(parts[0].name) if len(parts) == 1 and parts[0].whole else None

    def _resident(self, mode: str | None, each: int) -> Weights:
        """The weights alone, counted once for each format: a plan asks thousands of times."""
        if (mode, each) not in self._counted:
            outside, blocks = 0, [0] * self.block_count
            for tensor in self._tensors:
                size = sum(tensor.sizes(mode, each))
                if tensor.block is None:
                    outside += size
                else:
                    blocks[tensor.block] += size
            self._counted[mode, each] = Weights(outside=outside, blocks=tuple(blocks))
        return self._counted[mode, each]

    def _adapters(self, job: Job) -> tuple[int, ...]:
        """Parameters of the adapters of each block, those of all experts together."""
        network = job[Network]
        if self._adapted is None or self._adapted[0] != network:
            self._adapted = network, self._adapters_of_one(network)
        experts = 1 if network.dim_from_weights and network.network_weights else 1 + len(_experts(job))
        return tuple(experts * count for count in self._adapted[1])

    def _adapters_of_one(self, network: Network) -> tuple[int, ...]:
        found = [0] * self.block_count
        if network.dim_from_weights and network.network_weights:
            given = read_headers(network.network_weights, role="--network_weights")
            total = sum(map(math.prod, given.shapes.values()))
            return (total // max(1, self.block_count),) * self.block_count
        everywhere = network.network_module == "lycoris.kohya"
        for tensor in self._tensors:
            adapted = tensor.block is not None and len(tensor.shape) == 2
            if adapted and (everywhere or not self._exclude.fullmatch(tensor.path)):
                assert tensor.block is not None
                found[tensor.block] += adapter_parameters(network, *tensor.shape)
        return tuple(found)


def _tensor(
    name: str, shape: tuple[int, ...], places: Mapping[tuple[str, int], int], is_fp8: Any, stored: str | None
) -> _Tensor:
    path, _, last = name.rpartition(".")
    found = _WITH_NUMBER.match(name)
    block = places.get((found["prefix"], int(found["number"]))) if found else None
    may_be_fp8 = last == "weight" and len(shape) == 2 and bool(is_fp8(path))
    return _Tensor(name, shape, block, may_be_fp8, stored)


def adapter_parameters(network: Network, rows: int, columns: int) -> int:
    """Of one layer's adapter."""
    kind = " ".join((network.network_module, *network.network_args)).lower()
    rank = network.rank
    if "loha" in kind:
        return 2 * rank * (rows + columns)
    if "lokr" in kind:
        told = dict(argument.lower().partition("=")[::2] for argument in network.network_args)
        factor = told.get("factor", "")  # what is no number is refused where the adapters are made
        shapes = lokr_shapes(
            rows,
            columns,
            rank,
            factor=int(factor) if factor.isdecimal() else -1,
            whole=told.get("full_matrix") == "true",
            both=told.get("decompose_both") == "true",
        )
        return sum(map(math.prod, shapes.values()))
    return rank * (rows + columns)


def _experts(job: Job) -> tuple[Any, ...]:
    tell = getattr(part(str(job.family), "options"), "further_experts", None)
    return tuple(tell(job)) if tell else ()


def _further(job: Job, one: Weights) -> dict[str, int]:
    """What DiTs beside the first take: those that wait on the device are resident but for their streamed blocks, which
    are in main memory unless they are on disk."""
    count = {"device": 0, "memory": 0, "file": 0}
    for expert in _experts(job):
        count[expert.waits] += 1
    streamed = (job[Memory].blocks_to_swap or 0) / max(1, len(one.blocks))
    inside = int(sum(one.blocks) * streamed)
    waiting = count["memory"] * one.total + count["device"] * inside
    if job[Memory].streams_from_disk:
        waiting = count["memory"] * (one.total - inside)
    return {"others": count["device"] * (one.total - inside), "waiting": waiting}


def weight_bytes(headers: Headers, *, fp8: bool = False) -> int:
    """What a model beside the DiT takes in 16 bits, or with its matrices in fp8 (embeddings stay)."""
    found = 0
    for name, shape in headers.shapes.items():
        if name in ("tokenizer", "spiece_model"):
            continue
        matrix = len(shape) == 2 and not any(word in name for word in ("embed", "shared", "relative_attention"))
        found += math.prod(shape) * (1 if fp8 and matrix else HALF)
    return found


# -------------------------------------------------------------------------------------------------- options to numbers


def how_trained(job: Job, batch: int, *, alike: bool = False) -> How:
    """How a training runs its DiT. `alike`: each step does the same, on clips of one size and with no samples between.

    Where several processes tell each other their gradients, that takes memory of its own.
    """
    memory = job[TrainingMemory]
    return How(
        blocks_to_swap=memory.blocks_to_swap or 0,
        block_swap_ring_size=memory.block_swap_ring_size,
        block_swap_from_disk=memory.streams_from_disk,
        shared_by=shared_by(job),
        gradient_checkpointing=memory.gradient_checkpointing,
        gradient_checkpointing_blocks=memory.gradient_checkpointing_blocks,
        gradient_checkpointing_cpu_offload=memory.gradient_checkpointing_cpu_offload,
        gradient_checkpointing_attention=memory.gradient_checkpointing_attention,
        ffn_chunks=memory.ffn_chunks,
        compile=memory.compile,
        settles=alike and processes(job) == 1 and joins_freed_memory(),
        plain_quantizing=_quantizes_plainly(job[TrainingPrecision].weight_format),
        whole_tiles=WHOLE_TILES.get(job[Attention].backend, "never"),
        eight_bit=_in_8_bits(job),
        batch=batch,
        gradient_accumulation_steps=job[Training].gradient_accumulation_steps,
        optimizer_bytes=optimizer_bytes(job),
        parameter_bytes=HALF if job[Optimizer].full_bf16 else FLOAT,
        average_bytes=FLOAT if job[Network].use_ema and job[Network].ema_device != "cpu" else 0,
        fused_backward_pass=job[Optimizer].fused_backward_pass,
        optimizer_cpu_offload=memory.optimizer_cpu_offload,
    )


def how_generated(job: Job) -> How:
    """How a DiT runs without gradients."""
    precision = job[GenerationPrecision] if GenerationPrecision in job else job[TrainingPrecision]
    slots = {"block_swap_ring_size": job[TrainingMemory].block_swap_ring_size} if TrainingMemory in job else {}
    return How(
        blocks_to_swap=job[Memory].blocks_to_swap or 0,
        block_swap_from_disk=job[Memory].streams_from_disk,
        shared_by=shared_by(job),
        **slots,
        compile=job[Memory].compile,
        plain_quantizing=_quantizes_plainly(precision.weight_format),
        eight_bit=_in_8_bits(job),
    )


def _in_8_bits(job: Job) -> bool:
    """Whether attention is, if it is not short. A training's samples are made as it trains."""
    return job[AttentionMode if AttentionMode in job else Attention].backend == "8bit"


def shared_by(job: Job) -> int:
    """How many processes share out the base; 1: none does."""
    return processes(job) if Launch in job and job[Launch].shard_base else 1


def processes(job: Job, *, here: bool = False) -> int:
    """How many run the job, or how many of them on this machine. A launcher around us tells by variables."""
    around = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    if around > 1:
        return int(os.environ.get("LOCAL_WORLD_SIZE", around)) if here else around
    return job[Processes].num_processes if Processes in job else 1


def _quantizes_plainly(weight_format: str) -> bool:
    """Whether fp8 layers make do without their Triton kernel (ops/quantize_rows.py)."""
    return weight_format == "fp8_scaled" and not has_triton()


def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def optimizer_bytes(job: Job) -> float:
    """State for each parameter."""
    name = (job[Optimizer].optimizer_type or "adamw").lower().rpartition(".")[2]
    return OPTIMIZER_BYTES.get(name, OTHER_OPTIMIZER_BYTES)
