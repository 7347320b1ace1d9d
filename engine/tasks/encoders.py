"""The models around the DiT: text encoders, VAE, image encoder. Each is loaded when it is first needed.

Caching and generation load the same files in the same way, so they do it here. With nothing to encode, nothing is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import torch

from ..contract.events import Say, Stage
from ..contract.job import Job
from ..contract.options import Models, Run
from ..families import part
from ..ops.device import choose_device, device_of_process, dtype_of, free_memory
from ..parts.weights import open_weights
from .kept import Kept, Key, stamps
from .loading import loading_is_told
from .needs import needed


def own_device(job: Job) -> torch.device:
    """The device of this process among those that share a job, from now on the current one, as kernels expect it."""
    device = device_of_process(choose_device(job[Run].device))
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


class Encoders:
    """The encoders of one job (`families/values.py`), loaded at first use and forgotten when told."""

    def __init__(self, job: Job, say: Say, *, device: torch.device | None = None, kept: Kept | None = None):
        """`device`: where they compute; the job's where nothing is given. `kept`: what jobs before this one left."""
        self._job, self._say, self._kept = job, say, kept
        self._keys: dict[str, Key] = {}
        self.options = part(job.family, "options")
        self.device = device or choose_device(job[Run].device)
        self._files = self.options.files(job)

    def file(self, name: str, what: str) -> str:
        """The path that `--name` gives, or the error that it is missing. `what` says in words what it is."""
        return needed(self._files.get(name), f"--{name}", what)

    def has_image_encoder(self) -> bool:
        """Whether the job names the files of an image encoder."""
        names = self.options.IMAGE_FILES
        return bool(names) and all(self._files.get(name) for name in names)

    @cached_property
    def vae_dtype(self) -> torch.dtype:
        """What the VAE computes in."""
        default = part(self._job.family, "vae").compute_dtype(self.device)
        return dtype_of(self._job[Models].vae_dtype, default, flag="--vae_dtype")

    @cached_property
    def vae(self) -> Any:
        return self._kept_or_loaded("vae", self._load_vae)

    @cached_property
    def image(self) -> Any:
        return self._kept_or_loaded("image", self._load_image)

    @cached_property
    def text(self) -> Any:
        return self._kept_or_loaded("text", self._load_text)

    def _kept_or_loaded(self, name: str, load: Callable[[], Any]) -> Any:
        if self._kept is None:
            return load()
        self._keys[name] = key = self.key(name)  # of the files as they are before they are read
        model = self._kept.take(name, key, self._say)
        return load() if model is None else model

    def _load_vae(self) -> Any:
        path = self.file("vae", "the VAE file")
        self._say(Stage(name="Loading the VAE", message=f"{path} on {self.device}"))
        arguments = self.options.vae_arguments(self._job)
        with loading_is_told(self._say, label="Loading the VAE"):
            return part(self._job.family, "vae").load(path, device=self.device, dtype=self.vae_dtype, **arguments)

    def _load_image(self) -> Any:
        files = {name: self.file(name, "the image encoder file") for name in self.options.IMAGE_FILES}
        self._say(Stage(name="Loading the image encoder", message=f"{', '.join(files.values())} on {self.device}"))
        with loading_is_told(self._say, label="Loading the image encoder"):
            return part(self._job.family, "image").load(files, device=self.device)

    def _load_text(self) -> Any:
        files = {name: self.file(name, "the text encoder file") for name in self.options.TEXT_FILES}
        self._say(Stage(name="Loading the text encoder", message=f"{', '.join(files.values())} on {self.device}"))
        arguments = self.options.text_arguments(self._job)
        with loading_is_told(self._say, label="Loading the text encoder"):
            return part(self._job.family, "text").load(files, device=self.device, **arguments)

    def identity(self, names: Iterable[str], what: str) -> str:
        """What tells the weights in these files from all others. Reads headers only; WeightsError."""
        found = [open_weights(self.file(name, what), role=f"--{name}").identity() for name in names]
        return found[0] if len(found) == 1 else hashlib.sha256(" ".join(found).encode()).hexdigest()[:16]

    def key(self, name: str) -> Key:
        """All that decides "text", "vae" or "image"."""
        names = {"text": self.options.TEXT_FILES, "image": self.options.IMAGE_FILES}.get(name, (name,))
        files = [stamp for file in names for stamp in stamps(self.file(file, "a model file"), role=f"--{file}")]
        told: Any = None
        if name == "vae":
            told = self.options.vae_arguments(self._job), self.vae_dtype
        elif name == "text":
            told = self.options.text_arguments(self._job)
        return Key(repr((self._job.family, self.device, told)), tuple(files))

    def forget(self, *names: str) -> None:
        """Let go of "text", "vae", "image" (those that were loaded) and give their memory back."""
        loaded = [name for name in names if name in self.__dict__]
        for name in loaded:
            model = self.__dict__.pop(name)
            if self._kept is not None:
                self._kept.put(name, self._keys.pop(name), model, self._say)
            del model
        if loaded:
            free_memory(self.device)
