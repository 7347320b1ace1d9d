"""`python -m tests.memory.measured [--write]`: what the planner predicts today for every row that `bench` measured.

Each row of benchmarks/*_bench.json is predicted from its flags and from files that are headers only. Prints the table;
--write puts it into benchmarks/README.md. Where a row was measured with other code than today's, the planner is told
what was different then (`BEFORE_WHOLE_TILES`, `BEFORE_NARROW`).
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from engine.bench.cases import Case, all_cases
from engine.bench.files import CAPTION, Input, decoding_options, write_caches, write_dataset
from engine.contract.cli import parse
from engine.contract.job import changed
from engine.families import names, part
from engine.memory import activations
from engine.memory.activations import BLOCKS, COMPILED, Activations, Sizes
from engine.memory.estimate import GIB, largest
from engine.parts.workload import Kind
from engine.tasks import planned_weights
from engine.tasks.fitting import asked_size, wanted
from engine.tasks.planning import Survey

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FILES = ("h100_bench.json", "h200_bench.json")
ROOM = {"NVIDIA H100 80GB HBM3": int(79.1 * GIB), "NVIDIA H200": int(139.8 * GIB)}
LIMIT = 0.05
BEGIN, END = "<!-- planner: python -m tests.memory.measured --write -->", "<!-- end of planner -->"

Row = dict[str, Any]
Key = tuple[str, str, str]
"""File, case, mode."""

H200 = FILES[1]
BEFORE_WHOLE_TILES: frozenset[Key] = frozenset({
    (H200, "train-wan-1.3b-480x832x81", "free"), (H200, "train-wan-1.3b-480x832x81", "least"),
    (H200, "train-wan-14b-480x832x81", "free"),
    (H200, "train-hunyuan-13b-544x960x33", "free"), (H200, "train-hunyuan-13b-544x960x33", "least"),
})  # fmt: skip
"""Gradients of attention took tokens as they came; these rows are predicted so. (Some are also of before blocks were
computed again for their gradients alone, which changed no peak: benchmarks/h200_recomputing.json.)"""

BEFORE_NARROW: frozenset[Key] = BEFORE_WHOLE_TILES | {
    (H200, "train-wan-14b-480x832x33", "free"), (H200, "train-wan-14b-480x832x33", "least"),
    (H200, "train-framepack-640x640", "plain"), (H200, "train-framepack-640x640", "free"),
    (H200, "train-framepack-640x640", "least"),
}  # fmt: skip
"""From before a LoRA's scale multiplied what is narrow and compiled blocks stopped writing gradients in float32; these
rows are predicted with `WIDE` and `WRITTEN_OUT`."""
WIDE: Mapping[Kind, Activations] = {
    "cross": replace(BLOCKS["cross"], backward=(20.95, 4.1), last=(5, 1), piece=(7.1, 4.36)),
    "double": replace(BLOCKS["double"], backward=(15.2, 4.0), last=(6.2, 1), piece=(1.8, 4.0)),
    "single": replace(BLOCKS["single"], backward=(17.1, 4.0), last=(7.5, 2.0), whole=(15.2, 0), piece=(6.1, 3.0)),
}
WRITTEN_OUT: Mapping[Kind, tuple[Sizes, float]] = {
    "cross": ((-3.6, 1.63), 3.8),
    "double": ((4.1, 0), 1),
    "single": ((4.1, 0), 1),
}

_OFFLOADED = {"gradient_checkpointing_cpu_offload": True, "gradient_checkpointing_attention": "keep"}
_STREAMED = {**_OFFLOADED, "use_pinned_memory_for_block_swap": True}
PLANNED: Mapping[Key, Mapping[str, Any]] = {
    (H200, "train-wan-14b-480x832x33", "least"): {**_STREAMED, "ffn_chunks": 2, "blocks_to_swap": 38},
    (H200, "train-wan-1.3b-480x832x81", "least"): _OFFLOADED,
    (H200, "train-hunyuan-13b-544x960x33", "least"): {**_STREAMED, "ffn_chunks": 2, "blocks_to_swap": 59},
    (H200, "train-framepack-640x640", "least"): {**_STREAMED, "ffn_chunks": 2, "blocks_to_swap": 59},
    (H200, "denoise-wan-14b-480x832x81", "12gb"): {},
}
"""What --memory auto had chosen, of rows that do not say it ("planned"). The planner of the commit before each of these
rows chooses this, and predicts for it just what the row says was predicted then."""


@dataclass(frozen=True)
class Compared:
    """A row's peak beside today's prediction for it, GiB."""

    key: Key
    row: Row
    predicted: float

    @property
    def off(self) -> float:
        """The prediction is so much too large, as a share."""
        return self.predicted / self.row["peak_alloc_gib"] - 1

    @property
    def remark(self) -> str:
        return "before whole tiles" if self.key in BEFORE_WHOLE_TILES else ""


def measured_rows() -> Iterator[tuple[Key, Row]]:
    """Rows with a peak of commands that the planner knows."""
    for name in FILES:
        for row in json.loads((BENCHMARKS / name).read_text(encoding="utf-8")):
            case = CASES.get(row["case"])
            if row.get("peak_alloc_gib") and case and not case.modes[row["mode"]].diffusers:
                yield (name, row["case"], row["mode"]), row


CASES: Mapping[str, Case] = {
    case.name: case
    for case in all_cases(names(extra=False), lambda family: part(family, "bench"), backends=["sdpa"])
    if case.kind in ("train", "denoise", "encode", "decode")
}


class Predictions:
    """Of rows; files of headers are made in `folder`, once for each model."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[tuple[str, str], Path] = {}

    def of(self, key: Key, row: Row) -> Compared:
        """What is predicted today. KeyError for a plan of --memory auto that nobody wrote down."""
        tiles = {} if key in BEFORE_WHOLE_TILES else planned_weights.WHOLE_TILES
        before = key in BEFORE_NARROW
        with (
            mock.patch.object(planned_weights, "has_triton", lambda: True),
            mock.patch.object(planned_weights, "WHOLE_TILES", tiles),
            mock.patch.dict(BLOCKS, WIDE if before else {}),
            mock.patch.dict(COMPILED, WRITTEN_OUT if before else {}),
            mock.patch.object(activations, "JOINED", 0 if before else activations.JOINED),
        ):
            job = parse(self._words(CASES[row["case"]], row))
            assert job is not None
            survey = Survey(job)
            if wanted(job):
                job = changed(job, dict(row["planned"] if "planned" in row else PLANNED[key]))
            stages = survey.stages(job, room=asked_size(job) or ROOM[row["device"]])
            return Compared(key, row, largest(stages).device_bytes / GIB)

    def _words(self, case: Case, row: Row) -> list[str]:
        """The row's command line, with files of headers in the place of its files."""
        models, given = self._models(case), Input.of(case, tiny=False)
        folder = models / case.name
        folder.mkdir(exist_ok=True)
        values: dict[str, str] = {
            "--dit": f"{models}/dit.safetensors", "--vae": f"{models}/vae.safetensors", "--device": "cuda",
            "--output_dir": f"{folder}/out", "--save_path": f"{folder}/out",
        }  # fmt: skip
        if case.kind in ("train", "encode"):
            values["--dataset_config"] = str(write_dataset(case.family, folder, given))
        if case.kind == "train":
            assert case.model is not None
            write_caches(case.family, folder, given, case.model.config)
        if case.kind == "decode":
            values["--latent_path"] = str(decoding_options(case.family, folder, given)["latent_path"])
        for name in part(case.family, "options").TEXT_FILES + part(case.family, "options").IMAGE_FILES:
            values[f"--{name}"] = f"{models}/encoder.safetensors"
        words = shlex.split(row["flags"].replace(CAPTION, shlex.quote(CAPTION)))
        return [values.get(before, word) for before, word in zip(["", *words], words, strict=False)]

    def _models(self, case: Case) -> Path:
        model = case.model
        name = case.family, model.name if model else ""
        if name not in self._made:
            self._made[name] = folder = self._folder / "-".join(name)
            folder.mkdir()
            header_only(folder / "vae.safetensors", part(case.family, "bench").VAE.shapes())
            header_only(folder / "encoder.safetensors", {"layer.weight": (64, 64)})  # bench's are small too
            if model is not None:
                dit = part(case.family, "model").build(model.config)
                header_only(folder / "dit.safetensors", {key: tuple(v.shape) for key, v in dit.state_dict().items()})
        return self._made[name]


