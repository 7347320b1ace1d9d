"""`python -m tests.quality OUT.json`: what each setting costs, on many clips. A table, and the same as JSON.

The tests in this folder make few clips, so that they are quick. This takes about ten minutes of one quiet core.
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
from .settings import SETTINGS, STEPS

LORA_CLIPS = 8
HEAD = (
    "| setting | clips | colour | shape | motion | score | lost | verdicts changed | levels of 255 |",
    "|---|---|---|---|---|---|---|---|---|",
)


def comparisons(folder: Path, *, share: float) -> Iterator[tuple[str, Comparison]]:
    """Each setting beside the ordinary way, `share` of its usual clips."""
    bases: dict[str, Made] = {}
    for number, setting in enumerate(SETTINGS):
        pocket, count = setting.pocket, max(1, round(setting.clips * share))
        if pocket.family not in bases:
            bases[pocket.family] = make(folder / pocket.family, pocket, numbers=range(count), steps=STEPS)
            base = bases[pocket.family]
            yield f"{pocket.family}, as it is", Comparison(base, base)
        made = make(folder / f"setting_{number}", pocket, *setting.flags, numbers=range(count), steps=STEPS)
        yield f"{pocket.family} {setting.name}", Comparison(bases[pocket.family], made)
    count = max(1, round(LORA_CLIPS * share))
    native = loras.write_random(folder / "native.safetensors", alpha=loras.ROUNDED)
    base = make(folder / "native", WAN, "--lora_weight", native, numbers=range(count), steps=STEPS)
    for name, path in loras.converted(native, folder).items():
        made = make(folder / name, WAN, "--lora_weight", path, numbers=range(count), steps=STEPS)
        yield f"LoRA converted: {name}", Comparison(base, made)


def row(name: str, found: Comparison) -> dict[str, object]:
    return {
        "setting": name, "clips": len(found.other.captions), **found.other.points, "lost": found.lost["score"],
        "verdicts_changed": found.changed, "levels": found.levels,
        "latents": latents_apart(found.base, found.other),
        "wrong": found.other.wrong,
    }  # fmt: skip


def line(found: dict[str, object]) -> str:
    """A line of the table."""
    shown = [f"{found[name]:.1f}" for name in ("colour", "shape", "motion", "score")]
    ends = (f"{found['lost']:.1f}", f"{found['verdicts_changed']}", f"{found['levels']:.2f}")
    return "| " + " | ".join((str(found["setting"]), str(found["clips"]), *shown, *ends)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.quality", description="What options cost in quality.")
    parser.add_argument("out", type=Path, metavar="OUT.json")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual number of clips")
    chosen = parser.parse_args()
    rows = []
    sys.stdout.write("\n".join(HEAD) + "\n")
    with tempfile.TemporaryDirectory() as folder, one_thread():
        for name, found in comparisons(Path(folder), share=chosen.share):
            rows.append(row(name, found))
            sys.stdout.write(line(rows[-1]) + "\n")
            sys.stdout.flush()
            write_text(chosen.out, json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
