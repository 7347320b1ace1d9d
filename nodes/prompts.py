"""Prompt lines typed on a node: one video per line, with the engine's `--w 832 --d 42 …`, as a file for the engine.

Options in a line that name files may reach allowed folders only, so each is resolved here and written as a full path.
Knows which letters name files; the engine reads the rest and reports what is wrong with it.
"""

from __future__ import annotations

import re

from ..engine.contract.errors import OptionError
from ..engine.contract.files import write_text
from . import paths

FILE_LETTERS = frozenset({"i", "ei", "cn", "ci", "cim"})
"""Letters whose value is a path; a test compares them with the engine's own tables."""
_OPTION = re.compile(r"(?:^|(?<=\s))--([A-Za-z]\S*)")


def checked_line(line: str, number: int) -> str:
    """The line with its files resolved. OptionError: one is outside the allowed folders."""
    marks = list(_OPTION.finditer(line))
    found, end = line[: marks[0].start()] if marks else line, len(line)
    for index, mark in enumerate(marks):
        end = marks[index + 1].start() if index + 1 < len(marks) else len(line)
        value = line[mark.end() : end]
        if mark.group(1) in FILE_LETTERS:
            try:
                value = f" {paths.anywhere(_unquoted(value.strip()))} "
            except OptionError as error:
                raise OptionError(f"Line {number}: {error.message}", hint=error.hint) from None
        found += f"--{mark.group(1)}{value}"
    return found.rstrip()


def _unquoted(value: str) -> str:
    """A path without the quotes around it, which the engine does not count as part of it."""
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" and value[0] not in value[1:-1]
    return value[1:-1] if quoted else value


def write_prompts(text: str) -> str:
    """Write a file with these lines, named by its content. Returns its path. OptionError, DiskError."""
    lines = [checked_line(line.strip(), number) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if "\0" in text or not lines:
        raise OptionError("There is no prompt in the list.", hint="Write one prompt per line.")
    content = "\n".join(lines) + "\n"
    path = paths.work() / "prompts" / f"{paths.short_hash(content)}.txt"
    if not path.is_file():
        write_text(path, content, durable=False)
    return str(path)
