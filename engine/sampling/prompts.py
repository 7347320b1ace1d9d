"""Prompt lines and prompt files: what `--from_file`, `--interactive` and `--sample_prompts` read.

A line is the prompt, then options: `a cat --w 832 --h 480 --f 81 --d 42 --n blurry, dark`. Text files hold one line
each (blank and `#` lines skipped), TOML a `[prompt]` table with `[[prompt.subset]]`, JSON a list of objects or lines.
What a letter means depends on who reads it: `GENERATE` or `TRAIN` below; a family may hand in a table of its own.

The reference tools match options without regard to case anywhere, so that "I walk" became an image path. Here an
option is a known, case-sensitive `--x` after white space, and never the prompt's text; an unknown one is an error.
Knows no defaults: what a line leaves out is None. Given up: a value that itself contains white space and `--letter`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..contract import toml
from ..contract.errors import OptionError
from ..contract.missing import looked_for, missing_file_hint
from ..contract.wording import did_you_mean


@dataclass(frozen=True, kw_only=True)
class PromptLine:
    """One video to make. None (or an empty tuple) = not given: the command line or the family decides."""

    prompt: str
    where: str
    """`file:line` or the entry's place, for messages."""
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    frame_count: int | None = None
    video_seconds: float | None = None
    video_sections: int | None = None
    seed: int | None = None
    sample_steps: int | None = None
    guidance_scale: float | None = None
    """Embedded guidance (distilled models)."""
    cfg_scale: float | None = None
    """Classifier-free guidance."""
    discrete_flow_shift: float | None = None
    image_path: str | None = None
    end_image_path: str | None = None
    control_video_path: str | None = None
    control_image_path: tuple[str, ...] = ()
    control_image_mask_path: tuple[str, ...] = ()
    one_frame: str | None = None
    magcache_retention_ratio: float | None = None
    magcache_threshold: float | None = None
    magcache_k: int | None = None


@dataclass(frozen=True)
class Kind:
    """What a value must be: `type` is int, float or str; numbers have limits; `many` may be given again."""

    type: type[Any]
    low: float | None = None
    high: float | None = None
    many: bool = False


KINDS: dict[str, Kind] = {
    "prompt": Kind(str),
    "negative_prompt": Kind(str),
    "width": Kind(int, 8, 8192),
    "height": Kind(int, 8, 8192),
    "frame_count": Kind(int, 1, 10_000),
    "video_seconds": Kind(float, 0, 600),
    "video_sections": Kind(int, 1, 1000),
    "seed": Kind(int, 0, 2**63 - 1),
    "sample_steps": Kind(int, 1, 1000),
    "guidance_scale": Kind(float, 0, 1000),
    "cfg_scale": Kind(float, 0, 1000),
    "discrete_flow_shift": Kind(float, 0, 1000),
    "image_path": Kind(str),
    "end_image_path": Kind(str),
    "control_video_path": Kind(str),
    "control_image_path": Kind(str, many=True),
    "control_image_mask_path": Kind(str, many=True),
    "one_frame": Kind(str),
    "magcache_retention_ratio": Kind(float, 0, 1),
    "magcache_threshold": Kind(float, 0, 1000),
    "magcache_k": Kind(int, 0, 1000),
}

_COMMON = {
    "w": "width",
    "h": "height",
    "f": "frame_count",
    "d": "seed",
    "s": "sample_steps",
    "l": "cfg_scale",
    "fs": "discrete_flow_shift",
    "n": "negative_prompt",
    "i": "image_path",
    "ei": "end_image_path",
    "cn": "control_video_path",
    "ci": "control_image_path",
    "of": "one_frame",
}
Letters = Mapping[str, str]
TRAIN: Letters = {**_COMMON, "g": "guidance_scale"}
"""Sample prompts of training: `--g` is embedded guidance, `--l` classifier-free guidance."""
GENERATE: Letters = {**_COMMON, "g": "cfg_scale", "cim": "control_image_mask_path"}
"""`--from_file` and `--interactive`: `--g` and `--l` both mean classifier-free guidance."""

_OPTION = re.compile(r"(?:^|(?<=\s))--([A-Za-z]\S*)")


def parse_line(text: str, *, letters: Letters = GENERATE, where: str = "prompt") -> PromptLine:
    """Read one prompt line. Raises OptionError that begins with `where`."""
    marks = list(_OPTION.finditer(text))
    prompt = text[: marks[0].start()].strip() if marks else text.strip()
    if not prompt:
        raise OptionError(
            f"{where}: there is no prompt text.", hint="Write the prompt first, then options such as --w 832."
        )
    values: dict[str, Any] = {}
    for mark, following in itertools.zip_longest(marks, marks[1:]):
        end = following.start() if following else len(text)
        letter = mark.group(1)
        name = _name_of(letter, letters, where)
        value = _read(text[mark.end() : end].strip(), KINDS[name], f"--{letter}", where)
        if KINDS[name].many:
            values[name] = (*values.get(name, ()), value)
        elif name in values:
            raise OptionError(f"{where}: {_said(name, letters)} is given twice.", hint="Keep one of them.")
        else:
            values[name] = value
    return PromptLine(prompt=prompt, where=where, **values)


