"""A DiT as it will lie in memory, from the header of its checkpoint: bytes of each block, parameters of its adapters.

Follows what loading does (denoiser.py): one number format for all weights, fp8 for those that the family's keys name.
Also turns a job's options into what the formulas take. Imports no torch.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Mapping
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
    Training,
    TrainingMemory,
    TrainingPrecision,
)
from ..families import part
from ..lora.kronecker import lokr_shapes
from ..memory.activations import FLOAT, HALF, How
from ..memory.estimate import OPTIMIZER_BYTES, OTHER_OPTIMIZER_BYTES, Weights
from ..parts.arrangement import arranged_shapes
from ..parts.weight_headers import Headers, read_headers
from ..parts.workload import Work

WHOLE_TILES: Mapping[str, Literal["always", "kept"]] = {"auto": "always", "8bit": "always", "sdpa": "kept"}
"""By --sdpa and the like: where gradients of attention go through ops/kept_attention.py."""
Shapes = Mapping[str, tuple[int, ...]]
ROW_SCALE = 4  # bytes: each row of an fp8 weight has one
DTYPE_BYTES = {"float32": FLOAT, "fp32": FLOAT}  # all others that an option may name have 16 bits
_WITH_NUMBER = re.compile(r"(?P<prefix>.+?)\.(?P<number>\d+)\.")


@dataclass(frozen=True)
class _Tensor:
    """One weight of ours: numbers, what it takes in fp8 (None: it stays as it is), parameters of a LoRA of rank 1."""

    path: str
    shape: tuple[int, ...]
    block: int | None
    numbers: int
    fp8: int | None


@dataclass
class PlannedDit:
    """The DiT of `path`, known by its header."""

    job: Job
    path: str
    headers: Headers = field(init=False)
    config: Any = field(init=False)
    _counted: dict[tuple[bool, int], Weights] = field(init=False, repr=False, compare=False, default_factory=dict)
    _adapted: tuple[Network, tuple[int, ...]] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        family = str(self.job.family)
        self.headers = read_headers(self.path, role="--dit")
        detect, keys = part(family, "detect"), part(family, "keys")
        source = f"--dit {self.path.replace(chr(92), '/').rpartition('/')[2]}"
        variant = detect.detect(self.headers.shapes, self.headers.metadata, source=source)
        task = part(family, "options").dit_arguments(self.job)["task"]
        if task is not None:
            detect.check_task(variant, task)
        self.config = variant.config
        shapes = arranged_shapes(keys.arrange(self.headers.shapes), self.headers.shapes, source=source)
        self._tensors = [_tensor(name, shape, self._places, keys.is_fp8_weight) for name, shape in shapes.items()]
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
        precision = job[TrainingPrecision if trained else GenerationPrecision]
        each = DTYPE_BYTES.get(str(job.values().get("dit_dtype")), 0) or self._number_bytes
        resident = self._resident(precision.weight_format != "stored", each)
        return replace(resident, adapters=self._adapters(job) if trained else (), **_further(job, resident))

    @cached_property
    def _number_bytes(self) -> int:
        return self.headers.number_bytes

    def _resident(self, in_fp8: bool, each: int) -> Weights:
        """The weights alone, counted once for each format: a plan asks thousands of times."""
        if (in_fp8, each) not in self._counted:
            outside, blocks = 0, [0] * self.block_count
            for tensor in self._tensors:
                size = tensor.fp8 if in_fp8 and tensor.fp8 is not None else tensor.numbers * each
                if tensor.block is None:
                    outside += size
                else:
                    blocks[tensor.block] += size
            self._counted[in_fp8, each] = Weights(outside=outside, blocks=tuple(blocks))
        return self._counted[in_fp8, each]

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


def _tensor(name: str, shape: tuple[int, ...], places: Mapping[tuple[str, int], int], is_fp8: Any) -> _Tensor:
    path, _, last = name.rpartition(".")
    found = _WITH_NUMBER.match(name)
    block = places.get((found["prefix"], int(found["number"]))) if found else None
    numbers = math.prod(shape)
    fp8 = numbers + ROW_SCALE * shape[0] if last == "weight" and len(shape) == 2 and is_fp8(path) else None
    return _Tensor(path, shape, block, numbers, fp8)


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
            factor=int(factor) if factor.isdigit() else -1,
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
    if job[Memory].block_swap_from_disk:
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


def how_trained(job: Job, batch: int) -> How:
    """How a training runs its DiT."""
    memory = job[TrainingMemory]
    return How(
        blocks_to_swap=memory.blocks_to_swap or 0,
        block_swap_ring_size=memory.block_swap_ring_size,
        block_swap_from_disk=memory.block_swap_from_disk,
        shared_by=shared_by(job),
        gradient_checkpointing=memory.gradient_checkpointing,
        gradient_checkpointing_blocks=memory.gradient_checkpointing_blocks,
        gradient_checkpointing_cpu_offload=memory.gradient_checkpointing_cpu_offload,
        gradient_checkpointing_attention=memory.gradient_checkpointing_attention,
        ffn_chunks=memory.ffn_chunks,
        compile=memory.compile,
        plain_quantizing=_quantizes_plainly(job[TrainingPrecision].weight_format),
        whole_tiles=WHOLE_TILES.get(job[Attention].backend, "never"),
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
        block_swap_from_disk=job[Memory].block_swap_from_disk,
        shared_by=shared_by(job),
        **slots,
        compile=job[Memory].compile,
        plain_quantizing=_quantizes_plainly(precision.weight_format),
        eight_bit=job[AttentionMode if AttentionMode in job else Attention].backend == "8bit",
    )


def shared_by(job: Job) -> int:
    """How many processes share out the base; 1: none does. An outer launcher tells their number by a variable."""
    if Launch not in job or not job[Launch].shard_base:
        return 1
    around = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    return max(job[Launch].num_processes, around)


def _quantizes_plainly(weight_format: str) -> bool:
    """Whether fp8 layers make do without their Triton kernel (ops/quantize_rows.py)."""
    return weight_format == "fp8_scaled" and not has_triton()


def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def optimizer_bytes(job: Job) -> float:
    """State for each parameter."""
    name = (job[Optimizer].optimizer_type or "adamw").lower().rpartition(".")[2]
    return OPTIMIZER_BYTES.get(name, OTHER_OPTIMIZER_BYTES)
