"""Gives the words that no base clip has a place beside words of their kind, in the text encoders' token tables.

A text encoder that has read a library knows that a hexagon is a shape like others, whatever the video model behind it
has seen. To the pocket encoders a word that they were not trained on was noise: the states of "hexagon" in 60 captions
had a mean cosine of 0.46 with each other, those of "circle" 0.92, so that a LoRA had nothing to hold on to. Now such a
word begins as the mean of trained words. No caption of the base clips changes.

    python -m zoo.new_words FOLDER        # of finished files
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

KIN: dict[str, tuple[str, ...]] = {
    "hexagon": ("circle", "square"),
    "striped": ("checkered", "dotted"),
    "stripes": ("dots", "spots"),
    "zigzag": ("loop", "place"),
    "zigzags": ("swings", "bounces", "drifts"),
    "zigzagging": ("swinging", "bouncing", "drifting"),
    "pixel": ("starry", "cloudy"),
    "art": ("clouds", "stars"),
    "style": ("clouds", "stars", "background"),
}
"""Words that only captions of concepts have, and trained words of their kind."""


def settled(table_VD: Tensor, split: Callable[[str], list[int]]) -> Tensor:
    """The token table with new words' rows as the mean of their kin, as long as those are. `split`: the tokenizer's."""
    table_VD = table_VD.clone()
    for word, kin in KIN.items():
        rows = table_VD[[split(other)[0] for other in kin]].float()
        mean_D = rows.mean(0)
        table_VD[split(word)[0]] = (mean_D * (rows.norm(dim=1).mean() / mean_D.norm())).to(table_VD.dtype)
    return table_VD


def settle_folder(folder: Path) -> list[Path]:
    """Settle the text encoders of the folder anew; the files that were written."""
    from . import pocket_hunyuan, pocket_wan
    from .data import own_tokenizer

    written = []
    if (path := folder / pocket_wan.TEXT_NAME).exists():
        pocket_wan.write_text_encoder(
            path, pocket_wan.read_text_encoder(path).state_dict(), tokenizer=own_tokenizer()[0]
        )
        written.append(path)
    for name, read, write in (
        (pocket_hunyuan.LLAMA_NAME, pocket_hunyuan.read_llama, pocket_hunyuan.write_llama),
        (pocket_hunyuan.CLIP_NAME, pocket_hunyuan.read_clip, pocket_hunyuan.write_clip),
    ):
        if (path := folder / name).exists():
            write(path, read(path).state_dict(), sizes=pocket_hunyuan.POCKET.text)
            written.append(path)
    return written


if __name__ == "__main__":
    sys.stdout.write("".join(f"{path}\n" for path in settle_folder(Path(sys.argv[1]))))
