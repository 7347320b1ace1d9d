"""`--help`: the declarations drawn by argparse, in colour on a terminal where rich-argparse is installed.

argparse only draws here; reading a command line is `cli.py`. Every function returns text.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from .commands import COMMANDS, Command, example_of, family_names, find, sections_of
from .options import Demo, Run
from .packages import RUN
from .schema import Option, options, summary
from .values import span
from .wording import choice_list

WIDTHS = (60, 120)
SHORT_CHOICES = 5


def columns() -> int:
    """Width to draw in: the terminal's, within reason."""
    low, high = WIDTHS
    return max(low, min(high, shutil.get_terminal_size((100, 24)).columns))


def overview() -> str:
    """All commands, one line each, and three examples."""
    shown = [command for command in COMMANDS if command.available]
    width = max(len(_typed(command)) for command in shown)
    lines = [
        "Train LoRAs for video models and generate with them.",
        "",
        f"usage: {RUN} <command> [family] [options]",
        "",
        "commands:",
        *(line for command in shown for line in _row(_typed(command), command.help, width)),
        "",
        f"families: {', '.join(family_names())}",
        "",
        "examples:",
    ]
    family = next(option.default for option in options(Demo) if option.name == "family")
    for verb in ("cache-latents", "train", "generate"):
        lines += _wrapped(f"{RUN} {verb} {family} {example_of(find(verb), family)}")
    lines += [
        "",
        "options of a command:",
        f"  {RUN} <command> [family] --help",
        "",
        "musubi-tuner's script names work in place of a command:",
        f"  {RUN} wan_train_network.py --dit …",
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, text: str, width: int) -> list[str]:
    """A name and its help beside it, wrapped to the screen."""
    lines = textwrap.wrap(text, columns() - width - 4)
    return [f"  {name if number == 0 else '':<{width}}  {line}" for number, line in enumerate(lines)]


def _typed(command: Command) -> str:
    return f"{command.verb} <family>" if command.family else command.verb


def _wrapped(line: str) -> list[str]:
    """A long command line over several lines, as a shell accepts it."""
    lines, current = [], " "
    for word in line.replace(" --", "\n--").split("\n"):
        if len(current) + len(word) + 3 > columns() and current.strip():
            lines.append(current + " \\")
            current = "     "
        current += " " + word
    return [*lines, current]


def group(name: str) -> str:
    """The commands that begin with one word, such as `dataset`."""
    inside = [command for command in COMMANDS if command.verb.startswith(name.replace("_", "-") + " ")]
    lines = [f"usage: {RUN} {name} <command> [options]", ""]
    for command in inside:
        text = command.help if command.available else f"{command.help} (not available yet)"
        lines += _row(command.verb, text, max(len(command.verb) for command in inside))
    return "\n".join(lines) + "\n"


def families_of(command: Command, before: str = "") -> str:
    """A family command without its family; `before` as in `command`."""
    name = f"{before} {command.verb}".strip()
    text = find(before).help if before else command.help
    lines = [text, "", f"usage: {RUN} {name} <family> [options]", "", "Its options:"]
    lines += [f"  {RUN} {name} {family} --help" for family in family_names()]
    return "\n".join(lines) + "\n"


def command(command: Command, family: str | None, before: str = "") -> str:
    """All options of a command, grouped by section; in each the common ones first. `before`: a command that this one
    follows, as train follows `plan`: the options are this one's, what is done is the other's.
    """
    sections = sections_of(command, family)
    name = " ".join(filter(None, (before, command.verb, (family or "").replace("_", "-"))))
    needed = [option for section in sections for option in options(section) if option.required]
    words = [RUN, name, *(_usage(option) for option in needed), "[options]"]
    parser = argparse.ArgumentParser(
        prog=f"{RUN} {name}",
        usage=_usage_lines(words).replace("%", "%%"),
        description=find(before).help if before else command.help,
        epilog="Dashes may stand for underscores. --no_NAME switches an on/off option off. (+) marks advanced options.",
        formatter_class=_formatter(),
        add_help=False,
    )
    for section in sections:
        heading = parser.add_argument_group(section.title, summary(section))
        for option in sorted(options(section), key=lambda option: (option.advanced, not option.required)):
            _add(heading, option)
        if section is Run:
            heading.add_argument("-h", "--help", action="help", help="Show this.")
    return parser.format_help() + _example(name, example_of(command, family))


def _example(name: str, words: str) -> str:
    """What a command line looks like, at the end, where a long page of help leaves the reader."""
    return "\n".join(["", "example:", *_wrapped(f"{RUN} {name} {words}")]) + "\n" if words else ""


def _usage_lines(words: Sequence[str]) -> str:
    """On as many lines as the width asks for, never broken between an option and its value."""
    room = columns() - 2 - len("usage: ")
    lines = [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and len(longer) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return ("\n" + " " * len("usage: ")).join(lines)


def _usage(option: Option) -> str:
    metavar = option.metavar if isinstance(option.metavar, str) else " ".join(option.metavar)
    value = metavar or option.name.upper()
    return f"{value} ..." if option.positional else f"{option.flag} {value}"


def _formatter() -> type[argparse.HelpFormatter]:
    class Formatter(argparse.HelpFormatter):
        def __init__(self, prog: str, **other: Any):
            super().__init__(prog, max_help_position=30, width=columns() - 2)

    if not sys.stdout.isatty():
        return Formatter
    try:
        from rich_argparse import RichHelpFormatter
    except ModuleNotFoundError:
        return Formatter

    class Coloured(RichHelpFormatter):
        group_name_formatter = str

        def __init__(self, prog: str, **other: Any):
            super().__init__(prog, max_help_position=30, width=columns() - 2)

    return Coloured


def _add(heading: Any, option: Option) -> None:
    text = explained(option).replace("%", "%%")
    names = [option.flag, *(f"--{alias}" for alias in option.aliases)]
    if option.positional:
        heading.add_argument(option.name, nargs="+", metavar=option.metavar or None, help=text)
    elif option.kind == "bool" and not option.many:
        heading.add_argument(*names, action="store_true", help=text)
    else:
        heading.add_argument(*names, nargs=_nargs(option), metavar=_metavar(option), help=text)


def _nargs(option: Option) -> str | int | None:
    if not option.many:
        return None
    return option.count if option.count is not None else "*"


def _metavar(option: Option) -> str | tuple[str, ...]:
    if option.metavar:
        return option.metavar
    if option.choices:
        return "CHOICE"
    words = {"int": "N", "float": "X", "number": "N", "str": "TEXT"}
    return words.get(option.kind, option.name.upper())


def explained(option: Option) -> str:
    """The help text with what follows from the declaration: choices, limits, unit, default."""
    facts = []
    if option.choices:
        facts.append(f"one of: {choice_list(option.choices)}")
    if span(option):
        facts.append(span(option))
    if option.required:
        facts.append("required")
    elif option.default not in (None, False, (), ""):
        facts.append(f"default: {_shown(option.default)}")
    if option.accepted:
        facts.append(f"accepted, but changes nothing: {option.accepted}")
    text = option.help + (f" ({'; '.join(facts)})" if facts else "")
    return f"(+) {text}" if option.advanced else text


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(_shown(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
