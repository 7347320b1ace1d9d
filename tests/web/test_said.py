"""What a run's card says is said in every language: sentences with values in them, by their forms under "said".

The forms are the engine's own English sentences. What is told in other words, or told no more, shows here: where a
sentence stands by itself in the code it is read there, and where it is put together the code is run. Errors, hints and
warnings are read by `sentences`; keys that begin with "error_" are theirs, those with "phrase_" of what stands in one.
"""

from __future__ import annotations

import ast
import errno
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from engine.contract.errors import as_failed
from engine.contract.events import Failed
from engine.memory.choosing import Choice, Limits, Needs
from engine.memory.estimate import GIB, Stage
from engine.parts.scratch_place import no_room
from engine.processes import _unsaid
from engine.tasks.fitting import Plan
from engine.tasks.plan import verdict
from engine.tasks.within_memory import TRIED, explained
from tests.nodes.conftest import part

from .sentences import phrases, sentences
from .test_page import IN_A_TERMINAL, calls, keyword, scripts_of, texts

ENDS = {
    "train": {"_train"}, "resuming": {"finished_already"}, "report": {"summary"}, "lora_convert": {"run"},
    "generate": {"_generate", "_converse", "_decode_saved", "_save_merged"}, "lora_ema": {"run"},
    "lora_merge": {"_into_model", "_into_one"},
}  # fmt: skip
"""The functions that give a job's last sentence, by file."""
IN_WORDS = {"_unsaid", "_tail", "_mend"}
"""Functions of the nodes that say why an engine did not do its job."""


def form_of(sentence: ast.AST | None) -> list[str]:
    """The fixed parts of a sentence, [] where nothing in it is fixed; what is put in between them does not matter."""
    if isinstance(sentence, ast.Constant) and isinstance(sentence.value, str):
        return [sentence.value] if sentence.value else []
    if not isinstance(sentence, ast.JoinedStr):
        return []
    parts = [""]
    for piece in sentence.values:
        if isinstance(piece, ast.Constant):
            parts[-1] += piece.value
        else:
            parts.append("")
    return parts


def either(value: ast.expr | None) -> tuple[ast.expr | None, ...]:
    return (value.body, value.orelse) if isinstance(value, ast.IfExp) else (value,)


def sayings() -> Iterator[tuple[str, ast.AST | None]]:
    """What a run's card says beside stages, and where that stands: results, stops, and what the nodes say of a run."""
    for path, tree in scripts_of("engine/tasks", "engine/data"):
        if Path(path).stem in ENDS:
            functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
            for function in (one for one in functions if one.name in ENDS[Path(path).stem]):
                yield from ((path, node.value) for node in ast.walk(function) if isinstance(node, ast.Return))
        if Path(path).stem not in IN_A_TERMINAL:
            yield from ((path, call.args[0]) for call in calls(tree, {"Stopped"}))
    for path, tree in scripts_of("engine/ops"):
        yield from ((path, call.args[0]) for call in calls(tree, {"OutOfMemoryError"}))
    for path, tree in scripts_of("nodes"):
        yield from ((path, keyword(call, "message")) for call in calls(tree, {"change"}))
        yield from ((path, words) for call in calls(tree, {"JobFailed", "Refusal"}) for words in call.args)
        if path == "nodes/records.py":
            for table in (node for node in ast.walk(tree) if isinstance(node, ast.Dict)):
                for key, value in zip(table.keys, table.values, strict=True):
                    if getattr(key, "value", "") in ("message", "hint"):
                        yield path, value
        for function in (node for node in ast.walk(tree) if getattr(node, "name", "") in IN_WORDS):
            for node in (node for node in ast.walk(function) if isinstance(node, ast.Return)):
                yield from ((path, words) for words in either(node.value))


