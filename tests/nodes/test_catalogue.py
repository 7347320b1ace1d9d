"""The nodes as ComfyUI sees them: names, widgets, order, pages and translations."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ..comfyui import graphs
from .conftest import PACK, listed_widgets, load_pack, part
from .record import FILE, broken, promises

catalogue, places, spec, pages = part("nodes.catalogue"), part("nodes.places"), part("nodes.spec"), part("nodes.pages")
NODES = catalogue.nodes()
COMMON = {
    "DatasetConfig": "Dataset", "DatasetViewer": "Dataset", "VAELatentCache": "Cache", "TextEncoderCache": "Cache",
    "LoRATrainingConfig": "Train", "OptimizerConfig": "Train", "MemoryOptimizer": "Train",
    "HunyuanVideoLoRATrainer": "Train", "Wan21LoRATrainer": "Train", "FramePackLoRATrainer": "Train",
    "HunyuanVideoGenerator": "Generate", "Wan21Generator": "Generate", "FramePackGenerator": "Generate",
    "BatchProcessor": "Generate", "LoRAFormatConverter": "LoRA", "LoRAMerger": "LoRA", "LoRAPostHocEMA": "LoRA",
    "VideoInput": "Video", "VideoOutput": "Video", "TrainingMonitor": "Monitor", "ResourceMonitor": "Monitor",
    "Wan21ModelPaths": "Models", "Wan21LoRAStack": "Models", "HunyuanVideoModelPaths": "Models",
    "FramePackModelPaths": "Models",
}  # fmt: skip


def comfy_nodes() -> dict[str, Any]:
    """What the pack's entry point gives to ComfyUI, by id."""

    async def loaded() -> list[Any]:
        extension = await load_pack().comfy_entrypoint()
        return await extension.get_node_list()

    return {node.info()["name"]: node for node in asyncio.run(loaded())}


def test_the_nodes_of_the_design_are_there() -> None:
    found = {node.name: node.category for node in NODES}
    for name, group in COMMON.items():
        assert found[name] == f"MusubiTuner/{group}"
        assert f"MusubiTuner_{name}" in {node.id for node in NODES}
    assert len({node.id for node in NODES}) == len(NODES)


def test_every_family_has_its_nodes() -> None:
    for family in places.family_names():
        name = places.node_name(family)
        kinds = {node.kind for node in NODES if node.name.startswith(name) and node.kind}
        assert kinds == {"ModelPaths", "LoRAStack", "LoRATrainer", "Generator"}


def test_the_pack_is_loaded_as_comfyui_loads_it(comfy: Path) -> None:
    nodes = comfy_nodes()
    assert set(nodes) == {node.id for node in NODES}
    assert (PACK / load_pack().WEB_DIRECTORY).is_dir()


def test_what_a_saved_workflow_relies_on_is_kept(comfy: Path) -> None:
    """After a change that was meant: `python -m tests.nodes.record URL` with a real server, and a deprecation note."""
    recorded, listed = json.loads(FILE.read_text(encoding="utf-8")), listed_widgets()
    told = {name: json.loads(json.dumps(promises(node.info(), listed))) for name, node in comfy_nodes().items()}
    assert broken(recorded, told) == []


def test_a_promise_that_is_broken_is_found() -> None:
    before = {"node": {"input": {"a": {"type": "INT", "choices": ["x", "y"]}}, "output": ["VIDEO"]}}
    after = {"node": {"input": {"a": {"type": "FLOAT", "choices": ["y", "z"]}, "b": {}}, "output": ["RUN", "VIDEO"]}}
    assert broken(before, before) == []
    assert len(broken(before, after)) == 3
    assert broken(before, {}) == ["/node is gone"]


