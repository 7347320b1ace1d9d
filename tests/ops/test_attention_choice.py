from __future__ import annotations

import json
from unittest.mock import Mock

import pytest
import torch

from engine.ops import attention, attention_choice, kept_attention
from engine.ops.attention_choice import Asked, choose, taken

GPU = torch.device("cuda", 0)
ASKED = Asked(GPU, "A card 9.0", torch.bfloat16, 128, learning=False)


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    monkeypatch.setattr(attention_choice, "WARM_SECONDS", 0)
    attention_choice.forget()
    yield
    attention_choice.forget()


def kernels(**times):
    """Kernels, and a clock that says what each takes: milliseconds, or what it fails with."""
    tried = []

    def run(name):
        tried.append(name)
        if isinstance(times[name], Exception):
            raise times[name]
        return times[name]

    return {name: lambda name=name: run(name) for name in times}, lambda run: run(), tried


def chosen(**keys):
    return taken(GPU, torch.bfloat16, 128, **{"learning": False, **keys})


def test_the_fastest_is_taken_and_the_file_remembers_it(tmp_path):
    file = tmp_path / "attention.json"
    runs, clock, tried = kernels(cudnn=3.0, flash=2.0, efficient=4.0)
    choice = choose(ASKED, runs, file=file, clock=clock)
    assert (choice.name, choice.remembered, tried) == ("flash", False, ["cudnn", "flash", "efficient"])
    assert (
        chosen() == "flash" and chosen(learning=True) is None and taken(GPU, torch.float16, 128, learning=False) is None
    )
    attention_choice.forget()
    again = choose(ASKED, runs, file=file, clock=clock)
    assert again.remembered and again.milliseconds == choice.milliseconds and len(tried) == 3 and chosen() == "flash"


def test_those_that_are_close_are_timed_by_turns_on_a_warm_card(tmp_path, monkeypatch):
    """On a cold one the first would seem faster than it is for long."""
    now, tried = [0.0], []
    monkeypatch.setattr(attention_choice, "WARM_SECONDS", 2)
    monkeypatch.setattr(attention_choice, "monotonic", lambda: now[0])

    def run(name, cold, warm):
        tried.append(name)
        now[0] += 0.1
        return cold if now[0] < 1 else warm

    runs = {
        "cudnn": lambda: run("cudnn", 1.0, 1.2), "hopper": lambda: run("hopper", 0.97, 1.0),
        "efficient": lambda: run("efficient", 4.0, 4.0),
    }  # fmt: skip
    choice = choose(ASKED, runs, file=tmp_path / "a.json", clock=lambda run: run())
    assert choice.name == "hopper" and choice.milliseconds == {"cudnn": 1.2, "hopper": 1.0}
    assert tried == ["cudnn", "hopper", "efficient", *["cudnn", "hopper"] * 10]


def test_times_of_a_cold_card_are_not_compared_with_those_of_a_warm_one(tmp_path):
    """A kernel just too slow for the turns would come out first where warmth costs more than what it lacked."""
    seen = {"cudnn": [1.0, 1.4], "hopper": [1.1, 1.54], "flash": [1.31, 1.83]}
    runs = {name: Mock(side_effect=times) for name, times in seen.items()}
    choice = choose(ASKED, runs, file=tmp_path / "a.json", clock=lambda run: run())
    assert choice.name == "cudnn" and choice.milliseconds == {"cudnn": 1.4, "hopper": 1.54}


def test_what_fails_in_a_later_turn_is_left_out_too(tmp_path):
    seen = {"cudnn": [1.0, 1.4], "hopper": [0.8, RuntimeError("misaligned address")], "flash": [1.0, 1.1]}
    runs = {name: Mock(side_effect=times) for name, times in seen.items()}
    choice = choose(ASKED, runs, file=tmp_path / "a.json", clock=lambda run: run())
    assert choice.name == "flash" and choice.milliseconds == {"cudnn": 1.4, "flash": 1.1}


@pytest.mark.parametrize(("time", "name"), [(0.97, "cudnn"), (0.9, "flash")])
def test_what_is_hardly_faster_than_the_usual_one_is_not_taken(tmp_path, time, name):
    runs, clock, _ = kernels(cudnn=1.0, flash=time)
    assert choose(ASKED, runs, file=tmp_path / "a.json", clock=clock).name == name == chosen()