def plans() -> Iterator[Plan]:
    """Plans of every verdict."""
    options: tuple[dict[str, object], ...] = ({}, {"blocks_to_swap": 3}, {"block_swap_from_disk": True})
    for needed, chosen, scratch, disk, main in product((9, 30), options, (0, 4), (2, 9), (None, 30)):
        limits, fits = Limits(card=20 * GIB, disk=disk * GIB), needed < 20 and scratch <= disk
        stage = Stage(name="training step", device={"DiT weights": needed * GIB}, main={}, scratch=scratch * GIB)
        more = None if main is None else Choice(options={}, needs=Needs(card=0, main=main * GIB), fits=True)
        yield Plan(
            asked=[stage], planned=[stage], job=None, options=chosen, fits=fits, limits=limits, card=None,  # type: ignore[arg-type]
            with_more_main=None if fits else more, longest=None if fits else main,
        )  # fmt: skip


def failures() -> Iterator[Failed]:
    """How a job ends that ran out of something, or that a mistake of ours ended."""
    full = OSError(errno.ENOSPC, "No space left on device", "/a/b")
    for problem in (MemoryError("a"), full, FileNotFoundError(errno.ENOENT, "No such file", "/a"), ValueError("x")):
        yield as_failed(problem)[0]
    yield as_failed(RuntimeError("It broke (os error 28)"))[0]
    yield as_failed(KeyboardInterrupt())[0]
    yield as_failed(no_room(Path("/a"), 2 * GIB, GIB))[0]
    yield _unsaid(1, -9)
    for plan in plans():
        yield as_failed(explained(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), plan))[0]
        yield Failed(kind="memory", message=f"{verdict(plan)} {TRIED}")


BY_THEMSELVES = re.compile(
    r"No space left on device: /a/b|No such file: /a|ValueError: x| Tried to allocate 2\.00 GiB\."
)
"""What a library or the system says, in its own words."""


def recognised(words: str, forms: dict[str, re.Pattern[str]]) -> tuple[set[str], list[str]]:
    """Which forms the sentences have, and those that have none; as `said` in texts.mjs finds them."""
    sentences, found, others = re.split(r"(?<=[.?])(?<!e\.g\.)(?=[ \n])", words), set(), []
    while words and sentences:
        tried = range(1, len(sentences) + 1)
        fits = ((n, key) for n in tried for key in forms if forms[key].fullmatch("".join(sentences[:n]).strip()))
        count, key = next(fits, (1, ""))
        found.add(key)
        others += [] if key else sentences[:1]
        del sentences[:count]
    return found - {""}, others


def test_what_a_run_s_card_says_is_said_in_every_language():
    said = [entry for entry in texts("en")["said"].items() if not entry[0].startswith(OF_A_VALUE)]
    said.sort(key=lambda entry: -len(entry[1]))
    known = {key: re.split(r"\{\w+\}", form) for key, form in said}
    patterns = {key: re.compile(".*?".join(map(re.escape, form)), re.DOTALL) for key, form in known.items()}
    by_form = {tuple(form): key for key, form in known.items()}
    told = {tuple(form): path for path, sentence in sayings() if (form := form_of(sentence))}
    assert {form: path for form, path in told.items() if form not in by_form} == {}
    used = {by_form[form] for form in told}
    for failure in failures():
        for words in (failure.message, failure.hint):
            keys, others = recognised(part("nodes.words").of_node(words), patterns)
            used |= keys
            assert [sentence for sentence in others if not BY_THEMSELVES.fullmatch(sentence)] == []
    assert {key for key in known.keys() - used if not key.startswith(OF_AN_ERROR)} == set()


