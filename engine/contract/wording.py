"""Names, numbers and texts inside a message: listed as choices, counted, cut short, or the name that was meant.

The same in every message. Where a name or a text is put into one, there is no word besides it but a sign, since a page
translates messages, not what is inserted into them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path


def choice_list(choices: Sequence[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    return " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1]))) if choices else ""


def counted(count: int, word: str, plural: str = "") -> str:
    """`1 step`, `2 steps`. `plural`: where it is not the word with an s. For the log: a message that a page translates
    needs a form of its own for one."""
    return f"{count} {word if count == 1 else plural or word + 's'}"


def first_few(named: Iterable[str | Path], *, count: int = 3) -> str:
    """`a, b, c`, and `a, b, c, …` for more than `count` names or files; a message that needs their number says it."""
    names = [one.name if isinstance(one, Path) else one for one in named]
    return ", ".join([*names[:count], *(["…"] if len(names) > count else [])])


def closest(name: str, names: Iterable[str]) -> str:
    """The most similar name, "" when none is similar. Capitals do not matter."""
    names = list(names)
    found = difflib.get_close_matches(name.lower(), [known.lower() for known in names], n=1, cutoff=0.6)
    return next((known for known in names if found and known.lower() == found[0]), "")


def did_you_mean(name: str, names: Iterable[str], otherwise: str = "") -> str:
    """The hint for a name that is unknown: the most similar one, or `otherwise` when none is similar."""
    near = closest(name, names)
    return f"Did you mean {near}?" if near else otherwise


def beginning(text: str, *, most: int) -> str:
    """The text on one line, cut to `most` characters with "…": between words, if they are as short as most are.

    Unlike textwrap's, it leaves something of a text without spaces, such as a Japanese one.
    """
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    cut = text[: most - 1]
    space = text.rfind(" ", 0, most)
    return cut[: space if space > most // 2 else None].rstrip() + "…"
