"""The demo's proof that training works: a LoRA learns one clip by heart, and at learning rate 0 nothing changes.

Two ordinary trainings that differ in their learning rate alone. The clip comes PASS times an epoch, at noise levels
spread evenly over it, so that an epoch's average shows what was learned and not which levels were drawn. That nothing
changes at learning rate 0 is seen exactly, by the validation loss: its noise is always the same. The models are random
in every family: they have everything to learn, and are quick. Knows the losses from the trainings' own records, like
anybody who reads `events.jsonl`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..contract.errors import EngineError
from ..contract.events import Metric, read
from ..families import part
from ..media.charts import Course, courses_chart
from .clips import SCENES, write_clips
from .kits import LEARNING_RATE, SEED, kit_of
from .prepare import Prepared, Step, job_file, write_dataset

STEPS, PASS = 300, 25
LEAST_FALL = 0.4
RESOLUTION = [64, 64]
ROUNDING = 1e-5  # share of a loss: what float32 may differ by where nothing has changed


@dataclass(frozen=True)
class OneClip:
    """The prepared check: two steps that cache the clip, then the two trainings and where they put their results."""

    steps: tuple[Step, ...]
    learning: Path
    still: Path
    chart: Path


def prepare_one_clip(prepared: Prepared) -> OneClip | None:
    """Write the clip, its dataset file and the job files into `one_clip/` of a prepared demo.

    None where the family's small model is too small to learn a clip.
    """
    folder, family = prepared.folder / "one_clip", prepared.family
    if not getattr(part(family, "tiny"), "LEARNS_BY_HEART", True):
        return None
    kit = kit_of(family, trained=False)
    kit.write_models(folder / "models")
    models = kit.options(folder / "models")
    write_clips(folder / "clip", SCENES[:1])
    repeated = {"num_repeats": PASS, **kit.dataset}
    write_dataset(folder, folder / "clip", {"resolution": RESOLUTION, "batch_size": 1}, repeated)
    dataset = {"dataset_config": str(folder / "dataset.toml")}
    learning, still = folder / "learning", folder / "learning_rate_0"
    training = {
        **dataset, **models["train"], "max_train_steps": STEPS, "mixed_precision": "no", "network_dim": 16,
        "network_alpha": 16.0, "timestep_sampling": "uniform", "num_timestep_buckets": PASS, "seed": SEED,
        "validation_dataset_config": dataset["dataset_config"], "validate_every_n_steps": PASS,
        "output_name": "one-clip", "fresh": True,
    }  # fmt: skip
    steps = (
        job_file(folder / "1_encode_clip.toml", "cache-latents", family, "One clip to latents.",
                 {**dataset, **models["cache-latents"]}),
        job_file(folder / "2_encode_caption.toml", "cache-text", family, "Its caption to a text embedding.",
                 {**dataset, **models["cache-text"]}),
        job_file(folder / "3_learn.toml", "train", family, "Learn the clip by heart.",
                 {**training, "learning_rate": LEARNING_RATE, "output_dir": str(learning)}),
        job_file(folder / "4_learning_rate_0.toml", "train", family, "The same at learning rate 0.",
                 {**training, "learning_rate": 0.0, "output_dir": str(still)}),
    )  # fmt: skip
    return OneClip(steps, learning, still, prepared.folder / "one_clip_loss.png")


@dataclass(frozen=True)
class Losses:
    """What a training said of itself: the loss of each step, and that of each validation by its step."""

    each: list[float]
    validation: list[tuple[int, float]]

    @property
    def smoothed(self) -> list[tuple[int, float]]:
        """The mean of each pass through the noise levels, by its last step."""
        return [(end, sum(self.each[end - PASS : end]) / PASS) for end in range(PASS, len(self.each) + 1, PASS)]

    @property
    def change(self) -> float:
        """Of the smoothed loss from its beginning to its end: -0.4 is a fall by 40 %."""
        return self.smoothed[-1][1] / self.smoothed[0][1] - 1

    @property
    def moved(self) -> bool:
        """Whether any validation gave another loss than the first, which was before the first step."""
        first = self.validation[0][1]
        return any(abs(loss - first) > ROUNDING * first for _, loss in self.validation)


def read_losses(output: Path) -> Losses:
    """The losses of the training that was last begun with this `--output_dir`."""
    record = max(output.glob("jobs/*/events.jsonl"), key=lambda path: path.stat().st_mtime)
    events = map(read, record.read_text(encoding="utf-8").splitlines())
    metrics = [event for event in events if isinstance(event, Metric)]
    return Losses(
        [metric.values["loss/current"] for metric in metrics if "loss/current" in metric.values],
        [(metric.step, metric.values["loss/validation"]) for metric in metrics if "loss/validation" in metric.values],
    )


def judge(learning: Losses, still: Losses) -> str:
    """What the two trainings show, in one line. EngineError when they do not show that training works."""
    hint = "Training does not work here. Please report it with the output of `python -m env_bootstrap run -- doctor`."
    if still.moved:
        losses = ", ".join(f"{loss:.6g}" for _, loss in still.validation)
        raise EngineError(
            f"At learning rate 0 the loss on the same noise changed, though nothing may change: {losses}.", hint
        )
    if learning.change > -LEAST_FALL:
        raise EngineError(
            f"In {STEPS} steps on one clip the smoothed loss changed by {percent(learning.change)}. It has to fall by "
            f"{100 * LEAST_FALL:.0f} % at least.",
            hint,
        )
    return f"One clip, {STEPS} steps: loss {percent(learning.change)}; at learning rate 0: {percent(still.change)}."


def percent(change: float) -> str:
    """`-0.674` → `-67 %`; what rounds to nothing is `±0 %`."""
    number = round(100 * change)
    return f"{number:+d} %" if number else "±0 %"


def draw(learning: Losses, still: Losses, path: Path) -> Path:
    """Both trainings in one chart; returns the PNG's path."""
    courses = [
        Course(
            label=f"learning rate {rate:g}: {percent(losses.change)}",
            losses=losses.each,
            average=losses.smoothed,
            measured=losses.validation,
        )
        for rate, losses in ((LEARNING_RATE, learning), (0.0, still))
    ]
    return courses_chart(
        courses,
        path,
        title=f"One clip, {STEPS} steps: a LoRA learns it by heart",
        average=f"average of {PASS} steps",
        measured="validation, on the same noise each time",
    )
