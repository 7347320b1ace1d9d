"""The nodes from their inputs to a job, a result, and the result found again. The engine here only pretends."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from .conftest import PATIENCE_S, Engine, folder_dataset, part, run_node, until, wan_models

jobs = part("nodes.jobs")


def job_of(run: Any) -> dict[str, Any]:
    return part("engine.contract.toml").load(run.folder / "job.toml")


def train(**more: Any) -> tuple[Any, ...]:
    inputs = {"dataset": folder_dataset(), "models": wan_models(), "output_name": "cat", **more}
    return run_node("Wan21LoRATrainer", **inputs)


def generate(**more: Any) -> tuple[Any, ...]:
    inputs = {"models": wan_models(), "prompt": "a cat", "seed": 3, **more}
    return run_node("Wan21Generator", **inputs)


def test_from_caches_over_a_lora_to_a_video(models: Path, obliging: Engine) -> None:
    dataset, paths = folder_dataset(), wan_models()
    dataset, latents = run_node("VAELatentCache", dataset=dataset, models=paths)
    dataset, texts = run_node("TextEncoderCache", dataset=dataset, models=paths)
    name, loras, file, trained, further = train(dataset=dataset)
    assert further.loras == ()
    video, path, generated = generate(loras=loras)
    assert obliging.starts == ["cache-latents wan", "cache-text wan", "train wan", "generate wan"]
    assert name == "musubi/cat.safetensors"
    assert Path(file) == models / "models/loras/musubi/cat.safetensors"
    assert video.path == path == str(models / "output/musubi/wan.mp4")
    assert job_of(generated)["lora_weight"] == [file]
    assert {run.state for run in (latents, texts, trained, generated)} == {"done"}


def test_a_dataset_node_says_of_all_its_clips_that_they_preserve_the_prior(models: Path) -> None:
    table = '[[datasets]]\nvideo_directory = "datasets/cats"\n'
    folder = {"source": "folder", "folder": "datasets/cats"}
    text = {"source": "text", "text": f"{table}{table}preserve_prior = true\n"}

    def said(source: dict[str, str], **more: Any) -> list[bool]:
        dataset = run_node("DatasetConfig", source=source, **more)[0]
        written = part("engine.contract.toml").load(Path(dataset.path))["datasets"]
        return [found.get("preserve_prior", False) for found in written]

    assert said(folder) == [False]
    assert said(folder, preserve_prior=True) == [True]
    assert said(text) == [False, True], "a text's own words hold where the node says nothing"
    assert said(text, preserve_prior=True) == [True, True]
    subject = run_node("DatasetConfig", source=folder)[0]
    assert said(folder, preserve_prior=True, previous=subject) == [False, True], "those before it stay as they are"


def test_an_unchanged_graph_starts_no_engine_also_in_a_new_server(models: Path, obliging: Engine) -> None:
    for _ in range(2):
        dataset = folder_dataset()
        for node in ("VAELatentCache", "TextEncoderCache"):
            dataset, cached = run_node(node, dataset=dataset, models=wan_models())
        trained = train(dataset=dataset)[3]
        *_, generated = generate()
        jobs.runs.__init__()  # a server that has just been started
    assert len(obliging.starts) == 4
    assert cached.reused and trained.reused and generated.reused
    assert generated.node == "7"


@pytest.mark.parametrize("what", ["clip", "model", "lora", "cache", "option", "fresh"])
def test_what_a_result_depends_on_makes_it_anew(models: Path, obliging: Engine, what: str) -> None:
    dataset, cached = run_node("VAELatentCache", dataset=folder_dataset(), models=wan_models())
    train(dataset=dataset)
    before = len(obliging.starts)
    changed = {
        "clip": models / "datasets/cats/cat.txt",
        "model": models / "models/vae/vae.safetensors",
        "lora": models / "output/musubi/train/cat/cat.safetensors",
        "cache": next((models / "output/musubi/cache").glob("*/*.safetensors")),
    }
    if what in changed:
        changed[what].write_text("something else")
    more = {"fresh": True} if what == "fresh" else {}
    run_node("VAELatentCache", dataset=folder_dataset(), models=wan_models(task="t2v-14B"))
    train(training=run_node("LoRATrainingConfig", network_dim=8)[0] if what == "option" else None, **more)
    anew = {"clip": 2, "model": 2, "lora": 1, "cache": 1, "option": 1, "fresh": 1}
    assert len(obliging.starts) - before == anew[what]


def test_a_settings_node_hands_on_what_was_changed_and_nothing_else(models: Path) -> None:
    (optimizer,) = run_node("OptimizerConfig", learning_rate=1e-4, optimizer_type="AdamW8bit", weight_decay=0.1)
    assert optimizer.options == {
        "learning_rate": 1e-4, "optimizer_type": "AdamW8bit", "optimizer_args": ["weight_decay=0.1"],
    }  # fmt: skip
    assert run_node("MemoryOptimizer", attention="xformers", blocks_to_swap=0)[0].options == {
        "xformers": True, "blocks_to_swap": 0,
    }  # fmt: skip
    assert run_node("LoRATrainingConfig", network_module="networks.lokr", factor=8, dora_wd=True)[0].options == {
        "network_module": "networks.lokr", "network_args": ["dora_wd=True", "factor=8"],
    }  # fmt: skip
    assert run_node("LoRATrainingConfig")[0].options == {}


def test_settings_reach_the_job(models: Path, obliging: Engine) -> None:
    _, _, _, run, _ = train(
        training=run_node("LoRATrainingConfig", network_dim=8, seed=5)[0],
        optimizer=run_node("OptimizerConfig", learning_rate=1e-4)[0],
        memory=run_node("MemoryOptimizer", fp8_scaled=True)[0],
    )
    job = job_of(run)
    assert (job["network_dim"], job["seed"], job["learning_rate"], job["fp8_scaled"]) == (8, 5, 1e-4, True)
    assert Path(job["output_dir"]) == models / "output/musubi/train/cat"
    assert (run.folder / "workflow.json").is_file()


def test_saved_steps_appear_in_the_loras_folder_and_vanish_with_their_source(models: Path, tmp_path: Path) -> None:
    publisher = part("nodes.publish").Publisher(models / "models/loras/musubi", tmp_path)
    file = tmp_path / "cat-step00000002.safetensors"
    file.write_text("two")
    publisher.take("LoRA", str(file))
    publisher.take("loss curve", str(tmp_path / "loss.png"))
    shown = models / "models/loras/musubi/cat-step00000002.safetensors"
    assert shown.read_text() == "two"
    file.unlink()
    publisher.tidy()
    assert not shown.exists()


def test_a_better_best_takes_the_place_of_the_one_before(models: Path, tmp_path: Path) -> None:
    publisher = part("nodes.publish").Publisher(models / "models/loras/musubi", tmp_path)
    file, shown = tmp_path / "cat-best.safetensors", models / "models/loras/musubi/cat-best.safetensors"
    for words in ("two", "six"):
        (tmp_path / "written").write_text(words)
        os.replace(tmp_path / "written", file)
        publisher.take("LoRA", str(file))
        assert shown.read_text() == words


STEPS = [f"cat-step{step:08d}.safetensors" for step in (2, 4, 6)]


@pytest.fixture(params=["linked", "copied"])
def trained(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A training that was stopped: (its folder, the loras folder, what starts the next run's publisher)."""
    if request.param == "copied":
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("another disk")))
    folder, shown = tmp_path / "train/cat", tmp_path / "loras/musubi"
    folder.mkdir(parents=True)

    def start() -> Any:
        return part("nodes.publish").Publisher(shown, folder)

    first = start()
    for name in (*STEPS, "cat-000001.safetensors", "cat.safetensors"):
        (folder / name).write_text(name)
        first.take("LoRA", str(folder / name))
    return folder, shown, start


