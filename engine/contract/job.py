"""A job: a command with all its options resolved, frozen, and written down as TOML that gives the same job again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from . import toml
from .commands import Command, family_options, find, find_family, sections_of
from .errors import OptionError
from .options import DatasetTools, Demo, Run
from .packages import RUN
from .schema import Option, Section, build, options, placed

S = TypeVar("S", bound=Section)
HEADER_KEYS = ("command", "family")


@dataclass(frozen=True)
class Job:
    """What to do. `job[Section]` gives a section, also when the family's subclass of it is inside."""

    command: Command
    family: str | None
    sections: Mapping[type[Section], Section]

    def __getitem__(self, section: type[S]) -> S:
        exact = self.sections.get(section)
        if exact is not None:
            return cast(S, exact)
        for instance in self.sections.values():
            if isinstance(instance, section):
                return instance
        raise KeyError(f"`{self.name}` has no options {section.__name__}")

    def __contains__(self, section: type[Section]) -> bool:
        return any(isinstance(instance, section) for instance in self.sections.values())

    @property
    def name(self) -> str:
        """As it is typed: `train wan`."""
        positional = self.family if self.command.family else None
        return " ".join(filter(None, (self.command.verb, (positional or "").replace("_", "-"))))

    def values(self) -> dict[str, Any]:
        """Every option by its name."""
        return {option.name: value for option, value in self._given()}

    def shown(self) -> dict[str, Any]:
        """What may be shown to others: every option by its name, but no secrets and nothing about this run only."""
        return {option.name: value for option, value in self._given() if not (option.secret or option.transient)}

    def _given(self) -> Iterator[tuple[Option, Any]]:
        for instance in self.sections.values():
            for option in options(type(instance)):
                yield option, getattr(instance, option.name)

    def to_toml(self) -> str:
        """The resolved job. As --config_file it gives the identical job, so it can be run again by hand."""
        lines = [
            f"# Run again: {RUN} {self.name} --config_file THIS_FILE",
            toml.line("command", self.command.verb),
        ]
        if self.command.family and self.family:
            lines.append(toml.line("family", self.family.replace("_", "-")))
        for section, instance in self.sections.items():
            inside = [line for option in options(section) for line in _lines(option, getattr(instance, option.name))]
            if inside:
                lines += ["", f"# {section.title}", *inside]
        return "\n".join(lines) + "\n"


def _lines(option: Option, value: Any) -> list[str]:
    if option.transient or option.secret or value is None:
        return []
    return [toml.line(option.name, value)]


def make_job(
    command: Command,
    family: str | None,
    data: Mapping[str, Any],
    *,
    source: str | Mapping[str, str] = "",
    elsewhere: Callable[[str], str] | None = None,
) -> Job:
    """Check `data` (option name -> value) and freeze it into a job. `source` and `elsewhere` as in `schema.build`.

    What the data leaves open and follows from the rest is filled in, so that the job says what will be done.
    Raises OptionError.
    """
    sections = sections_of(command, family)
    job = Job(command, family, build(sections, data, source=source, elsewhere=elsewhere))
    if DatasetTools in job or Demo in job:
        chosen = job[DatasetTools].family if DatasetTools in job else job[Demo].family
        job = Job(command, find_family(chosen), job.sections)
    checks = [command.rules]
    if family is not None:
        checks.append(getattr(family_options(family), "rules", None))
    for check in filter(None, checks):
        try:
            check(job)
        except OptionError as error:
            raise placed(error, source) from None
    tellers = [command.resolved]
    if family is not None:
        tellers.append(getattr(family_options(family), "resolved", None))
    return filled(job, {name: value for tell in filter(None, tellers) for name, value in tell(job).items()})


def filled(job: Job, found: Mapping[str, Any]) -> Job:
    """The job with those of its open options (None) that `found` knows."""
    sections = {}
    for kind, section in job.sections.items():
        names = [option.name for option in options(kind) if option.name in found]
        now = {name: found[name] for name in names if getattr(section, name) is None}
        sections[kind] = dataclasses.replace(cast(Any, section), **now) if now else section
    return Job(job.command, job.family, sections)


def changed(job: Job, values: Mapping[str, Any]) -> Job:
    """The job with other values of some of its options, which are checked again. KeyError for one it does not have."""
    left = set(values)
    sections = {}
    for kind, section in job.sections.items():
        now = {option.name: values[option.name] for option in options(kind) if option.name in values}
        left -= now.keys()
        sections[kind] = dataclasses.replace(cast(Any, section), **now) if now else section
    if left:
        raise KeyError(f"`{job.name}` has no options {', '.join(sorted(left))}")
    return Job(job.command, job.family, sections)


def load_job(path: str | Path) -> Job:
    """The job in a file that names its own command and family, as `to_toml` writes it. Raises OptionError."""
    data = toml.flat(toml.load(path), path)
    command, family, values = split_header(data, str(path))
    if command is None:
        raise OptionError(f"{path} does not say which command it is for.", hint='Add command = "train" at its top.')
    if command.family and family is None:
        raise OptionError(f"{path} does not say which model family it is for.", hint='Add family = "…" at its top.')
    return make_job(command, family, values, source=str(path))


def split_header(
    data: Mapping[str, Any], path: str, *, expected: Command | None = None
) -> tuple[Command | None, str | None, dict[str, Any]]:
    """Command, family (folder name) and options of a flat job file. `expected` is the command when the file names none.

    Raises OptionError for an unknown command or family, and for options that belong on the command line only.
    """
    rest = dict(data)
    verb = rest.pop("command", None)
    command = expected if verb is None else find(_text(verb, "command", path))
    family = None
    if command is None or command.family:
        family = rest.pop("family", None)
    for option in options(Run):
        if option.transient and option.name in rest:
            raise OptionError(
                f"{option.name} applies to a single run, so it does not belong in {path}.",
                hint=f"Delete it there, and give {option.flag} on the command line.",
                names=(option.name,),
            )
    return command, None if family is None else find_family(_text(family, "family", path)), rest


def _text(value: Any, key: str, path: str) -> str:
    if not isinstance(value, str):
        raise OptionError(f"{key} in {path} needs text, but is {value!r}.", hint=f"Change {key} in {path}.")
    return value
