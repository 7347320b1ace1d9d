"""What is known of a run, what the page is told, and what is found again after a restart."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest

from .conftest import PACK, PATIENCE_S, part, until

runs, records, answers, events = (
    part("nodes.runs"), part("nodes.records"), part("nodes.answers"), part("engine.contract.events")
)  # fmt: skip


@pytest.fixture
def kept(comfy: Path) -> Any:
    return part("nodes.jobs").runs


@pytest.fixture
def folder(comfy: Path) -> Path:
    return part("nodes.paths").jobs()


def begin(kept: Any, folder: Path, **more: str) -> Any:
    told = {"title": "Trainer", "verb": "train", "family": "wan", "node": "12:3", "prompt": "p", **more}
    return kept.begin(folder, **told)


def asked(function: str, **values: Any) -> Any:
    return answers.answered(getattr(answers, function), answers.Asked(**values))


def with_results(run: Any, output: Path) -> None:
    """A run that has said everything there is to say, on record as the engine keeps it."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "cat dog.safetensors").write_text("x")
    (output / "sample.mp4").write_text("x")
    said = [
        events.Hello(version="1", job=""),
        events.Plan(
            stages=[{"name": "training", "needed_mib": 900.5, "device_mib": {"DiT weights": 800.0}, "main_mib": {}}],
            asked_mib=2000.0,
            needed_mib=900.5,
            limit_mib=None,
            ram_mib=50.0,
            fits=True,
            options={"blocks_to_swap": 3},
        ),
        events.Stage(name="Training"),
        events.Metric(step=1, values={"loss/current": 0.5}),
        events.Resource(values={"vram_mib": 100.0}),
        events.Metric(step=2, values={"loss/current": math.nan}),
        events.Resource(values={"vram_mib": 300.0}),
        events.Preview(path=str(output / "sample.mp4"), label="a cat"),
        events.Artifact(kind="LoRA", path=str(output / "cat dog.safetensors")),
    ]
    with open(run.folder / "events.jsonl", "w") as record:
        for event in said:
            record.write(events.write(event) + "\n")
            run.take(event)
        record.write('{"event": "metric", "st')  # killed in the middle of a line


def test_the_id_is_the_folder_and_two_at_once_have_their_own(kept: Any, folder: Path) -> None:
    first, second = begin(kept, folder), begin(kept, folder)
    assert first.id != second.id
    assert first.id.endswith("-train-wan") and (folder / first.id / "run.json").is_file()


def test_the_whole_of_a_run_is_valid_json_with_every_number(kept: Any, folder: Path) -> None:
    run = begin(kept, folder)
    with_results(run, folder.parent / "train")
    whole = json.loads(json.dumps(run.whole(), allow_nan=False))
    assert whole["metrics"]["loss/current"] == [[1, 0.5], [2, "NaN"]]
    assert [value for _, value in whole["resources"]["vram_mib"]] == [100.0, 300.0]
    assert whole["previews"][0]["label"] == "a cat" and whole["previews"][0]["step"] == 2
    assert whole["artifacts"][0]["url"] == f"/musubi/runs/{run.id}/file?name=cat%20dog.safetensors"
    assert whole["node"] == "12:3" and whole["stage"] == "Training"


def test_a_run_is_there_again_after_a_restart(kept: Any, folder: Path) -> None:
    run = begin(kept, folder)
    with_results(run, folder.parent / "train")
    run.change("failed", error={"kind": "memory", "message": "full", "hint": "less"})
    before = run.whole()
    kept.__init__()
    again = kept.get(folder, run.id)
    after = again.whole()
    assert [run["id"] for run in kept.summaries(folder)] == [run.id]
    assert after["plan"]["options"] == {"blocks_to_swap": 3} and after["plan"]["limit_mib"] is None
    for name in ("metrics", "previews", "artifacts", "plan", "state", "error", "node", "started"):
        assert after[name] == before[name], name
    assert [value for _, value in after["resources"]["vram_mib"]] == [100.0, 300.0]
    times = [time_s for time_s, _ in after["resources"]["vram_mib"]]
    assert before["started"] <= times[0] < times[1] <= before["ended"]