OF_AN_ERROR, OF_A_VALUE = "error_", "phrase_"
LEFT_OUT = {
    # helps, which stand where messages do
    "Model family of the LoRA.", "Default: recognised from its tensor names.", "Empty: all.",
    "Regular expression: merge only modules whose name it matches, such as cross_attn.",
    "Regular expression: leave out modules whose name it matches, even if they are included.",
    "How long a LoRA is trained, its rank, which noise levels it sees, how often it is saved.",
    "How the weights are updated: optimizer, learning rate, and how it changes over the training.",
    "Videos made while training, to watch the LoRA learn.",
    "Options that save GPU memory in a training, mostly at the cost of time"
    ": fp8, block streaming, checkpointing, attention.",
    "Empty: the default; a blank: none.", "{unset}: the default.",
    "Made by python -m env_bootstrap, which may delete this folder.",  # in a file
    # lines of the log, and what is drawn in a terminal
    "Not an event, because not JSON: {value}", "Not an event of protocol {protocol}: {value}",
    "An event with missing fields: {value}", "Noise levels drawn by {mode}",
    "Timesteps drawn by {mode} (100,000 draws), then the loss weight of each range:",
    # beginnings of sentences, and what stands in one
    "Weights that are changed while they are loaded take {size} GiB in a scratch file in {folder}",
    "Weights that are changed while they are loaded take {size} GiB in scratch files of {processes} processes in "
    "{folder}", 'The prompt "{prompt}"',
    "No model family {family}; there are: {names}",  # a mistake of ours
    "Add resume owner/name/path-of-the-state.",  # no node asks for uploads
    # of a form with two sentences
    "Nothing to do: this training is finished, with {finished_steps} steps: {final}.",
    "For more, give a higher max_train_steps; fresh trains it from scratch.",
    "{size}, which has {free} GiB free.",  # the end of a sentence that `failures` makes
}  # fmt: skip
"""Sentences that nobody meets in ComfyUI, beside those that `sentences` passes by."""


def test_what_is_wrong_is_said_in_every_language():
    """Errors and their hints, warnings: each sentence in the code has its form, and each form its sentence."""
    forms = {tuple(re.split(r"\{\w+\}", form)): key for key, form in texts("en")["said"].items()}
    told = sentences()
    missing = [f"{place}: {words}" for form, (words, place) in told.items() if form not in forms]
    assert [one for one in missing if one.split(": ", 1)[1] not in LEFT_OUT] == [], (
        "Nobody who reads Japanese understands these yet. Give each a key that begins with error_ under said in "
        "locales/en/main.json, as it stands here, and the same key with the translation in locales/ja/main.json; "
        "or add it to LEFT_OUT, if nobody can meet it in ComfyUI. What was reworded keeps its key."
    )
    assert LEFT_OUT == {one.split(": ", 1)[1] for one in missing}
    stale = {key: form for form, key in forms.items() if key.startswith(OF_AN_ERROR) and form not in told}
    assert stale == {}, "No message has these forms any more: reword them as the message was, or take them out."


def test_reasons_that_stand_in_a_sentence_are_said_in_every_language():
    """ "The first: the caption of a.mp4 has changed": what is put into a sentence has a form of its own."""
    forms = {tuple(re.split(r"\{\w+\}", form)): key for key, form in texts("en")["said"].items()}
    told = phrases()
    missing = [f"{place}: {words}" for form, (words, place) in told.items() if form not in forms]
    assert missing == [], "Give each a key that begins with phrase_ under said in locales/*/main.json."
    stale = {key: form for form, key in forms.items() if key.startswith(OF_A_VALUE) and form not in told}
    assert stale == {}, "Nothing says these any more."


def test_kinds_of_files_are_named_in_every_language():
    """A file looks like a LoRA and not a Wan DiT: what files are called there is under "word"."""
    kinds = {
        call.args[1].value
        for _, tree in scripts_of("engine/families", "engine/parts")
        for call in calls(tree, {"Kind"})
        if len(call.args) == 4 and isinstance(call.args[1], ast.Constant)
    }
    assert "a LoRA" in kinds
    others = {"video", "image", "latent", "text", "height", "width"}
    assert {re.sub("[^a-z0-9]+", "_", kind.lower()) for kind in kinds | others} == texts("en")["word"].keys()