def test_importing_the_pack_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.path.insert(0, '.'); from tests.nodes.conftest import part; part('nodes.catalogue').nodes()\n"
        "heavy = {'torch', 'numpy', 'transformers', 'safetensors', 'PIL', 'comfy_api', 'folder_paths', 'aiohttp'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PACK, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_starting_the_pack_takes_no_time() -> None:
    """What the processor spends on it, so that a crowded machine does not matter; 0.3 s is what is promised."""
    code = (
        "import sys, time; sys.path[:0] = ['.', 'tests/nodes/comfy_stub']\n"
        "import asyncio, comfy_api.latest, inspect, urllib.request; from tests.nodes.conftest import load_pack\n"
        "begun = time.process_time()\n"
        "async def start(): return await (await load_pack().comfy_entrypoint()).get_node_list()\n"
        "asyncio.run(start()); print(time.process_time() - begun)"
    )
    spent = [
        float(subprocess.run([sys.executable, "-c", code], cwd=PACK, capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(spent) < 0.5, spent


def test_the_entry_imports_nothing_of_comfyui_at_its_top() -> None:
    text = (PACK / "__init__.py").read_text(encoding="utf-8")
    assert re.findall(r"^(?:from|import) (\S+)", text, re.MULTILINE) == ["__future__", "typing"]
    assert "NODE_CLASS_MAPPINGS" not in text


def test_the_name_of_a_socket_is_left_to_the_readers_language(comfy: Path) -> None:
    """A name in the schema would be saved with the graph, and shown instead of the one in locales/."""
    told = comfy_nodes()
    for node in NODES:
        inputs = told[node.id].info()["input"]
        for socket in (item for item in node.inputs if isinstance(item, spec.Socket)):
            assert "display_name" not in inputs["optional" if socket.optional else "required"][socket.id][1], socket.id


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.name)
def test_a_node_is_whole(node: Any) -> None:
    ids = [item.id for item in node.inputs]
    assert len(set(ids)) == len(ids)
    assert not set(ids) & {result.id for result in node.results} or node.results  # a node may hand an input on
    assert all(item.help.strip() for item in (*node.inputs, *node.results))
    for widget in node.widgets():
        assert "--" not in widget.help.replace("--w 832 --h 480 --f 81 --d 42", "").replace("--s 20", ""), widget.id
        if widget.kind == "choice" and widget.listing is None:
            assert widget.default in widget.choices, widget.id
        if widget.kind in ("int", "float"):
            assert widget.low <= widget.default <= widget.high, widget.id


def test_no_option_is_on_no_node_without_a_reason() -> None:
    """Every option of the commands is a widget or a socket, or `allowed.py` says why not."""
    widgets, sockets, allowed = part("nodes.widgets"), part("nodes.sockets"), part("nodes.allowed")
    shown = {widget.option for node in NODES for widget in node.widgets()} | {
        name for group in allowed.GROUPS.values() for name in group
    }
    for family in places.family_names():
        for verb in ("cache-latents", "cache-text", "train", "generate"):
            for option in places.of_command(verb, family).values():
                assert not widgets.unplaced(option), f"{verb} {family}: {option.name}: {widgets.unplaced(option)}"
                reason = widgets.left_out(option) or sockets.type_of(option) or sockets.from_stack(option)
                assert reason or option.name in shown, f"{verb} {family}: {option.name}"


def test_nothing_is_left_out_that_does_not_exist() -> None:
    allowed = part("nodes.allowed")
    known = {
        name
        for command in part("engine.contract.commands").COMMANDS
        for family in (places.family_names() if command.family else [None])
        for name in places.of_command(command.verb, family)
    }
    for table in (
        allowed.LEFT_OUT,
        allowed.CHOICES,
        allowed.FAMILYS_OWN,
        allowed.ARGUMENTS,
        allowed.HELP,
        allowed.PLAIN_TEXT,
    ):
        assert not set(table) - known


def test_the_order_of_widgets_is_on_record() -> None:
    """Saved workflows keep values by position: what is on record stays where it is, new widgets come last."""
    recorded = catalogue.recorded_order()
    for node in NODES:
        ids = [item.id for item in catalogue.ordered(node)]
        known = [name for name in recorded[node.id] if "." not in name]
        assert ids == known, f"{node.id}: run `python -m nodes`; a widget that is gone has to stay, deprecated"


def test_a_case_that_other_widgets_follow_does_not_grow() -> None:
    """The page puts a case's widgets behind their switch: one more there takes the saved value of the next widget."""
    for node in NODES:
        recorded, inputs = catalogue.recorded_order()[node.id], catalogue.ordered(node)
        for place, switch in enumerate(inputs):
            for case in switch.cases if isinstance(switch, spec.Switch) else ():
                own = [recorded.index(f"{switch.id}.{case}.{widget.id}") for widget in switch.cases[case]]
                moved = [
                    item.id
                    for item in inputs[place + 1 :]
                    if not isinstance(item, spec.Socket) and min(own) < recorded.index(item.id) < max(own)
                ]
                assert moved == [], f"{node.id}: {switch.id} = {case}: give the new widget to the node, not to the case"


def test_a_new_widget_comes_last_wherever_it_is_declared() -> None:
    node = next(node for node in NODES if node.name == "VideoInput")
    new = spec.Widget(id="new", kind="bool", default=False, help="New.")
    grown = spec.Node(**{**vars(node), "inputs": (new, *node.inputs)})
    assert [item.id for item in catalogue.ordered(grown)][-1] == "new"


def test_pages_translations_and_order_are_up_to_date() -> None:
    stale = [str(path.relative_to(PACK)) for path in pages.stale()]
    assert not stale, f"Run `python -m nodes`: {', '.join(stale)}"


def test_all_names_and_common_settings_are_japanese() -> None:
    japanese, missing = pages.Words("ja"), []
    for node in NODES:
        if japanese.node(node) == (node.title, node.help):
            missing.append(node.name)
        for table, items in (("inputs", [*node.inputs, *node.widgets()]), ("results", node.results)):
            for item in items:
                same = japanese.item(node, item, table)[1] == item.help
                if same and not getattr(item, "advanced", False):
                    missing.append(f"{node.name}.{item.id}")
    missing = list(dict.fromkeys(missing))  # a widget is an input too
    assert not missing, f"Give them a line in nodes/words/ja.toml, then run `python -m nodes`: {', '.join(missing)}"


def test_no_translation_is_of_nothing() -> None:
    words = part("engine.contract.toml").load(PACK / "nodes" / "words" / "ja.toml")
    names = {name for node in NODES for name in (node.name, node.kind)}
    inputs = {item.id for node in NODES for item in (*node.inputs, *node.widgets())}
    results = {result.id for node in NODES for result in node.results}
    assert set(words["nodes"]) <= names
    for table, known in (("inputs", inputs), ("results", results)):
        assert {key.rpartition(".")[2] for key in words[table]} <= known
        assert {key.rpartition(".")[0] for key in words[table]} <= {*names, ""}


WORKFLOWS = sorted((PACK / "workflows").glob("*.json"))


def our_nodes(file: Path) -> list[tuple[Any, dict[str, Any]]]:
    """Our nodes of a shipped workflow, each with what is saved of it."""
    saved = json.loads(file.read_text(encoding="utf-8"))["nodes"]
    return [(catalogue.by_id(node["type"]), node) for node in saved if catalogue.by_id(node["type"]) is not None]


def page_order(node: Any, chosen: dict[str, Any]) -> list[str]:
    """The names of a node's widgets as the page has them: those of the chosen case stand behind their switch."""
    names: list[str] = []
    for item in catalogue.ordered(node):
        if not isinstance(item, spec.Socket):
            names.append(item.id)
        if isinstance(item, spec.Switch):
            names += [f"{item.id}.{widget.id}" for widget in item.cases[chosen[item.id]]]
    return names


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_shipped_workflows_have_their_values_in_the_order_of_the_widgets(file: Path) -> None:
    """Widgets that are newer than the file come after those in it, and are at their defaults."""
    for node, saved in our_nodes(file):
        assert saved["widgets_values"] == list(saved["widgets_values_named"].values())  # the page loads the first
        named = [name for name in saved["widgets_values_named"] if name != "control_after_generate"]
        now = page_order(node, saved["widgets_values_named"])
        assert named == now[: len(named)], f"{node.name}: python -m tests.comfyui.make_workflows URL"


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_shipped_workflows_differ_from_the_defaults_where_they_mean_to(file: Path) -> None:
    graph = next(graph for graph in graphs.graphs() if graph.name == file.stem)
    meant = {part.type: part.values for part in graph.parts}
    for node, saved in our_nodes(file):
        for widget in (item for item in node.inputs if isinstance(item, spec.Widget)):
            value = saved["widgets_values_named"].get(widget.id, widget.default)
            assert value == meant[node.id].get(widget.id, widget.default), f"{node.name}.{widget.id}"
