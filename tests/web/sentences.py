"""What the engine and the nodes tell a person when something is wrong, as sentences, read from their sources.

Each message and each hint is a text in the code, mostly with values in it. Here it becomes sentences with `{name}` for
each value, in the words of a node, as a page gets them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice, pairwise, product
from typing import NamedTuple

from tests.nodes.conftest import part

from .test_page import scripts_of

TELLING = {
    "EngineError", "OptionError", "DataError", "WeightsError", "OutOfMemoryError", "DiskError", "ProcessLost",
    "Stopped", "Warning_", "JobFailed", "Missing", "Refusal", "Refused", "Failed", "Problem",
}  # fmt: skip
"""What is made to tell a person something: its arguments are sentences, whatever they look like."""
MODELS = {"dit", "vae", "text_encoder", "clip_vision"}
"""Files of an option whose help is the hint where it is missing: its widget has another one."""
ASIDE = {
    "Command", "job_file", "Argument", "ArgumentParser", "_announce", "NotOffered", "Outcome",
    "Widget", "Result", "Node", "Socket", "_plain", "_cache_node", "Switch", "replace",
    "Log", "debug", "info", "change",
}  # fmt: skip
"""Calls whose texts are for other readers: helps and logs. What `change` says of a run is in test_said.py."""
NOT_IN_COMFYUI = (
    "engine/bench", "engine/demo", "engine/contract/cli.py", "engine/contract/pages.py", "engine/contract/launch.py",
    "engine/contract/commands.py", "engine/contract/help.py", "engine/contract/job.py", "engine/contract/toml.py",
    "engine/contract/options/others.py", "engine/contract/options/bench.py", "engine/media/terminal.py",
    "engine/serving.py", "engine/tasks/bench.py", "engine/tasks/bench_measuring.py", "engine/tasks/demo.py",
    "engine/tasks/docs.py", "engine/tasks/doctor.py", "engine/tasks/lora_info.py", "engine/tasks/dataset_check.py",
    "engine/tasks/plan.py", "engine/training/upload.py", "engine/lora/info.py", "nodes/allowed.py", "nodes/__main__.py",
    "nodes/pages.py", "nodes/manifest.py", "nodes/publish.py", "env_bootstrap/cli.py", "env_bootstrap/adding.py",
    "env_bootstrap/extras.py",
)  # fmt: skip
"""Where only a command line is spoken to."""
NODES_GIVE = {
    "optimizer_args", "network_args", "lr_scheduler_args", "log_level", "device", "output_dir", "save_path", "output",
    "output_file", "save_merged_model", "save_merged_lora", "job_dir", "tokenizer", "tokenizer1", "tokenizer2",
}  # fmt: skip
"""Options that no node has as a widget, though a node's job may well have them."""
MET_ALL_THE_SAME = ("Nothing to generate",)
"""Beginnings of sentences with a flag that no node has, said in ComfyUI too."""
VALUE, MARK = "zq{}zq", re.compile(r"zq([a-z_]\w*?)zq")
ENDING = re.compile(
    r"""
    (?<=[.?]) (?<!e\.g\.) (?<!i\.e\.) (?=[ \n])                            # where the page parts sentences
    | ^ zq\w+?zq (?=\ \()                                                # a value, and something in brackets
    | ^ zqadvicezq (?=\ )
    | (?: ^ | (?<=[.?]\ ) | (?<=zq\ ) ) zq\w+?zq (?=\ [A-Z][a-z ] | \ zq\w+zq$)  # a value that is a sentence itself
    """,
    re.VERBOSE,
)
MOST = 24
PLACES = {"where", "near"}
"""Names of texts that stay values: one form does for all of them."""


class Sentence(NamedTuple):
    """A sentence with `{name}` for each value, and where it stands."""

    words: str
    place: str

    @property
    def form(self) -> tuple[str, ...]:
        """The words between the values."""
        return tuple(re.split(r"\{\w+\}", self.words))


def name_of(value: ast.expr) -> str:
    """A name for what stands between two pieces of a text."""
    match value:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.strip("_").lower()
        case ast.Call(func=ast.Attribute(attr="join"), args=[inner]) | ast.Call(func=_, args=[inner, *_]):
            return name_of(inner)
        case ast.Call(func=inner) | ast.Subscript(value=inner) | ast.Starred(value=inner):
            return name_of(inner)
        case ast.GeneratorExp(elt=inner) | ast.ListComp(elt=inner) | ast.BinOp(left=inner):
            return name_of(inner)
    return "value"


Known = Callable[[], dict[str, list[ast.expr]]]
"""What the names of texts stand for, at a place in the code; found out when it is asked for."""


def is_text(value: ast.expr, known: Known) -> bool:
    """Whether there is a text in an expression, or the name of one."""
    if isinstance(value, ast.Name):
        return value.id in known()
    return any(isinstance(getattr(node, "value", 0), str) for node in ast.walk(value))


