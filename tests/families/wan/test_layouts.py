"""Full-size models on the meta device have exactly the names and shapes of the public files in tests/layouts."""

from __future__ import annotations

import gzip
import json
import shutil

import pytest

from tests.layouts.__main__ import main
from tests.layouts.checks import HERE, check_file, read_layout

FILES = sorted(HERE.glob("*.json.gz"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name.removesuffix(".json.gz"))
def test_layout(path):
    assert check_file(path) == []


def change(path, name, edit):
    content = {"tensors": {key: list(shape) for key, shape in read_layout(path).items()}}
    edit(content["tensors"])
    path.with_name(name).write_bytes(gzip.compress(json.dumps(content).encode()))


@pytest.mark.parametrize(
    "stem", ["wan21_t2v_1_3b", "lora_wan21_t2v_1_3b_musubi", "wan21_vae", "umt5_xxl_wan", "clip_vision_h"]
)
def test_a_changed_layout_is_a_miss(tmp_path, capsys, stem):
    """The check can fail: one tensor more, one less, and one of another shape are all found."""
    path = tmp_path / f"{stem}.json.gz"
    shutil.copy(HERE / path.name, path)
    shutil.copy(HERE / "wan21_t2v_1_3b.json.gz", tmp_path / "wan21_t2v_1_3b.json.gz")
    key = next(
        key for key, shape in read_layout(path).items() if key.endswith(("up.weight", "bias", "o.weight")) and shape
    )
    edits = {
        "more": lambda tensors: tensors.update({"blocks.0.extra.weight": [3]}),
        "less": lambda tensors: tensors.pop(key),
        "other": lambda tensors: tensors.update({key: [n + 1 for n in tensors[key]]}),
    }
    for edit in edits.values():
        shutil.copy(HERE / path.name, path)
        change(path, path.name, edit)
        assert main([str(tmp_path), stem]) == 1
        assert "MISS" in capsys.readouterr().out


def test_an_empty_folder_is_no_success(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "no layout file" in capsys.readouterr().err
