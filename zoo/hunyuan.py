"""Training Pocket HunyuanVideo and Pocket FramePack: `python -m zoo.hunyuan STAGE --out DIR --device cuda`.

    vae      the VAE, which both share
    dit      HunyuanVideo's DiT with both text encoders, with the VAE in the folder
    guided   it learns what guidance makes of it, and needs none from then on (--dit_minutes)
    i2v      FramePack's DiT, from HunyuanVideo's and with its text encoders
    decoder  the VAE's decoder goes on learning, beside or after the others
    show     pictures and figures of what is in the folder, and clips of held-out captions
    score    what the judge says of those

Options, going on after an interruption and several GPUs are as in `python -m zoo` (plan.py, README.md).
"""

from __future__ import annotations

import sys

from .hunyuan_recipe import HunyuanWorkshop
from .plan import read

STAGES = ("vae", "dit", "guided", "i2v", "decoder", "show", "score")  # methods of HunyuanWorkshop


def main(words: list[str]) -> None:
    plan = read(words, stages=STAGES)
    workshop = HunyuanWorkshop(plan)
    getattr(workshop, plan.stage)()
    workshop.together.part()


if __name__ == "__main__":
    main(sys.argv[1:])
