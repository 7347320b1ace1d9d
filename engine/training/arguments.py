"""`key=value` arguments from a person, for classes that are named on the command line.

Shared by optimizers and schedules: parse the values, find the class, check the names against its constructor. The
command line is the person's own shell; nothing here may be fed from a shared workflow.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
from collections.abc import Iterable, Sequence
from typing import Any

from ..contract.errors import OptionError


def parse_arguments(flag: str, arguments: Sequence[str]) -> dict[str, Any]:
    """`key=value …`, the values being Python literals. OptionError that names `flag` for anything else."""
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key.isidentifier():
            raise OptionError(f"{flag} {argument!r} is not of the form key=value.", "E.g. weight_decay=0.01")
        try:
            values[key] = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError) as error:
            raise OptionError(
                f"{flag} {key}={text} is not a Python value.",
                f"Numbers, True, False, None, lists; text in quotes: \"{key}='{text}'\"",
            ) from error
    return values


def find_class(flag: str, name: str, *, home: str) -> type[Any]:
    """The class that a dotted path names, or a name without dots in module `home` (capitals do not matter there)."""
    module_name, _, class_name = name.rpartition(".")
    try:
        module = importlib.import_module(module_name or home)
    except ImportError as error:
        raise OptionError(
            f"{flag} {name}: the package {module_name or home} cannot be imported ({error}).",
            "Install it into the engine's environment, or choose another.",
        ) from error
    classes = {key: value for key, value in vars(module).items() if inspect.isclass(value)}
    if class_name in classes:
        return classes[class_name]
    same = [key for key in classes if not module_name and key.lower() == class_name.lower()]
    if same:
        return classes[same[0]]
    raise OptionError(f"{flag} {name} is unknown.", nearest(class_name, classes, f"Look in {module_name or home}."))


def check_names(flag: str, values: Iterable[str], wanted: type, *, own: Sequence[str] = ()) -> None:
    """OptionError when the constructor of `wanted` has no parameter of such a name; `own` are set by other flags."""
    parameters = inspect.signature(wanted.__init__).parameters  # type: ignore[misc]
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    known = [name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD]
    known = [name for name in known if name != "self" and name not in own]
    for name in values:
        if name in own:
            raise OptionError(f"{flag}: {name} is set by its own option, not here.")
        if name not in known and not open_ended:
            hint = nearest(name, known, f"It takes {', '.join(known)}.")
            raise OptionError(f"{flag}: {wanted.__name__} has no argument {name!r}.", hint)


def nearest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint that names what was probably meant."""
    by_lower = {entry.lower(): entry for entry in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"Did you mean {by_lower[near[0]]}?" if near else otherwise
