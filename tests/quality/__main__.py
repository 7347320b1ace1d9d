"""`python -m tests.quality OUT.json`: what each setting costs, on many clips. A table, and the same as JSON.

The tests in this folder make few clips, so that they are quick. This takes about forty minutes of one quiet core;
`--only step_cache` makes what has that in its name. Of settings that leave steps out it is also told how far their
latents lie from those of all steps, where 1 is how far those of as few steps lie.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from engine.contract.files import write_text

from . import loras
from .making import WAN, Comparison, Made, latents_apart, make, one_thread
from .settings import SETTINGS, STEPS, Setting, make_with
from .skipping import noted

LORA_CLIPS = 8
HEAD = (
    "| setting | steps | clips | colour | shape | motion | score | lost | verdicts changed | levels | distance |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
)


class Bench:
    """Makes clips in a folder, those without any setting once."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._made: dict[tuple[str, int, int], Made] = {}

    def plain(self, setting: Setting, steps: int, count: int) -> Made:
        """The clips of this setting's model without it. The first clips of a family are made for all settings."""
        key = (setting.pocket.family, steps, count)
        if key not in self._made:
            folder = self._folder / "-".join(map(str, key))
            self._made[key] = make(folder, setting.pocket, numbers=range(count), steps=steps)
        return self._made[key]

    def with_it(self, setting: Setting, count: int) -> tuple[Comparison, dict[str, object]]:
        """The clips with the setting beside those without, and what more is to be told."""
        base = self.plain(setting, setting.steps, count)
        with noted() as ran:
            folder = self._folder / f"setting {setting.name}"
            made = make_with(folder, setting, numbers=range(count))
        if not setting.skips:
            return Comparison(base, made), {"steps": f"{setting.steps}"}
        mean = sum(map(len, ran)) / len(ran)
        fewer = self.plain(setting, round(mean), count)
        distance = latents_apart(base, made) / latents_apart(base, fewer)
        more = {"steps": f"{mean:.1f} of {setting.steps}", "distance": distance, "fewer_score": fewer.points["score"]}
        return Comparison(base, made), more


def comparisons(folder: Path, *, share: float, only: str) -> Iterator[tuple[str, Comparison, dict[str, object]]]:
    """Each setting beside the ordinary way, `share` of its usual clips."""
    bench, shown = Bench(folder), set()
    for setting in (one for one in SETTINGS if only in one.name):
        count, family = max(1, round(setting.clips * share)), setting.pocket.family
        base = bench.plain(setting, setting.steps, count)
        if (family, setting.steps, count) not in shown:
            shown.add((family, setting.steps, count))
            yield f"{family}, as it is", Comparison(base, base), {"steps": f"{setting.steps}"}
        yield f"{family} {setting.name}", *bench.with_it(setting, count)
    if only not in "LoRA":
        return
    count = max(1, round(LORA_CLIPS * share))
    native = loras.write_random(folder / "native.safetensors", alpha=loras.ROUNDED)
    base = make(folder / "native", WAN, "--lora_weight", native, numbers=range(count), steps=STEPS)
    for name, path in loras.converted(native, folder).items():
        made = make(folder / name, WAN, "--lora_weight", path, numbers=range(count), steps=STEPS)
        yield f"LoRA converted: {name}", Comparison(base, made), {"steps": f"{STEPS}"}


def row(name: str, found: Comparison, more: dict[str, object]) -> dict[str, object]:
    return {
        "setting": name, "clips": len(found.other.captions), **found.other.points, "lost": found.lost["score"],
        "verdicts_changed": found.changed, "levels": found.levels,
        "latents": latents_apart(found.base, found.other),
        "wrong": found.other.wrong, **more,
    }  # fmt: skip


def line(found: dict[str, object]) -> str:
    """A line of the table."""
    shown = [f"{found[name]:.1f}" for name in ("colour", "shape", "motion", "score")]
    ends = (f"{found['lost']:.1f}", f"{found['verdicts_changed']}", f"{found['levels']:.2f}")
    apart = f"{found['distance']:.3f}" if "distance" in found else ""
    begins = (str(found["setting"]), str(found["steps"]), str(found["clips"]))
    return "| " + " | ".join((*begins, *shown, *ends, apart)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.quality", description="What options cost in quality.")
    parser.add_argument("out", type=Path, metavar="OUT.json")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual number of clips")
    parser.add_argument("--only", default="", metavar="TEXT", help="settings with this in their names")
    chosen = parser.parse_args()
    rows = []
    sys.stdout.write("\n".join(HEAD) + "\n")
    with tempfile.TemporaryDirectory() as folder, one_thread():
        for name, found, more in comparisons(Path(folder), share=chosen.share, only=chosen.only):
            rows.append(row(name, found, more))
            sys.stdout.write(line(rows[-1]) + "\n")
            sys.stdout.flush()
            write_text(chosen.out, json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
