"""The cases as data: which command, on which model and size, and in which modes it is measured.

A mode is a list of ordinary flags. The first mode of a case is what the others are compared with. Names of cases say
what is measured, so that figures of different days and machines can be put side by side. Models and sizes come from the
families (`bench.py`); no family is named here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..contract.errors import OptionError
from ..contract.wording import did_you_mean
from ..families.values import BenchModel, BenchSize, BenchVae

Kind = Literal["train", "denoise", "encode", "decode", "attention", "linear"]
GROUPS = ("train", "generate", "cache", "stream", "attention", "linear")
KERNELS = ("attention", "linear")
LINEAR_FORMATS = ("bf16", "fp8_row", "fp8_tensor")


@dataclass(frozen=True)
class Mode:
    """Flags, in which `{vram}` and `{blocks}` stand for the case's. Only `usual` modes run unasked.

    `averaged`: steps of different length, of which the mean counts. `diffusers`: their VAE instead of
    a command of ours. `whole`: the whole command, videos and caches included, instead of its function alone.
    """

    flags: tuple[str, ...] = ()
    usual: bool = True
    averaged: bool = False
    diffusers: bool = False
    whole: bool = False


_CHECKPOINTS = ("--gradient_checkpointing",)
_FREE = (*_CHECKPOINTS, "--fp8_scaled", "--compile")
_FP8 = ("--fp8_scaled", "--compile")
_FAST = (*_FP8, "--attn_mode", "8bit")
_ALL = ("--blocks_to_swap", "{blocks}")
_ALL_STREAMED = ("--use_pinned_memory_for_block_swap", *_ALL)
_ALL_FROM_DISK = (*_ALL, "--block_swap_from_disk")

TRAIN: Mapping[str, Mode] = {
    "plain": Mode((*_CHECKPOINTS, "--gradient_checkpointing_attention", "recompute", "--sdpa")),
    "free": Mode(_FREE),
    "least": Mode((*_FREE, "--memory", "auto", "--vram", "{vram}")),
    "room": Mode((*_FP8, "--memory", "auto"), usual=False),  # as few checkpoints as the card allows
    # the three before with attention in 8 bits
    "free8": Mode((*_FREE, "--attn_8bit"), usual=False),
    "least8": Mode((*_FREE, "--attn_8bit", "--memory", "auto", "--vram", "{vram}"), usual=False),
    "room8": Mode((*_FP8, "--attn_8bit", "--memory", "auto"), usual=False),
    # each on its own line
    "kept": Mode((*_CHECKPOINTS, "--gradient_checkpointing_attention", "keep"), usual=False),
    "compiled": Mode((*_CHECKPOINTS, "--compile"), usual=False),
    "fp8": Mode((*_CHECKPOINTS, "--fp8_scaled"), usual=False),
    "streamed": Mode((*_CHECKPOINTS, "--fp8_scaled", *_ALL_STREAMED), usual=False),
    "pieces": Mode((*_CHECKPOINTS, "--fp8_scaled", "--ffn_chunks", "8"), usual=False),
}
DENOISE: Mapping[str, Mode] = {
    "plain": Mode(("--attn_mode", "sdpa")),
    "exact": Mode(("--compile",)),
    "fast": Mode(_FAST),
    "12gb": Mode((*_FAST, *_ALL_STREAMED, "--memory", "auto", "--vram", "12GB")),
    "8bit": Mode(("--compile", "--attn_mode", "8bit"), usual=False),
    "fp8": Mode(("--fp8_scaled",), usual=False),
    "fp8_compiled": Mode(_FP8, usual=False),
    "streamed": Mode(("--fp8_scaled", *_ALL_STREAMED), usual=False),
}
STREAM: Mapping[str, Mapping[str, Mode]] = {
    kind: {"none": Mode(flags), "all": Mode((*flags, *_ALL_STREAMED)), "disk": Mode((*flags, *_ALL_FROM_DISK))}
    for kind, flags in (("train", _FREE), ("denoise", _FP8))
}
CODERS: Mapping[str, Mapping[str, Mode]] = {
    "encode": {"diffusers": Mode(diffusers=True), "engine": Mode(), "pipeline": Mode(whole=True)},
    "decode": {"diffusers": Mode(diffusers=True), "engine": Mode()},
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of figures for each mode. `model` is None for a VAE, `vae` for all others."""

    name: str
    group: str
    kind: Kind
    family: str
    size: BenchSize
    modes: Mapping[str, Mode]
    model: BenchModel | None = None
    vae: BenchVae | None = field(default=None, repr=False)

    @property
    def baseline(self) -> str:
        return next(iter(self.modes))

    @property
    def options(self) -> Mapping[str, Mapping[str, Any]]:
        """By verb what its commands say besides files and sizes."""
        owner = self.model or self.vae
        return {} if owner is None else owner.options


