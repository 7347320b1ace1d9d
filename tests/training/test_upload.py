"""Uploads to Hugging Face with a client that is played: nothing here reaches the network."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.contract.errors import DiskError, OptionError
from engine.contract.events import Log, Stage, Warning_
from engine.training.upload import Repository, fetch_state, open_uploader, parse_place


class Refusal(Exception):
    """As huggingface_hub's errors: the answer of the server is inside."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status} Client Error\n\nhttps://example.org/long/address")
        self.response = SimpleNamespace(status_code=status)


class PlayedHub:
    """The methods of HfApi that are used; `fail` maps a method to what it raises."""

    def __init__(self, *, exists: bool = True, fail: dict[str, Exception] | None = None, folder: Path | None = None):
        self.exists, self.fail, self.folder = exists, fail or {}, folder
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def _called(self, name: str, /, **values: Any) -> None:
        self.may_go_on.wait(10)
        self.calls.append((name, values))
        if name in self.fail:
            raise self.fail[name]

    def repo_exists(self, name: str, *, repo_type: str) -> bool:
        self._called("repo_exists", name=name, repo_type=repo_type)
        return self.exists

    def create_repo(self, name: str, *, repo_type: str, private: bool) -> None:
        self._called("create_repo", name=name, repo_type=repo_type, private=private)

    def upload_file(self, **values: Any) -> None:
        self._called("upload_file", **values)

    def upload_folder(self, **values: Any) -> None:
        self._called("upload_folder", **values)

    def snapshot_download(self, name: str, **values: Any) -> str:
        self._called("snapshot_download", name=name, **values)
        return str(self.folder)

    @property
    def uploaded(self) -> list[str]:
        return [values["path_in_repo"] for name, values in self.calls if name.startswith("upload")]


@pytest.fixture
def said() -> list[Any]:
    return []


def uploader(api: PlayedHub, said: list[Any], *, folder: str = "", in_background: bool = False, private: bool = True):
    repository = Repository(name="me/cats", folder=folder, private=private)
    return open_uploader(api, repository, in_background=in_background, say=said.append)


@pytest.mark.parametrize("folder", ["", "loras/", "loras"])
def test_a_file_and_a_folder_go_where_they_should(tmp_path, said, folder):
    (tmp_path / "cat.safetensors").write_text("weights")
    (tmp_path / "cat-state").mkdir()
    api = PlayedHub()
    to = uploader(api, said, folder=folder)
    to.upload(tmp_path / "cat.safetensors")
    to.upload(tmp_path / "cat-state")
    to.close()
    start = "loras/" if folder else ""
    assert api.uploaded == [f"{start}cat.safetensors", f"{start}cat-state"]
    assert api.calls[1][1]["path_or_fileobj"] == str(tmp_path / "cat.safetensors")
    assert api.calls[2][1]["folder_path"] == str(tmp_path / "cat-state")
    assert all(isinstance(event, Log) for event in said) and len(said) == 2


@pytest.mark.parametrize("private", [True, False])
def test_a_repository_that_does_not_exist_is_made(said, private):
    api = PlayedHub(exists=False)
    uploader(api, said, private=private)
    assert api.calls[-1] == ("create_repo", {"name": "me/cats", "repo_type": "model", "private": private})
    assert ("private" in said[0].message) == private


def test_a_failed_upload_is_a_warning_that_says_where_the_file_is(tmp_path, said):
    path = tmp_path / "cat.safetensors"
    path.write_text("weights")
    to = uploader(PlayedHub(fail={"upload_file": OSError("no route to host")}), said)
    to.upload(path)
    (warning,) = said
    assert isinstance(warning, Warning_) and "no route to host" in warning.message and str(path) in warning.message


def test_in_the_background_nobody_waits_until_the_end(tmp_path, said):
    path = tmp_path / "cat.safetensors"
    path.write_text("weights")
    api = PlayedHub()
    to = uploader(api, said, in_background=True)
    api.may_go_on.clear()
    to.upload(path)
    to.upload(path)
    assert api.uploaded == []
    threading.Timer(0.1, api.may_go_on.set).start()
    to.close()
    assert len(api.uploaded) == 2 and any(isinstance(event, Stage) for event in said)


@pytest.mark.parametrize("error", [Refusal(401), Refusal(403), Refusal(404), ValueError("Repo id must be …")])
def test_a_repository_that_refuses_us_is_one_error_before_the_training(said, error):
    with pytest.raises(OptionError, match="--huggingface_repo_id me/cats: ") as caught:
        uploader(PlayedHub(exists=False, fail={"create_repo": error}), said)
    assert "HF_TOKEN" in caught.value.hint and "\n" not in caught.value.message


def test_a_network_that_is_down_at_the_start_is_no_reason_not_to_train(tmp_path, said):
    (tmp_path / "cat").write_text("weights")
    api = PlayedHub(fail={"repo_exists": ConnectionError("offline")})
    uploader(api, said).upload(tmp_path / "cat")
    assert isinstance(said[0], Warning_) and "offline" in said[0].message and api.uploaded == ["cat"]


@pytest.mark.parametrize(
    ("place", "parsed"),
    [
        ("me/cats/cat-state", ("me/cats", "cat-state", "main", "model")),
        ("me/cats/deep/cat-state:v1", ("me/cats", "deep/cat-state", "v1", "model")),
        ("me/cats/cat-state:main:dataset", ("me/cats", "cat-state", "main", "dataset")),
        ("me/cats/cat-state/::space", ("me/cats", "cat-state", "main", "space")),
    ],
)
def test_a_place_is_taken_apart(place, parsed):
    assert parse_place(place) == parsed


@pytest.mark.parametrize("place", ["", "cats", "me/cats", "me/cats/", "a//b", "me/cats/s:x:thing", "me/c/s:a:model:b"])
def test_a_place_that_names_no_state_is_refused(place):
    with pytest.raises(OptionError, match="names no state") as caught:
        parse_place(place)
    assert "owner/name/path" in caught.value.hint


def test_a_state_is_fetched_alone(tmp_path, said):
    (tmp_path / "deep" / "cat-state").mkdir(parents=True)
    api = PlayedHub(folder=tmp_path)
    assert fetch_state(api, "me/cats/deep/cat-state:v1", say=said.append) == tmp_path / "deep" / "cat-state"
    asked = {"name": "me/cats", "repo_type": "model", "revision": "v1", "allow_patterns": ["deep/cat-state/*"]}
    assert api.calls == [("snapshot_download", asked)]


def test_a_state_that_cannot_be_had_says_why(tmp_path, said):
    with pytest.raises(OptionError, match="there is no folder cat-state in me/cats"):
        fetch_state(PlayedHub(folder=tmp_path), "me/cats/cat-state", say=said.append)
    with pytest.raises(OptionError, match="404"):
        fetch_state(PlayedHub(fail={"snapshot_download": Refusal(404)}), "me/cats/s", say=said.append)
    with pytest.raises(DiskError, match="could not be fetched: offline"):
        fetch_state(PlayedHub(fail={"snapshot_download": ConnectionError("offline")}), "me/cats/s", say=said.append)
