"""Options that trade memory for time: block streaming, checkpointing, compilation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import OptionError
from ..schema import Section, opt, redefault
from .accepted import ACCEPTED

DYNAMO_BACKENDS = (
    "NO", "EAGER", "AOT_EAGER", "INDUCTOR", "AOT_TS_NVFUSER", "NVPRIMS_NVFUSER", "CUDAGRAPHS", "OFI", "FX2TRT",
    "ONNXRT", "TENSORRT", "AOT_TORCHXLA_TRACE_ONCE", "TORCHXLA_TRACE_ONCE", "TVM", "HPU_BACKEND", "NEURON",
)  # fmt: skip
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:G|GB|GiB)?", re.IGNORECASE)
CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


@dataclass(frozen=True, kw_only=True)
class MemoryPlan(Section, title="Memory and speed"):
    """Fitting a job into the graphics card."""

    memory: Literal["off", "auto"] = opt(
        "off", "auto: before anything is loaded, choose what makes the job fit the GPU (--blocks_to_swap, "
        "--gradient_checkpointing, --fp8_scaled, VAE tiles …, and --block_swap_from_disk where main memory is short) "
        "on top of what is asked for, and after running out of memory go on once with less. `plan` shows what it would "
        "choose.",
    )  # fmt: skip
    vram: str | None = opt(
        None, "Plan for a GPU of this size, such as 12GB, and with --memory auto take no more. Default: what is free.",
        metavar="SIZE",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_vram(self.vram)


def vram_gib(vram: str) -> float:
    """`12GB`, `12` or `11.5 GiB` in GiB: cards are named in GB and have GiB. ValueError for anything else."""
    found = _SIZE.fullmatch(vram.strip())
    if not found or float(found[1]) <= 0:
        raise ValueError(vram)
    return float(found[1])


def check_vram(vram: str | None) -> None:
    """OptionError unless it is a size or None."""
    try:
        if vram is not None:
            vram_gib(vram)
    except ValueError:
        raise OptionError(
            f"--vram {vram}: not a size.", hint="Write it in GB, such as --vram 12GB.", names=("vram",)
        ) from None


@dataclass(frozen=True, kw_only=True)
class Memory(Section, title="Memory and speed", accepted=ACCEPTED):
    """Trading time for memory, and compiling for time."""

    blocks_to_swap: int | None = opt(
        None, "Keep this many of the model's blocks in main memory (with "
              "--block_swap_from_disk: on disk) and stream each to the GPU when it is due.", low=0, unit="blocks",
    )  # fmt: skip
    use_pinned_memory_for_block_swap: bool = opt(
        False, "Pin the streamed blocks in main memory: faster copies; on Windows it uses shared GPU memory.",
        advanced=True,
    )  # fmt: skip
    block_swap_from_disk: bool = opt(
        False, "Leave the streamed blocks on disk and read each shortly before it runs: main memory holds one for each "
        "GPU buffer, but steps are as slow as the disk where the system's cache has no room for the model. Weights "
        "that are not used as they are stored (fp8, merged LoRAs) wait in a temporary file: in the folder that the "
        "environment variable MUSUBI_SCRATCH names, else in MUSUBI_HOME. How many blocks: --blocks_to_swap, or as many "
        "as --memory auto chooses.", advanced=True,
    )  # fmt: skip
    disable_numpy_memmap: bool = opt(
        False, "Read model files instead of mapping them into memory: more main memory, sometimes faster.",
        advanced=True,
    )  # fmt: skip
    compile: bool = opt(False, "Compile the blocks with torch.compile; needs Triton.")
    compile_backend: str = opt("inductor", "Backend of torch.compile.", advanced=True)
    compile_mode: CompileMode = opt("default", "Mode of torch.compile.", advanced=True)
    compile_dynamic: Literal["true", "false", "auto"] = opt("auto", "Compile for changing shapes.", advanced=True)
    compile_fullgraph: bool = opt(
        False, "Fail when a block cannot be compiled as one graph. Not together with split attention.", advanced=True
    )
    compile_cache_size_limit: int | None = opt(
        None, "How many compiled versions of a block may exist; 32 suits datasets with many buckets. Default: "
        "PyTorch's.", low=1, advanced=True,
    )  # fmt: skip
    cuda_allow_tf32: bool = opt(False, "Let fp32 products use TF32 on Ampere and newer GPUs.", advanced=True)
    cuda_cudnn_benchmark: bool = opt(
        False, "Let cuDNN try its algorithms for each new shape and keep the fastest.", advanced=True
    )
    fp16_accumulation: bool = opt(
        False, "Accumulate fp16 products in fp16: faster on GeForce cards, less exact. No effect on a "
               "model that computes in another format.", advanced=True,
    )  # fmt: skip

    @property
    def streams_from_disk(self) -> bool:
        """Whether there are streamed blocks that wait on disk: with --memory auto there may be none."""
        return self.block_swap_from_disk and bool(self.blocks_to_swap)

    def __post_init__(self) -> None:
        chosen_later = getattr(self, "memory", "off") == "auto"
        if self.block_swap_from_disk and not self.blocks_to_swap and not chosen_later:
            raise OptionError(
                "--block_swap_from_disk says where streamed blocks wait, but none is streamed.",
                hint="Add --blocks_to_swap with a number of blocks, or --memory auto, which chooses how many.",
                names=("block_swap_from_disk", "blocks_to_swap"),
            )


@dataclass(frozen=True, kw_only=True)
class TrainingMemory(Memory, title="Memory and speed", accepted=ACCEPTED):
    """Trading time for memory, and compiling for time."""

    gradient_checkpointing: bool = opt(
        False, "Recompute activations in the backward pass instead of keeping them: far less memory, about a third "
               "slower.",
    )  # fmt: skip
    gradient_checkpointing_cpu_offload: bool = opt(
        False, "Keep the checkpoints in main memory. Needs --gradient_checkpointing.", advanced=True
    )
    gradient_checkpointing_attention: Literal["auto", "keep", "recompute"] = opt(
        "auto", "Whether checkpoints also keep the results of attention: a tenth to a seventh faster "
                "for twice the memory of checkpoints, same numbers. auto keeps them if the GPU has "
                "room, and always if they wait in main memory.", advanced=True,
    )  # fmt: skip
    gradient_checkpointing_blocks: int | None = opt(
        None, "Checkpoint only the first N blocks; the others keep everything they compute, "
              "which saves most of their recomputation but takes much memory. Needs "
              "--gradient_checkpointing. Default: all.", low=1, unit="blocks",
        advanced=True,
    )  # fmt: skip
    optimizer_cpu_offload: bool = opt(
        False, "Keep the optimizer's state and the gradients in main memory except during its step: with AdamW this "
               "saves up to 12 bytes of GPU memory per parameter of the LoRA, for the same numbers and about 0.03 "
               "seconds a step.",
        advanced=True,
    )  # fmt: skip
    block_swap_h2d_only: bool = opt(
        False, "Stream blocks one way only, since frozen weights need no copy back: faster. Needs "
        "--gradient_checkpointing.", advanced=True,
    )  # fmt: skip
    block_swap_ring_size: int = opt(
        2, "GPU buffers for streamed blocks, and for those of --shard_base: 2 overlaps copying with computing, 1 uses "
        "the least memory.", low=1, unit="blocks", advanced=True,
    )  # fmt: skip
    img_in_txt_in_offloading: bool = opt(False, "Keep the embedders in main memory.", advanced=True)
    ffn_chunks: int = opt(
        1, "Compute feed-forward layers, and everything else in a block that treats each token by "
           "itself, in this many pieces: a half to a third of the memory at the peak of a step, a few "
           "percent slower.", low=1, high=64,
        unit="pieces", advanced=True,
    )  # fmt: skip
    dynamo_backend: str = opt(
        "NO", "Set --compile and --compile_backend, by accelerate's name for the backend; NO sets nothing.",
        choices=DYNAMO_BACKENDS, advanced=True,
    )  # fmt: skip
    dynamo_mode: Literal["default", "reduce-overhead", "max-autotune"] | None = opt(
        None, "Set --compile_mode, together with --dynamo_backend.", advanced=True
    )
    dynamo_fullgraph: bool = opt(False, "Set --compile_fullgraph, together with --dynamo_backend.", advanced=True)
    dynamo_dynamic: bool = opt(False, "Set --compile_dynamic true, together with --dynamo_backend.", advanced=True)
    memory: Literal["off", "auto"] = redefault(MemoryPlan, "memory", "off")
    vram: str | None = redefault(MemoryPlan, "vram", None)

    @property
    def checkpointing(self) -> dict[str, Any] | None:
        """How blocks are checkpointed (memory/checkpointing.py); None: not at all."""
        if not self.gradient_checkpointing:
            return None
        return {
            "count": self.gradient_checkpointing_blocks, "offload": self.gradient_checkpointing_cpu_offload,
            "attention": self.gradient_checkpointing_attention,
        }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        check_vram(self.vram)
        for name in ("block_swap_h2d_only", "gradient_checkpointing_cpu_offload", "gradient_checkpointing_blocks"):
            if getattr(self, name) and not self.gradient_checkpointing:
                raise OptionError(
                    f"--{name} works only together with gradient checkpointing.",
                    hint=f"Add --gradient_checkpointing, or leave out --{name}.",
                    names=(name, "gradient_checkpointing"),
                )
        if self.block_swap_h2d_only and not self.blocks_to_swap:
            raise OptionError(
                "--block_swap_h2d_only says how blocks are streamed, but none is.",
                hint="Add --blocks_to_swap with a number of blocks.",
                names=("block_swap_h2d_only", "blocks_to_swap"),
            )
        if self.dynamo_backend != "NO":
            self._compile_as_dynamo_says()

    def _compile_as_dynamo_says(self) -> None:
        """Give the options of --compile the values that accelerate's names for them have."""
        said: dict[str, Any] = {"compile_backend": ("dynamo_backend", self.dynamo_backend.lower())}
        if self.dynamo_mode is not None:
            said["compile_mode"] = ("dynamo_mode", self.dynamo_mode)
        if self.dynamo_fullgraph:
            said["compile_fullgraph"] = ("dynamo_fullgraph", True)
        if self.dynamo_dynamic:
            said["compile_dynamic"] = ("dynamo_dynamic", "true")
        for name, (dynamo, value) in said.items():
            given = getattr(self, name)
            if given not in (value, type(self).__dataclass_fields__[name].default):
                raise OptionError(
                    f"--{dynamo} {getattr(self, dynamo)} and --{name} {given} contradict each other.",
                    hint=f"Keep --{name}, with --compile.",
                    names=(dynamo, name),
                )
            object.__setattr__(self, name, value)
        object.__setattr__(self, "compile", True)
