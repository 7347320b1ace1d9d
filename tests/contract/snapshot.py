"""The names, types and defaults of every option as JSON, and the way to renew it: `python -m tests.contract.snapshot`.

An option is a promise: command lines, job files and saved workflows hold its name. So a change shows up here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine.contract.commands import COMMANDS, families, sections_of
from engine.contract.schema import Option, options

PATH = Path(__file__).with_name("options.json")


def described(option: Option) -> dict[str, Any]:
    """What other people's files depend on; help texts may change freely."""
    kind = option.kind + (f"*{option.count or ''}" if option.many else "") + ("?" if option.nullable else "")
    found: dict[str, Any] = {"type": kind, "default": option.default}
    for name in ("choices", "aliases", "low", "high"):
        if getattr(option, name) not in (None, ()):
            found[name] = getattr(option, name)
    if option.required:
        found["required"] = True
    return found


def current() -> dict[str, Any]:
    """Command → section → option → what it is, in the order of the declarations."""
    found: dict[str, Any] = {}
    for command in COMMANDS:
        for family in families().names(extra=False) if command.family else [None]:
            name = " ".join(filter(None, (command.verb, family)))
            found[name] = {
                section.__name__: {option.name: described(option) for option in options(section)}
                for section in sections_of(command, family)
            }
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


if __name__ == "__main__":
    PATH.write_text(json.dumps(current(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{PATH} renewed")
