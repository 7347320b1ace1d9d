"""Options of what a training leaves behind: files, metadata, uploads, samples, logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import OptionError
from ..schema import Section, opt
from .pending import PENDING


@dataclass(frozen=True, kw_only=True)
class Saving(Section, title="Saving and resuming"):
    """Where LoRA files and states go, and how often."""

    output_dir: str = opt("output", "Folder for LoRA files, states and samples.", file_kind="folder", metavar="DIR")
    output_name: str = opt("lora", "Name of the LoRA file, without .safetensors.", metavar="NAME")
    save_every_n_epochs: int | None = opt(None, "Save the LoRA after every so many epochs.", low=1, unit="epochs")
    save_every_n_steps: int | None = opt(None, "Save the LoRA after every so many steps.", low=1, unit="steps")
    save_last_n_epochs: int | None = opt(
        None, "Keep only the LoRA files of the last so many epochs. Needs --save_every_n_epochs.", low=1,
        unit="epochs", advanced=True,
    )  # fmt: skip
    save_last_n_steps: int | None = opt(
        None, "Keep only the LoRA files of the last so many steps. Needs --save_every_n_steps.", low=1, unit="steps",
        advanced=True,
    )  # fmt: skip
    save_state: bool = opt(False, "Save with each LoRA what --resume needs (optimizer, schedule, position).")
    save_state_on_train_end: bool = opt(False, "Save that state at the end of the training only.")
    save_last_n_epochs_state: int | None = opt(
        None, "Keep states of the last so many epochs. Default: as --save_last_n_epochs.", low=1, unit="epochs",
        advanced=True,
    )  # fmt: skip
    save_last_n_steps_state: int | None = opt(
        None, "Keep states of the last so many steps. Default: as --save_last_n_steps.", low=1, unit="steps",
        advanced=True,
    )  # fmt: skip
    resume: str | None = opt(
        None, "Go on from this state folder: same step, epoch, order of clips and file names.", file_kind="state",
        metavar="DIR",
    )  # fmt: skip
    save_precision: Literal["float", "fp32", "fp16", "bf16"] = opt(
        "fp32", "Number format of saved LoRA files; bf16 halves their size."
    )

    def __post_init__(self) -> None:
        if not self.output_name.strip() or any(sign in self.output_name for sign in '/\\:*?"<>|'):
            raise OptionError(
                f"--output_name {self.output_name!r} is no file name.",
                hint="Use a plain name such as my-lora; folders go to --output_dir.",
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


@dataclass(frozen=True, kw_only=True)
class Metadata(Section, title="Metadata"):
    """What is written into the LoRA file about itself."""

    no_metadata: bool = opt(False, "Write only what a loader needs: base model, module, rank, alpha.", advanced=True)
    training_comment: str | None = opt(None, "A comment for the metadata.", advanced=True, metavar="TEXT")
    metadata_title: str | None = opt(None, "Title. Default: --output_name.", advanced=True, metavar="TEXT")
    metadata_author: str | None = opt(None, "Author.", advanced=True, metavar="TEXT")
    metadata_description: str | None = opt(None, "Description.", advanced=True, metavar="TEXT")
    metadata_license: str | None = opt(None, "Licence.", advanced=True, metavar="TEXT")
    metadata_tags: str | None = opt(None, "Tags, with commas between.", advanced=True, metavar="TEXT")
    metadata_reso: str | None = opt(None, "Resolution, such as 832,480.", advanced=True, metavar="W,H")
    metadata_arch: str | None = opt(None, "Architecture. Default: the family's.", advanced=True, metavar="TEXT")


@dataclass(frozen=True, kw_only=True)
class HuggingFace(Section, title="Hugging Face", pending=PENDING):
    """Uploading what is saved, and resuming from what was uploaded."""

    huggingface_repo_id: str | None = opt(None, "Upload to this repository.", advanced=True, metavar="OWNER/NAME")
    huggingface_repo_type: str | None = opt(None, "Type of the repository.", advanced=True, metavar="TYPE")
    huggingface_path_in_repo: str | None = opt(None, "Folder in the repository.", advanced=True, metavar="PATH")
    huggingface_token: str | None = opt(None, "Access token.", advanced=True, metavar="TOKEN")
    huggingface_repo_visibility: str | None = opt(
        None, "Who may see it: public, else private.", advanced=True, metavar="WORD"
    )
    save_state_to_huggingface: bool = opt(False, "Upload states as well.", advanced=True)
    resume_from_huggingface: bool = opt(
        False, "--resume names repo/path:revision:type instead of a folder.", advanced=True
    )
    async_upload: bool = opt(False, "Upload while training goes on.", advanced=True)


@dataclass(frozen=True, kw_only=True)
class Samples(Section, title="Samples while training", pending=PENDING):
    """Videos made with the LoRA as it is, to watch it learn."""

    sample_prompts: str | None = opt(None, "File with prompts (.txt, .toml, .json).", file_kind="prompts",
                                     metavar="FILE")  # fmt: skip
    sample_every_n_steps: int | None = opt(None, "Make samples after every so many steps.", low=1, unit="steps")
    sample_every_n_epochs: int | None = opt(None, "Make samples after every so many epochs.", low=1, unit="epochs")
    sample_at_first: bool = opt(False, "Make samples before the first step.")


@dataclass(frozen=True, kw_only=True)
class Logging(Section, title="Logging", pending=PENDING):
    """TensorBoard and wandb."""

    logging_dir: str | None = opt(
        None, "Write TensorBoard logs into a new folder in this one.", file_kind="folder", metavar="DIR"
    )
    log_with: Literal["tensorboard", "wandb", "all"] | None = opt(
        None, "Where numbers are logged. Default: tensorboard when --logging_dir is given."
    )
    log_prefix: str | None = opt(None, "Beginning of the log folder's name.", advanced=True, metavar="TEXT")
    log_tracker_name: str | None = opt(
        None, "Name of the tracker; for wandb the project. Default: network_train.", advanced=True, metavar="NAME"
    )
    log_tracker_config: str | None = opt(
        None, "TOML file with settings for the tracker.", file_kind="config", advanced=True, metavar="FILE"
    )
    wandb_run_name: str | None = opt(None, "Name of the run in wandb.", advanced=True, metavar="NAME")
    wandb_api_key: str | None = opt(None, "Key to log in to wandb with.", advanced=True, metavar="KEY")
    log_config: bool = opt(False, "Log all options of the job as well.", advanced=True)

    def __post_init__(self) -> None:
        if self.log_with in ("tensorboard", "all") and self.logging_dir is None:
            raise OptionError(
                f"--log_with {self.log_with} needs a folder for the logs.",
                hint="Add --logging_dir logs.",
                names=("log_with", "logging_dir"),
            )
