"""From the words of a command line to a job, or to help. Flags win over the config file, that over a launcher's flags.

Raises OptionError for whatever is wrong; whoever calls prints it and leaves with its exit status. Imports no torch and
answers `--help` at once.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from . import toml
from .commands import COMMANDS, Command, family_names, find, find_family, for_family, sections_of
from .errors import OptionError
from .job import Job, changed, make_job, split_header
from .launch import launched, surrounding
from .options import Run
from .options.others import of_others
from .schema import Option, by_any_name, listed, options, unknown
from .values import Place, from_words
from .wording import closest, did_you_mean

_NUMBER = re.compile(r"-(\d|\.\d|inf|nan)", re.IGNORECASE)
_HELP = ("-h", "--help")


@dataclass
class Words:
    """A command line taken apart: the words behind each flag (by the option's name), and those behind none."""

    flags: dict[str, list[str]] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    loose: list[str] = field(default_factory=list)


def parse(argv: list[str], *, before: str = "") -> Job | None:
    """The job of a command line (without the program's name). None when help or the config was printed instead.
    `before`: the command that another one follows, `plan`, for the help to name both.
    """
    words = list(argv)
    if not words or words[0] in (*_HELP, "help"):
        write_result(_help().overview())
        return None
    if words[0] == "plan" and len(words) > 1 and not words[1].startswith("-"):
        planned = parse(words[1:], before="plan")
        return planned if planned is None else _to_be_planned(planned)
    line = None if _is_verb(words) else launched(words)
    if line is not None:
        return _parse_command(line.command, line.family, line.words, {**surrounding(os.environ), **line.data})
    command, rest = _command(words)
    if command is None:
        write_result(_help().group(words[0]))
        return None
    family, rest = _family(command, rest)
    if command.family and family is None and any(word in _HELP for word in rest):
        write_result(_help().families_of(command, before))
        return None
    return _parse_command(command, family, rest, surrounding(os.environ), before)


def _to_be_planned(job: Job) -> Job:
    """The same job, of which only the memory is predicted: by one process, for all of them, and without a record."""
    found, does = changed(job, {"job_dir": None}), find("plan")
    return Job(replace(found.command, module=does.module, alone=does.alone), found.family, found.sections)


def write_result(text: str) -> None:
    """Write a result to stdout: in UTF-8 to a file or pipe, so that a printed job can be read again; a terminal that
    lacks a sign shows another for it. A reader that has seen enough (`… | head`) is no failure.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        encoding = sys.stdout.encoding if sys.stdout.isatty() else "utf-8"
        sys.stdout.reconfigure(encoding=encoding, errors="replace")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end


def _help() -> Any:
    from . import help

    return help


def _is_verb(words: list[str]) -> bool:
    """Whether the line begins with a command of ours. `cache_latents` is musubi-tuner's script, but before a family's
    name it is our `cache-latents`.
    """
    verbs = {command.verb.partition(" ")[0] for command in COMMANDS}
    return words[0] in verbs or (words[0].replace("_", "-") in verbs and words[1:2] != [] and words[1][:1] != "-")


def _command(words: list[str]) -> tuple[Command | None, list[str]]:
    """The command that the first one or two words name; None for a bare group such as `dataset`."""
    first = words[0].replace("_", "-")
    second = words[1].replace("_", "-") if len(words) > 1 else ""
    verbs = {command.verb: command for command in COMMANDS}
    if first in verbs:
        return verbs[first], words[1:]
    inside = [verb.partition(" ")[2] for verb in verbs if verb.startswith(first + " ")]
    if inside:
        if not second or words[1] in _HELP:
            return None, []
        if second in inside:
            return verbs[f"{first} {second}"], words[2:]
        near = closest(second, inside)
        hint = f"Did you mean {first} {near}?" if near else f"There are: {', '.join(f'{first} {v}' for v in inside)}."
        raise OptionError(f"There is no command {first} {words[1]}.", hint=hint)
    known = dict.fromkeys([*verbs, *(verb.partition(" ")[0] for verb in verbs)])
    hint = did_you_mean(first, known, "See --help for the list.")
    raise OptionError(f"There is no command {words[0]}.", hint=hint)


def _family(command: Command, words: list[str]) -> tuple[str | None, list[str]]:
    if not command.family or not words or words[0].startswith("-"):
        return None, words
    return find_family(words[0]), words[1:]


def _parse_command(
    command: Command, family: str | None, words: list[str], launch: Mapping[str, str], before: str = ""
) -> Job | None:
    if not command.available:
        raise OptionError(f"`{command.verb}` is not available yet.", hint="See --help for what is.")
    if any(word in _HELP for word in words) and (family is not None or not command.family):
        write_result(_help().command(command, family, before))
        return None
    data, source, family = _from_config_file(command, family, words)
    if command.family and family is None:
        known = " or ".join(f"{command.verb} {name}" for name in family_names())
        raise OptionError(f"{command.verb} needs a model family.", hint=f"Write {known}.")
    if command.family and command not in for_family(str(family)):
        raise OptionError(f"{command.verb} does not exist for {family}.")
    found = listed(sections_of(command, family))
    taken = take_apart(words, found, command, family)
    flags = {name: from_words(found[name], given, Place(taken.written[name])) for name, given in taken.flags.items()}
    started = {name: from_words(found[name], [word], Place(name)) for name, word in launch.items() if name in found}
    merged = {**started, **data, **flags}
    source = {name: path for name, path in source.items() if name not in flags}
    job = make_job(command, family, merged, source=source, elsewhere=lambda name: _elsewhere(name, command, family))
    if job[Run].print_config:
        write_result(job.to_toml())
        return None
    return job


def _from_config_file(
    command: Command, family: str | None, words: list[str]
) -> tuple[dict[str, Any], dict[str, str], str | None]:
    """Options of the config file, where each stands, and the family, which the file may name."""
    run = {option.name: option for option in options(Run)}
    given = take_apart(words, run, command, family, strict=False).flags.get("config_file")
    if given is None:
        return {}, {}, family
    path = toml.find(str(from_words(run["config_file"], given, Place("config_file"))))
    said, said_family, data = split_header(toml.flat(toml.load(path), path), str(path), expected=command)
    if said is not command:
        raise OptionError(
            f"{path} is a job for `{said.verb if said else ''}`, but the command is `{command.verb}`.",
            hint="Run that command, or delete the line command = … from the file.",
            names=("config_file",),
        )
    if family is not None and said_family not in (None, family):
        raise OptionError(
            f"{path} is a job for the family {said_family}, but the command is for {family}.",
            hint="Run it for that family, or delete the line family = … from the file.",
            names=("config_file",),
        )
    family = family or said_family
    if command.family and family is None:
        return {}, {}, None
    names = by_any_name(listed(sections_of(command, family)))
    values: dict[str, Any] = {}
    for key, value in data.items():
        place = Place(key, str(path))
        option = names.get(key.replace("-", "_"))
        if option is None:
            raise unknown(key.replace("-", "_"), place, names, lambda name: _elsewhere(name, command, family))
        if option.name in values:
            raise OptionError(f"{place} is given twice, also as {option.name}.", hint="Keep one.")
        values[option.name] = value
    return values, dict.fromkeys(values, str(path)), family


def take_apart(
    words: list[str], found: Mapping[str, Option], command: Command, family: str | None, *, strict: bool = True
) -> Words:
    """Sort the words of a command line by flag. Dashes count as underscores, `--name=value` as two words, the last of
    a repeated flag wins. Without `strict`, flags that are not in `found` are passed over.
    """
    names = by_any_name(found)
    result = Words()
    current: Option | None = None
    last: Option | None = None
    for word in words:
        if _is_flag(word):
            name, equals, value = word[2:].partition("=")
            current, off = _named(name.replace("-", "_"), names)
            if current is None or current.positional:
                current = None
                if strict:
                    raise unknown(name.replace("-", "_"), Place(name), names, lambda n: _elsewhere(n, command, family))
                continue
            result.flags[current.name] = ["false"] if off else ([value] if equals else [])
            result.written[current.name] = name.replace("-", "_")
            last = current
            if equals or off:
                current = None
        elif current is not None and _takes_more(current, len(result.flags[current.name])):
            result.flags[current.name].append(word)
        else:
            result.loose.append(word)
            if strict and not _positional(found):
                raise _loose(word, last, found)
    positional = _positional(found)
    if positional is not None and result.loose:
        result.flags[positional.name], result.written[positional.name] = result.loose, positional.name
    return result


def _is_flag(word: str) -> bool:
    if word.startswith("--"):
        return len(word) > 2 and not re.match(r"--\S*\s", word.partition("=")[0])
    if word.startswith("-") and len(word) > 1 and not _NUMBER.match(word) and " " not in word:
        raise OptionError(f"There is no option {word}.", hint="Options begin with two dashes. See --help for the list.")
    return False


def _named(name: str, names: Mapping[str, Option]) -> tuple[Option | None, bool]:
    """The option of a flag, and whether it is the `--no_…` that switches it off."""
    if name in names:
        return names[name], False
    positive = names.get(name[3:]) if name.startswith("no_") else None
    if positive is not None and positive.kind == "bool":
        return positive, True
    return None, False


def _takes_more(option: Option, so_far: int) -> bool:
    if option.kind == "bool" and not option.many:
        return False
    return option.many and (option.count is None or so_far < option.count) or so_far < 1


def _positional(found: Mapping[str, Option]) -> Option | None:
    return next((option for option in found.values() if option.positional), None)


def _loose(word: str, last: Option | None, found: Mapping[str, Option]) -> OptionError:
    needed = " ".join(f"{option.flag} …" for option in found.values() if option.required)
    hint = f"Options begin with two dashes: {needed}" if needed else "Options begin with two dashes."
    if last is not None and last.kind == "bool":
        hint = f"{last.flag} takes no value; --no_{last.name} switches it off."
    elif last is not None and last.kind == "str":
        hint = f'If it belongs to {last.flag}, put quotes around the whole text: "… {word} …".'
    elif last is not None:
        hint = f"{last.flag} takes {last.count or 'one'} value{'s' if last.count else ''}."
    return OptionError(f"{word!r} belongs to no option.", hint=hint)


def _elsewhere(name: str, command: Command, family: str | None) -> str:
    """Which other commands have an option of this name; for the hint of an error."""
    if command.verb == "plan":
        return f"Write the command first: `plan train wan … --{name} …`."
    found = []
    for other in COMMANDS:
        if other is command or not other.available:
            continue
        if name in by_any_name(listed(sections_of(other, family if other.family else None))):
            suffix = f" {family.replace('_', '-')}" if other.family and family else ""
            found.append(f"`{other.verb}{suffix}`")
    return f"It is an option of {' and '.join(found)}." if found else of_others(name)
