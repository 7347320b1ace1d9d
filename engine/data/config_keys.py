"""The keys of a dataset file: in which table each may stand, what it takes, and how a wrong value is answered.

Defaults are not here but in config.Dataset. The names, scopes and types are musubi-tuner's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..contract.errors import DataError
from ..contract.wording import closest
from .buckets import STEP
from .frames import MODES


@dataclass(frozen=True)
class Key:
    """`scopes`: "general", "image", "video". `convert` gives the value or raises ValueError saying what is expected."""

    scopes: tuple[str, ...]
    convert: Callable[[Any], Any]


def describe(value: Any) -> str:
    """A given value for a message, with its TOML type when that is the point."""
    kinds = {
        bool: "a yes/no value",
        int: "a whole number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "a table",
    }
    shown = {True: "true", False: "false"}.get(value) if isinstance(value, bool) else repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return f"{shown} ({kinds.get(type(value), type(value).__name__)})"


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("text in quotes")
    return value


def _extension(value: Any) -> str:
    if not isinstance(value, str) or "." not in value:
        raise ValueError('text with a dot, such as ".txt"')
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(low: int | None = None) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        if not _is_whole(value) or (low is not None and value < low):
            raise ValueError("a whole number" if low is None else f"a whole number, {low} or more")
        return value

    return convert


def _wholes(low: int | None, example: str) -> Callable[[Any], tuple[int, ...]]:
    def convert(value: Any) -> tuple[int, ...]:
        good = isinstance(value, list) and value and all(_is_whole(item) for item in value)
        if not good or (low is not None and min(value) < low):
            limit = "" if low is None else f", each {low} or more"
            raise ValueError(f"a list of whole numbers{limit}, such as {example}")
        return tuple(value)

    return convert


def _size(value: Any) -> tuple[int, int]:
    sides = value if isinstance(value, list) else [value, value]
    if len(sides) != 2 or not all(_is_whole(side) and side >= STEP for side in sides):
        raise ValueError(f"one whole number, or [width, height], each {STEP} or more, such as [960, 544]")
    return sides[0], sides[1]


def _rate(value: Any) -> float:
    if not (_is_whole(value) or isinstance(value, float)) or not 0 < value < 100_000:
        raise ValueError("a number of frames a second above 0, such as 30.0")
    return float(value)


def _mode(value: Any) -> str:
    if value not in MODES:
        near = closest(value, MODES) if isinstance(value, str) else ""
        raise ValueError(f"one of {', '.join(MODES)}" + (f" (did you mean {near}?)" if near else ""))
    return value


_ANYWHERE = ("general", "image", "video")
_EACH = ("image", "video")

KEYS: dict[str, Key] = {
    "resolution": Key(_ANYWHERE, _size),
    "caption_extension": Key(_ANYWHERE, _extension),
    "batch_size": Key(_ANYWHERE, _whole(1)),
    "num_repeats": Key(_ANYWHERE, _whole(1)),
    "preserve_prior": Key(_EACH, _flag),
    "enable_bucket": Key(_ANYWHERE, _flag),
    "bucket_no_upscale": Key(_ANYWHERE, _flag),
    "cache_directory": Key(_EACH, _text),
    "image_directory": Key(("image",), _text),
    "image_jsonl_file": Key(("image",), _text),
    "control_directory": Key(_EACH, _text),
    "multiple_target": Key(("image",), _flag),
    "no_resize_control": Key(("image",), _flag),
    "control_resolution": Key(("image",), _size),
    "fp_latent_window_size": Key(_EACH, _whole(1)),
    "fp_1f_clean_indices": Key(("image",), _wholes(None, "[0]")),
    "fp_1f_target_index": Key(("image",), _whole()),
    "fp_1f_no_post": Key(("image",), _flag),
    "video_directory": Key(("video",), _text),
    "video_jsonl_file": Key(("video",), _text),
    "target_frames": Key(("video",), _wholes(1, "[1, 25, 45]")),
    "frame_extraction": Key(("video",), _mode),
    "frame_stride": Key(("video",), _whole(1)),
    "frame_sample": Key(("video",), _whole(1)),
    "max_frames": Key(("video",), _whole(1)),
    "source_fps": Key(("video",), _rate),
}


def convert(name: str, value: Any, *, where: str, scope: str) -> Any:
    """The value of a key in a table of this scope ("dataset": an entry that does not say what it is of).

    Raises DataError naming the table and the key.
    """
    key = KEYS.get(name)
    if key is None:
        here = [known for known in KEYS if _fits(known, scope)]
        near = closest(name, here) or closest(name, KEYS)
        raise DataError(f"{where}: unknown key {name}.", f"Did you mean {near}?" if near else "Remove it.")
    if not _fits(name, scope):
        raise _misplaced(name, key, where, scope)
    try:
        return key.convert(value)
    except ValueError as error:
        raise DataError(
            f"{where}: {name} is {describe(value)}; expected: {error}.", f"Change {name} in the dataset file."
        ) from error


def _fits(name: str, scope: str) -> bool:
    scopes = KEYS[name].scopes
    return scope in scopes or (scope == "dataset" and scopes != ("general",))


def _misplaced(name: str, key: Key, where: str, scope: str) -> DataError:
    if scope == "general":
        return DataError(f"{where}: {name} is not allowed here.", "Put it in the [[datasets]] tables that need it.")
    return DataError(
        f"{where}: {name} is a key of {key.scopes[0]} datasets, and this is one of {scope}s.",
        f"Remove it, or put it into the table of the {key.scopes[0]}s.",
    )
