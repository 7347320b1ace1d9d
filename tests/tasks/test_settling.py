"""Where gaps between tensors are the same in every step: a compiled training may fill more of the card then."""

from __future__ import annotations

import pytest

from engine.contract.cli import parse
from engine.memory.estimate import largest
from engine.tasks.planning import Survey

JOINED = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
UNSETTLED = {
    "an allocator that joins nothing": ((), {}, 1),
    "the person's own settings": ((), {**JOINED, "PYTORCH_ALLOC_CONF": "max_split_size_mb:512"}, 1),
    "processes that tell each other their gradients": (("--num_processes", "2"), JOINED, 1),
    "an outer launcher's": ((), {**JOINED, "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, 1),
    "clips of several sizes": ((), JOINED, 2),
    "samples in between": (("--sample_prompts", "{folder}/prompts.txt"), JOINED, 1),
    "nothing compiled": (("--no_compile",), JOINED, 1),
}


@pytest.fixture
def settled(models, tmp_path, monkeypatch):
    """How many bytes of a training with these words, variables and sizes of clips count as settled."""
    (tmp_path / "prompts.txt").write_text("a cat --w 64 --h 64 --f 5\n")
    files = [str(word) for word in models["wan"]]
    given = {name: files[files.index(name) + 1] for name in ("--dit", "--vae", "--t5")}

    def found(words, variables, sizes):
        for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "WORLD_SIZE", "LOCAL_RANK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        datasets = [
            f'[[datasets]]\nimage_directory = "{tmp_path}"\ncache_directory = "{tmp_path}/{side}"\n'
            f'resolution = [{side}, {side}]\ncaption_extension = ".txt"\n'
            for side in (1024, 512)[:sizes]
        ]
        (tmp_path / "dataset.toml").write_text("".join(datasets))
        models_given = [word for pair in given.items() for word in pair]
        line = [
            "train", "wan", *models_given, "--task", "t2v-1.3B", "--dataset_config", f"{tmp_path}/dataset.toml",
            "--compile", *(word.format(folder=tmp_path) for word in words),
        ]  # fmt: skip
        job = parse(line)
        assert job is not None
        stages = [stage for stage in Survey(job).stages(job) if stage.name == "training step"]
        return largest(stages).settled

    return found


def test_one_compiled_process_on_clips_of_one_size_settles(settled):
    assert settled((), JOINED, 1) > 0
    assert settled((), {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}, 1) > 0


@pytest.mark.parametrize("why", UNSETTLED)
def test_others_do_not(settled, why):
    assert settled(*UNSETTLED[why]) == 0
