"""Rows of figures side by side."""

from __future__ import annotations

from engine.bench.table import compared, drawn, remark

ROWS = [
    {"mode": "plain", "seconds": 4.0, "peak_alloc_gib": 30.123, "utilisation": 0.414},
    {"mode": "free", "seconds": 2.0, "first_step_after_s": 9.5},
    {"mode": "least", "failed": {"kind": "memory", "message": "Out of memory: …", "hint": ""}},
]


def test_rows_are_compared_with_the_baseline_of_their_shape():
    plain, free, least = compared(ROWS, baseline="plain")
    assert plain["baseline_seconds"] == free["baseline_seconds"] == 4.0 and free["baseline_mode"] == "plain"
    assert "baseline_seconds" not in least
    shapes = [
        {"mode": mode, "shape": [size], "seconds": size * seconds, "backward_seconds": 1.0}
        for size in (1, 10)
        for mode, seconds in (("bf16", 2.0), ("fp8", 1.0))
    ]
    assert [row["baseline_seconds"] for row in compared(shapes, baseline="bf16")] == [2.0, 2.0, 20.0, 20.0]


def test_an_older_comparison_does_not_outlive_its_baseline():
    old = {"mode": "free", "seconds": 2.0, "baseline_seconds": 7.0, "baseline_mode": "plain"}
    assert compared([old], baseline="plain") == [{"mode": "free", "seconds": 2.0}]


def test_the_table_shows_figures_gains_and_what_went_wrong():
    text = drawn([("train-x", compared(ROWS, baseline="plain"))])
    head, plain, free, least, *_ = text.splitlines()
    assert head.split()[:4] == ["case", "mode", "time", "faster"] and "first step" in head
    assert plain.split()[:6] == ["train-x", "plain", "4.000", "s", "1.00x", "30.12"] and "41%" in plain
    assert (
        free.split()[:4] == ["free", "2.000", "s", "2.00x"] and free.endswith("9.5") and least.endswith("out of memory")
    )


def test_kernels_have_a_table_of_their_own():
    row = {"mode": "bf16", "shape": [80, 64], "seconds": 0.0012, "backward_seconds": 0.002, "error": 0.0016}
    text = drawn([("train-x", ROWS), ("linear-x", [row])])
    assert "80x64" in text and "1.200 ms" in text and text.count("case ") == 2


def test_remarks_are_in_words():
    assert remark({"skipped": "no diffusers"}) == "skipped: no diffusers" and remark({"seconds": 1.0}) == ""
    assert remark({"failed": {"kind": "bug", "message": "KeyError: x", "hint": ""}}) == "KeyError: x"
