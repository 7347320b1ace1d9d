"""Loads and arranges the DiT as a job asks: LoRAs merged, weights in fp8, blocks compiled, streamed, checkpointed.

Training and generation do the same to the same blocks in the same order, so both do it here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..contract.events import Log, Say, Stage
from ..contract.job import Job
from ..contract.options import Memory
from ..families import part
from ..lora.files import LoraFile
from ..lora.merge import Transform, changed_by, load_loras, merger, refuse_other_size, select
from ..memory.checkpointing import checkpoint_blocks
from ..memory.compile import compile_blocks
from ..memory.disk_loading import LeaveOnDisk
from ..memory.estimate import GIB
from ..memory.fp8 import QuantizeOnLoad, has_fp8_products, quantize_model
from ..memory.pieces import run_in_pieces
from ..memory.recomputing import tell_what_learns
from ..memory.rules import fp8_mode
from ..memory.sharing import ShareOnLoad, Shares, share_blocks
from ..memory.streaming import spread, stream_blocks
from ..parts.scratch_place import scratch_folder
from ..parts.weights import Unread, WorkedOn, open_weights
from .loading import loading_is_told
from .lora_targets import lora_target

Loras = Sequence[tuple[LoraFile, float]]


def tune_backends(memory: Memory) -> None:
    """Set torch's switches for CUDA backends, which apply to the whole process."""
    torch.backends.cuda.matmul.allow_tf32 = memory.cuda_allow_tf32
    torch.backends.cudnn.allow_tf32 = memory.cuda_allow_tf32
    torch.backends.cudnn.benchmark = memory.cuda_cudnn_benchmark
    torch.backends.cuda.matmul.allow_fp16_accumulation = memory.fp16_accumulation


def meta_dit(job: Job, dit_path: str, *, role: str = "--dit") -> nn.Module:
    """The DiT without weights, its shapes taken from the checkpoint's header. Refuses a wrong file early.

    `role` is the flag that names the file.
    """
    file, detect = open_weights(dit_path, role=role), part(job.family, "detect")
    variant = detect.detect(file.shapes, file.metadata, source=f"{role} {file.path.name}")
    task = part(job.family, "options").dit_arguments(job)["task"]
    if task is not None:
        detect.check_task(variant, task)
    return part(job.family, "model").build(variant.config)