def read_prompts(path: str | Path, *, letters: Letters = GENERATE, flag: str = "--from_file") -> tuple[PromptLine, ...]:
    """Read a prompt file by its suffix: .toml, .json, anything else is text. Raises OptionError naming file and line.

    `flag` is the option that named the file. A file without a single prompt is an error.
    """
    path = Path(path)
    text = _text(path, flag)
    if path.suffix.lower() == ".toml":
        lines = _from_toml(toml.load(path), path)
    elif path.suffix.lower() == ".json":
        lines = _from_json(text, path, letters)
    else:
        numbered = enumerate(text.split("\n"), start=1)
        kept = [(number, line.strip()) for number, line in numbered]
        kept = [(number, line) for number, line in kept if line and not line.startswith("#")]
        lines = [parse_line(line, letters=letters, where=f"{path}:{number}") for number, line in kept]
    if not lines:
        raise OptionError(f"{path} holds no prompt.", hint=f"Give {flag} a file with one prompt per line.")
    return tuple(lines)


def _text(path: Path, flag: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        hint = missing_file_hint(path) or f"Change {flag}.{looked_for(path)}"
        raise OptionError(f"There is no prompt file {path}.", hint=hint) from None
    except UnicodeDecodeError as error:
        raise OptionError(f"{path} is not UTF-8 text (byte {error.start}).", hint="Save it as UTF-8.") from None
    except OSError as error:
        raise OptionError(f"{path} cannot be read: {error.strerror}.", hint=f"Change {flag}.") from None


def _from_toml(table: dict[str, Any], path: Path) -> list[PromptLine]:
    common = table.pop("prompt", None)
    if table or not isinstance(common, dict):
        extra = f"it has {', '.join(sorted(table))}" if table else "it has no [prompt]"
        raise OptionError(f"{path}: {extra}.", hint="Everything must be under [prompt] or [[prompt.subset]].")
    subsets = common.pop("subset", None)
    if subsets is None:
        return [_from_table(common, f"{path}: [prompt]")]
    if not isinstance(subsets, list) or not all(isinstance(subset, dict) for subset in subsets):
        raise OptionError(
            f"{path}: subset is not a list of tables.", hint="Write [[prompt.subset]], in double brackets."
        )
    lines = []
    for number, subset in enumerate(subsets, start=1):
        where = f"{path}: [[prompt.subset]] {number}"
        if both := sorted(common.keys() & subset.keys()):
            raise OptionError(f"{where}: {both[0]} is also in [prompt].", hint="Keep it in one of the two.")
        lines.append(_from_table({**common, **subset}, where))
    return lines


def _from_json(text: str, path: Path, letters: Letters) -> list[PromptLine]:
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise OptionError(f"{path}:{error.lineno}: not valid JSON: {error.msg}.") from None
    if not isinstance(entries, list):
        raise OptionError(f"{path} is not a list.", hint='Write [{"prompt": "a cat", "width": 832}, "a dog --w 832"].')
    lines = []
    for number, entry in enumerate(entries, start=1):
        where = f"{path}: entry {number}"
        if isinstance(entry, str):
            lines.append(parse_line(entry, letters=letters, where=where))
        elif isinstance(entry, dict):
            lines.append(_from_table(entry, where))
        else:
            raise OptionError(f"{where} is neither an object nor a line of text.")
    return lines


def _from_table(table: Mapping[str, Any], where: str) -> PromptLine:
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in KINDS:
            hint = did_you_mean(name, KINDS, f"Known: {', '.join(KINDS)}.")
            raise OptionError(f"{where}: there is no key {name!r}.", hint=hint)
        if KINDS[name].many:
            several = value if isinstance(value, list) else [value]
            values[name] = tuple(_check(one, KINDS[name], name, where) for one in several)
        else:
            values[name] = _check(value, KINDS[name], name, where)
    if "prompt" not in values:
        raise OptionError(f"{where}: there is no prompt.", hint='Add prompt = "…".')
    return PromptLine(where=where, **values)


def _name_of(letter: str, letters: Letters, where: str) -> str:
    if letter in letters:
        return letters[letter]
    head = letter.split("=")[0]
    if head in letters:
        hint = f"Write --{head} {letter.partition('=')[2] or 'value'}, with a blank."
    elif letter.lower() in letters:
        hint = f"Option letters are lower case: --{letter.lower()}."
    else:
        hint = f"Known: {' '.join(f'--{known}' for known in letters)}. The prompt itself may not contain ' --word'."
    raise OptionError(f"{where}: there is no option --{letter}.", hint=hint)


def _read(text: str, kind: Kind, said: str, where: str) -> Any:
    """The value of an option in a line, from its text."""
    if not text:
        raise OptionError(f"{where}: {said} has no value.", hint=f"Write {said} and the value, or leave it out.")
    if kind.type is str:
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" and text[0] not in text[1:-1]
        return text[1:-1] if quoted else text
    try:
        value = kind.type(text)
    except ValueError:
        wanted = "a whole number" if kind.type is int else "a number"
        raise OptionError(f"{where}: {said} takes {wanted}, not {text!r}.") from None
    return _check(value, kind, said, where)


def _check(value: Any, kind: Kind, said: str, where: str) -> Any:
    """A typed value against its kind; a whole number is also a float, nothing else is converted."""
    if kind.type is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind.type) or isinstance(value, bool):
        wanted = {int: "a whole number", float: "a number", str: "text"}[kind.type]
        raise OptionError(f"{where}: {said} takes {wanted}, not {value!r}.")
    if kind.low is not None and kind.high is not None and not (kind.low <= value <= kind.high):
        raise OptionError(f"{where}: {said} is {value}.", hint=f"It goes from {kind.low} to {kind.high}.")
    return value


def _said(name: str, letters: Letters) -> str:
    return " or ".join(f"--{letter}" for letter, known in letters.items() if known == name)


assert {field.name for field in dataclasses.fields(PromptLine)} == {*KINDS, "where"}
