"""Every row of figures beside what the planner predicts for it today."""

from __future__ import annotations

import json

import pytest

from tests.memory import measured
from tests.memory.measured import BENCHMARKS, LIMIT, Predictions, compared, measured_rows, written

ROWS = dict(measured_rows())


@pytest.fixture(scope="module")
def predictions(tmp_path_factory):
    return Predictions(tmp_path_factory.mktemp("headers"))


@pytest.mark.parametrize("key", ROWS, ids="/".join)
def test_a_row_takes_what_is_predicted(predictions, key):
    found = predictions.of(key, ROWS[key])
    assert abs(found.off) <= LIMIT, f"{found.predicted:.2f} GiB predicted, {found.row['peak_alloc_gib']} measured"


def test_what_is_said_of_rows_is_said_of_rows_that_there_are():
    assert (measured.BEFORE_NARROW | measured.PLANNED.keys()) <= ROWS.keys()


def test_a_row_that_says_what_was_planned_is_believed(predictions):
    key = ("h200_bench.json", "train-wan-14b-480x832x33", "least")
    other = {**measured.PLANNED[key], "blocks_to_swap": 40}
    less = predictions.of(key, {**ROWS[key], "planned": other}).predicted
    assert less < predictions.of(key, ROWS[key]).predicted


def test_whole_tiles_are_counted_where_they_were_made(predictions, monkeypatch):
    key = ("h200_bench.json", "train-wan-14b-480x832x33", "least")
    row = {**ROWS[key], "planned": {**measured.PLANNED[key], "ffn_chunks": 8}}
    with_tiles = predictions.of(key, row).predicted
    monkeypatch.setattr(measured, "BEFORE_WHOLE_TILES", {key})
    assert predictions.of(key, row).predicted < with_tiles - 0.1


def test_the_readme_has_the_table_of_today():
    text = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert measured.BEGIN in text and measured.END in text
    assert written(text, compared()) == text, "run: python -m tests.memory.measured --write"


def test_every_command_is_compared():
    there = {
        (name, row["case"], row["mode"])
        for name in measured.FILES
        for row in json.loads((BENCHMARKS / name).read_text(encoding="utf-8"))
        if row["mode"] != "diffusers"
    }
    assert there == ROWS.keys()
