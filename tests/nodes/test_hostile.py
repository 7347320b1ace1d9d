"""A shared workflow is untrusted: what it may not say is refused with one clear error, and nothing is started."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from .conftest import Engine, folder_dataset, part, run_node, wan_models

paths, allowed, widgets, spec = part("nodes.paths"), part("nodes.allowed"), part("nodes.widgets"), part("nodes.spec")
OUTSIDE = [
    "../../etc", "/etc/passwd", "datasets/../../etc", "\\\\server\\share\\x", "//server/share/x", "C:\\Windows\\x",
    "datasets/a\0b", "~/.ssh/id_rsa", "file:///etc/passwd", "", "datasets\\..\\..\\etc", "nowhere/x",
]  # fmt: skip


@pytest.fixture
def secret(models: Path) -> Path:
    """A file that no workflow may reach, and links to it inside the folders that it may."""
    folder = models / "secret"
    folder.mkdir()
    (folder / "key.toml").write_text("[[datasets]]\n")
    (folder / "key.mp4").write_text("secret")
    (models / "datasets" / "link").symlink_to(folder)
    (models / "input" / "link.mp4").symlink_to(folder / "key.mp4")
    return folder


def refused(name: str, /, **inputs: Any) -> str:
    with pytest.raises((ValueError, RuntimeError)) as caught:
        run_node(name, **inputs)
    message = str(caught.value)
    assert "Traceback" not in message and len(message) < 1000
    return message


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_outside(models: Path, name: str) -> None:
    with pytest.raises(part("engine.contract.errors").OptionError):
        paths.named(name)


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("case", ["folder", "file"])
def test_a_dataset_from_outside(models: Path, case: str, name: str) -> None:
    refused("DatasetConfig", source={"source": case, case: name})


@pytest.mark.parametrize("key", ["video_directory", "image_jsonl_file", "cache_directory", "control_directory"])
@pytest.mark.parametrize("path", ["/etc", "../../../../etc", "\\\\\\\\server\\\\share", "a\\u0000b", "link/key.mp4"])
def test_paths_inside_a_dataset_text(secret: Path, key: str, path: str) -> None:
    if path.startswith("link"):
        path = "datasets/link"
    rest = "" if key in ("video_directory", "image_jsonl_file") else 'video_directory = "datasets/cats"\n'
    text = f'[[datasets]]\n{rest}{key} = "{path}"\n'
    message = refused("DatasetConfig", source={"source": "text", "text": text})
    assert key in message


@pytest.mark.parametrize("ending", ["/../../../etc/passwd", "\\\\..\\\\x.txt", ".txt\\u0000"])
def test_a_caption_lies_beside_its_clip(models: Path, ending: str) -> None:
    text = f'[[datasets]]\nvideo_directory = "datasets/cats"\ncaption_extension = "{ending}"\n'
    assert "caption_extension" in refused("DatasetConfig", source={"source": "text", "text": text})


@pytest.mark.parametrize(
    "text",
    [
        'cat"\nnetwork_module = "os"\n#', "cat'\n[run]\nconfig_file = '/etc/passwd'", 'cat"""\ndit = "/etc/passwd"',
        "--dit /etc/passwd --config_file /etc/passwd", "$(touch /tmp/x) `id` ; rm -rf ~ && x", "\\u0022\\n\\",
        "\ufeff\u202e",
    ],
)  # fmt: skip
def test_a_text_is_a_text_and_nothing_else(models: Path, obliging: Engine, text: str) -> None:
    """Neither the job file nor the engine's command line gets an option out of what somebody wrote."""
    toml, records = part("engine.contract.toml"), part("nodes.jobs").runs
    video = {"models": wan_models(), "seed": 1}
    run_node("Wan21Generator", prompt="a cat", **video)
    run_node("Wan21Generator", prompt=text, negative_prompt=text, **video)
    hostile, plain = (toml.load(Path(run["folder"]) / "job.toml") for run in records.summaries(paths.jobs()))
    assert hostile == {**plain, "prompt": text.strip(), "negative_prompt": text.strip()}
    assert obliging.starts == ["generate wan", "generate wan"], "no word of it is on the command line"


def test_what_is_no_input_of_a_node_reaches_nothing(models: Path, obliging: Engine) -> None:
    more = {"optimizer_args": "x=y", "config_file": "/etc/passwd", "output_dir": "/tmp", "python": "/bin/sh"}
    inputs = {"dataset": folder_dataset(), "models": wan_models(), "output_name": "cat"}
    *_, run, _ = run_node("Wan21LoRATrainer", **inputs, **more)
    job = part("engine.contract.toml").load(run.folder / "job.toml")
    assert not {"config_file", "python"} & set(job) and job["optimizer_args"] == []
    assert job["output_dir"] == str(paths.training("cat"))