def test_a_run_whose_server_died_has_failed(kept: Any, folder: Path) -> None:
    run = begin(kept, folder)
    run.change("running")
    run._let_go()  # as the system does it for the dead
    kept.__init__()
    (summary,) = kept.summaries(folder)
    assert summary["state"] == "failed"
    assert "ComfyUI ended" in summary["error"]["message"] and summary["ended"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"started": "x"}', '{"state": "done"}', "\xff"])
def test_a_broken_record_is_no_run(kept: Any, folder: Path, text: str) -> None:
    (folder / "broken").mkdir(parents=True)
    (folder / "broken" / "run.json").write_text(text)
    assert kept.summaries(folder) == []
    assert kept.get(folder, "broken") is None


def test_series_stay_short_and_keep_their_ends() -> None:
    series = runs.Series(most=100)
    for step in range(100_000):
        series.add(step, {"loss": step / 10})
    points = series.as_json()["loss"]
    assert len(points) <= 100
    assert points[0] == [0, 0.0] and points[-1] == [99_999, 9999.9]


def test_news_are_told_once_and_a_flood_is_cut(kept: Any, folder: Path) -> None:
    run = begin(kept, folder)
    for _ in range(10_000):
        run.take(events.Log(message="x" * 5000, level="info"))
    summary, told = run.news()
    assert summary["id"] == run.id
    assert len(told) <= runs.MOST_WAITING and len(told[0]["event"]["message"]) <= runs.LONGEST_MESSAGE
    assert run.news() == (None, [])


def test_states_do_not_change_after_the_end(kept: Any, folder: Path) -> None:
    run = begin(kept, folder)
    run.change("failed")
    run.change("done")
    assert run.state == "failed" and run.ended


def test_the_log_from_its_end_and_from_a_byte_on(kept: Any, folder: Path) -> None:
    run = begin(kept, folder)
    (run.folder / "log.txt").write_text("a" * 100_000 + "ü\n", encoding="utf-8")
    first = asked("log", run=run.id).data
    assert len(first["text"]) <= runs.LOG_BYTES and first["offset"] == 100_003
    with open(run.folder / "log.txt", "a") as stream:
        stream.write("more\n")
    assert asked("log", run=run.id, query={"after": str(first["offset"])}).data == {"text": "more\n", "offset": 100_008}
    assert asked("log", run=run.id, query={"after": "-5"}).status == 200


# ------------------------------------------------------------------------------------------------------------ answers


def test_the_list_newest_first(kept: Any, folder: Path) -> None:
    ids = []
    for _ in range(3):
        ids.append(begin(kept, folder).id)
        time.sleep(0.01)
    assert [run["id"] for run in asked("runs").data["runs"]] == ids[::-1]


@pytest.mark.parametrize("name", ["..", "../..", "x/y", "", ".removed", "nothing", "a\0b", "%2e%2e"])
def test_no_run_by_another_name(comfy: Path, name: str) -> None:
    answer = asked("run", run=name)
    assert answer.status == 404 and answer.data["error"]["message"]


def test_a_run_gives_its_own_files_and_no_others(kept: Any, folder: Path) -> None:
    run = begin(kept, folder)
    with_results(run, folder.parent / "train")
    assert asked("file", run=run.id, query={"name": "sample.mp4"}).file == folder.parent / "train" / "sample.mp4"
    for name in ("run.json", "../run.json", "/etc/passwd", "", "cat"):
        assert asked("file", run=run.id, query={"name": name}).status == 404


def test_a_forged_record_gives_no_file_from_outside(kept: Any, folder: Path) -> None:
    run = begin(kept, folder)
    run.take(events.Artifact(kind="LoRA", path="/etc/passwd"))
    answer = asked("file", run=run.id, query={"name": "passwd"})
    assert answer.file is None and answer.status == 400


