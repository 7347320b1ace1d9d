"""What is generated from the description of the nodes: help pages, translations, the record of the order of widgets.

All of it is kept in the tree; `python -m nodes --check` fails if something does not match. Needs no ComfyUI. A text
that has no translation stays English; a test says which ones may.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..engine.contract import toml
from ..engine.contract.files import write_text
from . import catalogue
from .spec import Input, Node, Result, Socket, Switch, Widget, display

PACK = Path(__file__).resolve().parents[1]
DOCS, LOCALES = PACK / "web" / "docs", PACK / "locales"
WORDS = Path(__file__).with_name("words")
LANGUAGES = ("en", "ja")
NOTE = "<!-- Made by `python -m nodes` from the description of the nodes. Do not edit. -->"
HEADINGS = {
    "en": {
        "inputs": "Inputs", "widgets": "Settings", "advanced": "Advanced settings", "results": "Outputs",
        "input": "input", "setting": "setting", "default": "default", "what": "what it does", "from": "type",
        "when": "with {id} = {key}", "on": "on", "off": "off", "optional": "optional",
    },
    "ja": {
        "inputs": "入力", "widgets": "設定", "advanced": "詳細設定", "results": "出力",
        "input": "入力", "setting": "設定", "default": "既定値", "what": "説明", "from": "型",
        "when": "{id} = {key} のとき", "on": "オン", "off": "オフ", "optional": "省略可",
    },
}  # fmt: skip


class Words:
    """The texts of one language. The English ones are those of the nodes themselves."""

    def __init__(self, language: str):
        file = WORDS / f"{language}.toml"
        self.language = language
        self._tables: Mapping[str, Any] = toml.load(file) if file.is_file() else {}

    def _find(self, table: str, *keys: str) -> tuple[str, str] | None:
        entries = self._tables.get(table, {})
        return next(((entries[key][0], entries[key][1]) for key in keys if key in entries), None)

    def node(self, node: Node) -> tuple[str, str]:
        """Title and help. Nodes of a family share an entry, in which {family} stands for its name."""
        found = self._find("nodes", node.name, node.kind)
        if found is None:
            return node.title, node.help
        return found[0].replace("{family}", node.family), found[1].replace("{family}", node.family)

    def item(self, node: Node, item: Input | Result, table: str) -> tuple[str, str]:
        """Label and tooltip of an input or output, which may be given for one node or for all."""
        found = self._find(table, f"{node.name}.{item.id}", f"{node.kind}.{item.id}", item.id)
        return found or (item.label or display(item.id), item.help)


# ------------------------------------------------------------------------------------------------------------- pages


def page(node: Node, words: Words) -> str:
    """The help page of a node."""
    heads = HEADINGS[words.language]
    title, text = words.node(node)
    lines = [NOTE, "", f"# {title}", "", text, ""]
    inputs = catalogue.ordered(node)
    sockets = [item for item in inputs if isinstance(item, Socket)]
    if sockets:
        lines += [f"## {heads['inputs']}", "", _row(heads["input"], heads["from"], heads["what"]), "|---|---|---|"]
        for socket in sockets:
            label, tip = words.item(node, socket, "inputs")
            kind = " / ".join(f"`{name}`" for name in socket.types) + (
                f", {heads['optional']}" if socket.optional else ""
            )
            lines.append(_row(f"**{label}**", kind, tip))
        lines.append("")
    for switch in (item for item in inputs if isinstance(item, Switch)):
        label, tip = words.item(node, switch, "inputs")
        lines += [f"## {label}", "", tip, ""]
        for key, case in switch.cases.items():
            lines += _widgets(node, list(case), words, heads["when"].format(id=label, key=key), 3)
    widgets = [item for item in inputs if isinstance(item, Widget)]
    lines += _widgets(node, [item for item in widgets if not item.advanced], words, heads["widgets"], 2)
    lines += _widgets(node, [item for item in widgets if item.advanced], words, heads["advanced"], 2)
    lines += [f"## {heads['results']}", "", _row(heads["results"], heads["from"], heads["what"]), "|---|---|---|"]
    for result in node.results:
        label, tip = words.item(node, result, "results")
        lines.append(_row(f"**{label}**", f"`{result.type}`", tip))
    return "\n".join([*lines, ""])


def _widgets(node: Node, widgets: list[Widget], words: Words, heading: str, level: int) -> list[str]:
    if not widgets:
        return []
    heads = HEADINGS[words.language]
    lines = ["#" * level + f" {heading}", "", _row(heads["setting"], heads["default"], heads["what"]), "|---|---|---|"]
    for widget in widgets:
        label, tip = words.item(node, widget, "inputs")
        shown = f"**{label}**" + (f" `{widget.option}`" if widget.option and widget.option != label else "")
        lines.append(_row(shown, _default(widget, heads), tip))
    return [*lines, ""]


def _default(widget: Widget, heads: Mapping[str, str]) -> str:
    if isinstance(widget.default, bool):
        return heads["on"] if widget.default else heads["off"]
    text = str(widget.default)
    return "" if not text or "\n" in text else f"`{text}`"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ") for cell in cells) + " |"


# ------------------------------------------------------------------------------------------------------ translations


def definitions(words: Words) -> dict[str, Any]:
    """`nodeDefs.json`: what ComfyUI shows of each node in this language."""
    found = {}
    for node in catalogue.nodes():
        title, text = words.node(node)
        inputs: dict[str, Any] = {}
        for identifier, item in _named_inputs(node):
            label, tip = words.item(node, item, "inputs")
            inputs[identifier] = {"name": label, "tooltip": tip}
        results = {}
        for place, result in enumerate(node.results):
            label, tip = words.item(node, result, "results")
            results[str(place)] = {"name": label, "tooltip": tip}
        found[node.id] = {"display_name": title, "description": text, "inputs": inputs, "outputs": results}
    return found


def _named_inputs(node: Node) -> list[tuple[str, Input]]:
    """Inputs by the key that ComfyUI looks them up with: a dot in an id becomes `_`."""
    found: list[tuple[str, Input]] = []
    for item in catalogue.ordered(node):
        found.append((item.id, item))
        if isinstance(item, Switch):
            found += [(f"{item.id}_{widget.id}", widget) for case in item.cases.values() for widget in case]
    return found


# ------------------------------------------------------------------------------------------------- order, and writing


def order() -> dict[str, list[str]]:
    """The record of widget order, with new widgets after those on record."""
    recorded = dict(catalogue.recorded_order())
    for node in catalogue.nodes():
        known = recorded.get(node.id, [])
        for item in node.inputs:
            for identifier in (item.id, *_inside(item)):
                if identifier not in known:
                    known = [*known, identifier]
        recorded[node.id] = known
    return recorded


def _inside(item: Input) -> list[str]:
    if not isinstance(item, Switch):
        return []
    return [f"{item.id}.{key}.{widget.id}" for key, case in item.cases.items() for widget in case]


def files() -> dict[Path, str]:
    """Everything that is generated: path -> content."""
    found = {catalogue.ORDER: _json(order())}
    for language in LANGUAGES:
        words = Words(language)
        found[LOCALES / language / "nodeDefs.json"] = _json(definitions(words))
        for node in catalogue.nodes():
            place = DOCS / f"{node.id}.md" if language == "en" else DOCS / node.id / f"{language}.md"
            found[place] = page(node, words)
    return found


def stale() -> list[Path]:
    """Files that are missing or differ, and pages of nodes that are gone."""
    wanted = files()
    there = {path for path in DOCS.rglob("*.md") if path.read_text(encoding="utf-8").startswith(NOTE)}
    return sorted(path for path in {*wanted, *there} if wanted.get(path) != _read(path))


def write() -> list[Path]:
    """Bring all of it up to date. Returns what changed."""
    wanted, changed = files(), stale()
    for path in changed:
        if path in wanted:
            write_text(path, wanted[path], durable=False)
        else:
            path.unlink()
    return changed


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _json(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"


def main(words: list[str]) -> int:
    """`python -m nodes [--check]`. The check returns exit status 1 if something is not up to date."""
    import sys

    if words not in ([], ["--check"]):
        sys.stderr.write("usage: python -m nodes [--check]\n")
        return 2
    changed = stale() if words else write()
    for path in changed:
        sys.stderr.write(f"{'not up to date' if words else 'written'}: {path.relative_to(PACK)}\n")
    if words and changed:
        sys.stderr.write("Run `python -m nodes` and commit the result.\n")
    return 1 if words and changed else 0
