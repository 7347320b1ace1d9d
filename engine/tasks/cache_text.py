"""`cache-text <family>`: every caption to text embeddings, once, so that training never loads the text encoder."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..contract.events import Control, Say, Stage
from ..contract.job import Job
from ..contract.options import Caching, Data, Run
from ..data.config import load_config
from ..data.pipeline import cache_text
from ..families import part
from ..ops.device import choose_device
from ..parts.weights import open_weights
from .needs import needed


def home(job: Job) -> Path:
    return Path(job[Data].dataset_config).resolve().parent


class LazyTextEncoder:
    """The text encoder, loaded when the first caption arrives: with nothing to encode it is never read."""

    def __init__(self, job: Job, say: Say):
        self._job, self._say, self._part = job, say, part(job.family, "text")
        self._options = part(job.family, "options")
        flag, path = self._options.text_encoder_file(job)
        self.path = needed(path, flag, "the text encoder file")
        self.device = choose_device(job[Run].device)
        self.identity = open_weights(self.path, role=flag).identity()

    @cached_property
    def model(self) -> Any:
        self._say(Stage(name="Loading the text encoder", message=f"{self.path} on {self.device}"))
        arguments = self._options.text_arguments(self._job)
        return self._part.load(self.path, device=self.device, dtype=torch.bfloat16, **arguments)

    def encode(self, captions: list[str]) -> list[dict[str, Tensor]]:
        return self._part.training_samples(self.model, captions)


def run(job: Job, say: Say, control: Control) -> str:
    caching, options = job[Caching], part(job.family, "options")
    say(Stage(name="Reading the dataset", message=job[Data].dataset_config))
    config = load_config(job[Data].dataset_config, say=say)
    encoder = LazyTextEncoder(job, say)
    report = cache_text(
        config,
        architecture=options.ARCHITECTURE,
        encode=encoder.encode,
        identity=encoder.identity,
        settings={name: value for name, value in options.text_arguments(job).items() if name != "tokenizer"},
        batch_size=caching.batch_size or 16,
        skip_existing=caching.skip_existing,
        recache=caching.recache,
        keep_cache=caching.keep_cache,
        strict=caching.strict,
        say=say,
        control=control,
    )
    return f"{report.done} captions cached, {report.skipped} were there, {len(report.failed)} left out"
