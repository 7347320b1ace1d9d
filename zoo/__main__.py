"""Training the pocket models: `python -m zoo all --out DIR --device cuda`.

    vae   the VAE alone
    dit   DiT and text encoder, with the VAE in the folder
    show  pictures and figures of what is in the folder, and latents of many captions
    all   these one after the other; what is finished already is not done again
    score what the judge says of the clips that `show` has made

What was interrupted goes on when the same line is given again. README.md says how long things take.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .recipe import Plan, Workshop

STAGES = ("vae", "dit", "show", "score", "all")  # methods of Workshop


def main() -> None:
    plan = read(None)
    getattr(Workshop(plan), plan.stage)()


def read(words: list[str] | None) -> Plan:
    """The plan that a command line describes."""
    parser = argparse.ArgumentParser("python -m zoo", description="Train the pocket models from nothing.")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, required=True, help="folder for models, states and pictures")
    parser.add_argument("--copy_to", type=Path, help="folder that gets a copy of each finished file, states excepted")
    parser.add_argument("--start_from", type=Path, help="folder with finished files to train on, instead of nothing")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--vae_minutes", type=float, default=4.0, help="altogether, over all runs")
    parser.add_argument("--dit_minutes", type=float, default=4.0, help="altogether, over all runs")
    parser.add_argument("--sizes", default="pocket", help="pocket, or small for a CPU")
    parser.add_argument("--clips", type=int, default=120_000, help="clips to train on")
    parser.add_argument("--workers", type=int, default=14, help="processes that draw them")
    parser.add_argument("--picture", type=int, default=64, help="pixels, a multiple of 16")
    parser.add_argument("--frames", type=int, default=17, help="4n + 1")
    parser.add_argument("--vae_batch", type=int, default=None)
    parser.add_argument("--vae_rate", type=float, default=None)
    parser.add_argument("--dit_batch", type=int, default=None)
    parser.add_argument("--dit_rate", type=float, default=None)
    parser.add_argument("--no_compile", action="store_true", help="torch.compile nothing")
    parser.add_argument("--judged", type=int, default=512, help="held-out captions that clips are made of at the end")
    return Plan(**vars(parser.parse_args(words)))


if __name__ == "__main__":
    main()
