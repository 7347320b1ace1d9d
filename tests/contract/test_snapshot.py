"""An option is a promise: nothing is renamed, retyped or given another default by accident."""

from __future__ import annotations

import json
from typing import Any

from .snapshot import PATH, current


def flat(snapshot: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{command}: {name}": told
        for command, sections in snapshot.items()
        for section in sections.values()
        for name, told in section.items()
    }


def in_order(snapshot: dict[str, Any]) -> list[str]:
    """A line for each section of each command, with the names of its options."""
    return [
        f"{command}, {section}: {' '.join(options)}"
        for command, sections in snapshot.items()
        for section, options in sections.items()
    ]


def test_the_options_are_those_of_the_snapshot() -> None:
    before, now = flat(json.loads(PATH.read_text(encoding="utf-8"))), flat(current())
    changes = [f"gone: {name}" for name in before if name not in now]
    changes += [f"new: {name}" for name in now if name not in before]
    changes += [f"changed: {n}: {before[n]} -> {now[n]}" for n in before if n in now and before[n] != now[n]]
    assert not changes, "If this is meant, run `python -m tests.contract.snapshot`.\n" + "\n".join(changes)


def test_the_order_of_the_options_is_that_of_the_snapshot() -> None:
    before, now = (in_order(told) for told in (json.loads(PATH.read_text(encoding="utf-8")), current()))
    changes = [f"was: {line}" for line in before if line not in now]
    changes += [f"is: {line}" for line in now if line not in before]
    assert not changes, "If this is meant, run `python -m tests.contract.snapshot`.\n" + "\n".join(changes)
    assert before == now, "Commands or sections have changed places. Run `python -m tests.contract.snapshot`."
