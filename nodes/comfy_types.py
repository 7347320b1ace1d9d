"""Our description of a node as one of ComfyUI's V3 classes. Needs ComfyUI's schema, so only ComfyUI can import it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from comfy_api.latest import io

from .spec import Input, Node, Result, Socket, Switch, Widget

HIDDEN = (io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo)


def node_class(
    node: Node,
    *,
    inputs: Sequence[Input],
    execute: Callable[[Node, Any, Mapping[str, Any]], Any],
    check: Callable[[Node, str], str],
) -> type:
    """A class of ComfyUI's for a node. Its schema is made each time ComfyUI asks, with the files of that moment."""

    def define_schema(cls: Any) -> Any:
        return schema(node, inputs)

    def run(cls: Any, **given: Any) -> Any:
        outcome = execute(node, cls.hidden, given)
        return io.NodeOutput(*outcome.values, ui=dict(outcome.ui) if outcome.ui else None)

    def fingerprint(cls: Any, **given: Any) -> str:
        assert node.fingerprint is not None
        return node.fingerprint(given)

    def validate(cls: Any, **told_at: Any) -> bool | str:
        return check(node, str(cls.hidden.unique_id)) or True

    # ComfyUI reports a refusal once for each input that the signature names, and skips its own check of these.
    names = ("cls", node.told_at)
    validate.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names if name]
    )
    members: dict[str, Any] = {
        "define_schema": classmethod(define_schema),
        "execute": classmethod(run),
        "__doc__": node.help,
        "__module__": __name__,
    }
    if node.fingerprint is not None:
        members["fingerprint_inputs"] = classmethod(fingerprint)
    if node.told_at:
        members["validate_inputs"] = classmethod(validate)
    return type(node.name, (io.ComfyNode,), members)


def schema(node: Node, inputs: Sequence[Input]) -> Any:
    return io.Schema(
        node_id=node.id,
        display_name=node.title,
        category=node.category,
        description=node.help,
        inputs=[made(item) for item in inputs],
        outputs=[result(item) for item in node.results],
        hidden=list(HIDDEN),
        is_output_node=node.is_output,
        search_aliases=list(node.aliases),
    )


def made(item: Input) -> Any:
    if isinstance(item, Socket):
        return _socket(item)
    if isinstance(item, Switch):
        options = [io.DynamicCombo.Option(key, [widget(one) for one in case]) for key, case in item.cases.items()]
        return io.DynamicCombo.Input(item.id, options=options, display_name=item.label or None, tooltip=item.help)
    return widget(item)


def _socket(item: Socket) -> Any:
    # No display_name: the page would save it with the graph and prefer it to the reader's language (locales/).
    common = {"tooltip": item.help, "optional": item.optional}
    types = [_type(name) for name in item.types]
    if len(types) == 1:
        return types[0].Input(item.id, **common)
    return io.MultiType.Input(item.id, types, **common)


def result(item: Result) -> Any:
    return _type(item.type).Output(
        item.id, display_name=item.label or item.id, tooltip=item.help, is_output_list=item.many
    )


def _type(name: str) -> Any:
    """ComfyUI's own type of this name, or one of ours."""
    known = {
        "IMAGE": io.Image,
        "VIDEO": io.Video,
        "STRING": io.String,
        "COMBO": io.Combo,
        "INT": io.Int,
        "FLOAT": io.Float,
    }
    return known.get(name) or io.Custom(name)


def widget(item: Widget) -> Any:
    common: dict[str, Any] = {
        "display_name": item.label or None, "tooltip": item.help, "optional": True, "default": item.default,
        "advanced": item.advanced or None,
    }  # fmt: skip
    if item.kind == "bool":
        return io.Boolean.Input(item.id, **common)
    if item.kind == "text":
        return io.String.Input(item.id, multiline=item.multiline, **common)
    if item.kind == "choice":
        return io.Combo.Input(item.id, options=item.values(), **common)
    if item.kind == "int":
        low, high = int(item.low or 0), int(item.high or 0)
        again = True if item.seed else None
        return io.Int.Input(
            item.id, min=low, max=high, step=int(item.step or 1), control_after_generate=again, **common
        )  # fmt: skip
    return io.Float.Input(item.id, min=item.low, max=item.high, step=item.step, round=False, **common)
