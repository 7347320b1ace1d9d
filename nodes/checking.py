"""What would be refused when a node's turn comes, said when the prompt is queued: no model chosen, a folder that is
gone, a length that the model cannot make.

A node's job is put together from the prompt as it will be when the node runs, by the same functions, so the words are
the same. Nothing is started. What other packs' nodes will give is not known: a check that would need it says nothing.
Whether a value is in its list or its limits is ComfyUI's own check.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..engine.contract.errors import EngineError
from . import catalogue, host, jobs, show, sockets, widgets
from .spec import Call, Node, Socket, Switch

MADE_WHEN_RUN = {sockets.IMAGE, sockets.VIDEO}
"""What other packs' nodes give ours: only that it comes matters to a check."""


class NotKnown(Exception):
    """A value comes from somewhere that cannot be looked at before it runs."""


def refusal_now(node: Node, node_id: str) -> str:
    """`refusal` in the prompt that is just being queued, said to its page too: ComfyUI's only names the input."""
    queued = host.queued()
    words = refusal(node, node_id, queued.prompt)
    if words and queued.page:
        show.refused(node_id, words, page=queued.page)
    return words


def refusal(node: Node, node_id: str, prompt: Mapping[str, Any]) -> str:
    """Why this node of a prompt cannot run; "" when nothing is wrong as far as can be seen."""
    try:
        _Look(prompt).at(node_id, node)
    except (NotKnown, widgets.NotOffered):
        return ""
    except EngineError as problem:
        return str(jobs.as_error(problem))
    return ""


class _Look:
    """One look at a prompt: what its nodes will give, each asked once."""

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
        """What `execute` would be given: links followed, `source.folder` inside of `source`."""
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
        """What comes over a link into a socket of these types; none: into a widget, which nobody can look at."""
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
            self._found[node_id] = None  # a graph that bites its own tail is ComfyUI's to refuse
            node = catalogue.by_id(str(self._prompt.get(node_id, {}).get("class_type", "")))
            try:
                self._found[node_id] = None if node is None else self.at(node_id, node)
            except (EngineError, NotKnown):
                pass  # what is wrong there is said there
        return self._found[node_id]
