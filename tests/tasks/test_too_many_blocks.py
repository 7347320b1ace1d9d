"""More streamed blocks than the model has: told from its header, before anything large is loaded."""

from __future__ import annotations

import pytest

from engine.contract.cli import parse
from engine.contract.errors import OptionError
from engine.tasks import denoiser, encoders, experts, fitting
from tests.tasks.conftest import FAMILIES
from tests.tasks.test_step_caching import SMALL

BLOCKS = 4  # of the small Wan


@pytest.fixture
def nothing_loaded(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("loaded although the job is wrong")

    monkeypatch.setattr(experts, "load_dit", refuse)
    monkeypatch.setattr(denoiser, "stream_blocks", refuse)
    monkeypatch.setattr(encoders.Encoders, "text", property(refuse))


@pytest.mark.usefixtures("nothing_loaded")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("more", [(), ("--block_swap_from_disk",)], ids=str)
def test_a_generation_says_how_many_there_are(family, more, models, engine, tmp_path):
    words = (*models[family], *SMALL, "--save_path", tmp_path / "out", "--blocks_to_swap", 99, *more)
    result = engine("generate", family.replace("_", "-"), *words)
    assert result.status == 2 and "Traceback" not in result.err
    assert "--blocks_to_swap 99: this model has" in result.err and "a number from 0 to" in result.err


@pytest.mark.parametrize("verb", ["train", "generate"])
def test_a_plan_says_it_too_and_memory_auto_with_it(verb, models, tmp_path):
    data = tmp_path / "dataset.toml"
    folder = f'"{tmp_path}"\nresolution = [64, 64]\ncaption_extension = ".txt"\n'
    data.write_text(f'[[datasets]]\nimage_directory = "{tmp_path}"\ncache_directory = {folder}')
    files = [str(word) for word in models["wan"]]
    if verb == "train":
        words = ["--dit", files[files.index("--dit") + 1], "--dataset_config", str(data), "--task", "t2v-1.3B"]
    else:
        words = [*files, *map(str, SMALL), "--save_path", "out"]
    with pytest.raises(OptionError, match=f"--blocks_to_swap 99: this model has {BLOCKS} blocks") as caught:
        fitting.plan(parse([verb, "wan", *words, "--blocks_to_swap", "99"]))
    assert f"from 0 to {BLOCKS}" in caught.value.hint and caught.value.names == ("blocks_to_swap",)
    assert fitting.plan(parse([verb, "wan", *words, "--blocks_to_swap", str(BLOCKS)]))