def test_what_a_training_deletes_goes_though_an_earlier_run_published_it(trained: Any) -> None:
    folder, shown, start = trained
    later = start()
    for name in (STEPS[0], "cat-000001.safetensors", "cat.safetensors"):
        (folder / name).unlink()
    (folder / "cat-step00000008.safetensors").write_text("eight")
    later.take("LoRA", str(folder / "cat-step00000008.safetensors"))
    left = {file.name for file in shown.iterdir()}
    assert left == {*STEPS[1:], "cat-step00000008.safetensors", "cat.safetensors"}, "a training deletes no final LoRA"
    again = start()
    (folder / STEPS[1]).unlink()
    again.tidy()
    assert not (shown / STEPS[1]).exists() and (shown / STEPS[2]).exists()


def test_what_a_person_changed_renamed_or_deleted_stays_as_it_is(trained: Any) -> None:
    folder, shown, start = trained
    (shown / STEPS[0]).write_text("in place")  # of a link, the source too
    (shown / STEPS[1]).rename(shown / "favourite.safetensors")
    other = shown / "other"
    other.write_text("another file of that name")
    os.replace(other, shown / "cat-000001.safetensors")
    (folder / STEPS[2]).unlink()  # to save room, before it goes on
    later = start()
    for name in (STEPS[0], STEPS[1], "cat-000001.safetensors"):
        (folder / name).unlink()
    later.tidy()
    left = {"favourite.safetensors", STEPS[0], STEPS[2], "cat-000001.safetensors", "cat.safetensors"}
    assert {file.name for file in shown.iterdir()} == left


