"""Options of the loss on clips that are not trained on."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import OptionError
from ..schema import Section, opt


@dataclass(frozen=True, kw_only=True)
class Validation(Section, title="Validation"):
    """The loss on clips that are not trained on, always with the same noise: it tells learning from memorising."""

    validation_dataset_config: str | None = opt(
        None, "Dataset file (TOML) of clips to validate on, cached like the others.", file_kind="dataset",
        metavar="FILE",
    )  # fmt: skip
    validation_split: float = opt(
        0.0, "Hold out this share of the dataset's clips to validate on, such as 0.1.", low=0, high=0.9
    )
    validate_every_n_steps: int | None = opt(None, "Validate every N steps.", low=1, unit="steps")
    validate_every_n_epochs: int | None = opt(
        None, "Validate every N epochs. Default: 1, unless --validate_every_n_steps is given.", low=1,
        unit="epochs",
    )  # fmt: skip
    validation_timesteps: tuple[int, ...] = opt(
        (100, 300, 500, 700, 900), "Noise levels to validate at, above 0 and up to 1000.", low=1, high=1000,
        advanced=True, metavar="T",
    )  # fmt: skip
    validation_seed: int = opt(
        42, "Seed for choosing the held-out clips and for the noise; losses compare only under the same one.",
        low=0, advanced=True,
    )  # fmt: skip
    max_validation_steps: int | None = opt(
        None, "Validate on at most this many clips. Default: all.", low=1, unit="clips", advanced=True
    )
    save_best_validation: bool = opt(
        False, "Keep the LoRA of the step with the lowest validation loss so far as NAME-best, once one is lower than "
        "before the first step. With --use_ema it is the average, NAME_ema-best, that was validated.",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.validation_dataset_config is not None and self.validation_split:
            raise OptionError(
                "--validation_split and --validation_dataset_config both say what to validate on.",
                hint="Keep one of them.",
                names=("validation_split", "validation_dataset_config"),
            )
        if not self.wanted:
            for name in (
                "validate_every_n_steps", "validate_every_n_epochs", "max_validation_steps", "save_best_validation",
            ):  # fmt: skip
                if getattr(self, name):
                    raise OptionError(
                        f"--{name} concerns validation, but there is nothing to validate on.",
                        hint="Add --validation_split 0.1 or --validation_dataset_config.",
                        names=(name, "validation_split"),
                    )
        elif self.validate_every_n_steps is None and self.validate_every_n_epochs is None:
            object.__setattr__(self, "validate_every_n_epochs", 1)
        if not self.validation_timesteps:
            raise OptionError(
                "--validation_timesteps is empty.", hint="Name one or more.", names=("validation_timesteps",)
            )

    @property
    def wanted(self) -> bool:
        """Whether anything is validated on."""
        return bool(self.validation_split) or self.validation_dataset_config is not None
