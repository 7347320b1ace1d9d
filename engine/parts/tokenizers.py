"""Tokenizers of text encoders, found without a network whenever possible.

`find_tokenizer` looks, in this order: at the path that was given; inside the checkpoint (a tokenizer kept as a tensor);
beside the weights; in a ComfyUI checkout (environment variable COMFYUI_PATH); in the local Hugging Face cache; and
only then on the hub. The first one that belongs to the model is taken, and `Tokenizer.source` says where it came from.

A `Kind` says which files and which special tokens a family of text encoders has. Three file kinds are read, each by
its own library: `spiece.model` (sentencepiece), `tokenizer.json` and `vocab.json` with `merges.txt` (tokenizers). For
the same model they give the same ids; the first of a kind's files that a folder holds is taken (spiece.model loads ten
times faster than tokenizer.json).

Does not know any model: sizes, places and templates come from the caller. Given up: several texts in one input.
Special tokens spelt out in a caption are special to tokenizer.json and plain text to spiece.model, as in the libraries.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..contract.errors import WeightsError


@dataclass(frozen=True)
class Kind:
    """What the tokenizers of one family of text encoders have in common.

    `file_names`: tried in this order. `start` and `end` open and close every text (None: nothing does), `pad` fills a
    batch. `origin` is where a person finds the files.
    """

    file_names: tuple[str, ...]
    start: str | None
    end: str | None
    pad: str
    origin: str

    def any_file(self) -> str:
        return " or ".join(self.file_names)


T5 = Kind(("spiece.model", "tokenizer.json"), start=None, end="</s>", pad="<pad>", origin="google/umt5-xxl")
LLAMA3 = Kind(
    ("tokenizer.json",),
    start="<|begin_of_text|>",
    end=None,
    pad="<|end_of_text|>",
    origin="the folder tokenizer of hunyuanvideo-community/HunyuanVideo",
)
CLIP = Kind(
    ("tokenizer.json", "vocab.json"),
    start="<|startoftext|>",
    end="<|endoftext|>",
    pad="<|endoftext|>",
    origin="openai/clip-vit-large-patch14",
)
_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class TokenCount(NamedTuple):
    """How long a caption is. Tokens that stand around every caption (start, end, a template) do not count."""

    tokens: int
    read: int  # by the encoder, from the beginning; the others are cut off


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids. `size` is the number of ids; `start_id` and `end_id` open and close every text; `pad_id` fills a
    batch."""

    source: str
    size: int
    end_id: int | None
    pad_id: int
    split: Callable[[str], list[int]] = field(repr=False)
    start_id: int | None = None

    def ids(self, text: str, *, limit: int | None = None) -> list[int]:
        """The ids of `text` with its start and end, at most `limit` of them: the text is cut, start and end stay."""
        start = [] if self.start_id is None else [self.start_id]
        end = [] if self.end_id is None else [self.end_id]
        found = self.split(text)
        if limit is not None:
            found = found[: self._room(limit)]
        return start + found + end

    def count(self, text: str, *, limit: int) -> TokenCount:
        """How much of `text` is among its `ids` with this limit."""
        tokens = len(self.split(text))
        return TokenCount(tokens, read=min(tokens, self._room(limit)))

    def _room(self, limit: int) -> int:
        """How many of `limit` ids are left for the text."""
        return max(0, limit - sum(token is not None for token in (self.start_id, self.end_id)))


@dataclass(frozen=True)
class HubFolder:
    """A folder of a Hugging Face repository that holds tokenizer files."""

    repository: str
    folder: str = ""

    def path(self, name: str) -> str:
        return f"{self.folder}/{name}" if self.folder else name


@dataclass(frozen=True)
class Places:
    """Where a text encoder's tokenizer may be, apart from a path that the person gives.

    `beside`: folders relative to the weights' folder. `comfyui`: folders relative to a ComfyUI checkout. `hub`:
    looked up in the local cache in this order; the first one is the one to download from.
    """

    beside: tuple[str, ...]
    comfyui: tuple[str, ...] = ()
    hub: tuple[HubFolder, ...] = ()


