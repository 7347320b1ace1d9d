"""Options that trade memory for time: block streaming, checkpointing, compilation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import OptionError
from ..schema import Section, opt
from .pending import ACCEPTED, PENDING

DYNAMO_BACKENDS = (
    "NO", "EAGER", "AOT_EAGER", "INDUCTOR", "AOT_TS_NVFUSER", "NVPRIMS_NVFUSER", "CUDAGRAPHS", "OFI", "FX2TRT",
    "ONNXRT", "TENSORRT", "AOT_TORCHXLA_TRACE_ONCE", "TORCHXLA_TRACE_ONCE", "TVM", "HPU_BACKEND", "NEURON",
)  # fmt: skip
CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


@dataclass(frozen=True, kw_only=True)
class Memory(Section, title="Memory and speed", accepted=ACCEPTED):
    """Trading time for memory, and compiling for time."""

    blocks_to_swap: int | None = opt(
        None, "Keep so many of the model's blocks in main memory and stream them to the GPU when they are due.", low=0,
        unit="blocks",
    )  # fmt: skip
    use_pinned_memory_for_block_swap: bool = opt(
        False, "Pin the streamed blocks in main memory: faster copies; on Windows it uses shared GPU memory.",
        advanced=True,
    )  # fmt: skip
    disable_numpy_memmap: bool = opt(
        False, "Read model files instead of mapping them into memory: more main memory, sometimes faster.",
        advanced=True,
    )  # fmt: skip
    compile: bool = opt(False, "Compile the blocks with torch.compile; needs Triton.")
    compile_backend: str = opt("inductor", "Backend of torch.compile.", advanced=True)
    compile_mode: CompileMode = opt("default", "Mode of torch.compile.", advanced=True)
    compile_dynamic: Literal["true", "false", "auto"] | None = opt(
        None, "Compile for changing shapes. Default: auto.", advanced=True
    )
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


@dataclass(frozen=True, kw_only=True)
class TrainingMemory(Memory, title="Memory and speed", pending=PENDING, accepted=ACCEPTED):
    """Trading time for memory, and compiling for time."""

    gradient_checkpointing: bool = opt(
        False, "Compute activations again in the backward pass instead of keeping them: far less memory, about a "
        "third slower.",
    )  # fmt: skip
    gradient_checkpointing_cpu_offload: bool = opt(
        False, "Keep the checkpoints in main memory. Needs --gradient_checkpointing.", advanced=True
    )
    block_swap_h2d_only: bool = opt(
        False, "Stream blocks one way only, since frozen weights need no copy back: faster. Needs "
        "--gradient_checkpointing.", advanced=True,
    )  # fmt: skip
    block_swap_ring_size: int = opt(
        2, "GPU buffers for streamed blocks: 2 overlaps copying with computing, 1 uses the least memory.", low=1,
        unit="blocks", advanced=True,
    )  # fmt: skip
    dynamo_backend: str = opt(
        "NO", "Compile the whole model through accelerate; --compile is usually better.", choices=DYNAMO_BACKENDS,
        advanced=True,
    )  # fmt: skip
    dynamo_mode: Literal["default", "reduce-overhead", "max-autotune"] | None = opt(
        None, "Mode of --dynamo_backend.", advanced=True
    )
    dynamo_fullgraph: bool = opt(False, "One graph only, for --dynamo_backend.", advanced=True)
    dynamo_dynamic: bool = opt(False, "Changing shapes, for --dynamo_backend; often troublesome.", advanced=True)

    def __post_init__(self) -> None:
        for name in ("block_swap_h2d_only", "gradient_checkpointing_cpu_offload"):
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
        if self.compile and self.dynamo_backend != "NO":
            raise OptionError(
                "--compile and --dynamo_backend would compile the model twice.",
                hint="Keep --compile.",
                names=("compile", "dynamo_backend"),
            )
