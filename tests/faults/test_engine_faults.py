"""A running training that is killed, stopped, told to save, or left alone: what it leaves, and that it goes on."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from engine.contract.events import Artifact, Done, Failed, Log, Preview, Stage, Warning_
from engine.families.wan import tiny
from engine.training.states import complaint, find_latest_state, read_position
from tests.faults.engine_child import LIMIT_S, EngineChild, train_words
from tests.faults.kit import LEFTOVERS, enlarge, environment, needs_kill, small_disk

pytestmark = [pytest.mark.slow, needs_kill]

# The front door, but with libraries that print: from Python, from below Python, from a process of their own.
NOISY = """
import os, subprocess, sys
import torch

real = torch.optim.AdamW.step
def step(self, *arguments, **options):
    print("a library prints")
    os.write(1, b"so does its C code\\n")
    subprocess.run([sys.executable, "-c", "print('and its child')"], check=True)
    sys.stdout.flush()
    return real(self, *arguments, **options)
torch.optim.AdamW.step = step

from engine.__main__ import main
sys.exit(main(sys.argv[1:]))
"""

AS_MODULE = "import runpy\nrunpy.run_module('engine', run_name='__main__', alter_sys=True)"


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def check_whole(out: Path) -> None:
    """Every LoRA and every state under a final name is complete."""
    loras = list(out.glob("*.safetensors"))
    assert loras
    for path in loras:
        assert load_file(path)
    for folder in out.glob("*-state"):
        assert complaint(folder) == "", folder


def test_killed_in_the_middle_of_training_and_started_again(cached, tmp_path: Path) -> None:
    before, out = digests(cached.folder / "cache"), tmp_path / "out"
    often = ("--save_every_n_steps", 1, "--save_state", "--save_last_n_steps", 2)
    with EngineChild(*train_words(cached, out, *often), folder=tmp_path) as child:
        child.until(lambda event: isinstance(event, Artifact) and event.kind == "LoRA" and "00000004" in event.path)
        child.signal(signal.SIGKILL)  # while the state that belongs to that LoRA is written, or a moment later
        child.process.wait()
    check_whole(out)
    state = find_latest_state(out, "demo-lora")
    assert state is not None and digests(cached.folder / "cache") == before
    step = read_position(state).step
    more = (*often, "--max_train_steps", step + 2, "--resume", state)
    with EngineChild(*train_words(cached, out, *more), folder=tmp_path) as child:
        assert child.end() == 0, child.last
        assert child.steps == [step + 1, step + 2]
    check_whole(out)
    assert not list(out.glob(LEFTOVERS)) and digests(cached.folder / "cache") == before
    assert (out / "demo-lora.safetensors").exists() and (out / "demo-lora_loss.png").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_saves_and_resuming_goes_on_at_the_next_step(cached, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    with EngineChild(*train_words(cached, out), folder=tmp_path) as child:
        child.step(3)
        child.signal(number)
        assert child.end() == 0
        last = child.steps[-1]
        assert child.last == Done(message=child.last.message, stopped=True) and f"after {last} steps" in str(child.last)
        assert any(isinstance(event, Log) and event.message.startswith("Stopping") for event in child.heard)
        assert child.artifacts("LoRA") == [out / f"demo-lora-step{last:08d}.safetensors"]
        assert child.artifacts("state") == [out / f"demo-lora-step{last:08d}-state"]
    check_whole(out)
    more = ("--resume", out / f"demo-lora-step{last:08d}-state", "--max_train_steps", last + 1)
    with EngineChild(*train_words(cached, out, *more), folder=tmp_path) as child:
        assert child.end() == 0 and child.steps == [last + 1] and child.last == Done(message=child.last.message)


def test_commands_on_stdin(cached, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with EngineChild(*train_words(cached, out), folder=tmp_path) as child:
        child.step(1)
        child.tell("save")
        saved = child.until(lambda event: isinstance(event, Artifact) and event.kind == "state")
        child.tell('{"command": "dance"}')
        warning = child.until(lambda event: isinstance(event, Warning_))
        assert "dance" in warning.message and "stop, save, sample" in warning.message
        child.tell('{"command": "stop"}')
        assert child.end() == 0 and child.last == Done(message=child.last.message, stopped=True)
        assert Path(saved.path) in child.artifacts("state") and len(child.artifacts("LoRA")) == 2
    check_whole(out)


def test_samples_on_demand_and_a_signal_while_they_are_made(cached, tmp_path: Path) -> None:
    out, models = tmp_path / "out", tiny.tiny_model_options(cached.folder / "models")["generate"]
    (tmp_path / "prompts.txt").write_text("a cat --w 64 --h 48 --s 20 --l 1 --d 1\n")
    encoders = [word for name in ("vae", "t5") for word in (f"--{name}", models[name])]
    words = train_words(cached, out, *encoders, "--sample_prompts", tmp_path / "prompts.txt")
    with EngineChild(*words, folder=tmp_path) as child:
        child.step(1)
        child.tell("sample")
        child.until(lambda event: isinstance(event, Preview))
        (sample,) = child.artifacts("image")
        assert sample.parent == out / "sample" and sample.name.endswith("_1_000.png")
        child.step(child.steps[-1] + 2)
        (tmp_path / "prompts.txt").unlink()
        child.tell("sample")
        child.until(lambda event: isinstance(event, Stage) and event.name == "making samples")
        child.signal(signal.SIGINT)
        assert child.end() == 0 and child.last == Done(message=child.last.message, stopped=True)
    check_whole(out)


def test_the_end_of_stdin_is_a_stop(cached, tmp_path: Path) -> None:
    """Whoever started the engine is gone: it leaves no orphan, and loses nothing."""
    out = tmp_path / "out"
    with EngineChild(*train_words(cached, out), folder=tmp_path) as child:
        child.step(2)
        child.process.stdin.close()
        assert child.end() == 0 and child.last == Done(message=child.last.message, stopped=True)
        assert len(child.artifacts("state")) == 1
    check_whole(out)


def test_a_node_that_was_killed_takes_both_pipes_with_it(cached, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with EngineChild(*train_words(cached, out), folder=tmp_path) as child:
        child.step(2)
        child.process.stdout.close()
        child.process.stdin.close()
        assert child.process.wait(60) == 0
        assert "Traceback" not in child.errors.read_text()
    check_whole(out)
    assert find_latest_state(out, "demo-lora") is not None


def test_nothing_but_events_on_stdout_even_when_a_library_prints(cached, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = train_words(cached, out, "--max_train_steps", 2, "--job_dir", tmp_path / "job")
    with EngineChild(*words, folder=tmp_path, code=NOISY) as child:
        assert child.end() == 0, child.errors.read_text()  # every line was an event, hello first and done last
        assert child.steps == [1, 2]
    said = child.errors.read_text()
    for words in ("a library prints", "so does its C code", "and its child"):
        assert said.count(words) >= 2
    record = (tmp_path / "job" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert '"event": "hello"' in record[0] and '"event": "done"' in record[-1]


@pytest.mark.parametrize("events", [False, True])
@pytest.mark.parametrize("gone", ["closed", "reader"])
def test_a_stderr_that_is_closed_or_that_nobody_reads_ends_no_training(
    cached, tmp_path: Path, gone: str, events: bool
) -> None:
    """`2>&-`, or a program that started the engine and reads no more; libraries print there meanwhile."""
    out, record = tmp_path / "out", tmp_path / "job"
    words = train_words(cached, out, "--max_train_steps", 3, "--job_dir", record, *(["--events"] if events else []))
    as_module = NOISY.replace("from engine.__main__ import main\nsys.exit(main(sys.argv[1:]))", AS_MODULE)
    assert as_module != NOISY
    ours, theirs = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", as_module, *map(str, words)],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.PIPE,  # its end would be a stop
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        preexec_fn=(lambda: os.close(2)) if gone == "closed" else None,
    ) as child:
        os.close(theirs)
        os.close(ours)
        assert child.wait(LIMIT_S) == 0, (record / "log.txt").read_text()
    check_whole(out)
    log = (record / "log.txt").read_text()
    assert "done" in log.splitlines()[-1] and "Traceback" not in log, log


def test_a_job_that_cannot_begin_says_so_in_events(tmp_path: Path) -> None:
    with EngineChild("train", "wan", "--dti", "x", folder=tmp_path) as child:
        assert child.end() == 2
    assert child.last == Failed(kind="option", message="There is no option --dti.", hint="Did you mean --dit?")


def test_a_full_disk_ends_no_training_and_its_last_save_waits_for_room(cached, tmp_path: Path) -> None:
    with small_disk(tmp_path / "out", kib=2048) as out:
        words = train_words(cached, out, "--save_every_n_steps", 1, "--logging_dir", tmp_path / "logs")
        with EngineChild(*words, folder=tmp_path) as child:
            refused = child.until(lambda event: isinstance(event, Warning_) and "is not saved" in event.message)
            assert "disk is full" in refused.message and "Training goes on" in refused.message
            child.step(child.steps[-1] + 2)
            check_whole(out)
            assert len(list(out.glob("*.safetensors"))) == len(child.artifacts("LoRA"))
            child.tell("stop")
            child.until(lambda event: isinstance(event, Stage) and event.name == "Waiting for the disk")
            enlarge(out, kib=65536)
            assert child.end() == 0
            assert isinstance(child.last, Done) and child.last.stopped
        check_whole(out)
        latest = find_latest_state(out, "demo-lora")
        assert latest is not None and read_position(latest).step == child.steps[-1]
        assert not list(out.glob(LEFTOVERS))


def test_a_record_that_the_disk_does_not_take_ends_no_training(cached, tmp_path: Path) -> None:
    with small_disk(tmp_path / "job", kib=16) as record:
        words = train_words(cached, tmp_path / "out", "--max_train_steps", 60, "--job_dir", record)
        with EngineChild(*words, folder=tmp_path) as child:
            assert child.end() == 0, child.last
        warnings = [event for event in child.heard if isinstance(event, Warning_)]
        assert len(warnings) == 1 and "ends here" in warnings[0].message, warnings
    assert (tmp_path / "out" / "demo-lora.safetensors").exists()


@pytest.mark.parametrize("flag", ["--job_dir", "--output_dir"])
def test_a_file_where_a_folder_is_needed_is_one_clear_line(cached, tmp_path: Path, flag: str) -> None:
    (tmp_path / "file").touch()
    words = train_words(cached, tmp_path / "out", flag, tmp_path / "file" / "job")
    with EngineChild(*words, folder=tmp_path) as child:
        assert child.end() == 2
    assert isinstance(child.last, Failed) and child.last.kind == "option"
    assert flag in child.last.message and str(tmp_path / "file") in child.last.message and flag in child.last.hint
    assert "Traceback" not in child.errors.read_text()


def test_a_folder_for_the_record_that_cannot_be_made_is_one_clear_line(cached, tmp_path: Path) -> None:
    closed = "/proc/job" if os.path.isdir("/proc") else None  # takes no folders, not even from root
    if closed is None:
        pytest.skip("there is no folder here that refuses root too")
    with EngineChild(*train_words(cached, tmp_path / "out", "--job_dir", closed), folder=tmp_path) as child:
        assert child.end() == 4
    assert isinstance(child.last, Failed) and child.last.kind == "disk" and closed in child.last.message
    assert "Traceback" not in child.errors.read_text()
