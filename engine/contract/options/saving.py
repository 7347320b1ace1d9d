"""Options of what a training leaves behind: files, metadata, uploads, samples, logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import OptionError
from ..schema import Section, opt

LONGEST_NAME = 180
"""Bytes of `--output_name`: disks take 255 for a file's name, and step, time and seed of a sample are added."""


@dataclass(frozen=True, kw_only=True)
class Saving(Section, title="Saving and resuming"):
    """Where LoRA files and states go, and how often."""

    output_dir: str = opt("output", "Folder for LoRA files, states and samples.", file_kind="folder", metavar="DIR")
    output_name: str = opt("lora", "Name of the LoRA file, without .safetensors.", metavar="NAME")
    save_every_n_epochs: int | None = opt(None, "Save the LoRA every N epochs.", low=1, unit="epochs")
    save_every_n_steps: int | None = opt(None, "Save the LoRA every N steps.", low=1, unit="steps")
    save_last_n_epochs: int | None = opt(
        None, "Keep only the LoRA files of the last N epochs. Needs --save_every_n_epochs.", low=1,
        unit="epochs", advanced=True,
    )  # fmt: skip
    save_last_n_steps: int | None = opt(
        None, "Keep only the LoRA files of the last N steps. Needs --save_every_n_steps.", low=1, unit="steps",
        advanced=True,
    )  # fmt: skip
    save_state: bool = opt(False, "Save with each LoRA what --resume needs (optimizer, schedule, position).")
    save_state_on_train_end: bool = opt(False, "Save that state at the end of the training only.")
    save_last_n_epochs_state: int | None = opt(
        None, "Keep only the states of the last N epochs. Default: as --save_last_n_epochs.", low=1, unit="epochs",
        advanced=True,
    )  # fmt: skip
    save_last_n_steps_state: int | None = opt(
        None, "Keep only the states of the last N steps. Default: as --save_last_n_steps.", low=1, unit="steps",
        advanced=True,
    )  # fmt: skip
    resume: str = opt(
        "auto", "Resume from this state folder: same step, epoch, order of clips and file names. auto: from the newest "
        "whole state of a training of this --output_name that was stopped or killed or has failed, if there is one.",
        file_kind="state", metavar="DIR",
    )  # fmt: skip
    save_precision: Literal["float", "fp32", "fp16", "bf16"] = opt(
        "fp32", "Number format of saved LoRA files; bf16 halves their size."
    )
    fresh: bool = opt(
        False, "Start over, whatever an earlier training of this --output_name left; its files are overwritten."
    )
    save_state_every_minutes: float = opt(
        30.0, "Save a state whenever this much time has passed without one, so that a crash costs no more; 0: never.",
        low=0, unit="minutes",
    )  # fmt: skip
    save_last_n_states: int = opt(
        2, "Keep this many of the states saved by the clock or at a stop; those of --save_state have their own limits.",
        low=1, unit="states", advanced=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.fresh and self.resume != "auto":
            raise OptionError(
                f"--fresh starts over, but --resume {self.resume} continues.",
                hint="Keep one of them.",
                names=("fresh", "resume"),
            )
        if not self.output_name.strip() or any(sign in self.output_name for sign in '/\\:*?"<>|'):
            raise OptionError(
                f"--output_name {self.output_name!r} is not a file name.",
                hint="Use a plain name such as my-lora; give the folder with --output_dir.",
                names=("output_name",),
            )
        length = len(self.output_name.encode("utf-8", "replace"))
        if length > LONGEST_NAME:
            raise OptionError(
                f"--output_name is {length} bytes long, at most {LONGEST_NAME} leave room for what is added to it.",
                hint="Use a shorter name.",
                names=("output_name",),
            )
        for name in ("save_last_n_epochs", "save_last_n_steps"):
            every = name.replace("last", "every")
            if getattr(self, name) is not None and getattr(self, every) is None:
                raise OptionError(
                    f"--{name} keeps the last of several files, but without --{every} there is only one.",
                    hint=f"Add --{every}, or leave out --{name}.",
                    names=(name, every),
                )
            if getattr(self, f"{name}_state") is None:
                object.__setattr__(self, f"{name}_state", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class Metadata(Section, title="Metadata"):
    """What the LoRA file says about itself."""

    no_metadata: bool = opt(False, "Write only what a loader needs: base model, module, rank, alpha.", advanced=True)
    training_comment: str | None = opt(None, "A comment for the metadata.", advanced=True, metavar="TEXT")
    metadata_title: str | None = opt(None, "Title. Default: --output_name.", advanced=True, metavar="TEXT")
    metadata_author: str | None = opt(None, "Author.", advanced=True, metavar="TEXT")
    metadata_description: str | None = opt(None, "Description.", advanced=True, metavar="TEXT")
    metadata_license: str | None = opt(None, "Licence.", advanced=True, metavar="TEXT")
    metadata_tags: str | None = opt(None, "Tags, with commas between.", advanced=True, metavar="TEXT")
    metadata_reso: str | None = opt(
        None, "Resolution, such as 832,480 or 1024. Default: that of the largest clips trained on.", advanced=True,
        metavar="W,H",
    )  # fmt: skip
    metadata_arch: str | None = opt(None, "Architecture. Default: the family's.", advanced=True, metavar="TEXT")

    @property
    def resolution(self) -> tuple[int, int] | None:
        """Width and height in pixels of `metadata_reso`."""
        if self.metadata_reso is None:
            return None
        sides = self.metadata_reso.replace("x", ",").split(",")
        if len(sides) > 2 or not all(side.strip().isdecimal() and int(side) for side in sides):
            raise OptionError(
                f"--metadata_reso {self.metadata_reso} is not a resolution.",
                hint="Write width and height such as 832,480, or one number for a square.",
                names=("metadata_reso",),
            )
        return int(sides[0]), int(sides[-1])

    def __post_init__(self) -> None:
        _ = self.resolution


@dataclass(frozen=True, kw_only=True)
class HuggingFace(Section, title="Hugging Face"):
    """Uploading what is saved, and resuming from what was uploaded. The files stay on this machine too."""

    huggingface_repo_id: str | None = opt(
        None, "Upload each saved LoRA to this repository, which is created if it does not exist.", advanced=True,
        metavar="OWNER/NAME",
    )  # fmt: skip
    huggingface_repo_type: Literal["model", "dataset", "space"] = opt("model", "Type of the repository.", advanced=True)
    huggingface_path_in_repo: str | None = opt(
        None, "Folder in the repository. Default: its top.", advanced=True, metavar="PATH"
    )
    huggingface_token: str | None = opt(
        None, "Access token, kept out of every record. Default: the variable HF_TOKEN, or `hf auth login`.",
        advanced=True, secret=True, metavar="TOKEN",
    )  # fmt: skip
    huggingface_repo_visibility: Literal["private", "public"] = opt(
        "private", "Who may see a repository that is created.", advanced=True
    )
    save_state_to_huggingface: bool = opt(False, "Upload each saved state as well.", advanced=True)
    resume_from_huggingface: bool = opt(
        False, "--resume names a state in a repository: owner/name/path, then :revision and :type if they are not "
        "main and model.", advanced=True,
    )  # fmt: skip
    async_upload: bool = opt(False, "Upload while training continues, instead of waiting.", advanced=True)

    def __post_init__(self) -> None:
        for name in ("huggingface_path_in_repo", "save_state_to_huggingface", "async_upload"):
            if getattr(self, name) and self.huggingface_repo_id is None:
                raise OptionError(
                    f"--{name} concerns uploads, but no repository is named.",
                    hint=f"Add --huggingface_repo_id, or leave out --{name}.",
                    names=(name, "huggingface_repo_id"),
                )


SAMPLE_DEFAULTS = {"video_size": (256, 256), "video_length": 1, "infer_steps": 20, "flow_shift": 14.5}
"""What `generate` is told for a sample where its line says nothing, as in musubi-tuner: small, and quick to make."""


@dataclass(frozen=True, kw_only=True)
class Samples(Section, title="Samples while training"):
    """Videos made with the LoRA so far, to watch it learn; saved in the folder sample in --output_dir."""

    sample_prompts: str | None = opt(
        None, "File with a prompt for each sample (.txt, .toml, .json); a line may end in --w --h --f --d --s --fs, "
        "--g (embedded guidance), --l (classifier-free guidance), --n, --i, --ei, --cn, --ci, --of. Needs --vae and "
        "the text encoders. See docs/PROMPTS.md.", file_kind="prompts", metavar="FILE",
    )  # fmt: skip
    sample_every_n_steps: int | None = opt(None, "Make samples every N steps.", low=1, unit="steps")
    sample_every_n_epochs: int | None = opt(None, "Make samples every N epochs.", low=1, unit="epochs")
    sample_at_first: bool = opt(False, "Make samples before the first step too.")

    def __post_init__(self) -> None:
        for name in ("sample_every_n_steps", "sample_every_n_epochs", "sample_at_first"):
            if getattr(self, name) and self.sample_prompts is None:
                raise OptionError(
                    f"--{name} says when to make samples, but not of what.",
                    hint=f"Add --sample_prompts with a file of prompts, or leave out --{name}.",
                    names=(name, "sample_prompts"),
                )


@dataclass(frozen=True, kw_only=True)
class Logging(Section, title="Logging"):
    """TensorBoard and wandb."""

    logging_dir: str | None = opt(
        None, "Write TensorBoard logs into a new folder in this one.", file_kind="folder", metavar="DIR"
    )
    log_with: Literal["tensorboard", "wandb", "all"] | None = opt(
        None, "Where numbers are logged. Default: tensorboard when --logging_dir is given."
    )
    log_prefix: str | None = opt(None, "Beginning of the log folder's name.", advanced=True, metavar="TEXT")
    log_tracker_name: str = opt(
        "network_train", "Name of the tracker; for wandb the project.", advanced=True, metavar="NAME"
    )
    log_tracker_config: str | None = opt(
        None, "TOML file with more settings: those under [wandb] "
              "go to wandb.init, those under [tensorboard] to "
              "SummaryWriter.", file_kind="config", advanced=True, metavar="FILE",
    )  # fmt: skip
    wandb_run_name: str | None = opt(None, "Name of the run in wandb.", advanced=True, metavar="NAME")
    wandb_api_key: str | None = opt(
        None, "Key to log in to wandb with, kept out of every record. Default: the variable WANDB_API_KEY, or `wandb "
        "login`.", advanced=True, secret=True, metavar="KEY",
    )  # fmt: skip
    log_config: bool = opt(False, "Log all options of the job as well.", advanced=True)

    def __post_init__(self) -> None:
        if self.log_with is None and self.logging_dir is not None:
            object.__setattr__(self, "log_with", "tensorboard")
        if self.log_with is None and self.log_tracker_config is not None:
            raise OptionError(
                "--log_tracker_config has settings for a tracker, but nothing is logged.",
                hint="Add --logging_dir logs, or --log_with wandb.",
                names=("log_tracker_config", "log_with"),
            )
        if self.log_with in ("tensorboard", "all") and self.logging_dir is None:
            raise OptionError(
                f"--log_with {self.log_with} needs a folder for the logs.",
                hint="Add --logging_dir logs.",
                names=("log_with", "logging_dir"),
            )
