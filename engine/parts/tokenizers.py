"""Tokenizers of T5-like text encoders, found without a network whenever that is possible.

`find_tokenizer` looks, in this order: at the path that was given; inside the checkpoint (a SentencePiece model kept as
a tensor); beside the weights; in a ComfyUI checkout (environment variable COMFYUI_PATH); in the local Hugging Face
cache; and only then on the hub. The first one that belongs to the model is taken, and `Tokenizer.source` says where it
came from.

Two file kinds are read, each by its own library: `spiece.model` (sentencepiece) and `tokenizer.json` (tokenizers).
For the same model they give the same ids. Where both lie in a folder, spiece.model is taken: it loads ten times faster.

Does not know any model: sizes and places come from the caller. Given up: chat templates, several texts in one input,
and special tokens written out in a caption ("</s>" in a spiece.model caption is text).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..contract.errors import WeightsError

FILE_NAMES = ("spiece.model", "tokenizer.json")
_END, _PAD = "</s>", "<pad>"


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids. `size` is the number of ids; `end_id` closes every text; `pad_id` fills a batch."""

    source: str
    size: int
    end_id: int
    pad_id: int
    split: Callable[[str], list[int]] = field(repr=False)

    def ids(self, text: str, *, limit: int) -> list[int]:
        """The ids of `text`, at most `limit` of them; the last one is always `end_id`."""
        return self.split(text)[: limit - 1] + [self.end_id]


@dataclass(frozen=True)
class HubFolder:
    """A folder of a Hugging Face repository that holds tokenizer files."""

    repository: str
    folder: str = ""

    def path(self, name: str) -> str:
        return f"{self.folder}/{name}" if self.folder else name


@dataclass(frozen=True)
class Places:
    """Where a text encoder's tokenizer may lie, apart from the paths that the person gives.

    `beside`: folders relative to the weights' folder. `comfyui`: folders relative to a ComfyUI checkout. `hub`:
    looked up in the local cache in this order; the first one is the one to download from.
    """

    beside: tuple[str, ...]
    comfyui: tuple[str, ...] = ()
    hub: tuple[HubFolder, ...] = ()