def header_only(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """A safetensors file of the right length whose weights, in bf16, are a hole."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def compared() -> list[Compared]:
    """All rows."""
    with tempfile.TemporaryDirectory() as folder:
        predictions = Predictions(Path(folder))
        return [predictions.of(key, row) for key, row in measured_rows()]


def table(found: list[Compared]) -> str:
    """As Markdown."""
    lines = [
        "| GPU | case | mode | measured | predicted | off | predicted then | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        device = one.row["device"].split()[1]
        then = f"{one.row['predicted_gib']:.2f}" if "predicted_gib" in one.row else ""
        cells = (
            device, one.row["case"], one.row["mode"], f"{one.row['peak_alloc_gib']:.2f}", f"{one.predicted:.2f}",
            f"{one.off:+.1%}", then, one.remark,
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    close = [one for one in found if abs(one.off) <= LIMIT]
    families = len({CASES[one.row["case"]].family for one in close})
    summary = f"{len(close)} of {len(found)} rows are at most {LIMIT:.0%} off, of {families} families."
    return "\n".join([*lines, "", summary])


def written(text: str, found: list[Compared]) -> str:
    """The README with the table between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(found)}\n{END}{after}"


def main(argv: list[str] | None = None) -> int:
    assert __doc__
    parser = argparse.ArgumentParser(prog="python -m tests.memory.measured", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/README.md")
    chosen, found = parser.parse_args(argv), compared()
    print(table(found))
    if chosen.write:
        readme = BENCHMARKS / "README.md"
        readme.write_text(written(readme.read_text(encoding="utf-8"), found), encoding="utf-8")
    return 0 if all(abs(one.off) <= LIMIT for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
