"""What whole jobs are predicted to take against what an H100 took."""

from __future__ import annotations

import json

import pytest

from engine.contract import cli
from engine.memory.estimate import GIB, largest
from engine.tasks import planned_weights
from engine.tasks.planning import Survey
from tests.memory.measured import BENCHMARKS, ROOM
from tests.tasks.planned_jobs import generation_line, training_line, worst

pytestmark = pytest.mark.usefixtures("machine")
RECOMPUTE = ("--gradient_checkpointing_attention", "recompute")
SWAP = ("--fp8_scaled", "--use_pinned_memory_for_block_swap", "--blocks_to_swap", "20")
# benchmarks/h100_wan_train.json; in fp8 without the Triton kernel, which came later
TRAININGS = [
    ("wan-1.3b", (480, 832, 33), (), 6.2),
    ("wan-1.3b", (480, 832, 33), ("--fp8_scaled",), 5.9),
    ("wan-1.3b", (480, 832, 33), SWAP, 5.1),
    ("wan-1.3b", (480, 832, 81), (), 10.1),
    ("wan-14b", (480, 832, 33), (), 38.1),
    ("wan-14b", (480, 832, 33), ("--fp8_scaled",), 26.6),
    ("wan-14b", (480, 832, 33), SWAP, 20.8),
]
# what the modes of benchmarks/h100_full_size.json were, and how many blocks "swap" streamed
RECORDED = {
    "bf16": (), "fp8_scaled": ("--fp8_scaled",), "compile": ("--compile",),
    "fp8_compile": ("--fp8_scaled", "--compile"),
    "swap": ("--fp8_scaled", "--use_pinned_memory_for_block_swap", "--blocks_to_swap"),
    "magcache": ("--magcache_mag_ratios", "0"), "plain": ("--gradient_checkpointing_attention", "recompute"),
    "free": ("--fp8_scaled", "--compile"), "exact": ("--compile",), "fast": ("--fp8_scaled", "--compile"),
}  # fmt: skip
STREAMED = {"wan-1.3b": "20", "wan-14b": "20", "hunyuan-video-13b": "30", "framepack": "30"}
OVERTAKEN = ("generate-wan-14b-480x832x33/compile",)  # before Wan's blocks were cut at their attention
ROWS = json.loads((BENCHMARKS / "h100_full_size.json").read_text())
FULL_SIZE = [
    row for row in ROWS
    if row["case"].split("-")[0] in ("train", "generate", "denoise") and row["mode"] in RECORDED
    and f"{row['case']}/{row['mode']}" not in OVERTAKEN
]  # fmt: skip


@pytest.fixture
def plain_quantizing(machine, monkeypatch):
    monkeypatch.setattr(planned_weights, "has_triton", lambda: False)


@pytest.mark.parametrize(("model", "size", "more", "measured"), TRAININGS)
@pytest.mark.usefixtures("plain_quantizing")
def test_trainings_take_what_was_measured(headers, tmp_path, model, size, more, measured):
    stage = worst(training_line(headers, tmp_path, model, size, *RECOMPUTE, *more))
    assert stage.name == "training step" and stage.device_bytes / GIB == pytest.approx(measured, rel=0.05)


BENCH_NAMES = {"hunyuan-13b": "hunyuan-video-13b"}
ONE_SECTION = {"640x640": "640x640x37"}  # FramePack's, in frames of the clip


@pytest.mark.parametrize("row", FULL_SIZE, ids=lambda row: f"{row['case']}/{row['mode']}")
def test_full_size_cases_take_what_was_measured(headers, tmp_path, row):
    verb, _, rest = row["case"].partition("-")
    model, _, size = rest.rpartition("-")
    model, size = BENCH_NAMES.get(model, model), ONE_SECTION.get(size, size)
    more = [*RECORDED[row["mode"]], *([STREAMED[model]] if row["mode"] == "swap" else [])]
    line = training_line if verb == "train" else generation_line
    job = cli.parse(line(headers, tmp_path, model, [int(number) for number in size.split("x")], *more))
    stage = largest(Survey(job).stages(job, room=ROOM[row["device"]]))
    assert stage.device_bytes / GIB == pytest.approx(row["peak_alloc_gib"], rel=0.05)