def test_the_workflow_of_a_run(kept: Any, folder: Path) -> None:
    run = begin(kept, folder)
    assert asked("workflow", run=run.id).status == 404
    (run.folder / "workflow.json").write_text("{}")
    assert asked("workflow", run=run.id).file == run.folder / "workflow.json"


def test_commands_go_to_a_running_run_only(kept: Any, folder: Path) -> None:
    run = begin(kept, folder)

    class Child:
        heard: list[str] = []

        def send(self, word: str) -> None:
            self.heard.append(word)

        def cancel(self) -> None:
            self.heard.append("cancel")

    assert asked("command", run=run.id, body={"command": "save"}).status == 409
    kept.control(run, Child())
    for word in ("save", "sample", "stop", "cancel"):
        assert asked("command", run=run.id, body={"command": word}).status == 200
    assert Child.heard == ["save", "sample", "stop", "cancel"]
    assert run.state == "stopping"
    for wrong in ("rm", None, ["stop"], {"x": 1}):
        assert asked("command", run=run.id, body={"command": wrong}).status == 400


def test_a_finished_run_is_taken_off_the_list_and_its_results_stay(kept: Any, folder: Path) -> None:
    run = begin(kept, folder)
    with_results(run, folder.parent / "train")
    assert asked("remove", run=run.id).status == 409
    run.change("done")
    assert asked("remove", run=run.id).status == 200
    assert asked("runs").data["runs"] == []
    assert (folder / ".removed" / run.id / "run.json").is_file()
    assert (folder.parent / "train" / "cat dog.safetensors").is_file()


def test_settings_are_kept_on_the_server(comfy: Path) -> None:
    (comfy / "clips").mkdir()
    changed = asked("change_settings", body={"gpu": "1", "roots": [str(comfy / "clips")]})
    assert changed.status == 200
    assert asked("settings").data == {
        "home": "", "gpu": "1", "keep_alive": 0, "log_level": "info", "roots": [str(comfy / "clips")],
    }  # fmt: skip
    assert asked("change_settings", body={"gpu": "x"}).status == 400
    assert (comfy / "user/__musubi/settings.json").is_file()


def test_settings_of_a_newer_version_are_kept_and_leave_ours_in_force(comfy: Path) -> None:
    """Whoever goes back to an older pack keeps the engine's home and the folders."""
    file = comfy / "user/__musubi/settings.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"home": str(comfy / "home"), "of_tomorrow": [1]}))
    assert asked("settings").data["home"] == str(comfy / "home") and "of_tomorrow" not in asked("settings").data
    assert asked("change_settings", body={"gpu": "1"}).status == 200
    kept = json.loads(file.read_text())
    assert kept["of_tomorrow"] == [1] and kept["gpu"] == "1" and kept["home"] == str(comfy / "home")
    file.write_text("[]")
    assert asked("settings").data["home"] == ""


def test_the_page_shows_the_settings_that_there_are() -> None:
    """A setting that the server does not have would do nothing."""
    script = (PACK / "web" / "js" / "settings.mjs").read_text(encoding="utf-8")
    kept = {field.name for field in dataclasses.fields(part("nodes.preferences").Preferences)}
    assert set(re.findall(r"\bcustom\(\s*'(\w+)'", script)) == kept
    for language in ("en", "ja"):
        told = json.loads((PACK / "locales" / language / "settings.json").read_text(encoding="utf-8"))
        assert {name.partition("_")[2] for name in told} == kept | {"Setup", "Notify"}


