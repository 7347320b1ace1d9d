"""Names inside a message."""

from __future__ import annotations

from pathlib import Path

from engine.contract.wording import beginning, choice_list, closest, counted, did_you_mean, first_few


def test_what_was_meant_and_what_there_is() -> None:
    assert closest("netwrok_dim", ["network_dim", "network_alpha"]) == "network_dim"
    assert closest("qqq", ["network_dim"]) == ""
    assert (choice_list([]), choice_list(["a"]), choice_list(["a", "b", "c"])) == ("", "a", "a, b or c")


def test_the_hint_for_an_unknown_name() -> None:
    assert did_you_mean("adamw", iter(["Lion", "AdamW8bit"])) == "Did you mean AdamW8bit?"
    assert did_you_mean("qqq", ["Lion"], "There is Lion.") == "There is Lion."
    assert did_you_mean("qqq", ["Lion"]) == ""


def test_one_is_not_several() -> None:
    assert (counted(0, "step"), counted(1, "epoch"), counted(2, "epoch")) == ("0 steps", "1 epoch", "2 epochs")
    assert (counted(1, "batch", "batches"), counted(2, "batch", "batches")) == ("1 batch", "2 batches")


def test_a_long_list_is_cut_short() -> None:
    assert first_few([]) == ""
    assert first_few(["a", "b", "c"]) == "a, b, c"
    assert first_few({"a": 1, "b": 2, "c": 3, "d": 4}) == "a, b, c, …"
    assert first_few((Path("clips", name) for name in ("1.mp4", "2.mp4")), count=1) == "1.mp4, …"


def test_the_beginning_of_a_text_in_any_script() -> None:
    assert beginning("a cat\n on  a board", most=20) == "a cat on a board"
    assert beginning("a cat on a skateboard", most=14) == "a cat on a…"
    assert beginning("a cat on a", most=10) == "a cat on a"
    assert beginning("a cat on a board", most=9) == "a cat on…"
    assert beginning("スケートボードに乗った猫が走る", most=8) == "スケートボード…"
    assert beginning("a incomprehensibilities", most=12) == "a incompreh…"
