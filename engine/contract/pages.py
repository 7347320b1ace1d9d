"""Reference pages in Markdown, one for each command and family, made from the declarations alone.

The pages are kept in the tree; `stale` says which no longer match, so that a test can fail.
"""

from __future__ import annotations

import os
from pathlib import Path

from .commands import COMMANDS, Command, example_of, families, sections_of
from .files import write_text
from .packages import RUN
from .schema import Option, Section, options, summary
from .values import span
from .wording import choice_list

NOTE = "<!-- Made by `python -m engine docs` from the declarations of the options. Do not edit. -->"


def pages(*, extra: bool = False) -> dict[str, str]:
    """Every page by its file name. The same declarations always give the same text.

    `extra` adds the pages of families that stand outside the engine's folder.
    """
    found: dict[str, str] = {}
    rows = []
    for command in COMMANDS:
        for family in families().names(extra=extra) if command.family else [None]:
            name = _file_name(command, family)
            found[name] = _page(command, family)
            rows.append(f"| [`{_typed(command, family)}`]({name}) | {command.help}{_later(command)} |")
    found["README.md"] = "\n".join(
        [
            NOTE,
            "",
            "# Commands and their options",
            "",
            "| command | what it does |",
            "|---|---|",
            *rows,
            "",
            "Every option can stand in a TOML file given with `--config_file` under the same name; flags win. Dashes "
            "may stand for underscores. `--no_NAME` switches an on/off option off. musubi-tuner's script names work in "
            "place of a command.",
            "",
        ]
    )
    return found


def write(folder: str | os.PathLike[str], *, extra: bool = False) -> list[str]:
    """Write the pages that are not up to date and delete those of nothing. Returns the names that changed."""
    home = Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    wanted, changed = pages(extra=extra), stale(home, extra=extra)
    for name in changed:
        path = home / name
        if name not in wanted:
            path.unlink()
            continue
        write_text(path, wanted[name])
    return changed


def stale(folder: str | os.PathLike[str], *, extra: bool = False) -> list[str]:
    """Names of pages that are missing, differ, or were made for what is gone; other files do not count."""
    home = Path(folder)
    wanted = pages(extra=extra)
    there = {path.name: path.read_text(encoding="utf-8") for path in home.glob("*.md")}
    ours = {name for name, text in there.items() if text.startswith(NOTE)}
    return sorted(name for name in {*wanted, *ours} if wanted.get(name) != there.get(name))


def _typed(command: Command, family: str | None) -> str:
    return " ".join(filter(None, (command.verb, (family or "").replace("_", "-"))))


def _file_name(command: Command, family: str | None) -> str:
    return _typed(command, family).replace(" ", "-") + ".md"


def _later(command: Command) -> str:
    return "" if command.available else " *(not available yet)*"


def _page(command: Command, family: str | None) -> str:
    lines = [NOTE, "", f"# `{_typed(command, family)}`", "", command.help + _later(command), ""]
    example = example_of(command, family)
    if example:
        lines += ["```", f"{RUN} {_typed(command, family)} {example}", "```", ""]
    for section in sections_of(command, family):
        lines += _table(section)
    return "\n".join(lines)


def _table(section: type[Section]) -> list[str]:
    listed = sorted(options(section), key=lambda option: (option.advanced, not option.required))
    rows = [
        f"| `{option.flag}`{_aliases(option)} | {_kind(option)} | {_default(option)} | {_help(option)} |"
        for option in listed
    ]
    if not rows:
        return []
    head = ["| option | value | default | what it does |", "|---|---|---|---|"]
    return [f"## {section.title}", "", summary(section), "", *head, *rows, ""]


def _aliases(option: Option) -> str:
    return "".join(f", `--{alias}`" for alias in option.aliases)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _kind(option: Option) -> str:
    words = {"str": "text", "int": "whole number", "float": "number", "number": "steps or share", "bool": "on/off"}
    kind = words[option.kind]
    if option.count:
        kind = f"{option.count} × {kind}"
    elif option.many:
        kind = f"list of {kind}"
    facts = [span(option)]
    if option.choices:
        kind, facts = _cell(choice_list(option.choices)), []
    return ", ".join(filter(None, (kind, *facts)))


def _default(option: Option) -> str:
    if option.required:
        return "**required**"
    if option.default is None or option.default in ((), ""):
        return ""
    if option.kind == "bool":
        return "on" if option.default else "off"
    value = option.default
    return "`" + (" ".join(map(str, value)) if isinstance(value, tuple) else str(value)) + "`"


def _help(option: Option) -> str:
    text = _cell(option.help)
    if option.accepted:
        text += f" *(accepted, but changes nothing: {_cell(option.accepted)})*"
    return text
