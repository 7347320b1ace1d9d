"""The vocabulary of V3 nodes: inputs, outputs, schema. `info` gives what `/object_info` answers for a node."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Hidden(str, Enum):
    unique_id = "UNIQUE_ID"
    prompt = "PROMPT"
    extra_pnginfo = "EXTRA_PNGINFO"


class _Input:
    def __init__(self, kind: str, id: str, /, **told: Any):
        self.kind, self.id, self.optional = kind, id, bool(told.pop("optional", False))
        self.told = told

    def as_v1(self) -> list[Any]:
        return [self.kind, {name: value for name, value in self.told.items() if value is not None}]


class _Output:
    def __init__(self, kind: str, id: str, *, display_name: str, tooltip: str, is_output_list: bool = False):
        self.kind, self.id, self.display_name, self.tooltip = kind, id, display_name, tooltip
        self.is_output_list = is_output_list


def _type(kind: str, **always: Any) -> Any:
    class Type:
        io_type = kind

        @staticmethod
        def Input(id: str, **told: Any) -> _Input:
            return _Input(kind, id, **{**told, **always})

        @staticmethod
        def Output(id: str, **told: Any) -> _Output:
            return _Output(kind, id, **told)

    return Type


Custom = _type
Image, Video = _type("IMAGE"), _type("VIDEO")
Boolean, Int, Float = _type("BOOLEAN"), _type("INT"), _type("FLOAT")
String, Combo = _type("STRING"), _type("COMBO", multiselect=False)


class MultiType:
    """An input of several types."""

    @staticmethod
    def Input(id: str, types: list[Any], **told: Any) -> _Input:
        return _Input(",".join(kind.io_type for kind in types), id, **told)


class DynamicCombo:
    """A choice that brings inputs along."""

    class Option:
        def __init__(self, key: str, inputs: list[_Input]):
            self.key, self.inputs = key, inputs

    @staticmethod
    def Input(id: str, *, options: list[DynamicCombo.Option], **told: Any) -> _Input:
        listed = [{"key": option.key, "inputs": v1_inputs(option.inputs)} for option in options]
        return _Input("COMFY_DYNAMICCOMBO_V3", id, **told, options=listed)


def v1_inputs(inputs: list[_Input]) -> dict[str, Any]:
    found: dict[str, Any] = {"required": {}}
    for item in inputs:
        found.setdefault("optional" if item.optional else "required", {})[item.id] = item.as_v1()
    return found


@dataclass(kw_only=True)
class Schema:
    node_id: str
    display_name: str
    category: str
    description: str
    inputs: list[Any]
    outputs: list[Any]
    hidden: list[Any]
    is_output_node: bool
    search_aliases: list[str] = field(default_factory=list)


class ComfyNode:
    """The base of all V3 nodes; `hidden` is set while one runs."""

    hidden: Any = None

    @classmethod
    def info(cls) -> dict[str, Any]:
        schema = cls.define_schema()  # type: ignore[attr-defined]
        inputs = v1_inputs(schema.inputs)
        return {
            "input": inputs,
            "input_order": {key: list(value) for key, value in inputs.items()},
            "output": [output.kind for output in schema.outputs],
            "output_name": [output.display_name for output in schema.outputs],
            "output_tooltips": [output.tooltip for output in schema.outputs],
            "output_is_list": [output.is_output_list for output in schema.outputs],
            "name": schema.node_id,
            "display_name": schema.display_name,
            "category": schema.category,
            "description": schema.description,
            "output_node": schema.is_output_node,
            "search_aliases": schema.search_aliases or None,
        }


class NodeOutput:
    """What a node gives back."""

    def __init__(self, *args: Any, ui: Any = None):
        self.args, self.ui = args, ui