def test_links_out_of_the_folders_are_refused_and_not_offered(secret: Path) -> None:
    for name in ("datasets/link", "datasets/link/key.toml", "input/link.mp4"):
        with pytest.raises(part("engine.contract.errors").OptionError, match="outside the folders"):
            paths.named(name)
    assert not [name for name in (*paths.media_folders(), *paths.dataset_files()) if "link" in name]
    assert "outside" in refused("VideoInput", video="input/link.mp4")


def test_a_list_of_images_may_not_name_others(secret: Path) -> None:
    listed = secret.parent / "input" / "list.jsonl"
    for path in (str(secret / "key.mp4"), "../secret/key.mp4", "~/x.png"):
        listed.write_text(f'{{"image_path": "{path}", "caption": "x"}}\n')
        text = '[[datasets]]\nimage_jsonl_file = "input/list.jsonl"\n'
        assert "line 1" in refused("DatasetConfig", source={"source": "text", "text": text})


@pytest.mark.parametrize("between", ['"caption": "\u2028"', '"caption": "\x85"', '\r"caption": "x"'], ids=ascii)
def test_a_line_of_a_list_ends_where_the_engine_ends_it(secret: Path, between: str) -> None:
    """A check that sees two halves, neither of them JSON, would let through what the engine reads as one line."""
    listed = secret.parent / "input" / "list.jsonl"
    line = f'{{"image_path": "{secret / "key.mp4"}", {between}}}\n'
    listed.write_bytes(line.encode())
    assert json.loads(line)["image_path"] == str(secret / "key.mp4")
    text = '[[datasets]]\nimage_jsonl_file = "input/list.jsonl"\n'
    assert "line 1" in refused("DatasetConfig", source={"source": "text", "text": text})


def test_a_list_in_a_deep_folder_may_not_name_what_lies_above_the_engines(secret: Path) -> None:
    """The engine looks in its own folder first: a path that stays inside from the list may lead out from there."""
    deep = secret.parent / "input" / "a" / "b" / "c"
    deep.mkdir(parents=True)
    paths.work().mkdir(parents=True, exist_ok=True)
    assert (paths.work() / "../../secret/key.mp4").exists()
    (deep / "list.jsonl").write_text('{"image_path": "../../secret/key.mp4", "caption": "x"}\n')
    text = '[[datasets]]\nimage_jsonl_file = "input/a/b/c/list.jsonl"\n'
    assert "line 1" in refused("DatasetConfig", source={"source": "text", "text": text})


def test_an_allowed_root_is_allowed(secret: Path) -> None:
    part("nodes.preferences").save({"roots": [str(secret)]})
    assert paths.named("secret/key.toml") == secret / "key.toml"
    assert paths.named("datasets/link/key.toml") == secret / "key.toml"


@pytest.mark.parametrize(
    ("node", "widget", "value"),
    [
        ("OptimizerConfig", "optimizer_type", "os.system"),
        ("OptimizerConfig", "optimizer_type", "torch.optim.AdamW"),
        ("OptimizerConfig", "lr_scheduler", "my.module.Scheduler"),
        ("LoRATrainingConfig", "network_module", "os"),
        ("MemoryOptimizer", "compile_backend", "evil.backend"),
        ("MemoryOptimizer", "attention", "sage_attn"),
        ("Wan21ModelPaths", "dit", "/etc/passwd"),
        ("Wan21ModelPaths", "dit", "../vae/vae.safetensors"),
        ("Wan21ModelPaths", "vae", ["vae.safetensors"]),
        ("Wan21LoRAStack", "lora_1", "../../secret.safetensors"),
        ("LoRATrainingConfig", "max_train_steps", "1; rm -rf /"),
        ("LoRATrainingConfig", "max_train_steps", 1e30),
        ("OptimizerConfig", "learning_rate", float("nan")),
        ("OptimizerConfig", "weight_decay", "__import__('os').system('true')"),
    ],
)
def test_values_outside_a_widgets_list_or_limits(models: Path, node: str, widget: str, value: Any) -> None:
    assert widget in refused(node, **{widget: value})


