"""What a training leaves behind, through the command that a person types: uploads, the curve's past, metadata, logs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from engine.training import upload

SIX_STEPS = ("--max_train_steps", 6, "--save_every_n_steps", 3)


@pytest.fixture
def train(engine, cached, tmp_path):
    step = next(step for step in cached.steps if step.verb == "train")

    def run(*more: object):
        out = ("--output_dir", tmp_path / "out", "--logging_dir", tmp_path / "logs")
        begin = () if "--resume" in more else ("--fresh",)
        return engine(*step.command, *out, *SIX_STEPS, *begin, *more)

    return run


class PlayedHub:
    """Keeps what is uploaded in a folder, and gives it back; `down` plays a network that fails."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.down = folder, False

    def repo_exists(self, name: str, *, repo_type: str) -> bool:
        return True

    def upload_file(self, *, path_or_fileobj: str, path_in_repo: str, repo_id: str, repo_type: str) -> None:
        if self.down:
            raise ConnectionError("the network is down")
        self._put(shutil.copyfile, path_or_fileobj, path_in_repo)

    def upload_folder(self, *, folder_path: str, path_in_repo: str, repo_id: str, repo_type: str) -> None:
        self._put(shutil.copytree, folder_path, path_in_repo)

    def _put(self, copy: Any, source: str, place: str) -> None:
        (self.folder / place).parent.mkdir(parents=True, exist_ok=True)
        copy(source, self.folder / place)

    def snapshot_download(self, name: str, *, repo_type: str, revision: str, allow_patterns: list[str]) -> str:
        return str(self.folder)

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "loras").iterdir())


@pytest.fixture
def hub(tmp_path, monkeypatch) -> PlayedHub:
    played = PlayedHub(tmp_path / "hub")
    monkeypatch.setattr(upload, "hub", lambda token: played)
    return played


REPOSITORY = ("--huggingface_repo_id", "me/cats", "--huggingface_path_in_repo", "loras")


@pytest.mark.parametrize("more", [(), ("--async_upload",)], ids=["waiting", "in the background"])
def test_each_lora_is_uploaded_and_states_when_asked_for(train, hub, more) -> None:
    assert train(*REPOSITORY, *more).status == 0
    loras = ["demo-lora-step00000003.safetensors", "demo-lora-step00000006.safetensors", "demo-lora.safetensors"]
    assert hub.names == loras
    shutil.rmtree(hub.folder)
    assert train(*REPOSITORY, *more, "--save_state_to_huggingface", "--fresh").status == 0
    states = ["demo-lora-state", "demo-lora-step00000003-state", "demo-lora-step00000006-state"]
    assert hub.names == sorted([*loras, *states])


def test_a_network_that_fails_loses_nothing_but_the_upload(train, hub, tmp_path) -> None:
    hub.down = True
    result = train(*REPOSITORY)
    assert result.status == 0 and result.err.count("could not be uploaded to me/cats: the network is down") == 3
    assert (tmp_path / "out" / "demo-lora.safetensors").exists()


def test_a_training_goes_on_from_a_state_at_hugging_face(train, hub, tmp_path) -> None:
    assert train(*REPOSITORY, "--save_state_to_huggingface").status == 0
    shutil.rmtree(tmp_path / "out")
    place = "me/cats/loras/demo-lora-step00000003-state:main:model"
    result = train("--resume", place, "--resume_from_huggingface")
    assert result.status == 0 and "Resuming after step 3" in result.err, result.err
    gone = train("--resume", "me/cats/loras/nothing-state", "--resume_from_huggingface")
    assert gone.status == 2 and "there is no folder loras/nothing-state in me/cats" in gone.err


