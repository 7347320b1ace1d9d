"""The page without a browser: its own unit tests, its texts in every language, and the rules that its files keep."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from engine.tasks import kept

PACK = Path(__file__).resolve().parents[2]
SCRIPTS = PACK / "web" / "js"
LANGUAGES = ("en", "ja")
LONGEST = 400
JOBS, COUNTING = (
    ("engine/contract", "engine/data", "engine/tasks", "engine/training"),
    {"Meter", "start", "survey", "loading_is_told"},
)
CHOSEN_AT_RUN_TIME = {
    "artifact": None, "error": None, "family": None, "verb": None, "resource": None, "state": None, "tab": None,
    "notify": None, "jobs": {"all", "running", "finished", "failed"}, "run": {"stop", "save", "sample", "cancel"},
    "setup": {"create", "repair", "cancel", "update", "go_on", "fact", "state", "words"}, "settings": None,
    "doing": None, "unit": None, "word": None, "said": None, "planned": None,
}  # fmt: skip
"""Groups of texts whose keys are put together by the page; None: all of the group."""
IN_A_TERMINAL = ("bench_measuring", "demo", "doctor", "lora_info")
"""Files of commands that no node runs."""


def texts(language: str) -> dict[str, Any]:
    return json.loads((PACK / "locales" / language / "main.json").read_text(encoding="utf-8"))["musubi"]


def keys(table: dict[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from keys(value, f"{before}{name}.")
        else:
            yield before + name, value


def script_texts() -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(SCRIPTS.rglob("*.*js"))}


def test_the_page_s_own_unit_tests_pass():
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node (https://nodejs.org) on PATH")
    files = [str(path) for path in sorted(Path(__file__).parent.glob("*.test.mjs"))]
    done = subprocess.run([node, "--test", *files], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_every_text_with_the_same_placeholders(language: str):
    english, other = dict(keys(texts("en"))), dict(keys(texts(language)))
    assert other.keys() == english.keys()
    for key, text in other.items():
        assert text.strip()
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", english[key])), key


def test_every_text_that_the_page_asks_for_exists():
    known = dict(keys(texts("en")))
    for name, script in script_texts().items():
        for key in re.findall(r"\btext\(\s*'([\w.]+)'", script):
            assert key in known, f"{name}: {key}"


def test_no_text_is_left_over():
    everything = "\n".join(script_texts().values())
    for key, _ in keys(texts("en")):
        group, _, name = key.partition(".")
        chosen = CHOSEN_AT_RUN_TIME.get(group, set())
        at_run_time = chosen is None or any(name == part or name.startswith(f"{part}_") for part in chosen)
        assert at_run_time or f"'{key}'" in everything, key


@cache
def tree_of(script: Path) -> ast.AST:
    return ast.parse(script.read_text(encoding="utf-8"))


def scripts_of(*folders: str) -> Iterator[tuple[str, ast.AST]]:
    for path in (path for folder in folders for path in sorted((PACK / folder).rglob("*.py"))):
        yield path.relative_to(PACK).as_posix(), tree_of(path)


def calls(tree: ast.AST, names: set[str]) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in names:
            yield node


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((item.value for item in call.keywords if item.arg == name), None)


def said_by_the_engine(classes: set[str], name: str) -> set[str]:
    """The fixed words with which the engine's jobs name what they do (`Stage(name=…)`), or what they count."""
    given = (keyword(call, name) for _, tree in scripts_of(*JOBS) for call in calls(tree, classes))
    return {value.value for value in given if isinstance(value, ast.Constant)}


def test_what_the_engine_does_and_counts_is_said_in_every_language():
    stages = said_by_the_engine({"Stage"}, "name") | said_by_the_engine(COUNTING, "label")
    assert "Loading the DiT" in stages and len(stages) > 20
    stages |= {f"Taking the {what} of the run before" for what in kept.WORDS.values()}
    assert {re.sub("[^a-z0-9]+", "_", words.lower()) for words in stages} == texts("en")["doing"].keys()
    assert said_by_the_engine(COUNTING, "unit") == texts("en")["unit"].keys()


def test_no_stage_has_another_name_that_is_put_together():
    found = {
        path
        for path, tree in scripts_of(*JOBS)
        for call in calls(tree, {"Stage"})
        if not isinstance(keyword(call, "name"), ast.Constant)
    }
    assert found == {"engine/tasks/kept.py", *(f"engine/tasks/{name}.py" for name in IN_A_TERMINAL)}


def words_in(function: ast.FunctionDef) -> Iterator[str]:
    """Texts in a function, but for its docstring and what something is compared with or looked up by."""
    aside = [node for node in ast.walk(function) if isinstance(node, (ast.Compare, ast.Subscript, ast.Expr))]
    aside = [node for node in aside if isinstance(getattr(node, "ctx", ast.Load()), ast.Load)]
    left_out = {id(part) for node in aside for part in ast.walk(node)}
    for node in ast.walk(function):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in left_out:
            yield node.value


def test_what_a_plan_is_made_of_is_said_in_every_language():
    """Functions that count memory have no other words than stages, what takes memory in them, and two ways to count."""
    words = {"sample: denoising", "sample: decoding"} & said_by_the_engine({"denoising", "_vae"}, "name")
    for path, tree in scripts_of("engine/memory"):
        if Path(path).stem in ("estimate", "activations"):
            words |= {word for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for word in words_in(node)}
    words -= {"", "keep", "recompute"}
    assert {re.sub("[^a-z0-9]+", "_", word.lower()) for word in words} == texts("en")["planned"].keys()


@pytest.mark.parametrize("file", ["settings.json", "commands.json"])
def test_settings_and_commands_are_translated(file: str):
    english, japanese = (
        json.loads((PACK / "locales" / language / file).read_text(encoding="utf-8")) for language in LANGUAGES
    )
    assert {key: set(value) for key, value in english.items()} == {key: set(value) for key, value in japanese.items()}
    everything = "\n".join(script_texts().values())
    for key in english:
        assert key.partition("_")[2] in everything, key


def test_only_the_entrance_ends_in_js():
    """ComfyUI imports every `.js` as an extension: a helper of that name would run twice."""
    assert [path.name for path in (PACK / "web").rglob("*.js")] == ["main.js"]


def test_scripts_are_short_and_load_nothing_from_elsewhere():
    for name, script in script_texts().items():
        assert script.startswith("/**"), f"{name} says nothing about itself"
        assert len(script.splitlines()) < LONGEST, name
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", script), f"{name} names an address"
        assert not re.search(r"\binnerHTML\b|\beval\(|new Function|insertAdjacentHTML", script), name
        for module in re.findall(r"from '([^']+)'", script):
            assert module.startswith("./") or module in ("../../../scripts/app.js", "../../../scripts/api.js"), name


def test_comfyui_loads_the_page_once():
    """`web` in pyproject.toml beside WEB_DIRECTORY would register the same scripts under two addresses."""
    assert not re.search(r"^web\s*=", (PACK / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
