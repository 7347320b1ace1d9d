"""What tasks need of a job's values, beyond what a declaration can require."""

from __future__ import annotations

from pathlib import Path

from ..contract.errors import OptionError


def folder_of(file: str) -> Path | None:
    """The folder that a file is in; None for a folder that does not exist, in which a mistake must leave no record."""
    folder = Path(file).resolve().parent
    return folder if folder.exists() else None


def needed(value: str | None, flag: str, what: str) -> str:
    """`value`, or the error that it is missing. `what` says in words what the flag names."""
    if not value:
        raise OptionError(f"{flag} is required: {what}.", names=(flag.lstrip("-"),))
    return value