def test_no_widget_takes_free_arguments_classes_or_secrets(comfy: Path) -> None:
    """The options of the command line that could run code or send data away are on no node."""
    dangerous = {
        "optimizer_args", "network_args", "lr_scheduler_args", "lr_scheduler_type", "config_file",
        "huggingface_token", "wandb_api_key", "log_tracker_config", "output_dir", "save_path", "job_dir", "ckpt_dir",
    }  # fmt: skip
    found = {widget.id for node in part("nodes.catalogue").nodes() for widget in node.widgets()}
    assert not found & dangerous


@pytest.mark.parametrize("name", ["../x", "a/b", "/x", "a\0", "", " ", "con", "a:b", "-x", ".x", "x" * 200, "a\nb"])
def test_a_lora_is_named_by_a_plain_name(models: Path, obliging: Engine, name: str) -> None:
    inputs = {"dataset": folder_dataset(), "models": wan_models(), "output_name": name}
    refused("Wan21LoRATrainer", **inputs)
    assert obliging.starts == []


@pytest.mark.parametrize("prefix", ["../x", "/etc/x", "a/../../x", "a//b", "C:\\x", "a\0b", "", "猫" * 90])
def test_a_video_stays_in_the_output_folder(models: Path, obliging: Engine, prefix: str) -> None:
    refused("Wan21Generator", models=wan_models(), prompt="x", filename_prefix=prefix)
    assert obliging.starts == []


@pytest.mark.parametrize("letter", ["i", "ei", "cn", "ci", "cim"])
@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../secret/key.mp4", "input/link.mp4", "\\\\server\\x", '"/etc/passwd"']
)
def test_prompt_lines_may_not_name_files_outside(secret: Path, obliging: Engine, letter: str, path: str) -> None:
    message = refused("BatchProcessor", models=wan_models(), prompts=f"a cat\na dog --{letter} {path} --d 5")
    assert "Line 2" in message
    assert obliging.starts == []


@pytest.mark.parametrize("name", ["my cat.png", '"my cat.png"', "'input/my cat.png'"])
def test_a_prompt_line_may_name_a_file_of_the_input_folder(models: Path, name: str) -> None:
    (models / "input" / "my cat.png").write_text("a cat")
    file = Path(part("nodes.prompts").write_prompts(f"a cat --i {name} --d 5"))
    assert file.read_text() == f"a cat --i {os.path.realpath(models / 'input/my cat.png')} --d 5\n"


def test_every_letter_that_names_a_file_is_looked_up() -> None:
    engine_prompts = pytest.importorskip("engine.sampling.prompts")
    families = pytest.importorskip("engine.families")
    own = [families.part(family, "options").PROMPT_LETTERS for family in families.names()]
    tables = (engine_prompts.TRAIN, engine_prompts.GENERATE, *own)
    letters = {letter for table in tables for letter, name in table.items() if name.endswith("_path")}
    assert letters == part("nodes.prompts").FILE_LETTERS


def test_the_keys_of_a_dataset_that_are_paths_are_the_engines() -> None:
    config = pytest.importorskip("engine.data.config")
    frames = pytest.importorskip("engine.data.frames")
    dataset = part("nodes.dataset")
    assert set(dataset.PATH_KEYS) == set(config._PATH_KEYS)
    assert dataset.EXTRACTIONS == frames.MODES
    assert dataset.WINDOW == config.Dataset().fp_latent_window_size


def test_a_state_to_resume_from_is_one_of_the_list(models: Path) -> None:
    inputs = {"dataset": folder_dataset(), "models": wan_models()}
    assert "resume" in refused("Wan21LoRATrainer", resume="/etc", **inputs)
    assert "resume" in refused("Wan21LoRATrainer", resume="../../x-state", **inputs)


@pytest.mark.parametrize("value", [None, 5, "text", {"path": "/etc/passwd"}, ["x"]])
def test_inputs_of_other_kinds(models: Path, value: Any) -> None:
    refused("VAELatentCache", dataset=value, models=wan_models())
    refused("VAELatentCache", dataset=folder_dataset(), models=value)


@pytest.mark.parametrize(
    "changes",
    [
        {"roots": ["relative"]}, {"roots": ["/"]}, {"roots": "x"}, {"home": "relative"}, {"gpu": "0; rm"}, {"gpu": 1},
        {"log_level": "all"}, {"python": "/bin/sh"}, {"roots": ["/a\0b"]},
    ],
)  # fmt: skip
def test_settings_are_checked(comfy: Path, changes: dict[str, Any]) -> None:
    preferences = part("nodes.preferences")
    with pytest.raises(part("engine.contract.errors").OptionError):
        preferences.save(changes)
    assert not preferences.path().exists()
