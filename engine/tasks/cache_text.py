"""`cache-text <family>`: every caption to text embeddings, once, so that training never loads the text encoder."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from torch import Tensor

from ..contract.events import Control, Say, Stage
from ..contract.job import Job
from ..contract.options import Caching, Data
from ..data.company import meet
from ..data.config import load_config
from ..data.survey import Recipe, Rules
from ..data.text_pipeline import cache_text
from ..families import part
from ..parts.tokenizers import TokenCount
from .encoders import Encoders, own_device
from .needs import folder_of

HOME = "dataset_config"  # the option that says where results go


def home(job: Job) -> Path | None:
    return folder_of(job[Data].dataset_config)


def run(job: Job, say: Say, control: Control) -> str:
    options = part(job.family, "options")
    say(Stage(name="Reading the dataset", message=job[Data].dataset_config))
    config = load_config(job[Data].dataset_config, say=say)
    encoders, text = Encoders(job, say, device=own_device(job)), part(job.family, "text")

    def encode(captions: list[str]) -> list[dict[str, Tensor]]:
        return text.encode(encoders.text, captions)

    def count(captions: list[str]) -> list[TokenCount]:
        return text.token_counts(encoders.text, captions)

    with meet() as company:
        report = cache_text(
            config,
            Recipe(
                architecture=options.ARCHITECTURE,
                architecture_full=options.ARCHITECTURE_FULL,
                identity=encoders.identity(options.TEXT_FILES, "the text encoder file"),
                settings={name: value for name, value in options.text_arguments(job).items() if name != "tokenizer"},
            ),
            rules_of(job[Caching]),
            encode=encode,
            count=count,
            say=say,
            control=control,
            batch_size=job[Caching].batch_size or 16,
            company=company,
        )
    return report.summary("captions")


def rules_of(caching: Caching) -> Rules:
    """What is wanted done with existing caches, from the options of the same names."""
    return Rules(**{rule.name: getattr(caching, rule.name) for rule in fields(Rules)})
