"""A command line of `python -m zoo`, read. What is None is left to the recipes (train_vae.py, train_dit.py)."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from .generating import GUIDANCE, STEPS
from .train_vae import COMPILED

STAGES = ("vae", "decoder", "dit", "i2v", "show", "score", "all")  # methods of Workshop, but for the last


@dataclass(frozen=True, kw_only=True)
class Plan:
    """See `read` for what each is."""

    stage: str
    out: Path
    copy_to: Path | None
    start_from: Path | None
    device: str
    sizes: str
    picture: int
    frames: int
    clips: int
    workers: int
    seed: int
    no_compile: bool
    recorded: bool
    muon: bool
    vae_minutes: float
    decoder_minutes: float
    vae_clips: int
    vae_widths: tuple[int, ...] | None
    vae_batch: int | None
    vae_rate: float | None
    vae_decay: float | None
    vae_absolute: float | None
    vae_squares: float | None
    vae_edges: float | None
    vae_compiled: str
    dit_minutes: float
    i2v_minutes: float
    dit_batch: int | None
    dit_rate: float | None
    dit_decay: float | None
    dit_shift: float | None
    dropped: float | None
    text_frozen: bool
    judged: int
    guidance: tuple[float, ...]
    steps: int


def read(words: list[str] | None, *, stages: tuple[str, ...] = STAGES) -> Plan:
    """The plan that a command line describes."""
    parser = argparse.ArgumentParser("python -m zoo", description="Train the pocket models from nothing.")
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--out", type=Path, required=True, help="folder for models, states and pictures")
    parser.add_argument("--copy_to", type=Path, help="folder that gets a copy of each finished file, states excepted")
    parser.add_argument("--start_from", type=Path, help="folder with finished files to train on, instead of nothing")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", default="pocket", help="pocket, or small for a CPU")
    parser.add_argument("--picture", type=int, default=64, help="pixels, a multiple of 16")
    parser.add_argument("--frames", type=int, default=17, help="4n + 1")
    parser.add_argument("--clips", type=int, default=160_000, help="clips that DiTs learn from")
    parser.add_argument("--workers", type=int, default=14, help="processes that draw clips, of each process")
    parser.add_argument("--seed", type=int, default=0, help="another one gives other first weights and batches")
    parser.add_argument("--no_compile", action="store_true", help="torch.compile nothing")
    parser.add_argument("--not_recorded", dest="recorded", action="store_false", help="no CUDA graphs")
    parser.add_argument("--adam", dest="muon", action="store_false", help="AdamW for all weights")
    _add_vae(parser)
    _add_dit(parser)
    return Plan(**vars(parser.parse_args(words)))


def _add_vae(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("VAE")
    group.add_argument("--vae_minutes", type=float, default=9.0, help="altogether, over all runs")
    group.add_argument("--decoder_minutes", type=float, default=9.0, help="of stage decoder, altogether")
    group.add_argument("--vae_clips", type=int, default=60_000, help="clips that it learns from")
    group.add_argument("--vae_widths", type=_integers, help="channels at full, half … size: 24,48,64,48")
    group.add_argument("--vae_batch", type=int, help="of each process")
    group.add_argument("--vae_rate", type=float)
    group.add_argument("--vae_decay", type=float, help="of the averaged weights")
    group.add_argument("--vae_absolute", type=float, help="weight of the absolute error")
    group.add_argument("--vae_squares", type=float, help="weight of the squared error")
    group.add_argument("--vae_edges", type=float, help="weight of the error of differences between neighbours")
    group.add_argument("--vae_compiled", choices=COMPILED, default="norms")


def _add_dit(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("DiT")
    group.add_argument("--dit_minutes", type=float, default=9.0, help="altogether, over all runs")
    group.add_argument("--i2v_minutes", type=float, default=9.0, help="of stage i2v, altogether")
    group.add_argument("--dit_batch", type=int, help="of each process")
    group.add_argument("--dit_rate", type=float)
    group.add_argument("--dit_decay", type=float, help="of the averaged weights")
    group.add_argument("--dit_shift", type=float, help="of the noise levels; more: noisier")
    group.add_argument("--dropped", type=float, help="share of captions that are left out")
    group.add_argument("--text_frozen", action="store_true", help="leave the text encoder of --start_from as it is")
    group.add_argument("--judged", type=int, default=192, help="held-out captions that `show` makes clips of")
    group.add_argument("--guidance", type=_numbers, default=(GUIDANCE,), help="scales that it makes them with: 2,4,6")
    group.add_argument("--steps", type=int, default=STEPS, help="solver steps that it makes them with")


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))
