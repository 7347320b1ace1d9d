"""What a queued prompt is refused for before anything runs: in the engine's words, on the node where it has to be
changed, and never without a reason.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from .conftest import Engine, load_pack, part

checking, catalogue = part("nodes.checking"), part("nodes.catalogue")
Prompt = dict[str, Any]


def node(name: str, /, **inputs: Any) -> Prompt:
    return {"class_type": f"MusubiTuner_{name}", "inputs": inputs}


@pytest.fixture
def prompt(models: Path) -> Prompt:
    """From clips to a LoRA to a video, on the files of `models`."""
    return {
        "models": node("Wan21ModelPaths", dit="dit.safetensors", vae="vae.safetensors", t5="t5.safetensors",
                       task="t2v-1.3B"),
        "dataset": node("DatasetConfig", **{"source": "folder", "source.folder": "datasets/cats"}),
        "latents": node("VAELatentCache", dataset=["dataset", 0], models=["models", 0]),
        "texts": node("TextEncoderCache", dataset=["latents", 0], models=["models", 0]),
        "training": node("LoRATrainingConfig", max_train_steps=10),
        "trainer": node("Wan21LoRATrainer", dataset=["texts", 0], models=["models", 0], training=["training", 0],
                        output_name="cat"),
        "video": node("Wan21Generator", models=["models", 0], loras=["trainer", 1], prompt="a cat", video_length=17),
        "stack": node("Wan21LoRAStack", lora_1="style.safetensors", previous=["trainer", 1]),
        "merged": node("LoRAMerger", loras=["stack", 0], write="LoRA", name="both"),
        "sampling": node("SamplingConfig", prompts="a cat"),
    }  # fmt: skip


def refused(prompt: Prompt) -> dict[str, str]:
    """What is said on which node."""
    found = {}
    for name, entry in prompt.items():
        ours = catalogue.by_id(entry["class_type"])
        if ours is not None and (words := checking.refusal(ours, name, prompt)):
            found[name] = words
    return found


def test_a_good_graph_is_let_through_and_nothing_is_started(prompt: Prompt, obliging: Engine) -> None:
    assert refused(prompt) == {}
    assert obliging.starts == []


@pytest.mark.parametrize(
    ("where", "changes", "words"),
    [
        ("trainer", {"models.dit": "none"}, "dit is required"),
        ("latents", {"models.vae": "none"}, "vae is required to encode clips"),
        ("texts", {"models.t5": "none"}, "t5 is required"),
        ("video", {"video.video_length": 18}, "video_length: 18 is not 4n+1: use 17 or 21"),
        ("video", {"video.video_size_width": 100}, "a width of 100 is not a multiple of 16: use 96 or 112"),
        ("video", {"video.prompt": ""}, "prompt"),
        ("video", {"video.filename_prefix": "../../x"}, "is not a file name"),
        ("trainer", {"trainer.output_name": "a/b"}, "is not a file name"),
        ("dataset", {"dataset.source.folder": "none"}, "No folder is chosen"),
        ("dataset", {"dataset.source.target_frames": "many"}, "not a list of whole numbers"),
        ("dataset", {"dataset.source": "text", "dataset.source.text": "[[datasets"}, "TOML"),
        ("dataset", {"dataset.source": "nowhere"}, "source cannot be 'nowhere'"),
        ("latents", {"latents.batch_size": 2, "models.vae": "none"}, "vae is required"),
        ("sampling", {"sampling.prompts": "a cat --i /etc/passwd"}, "Line 1: /etc/passwd is outside"),
        ("trainer", {"training.max_train_steps": 10, "models.dit": "none"}, "dit is required"),
        ("merged", {"stack.previous": None, "stack.lora_1": "none"}, "The LoRA stack is empty"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_on_its_node_in_the_words_of_the_run(
    prompt: Prompt, where: str, changes: dict[str, Any], words: str
) -> None:
    for place, value in changes.items():
        name, _, widget = place.partition(".")
        prompt[name]["inputs"].update({widget: value})
        if value is None:
            del prompt[name]["inputs"][widget]
    told = refused(prompt)
    assert words in told[where] and "--" not in told[where], told


def test_what_is_wrong_is_said_once(prompt: Prompt) -> None:
    """The nodes after a wrong one do not repeat it."""
    prompt["dataset"]["inputs"]["source.folder"] = "none"
    assert list(refused(prompt)) == ["dataset"]
    prompt["trainer"]["inputs"]["output_name"] = "con"
    assert list(refused(prompt)) == ["dataset"]


def test_a_folder_that_is_gone_is_said_where_clips_are_read(prompt: Prompt, models: Path) -> None:
    text = '[[datasets]]\nvideo_directory = "datasets/gone"\ncaption_extension = ".txt"\n'
    prompt["dataset"]["inputs"] = {"source": "text", "source.text": text}
    told = refused(prompt)
    assert set(told) == {"latents"} and "gone: there is no such file or folder" in told["latents"]
    prompt["trainer"]["inputs"]["dataset"] = ["dataset", 0]  # caches of clips that were deleted can be trained on
    assert "trainer" not in refused(prompt)


def test_a_value_that_is_not_in_its_list_is_comfyui_s_to_refuse(prompt: Prompt) -> None:
    prompt["models"]["inputs"]["dit"] = "gone.safetensors"
    prompt["dataset"]["inputs"]["source.folder"] = "datasets/gone"
    assert refused(prompt) == {}


def test_what_only_other_packs_know_is_not_guessed(prompt: Prompt) -> None:
    prompt["picture"] = {"class_type": "LoadImage", "inputs": {"image": "cat.png"}}
    prompt["video"]["inputs"].update(image=["picture", 0])
    assert refused(prompt) == {}
    prompt["video"]["inputs"].update(video_length=["picture", 1], prompt="")
    assert refused(prompt) == {}


@pytest.mark.parametrize("link", [["trainer", 99], ["nobody", 0], ["trainer", "0"], [], ["trainer", 0, 1], [[], {}]])
def test_a_strange_link_is_comfyui_s_to_refuse(prompt: Prompt, link: Any) -> None:
    prompt["video"]["inputs"]["models"] = link
    assert refused(prompt) == {}


def test_a_graph_that_bites_its_own_tail_ends(prompt: Prompt) -> None:
    prompt["latents"]["inputs"]["dataset"] = ["texts", 0]
    assert refused(prompt) == {}


def test_looking_takes_no_time(prompt: Prompt) -> None:
    """It happens on ComfyUI's own event loop."""
    refused(prompt)
    begun = time.process_time()
    refused(prompt)
    assert time.process_time() - begun < 0.5


