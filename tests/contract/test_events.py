"""The protocol, the meter and the control."""

from __future__ import annotations

import json
import math
import threading
from typing import Any

import pytest

from engine.contract import events
from engine.contract.events import (
    EVENTS,
    Artifact,
    Control,
    Done,
    Event,
    Failed,
    Finished,
    Hello,
    Log,
    Meter,
    Metric,
    Plan,
    Preview,
    Progress,
    Resource,
    Stage,
    Warning_,
    read,
    write,
)  # fmt: skip

EXAMPLES: list[Event] = [
    Hello(version="1", job="out/jobs/1"),
    Stage(name="Loading", message="ä\nb"),
    Progress(done=1, total=None, unit="clips"),
    Progress(done=1, total=2, unit="steps", rate=0.5, eta_s=2.0, label="x"),
    Metric(step=3, values={"loss/current": 0.25, "lr/unet": 1e-4}, epoch=1),
    Preview(path="a.png", label="p"),
    Artifact(kind="LoRA", path="a.safetensors"),
    Resource(values={"vram_mib": 12.0}),
    Plan(
        stages=[{"name": "denoising", "device_mib": {"DiT weights": 1.5}, "main_mib": {}, "needed_mib": 1.5}],
        asked_mib=2.0,
        needed_mib=1.5,
        limit_mib=None,
        ram_mib=3.0,
        fits=True,
        options={"blocks_to_swap": 3},
    ),
    Log(message="hello", level="debug"),
    Warning_(message="careful"),
    Done(message="", stopped=True),
    Failed(kind="option", message="m", hint="h"),
    Finished(job="a folder", status=2, leaving=True),
]


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_what_is_written_is_read_again(event: Event) -> None:
    line = write(event)
    assert "\n" not in line and read(line) == event
    assert json.loads(line)["event"] == type(event).__name__.lower().rstrip("_")


def test_every_event_has_an_example() -> None:
    assert {type(event) for event in EXAMPLES} == set(EVENTS.values())


def test_a_loss_that_is_no_number_stays_valid_json() -> None:
    line = write(Metric(step=1, values={"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0}))
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    again = read(line)
    assert isinstance(again, Metric) and math.isnan(again.values["a"])
    assert (again.values["b"], again.values["c"], again.values["d"]) == (math.inf, -math.inf, 1.0)


def test_a_name_that_is_no_utf_8_is_told_in_signs_that_are() -> None:
    """Python has such bytes of a file's name as surrogates, which no stream in UTF-8 takes."""
    name = b"caf\xe9.mp4".decode("utf-8", "surrogateescape")
    line = write(Warning_(message=f"{name}: left out"))
    assert line.isascii() and read(line) == Warning_(message="caf\\udce9.mp4: left out")


def test_a_reader_ignores_fields_of_later_versions() -> None:
    assert read('{"event": "log", "message": "m", "colour": "red"}') == Log(message="m")


@pytest.mark.parametrize("line", ["", "hello", "[]", '{"event": "dance"}', '{"event": "stage"}', '{"message": "m"}'])
def test_what_is_no_event_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="event"):
        read(line)


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        monkeypatch.setattr(events.time, "monotonic", lambda: self.now_s)


def test_the_meter_speaks_at_most_ten_times_a_second_and_always_last(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    said: list[Any] = []
    meter = Meter(said.append, total=1000, unit="steps", label="training")
    for _ in range(1000):
        clock.now_s += 0.001
        meter.advance()
    meter.close()
    assert 8 <= len(said) <= 12
    assert (said[-1].done, said[-1].total, said[-1].eta_s, said[-1].label) == (1000, 1000, 0.0, "training")
    assert said[-1].rate == pytest.approx(1000)
    assert said[5].eta_s == pytest.approx((1000 - said[5].done) / 1000, rel=0.01)


def test_the_meter_tells_how_far_it_came_when_closed_early(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    said: list[Any] = []
    meter = Meter(said.append, total=None, unit="clips")
    for _ in range(3):
        clock.now_s += 0.01
        meter.advance()
    meter.close()
    meter.close()
    assert [progress.done for progress in said] == [1, 3] and said[-1].eta_s is None


def test_a_meter_may_be_quiet_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    for seconds, done in ((0.1, []), (0.4, [3, 4])):
        said: list[Any] = []
        meter = Meter(said.append, total=4, unit="MiB", quiet_s=1.0)
        for _ in range(4):
            clock.now_s += seconds
            meter.advance()
        meter.close()
        assert [progress.done for progress in said] == done
    assert said[-1].rate == pytest.approx(2.5)  # of all the time


def test_a_meter_of_nothing_says_nothing() -> None:
    said: list[Event] = []
    Meter(said.append, total=0, unit="files").close()
    assert said == []


def test_the_rate_forgets_what_is_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    said: list[Any] = []
    meter = Meter(said.append, total=10_000, unit="steps")
    for seconds in [1.0] * 100 + [0.1] * 1000:
        clock.now_s += seconds
        meter.advance()
    assert said[-1].rate == pytest.approx(10, rel=0.05)


def test_a_pause_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    said: list[Any] = []
    meter = Meter(said.append, total=40, unit="steps")
    for step in range(20):
        clock.now_s += 1
        meter.advance()
        if step % 5 == 0:
            with meter.paused():
                clock.now_s += 600
    assert said[-1].rate == pytest.approx(1) and said[-1].eta_s == pytest.approx(20)


def test_the_meter_can_be_used_from_threads() -> None:
    said: list[Event] = []
    meter = Meter(said.append, total=800, unit="items")

    def work() -> None:
        for _ in range(100):
            meter.advance()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    meter.close()
    assert isinstance(said[-1], Progress) and said[-1].done == 800
    assert [e.done for e in said if isinstance(e, Progress)] == sorted(e.done for e in said if isinstance(e, Progress))


def test_a_request_is_taken_once_and_a_stop_stays() -> None:
    control = Control()
    assert not (control.stop_requested or control.take_save() or control.take_sample())
    control.request_save()
    control.request_sample()
    control.request_stop()
    assert (control.take_save(), control.take_save(), control.take_sample(), control.take_sample()) == (
        True, False, True, False,
    )  # fmt: skip
    assert control.stop_requested and control.stop_requested
