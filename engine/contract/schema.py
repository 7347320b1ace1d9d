"""How an option is declared, listed and checked: one line gives flag, widget, tooltip, check, TOML key and page.

A section is a frozen keyword-only dataclass whose fields are made by `opt`. `build` is the only door through which
data becomes sections, and it is strict. Knows no option by name, no command and no family.
Given up: nesting. Options are flat, because every guide on the web writes them so.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar, Union

from .errors import OptionError
from .values import Place, checked
from .wording import closest

_KEY = "option"
S = TypeVar("S", bound="Section")
_LISTED: dict[Any, tuple[Option, ...]] = {}  # options() is asked again and again for the same few sections


@dataclass(frozen=True)
class Option:
    """One option as every reader of the declarations sees it. `kind` is the type of one value.

    `many`: takes a list; `count`: exactly so many. `kind` "number" is a whole number (steps) or a share below 1,
    which may be written `10%`. `accepted` says why it changes nothing.
    """

    name: str
    kind: Literal["str", "int", "float", "bool", "number"]
    default: Any
    help: str
    many: bool = False
    count: int | None = None
    nullable: bool = False
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    unit: str = ""
    aliases: tuple[str, ...] = ()
    file_kind: str = ""
    advanced: bool = False
    required: bool = False
    metavar: str | tuple[str, ...] = ""
    positional: bool = False
    transient: bool = False
    secret: bool = False
    key_values: bool = False
    accepted: str = ""

    @property
    def flag(self) -> str:
        return self.name if self.positional else f"--{self.name}"


class Section:
    """Base of all option sections. `title` heads the group; `late` ones stand behind the shared ones in help.

    `accepted` maps an option that others' command lines have to the reason why it changes nothing here.
    """

    title: ClassVar[str] = ""
    late: ClassVar[bool] = False
    accepted: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(
        cls,
        *,
        title: str = "",
        late: bool | None = None,
        accepted: Mapping[str, str] | None = None,
    ) -> None:
        super().__init_subclass__()
        cls.title = title or cls.title
        cls.late = cls.late if late is None else late
        cls.accepted = {**cls.accepted, **(accepted or {})}
        for name in inspect.get_annotations(cls):
            declared = cls.__dict__.get(name)
            if not isinstance(declared, dataclasses.Field) or _KEY not in declared.metadata:
                raise TypeError(f"{cls.__name__}.{name} is not declared with opt(), redefault() or require()")


def opt(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
    unit: str = "",
    aliases: Sequence[str] = (),
    file_kind: str = "",
    advanced: bool = False,
    required: bool = False,
    metavar: str | tuple[str, ...] = "",
    positional: bool = False,
    transient: bool = False,
    secret: bool = False,
    key_values: bool = False,
) -> Any:
    """Declare an option: a dataclass field whose type is the annotation beside it.

    `low`, `high`: limits, both included. `file_kind`: what the file is ("dit", "vae", "lora", …), for pick lists.
    `positional`: given without a flag. `transient`: about this run only, never part of a job file. `secret`: may
    stand in a job file, but is never written into one, nor logged. `key_values`: every value reads `key=value`. With
    `required` the default is ignored.
    """
    if not help.strip():
        raise TypeError("An option needs a help text")
    told = {
        "help": help.strip(), "low": low, "high": high, "choices": tuple(choices), "unit": unit,
        "aliases": tuple(aliases), "file_kind": file_kind, "advanced": advanced, "required": required,
        "metavar": metavar, "positional": positional, "transient": transient, "secret": secret,
        "key_values": key_values,
    }  # fmt: skip
    return _field(told, default)


def redefault(section: type[Section], name: str, default: Any) -> Any:
    """The same option with another default, for a family's subclass of a shared section."""
    return _field({**_told(section, name), "required": False}, default)


def require(section: type[Section], name: str) -> Any:
    """The same option, but one that has to be given, for a subclass of a shared section."""
    return _field({**_told(section, name), "required": True}, None)


def _field(told: dict[str, Any], default: Any) -> Any:
    compare = not (told["transient"] or told["secret"])
    default = dataclasses.MISSING if told["required"] else default
    return dataclasses.field(default=default, metadata={_KEY: told}, compare=compare, repr=not told["secret"])


def _told(section: type[Section], name: str) -> dict[str, Any]:
    fields: dict[str, dataclasses.Field[Any]] = getattr(section, "__dataclass_fields__", {})
    if name not in fields:
        raise TypeError(f"{section.__name__} has no option {name}")
    told: dict[str, Any] = dict(fields[name].metadata[_KEY])
    return told


def options(section: type[Section]) -> tuple[Option, ...]:
    """The options of a section, in the order of their declaration."""
    if section not in _LISTED:
        _LISTED[section] = _options(section)
    return _LISTED[section]


