"""Values that one way of running a task needs and another does not, so that no declaration can require them."""

from __future__ import annotations

from ..contract.errors import OptionError


def needed(value: str | None, flag: str, what: str) -> str:
    """`value`, or the error that it is missing. `what` says in words what the flag names."""
    if not value:
        raise OptionError(f"{flag} is required: {what}.", names=(flag.lstrip("-"),))
    return value