def from_sentencepiece(model: bytes, *, source: str) -> Tokenizer:
    """A tokenizer from the bytes of a SentencePiece model. Raises WeightsError when they are not one."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except RuntimeError as error:
        raise WeightsError(
            f"{source} is not a SentencePiece model.", hint="Fetch the spiece.model of google/umt5-xxl again."
        ) from error
    if processor.eos_id() < 0:
        raise WeightsError(f"{source} has no end-of-text token.", hint="Use the spiece.model of google/umt5-xxl.")
    pad_id = max(processor.pad_id(), 0)
    return Tokenizer(source, processor.GetPieceSize(), processor.eos_id(), pad_id, processor.EncodeAsIds)


def from_json(path: Path) -> Tokenizer:
    """A tokenizer from a `tokenizer.json`. Raises WeightsError when it is broken or not of the T5 kind."""
    import tokenizers

    try:
        text = path.read_text(encoding="utf-8")
        library = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception for malformed files
        raise WeightsError(f"{path} is not a tokenizer.json ({error}).", hint="Fetch it again.") from error
    end_id, pad_id = library.token_to_id(_END), library.token_to_id(_PAD)
    if end_id is None or pad_id is None:
        raise WeightsError(
            f"{path} has no {_END} and {_PAD} tokens: it belongs to another kind of model.",
            hint="Use the tokenizer.json or spiece.model of google/umt5-xxl.",
        )
    library.no_truncation()
    library.no_padding()

    def split(text: str) -> list[int]:
        return library.encode(text, add_special_tokens=False).ids

    return Tokenizer(str(path), library.get_vocab_size(), end_id, pad_id, split)


def open_tokenizer(path: str | Path) -> Tokenizer:
    """A tokenizer from a file (`*.model` or `*.json`) or a folder that holds one. Raises WeightsError."""
    path = Path(path).expanduser()
    file = _file_in(path) if path.is_dir() else path
    if file is None or not file.is_file():
        what = f"The folder {path} holds neither {' nor '.join(FILE_NAMES)}." if path.is_dir() else f"No file {path}."
        raise WeightsError(what, hint="Give --tokenizer a spiece.model, a tokenizer.json or a folder with one.")
    try:
        return from_json(file) if file.suffix == ".json" else from_sentencepiece(file.read_bytes(), source=str(file))
    except OSError as error:
        raise WeightsError(f"{file} cannot be read: {error.strerror}.", hint="Check its permissions.") from error


def find_tokenizer(
    places: Places,
    *,
    rows: int,
    explicit: str | Path | None = None,
    embedded: bytes | None = None,
    weights: Path | None = None,
    allow_download: bool = True,
) -> Tokenizer:
    """Find the tokenizer of a text encoder whose token table has `rows` rows.

    `explicit` is --tokenizer, `embedded` a SentencePiece model from the checkpoint, `weights` the checkpoint's path.
    What a person gave, or the checkpoint itself, must fit; files found elsewhere that do not fit are passed over.
    Raises WeightsError with every place that was tried.
    """
    if explicit:
        return _fitting(open_tokenizer(explicit), rows)
    if embedded is not None:
        return _fitting(from_sentencepiece(embedded, source=f"{weights} (embedded)"), rows)
    tried: list[str] = []
    for folder in _local_folders(places, weights, tried):
        found = _try_folder(folder, rows, tried)
        if found is not None:
            return found
    if allow_download and places.hub:
        found = _download(places.hub[0], rows, tried)
        if found is not None:
            return found
    raise WeightsError(
        "No tokenizer for the text encoder was found.",
        hint="Put spiece.model (or tokenizer.json) beside the weights, or name it with --tokenizer. "
        "Tried: " + "; ".join(tried) + ".",
    )


def _file_in(folder: Path) -> Path | None:
    return next((folder / name for name in FILE_NAMES if (folder / name).is_file()), None)


def _misfit(tokenizer: Tokenizer, rows: int) -> str:
    """Why a tokenizer cannot belong to a token table of `rows` rows; empty when it can.

    Published tables are padded by a few hundred rows, so equality would be too strict. Other models' tokenizers
    (32 100 ids of the English T5 against 256 384) fall out.
    """
    if tokenizer.size > rows or tokenizer.size <= rows // 2:
        return f"{tokenizer.size} ids for a token table of {rows} rows"
    return ""


def _fitting(tokenizer: Tokenizer, rows: int) -> Tokenizer:
    reason = _misfit(tokenizer, rows)
    if reason:
        raise WeightsError(
            f"The tokenizer {tokenizer.source} belongs to another text encoder: {reason}.",
            hint="Use the tokenizer that was published with the weights.",
        )
    return tokenizer


def _try_folder(folder: Path, rows: int, tried: list[str]) -> Tokenizer | None:
    file = _file_in(folder)
    if file is None:
        tried.append(f"{folder} (no {' or '.join(FILE_NAMES)})")
        return None
    try:
        return _fitting(open_tokenizer(file), rows)
    except WeightsError as error:
        tried.append(f"{file} ({error.message})")
        return None


def _local_folders(places: Places, weights: Path | None, tried: list[str]) -> Sequence[Path]:
    folders: list[Path] = []
    if weights is not None:
        home = weights if weights.is_dir() else weights.parent
        folders += [(home / name).resolve() for name in places.beside]
    checkout = os.environ.get("COMFYUI_PATH", "")
    if checkout:
        folders += [Path(checkout) / name for name in places.comfyui]
    elif places.comfyui:
        tried.append("a ComfyUI checkout (COMFYUI_PATH is not set)")
    return folders + [folder for place in places.hub for folder in _cached(place, tried)]


def _cached(place: HubFolder, tried: list[str]) -> list[Path]:
    """The folder of the local Hugging Face cache (HF_HOME, HF_HUB_CACHE) that holds this place, if there is one."""
    from huggingface_hub import try_to_load_from_cache

    for name in FILE_NAMES:
        found = try_to_load_from_cache(place.repository, place.path(name))
        if isinstance(found, str):
            return [Path(found).parent]
    tried.append(f"the Hugging Face cache ({place.repository})")
    return []


def _download(place: HubFolder, rows: int, tried: list[str]) -> Tokenizer | None:
    from huggingface_hub import hf_hub_download

    name = place.path(FILE_NAMES[0])
    try:
        return _fitting(open_tokenizer(hf_hub_download(place.repository, name)), rows)
    except (OSError, ValueError) as error:  # what the hub's client raises when offline, refused or not found
        reason = str(error).strip().splitlines()
        tried.append(f"download of {place.repository}/{name} ({reason[0] if reason else type(error).__name__})")
        return None
