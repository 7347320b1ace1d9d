"""The page's commands for a run: they reach whichever program works on it, and none is lost in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.nodes.conftest import Engine, folder_dataset, part, run_node, until, wan_models


class Program:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def send(self, word: str) -> None:
        self.heard.append(word)

    def cancel(self) -> None:
        self.heard.append("cancel")


@pytest.fixture
def orders(comfy: Path) -> Any:
    return part("nodes.orders").Orders()


def test_commands_reach_the_program_at_work_only(orders: Any) -> None:
    first, second = Program(), Program()
    with orders.to(first):
        orders.send("save")
    orders.send("sample")  # nobody is there who could make one
    with orders.to(second):
        orders.send("save")
    assert (first.heard, second.heard, orders.to_end) == (["save"], ["save"], False)


@pytest.mark.parametrize("word", ["stop", "cancel"])
def test_an_end_that_comes_between_two_programs_is_for_the_next(orders: Any, word: str) -> None:
    first, second = Program(), Program()
    with orders.to(first):
        pass
    orders.cancel() if word == "cancel" else orders.send(word)
    assert orders.to_end
    with orders.to(second):
        pass
    assert (first.heard, second.heard) == ([], [word])


def test_a_cancel_is_not_weakened_by_a_stop(orders: Any) -> None:
    program = Program()
    orders.cancel()
    orders.send("stop")
    with orders.to(program):
        pass
    assert program.heard == ["cancel"]


def test_a_cancel_while_comfyuis_models_leave_the_gpu_is_not_lost(
    models: Path, obliging: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run had the GPU by then and no program yet: the page was answered that it was not under way."""
    import comfy.model_management as management

    answers, jobs, host = part("nodes.answers"), part("nodes.jobs"), part("nodes.host")
    monkeypatch.setenv("OBLIGING_WAITS", "1")
    answered: list[int] = []

    def press_cancel() -> None:
        (summary,) = jobs.runs.summaries(part("nodes.paths").jobs())
        asked = answers.Asked(run=summary["id"], body={"command": "cancel"})
        answered.append(answers.answered(answers.command, asked).status)

    monkeypatch.setattr(host, "unload_models", press_cancel)
    with pytest.raises(management.InterruptProcessingException):
        run_node("VAELatentCache", dataset=folder_dataset(), models=wan_models())
    (summary,) = jobs.runs.summaries(part("nodes.paths").jobs())
    assert answered == [200] and summary["state"] == "stopped"
    assert until(lambda: not part("nodes.run").gpu.locked())