def test_a_token_is_used_and_stands_in_no_record(train, tmp_path, monkeypatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(upload, "hub", lambda token: seen.append(token) or PlayedHub(tmp_path / "hub"))
    assert train(*REPOSITORY, "--huggingface_token", "hf_secret", "--log_config").status == 0
    assert seen == ["hf_secret"]
    written = [path for path in (*tmp_path.glob("out/jobs/*/*"), *tmp_path.glob("logs/**/*")) if path.is_file()]
    assert len(written) > 3 and not any(b"hf_secret" in path.read_bytes() for path in written)


def test_the_curve_of_a_resumed_training_begins_where_the_first_one_began(train, tmp_path) -> None:
    assert train().status == 0
    state = tmp_path / "out" / "demo-lora-step00000003-state"
    assert train("--resume", state, "--max_train_steps", 5, "--output_name", "longer").status == 0
    first, second = (
        torch.load(tmp_path / "out" / f"{name}-state" / "history.pt", weights_only=True)
        for name in ("demo-lora", "longer")
    )
    assert first["steps"] == [1, 2, 3, 4, 5, 6] and second["steps"] == [1, 2, 3, 4, 5]
    assert second["losses"] == first["losses"][:5]  # the same draws: it is the same training


def test_a_state_of_before_there_was_a_history_will_do(train, tmp_path) -> None:
    assert train().status == 0
    state = tmp_path / "out" / "demo-lora-step00000003-state"
    (state / "history.pt").unlink()
    manifest = json.loads((state / "manifest.json").read_text())
    del manifest["files"]["history.pt"]
    (state / "manifest.json").write_text(json.dumps(manifest))
    result = train("--resume", state)
    assert result.status == 0 and "Resuming after step 3" in result.err, result.err


def test_the_metadata_tells_the_size_of_the_largest_clips(train, tmp_path) -> None:
    def resolution(*more: object) -> str:
        assert train("--max_train_steps", 1, "--fresh", *more).status == 0
        with safe_open(tmp_path / "out" / "demo-lora.safetensors", "pt") as file:
            return file.metadata()["modelspec.resolution"]

    assert resolution() == "96x96"
    assert resolution("--metadata_reso", "832,480") == "832x480"
    refused = train("--metadata_reso", "big")
    assert refused.status == 2 and "--metadata_reso big is not a resolution" in refused.err
    assert "Loading" not in refused.err


def test_settings_of_a_tracker_are_read_before_anything_is_loaded(train, tmp_path) -> None:
    (tmp_path / "tracker.toml").write_text("[tensorboard]\nflush = 1\n")
    refused = train("--log_tracker_config", tmp_path / "tracker.toml")
    assert refused.status == 2 and "Did you mean flush_secs?" in refused.err and "Loading" not in refused.err
    (tmp_path / "tracker.toml").write_text('[tensorboard]\nfilename_suffix = ".cats"\n')
    assert train("--log_tracker_config", tmp_path / "tracker.toml").status == 0
    assert list((tmp_path / "logs").rglob("*.cats"))


def test_compiled_blocks_are_told_of(train, monkeypatch) -> None:
    """The first step of such a training takes long; who does not know it thinks that it hangs."""
    monkeypatch.setattr("engine.tasks.denoiser.compile_blocks", lambda blocks, **_: None)
    plain, compiled = train("--max_train_steps", 1), train("--max_train_steps", 1, "--compile")
    assert ["compiled by inductor" in result.err for result in (plain, compiled)] == [False, True]


def test_the_rank_of_the_weights_wins_over_network_dim_and_stands_in_the_metadata(train, tmp_path: Path) -> None:
    """musubi-tuner takes both flags together as well, and the file's rank."""
    first = tmp_path / "first"
    short = ("--max_train_steps", 1, "--output_dir")
    assert train("--network_dim", 3, "--network_alpha", 6, *short, first).status == 0
    given = ("--network_weights", first / "demo-lora.safetensors", "--dim_from_weights", "--network_dim", 8)
    result = train(*given, *short, tmp_path / "second")
    assert result.status == 0 and "--network_dim 8 is ignored" in result.err, result.err
    with safe_open(tmp_path / "second" / "demo-lora.safetensors", "pt") as file:
        ranks = {file.get_slice(name).get_shape()[0] for name in file.keys() if name.endswith("lora_down.weight")}
        said = file.metadata()
    assert ranks == {3} and (said["ss_network_dim"], float(said["ss_network_alpha"])) == ("3", 6.0)


def test_weights_keep_their_alpha_which_is_told_and_stands_in_the_metadata(train, tmp_path: Path) -> None:
    """musubi-tuner trains with the scale of --network_alpha and saves the file's alpha, so the LoRA acts otherwise."""
    short = ("--max_train_steps", 1, "--network_dim", 3, "--output_dir")
    assert train("--network_alpha", 0, *short, tmp_path / "first").status == 0
    given = ("--network_weights", tmp_path / "first" / "demo-lora.safetensors")
    result = train(*given, "--network_alpha", 6, *short, tmp_path / "second")
    assert result.status == 0 and "keeps its own alpha, 3; --network_alpha is not used." in result.err, result.err
    assert "not used" not in train(*given, "--network_alpha", 3, *short, tmp_path / "third").err
    for folder in ("first", "second", "third"):
        with safe_open(tmp_path / folder / "demo-lora.safetensors", "pt") as file:
            alphas = {float(file.get_tensor(name)) for name in file.keys() if name.endswith("alpha")}
            assert alphas == {3.0} == {float(file.metadata()["ss_network_alpha"])}


def test_weights_of_another_rank_are_refused_by_name(train, tmp_path: Path) -> None:
    assert train("--max_train_steps", 1, "--network_dim", 3, "--output_dir", tmp_path).status == 0
    given = ("--network_weights", tmp_path / "demo-lora.safetensors", "--network_dim", 4)
    refused = train(*given, "--output_dir", tmp_path / "second")
    assert refused.status == 2 and "Loading" not in refused.err
    said = " ".join(refused.err.split())
    assert "--network_weights demo-lora.safetensors has rank 3, but --network_dim is 4." in said
    assert "Give --network_dim 3, or --dim_from_weights." in said


def test_conv_dim_with_lycoris_is_accepted_with_a_word(train) -> None:
    """Guides for lycoris give it with every algorithm; no DiT here has a wide convolution in its blocks."""
    arguments = ("--network_module", "lycoris.kohya", "--network_args", "algo=loha", "conv_dim=4", "conv_alpha=1")
    result = train(*arguments, "--max_train_steps", 1)
    assert result.status == 0 and "conv_dim has no effect" in result.err, result.err