def test_a_training_whose_folder_is_gone_for_a_while_loses_nothing(trained: Any) -> None:
    """A disk that was taken off, or a folder that somebody renamed, while it runs."""
    folder, shown, start = trained
    later = start()
    folder.rename(folder.with_name("elsewhere"))
    later.tidy()
    assert not folder.exists() and {file.name for file in shown.iterdir()} >= set(STEPS)
    folder.with_name("elsewhere").rename(folder)
    (folder / STEPS[0]).unlink()
    later.tidy()
    assert not (shown / STEPS[0]).exists(), "it is told when the folder is back"


def test_a_training_that_keeps_all_takes_nothing_away(trained: Any) -> None:
    folder, shown, _ = trained
    (folder / STEPS[0]).unlink()  # by hand
    part("nodes.publish").Publisher(shown, folder, deletes=False).tidy()
    assert (shown / STEPS[0]).exists()


def test_what_cannot_be_deleted_ends_nothing_and_is_tried_again(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, shown, start = trained
    later = start()
    (folder / STEPS[0]).unlink()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(PermissionError("in use")))
        later.tidy()
    assert (shown / STEPS[0]).exists()
    later.tidy()
    assert not (shown / STEPS[0]).exists()


@pytest.mark.parametrize("record", ["", "[1]", '{"../../cat-step00000002.safetensors": [1, 2, 3]}'])
def test_a_damaged_record_of_what_was_published_deletes_nothing(trained: Any, record: str) -> None:
    folder, shown, start = trained
    (folder / "published.json").write_text(record)
    later = start()
    (folder / STEPS[0]).unlink()
    later.tidy()
    assert (shown / STEPS[0]).exists()