def from_sentencepiece(model: bytes, *, source: str) -> Tokenizer:
    """A tokenizer from the bytes of a SentencePiece model. WeightsError: they are not one."""
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


def from_json(text: str, *, source: str, kind: Kind = T5) -> Tokenizer:
    """A tokenizer from the text of a `tokenizer.json`. WeightsError: it is broken or of another kind."""
    import tokenizers

    try:
        library = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception for malformed files
        raise WeightsError(f"{source} is not a tokenizer.json ({error}).", hint="Fetch it again.") from error
    return _from_library(library, source=source, kind=kind)


def from_merges(vocabulary: Path, *, kind: Kind = CLIP) -> Tokenizer:
    """CLIP's tokenizer from its `vocab.json`, with `merges.txt` beside it. Raises WeightsError.

    Text is normalised (NFC, lower case, single blanks) and split into words, single digits and runs of other signs,
    whose bytes are merged as the file says.
    """
    import tokenizers
    from tokenizers import normalizers, pre_tokenizers

    merges = vocabulary.with_name("merges.txt")
    if not merges.is_file():
        raise WeightsError(f"{vocabulary} needs merges.txt beside it.", hint=f"Take both files from {kind.origin}.")
    try:
        model = tokenizers.models.BPE.from_file(
            str(vocabulary),
            str(merges),
            unk_token=kind.end,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
        )
    except Exception as error:  # the library raises bare Exception for malformed files
        raise WeightsError(f"{vocabulary} is not a vocabulary ({error}).", hint="Fetch it again.") from error
    library = tokenizers.Tokenizer(model)
    library.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(tokenizers.Regex(_CLIP_WORDS), behavior="removed", invert=True)
    library.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    ends = [token for token in (kind.start, kind.end) if token is not None]
    library.add_special_tokens([token for token in ends if library.token_to_id(token) is not None])
    return _from_library(library, source=str(vocabulary), kind=kind)


def _from_library(library: Any, *, source: str, kind: Kind) -> Tokenizer:
    needed = [token for token in (kind.start, kind.end, kind.pad) if token is not None]
    absent = list(dict.fromkeys(token for token in needed if library.token_to_id(token) is None))
    if absent:
        raise WeightsError(
            f"{source} has no {' and '.join(absent)} tokens: it belongs to another kind of model.",
            hint=f"Use the {kind.any_file()} of {kind.origin}.",
        )
    library.no_truncation()
    library.no_padding()

    def split(text: str) -> list[int]:
        return library.encode(text, add_special_tokens=False).ids

    start_id, end_id = (None if token is None else library.token_to_id(token) for token in (kind.start, kind.end))
    return Tokenizer(source, library.get_vocab_size(), end_id, library.token_to_id(kind.pad), split, start_id)


def open_tokenizer(path: str | Path, *, kind: Kind = T5, flag: str = "--tokenizer") -> Tokenizer:
    """A tokenizer from one of its files or a folder that holds one. Raises WeightsError."""
    path = Path(path).expanduser()
    file = _file_in(path, kind) if path.is_dir() else path
    if file is None or not file.is_file():
        names = " nor ".join(kind.file_names)
        neither = f"neither {names}" if len(kind.file_names) > 1 else f"no {names}"
        what = f"The folder {path} holds {neither}." if path.is_dir() else f"No file {path}."
        raise WeightsError(what, hint=f"Give {flag} a {kind.any_file()}, or a folder with one.")
    try:
        if file.name in ("vocab.json", "merges.txt"):
            return from_merges(file.with_name("vocab.json"), kind=kind)
        if file.suffix == ".json":
            return from_json(file.read_text(encoding="utf-8"), source=str(file), kind=kind)
        return from_sentencepiece(file.read_bytes(), source=str(file))
    except UnicodeDecodeError as error:
        raise WeightsError(f"{file} is not a tokenizer.json (not UTF-8 text).", hint="Fetch it again.") from error
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
    kind: Kind = T5,
    flag: str = "--tokenizer",
) -> Tokenizer:
    """Find the tokenizer of a text encoder whose token table has `rows` rows.

    `explicit`: the value of `flag`. `embedded`: the bytes of a SentencePiece model or of a tokenizer.json from the
    checkpoint. `weights`: the checkpoint's path.
    An explicit, embedded or downloaded tokenizer must fit; local files found elsewhere that do not are passed over.
    Raises WeightsError, with every place that was tried if nothing was found.
    """
    if explicit:
        return _fitting(open_tokenizer(explicit, kind=kind, flag=flag), rows)
    if embedded is not None:
        return _fitting(_from_bytes(embedded, source=f"{weights} (embedded)", kind=kind), rows)
    tried: list[str] = []
    for folder in _local_folders(places, kind, weights, tried):
        found = _try_folder(folder, kind, rows, tried)
        if found is not None:
            return found
    if allow_download and places.hub:
        found = _download(places.hub[0], kind, rows, tried)
        if found is not None:
            return found
    raise WeightsError(
        "No tokenizer was found for the text encoder.",
        hint=f"Put the {kind.any_file()} of {kind.origin} beside the weights, or name it with {flag}. "
        f"Tried: {'; '.join(tried)}.",
    )