def test_what_fails_here_is_left_out(tmp_path):
    """In whatever way: packages, compilers and DLLs have errors of their own."""
    file = tmp_path / "a.json"
    failing = {"cudnn": RuntimeError("No available kernel."), "flash3": OSError("no DLL"), "flash2": KeyError("sm_120")}
    runs, clock, _ = kernels(**failing, flash=2.0, efficient=1.0)
    assert choose(ASKED, runs, file=file, clock=clock).milliseconds == {"flash": 2.0, "efficient": 1.0}
    assert chosen() == "efficient"
    runs, clock, _ = kernels(**failing, flash=2.0)
    before = file.read_text()
    assert choose(Asked(GPU, "x", torch.float16, 64, learning=True), runs, file=file, clock=clock) is None
    assert file.read_text() == before


def test_no_room_is_no_choice_and_not_remembered(tmp_path):
    file = tmp_path / "a.json"
    runs, clock, _ = kernels(cudnn=torch.OutOfMemoryError("CUDA out of memory."), flash=2.0, efficient=3.0)
    assert choose(ASKED, runs, file=file, clock=clock) is None and chosen() is None and not file.exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}'])
def test_a_damaged_file_is_made_anew(tmp_path, text):
    file = tmp_path / "attention.json"
    file.write_text(text)
    runs, clock, _ = kernels(cudnn=1.0, flash=2.0)
    assert not choose(ASKED, runs, file=file, clock=clock).remembered
    assert choose(ASKED, runs, file=file, clock=clock).remembered


def test_other_numbers_in_the_file_are_tried_out_anew(tmp_path):
    file = tmp_path / "attention.json"
    runs, clock, _ = kernels(cudnn=1.0, flash=2.0)
    for wrong in ("fast", {}, {"flash": 2.0}, {"sage": 0.1, "cudnn": 1.0}, {"cudnn": "x"}, {"cudnn": -1.0}):
        file.write_text(json.dumps({ASKED.key(runs): wrong, "another card": {"cudnn": 2.0}}))
        assert choose(ASKED, runs, file=file, clock=clock).milliseconds == {"cudnn": 1.0, "flash": 2.0}
        assert json.loads(file.read_text())["another card"] == {"cudnn": 2.0}


def test_another_card_type_or_package_is_another_choice(tmp_path):
    file = tmp_path / "attention.json"
    runs, clock, tried = kernels(cudnn=1.0, flash=2.0, flash3=0.5)
    few = {name: runs[name] for name in ("cudnn", "flash")}
    for asked, some in (
        (ASKED, few),
        (Asked(GPU, "Another card 8.9", torch.bfloat16, 128, learning=False), few),
        (Asked(GPU, "A card 9.0", torch.float16, 128, learning=False), few),
        (ASKED, runs),
    ):
        assert not choose(asked, some, file=file, clock=clock).remembered
    assert chosen() == "flash3" and len(tried) == 9


def test_a_file_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "home").write_text("a file where the folder should be")
    runs, clock, _ = kernels(cudnn=1.0, flash=2.0)
    assert choose(ASKED, runs, file=tmp_path / "home" / "attention.json", clock=clock).name == "cudnn"


def test_there_is_no_choice_on_a_cpu_or_in_float32(tmp_path):
    for device, dtype in ((torch.device("cpu"), torch.bfloat16), (GPU, torch.float32)):
        assert (
            attention.choose_kernel(device, dtype, 128, learning=False, file=tmp_path / "a.json", clock=pytest.fail)
            is None
        )


def test_auto_takes_what_was_chosen(monkeypatch):
    orders = []
    monkeypatch.setattr(attention, "sdpa_kernel", lambda order, **_: orders.append(order) or torch.no_grad())
    monkeypatch.setattr(attention, "taken", lambda *_, **__: "efficient")
    parts = [torch.randn(1, 5, 2, 8) for _ in range(3)]
    torch.testing.assert_close(attention._fastest(*parts), attention.attention(*parts))
    names = [kernel.name for kernel in orders[0]]
    assert names == ["EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "FLASH_ATTENTION", "MATH"]
    monkeypatch.setattr(attention, "taken", lambda *_, **__: "xformers")
    monkeypatch.setitem(attention._kernels, "xformers", lambda q, k, v: q + 1)
    assert torch.equal(attention._fastest(*parts), parts[0] + 1)


@pytest.mark.parametrize("possible", [["cudnn", "flash", "hopper"], ["cudnn", "flash"], ["flash"]])
@pytest.mark.parametrize("chosen", [None, "cudnn", "flash", "hopper"])
def test_gradients_take_what_was_chosen_where_it_can_be(monkeypatch, possible, chosen):
    monkeypatch.setattr(kept_attention, "_possible", lambda *_: possible)
    monkeypatch.setattr(kept_attention, "taken", lambda *_, **__: chosen)
    parts = [torch.empty(1, 4, 2, 8, device="meta") for _ in range(3)]
    wanted = chosen if chosen in possible else possible[0]
    assert kept_attention._kernels(*parts) is kept_attention._KERNELS[wanted]
