"""One value: from a command line's words to the right type, and the checks on type, limits and choices.

Every message says what was given, what would be right and where to change it. Knows one option at a time.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import OptionError
from .files import is_utf_8
from .wording import choice_list, did_you_mean

if TYPE_CHECKING:
    from .schema import Option

_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}
_WANTED = {
    "str": "text", "int": "a whole number", "float": "a number", "bool": "true or false",
    "number": "a whole number of steps, a share below 1, or a percentage such as 10%",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a value stands: a flag (`file` empty) or a key in a file."""

    name: str
    file: str = ""

    def __str__(self) -> str:
        return self.like(self.name)

    def like(self, name: str) -> str:
        """Another name at the same place."""
        return f"{name} in {self.file}" if self.file else f"--{name}"

    @property
    def change(self) -> str:
        return f"Change {self}."


def from_words(option: Option, words: Sequence[str], place: Place) -> Any:
    """The value of a flag from the words behind it. Limits and choices are checked later, by `checked`."""
    if option.kind == "bool" and not option.many:
        if not words:
            return True
        if words[0].lower() in _TRUE | _FALSE:
            return words[0].lower() in _TRUE
        raise _wrong_type(option, words[0], place)
    if not option.many:
        if len(words) != 1:
            given = f"was given {len(words)}: {' '.join(words)}" if words else "none follows"
            raise OptionError(f"{place} needs one value, but {given}.", hint=_quote_hint(option, words, place))
        return _from_text(option, words[0], place)
    return tuple(_from_text(option, word, place) for word in words)


def _quote_hint(option: Option, words: Sequence[str], place: Place) -> str:
    if option.kind == "str" and len(words) > 1:
        return f'Put quotes around text with blanks: {place} "{" ".join(words)}".'
    return option.help


def _from_text(option: Option, word: str, place: Place) -> Any:
    try:
        if option.kind == "int":
            return int(word)
        if option.kind == "float":
            return float(word)
        if option.kind == "number":
            return _steps_or_share(word)
    except ValueError:
        raise _wrong_type(option, word, place) from None
    return word


def _steps_or_share(word: str) -> int | float:
    if word.endswith("%"):
        share = float(word[:-1]) / 100
        if not 0 <= share < 1:
            raise ValueError(word)
        return share
    number = float(word)
    return int(number) if number.is_integer() and number >= 1 else number


def checked(option: Option, value: Any, place: Place) -> Any:
    """The value if it has the right type and lies within the limits; lists become tuples. Raises OptionError."""
    if value is None and option.nullable:
        return None
    if not option.many:
        return _checked_one(option, value, place)
    if not isinstance(value, (list, tuple)):
        hint = f"Write {option.name} = [{_toml_like(value)}]." if place.file else option.help
        raise OptionError(f"{place} needs a list, but is {value!r}.", hint=hint, names=(option.name,))
    if option.count is not None and len(value) != option.count:
        names = option.metavar if isinstance(option.metavar, tuple) else ()
        which = f" ({' '.join(names).lower()})" if names else ""
        given = " ".join(str(item) for item in value)
        message = f"{place} needs {option.count} values{which}, but was given {len(value)}{': ' * bool(given)}{given}."
        raise OptionError(message, hint=place.change, names=(option.name,))
    return tuple(_checked_one(option, item, place) for item in value)


def _toml_like(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _checked_one(option: Option, value: Any, place: Place) -> Any:
    value = _typed(option, value, place)
    if isinstance(value, float) and not math.isfinite(value):
        raise OptionError(f"{place} must be a finite number, but is {value}.", hint=place.change, names=(option.name,))
    if option.file_kind and isinstance(value, str) and any(ord(character) < 32 for character in value):
        hint = f"In TOML, write Windows paths in single quotes: {option.name} = 'C:\\folder\\file'."
        raise OptionError(f"{place} holds a control character: {value!r}.", hint=hint, names=(option.name,))
    if isinstance(value, str) and not is_utf_8(value):
        message = f"{place} holds bytes that are not UTF-8, which a job file cannot store: {value!r}."
        hint = "Rename the file or folder." if option.file_kind else "Write it in UTF-8."
        raise OptionError(message, hint=hint, names=(option.name,))
    if option.choices and value not in option.choices:
        hint = did_you_mean(str(value), option.choices, f"{place.change} {option.help}")
        message = f"{place} must be {choice_list(option.choices)}, but is {value!r}."
        raise OptionError(message, hint=hint, names=(option.name,))
    low, high = option.low, option.high
    if (low is not None and value < low) or (high is not None and value > high):
        message = f"{place} must be {limits(option)}, but is {value}."
        raise OptionError(message, hint=place.change, names=(option.name,))
    if option.key_values and "=" not in value:
        message = f"{place} takes key=value pairs, but was given {value!r}."
        raise OptionError(message, hint=f"Write {value}=…, or leave it out.", names=(option.name,))
    if option.kind == "number" and isinstance(value, float) and value >= 1:
        message = f"{place} must be {_WANTED['number']}, but is {value}."
        raise OptionError(message, hint=place.change, names=(option.name,))
    return value


def limits(option: Option) -> str:
    """`1 or more`, `at most 5`, `from 0 to 999`; "" without limits."""
    low = None if option.low is None else f"{option.low:g}"
    high = None if option.high is None else (f"{option.high:g}" if option.high < 1e6 else str(int(option.high)))
    if low is not None and high is not None:
        return f"from {low} to {high}"
    return f"{low} or more" if low is not None else (f"at most {high}" if high is not None else "")


def span(option: Option) -> str:
    """Limits and unit for help and pages, without limits that say nothing ("0 or more", "up to 2**64")."""
    telling = (option.low or option.high is not None) and (option.high or 0) < 1e9
    return " ".join(filter(None, (limits(option) if telling else "", option.unit)))


def _typed(option: Option, value: Any, place: Place) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if option.kind == "bool" and isinstance(value, bool):
        return value
    if option.kind == "str" and isinstance(value, str):
        return value
    if option.kind == "int" and number and isinstance(value, int):
        return value
    if option.kind == "float" and number:
        return float(value)
    if option.kind == "number":
        if isinstance(value, str):
            return _from_text(option, value, place)
        if number:
            return int(value) if float(value).is_integer() else float(value)
    raise _wrong_type(option, value, place)


def _is_bare(text: str) -> bool:
    """Whether a TOML file may have it without quotes."""
    return text in ("true", "false") or re.fullmatch(r"[+-]?(\d+\.?\d*|\d*\.\d+)([eE][+-]?\d+)?", text) is not None


def _wrong_type(option: Option, value: Any, place: Place) -> OptionError:
    hint = place.change
    if place.file and isinstance(value, str) and option.kind != "str" and _is_bare(value):
        hint = f"Remove the quotes: {option.name} = {value}"
    elif place.file and option.kind == "str":
        hint = f'Put quotes around it: {option.name} = "{value}"'
    message = f"{place} needs {_WANTED[option.kind]}, but is {value!r}."
    return OptionError(message, hint=hint, names=(option.name,))


def pairs(values: Iterable[str]) -> dict[str, Any]:
    """`key=value` options (network_args, optimizer_args, lr_scheduler_args) as a dict.

    A value is read as a Python literal where it is one (`0.01`, `True`, `(0.9, 0.95)`, `[r'.*attn.*']`), else as text.
    """
    found: dict[str, Any] = {}
    for pair in values:
        key, _, text = pair.partition("=")
        try:
            found[key.strip()] = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError):
            found[key.strip()] = text.strip()
    return found