def is_written_out(value: ast.expr | None) -> bool:
    """Whether it is a text, or a choice of texts, without a look at other code."""
    match value:
        case ast.Constant(value=str()) | ast.JoinedStr():
            return True
        case ast.IfExp(body=one, orelse=other):
            return is_written_out(one) and is_written_out(other)
        case ast.Dict(values=several):
            return all(is_written_out(one) for one in several)
    return False


def known_in(block: ast.AST, outside: Known) -> Known:
    """Also the texts that have a name in a function or a module, where each is written out."""
    return cache(lambda: _known_in(block, outside()))


def _known_in(block: ast.AST, outside: dict[str, list[ast.expr]]) -> dict[str, list[ast.expr]]:
    found: dict[str, list[ast.expr]] = {}
    for node in ast.iter_child_nodes(block) if isinstance(block, ast.Module) else ast.walk(block):
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                found.setdefault(name, []).append(value)
            case (
                ast.AugAssign(target=ast.Name(id=name), value=value)
                | ast.For(target=ast.Name(id=name), iter=value)
                | ast.comprehension(target=ast.Name(id=name), iter=value)
            ):
                found.setdefault(name, []).append(ast.Starred(value))  # nothing that is written out
            case ast.arg(arg=name):
                found.setdefault(name, []).append(ast.Starred(ast.Name(name)))
    plain = {name: values for name, values in found.items() if all(map(is_written_out, values))}
    return {**{name: values for name, values in outside.items() if name not in found}, **plain}


def texts_of(value: ast.expr | None, known: Known) -> Iterator[str]:
    """Every text that an expression can be, as far as it is written out; a mark for each value in it."""
    match value:
        case ast.Constant(value=str(words)):
            yield words
        case ast.JoinedStr(values=pieces):
            for chosen in islice(product(*(list(texts_of(piece, known)) for piece in pieces)), MOST):
                yield "".join(chosen)
        case ast.FormattedValue(value=inner, conversion=-1):
            yield from texts_of(inner, known)
        case ast.IfExp(body=one, orelse=other):
            yield from texts_of(one, known)
            yield from texts_of(other, known)
        case ast.BoolOp(values=several):
            for one in several:
                yield from texts_of(one, known)
        case ast.BinOp(left=one, op=ast.Add(), right=other) if any(is_text(text, known) for text in (one, other)):
            for chosen in product(list(texts_of(one, known)), list(texts_of(other, known))):
                yield "".join(chosen)
        case ast.Call(func=ast.Attribute(value=(ast.JoinedStr() | ast.Constant()) as inner, attr="strip")):
            yield from texts_of(inner, known)
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="get"), args=[_, other]) if name in known():
            yield from (text for one in known()[name] for text in texts_of(one, known))
            if is_written_out(other):
                yield from texts_of(other, known)
        case ast.Subscript(value=ast.Name(id=name)) if name in known() and isinstance(known()[name][0], ast.Dict):
            texts = [text for one in known()[name] for text in texts_of(one, known)]
            yield from texts if any(" " in text for text in texts) else [VALUE.format(name_of(value))]
        case ast.Name(id=name) if name not in PLACES and isinstance(
            known().get(name, [None])[0], (ast.Constant, ast.JoinedStr, ast.IfExp)
        ):
            others = {other: values for other, values in known().items() if other != name}
            yield from (text for one in known()[name] for text in texts_of(one, lambda: others))
        case ast.Dict(values=several):
            for one in several:
                yield from texts_of(one, known)
        case None:
            return
        case _:
            yield VALUE.format(name_of(value) or "value")


def sentences_of(text: str, *, on_node: bool) -> Iterator[str]:
    """The sentences of a text with marks that may be met in ComfyUI; `on_node`: in the words of a node."""
    for words in ENDING.split(text):
        if words.startswith(MET_ALL_THE_SAME) or not terminal_only().search(words):
            yield named(part("nodes.words").of_node(words) if on_node else words)


def named(text: str) -> str:
    """A text with `{name}` for each mark."""
    count: dict[str, int] = {}

    def name_in(found: re.Match[str]) -> str:
        name = {"unit": "units", "stage": "stages"}.get(found[1], found[1])  # these two mean more on the page
        count[name] = count.get(name, 0) + 1
        return f"{{{name}{count[name] if count[name] > 1 else ''}}}"

    return MARK.sub(name_in, text).strip()


@cache
def terminal_only() -> re.Pattern[str]:
    """A flag that no job of a node has: a sentence with it is said in a terminal only."""
    return re.compile(rf"--({'|'.join(sorted(part('nodes.allowed').LEFT_OUT.keys() - NODES_GIVE))})\b")


def is_sentence(text: str) -> bool:
    """Whether a text in the code reads like something said to a person: it begins and ends as a sentence does, or
    begins as one and has a value in it.
    """
    words = text.strip()
    begun = bool(re.match(r"[A-Z][a-z]+ [a-z\d-]+[ ,]", words)) and bool(MARK.search(words))
    whole = bool(re.match(r"[A-Z`]|zq|--[a-z]", words)) and words.endswith((".", "?"))
    return (begun or whole) and words.count(" ") > 1


