"""Training the pocket models: `python -m zoo all --out DIR --device cuda`.

    vae      the VAE alone
    dit      text-to-video and the text encoder, with the VAE in the folder
    i2v      image-to-video, from what `dit` has made
    decoder  the VAE's decoder goes on learning, beside or after the others
    show     pictures and figures of what is in the folder, and clips of held-out captions
    score    what the judge says of those
    all      vae, dit, i2v and show, each in a process of its own

What was interrupted goes on when the same line is given again. README.md says how long things take.
"""

from __future__ import annotations

import subprocess
import sys

from .plan import read
from .recipe import Workshop

_ALL = ("vae", "dit", "i2v", "show")


def main(words: list[str]) -> None:
    plan = read(words)
    if plan.stage == "all":
        for stage in _ALL:
            # processes that draw are forks, and a process that has used a GPU should not be forked
            line = [stage if word == "all" else word for word in words]
            subprocess.run([sys.executable, "-m", "zoo", *line], check=True)
        return
    workshop = Workshop(plan)
    getattr(workshop, plan.stage)()
    workshop.together.part()


if __name__ == "__main__":
    main(sys.argv[1:])
