"""Hugging Face: uploading what a training saves, and fetching the state that one goes on from.

A file is whole on this machine before its upload begins, so an upload that fails is a warning and the training goes
on. A repository that refuses us is told at once, before anything large is loaded; one that cannot be reached is not an
error, since the network may be back at the first save. Knows `huggingface_hub` through the object that `hub` makes, and
no option but their names in messages. Given up: taking files out of the repository that are deleted here.
"""

from __future__ import annotations

import glob
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..contract.errors import DiskError, OptionError
from ..contract.events import Log, Meter, Say, Stage, Warning_

REPO_TYPES = ("model", "dataset", "space")
_REFUSED = {400, 401, 403, 404}  # answers to a wrong name or a wrong token, not to bad luck
_LOGIN = "Give a token that may write there: --huggingface_token, the variable HF_TOKEN, or `hf auth login`."


def hub(token: str | None) -> Any:
    """huggingface_hub's client. Without `token` it takes the one of HF_TOKEN or of a login."""
    from huggingface_hub import HfApi  # imports a web client, and is rarely wanted

    return HfApi(token=token or None)


@dataclass(frozen=True, kw_only=True)
class Repository:
    """Where uploads go: `folder` "" is its top. `private` counts only when the repository has to be made."""

    name: str
    kind: str = "model"
    folder: str = ""
    private: bool = True

    def place(self, path: Path) -> str:
        """The name of a file or folder of ours in the repository."""
        return "/".join(filter(None, (self.folder.strip("/"), path.name)))


class Uploader:
    """Uploads one file or folder after the other, at once or on a thread of its own. Never raises for an upload."""

    def __init__(self, api: Any, repository: Repository, *, in_background: bool, say: Say) -> None:
        self._api, self.repository, self._say = api, repository, say
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload") if in_background else None
        self._pending: list[Future[None]] = []

    def upload(self, path: Path) -> None:
        """Upload a file, or a folder with all that is in it."""
        if self._thread is None:
            self._upload(path)
        else:
            self._pending.append(self._thread.submit(self._upload, path))

    def close(self) -> None:
        """Wait for the uploads that are still on their way."""
        if self._thread is None:
            return
        waiting = [upload for upload in self._pending if not upload.done()]
        if waiting:
            self._say(Stage(name="Waiting for uploads", message=self.repository.name))
            meter = Meter(self._say, total=len(waiting), unit="uploads", label="uploading")
            for upload in waiting:
                upload.result()
                meter.advance()
            meter.close()
        self._thread.shutdown()

    def _upload(self, path: Path) -> None:
        repository = self.repository
        place = repository.place(path)
        target = {"repo_id": repository.name, "repo_type": repository.kind, "path_in_repo": place}
        try:
            if path.is_dir():
                self._api.upload_folder(folder_path=str(path), **target)
            else:
                self._api.upload_file(path_or_fileobj=str(path), **target)
        except Exception as error:  # a web client has many kinds; the file is safe here, and training matters more
            what = f"{path.name} could not be uploaded to {repository.name}: {_reason(error)}"
            self._say(Warning_(message=f"{what} It is kept here: {path}"))
        else:
            self._say(Log(message=f"Uploaded {place} to {repository.name}."))


def open_uploader(api: Any, repository: Repository, *, in_background: bool, say: Say) -> Uploader:
    """An uploader for a repository, which is made if it does not exist. OptionError when it refuses us."""
    try:
        if not api.repo_exists(repository.name, repo_type=repository.kind):
            api.create_repo(repository.name, repo_type=repository.kind, private=repository.private)
            visible = "private" if repository.private else "public"
            say(Log(message=f"Made the {visible} repository {repository.name}."))
    except Exception as error:  # a web client has many kinds
        what = f"--huggingface_repo_id {repository.name}"
        if _is_refusal(error):
            raise OptionError(f"{what}: {_reason(error)}", _LOGIN, names=("huggingface_repo_id",)) from error
        say(Warning_(message=f"{what} cannot be reached now: {_reason(error)} Each save tries again."))
    return Uploader(api, repository, in_background=in_background, say=say)


def fetch_state(api: Any, place: str, *, say: Say) -> Path:
    """Download the state folder that `--resume owner/name/path:revision:type` names, and return where it is.

    OptionError when there is no such thing; DiskError when it cannot be fetched.
    """
    name, path, revision, kind = parse_place(place)
    say(Stage(name="Fetching the state", message=place))
    try:
        snapshot = api.snapshot_download(
            name, repo_type=kind, revision=revision, allow_patterns=[f"{glob.escape(path)}/*"]
        )
    except Exception as error:  # a web client has many kinds
        if _is_refusal(error):
            raise OptionError(f"--resume {place}: {_reason(error)}", _LOGIN, names=("resume",)) from error
        raise DiskError(f"--resume {place} could not be fetched: {_reason(error)}", "Try again later.") from error
    folder = Path(snapshot) / path
    if not folder.is_dir():
        raise OptionError(
            f"--resume {place}: there is no folder {path} in {name}.",
            "Check the repository's files; a state's folder ends in -state.",
            names=("resume",),
        )
    return folder


def parse_place(place: str) -> tuple[str, str, str, str]:
    """(repository, path in it, revision, type) of `owner/name/path:revision:type`; the last two may be left out."""
    head, *more = place.split(":")
    revision, kind = [*more, "", ""][:2]
    owner, name, path = [*head.strip("/").split("/", 2), "", ""][:3]
    if not (owner and name and path) or len(more) > 2 or kind not in ("", *REPO_TYPES):
        raise OptionError(
            f"--resume {place} names no state at Hugging Face.",
            "Write owner/name/path-of-the-state, then :revision and :type if they are not main and model.",
            names=("resume", "resume_from_huggingface"),
        )
    return f"{owner}/{name}", path, revision or "main", kind or "model"


def _is_refusal(error: Exception) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status in _REFUSED or isinstance(error, ValueError) or type(error).__name__ == "LocalTokenNotFoundError"


def _reason(error: Exception) -> str:
    """The first line of what went wrong, as a sentence."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if line.endswith(".") else f"{line}."