def find_said(node: ast.AST, known: Known, told: list[tuple[int, str]], seen: list[tuple[int, str]]) -> None:
    """Add the texts that are told to a person, and those seen that read so, each with its line."""
    match node:
        case ast.Module() | ast.FunctionDef():
            known = known_in(node, known)
        case ast.Expr(value=ast.Constant()):
            return
        case ast.Call(func=ast.Name(id="opt"), args=[_, words, *_], keywords=more):
            if any(item.arg == "file_kind" and getattr(item.value, "value", "") in MODELS for item in more):
                told += ((node.lineno, text) for text in texts_of(words, known))
            return
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in ASIDE:
            return
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in TELLING:
            for value in (*node.args, *(item.value for item in node.keywords if item.arg in ("message", "hint"))):
                told += ((node.lineno, text) for text in texts_of(value, known))
        case ast.JoinedStr() | ast.Constant() | ast.BinOp() | ast.IfExp():
            texts = list(texts_of(node, known))  # type: ignore[arg-type]
            if any(is_sentence(text) for text in texts):
                seen += ((node.lineno, text) for text in texts)
                return
    for inner in ast.iter_child_nodes(node):
        if inner._fields:
            find_said(inner, known, told, seen)


def enough_of_it_is_fixed(words: str) -> bool:
    """A sentence that is nearly all values tells nothing that could be said in other words."""
    fixed = re.findall(r"[A-Za-z]{2,}", re.sub(r"\{\w+\}", " ", words)) if " " in words else ()
    return len(fixed) > 1 or any(len(word) > 4 for word in fixed)


@cache
def sentences() -> dict[tuple[str, ...], Sentence]:
    """All that a person in ComfyUI may be told, by the words between the values."""
    told, seen = list[Sentence](), list[Sentence]()
    for path, tree in scripts_of("engine", "nodes", "env_bootstrap"):
        if not path.startswith(NOT_IN_COMFYUI):
            found: tuple[list[tuple[int, str]], ...] = ([], [])
            find_said(tree, dict, *found)
            for texts, into in zip(found, (told, seen), strict=True):
                parts = (
                    (line, words) for line, text in texts for words in sentences_of(text, on_node=path[:3] != "env")
                )
                into += (Sentence(words, f"{path}:{line}") for line, words in parts if enough_of_it_is_fixed(words))
    whole = sorted({sentence.words for sentence in (*told, *seen)})
    begun = {one for one, other in pairwise(whole) if not one.endswith((".", "?")) and other.startswith(one)}
    return {one.form: one for one in (*(one for one in seen if one.words not in begun), *told)}


SAYING = {"need": 2, "Fault": 1, "_damaged": 1}
"""Calls with a phrase, and the place of it among the arguments."""
REASONS = {
    "_outdated", "_reason", "_text", "limits", "complaint", "missing", "_problems", "_one_frame_problems",
    "settings_of", "item", "_fused_backward_pass", "_only_training",
}  # fmt: skip
"""Functions that give a phrase, or several."""
WHAT_IS_RIGHT = ("engine/data/config_keys.py", "engine/data/jsonl.py", "engine/parts/safetensors_header.py")
"""Where a ValueError says what would be right, or what is wrong."""


def said_within(function: ast.FunctionDef, path: str) -> Iterator[ast.expr]:
    """Texts in a function that are no sentences: they stand in one as a value."""
    for node in ast.walk(function):
        match node:
            case ast.Call(func=ast.Name(id=name), args=arguments) if name in SAYING and len(arguments) > SAYING[name]:
                yield arguments[SAYING[name]]
            case ast.Call(func=ast.Name(id="ValueError"), args=[words]) if path in WHAT_IS_RIGHT:
                yield words
            case ast.Return(value=ast.expr() as words) if function.name in REASONS:
                yield words
            case ast.keyword(arg="what", value=words) if function.name in REASONS:
                yield words
            case ast.Tuple(elts=several) if function.name in REASONS:
                yield from (words for words in several if isinstance(words, (ast.Constant, ast.JoinedStr)))


@cache
def phrases() -> dict[tuple[str, ...], Sentence]:
    """Reasons and the like, which stand in a sentence as its values, by the words between their own values."""
    found: dict[tuple[str, ...], Sentence] = {}
    for path, tree in scripts_of("engine"):
        if not path.startswith(NOT_IN_COMFYUI):
            module = known_in(tree, dict)
            functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
            said = [(known_in(one, module), value) for one in functions for value in said_within(one, path)]
            for known, value in said:
                for text in texts_of(value, known):
                    words = named(part("nodes.words").of_node(ENDING.split(text)[0]))
                    words = words.removesuffix(".") if ENDING.search(text) else words
                    if re.search(r"[a-z]{2}.* |or ", re.sub(r"\{\w+\}", "", words)) and not words.endswith("."):
                        sentence = Sentence(words, f"{path}:{value.lineno}")
                        found.setdefault(sentence.form, sentence)
    return found


if __name__ == "__main__":
    for sentence in (*sentences().values(), *phrases().values()):
        print(sentence.place, sentence.words, sep="\t")
