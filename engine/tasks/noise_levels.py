"""Which noise levels a training would see: `train … --show_timesteps`."""

from __future__ import annotations

from pathlib import Path

from ..contract.events import Artifact, Log, Preview, Say, Warning_
from ..contract.job import Job
from ..contract.options import Saving, Timesteps, Training
from ..media.charts import density_chart
from ..training.sigmas import DRAWN_BY_SIGMA, SigmaSampling, describe, histogram


def sigma_sampling(options: Timesteps, say: Say) -> SigmaSampling:
    """The noise levels that the options describe. `say` gets a warning about one that has no effect."""
    if options.weighting_scheme in DRAWN_BY_SIGMA and options.timestep_sampling != "sigma":
        say(
            Warning_(
                message=f"--weighting_scheme {options.weighting_scheme} has no effect: it says how "
                f"--timestep_sampling sigma draws, and {options.timestep_sampling} is asked for."
            )
        )
    return SigmaSampling(
        mode=options.timestep_sampling,
        weighting_scheme=options.weighting_scheme,
        discrete_flow_shift=options.discrete_flow_shift,
        sigmoid_scale=options.sigmoid_scale,
        logit_mean=options.logit_mean,
        logit_std=options.logit_std,
        mode_scale=options.mode_scale,
        min_timestep=options.min_timestep,
        max_timestep=options.max_timestep,
        preserve_shape=options.preserve_distribution_shape,
    )


def show(job: Job, say: Say) -> str:
    """Draw them in the way that the job asks for, and train nothing."""
    sampling = sigma_sampling(job[Timesteps], say)
    if job[Training].show_timesteps == "console":
        for line in describe(sampling):
            say(Log(message=line))
        return "Nothing was trained: --show_timesteps only draws."
    path = Path(job[Saving].output_dir) / f"{job[Saving].output_name}_timesteps.png"
    counts, weights = histogram(sampling)
    density_chart(counts, weights, path, title=f"Noise levels drawn by {sampling.mode}")
    say(Artifact(kind="chart", path=str(path)))
    say(Preview(path=str(path), label="noise levels"))
    return f"Nothing was trained: --show_timesteps drew {path}."
