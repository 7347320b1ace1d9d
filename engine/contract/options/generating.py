"""Options of generation: what to make, with which LoRAs, and how it is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import OptionError
from ..schema import Section, opt, redefault
from .accepted import ACCEPTED
from .memory import CompileMode, Memory, MemoryPlan, check_vram
from .training import SEED_HIGH

DYNAMIC = ("true", "false", "auto")


@dataclass(frozen=True, kw_only=True)
class Prompting(Section, title="What to generate"):
    """Prompt, size, length and the way through the noise."""

    prompt: str | None = opt(None, "What the video shows.", metavar="TEXT")
    negative_prompt: str | None = opt(
        None, 'What the video should not show. Default: the family\'s own text; "" for none.', metavar="TEXT"
    )
    video_size: tuple[int, int] = opt(
        (256, 256), "Height and width, multiples of 16.", low=16, unit="pixels", metavar=("HEIGHT", "WIDTH")
    )
    video_length: int | None = opt(
        None, "Length: 1, 5, 9, … 81 (4n+1). Default: what the task was made for.", low=1, unit="frames"
    )
    infer_steps: int | None = opt(None, "Denoising steps. Default: the task's.", low=1, high=1000, unit="steps")
    guidance_scale: float | None = opt(
        None, "How strongly the prompt pulls; 1 switches guidance off and doubles the speed. Default: the task's.",
        low=0,
    )  # fmt: skip
    flow_shift: float | None = opt(
        None, "Above 1 spends more steps on high noise. Default: the task's.", low=0.0001, high=1000
    )
    sample_solver: Literal["unipc", "dpm++", "euler", "vanilla"] = opt(
        "unipc", "How to step through the noise; vanilla is another name for euler."
    )
    seed: int | None = opt(None, "Seed of the noise. Default: a new one, noted in the metadata.", low=0, high=SEED_HIGH)
    cpu_noise: bool = opt(False, "Draw the noise on the CPU, as ComfyUI does: same seed, same noise.")
    from_file: str | None = opt(
        None, "Make one video for each line of this file; a line may end in --w --h --f --d --s --g --fs --n …: see "
        "docs/PROMPTS.md.", file_kind="prompts", metavar="FILE",
    )  # fmt: skip
    interactive: bool = opt(False, "Ask for prompts one after the other; models stay loaded.")

    def __post_init__(self) -> None:
        given = [name for name in ("prompt", "from_file", "interactive") if getattr(self, name) not in (None, False)]
        if len(given) > 1:
            raise OptionError(
                f"{' and '.join('--' + name for name in given)} are alternative ways to say what to generate.",
                hint=f"Keep only --{given[0]} or --{given[1]}.",
                names=tuple(given),
            )


@dataclass(frozen=True, kw_only=True)
class LoraStack(Section, title="LoRA", accepted=ACCEPTED):
    """LoRA files that are merged into the model."""

    lora_weight: tuple[str, ...] = opt((), "LoRA files, merged in this order.", file_kind="lora", metavar="FILE")
    lora_multiplier: tuple[float, ...] = opt(
        (1.0,), "Strength of each LoRA; those that are left out count 1.", metavar="X"
    )
    include_patterns: tuple[str, ...] = opt(
        (), "For each LoRA a regular expression: only modules whose name contains it are merged, such as cross_attn.",
        advanced=True, metavar="REGEX",
    )  # fmt: skip
    exclude_patterns: tuple[str, ...] = opt(
        (), r"For each LoRA a regular expression of modules to leave out, such as blocks_[23]\d_, even if they are "
        "included.", advanced=True, metavar="REGEX",
    )  # fmt: skip
    save_merged_model: str | None = opt(
        None, "Write the model with the LoRAs merged into it to this file, and generate nothing.", advanced=True,
        metavar="FILE",
    )  # fmt: skip
    lycoris: bool = opt(False, "Merge through the LyCORIS package.", advanced=True)

    def __post_init__(self) -> None:
        for name in ("lora_multiplier", "include_patterns", "exclude_patterns"):
            count = len(getattr(self, name))
            if count > max(len(self.lora_weight), 1):
                raise OptionError(
                    f"--{name} has {count} values, but --lora_weight names {len(self.lora_weight)} files.",
                    hint=f"Give at most one value of --{name} for each file.",
                    names=(name, "lora_weight"),
                )
        if self.save_merged_model is not None and not self.lora_weight:
            raise OptionError(
                "--save_merged_model has nothing to merge.",
                hint="Add --lora_weight.",
                names=("save_merged_model", "lora_weight"),
            )

    @property
    def multipliers(self) -> tuple[float, ...]:
        """One multiplier for each file of `lora_weight`."""
        count = len(self.lora_weight)
        return (*self.lora_multiplier, *[1.0] * count)[:count]


@dataclass(frozen=True, kw_only=True)
class Output(Section, title="Output"):
    """Where results go, and the video encoder's settings."""

    save_path: str | None = opt(
        None, "Folder for the results, or the name of the video file (.mp4).", file_kind="folder", metavar="PATH"
    )
    output_type: Literal["video", "images", "latent", "both", "latent_images"] = opt(
        "video", "What to write; both is video and latent."
    )
    fps: int = opt(24, "Frames a second of the video.", low=1, high=240)
    latent_path: tuple[str, ...] = opt(
        (), "Decode this saved latent instead of generating.", file_kind="latent", metavar="FILE"
    )
    no_metadata: bool = opt(False, "Do not write prompt and settings into the files.")
    codec: Literal["libx264", "libx265", "libsvtav1", "libvpx-vp9", "prores_ks", "ffv1"] = opt(
        "libx264", "Video encoder; libx264 plays everywhere. prores_ks is for .mov, ffv1 (lossless) for .mkv.",
        advanced=True,
    )  # fmt: skip
    crf: int = opt(
        16, "Quality of the encoder: lower is better and larger. Up to 51 for libx264 and libx265.", low=0, high=63,
        advanced=True,
    )  # fmt: skip
    preset: str | None = opt(
        None, "Speed of the encoder: ultrafast … veryslow, for libsvtav1 a number. Default: the encoder's.",
        advanced=True, metavar="NAME",
    )  # fmt: skip
    pixel_format: str | None = opt(
        None, "Pixel format of the video. Default: the encoder's, mostly yuv420p, which plays everywhere.",
        advanced=True, metavar="NAME",
    )  # fmt: skip
    bitrate: int | None = opt(
        None, "Aim at this bit rate instead of the quality of --crf.", low=1, unit="bits a second", advanced=True
    )

    def __post_init__(self) -> None:
        if self.latent_path and self.output_type not in ("video", "images"):
            raise OptionError(
                f"--latent_path decodes a latent, so --output_type {self.output_type} makes no sense.",
                hint="Use --output_type video or images.",
                names=("latent_path", "output_type"),
            )
        if self.codec in ("libx264", "libx265") and self.crf > 51:
            raise OptionError(
                f"--crf {self.crf} is out of range for {self.codec}: 0 to 51.", hint="Lower --crf.", names=("crf",)
            )


