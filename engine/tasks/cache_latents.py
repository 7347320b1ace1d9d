"""`cache-latents <family>`: every clip of the dataset to latents, once, so that training never loads the VAE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..contract.events import Control, Say, Stage
from ..contract.job import Job
from ..contract.options import Data, LatentCaching, Models
from ..data.clips import family_cut
from ..data.company import Company, meet
from ..data.config import load_config
from ..data.pipeline import ClipBatch, cache_latents
from ..data.survey import Recipe
from ..families import part
from ..families.values import Clips
from ..ops.device import dtype_of
from .cache_text import rules_of
from .encoders import Encoders, own_device
from .needs import folder_of
from .showing import show
from .within_memory import within_memory

HOME = "dataset_config"  # the option that says where results go


def home(job: Job) -> Path | None:
    return folder_of(job[Data].dataset_config)


def run(job: Job, say: Say, control: Control) -> str:
    return within_memory(job, say, control, _cache)


def _cache(job: Job, say: Say, control: Control) -> str:
    caching = job[LatentCaching]
    say(Stage(name="Reading the dataset", message=job[Data].dataset_config))
    config = load_config(job[Data].dataset_config, say=say)
    with meet() as company:
        if caching.debug_mode is not None:
            return show(job, config, say, control) if company.leads else ""
        encoders = Encoders(job, say, device=own_device(job))
        torch.backends.cudnn.enabled = not caching.disable_cudnn_backend
        report = cache_latents(
            config,
            _recipe(job, encoders),
            rules_of(caching),
            encode=sample_maker(job, encoders),
            say=say,
            control=control,
            workers=caching.num_workers or _readers(company),
            batch_size=caching.batch_size or 1,
            device=encoders.device,
            dtype=encoders.vae_dtype,
            company=company,
        )
    return report.summary("clips")


def _recipe(job: Job, encoders: Encoders) -> Recipe:
    options = part(job.family, "options")
    files = ("vae", *(options.IMAGE_FILES if encoders.has_image_encoder() else ()))
    settings = options.latent_settings(job)
    return Recipe(
        architecture=options.ARCHITECTURE,
        architecture_full=options.ARCHITECTURE_FULL,
        identity=encoders.identity(files, "the VAE file"),
        settings={"dtype": str(_stored_dtype(job)).removeprefix("torch."), **settings},
        native_fps=options.NATIVE_FPS,
        use_controls=options.takes_controls(job),
        cut=family_cut(options.cut_clip, **settings),
    )


def _readers(company: Company) -> int:
    """Threads that decode: what the CPU has, but few in company, since each takes a file that others could have."""
    most = max(1, (torch.get_num_threads() or 2) - 1)
    return most if company.count == 1 else min(most, 3)


def _stored_dtype(job: Job) -> torch.dtype:
    """The number format of the latents in a cache."""
    return dtype_of(job[Models].vae_dtype, part(job.family, "vae").CACHE_DTYPE, flag="--vae_dtype")


def sample_maker(job: Job, encoders: Encoders) -> Callable[[ClipBatch], Sequence[list[dict[str, Tensor]]]]:
    """What makes training samples of clips; the models are loaded when the first clip arrives."""
    make, dtype = part(job.family, "vae").training_samples, _stored_dtype(job)
    settings = part(job.family, "options").latent_settings(job)

    def encode(batch: ClipBatch) -> Sequence[list[dict[str, Tensor]]]:
        dataset = batch.dataset
        clips = Clips(
            frames_BCFHW=batch.frames_BCFHW,
            controls_BCFHW=batch.controls_BCFHW,
            alphas_BHW=batch.alphas_BHW,
            is_image=dataset.kind == "image",
            window=dataset.fp_latent_window_size,
            clean_indices=dataset.fp_1f_clean_indices,
            target_index=dataset.fp_1f_target_index,
            no_post=dataset.fp_1f_no_post,
        )
        image_encoder = encoders.image if encoders.has_image_encoder() else None
        return make(encoders.vae, clips, dtype=dtype, image_encoder=image_encoder, **settings)

    return encode