def test_a_failure_is_the_engines_message_in_the_words_of_the_node(
    models: Path, obliging: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OBLIGING_FAILS", "weights")
    with pytest.raises(RuntimeError) as caught:
        generate()
    assert str(caught.value) == "dit is another model.\n\nChange dit."
    (run,) = jobs.runs.summaries(part("nodes.paths").jobs())
    assert run["state"] == "failed"
    assert run["error"] == {"kind": "weights", "message": "dit is another model.", "hint": "Change dit."}


def test_a_wrong_option_is_told_before_anything_starts(models: Path, obliging: Engine) -> None:
    with pytest.raises(ValueError, match="video_length: 80 is not 4n"):
        generate(video_length=80)
    with pytest.raises(ValueError, match="dit is required"):
        train(models=wan_models(dit="none"))
    assert obliging.starts == []


def test_cancel_ends_the_node_with_comfyuis_own_exception(
    models: Path, obliging: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management

    monkeypatch.setenv("OBLIGING_WAITS", "1")

    def cancel() -> None:
        until(lambda: obliging.starts)
        management.interrupt_current_processing()

    threading.Thread(target=cancel).start()
    began = time.monotonic()
    with pytest.raises(management.InterruptProcessingException):
        train()
    assert time.monotonic() - began < PATIENCE_S
    assert (models / "models/loras/musubi/cat.safetensors").is_file()  # it saved while it was ended
    assert not management.processing_interrupted()  # used up: the next prompt is not cancelled too
    assert not part("nodes.run").gpu.locked()
    (run,) = jobs.runs.summaries(part("nodes.paths").jobs())
    assert (run["state"], run["message"]) == ("stopped", "obliged"), "what it still saved is said in its own words"


def test_a_cancelled_training_leaves_no_lora_that_it_has_deleted(
    models: Path, obliging: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management

    step, published = "cat-step00000002.safetensors", models / "models/loras/musubi"

    def run_job(call: Any, job: Any, *, on_artifact: Any) -> None:
        file = part("nodes.paths").training("cat") / step
        file.parent.mkdir(parents=True)
        file.write_text("two")
        on_artifact("LoRA", str(file))
        assert (published / step).is_file()
        file.unlink()  # save_last_n_steps
        raise management.InterruptProcessingException

    monkeypatch.setattr(jobs, "run_job", run_job)
    with pytest.raises(management.InterruptProcessingException):
        train(training=run_node("LoRATrainingConfig", save_every_n_steps=2, save_last_n_steps=1)[0])
    assert not (published / step).exists()


def test_a_full_loras_folder_ends_no_training(models: Path, obliging: Engine) -> None:
    """The LoRA is in the training's own folder; there is no need to train again once there is room."""
    obstacle = models / "models/loras/musubi"
    obstacle.write_text("no folder, so nothing can be put there")
    with pytest.raises(RuntimeError, match="could not be written"):
        train()
    (run,) = jobs.runs.summaries(part("nodes.paths").jobs())
    assert run["state"] == "done"
    obstacle.unlink()
    train()
    assert obliging.starts == ["train wan"] and (obstacle / "cat.safetensors").is_file()


def test_a_run_that_cannot_even_be_written_down_has_failed(
    models: Path, obliging: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for ever in the list, where only a run that is over can be removed."""
    error = part("engine.contract.errors").DiskError("The disk is full.")
    monkeypatch.setattr(jobs, "_keep_workflow", Mock(side_effect=error))
    with pytest.raises(RuntimeError, match="disk is full"):
        generate()
    (run,) = jobs.runs.summaries(part("nodes.paths").jobs())
    assert (run["state"], run["error"]["message"]) == ("failed", "The disk is full.")


def test_half_an_emoji_anywhere_in_the_workflow_is_no_obstacle_but_in_a_text_of_ours(
    models: Path, obliging: Engine
) -> None:
    """A page that cuts a title in the middle of an emoji leaves half a surrogate pair, which no UTF-8 can hold."""
    catalogue, workflow = part("nodes.catalogue"), {"id": "w", "nodes": [{"title": "a cat \ud83d"}]}
    hidden = SimpleNamespace(unique_id="7", prompt={}, extra_pnginfo={"workflow": workflow})
    node = next(node for node in catalogue.nodes() if node.name == "Wan21Generator")
    run = catalogue.execute(node, hidden, {"models": wan_models(), "prompt": "a cat"}).values[-1]
    assert json.loads((run.folder / "workflow.json").read_text("utf-8")) == workflow
    with pytest.raises(ValueError, match="prompts? contains half a character"):
        generate(prompt="a cat \ud83d")
    with pytest.raises(ValueError, match="prompts contains half a character"):
        run_node("BatchProcessor", models=wan_models(), prompts="a cat \ud83d")


def test_a_file_in_the_place_of_the_jobs_folder_is_told(models: Path, obliging: Engine) -> None:
    (models / "output/musubi").write_text("no folder")
    with pytest.raises(RuntimeError, match=r"musubi.jobs.* could not be written"):
        generate()


def test_an_engine_that_cannot_be_started(models: Path, obliging: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    run, environment = part("nodes.run"), part("nodes.environment")

    def program(arguments: list[str], *, folder: Path, log: Path) -> Any:
        return run.Program(argv=(str(models / "missing"),), environment={}, folder=folder, log=log)

    monkeypatch.setattr(environment, "engine_program", program)
    with pytest.raises(RuntimeError, match="could not be started"):
        generate()
    assert not run.gpu.locked()


def test_stop_and_save_gives_the_lora_but_is_no_finished_result(
    models: Path, obliging: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OBLIGING_WAITS", "1")

    def stop() -> None:
        answers = part("nodes.answers")
        assert until(lambda: jobs.runs._controls)
        (run_id,) = jobs.runs._controls
        asked = answers.Asked(run=run_id, body={"command": "stop"})
        assert answers.answered(answers.command, asked).data["state"] == "stopping"

    threading.Thread(target=stop).start()
    name, _, _, run, _ = train()
    assert (name, run.state) == ("musubi/cat.safetensors", "stopped")
    monkeypatch.delenv("OBLIGING_WAITS")
    train()
    assert len(obliging.starts) == 2


def test_a_stopped_training_gives_its_own_lora_not_an_average_nor_a_further_experts(tmp_path: Path) -> None:
    """Those are saved behind it, at each step; the best so far is saved before it."""
    endings = (
        "-best",
        "-step00000002",
        "_high_noise-step00000002",
        "_ema-step00000002",
        "_high_noise_ema-step00000002",
    )
    files = [tmp_path / f"cat{ending}.safetensors" for ending in endings]
    for file in files:
        file.touch()
    this = SimpleNamespace(artifacts=[{"kind": "LoRA", "path": str(file)} for file in files])
    assert part("nodes.tasks")._last_lora(this, tmp_path / "cat.safetensors") == files[1]


def test_comfyuis_models_leave_the_gpu_first(models: Path, obliging: Engine) -> None:
    import comfy.model_management as management

    generate()
    assert management.unloaded == 1
    generate()
    assert management.unloaded == 1  # nothing was started


def test_the_page_is_told_of_a_run(models: Path, obliging: Engine) -> None:
    import server

    run = train()[3]
    sent = server.PromptServer.instance.sent
    states = [data["state"] for message, data in sent if message == "musubi.run"]
    assert states[0] in ("waiting", "running") and states[-1] == "done"
    artifacts = [data for message, data in sent if message == "musubi.event" and data["event"]["event"] == "artifact"]
    assert artifacts[0]["run"] == run.id and artifacts[0]["node"] == "7"
    assert artifacts[0]["event"]["url"].startswith(f"/musubi/runs/{run.id}/file?name=cat-step")


def test_a_batch_gives_a_list_of_videos(models: Path, obliging: Engine) -> None:
    videos, paths, _ = run_node("BatchProcessor", models=wan_models(), prompts="a cat\n\na dog --d 5\n")
    assert [video.path for video in videos] == paths.splitlines()
    assert len(videos) == 2


def test_missing_environment_says_what_to_press(models: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        generate()
    assert "environment is not set up yet" in str(caught.value)
    assert "Set up" in str(caught.value) and "env_bootstrap create" in str(caught.value)


def test_lora_tools(models: Path, obliging: Engine) -> None:
    for number in (2, 4):
        (models / f"models/loras/cat-step{number:08}.safetensors").write_text("x")
    name, path, _ = run_node("LoRAPostHocEMA", lora="cat-step00000004.safetensors")
    assert (name, Path(path).name) == ("musubi/cat-ema.safetensors", "cat-ema.safetensors")
    name, *_ = run_node("LoRAFormatConverter", input="style.safetensors", target="other")
    assert name == "musubi/style-other.safetensors"
    (loras,) = run_node("Wan21LoRAStack", lora_1="style.safetensors", strength_1=0.5)
    name, path, run = run_node("LoRAMerger", loras=loras, dit="dit.safetensors")
    assert Path(path) == models / "models/diffusion_models/musubi/dit-merged.safetensors"
    assert job_of(run)["lora_multiplier"] == [0.5]