def _options(section: type[Section]) -> tuple[Option, ...]:
    if not dataclasses.is_dataclass(section):
        raise TypeError(f"{section.__name__} is not a dataclass")
    hints = typing.get_type_hints(section)
    found = []
    for field in dataclasses.fields(section):
        kind, many, count, nullable, literal = _shape(hints[field.name], f"{section.__name__}.{field.name}")
        told = dict(field.metadata[_KEY])
        told["choices"] = literal or told["choices"]
        default = None if field.default is dataclasses.MISSING else field.default
        if default is None and not nullable and not told["required"]:
            raise TypeError(f"{section.__name__}.{field.name} may not be None, so None cannot be its default")
        found.append(
            Option(
                name=field.name, kind=kind, many=many, count=count, nullable=nullable, default=default,
                accepted=section.accepted.get(field.name, ""), **told,
            )
        )  # fmt: skip
    return tuple(found)


def _shape(annotation: Any, where: str) -> tuple[Any, bool, int | None, bool, tuple[str, ...]]:
    """(kind, many, count, nullable, choices) of an annotation."""
    kinds = {str: "str", int: "int", float: "float", bool: "bool"}
    if annotation in kinds:
        return kinds[annotation], False, None, False, ()
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return "str", False, None, False, tuple(arguments)
    if origin in (Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        nullable = len(inner) < len(arguments)
        if set(inner) == {int, float}:
            return "number", False, None, nullable, ()
        if len(inner) == 1:
            kind, many, count, _, choices = _shape(inner[0], where)
            return kind, many, count, nullable, choices
    if origin is list and len(arguments) == 1:
        kind, _, _, _, choices = _shape(arguments[0], where)
        return kind, True, None, False, choices
    if origin is tuple and arguments:
        kind, _, _, _, choices = _shape(arguments[0], where)
        return kind, True, None if arguments[-1] is Ellipsis else len(arguments), False, choices
    raise TypeError(f"{where}: an option cannot have the type {annotation}")


def listed(section_classes: Sequence[type[Section]]) -> dict[str, Option]:
    """Every option of these sections by name. TypeError when two sections claim one name."""
    found: dict[str, Option] = {}
    taken: dict[str, str] = {}
    for section in section_classes:
        for option in options(section):
            for name in (option.name, *option.aliases):
                if name in taken:
                    raise TypeError(f"{section.__name__} and {taken[name]} both declare {name}")
                taken[name] = section.__name__
            found[option.name] = option
    return found


def by_any_name(found: Mapping[str, Option]) -> dict[str, Option]:
    """The same options, reachable by their aliases too."""
    return {name: option for option in found.values() for name in (option.name, *option.aliases)}


def build(
    section_classes: Sequence[type[S]],
    data: Mapping[str, Any],
    *,
    source: str | Mapping[str, str] = "",
    elsewhere: Callable[[str], str] | None = None,
) -> dict[type[S], S]:
    """Make the sections from `data` (option name -> value of the right type), checking everything.

    `source` says where a value stands, for the messages: the name of a file, "" for flags, or one for each option.
    `elsewhere(name)` may know where else an unknown option belongs. Raises OptionError.
    """
    found = listed(section_classes)
    names = by_any_name(found)
    places = _places(source)
    values: dict[str, Any] = {}
    for key, value in data.items():
        name = key.replace("-", "_")
        if name not in names:
            raise unknown(name, places(key), names, elsewhere)
        option = names[name]
        if option.name in values:
            raise OptionError(f"{places(name)} is given twice, also as {option.name}.", names=(name,))
        values[option.name] = checked(option, value, places(name))
    missing = [option.flag for option in found.values() if option.required and option.name not in values]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        what = {flag: found[flag.lstrip("-")].help for flag in missing}
        hint = what[missing[0]] if len(missing) == 1 else " ".join(f"{flag}: {help}" for flag, help in what.items())
        raise OptionError(f"{', '.join(missing)} {verb} required.", hint=hint)
    try:
        return {
            section: section(**{o.name: values[o.name] for o in options(section) if o.name in values})
            for section in section_classes
        }
    except OptionError as error:
        raise placed(error, source) from None


def unknown(
    name: str, place: Place, names: Mapping[str, Option], elsewhere: Callable[[str], str] | None = None
) -> OptionError:
    """The error for a name that no option has, naming its nearest neighbour."""
    hint = elsewhere(name) if elsewhere else ""
    near = closest(name, names)
    if near and not hint:
        hint = f"Did you mean {place.like(near)}?"
    return OptionError(f"There is no option {place}.", hint=hint or "See --help for the list.", names=(name,))


def placed(error: OptionError, source: str | Mapping[str, str]) -> OptionError:
    """The same error, its hint telling which of the options involved stand in a file."""
    places = _places(source)
    inside = [str(places(name)) for name in error.names if places(name).file]
    if not inside:
        return error
    hint = f"{error.hint} ({' and '.join(inside)})".strip()
    return OptionError(error.message, hint=hint, names=error.names)


def _places(source: str | Mapping[str, str]) -> Callable[[str], Place]:
    if isinstance(source, str):
        return lambda name: Place(name, source)
    return lambda name: Place(name, source.get(name, ""))


def summary(section: type[Section]) -> str:
    """The first line of a section's docstring, for the person."""
    return (section.__doc__ or "").strip().partition("\n")[0]