def read_loras(
    job: Job,
    dit_path: str,
    paths: Sequence[str],
    multipliers: Sequence[float],
    *,
    role: str,
    say: Say,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Loras:
    """A stack of LoRA files for this DiT. `include`, `exclude`: a regular expression for each file, or fewer."""
    if not paths:
        return []
    target = lora_target(job.family, meta_dit(job, dit_path))
    stack = load_loras(paths, multipliers, target=target, say=say, role=role)
    for file, _ in stack:
        refuse_other_size(file, target)
    return [
        (select(file, include=include[index : index + 1], exclude=exclude[index : index + 1]), multiplier)
        for index, (file, multiplier) in enumerate(stack)
    ]


def load_dit(
    job: Job,
    path: str,
    *,
    device: torch.device,
    loras: Loras = (),
    weight_format: str = "stored",
    attention_backend: str = "auto",
    say: Say,
    dtype: torch.dtype | None = None,
    waiting: bool = False,
    role: str = "--dit",
    shares: Shares | None = None,
) -> nn.Module:
    """The frozen DiT, loaded to `device`, or to where its streamed blocks wait: main memory or disk (`arrange_blocks`).

    `weight_format`: "stored", "fp8" or "fp8_scaled". LoRAs are merged before weights become fp8. `dtype` None: the
    file's. `waiting`: load to main memory for now, for later use on `device`. `role`: the flag that names the file.
    `shares`, empty at first, is filled with this process's part of the blocks, which then hold no weights themselves.
    """
    model = part(job.family, "model")
    say(Stage(name="Loading the DiT", message=f"{path} on {device}"))
    wanted, quantizer = _changes(job, path, loras, weight_format, device=device, role=role, say=say)
    memory = job[Memory]
    from_disk = memory.streams_from_disk
    home = torch.device("cpu") if waiting or (memory.blocks_to_swap and not from_disk) else device
    load = partial(
        model.load,
        path,
        device=home,
        dtype=dtype,
        role=role,
        attention_backend=attention_backend,
        **part(job.family, "options").dit_arguments(job),
    )
    if shares is not None or from_disk:
        sketch = load(transform=Unread())
        if quantizer is not None:
            quantize_model(sketch, wanted=quantizer.names.__contains__, mode=quantizer.mode)
        blocks = model.blocks(sketch)
    if shares is not None:
        shares.plan(sketch, blocks)
        wanted = ShareOnLoad(shares, wanted)
    elif from_disk:
        streamed = [blocks[index] for index in spread(memory.blocks_to_swap or 0, len(blocks))]
        changed = {name for file, _ in loras for name in changed_by(file)} | (quantizer.changed if quantizer else set())
        wanted = left = LeaveOnDisk(sketch, streamed, wanted, changed=changed, device=device)
    elif wanted is not None and home != device:
        wanted = WorkedOn(wanted, device)
    with loading_is_told(say, label="Loading the DiT"):
        dit = load(transform=wanted)
    if from_disk:
        say(Log(message=f"{len(streamed)} blocks wait on disk: {_waits_where(left)}."))
    say(Log(message=f"This is {dit.variant.name}: {len(model.blocks(dit))} blocks, weights in {_word(dit.dtype)}."))
    if quantizer is not None:
        count = len(quantizer.install(dit))
        how = "not scaled" if quantizer.mode == "cast" else f"scaled by {quantizer.mode}"
        say(Log(message=f"{count} layers are kept in fp8, {how}."))
    return dit


def _changes(
    job: Job, path: str, loras: Loras, weight_format: str, *, device: torch.device, role: str, say: Say
) -> tuple[Transform | None, QuantizeOnLoad | None]:
    """What is done to weights as they are read, LoRAs merged and then fp8; and that which makes them fp8 by itself."""
    for file, multiplier in loras:
        say(Log(message=f"Merging {file.path.name} at {multiplier:g}: {len(file.modules)} modules."))
    transform = merger(loras) if loras else None
    if weight_format == "stored":
        return transform, None
    quantizer = QuantizeOnLoad(
        meta_dit(job, path, role=role),
        wanted=part(job.family, "keys").is_fp8_weight,
        mode=fp8_mode(weight_format, products=has_fp8_products(device)),
        before=transform,
    )
    return quantizer, quantizer


def _waits_where(left: LeaveOnDisk) -> str:
    written = f", {left.scratch_bytes / GIB:.2f} GiB in {scratch_folder()}" if left.scratch_bytes else ""
    return f"{left.mapped_bytes / GIB:.2f} GiB in the checkpoint{written}"


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def arrange_blocks(
    job: Job,
    dit: nn.Module,
    *,
    device: torch.device,
    slots: int = 2,
    pinned: bool = False,
    ffn_chunks: int = 1,
    checkpointing: Mapping[str, Any] | None = None,
    learning: Callable[[nn.Module], Sequence[nn.Parameter] | None] | None = None,
    shares: Shares | None = None,
) -> Any:
    """Cut up, compile, stream or share out, and checkpoint the blocks, in this order, after adapters are attached.

    `checkpointing`: arguments for `checkpoint_blocks`; None: no checkpointing. `learning`: see `tell_what_learns`.
    `shares`: those that the blocks were loaded through. Returns what fetches weights for the blocks, None if nothing.
    """
    memory, blocks = job[Memory], part(job.family, "model").blocks(dit)
    if learning is not None:
        tell_what_learns(blocks, learning)
    if ffn_chunks > 1:
        run_in_pieces(blocks, ffn_chunks)
    if memory.compile:
        compile_blocks(
            blocks,
            backend=memory.compile_backend,
            mode=memory.compile_mode,
            dynamic={"true": True, "false": False}.get(memory.compile_dynamic),
            fullgraph=memory.compile_fullgraph,
            cache_size_limit=memory.compile_cache_size_limit,
        )
    stream = None
    if memory.blocks_to_swap:
        inside = {id(parameter) for parameter in blocks.parameters()}
        for child in dit.children():
            if not inside & {id(parameter) for parameter in child.parameters()}:
                child.to(device)
        pinned = pinned or memory.use_pinned_memory_for_block_swap
        stream = stream_blocks(
            blocks,
            memory.blocks_to_swap,
            device=device,
            slots=slots,
            pinned=pinned,
            from_disk=memory.streams_from_disk,
        )
    if shares is not None:
        stream = share_blocks(blocks, shares, slots=slots)
    if checkpointing:
        checkpoint_blocks(blocks, **checkpointing)
    return stream