def test_comfyui_asks_and_is_told(prompt: Prompt, monkeypatch: pytest.MonkeyPatch) -> None:
    import server

    handlers: list[Any] = []
    monkeypatch.setattr(server.PromptServer, "add_on_prompt_handler", lambda self, handler: handlers.append(handler),
                        raising=False)  # fmt: skip

    async def queue() -> Any:
        part("nodes.host").follow_queue()  # as the extension's on_load does
        extension = await load_pack().comfy_entrypoint()
        made = {node.__name__: node for node in await extension.get_node_list()}
        generator = made["Wan21Generator"]
        generator.hidden = SimpleNamespace(unique_id="video")
        before = generator.validate_inputs(models=None)
        prompt["video"]["inputs"]["video_length"] = 18
        (handler,) = handlers
        data = {"prompt": prompt, "client_id": "a page"}
        assert handler(data) is data
        return before, generator.validate_inputs(models=None)

    before, told = asyncio.run(queue())
    assert server.PromptServer.instance.sent == [("musubi.refused", {"node": "video", "message": told})]
    assert before is True, "without a prompt there is nothing to say"
    assert "18 is not 4n+1" in told


def test_a_refusal_is_said_at_one_input_whose_own_check_is_not_lost() -> None:
    """ComfyUI repeats it for each input of the signature, and does not check lists and limits of these any more."""
    for node in catalogue.nodes():
        found = catalogue.comfy_class(node)
        if not node.told_at:
            assert "validate_inputs" not in vars(found)
            continue
        assert node.check is not None
        told = inspect.getfullargspec(found.validate_inputs)
        assert told.args == ["cls", node.told_at] and told.varkw is None
        place = next(item for item in node.inputs if item.id == node.told_at)
        assert getattr(place, "kind", "text") == "text", "a list or a number"
