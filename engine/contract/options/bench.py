"""Options of `bench`, which measures speed and memory on this machine."""

from __future__ import annotations

from dataclasses import dataclass

from ..schema import Section, opt


@dataclass(frozen=True, kw_only=True)
class Bench(Section, title="Measuring"):
    """Speed and memory on this machine: full-size models of random weights, through the ordinary commands.

    Each case is also run plainly, without any optimisation, to compare with. What is finished is kept: the same command
    goes on where it was stopped.
    """

    what: tuple[str, ...] = opt(
        (), "What to measure: train, generate, cache, stream, attention, linear, and model families. Default: all.",
        positional=True, metavar="WHAT",
    )  # fmt: skip
    list: bool = opt(False, "List the cases with their modes, and end.", transient=True)
    case: tuple[str, ...] = opt((), "Only cases with these names, or whose names begin with them.", metavar="NAME")
    mode: tuple[str, ...] = opt(
        (), "Only these modes, also such as --list shows in brackets, which are not run otherwise.", metavar="NAME"
    )
    steps: int | None = opt(
        None, "Measure this many steps, or calls, after the warm-up. Default: 5 steps, 20 calls of a kernel.",
        low=1, unit="steps",
    )  # fmt: skip
    out: str | None = opt(
        None, "Folder for the results: a JSON file for each case, and a table. Default: bench/ in MUSUBI_HOME, else "
        "./musubi-bench.", file_kind="folder", metavar="DIR",
    )  # fmt: skip
    scratch: str | None = opt(
        None, "Folder for the models, up to 35 GB, which are removed afterwards. Default: scratch/ in the folder of "
        "the results.", file_kind="folder", metavar="DIR",
    )  # fmt: skip
    again: bool = opt(False, "Measure finished cases again.")
    tiny: bool = opt(
        False, "Use small models, even without a GPU: this tries out bench itself; the figures mean nothing."
    )