@dataclass(frozen=True, kw_only=True)
class Previews(Section, title="Previews"):
    """A moving preview of the video being made, to see early whether it is worth waiting for."""

    preview_latent_every: int = opt(
        0, "Show what the model is heading for every N steps, and after the last: latent_preview.webp beside "
        "the results, or .png of one frame. 0: never.", low=0, unit="steps",
    )  # fmt: skip
    preview_vae: str | None = opt(
        None, "Tiny autoencoder that makes previews sharper: taehv for HunyuanVideo and FramePack, taew2_1 for Wan. "
        "Default: colours straight from the latents, at next to no cost.", file_kind="vae_approx", metavar="FILE",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GenerationMemory(Memory, title="Memory and speed"):
    """Trading time for memory, and compiling for time."""

    compile_args: tuple[str, str, str, str] | None = opt(
        None, "Old form of --compile_backend, --compile_mode, --compile_dynamic and --compile_fullgraph.",
        advanced=True, metavar=("BACKEND", "MODE", "DYNAMIC", "FULLGRAPH"),
    )  # fmt: skip
    memory: Literal["off", "auto"] = redefault(MemoryPlan, "memory", "off")
    vram: str | None = redefault(MemoryPlan, "vram", None)
    optimized: bool = opt(
        False, "Switch on what makes generating on a GPU faster or smaller at the cost of more rounding, as far as "
               "this machine supports it: --fp8_scaled, --compile, --fp16_accumulation, --attn_mode 8bit. Options set "
               "explicitly keep their value.",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        check_vram(self.vram)
        if self.compile_args is None:
            return
        backend, mode, dynamic, fullgraph = self.compile_args
        known = {"compile_mode": (mode, get_args(CompileMode)), "compile_dynamic": (dynamic.lower(), DYNAMIC)}
        for name, (value, choices) in known.items():
            if value not in choices:
                raise OptionError(
                    f"--compile_args: {value!r} is no {name}; right would be {', '.join(choices)}.",
                    hint="Use --compile_backend, --compile_mode, --compile_dynamic and --compile_fullgraph instead.",
                    names=("compile_args",),
                )
        meant = {
            "compile_backend": backend, "compile_mode": mode, "compile_dynamic": dynamic.lower(),
            "compile_fullgraph": fullgraph.lower() == "true", "compile_cache_size_limit": 32, "compile_args": None,
        }  # fmt: skip
        for name, resolved in meant.items():
            object.__setattr__(self, name, resolved)