def test_the_chosen_gpu_and_home_reach_the_engine(comfy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/comfy")
    monkeypatch.setenv("VIRTUAL_ENV", "/comfy/venv")
    asked("change_settings", body={"gpu": "1", "home": str(comfy / "elsewhere")})
    found = part("nodes.environment").surroundings()
    assert found["CUDA_VISIBLE_DEVICES"] == "1" and found["MUSUBI_HOME"] == str(comfy / "elsewhere")
    assert not {"PYTHONPATH", "VIRTUAL_ENV"} & set(found)


# ---------------------------------------------------------------------------------------------------- the environment


@pytest.fixture
def bootstrap(comfy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """env_bootstrap replaced by a program that does nothing."""
    environment = part("nodes.environment")
    (comfy / "pack").mkdir()
    child = Path(__file__).resolve().parents[1] / "children" / "fake_bootstrap.py"
    (comfy / "pack" / "env_bootstrap").symlink_to(child)
    monkeypatch.setattr(environment.homes, "PACK", comfy / "pack")
    monkeypatch.setattr(environment, "maker", environment.Maker())
    return comfy


def settled() -> dict[str, Any]:
    assert until(lambda: asked("engine").data["state"] != "making")
    return asked("engine").data


def test_the_environment_is_made_on_the_persons_word_with_progress(bootstrap: Path) -> None:
    import server

    found = asked("engine").data
    assert (found["state"], found["detail"], found["message"]) == ("missing", "absent", ""), "that is no problem yet"
    assert asked("engine_action", body={"action": "create"}).data["state"] == "making"
    settled()
    told = [data for message, data in server.PromptServer.instance.sent if message == "musubi.environment"]
    assert {"state": "making", "stage": "torch", "done": 40, "total": 100}.items() <= told[-2].items()
    assert told[-1]["state"] == "missing"  # nothing was made, and it does not say so


def test_a_failure_of_making_is_said_until_the_next_try(bootstrap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_BOOTSTRAP", "fails")
    asked("engine_action", body={"action": "create"})
    state = settled()
    assert (state["message"], state["hint"]) == ("No connection.", "Connect, and try again.")


def test_an_engine_older_than_the_pack_works_and_says_so(bootstrap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = part("nodes.environment")
    old = environment.status.Status(state="outdated", home="", python="python", reasons=["changed: packages"])
    monkeypatch.setattr(environment, "look", lambda: old)
    state = asked("engine").data
    assert (state["state"], state["detail"], state["message"]) == ("ready", "outdated", ""), "that is no problem"
    monkeypatch.setenv("FAKE_BOOTSTRAP", "fails")
    asked("engine_action", body={"action": "create"})
    assert settled()["message"] == "No connection.", "but that bringing it up to date failed is"


def test_making_can_be_stopped_and_is_not_begun_twice(bootstrap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_BOOTSTRAP", "waits")
    for _ in range(2):
        assert asked("engine_action", body={"action": "repair"}).data["state"] == "making"
    began = time.monotonic()
    asked("engine_action", body={"action": "cancel"})
    assert settled()["state"] == "missing"
    assert time.monotonic() - began < PATIENCE_S
    assert asked("engine_action", body={"action": "rm"}).status == 400


def test_a_preview_of_something_unfinished_takes_the_place_of_the_one_before(kept: Any, folder: Path) -> None:
    """Each has an address of its own, or a page would go on showing the first; after a restart the last one is left."""
    run, output = begin(kept, folder), folder.parent / "out"
    output.mkdir()
    (output / "latent_preview.webp").write_bytes(b"RIFF")
    for step in (2, 4):
        run.take(events.Preview(path=str(output / "sheet.png")))
        run.take(events.Preview(path=str(output / "latent_preview.webp"), label=f"step {step}", passing=True))
    shown = [entry for entry in run.whole()["previews"] if entry["passing"]]
    assert [entry["label"] for entry in shown] == ["step 4"] and len(run.previews) == 3
    told = [event["event"] for event in run.news()[1]]
    addresses = [event["url"] for event in told if event["passing"]]
    assert len(set(addresses)) == 2 and addresses[-1] == shown[0]["url"]
    assert run.file("latent_preview.webp") == output / "latent_preview.webp"
