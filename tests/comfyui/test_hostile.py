"""Workflows that mean harm, queued in a real ComfyUI: each is refused in words, and nothing is started or written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .prompts import OURS, TRAINER, training
from .server import Server, link_pack

SECRET = "a secret that no workflow may see"
END_S = 60.0


@pytest.fixture(scope="module")
def base(checkout: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with our pack, empty model files and clips, and a secret beside them to which a link leads."""
    base = tmp_path_factory.mktemp("hostile") / "comfyui"
    link_pack(base)
    demo = {"diffusion_models": "dit.safetensors", "vae": "vae.safetensors", "text_encoders": "t5.safetensors"}
    for folder, name in demo.items():
        (base / "models" / folder).mkdir(parents=True)
        (base / "models" / folder / f"musubi_demo_wan_{name}").write_bytes(b"")
    clips = base / "input" / "musubi_demo" / "striped_hexagons"
    clips.mkdir(parents=True)
    (clips / "a.png").write_bytes(b"")
    (base.parent / "outside").mkdir()
    (base.parent / "outside" / "secret.png").write_text(SECRET)
    (base.parent / "outside" / "data.toml").write_text("[[datasets]]\n")
    (base / "input" / "link").symlink_to(base.parent / "outside")
    return base


@pytest.fixture(scope="module")
def server(base: Path) -> Iterator[Server]:
    with Server(base, variables={"MUSUBI_HOME": str(base / "no engine")}) as server:
        yield server


def straight() -> dict[str, Any]:
    """A training right behind its dataset, so that no cache node comes before it."""
    prompt = training("mine")
    prompt[TRAINER]["inputs"]["dataset"] = ["2", 0]
    return prompt


def changed(node: str, **inputs: Any) -> dict[str, Any]:
    prompt = straight()
    prompt[node]["inputs"].update({name.replace("__", "."): value for name, value in inputs.items()})
    return prompt


def beside(number: str, name: str, **inputs: Any) -> dict[str, Any]:
    return {**straight(), number: {"class_type": OURS + name, "inputs": inputs}}


def text(line: str) -> dict[str, Any]:
    prompt = straight()
    prompt["2"]["inputs"] = {"source": "text", "source.text": f"[[datasets]]\n{line}\n"}
    return prompt


def typed(value: str, node: str, widget: str) -> dict[str, Any]:
    """A value that comes out of another pack's node, which ComfyUI does not check against lists and limits."""
    prompt = changed(node, **{widget: ["99", 0]})
    return {**prompt, "99": {"class_type": "PrimitiveString", "inputs": {"value": value}}}


def optimizer(kind: str) -> dict[str, Any]:
    return {"8": {"class_type": OURS + "OptimizerConfig", "inputs": {"optimizer_type": kind}}}


HOSTILE: dict[str, dict[str, Any]] = {
    "a model by its path": changed("1", dit="/etc/passwd"),
    "a model above the folder": changed("1", vae="../vae/musubi_demo_wan_vae.safetensors"),
    "a model out of a node": typed("/etc/passwd", "1", "dit"),
    "a folder by its path": changed("2", source__folder="/etc"),
    "a folder above": changed("2", source__folder="input/../../outside"),
    "a folder behind a link": changed("2", source__folder="input/link"),
    "a dataset file behind a link": changed("2", source="file", source__file="input/link/data.toml"),
    "a text with an absolute path": text('image_directory = "/etc"'),
    "a text with a way up": text('image_directory = "input/../../outside"'),
    "a text with a link": text('image_directory = "input/link"'),
    "a text that writes elsewhere": text('image_directory = "input/musubi_demo"\ncache_directory = "/tmp"'),
    "a caption elsewhere": text('image_directory = "input/musubi_demo"\ncaption_extension = "/../../x.txt"'),
    "a name with a way up": changed(TRAINER, output_name="../../mine"),
    "a name out of a node": typed("../../mine", TRAINER, "output_name"),
    "a state by its path": changed(TRAINER, resume="/etc"),
    "an optimizer class": {**changed(TRAINER, optimizer=["8", 0]), **optimizer("os.system")},
    "a network module": changed("5", network_module="os"),
    "a compile backend": changed("7", compile_backend="evil.backend"),
    "a number that is code": changed("5", max_train_steps="__import__('os').getpid()"),
    "a video elsewhere": beside("9", "Wan21Generator", models=["1", 0], prompt="x", filename_prefix="../../x"),
    "a prompt line with a file": beside("9", "BatchProcessor", models=["1", 0], prompts="x --i /etc/passwd"),
    "a video behind a link": beside("9", "VideoInput", video="input/link/secret.png"),
}  # fmt: skip


def tried(server: Server, prompt: dict[str, Any]) -> tuple[str, list[str]]:
    """What ComfyUI answers in the end, and what was started. Good parts of a prompt run, so only one end is queued."""
    before = {run["id"] for run in server.runs()}
    keep = _upstream(prompt, "9" if "9" in prompt else TRAINER)
    answer = server.post("/prompt", {"prompt": {key: prompt[key] for key in keep}, "client_id": "tests"})
    if "prompt_id" in answer:
        entry = server.ended(answer["prompt_id"], END_S)
        assert entry["status"]["status_str"] == "error"
        answer = {"error": [data for kind, data in entry["status"]["messages"] if kind == "execution_error"]}
    return json.dumps(answer), [run["verb"] for run in server.runs() if run["id"] not in before]


def test_the_same_without_the_harm_is_started(server: Server) -> None:
    words, started = tried(server, straight())
    assert started == ["train"] and "environment is not set up yet" in words, "only the engine is missing here"
    words, started = tried(server, {**changed(TRAINER, optimizer=["8", 0]), **optimizer("Lion8bit")})
    assert started == ["train"], words


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_and_nothing_is_started(server: Server, base: Path, name: str) -> None:
    words, started = tried(server, HOSTILE[name])
    assert not started, words[:2000]
    assert SECRET not in words and "root:x:0" not in words
    assert not (base.parent / "mine").exists() and not list(base.parent.glob("x*.mp4"))


def _upstream(prompt: dict[str, Any], node: str) -> list[str]:
    links = [value[0] for value in prompt[node]["inputs"].values() if isinstance(value, list)]
    return list(dict.fromkeys([node, *(name for link in links for name in _upstream(prompt, link))]))


@pytest.mark.parametrize(
    "address",
    [
        "/musubi/runs/..%2f..", "/musubi/runs/%2e%2e/file?name=passwd", "/musubi/runs/x/file?name=../../etc/passwd",
        "/musubi/datasets/preview?path=/etc", "/musubi/datasets/preview?path=input/link",
        "/musubi/datasets/preview?path=input/../../outside",
    ],
)  # fmt: skip
def test_no_address_gives_a_file_from_outside(server: Server, address: str) -> None:
    words = json.dumps(server.post(address, None, method="GET"))
    assert '"error"' in words and SECRET not in words and "root:x:0" not in words


def test_what_changes_something_takes_json_only(server: Server) -> None:
    """A form on another site can send everything but that."""
    import urllib.error
    import urllib.request

    for path in ("/musubi/settings", "/musubi/environment", "/musubi/demo"):
        form = urllib.request.Request(server.url + path, b"action=create", {"Content-Type": "text/plain"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(form, timeout=30)
        assert refused.value.code == 415
