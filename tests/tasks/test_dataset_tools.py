"""`dataset check` and `dataset preview` as they are typed: exit status, messages, files."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.__main__ import main
from tests.clips import draw_item


@pytest.fixture
def dataset(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        draw_item(tmp_path / "clips", f"{number}.mp4", frames=9)
    path = tmp_path / "data.toml"
    path.write_text(
        '[general]\nresolution = [64, 48]\ncaption_extension = ".txt"\n'
        '[[datasets]]\nvideo_directory = "clips"\ntarget_frames = [5, 9]\n'
    )
    return path


def test_a_good_dataset_passes_and_nothing_is_written(dataset, capfd):
    before = sorted(dataset.parent.rglob("*"))
    assert main(["dataset", "check", "--dataset_config", str(dataset)]) == 0
    shown = capfd.readouterr().err
    assert "3 items, 6 clips, 2 buckets, 6 batches an epoch" in shown and "64x48" in shown
    assert sorted(dataset.parent.rglob("*")) == before


def test_every_problem_is_shown_and_the_status_is_2(dataset, capfd):
    (dataset.parent / "clips" / "0.mp4").write_text("no video")
    (dataset.parent / "clips" / "1.txt").unlink()
    assert main(["dataset", "check", "--dataset_config", str(dataset)]) == 2
    shown = capfd.readouterr().err
    assert "0.mp4: this is not a video" in shown and "expected 1.txt" in shown and "2 problems, listed above" in shown
    assert "Traceback" not in shown


def test_a_preview_is_drawn_beside_the_dataset_file_or_where_it_is_told(dataset, capfd):
    assert main(["dataset", "preview", "--dataset_config", str(dataset)]) == 0
    assert (dataset.parent / "data_preview.png").stat().st_size > 1000
    sheet = dataset.parent / "elsewhere" / "sheet.png"
    assert main(["dataset", "preview", "--dataset_config", str(dataset), "--sheet_path", str(sheet)]) == 0
    assert sheet.exists()


@pytest.mark.parametrize("verb", ["check", "preview"])
def test_wrong_input_is_one_line_and_status_2(dataset, capfd, verb):
    for clip in (dataset.parent / "clips").iterdir():
        clip.unlink()
    assert main(["dataset", verb, "--dataset_config", str(dataset)]) == 2
    shown = capfd.readouterr().err
    assert "there is no video in this folder" in shown and "0/0" not in shown and "0 files" not in shown
    assert main(["dataset", verb, "--dataset_config", "gone.toml"]) == 2
    assert "gone.toml: there is no such dataset file" in capfd.readouterr().err
    assert main(["dataset", verb, "--dataset_config", str(dataset), "--family", "none"]) == 2
    assert "no model family none" in capfd.readouterr().err