def all_cases(families: Iterable[str], bench_of: Callable[[str], Any], *, backends: Sequence[str]) -> Iterator[Case]:
    """Every case of these families. Those of one model follow each other, because its files are made once.

    `bench_of` gives a family's bench.py, `backends` are the kinds of attention that this machine has,
    the one to compare with first.
    """
    for family in families:
        bench = bench_of(family)
        for model in bench.MODELS:
            yield from _of_model(family, model)
        for model in bench.MODELS:
            yield from _kernels(family, model, backends)
        for size in bench.VAE.sizes:
            for kind in ("encode", "decode"):
                name = f"vae-{kind}-{bench.VAE.name}-{size.name}"
                yield Case(
                    name=name, group="cache", kind=kind, family=family, size=size, modes=CODERS[kind], vae=bench.VAE
                )  # fmt: skip


def _of_model(family: str, model: BenchModel) -> Iterator[Case]:
    saving = {name: Mode(flags, usual=False, averaged=True) for name, flags in model.modes.items()}
    runs: tuple[tuple[Kind, str, tuple[BenchSize, ...], Mapping[str, Mode]], ...] = (
        ("train", "train", model.train, TRAIN),
        ("denoise", "generate", model.denoise, {**DENOISE, **saving}),
    )
    for kind, group, sizes, modes in runs:
        for size in sizes:
            case = Case(
                name=f"{kind}-{model.name}-{size.name}", group=group, kind=kind, family=family, size=size, modes=modes,
                model=model,
            )  # fmt: skip
            yield case
            yield Case(**{**vars(case), "name": f"stream-{case.name}", "group": "stream", "modes": STREAM[kind]})


def _kernels(family: str, model: BenchModel, backends: Sequence[str]) -> Iterator[Case]:
    attention = {name: Mode() for name in backends}
    formats = {name: Mode() for name in LINEAR_FORMATS}
    for size in model.train:
        for group, modes in (("attention", attention), ("linear", formats)):
            yield Case(
                name=f"{group}-{model.name}-{size.name}", group=group, kind=group, family=family, size=size,
                modes=modes, model=model,
            )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- choosing


def chosen(
    cases: Sequence[Case], *, what: Sequence[str], names: Sequence[str], modes: Sequence[str]
) -> list[tuple[Case, tuple[str, ...]]]:
    """The cases that are asked for, each with the modes to run. OptionError for a word that means nothing.

    `what`: groups and families, `names`: names of cases or their beginnings, `modes`: their names; empty: all.
    """
    families = {case.family for case in cases}
    known = {name.replace("_", "-"): name for name in (*GROUPS, *families)}
    words = [known.get(word.replace("_", "-").lower()) or _unknown(word, known) for word in what]
    groups, wanted = [word for word in words if word in GROUPS], [word for word in words if word in families]
    found = [
        case
        for case in cases
        if (not groups or case.group in groups)
        and (not wanted or case.family in wanted)
        and (not names or case.name.startswith(tuple(names)))
    ]
    for name in names:
        if not any(case.name.startswith(name) for case in cases):
            _unknown(name, [case.name for case in cases], "--case ")
    for mode in modes:
        if not any(mode in case.modes for case in found):
            _unknown(mode, {name for case in found for name in case.modes}, "--mode ")
    pairs = [(case, tuple(name for name, mode in case.modes.items() if _asked(name, mode, modes))) for case in found]
    return [(case, asked) for case, asked in pairs if asked]


def _asked(name: str, mode: Mode, modes: Sequence[str]) -> bool:
    return name in modes if modes else mode.usual


def _unknown(word: str, known: Iterable[str], flag: str = "") -> str:
    known = sorted(known)
    hint = did_you_mean(word, known, f"There are: {', '.join(known)}.")
    raise OptionError(f"bench knows no {flag}{word}.", hint=f"{hint} --list shows all.")


def listing(cases: Iterable[Case]) -> str:
    """A line for each case; modes that only run when asked for stand in brackets."""
    lines = []
    for case in cases:
        modes = " ".join(name if mode.usual else f"[{name}]" for name, mode in case.modes.items())
        lines.append(f"{case.group:<10}{case.name:<44}{modes}")
    return "\n".join(lines)
