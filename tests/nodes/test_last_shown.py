"""What the page is told of files that nodes showed before it was opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .conftest import part

last_shown, answers, catalogue = part("nodes.last_shown"), part("nodes.answers"), part("nodes.catalogue")
spec, paths = part("nodes.spec"), part("nodes.paths")


def show(comfy: Path, name: str, *, node: str = "7", workflow: str = "w") -> dict[str, Any]:
    """A Video Output node has saved and shown this file; what the pages that were open were told."""
    (comfy / "output" / "video").mkdir(exist_ok=True)
    (comfy / "output" / "video" / name).write_text("x")
    told = {"images": [{"filename": name, "subfolder": "video", "type": "output"}], "animated": (True,)}
    about = next(known for known in catalogue.nodes() if known.name == "VideoOutput")
    last_shown.keep(spec.Call(node=about, inputs={}, node_id=node, workflow={"id": workflow}), told)
    return {**told, "animated": [True]}


def shown(workflow: str = "w") -> list[dict[str, Any]]:
    answer = answers.answered(answers.shown, answers.Asked(query={"workflow": workflow}))
    assert answer.status == 200
    return answer.data["shown"]


def test_the_last_of_each_node_of_this_workflow_is_told(comfy: Path) -> None:
    show(comfy, "a.mp4")
    show(comfy, "b.mp4", workflow="other")
    inner = show(comfy, "c.mp4", node="12:3")
    newer = show(comfy, "d.mp4")
    assert [(entry["node"], entry["class"], entry["output"]) for entry in shown()] == [
        ("7", "MusubiTuner_VideoOutput", newer), ("12:3", "MusubiTuner_VideoOutput", inner),
    ]  # fmt: skip


def test_which_file_is_gone_is_told_until_it_is_back(comfy: Path) -> None:
    show(comfy, "a.mp4")
    assert [entry["gone"] for entry in shown()] == [[]]
    file = comfy / "output" / "video" / "a.mp4"
    file.rename(comfy / "a.mp4")
    assert [entry["gone"] for entry in shown()] == [["video/a.mp4"]]
    (comfy / "a.mp4").rename(file)
    assert [entry["gone"] for entry in shown()] == [[]]


def test_a_graph_without_a_workflow_is_nobodys(comfy: Path) -> None:
    show(comfy, "a.mp4", workflow="")
    assert shown("") == []


def test_it_stays_short(comfy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_shown, "MOST", 3)
    for number in range(5):
        show(comfy, "a.mp4", node=str(number))
    assert [entry["node"] for entry in shown()] == ["4", "3", "2"]


@pytest.mark.parametrize("text", ["", "{", "{}", "[]"])
def test_a_record_that_cannot_be_read_counts_as_none(comfy: Path, text: str) -> None:
    file = paths.private() / last_shown.FILE
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert shown() == []
    show(comfy, "a.mp4")
    assert len(shown()) == 1


def test_a_disk_that_takes_it_not_does_not_end_the_node(comfy: Path) -> None:
    paths.private().write_text("no folder")
    show(comfy, "a.mp4")
    assert shown() == []
