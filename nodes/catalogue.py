"""All nodes, and how ComfyUI gets them: each becomes a class of its V3 schema, made from our own description.

The order of a node's widgets is a contract with saved workflows, which keep values by position: `order.json` holds it,
new widgets come last, whatever the order of the options.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from ..engine.contract.errors import EngineError
from . import dataset, host, jobs, lora_tools, monitor, settings, sheet, tasks, video, weights, widgets
from .spec import Call, Input, Node, Switch

ORDER = Path(__file__).with_name("order.json")


@cache
def nodes() -> tuple[Node, ...]:
    """Every node that this version has."""
    groups = (dataset, sheet, weights, settings, tasks, lora_tools, video, monitor)
    return tuple(node for group in groups for node in group.nodes())


@cache
def _by_id() -> Mapping[str, Node]:
    return {node.id: node for node in nodes()}


def by_id(node_id: str) -> Node | None:
    """The node with this class name in a prompt; None if it is not ours."""
    return _by_id().get(node_id)


@cache
def recorded_order() -> Mapping[str, list[str]]:
    """The ids of each node's inputs in the order in which they were added."""
    found: dict[str, list[str]] = json.loads(ORDER.read_text(encoding="utf-8")) if ORDER.is_file() else {}
    return found


def ordered(node: Node) -> list[Input]:
    """The node's inputs as saved workflows know them: those on record first, new ones after."""
    known = {identifier: place for place, identifier in enumerate(recorded_order().get(node.id, ()))}

    def place(identifier: str) -> int:
        return known.get(identifier, len(known))

    found: list[Input] = []
    for item in sorted(node.inputs, key=lambda item: place(item.id)):
        if isinstance(item, Switch):
            cases = {
                key: tuple(sorted(case, key=lambda widget: place(f"{item.id}.{key}.{widget.id}")))  # noqa: B023
                for key, case in item.cases.items()
            }
            item = replace(item, cases=cases)
        found.append(item)
    return found


def execute(node: Node, hidden: Any, given: Mapping[str, Any]) -> Any:
    """Run a node; an EngineError becomes the one message that ComfyUI shows."""
    extra = getattr(hidden, "extra_pnginfo", None)
    try:
        call = Call(
            node=node, inputs=widgets.read(node.inputs, given), node_id=str(getattr(hidden, "unique_id", "") or ""),
            prompt_id=host.prompt_id(), prompt=getattr(hidden, "prompt", None),
            workflow=extra.get("workflow") if isinstance(extra, Mapping) else None,
        )  # fmt: skip
        return node.execute(call)
    except EngineError as problem:
        raise jobs.as_error(problem) from None


def comfy_class(node: Node) -> type:
    """The class that ComfyUI registers."""
    from . import checking, comfy_types

    return comfy_types.node_class(node, inputs=ordered(node), execute=execute, check=checking.refusal_now)
