"""Options of training proper: steps, optimizer, schedule, noise levels, adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import OptionError
from ..schema import Section, opt
from ..wording import did_you_mean
from .accepted import ACCEPTED

SEED_HIGH = 2**64 - 1
RANK = 4  # of a LoRA, where none is asked for
OTHER_ADAPTERS = ("networks.loha", "networks.lokr", "lycoris.kohya")  # that go on every family
LR_SCHEDULERS = (
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "polynomial",
    "inverse_sqrt", "warmup_stable_decay", "piecewise_constant", "rex", "adafactor",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Training(Section, title="Training", accepted=ACCEPTED):
    """How long to train and with what batches."""

    max_train_steps: int = opt(1600, "Stop after this many optimizer steps.", low=1, unit="steps")
    max_train_epochs: int | None = opt(
        None, "Stop after this many passes over the dataset; replaces --max_train_steps.", low=1, unit="epochs"
    )
    seed: int | None = opt(None, "Seed of everything random. Default: a new one each time.", low=0, high=SEED_HIGH)
    gradient_accumulation_steps: int = opt(
        1, "Add up the gradients of this many batches for one optimizer step.", low=1, unit="batches"
    )
    max_data_loader_n_workers: int = opt(
        8, "Threads that read the next batches' caches during a step; more than 4 are not used, and 0 means 1.", low=0,
        unit="threads", advanced=True,
    )  # fmt: skip
    persistent_data_loader_workers: bool = opt(False, "Keep what loads caches between epochs.", advanced=True)
    show_timesteps: Literal["image", "console"] | None = opt(
        None, "Draw which noise levels would be trained, then end without training.", advanced=True
    )
    max_train_minutes: float | None = opt(
        None, "Stop and save after this much time, counted from this start. The same command resumes from there.",
        low=0.01, unit="minutes",
    )  # fmt: skip
    max_not_finite_steps: int = opt(
        10, "A step whose loss or gradient is not a finite number, or whose loss "
            "has exploded, is skipped; give up after this many in a row.", low=1, unit="steps", advanced=True,
    )  # fmt: skip
    exploding_loss_factor: float = opt(
        5.0, "A loss has exploded if it is this many times the normal one, or if most of five "
             "are worse than predicting nothing at all, provided the base model did better. 0: "
             "never.", low=0, advanced=True,
    )  # fmt: skip
    prior_loss_weight: float = opt(
        1.0,
        "Weight of datasets with preserve_prior, clips on which the LoRA should change nothing; 0 ignores them.",
        low=0, advanced=True,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Optimizer(Section, title="Optimizer"):
    """How the weights are updated."""

    optimizer_type: str = opt(
        "AdamW", "AdamW, AdamW8bit and others of bitsandbytes, Adafactor, Prodigy, AdamWScheduleFree, CAME, Lion, Muon "
        "or another class of torch.optim, or a full dotted class path.", metavar="NAME",
    )  # fmt: skip
    optimizer_args: tuple[str, ...] = opt(
        (), 'Arguments for the optimizer, such as "weight_decay=0.01" "betas=(0.9,0.95)".', key_values=True,
        metavar="KEY=VALUE",
    )  # fmt: skip
    learning_rate: float = opt(2e-6, "Learning rate. For a LoRA, 1e-4 to 2e-4 is usual; for Prodigy 1.", low=0)
    max_grad_norm: float = opt(1.0, "Clip the gradient to this norm; 0 does not clip.", low=0, advanced=True)
    fused_backward_pass: bool = opt(
        False, "Update each weight as soon as its gradient is ready, then free the gradient: less memory. Needs "
        "--max_grad_norm 0, no accumulation, one GPU.", advanced=True,
    )  # fmt: skip
    full_bf16: bool = opt(
        False, "Keep the LoRA itself and its gradients in bf16: half the memory. Rounding is "
               "stochastic, so that small steps are not lost. Needs --mixed_precision bf16; saves most "
               "with --fused_backward_pass.", advanced=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        if not self.optimizer_type.strip():
            raise OptionError("--optimizer_type is empty.", hint="Use AdamW.", names=("optimizer_type",))
        if self.fused_backward_pass and self.max_grad_norm:
            raise OptionError(
                "--fused_backward_pass never holds all gradients at once, so their norm cannot be clipped "
                f"(--max_grad_norm {self.max_grad_norm:g}).",
                hint="Add --max_grad_norm 0, or leave out --fused_backward_pass.",
                names=("fused_backward_pass", "max_grad_norm"),
            )


@dataclass(frozen=True, kw_only=True)
class Schedule(Section, title="Learning rate schedule"):
    """How the learning rate changes over the training."""

    lr_scheduler: str = opt(
        "constant", f"Shape of the learning rate over time: {', '.join(LR_SCHEDULERS)}.", metavar="NAME"
    )
    lr_warmup_steps: int | float = opt(
        0, "Rise to the full learning rate over this many steps, or this share of all (0.05 or 5%).",
        low=0, unit="steps",
    )  # fmt: skip
    lr_decay_steps: int | float = opt(
        0, "Fall at the end over this many steps, or this share of all; for warmup_stable_decay.", low=0, unit="steps",
        advanced=True,
    )  # fmt: skip
    lr_scheduler_num_cycles: int = opt(1, "Restarts, for cosine_with_restarts.", low=1, advanced=True)
    lr_scheduler_power: float = opt(1.0, "Power, for polynomial.", advanced=True)
    lr_scheduler_timescale: int | None = opt(
        None, "Time scale, for inverse_sqrt. Default: the warmup steps.", low=1, unit="steps", advanced=True
    )
    lr_scheduler_min_lr_ratio: float | None = opt(
        None, "Lowest learning rate as a share of the full one, for cosine_with_min_lr, warmup_stable_decay and rex.",
        low=0, high=1, advanced=True,
    )  # fmt: skip
    lr_scheduler_type: str = opt(
        "", "Full dotted path of a scheduler class to use instead of --lr_scheduler.", advanced=True, metavar="CLASS"
    )
    lr_scheduler_args: tuple[str, ...] = opt(
        (), 'Arguments for the scheduler, such as "T_max=100", for rex "rex_alpha=0.1" "rex_beta=0.9".',
        key_values=True, advanced=True, metavar="KEY=VALUE",
    )  # fmt: skip

    def __post_init__(self) -> None:
        name = self.lr_scheduler.partition(":")[0]
        if not self.lr_scheduler_type and name not in LR_SCHEDULERS:
            raise OptionError(
                f"--lr_scheduler {self.lr_scheduler} is unknown; known are {', '.join(LR_SCHEDULERS)}.",
                hint=did_you_mean(name, LR_SCHEDULERS, "A class of your own goes to --lr_scheduler_type."),
                names=("lr_scheduler",),
            )
        if self.lr_warmup_steps and not self.lr_scheduler_type and name in ("constant", "adafactor"):
            better = " Use --lr_scheduler constant_with_warmup." if name == "constant" else ""
            raise OptionError(
                f"--lr_scheduler {name} has no warmup, but --lr_warmup_steps is {self.lr_warmup_steps}.",
                hint=f"{better} Or leave out --lr_warmup_steps.".strip(),
                names=("lr_scheduler", "lr_warmup_steps"),
            )


TimestepSampling = Literal[
    "sigma", "uniform", "sigmoid", "shift", "flux_shift", "flux2_shift", "qwen_shift", "krea2_shift",
    "ideogram4_shift", "logsnr", "qinglong_flux", "qinglong_qwen",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Timesteps(Section, title="Noise levels"):
    """Which noise levels are trained, and how much each counts."""

    timestep_sampling: TimestepSampling = opt(
        "sigma", "How noise levels are drawn. For video LoRAs shift with --discrete_flow_shift is usual."
    )
    discrete_flow_shift: float = opt(1.0, "Above 1 trains high noise more often. Used by shift.", low=0.0001, high=1000)
    sigmoid_scale: float = opt(
        1.0, "Width of the distribution, for sigmoid and the shifts: smaller keeps to the middle.", advanced=True
    )
    weighting_scheme: Literal["logit_normal", "mode", "cosmap", "sigma_sqrt", "none"] = opt(
        "none", "Weight of each noise level in the loss (cosmap, sigma_sqrt), or how sigma draws them (logit_normal, "
        "mode).", advanced=True,
    )  # fmt: skip
    logit_mean: float = opt(0.0, "Mean, for logit_normal and logsnr.", advanced=True)
    logit_std: float = opt(1.0, "Standard deviation, for logit_normal and logsnr.", low=0, advanced=True)
    mode_scale: float = opt(1.29, "Scale, for mode.", advanced=True)
    min_timestep: int | None = opt(None, "Train at no lower noise level than this. Default: 0.", low=0, high=999)
    max_timestep: int | None = opt(None, "Train at no higher noise level than this. Default: 1000.", low=1, high=1000)
    preserve_distribution_shape: bool = opt(
        False,
        "Draw again until inside the limits, instead of squeezing the distribution into them.",
        advanced=True,
    )
    num_timestep_buckets: int | None = opt(
        None, "Draw evenly from this many strata each epoch; 2 or more. Steadier with few clips.", low=1, advanced=True
    )
    guidance_scale: float = opt(
        1.0, "Embedded guidance that HunyuanVideo and FramePack train with. Models without it only note it in the "
        "metadata.", low=0, advanced=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        low = 0 if self.min_timestep is None else self.min_timestep
        high = 1000 if self.max_timestep is None else self.max_timestep
        if low >= high:
            raise OptionError(
                f"--min_timestep {low} must be below --max_timestep {high}.",
                hint="Lower --min_timestep or raise --max_timestep.",
                names=("min_timestep", "max_timestep"),
            )


@dataclass(frozen=True, kw_only=True)
class Network(Section, title="LoRA"):
    """The adapter that is trained."""

    network_module: str = opt(
        "networks.lora", "Kind of adapter: the family's own LoRA by default, or networks.loha, networks.lokr, "
        "lycoris.kohya with algo=lora, loha or lokr in --network_args.", advanced=True, metavar="MODULE",
    )  # fmt: skip
    network_dim: int | None = opt(
        None, "Rank of the LoRA: higher learns more and makes a larger file. Default: 4.", low=1, high=4096
    )
    network_alpha: float = opt(
        1.0, "The LoRA is scaled by alpha / rank. Often set to the rank or half of it; 0 means the rank.", low=0
    )
    network_dropout: float | None = opt(
        None, "Share of the LoRA's inputs that is dropped in each step.", low=0, high=1, advanced=True
    )
    network_args: tuple[str, ...] = opt(
        (), 'More settings: "loraplus_lr_ratio=4", "rank_dropout=0.1", "module_dropout=0.1", "dora_wd=True", '
        '"conv_dim=4", "conv_alpha=1", "include_patterns=[r\'…\']", "exclude_patterns=[r\'…\']", '
        '"network_reg_dims=REGEX=RANK,…", "network_reg_lrs=REGEX=RATE,…", "verbose=True"; for LoKr "factor=8". '
        'Patterns match whole module paths: "exclude_patterns=.*" "include_patterns=.*blocks[.]1[0-9][.].*" trains '
        "blocks 10 to 19.",
        key_values=True, metavar="KEY=VALUE",
    )  # fmt: skip
    network_weights: str | None = opt(
        None, "Start from this LoRA, with its alpha, instead of a new one.", file_kind="lora", metavar="FILE"
    )
    dim_from_weights: bool = opt(
        False,
        "Take the rank, too, from --network_weights, and train the same modules.",
        advanced=True,
    )
    scale_weight_norms: float | None = opt(
        None, "Keep the norm of each LoRA module below this; 1 is a good start.", low=0, advanced=True
    )
    use_ema: bool = opt(
        False, "Also keep an average of the LoRA over its last steps (EMA): saved as NAME_ema with each save, and "
               "used for samples and validation.",
    )  # fmt: skip
    ema_decay: float = opt(
        0.999, "Share of the average that each step keeps; less at first: at most (1 + n) / (10 + n) after n steps.",
        low=0, high=1, advanced=True,
    )  # fmt: skip
    ema_device: Literal["accelerator", "cpu"] = opt(
        "accelerator", "Where the average is kept: the GPU (4 bytes for each parameter of the LoRA), or main memory, "
        "where each step takes a little longer.", advanced=True,
    )  # fmt: skip
    base_weights: tuple[str, ...] = opt(
        (), "LoRA files that are merged into the model before training.", file_kind="lora", advanced=True,
        metavar="FILE",
    )  # fmt: skip
    base_weights_multiplier: tuple[float, ...] = opt(
        (), "Strength of each of --base_weights. Default: 1.", advanced=True, metavar="X"
    )
    lora_format: Literal["default", "other", "diffusers"] | None = opt(
        None, "Names in the saved LoRA. default: musubi-tuner's; other: ComfyUI's; diffusers: those of its pipelines. "
        "Default: what ComfyUI loads whole, which is default, but other for HunyuanVideo, a third of whose layers "
        "ComfyUI finds under no other names.",
    )  # fmt: skip

    @property
    def rank(self) -> int:
        """`network_dim`; with `dim_from_weights` that of modules which the weights do not name."""
        return self.network_dim or RANK

    def __post_init__(self) -> None:
        own = type(self).__dataclass_fields__["network_module"].default
        if self.network_module not in (own, *OTHER_ADAPTERS):
            raise OptionError(
                f"--network_module {self.network_module} does not train this family; its LoRA is {own}.",
                hint=f"Leave out --network_module, or take one of {', '.join(OTHER_ADAPTERS)}.",
                names=("network_module",),
            )
        if self.dim_from_weights and self.network_weights is None:
            raise OptionError(
                "--dim_from_weights reads the rank of --network_weights, which is not given.",
                hint="Add --network_weights, or leave out --dim_from_weights.",
                names=("dim_from_weights", "network_weights"),
            )
        if self.network_dim is None and not self.dim_from_weights:
            object.__setattr__(self, "network_dim", RANK)
        if len(self.base_weights_multiplier) > len(self.base_weights):
            raise OptionError(
                f"{len(self.base_weights_multiplier)} --base_weights_multiplier for {len(self.base_weights)} "
                "--base_weights.",
                hint="Give at most one multiplier for each file.",
                names=("base_weights_multiplier", "base_weights"),
            )
