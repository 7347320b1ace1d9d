"""`key=value` arguments from a person, for classes that are named on the command line.

Shared by optimizers and schedules: parse the values, find the class, check the names against its constructor. The
command line is the person's own shell; nothing here may be fed from a shared workflow.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..contract.errors import OptionError
from ..contract.packages import how_to_install
from ..contract.wording import did_you_mean


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


def find_class(flag: str, name: str, *, home: str, given: str = "", others: Iterable[str] = ()) -> type[Any]:
    """The class that a dotted path names, or a name without dots in module `home`. Capitals of the class do not matter.

    `given` is what the person said, where `name` is only what is meant. `others`: what could have been meant as well.
    """
    module_name, _, class_name = name.rpartition(".")
    try:
        module = importlib.import_module(module_name or home)
    except ImportError as error:
        raise _missing_package(flag, given or name, module_name or home, error) from error
    classes = {key: value for key, value in vars(module).items() if inspect.isclass(value)}
    if class_name in classes:
        return classes[class_name]
    same = [key for key in classes if key.lower() == class_name.lower()]
    if same:
        return classes[same[0]]
    own = [] if module_name else list(others)
    elsewhere = f"There are {', '.join(own)}, and all of {home}." if own else f"Look in {module_name or home}."
    hint = did_you_mean(class_name, [*classes, *own], elsewhere)
    raise OptionError(f"{flag} {given or name} is unknown.", hint)


def _missing_package(flag: str, given: str, module: str, error: ImportError) -> OptionError:
    """With the line that installs it, or what it needs itself."""
    package = module.partition(".")[0]
    return OptionError(
        f"{flag} {given}: the package {package} cannot be imported ({error}).",
        f"{how_to_install(error.name or package)} (or choose another {flag})",
    )


def check_names(flag: str, values: Iterable[str], wanted: Callable[..., Any], *, own: Sequence[str] = ()) -> None:
    """OptionError when the class or function `wanted` has no such parameter; other flags set those of `own`."""
    parameters = inspect.signature(wanted).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    known = [name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD]
    known = [name for name in known if name != "self" and name not in own]
    for name in values:
        if name in own:
            raise OptionError(f"{flag}: {name} is set by its own option.")
        near = did_you_mean(name, known)
        if name not in known and (near or not open_ended):  # what takes any name still did not mean a misspelt one
            hint = near or f"It takes {', '.join(known)}."
            raise OptionError(f"{flag}: {getattr(wanted, '__name__', wanted)} has no argument {name!r}.", hint)
