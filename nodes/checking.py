"""Reporting when a prompt is queued what a node would refuse when it runs: no model chosen, a folder that is gone, a
length that the model cannot make.

A node's job is put together from the prompt by the same functions as when the node runs, so the messages are the same.
Nothing is started. The results of other packs' nodes are not known: a check that needs them reports nothing. Whether a
value is in its list or its limits is checked by ComfyUI itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..engine.contract.errors import EngineError
from . import catalogue, host, jobs, show, sockets, widgets
from .spec import Call, Node, Socket, Switch

MADE_WHEN_RUN = {sockets.IMAGE, sockets.VIDEO}
"""Types that other packs' nodes give ours: to a check it only matters that something is connected."""


class NotKnown(Exception):
    """A value that cannot be known before the prompt runs."""


def refusal_now(node: Node, node_id: str) -> str:
    """`refusal` in the prompt that is just being queued. Its page is told too, as ComfyUI's error only names the
    input."""
    queued = host.queued()
    words = refusal(node, node_id, queued.prompt)
    if words and queued.page:
        show.refused(node_id, words, page=queued.page)
    return words


def refusal(node: Node, node_id: str, prompt: Mapping[str, Any]) -> str:
    """Why this node of a prompt cannot run; "" if nothing is wrong as far as can be seen."""
    try:
        _Look(prompt).at(node_id, node)
    except (NotKnown, widgets.NotOffered):
        return ""
    except EngineError as problem:
        return str(jobs.as_error(problem))
    return ""


class _Look:
    """One check of a prompt: the results that its nodes will have, each worked out once."""

    def __init__(self, prompt: Mapping[str, Any]):
        self._prompt = prompt
        self._found: dict[str, tuple[Any, ...] | None] = {}

    def at(self, node_id: str, node: Node) -> tuple[Any, ...]:
        """The node's results, or stand-ins for them. EngineError, NotKnown."""
        entry = self._prompt.get(node_id)
        if node.check is None or entry is None:
            raise NotKnown
        inputs = widgets.read(node.inputs, self._values(node, entry.get("inputs", {})))
        return node.check(Call(node=node, inputs=inputs, node_id=node_id)).values

    def _values(self, node: Node, given: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs that `execute` would get: links followed, `source.folder` inside of `source`."""
        types = {item.id: set(item.types) for item in node.inputs if isinstance(item, Socket)}
        switches = {item.id for item in node.inputs if isinstance(item, Switch)}
        found: dict[str, Any] = {}
        for name, value in given.items():
            if isinstance(value, list):
                value = self._linked(value, types.get(name, set()))
            switch, _, inside = name.partition(".")
            if switch in switches:
                found.setdefault(switch, {})[inside or switch] = value
            else:
                found[name] = value
        return found

    def _linked(self, link: list[Any], types: set[str]) -> Any:
        """The value that a link brings to a socket of these types. No types: to a widget, whose value is not known."""
        if not types or len(link) != 2 or not isinstance(link[1], int):
            raise NotKnown
        results = self._results(str(link[0]))
        if results is not None and link[1] < len(results):
            return results[link[1]]
        if types <= MADE_WHEN_RUN:
            return sockets.COMING
        raise NotKnown

    def _results(self, node_id: str) -> tuple[Any, ...] | None:
        if node_id not in self._found:
            self._found[node_id] = None  # ends cycles, which are for ComfyUI to refuse
            node = catalogue.by_id(str(self._prompt.get(node_id, {}).get("class_type", "")))
            try:
                self._found[node_id] = None if node is None else self.at(node_id, node)
            except (EngineError, NotKnown):
                pass  # that node reports it itself
        return self._found[node_id]