def _from_bytes(content: bytes, *, source: str, kind: Kind) -> Tokenizer:
    if not content.lstrip().startswith(b"{"):
        return from_sentencepiece(content, source=source)
    return from_json(content.decode("utf-8", "replace"), source=source, kind=kind)


def _file_in(folder: Path, kind: Kind) -> Path | None:
    return next((folder / name for name in kind.file_names if (folder / name).is_file()), None)


def _misfit(tokenizer: Tokenizer, rows: int) -> str:
    """Why a tokenizer cannot belong to a token table of `rows` rows; empty if it can.

    Published tables are padded by a few hundred rows, so equality would be too strict. Other models' tokenizers (32,100
    ids of the English T5 for 256,384 rows) are ruled out.
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


def _try_folder(folder: Path, kind: Kind, rows: int, tried: list[str]) -> Tokenizer | None:
    file = _file_in(folder, kind)
    if file is None:
        tried.append(f"{folder} (no {kind.any_file()})")
        return None
    try:
        return _fitting(open_tokenizer(file, kind=kind), rows)
    except WeightsError as error:
        tried.append(f"{file} ({error.message})")
        return None


def _local_folders(places: Places, kind: Kind, weights: Path | None, tried: list[str]) -> Sequence[Path]:
    folders: list[Path] = []
    if weights is not None:
        home = weights if weights.is_dir() else weights.parent
        folders += [(home / name).resolve() for name in places.beside]
    checkout = os.environ.get("COMFYUI_PATH", "")
    if checkout:
        folders += [Path(checkout) / name for name in places.comfyui]
    elif places.comfyui:
        tried.append("a ComfyUI checkout (COMFYUI_PATH is not set)")
    return folders + [folder for place in places.hub for folder in _cached(place, kind, tried)]


def _cached(place: HubFolder, kind: Kind, tried: list[str]) -> list[Path]:
    """The folder of the local Hugging Face cache (HF_HOME, HF_HUB_CACHE) with this place's files, [] if there is
    none."""
    from huggingface_hub import try_to_load_from_cache

    for name in kind.file_names:
        found = try_to_load_from_cache(place.repository, place.path(name))
        if isinstance(found, str):
            return [Path(found).parent]
    tried.append(f"the Hugging Face cache ({place.repository})")
    return []


def _download(place: HubFolder, kind: Kind, rows: int, tried: list[str]) -> Tokenizer | None:
    from huggingface_hub import hf_hub_download

    name = place.path(kind.file_names[0])
    try:
        return _fitting(open_tokenizer(hf_hub_download(place.repository, name), kind=kind), rows)
    except (OSError, ValueError) as error:  # what the hub's client raises when offline, refused or not found
        reason = str(error).strip().splitlines()
        tried.append(f"download of {place.repository}/{name} ({reason[0] if reason else type(error).__name__})")
        return None
