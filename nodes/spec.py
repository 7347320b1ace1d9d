"""What a node is, in our own words: its widgets, sockets, results and the function behind it.

Pages, translations and the order of widgets are made from this, without ComfyUI. Knows neither options nor ComfyUI's
types: `widgets.py` does both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

PREFIX = "MusubiTuner_"
ROOT = "MusubiTuner"
NONE = "none"
"""The choice that stands for "not given" in a pick list."""


@dataclass(frozen=True, kw_only=True)
class Widget:
    """A value that a person sets on a node. `listing` makes the choices each time they are needed (files in folders),
    `resolve` turns the chosen name into the path that the engine is given.

    `option` is the engine's option that it sets ("" for a value that the node itself uses); `part` the place in it
    if the option takes several values, `argument` the key if it takes `key=value`. The value `unset` means that the
    option is not given. `seed` lets ComfyUI draw a new value after each run.
    """

    id: str
    kind: Literal["int", "float", "bool", "text", "choice"]
    help: str
    default: Any
    label: str = ""
    low: float | None = None
    high: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()
    listing: Callable[[], list[str]] | None = None
    resolve: Callable[[str], str] | None = None
    multiline: bool = False
    advanced: bool = False
    seed: bool = False
    option: str = ""
    part: int | None = None
    argument: str = ""
    unset: Any = None

    def values(self) -> list[str]:
        """The choices as they are now; a value outside is refused."""
        return list(self.choices) if self.listing is None else self.listing()


@dataclass(frozen=True, kw_only=True)
class Socket:
    """A value that comes from another node. Several types: any of them."""

    id: str
    types: tuple[str, ...]
    help: str
    label: str = ""
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class Switch:
    """A choice that decides which widgets there are."""

    id: str
    help: str
    cases: Mapping[str, tuple[Widget, ...]]
    label: str = ""


Input = Widget | Socket | Switch


@dataclass(frozen=True, kw_only=True)
class Result:
    """An output of a node; `many`: a list whose entries are passed on one by one."""

    id: str
    type: str
    help: str
    label: str = ""
    many: bool = False


@dataclass(frozen=True, kw_only=True)
class Call:
    """One execution: the checked inputs by id, and where in which graph it happens."""

    node: Node
    inputs: Mapping[str, Any]
    node_id: str = ""
    prompt_id: str = ""
    prompt: Any = None
    workflow: Any = None

    @property
    def workflow_id(self) -> str:
        """The id of the workflow; "" if the prompt was queued without one."""
        return str(self.workflow.get("id", "")) if isinstance(self.workflow, Mapping) else ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The results in the order of the node's `results`, and UI output for the page."""

    values: tuple[Any, ...] = ()
    ui: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node. `fingerprint`: from the widgets' values, a text that changes when something outside the graph does.

    `check` raises what `execute` would refuse, without running anything, and returns stand-ins for results that do not
    exist yet; `told_at`: the input at which ComfyUI shows the refusal when the prompt is queued, "" for none.

    `kind`: what such nodes of all families have in common ("Generator"); `family`: the title of this one's.
    """

    name: str
    title: str
    group: str
    help: str
    inputs: tuple[Input, ...]
    results: tuple[Result, ...]
    execute: Callable[[Call], Outcome]
    fingerprint: Callable[[Mapping[str, Any]], str] | None = None
    check: Callable[[Call], Outcome] | None = None
    told_at: str = ""
    is_output: bool = False
    aliases: tuple[str, ...] = ()
    kind: str = ""
    family: str = ""

    @property
    def id(self) -> str:
        return PREFIX + self.name

    @property
    def category(self) -> str:
        return f"{ROOT}/{self.group}"

    def widgets(self) -> list[Widget]:
        """All widgets, those inside switches too."""
        found: list[Widget] = []
        for item in self.inputs:
            if isinstance(item, Widget):
                found.append(item)
            elif isinstance(item, Switch):
                found += [widget for case in item.cases.values() for widget in case]
        return found


def named_after(path: str, ending: str) -> str:
    """`folder/cat.safetensors` → `cat-ending`."""
    return f"{PurePath(path).stem}-{ending}"


def display(identifier: str) -> str:
    """`max_train_steps` → `max train steps`: how an option is called on a node."""
    return identifier.replace("_", " ")
