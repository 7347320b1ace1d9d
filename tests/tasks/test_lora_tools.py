"""`lora convert | merge | info | ema` as they are typed, and by musubi-tuner's script names."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from engine.__main__ import main
from engine.contract.errors import WeightsError
from engine.families import part
from engine.families.wan.tiny import DIT_CONFIG
from engine.lora.files import read_lora, write_lora
from engine.lora.merge import refuse_other_size
from engine.lora.network import create
from engine.parts.weights import open_weights, write_weights
from engine.tasks.lora_targets import lora_target

FAMILIES = ("wan", "hunyuan_video", "framepack")


def tiny(family: str) -> tuple[torch.nn.Module, dict[str, str]]:
    """A small model with weights, and the metadata that its file needs."""
    detect, model = part(family, "detect"), part(family, "model")
    config = DIT_CONFIG if family == "wan" else _smaller(detect.fullest())
    dit = model.build(config, device="cpu", dtype=torch.float32)
    torch.manual_seed(1)
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return dit, {"head_dim": str(config.head_dim)}


def _smaller(config):
    sizes = {"dim": 128, "ffn_dim": 512, "refiner_ffn_dim": 512, "num_heads": 1, "text_dim": 16, "pooled_dim": 8}
    counts = {name: 2 for name in vars(config) if name.startswith("num_") and name not in ("num_heads",)}
    return dataclasses.replace(config, **sizes, **counts)


def lora_of(family: str, dit: torch.nn.Module, path: Path, *, seed: int, rank: int = 2, steps: int = 1) -> Path:
    keys, options = part(family, "keys"), part(family, "options")
    network = create(dit, block_classes=keys.LORA_BLOCKS, exclude=keys.LORA_EXCLUDE, dim=rank, alpha=1.0, seed=seed)
    torch.manual_seed(seed)
    for adapter in network.adapters.values():
        torch.nn.init.normal_(adapter.lora_up.weight, std=0.1)
    metadata = {"ss_base_model_version": options.ARCHITECTURE, "ss_steps": str(steps), "ss_network_dim": str(rank)}
    write_lora(path, network.state(), metadata=metadata)
    network.detach()
    return path


@pytest.fixture(params=FAMILIES)
def workshop(request, tmp_path: Path) -> tuple[str, Path, Path, Path]:
    """A model and two LoRAs of one family: (family, dit, lora, lora)."""
    dit, metadata = tiny(request.param)
    write_weights(tmp_path / "dit.safetensors", dit.state_dict(), metadata=metadata)
    one = lora_of(request.param, dit, tmp_path / "one.safetensors", seed=1)
    return (
        request.param,
        tmp_path / "dit.safetensors",
        one,
        lora_of(request.param, dit, tmp_path / "two.safetensors", seed=2),
    )


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def test_names_there_and_back_are_the_same_file(workshop, tmp_path: Path, capfd) -> None:
    """FramePack's too, which the reference spoils; metadata stay, hashes are renewed and stored."""
    family, _, lora, _ = workshop
    other, back = tmp_path / "other.safetensors", tmp_path / "back.safetensors"
    assert main(["convert_lora", "--input", str(lora), "--output", str(other), "--target", "other"]) == 0
    assert f"a LoRA of {family}" in capfd.readouterr().err
    before, after = load_file(lora), load_file(other)
    path = next(name for name in before if name.endswith("lora_up.weight"))
    assert len(after) == len(before) // 3 * 2 and all(name.startswith("diffusion_model.") for name in after)
    assert metadata_of(other)["ss_steps"] == "1"
    assert metadata_of(other)["sshs_model_hash"] != metadata_of(lora)["sshs_model_hash"]
    assert main(["lora", "convert", "--input", str(other), "--output", str(back), "--target", "default"]) == 0
    again = load_file(back)
    assert again.keys() == before.keys() and float(again[path.replace("lora_up.weight", "alpha")]) == 2.0
    assert torch.allclose(again[path], before[path] * 0.5**0.5, atol=1e-6)


def test_what_is_read_is_not_written_over(tmp_path: Path, capfd) -> None:
    """A LoRA that was converted in its place was gone, and with it what other names cannot hold."""
    dit, _ = tiny("wan")
    one = lora_of("wan", dit, tmp_path / "one.safetensors", seed=1)
    two = lora_of("wan", dit, tmp_path / "two.safetensors", seed=2, steps=2)
    before = one.read_bytes()
    link = tmp_path / "link.safetensors"
    link.symlink_to(one)
    for line in (
        ["lora", "convert", "--input", str(one), "--target", "other", "--output"],
        ["lora", "merge", "--lora_weight", str(two), str(one), "--save_merged_lora"],
        ["lora", "ema", str(one), str(two), "--output_file"],
    ):
        for output in (one, link):
            assert main([*line, str(output)]) == 2
            assert f"{line[-1]} would replace {output}, which is read." in capfd.readouterr().err
        assert main([*line, str(tmp_path)]) == 2
        assert f"{line[-1]} {tmp_path} is a folder." in capfd.readouterr().err
    assert one.read_bytes() == before


def test_a_lora_of_another_size_is_told_from_its_header(tmp_path: Path) -> None:
    dit, _ = tiny("wan")
    file = read_lora(lora_of("wan", dit, tmp_path / "one.safetensors", seed=1), lora_target("wan", dit), role="--lora")
    refuse_other_size(file, lora_target("wan", dit))
    larger = part("wan", "model").build(dataclasses.replace(DIT_CONFIG, dim=2 * DIT_CONFIG.dim))
    told = r"one.safetensors: blocks\.0\.\S+ has \d+ rows, but \d+ in this model"
    with pytest.raises(WeightsError, match=told) as caught:
        refuse_other_size(file, lora_target("wan", larger))
    assert "another size" in caught.value.hint


def test_prefix_alpha_and_diffusers(workshop, tmp_path: Path) -> None:
    family, dit, lora, _ = workshop
    line = ["lora", "convert", "--input", str(lora), "--dit", str(dit)]
    out = tmp_path / "out.safetensors"
    assert main([*line, "--output", str(out), "--target", "other", "--diffusers_prefix", "x", "--keep_alpha"]) == 0
    assert all(name.startswith("x.") for name in load_file(out))
    assert sum(name.endswith(".alpha") for name in load_file(out)) == len(load_file(lora)) // 3
    assert main([*line, "--output", str(out), "--target", "diffusers"]) == 0
    assert all(name.startswith("transformer.") for name in load_file(out))
    again = tmp_path / "again.safetensors"
    assert main(["lora", "convert", "--input", str(out), "--dit", str(dit), "--output", str(again), "--target",
                 "default"]) == 0  # fmt: skip
    assert load_file(again).keys() == load_file(lora).keys()


@pytest.mark.parametrize("target", ["default", "other", "diffusers"])
def test_alpha_of_diffusers_metadata_counts_once(target: str, tmp_path: Path) -> None:
    """diffusers keeps alpha there, and looks for it there in what was converted too."""
    dit, _ = tiny("wan")
    stem = "transformer.blocks.0.attn1.to_q"
    halves = {f"{stem}.lora_A.weight": torch.randn(4, 256), f"{stem}.lora_B.weight": torch.randn(256, 4)}
    told = {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 8})}
    save_file(halves, tmp_path / "theirs.safetensors", metadata={"format": "pt", **told})
    words = ["--input", str(tmp_path / "theirs.safetensors"), "--output", str(tmp_path / "ours.safetensors")]
    assert main(["lora", "convert", *words, "--target", target]) == 0
    read = [read_lora(tmp_path / f"{name}.safetensors", lora_target("wan", dit)) for name in ("theirs", "ours")]
    (theirs,), (ours,) = (file.modules.values() for file in read)
    assert theirs.scale == 2.0 and torch.allclose(ours.change(), theirs.change(), atol=1e-5)
    assert metadata_of(tmp_path / "ours.safetensors").keys() & {"format", *told} == {"format"}


def test_merging_into_a_model_gives_what_loading_with_the_loras_gives(workshop, tmp_path: Path) -> None:
    family, dit, one, two = workshop
    target = tmp_path / "merged.safetensors"
    line = ["merge_lora", "--dit", str(dit), "--lora_weight", str(one), str(two), "--lora_multiplier", "0.5"]
    assert main([*line, "--save_merged_model", str(target), "--dit_in_channels", "16", "--device", "cpu"]) == 0
    before, after = open_weights(dit, role="x"), open_weights(target, role="x")
    assert before.shapes == after.shapes and before.dtypes == after.dtypes
    assert after.metadata["merged_lora"] == "one.safetensors: 0.5, two.safetensors: 1"
    loras = [(load_file(one), 0.5), (load_file(two), 1.0)]
    changed = 0
    for name in before.shapes:
        wanted = before.read(name)
        key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        for lora, multiplier in loras:
            if name.endswith(".weight") and f"{key}.lora_up.weight" in lora:
                wanted = wanted + multiplier * 0.5 * lora[f"{key}.lora_up.weight"] @ lora[f"{key}.lora_down.weight"]
                changed += 1
        assert torch.allclose(after.read(name), wanted, atol=1e-6), name
    assert changed == 2 * len(load_file(one)) // 3
    shards = [*line, "--save_merged_model", str(tmp_path / "shards"), "--max_shard_size", "0.00005", "--device", "cpu"]
    assert main(shards) == 0
    parts = open_weights(tmp_path / "shards", role="x")
    assert parts.shapes.keys() == after.shapes.keys() and len(list((tmp_path / "shards").glob("*-of-*"))) > 1
    assert all(torch.equal(parts.read(name), after.read(name)) for name in after.shapes)
    assert main(shards) == 2  # a folder that is there is nobody's to replace


def named_by_musubi(lora: Path, dit: Path) -> Path:
    out = lora.with_name(f"musubi_{lora.name}")
    line = ["lora", "convert", "--input", str(lora), "--dit", str(dit), "--output", str(out), "--target", "default"]
    assert main(line) == 0
    return out


def test_merging_into_one_lora(workshop, tmp_path: Path, capfd) -> None:
    family, dit, one, two = workshop
    line = ["lora", "merge", "--lora_weight", str(one), str(two), "--lora_multiplier", "0.5", "2", "--dit", str(dit)]
    exact, small = tmp_path / "exact.safetensors", tmp_path / "small.safetensors"
    assert main([*line, "--save_merged_lora", str(exact)]) == 0
    assert main([*line, "--save_merged_lora", str(small), "--new_rank", "3"]) == 0
    assert "Rank 3 keeps 9" in capfd.readouterr().err
    name = next(key for key in load_file(one) if key.endswith("lora_up.weight")).removesuffix(".lora_up.weight")

    def change(path: Path) -> torch.Tensor:
        lora = load_file(named_by_musubi(path, dit))
        down, up = lora[f"{name}.lora_down.weight"], lora[f"{name}.lora_up.weight"]
        return up @ down * float(lora[f"{name}.alpha"]) / len(down)

    wanted = 0.5 * change(one) + 2 * change(two)
    assert torch.allclose(change(exact), wanted, atol=1e-5)
    assert len(load_file(named_by_musubi(small, dit))[f"{name}.lora_down.weight"]) == 3
    prefix = "diffusion_model." if family == "hunyuan_video" else "lora_unet_"  # what ComfyUI loads whole
    assert all(key.startswith(prefix) for key in load_file(small))
    assert (change(small) - wanted).norm() < 0.5 * wanted.norm()
    said = metadata_of(exact)
    assert (said["ss_network_dim"], said["merged_lora"]) == ("4", "one.safetensors: 0.5, two.safetensors: 2")


def test_what_readers_make_of_a_file_is_said(workshop, tmp_path: Path, capfd) -> None:
    _, dit, lora, _ = workshop
    tensors = load_file(lora)
    ups = [name for name in tensors if name.endswith("lora_up.weight")]
    lengths = {name.replace("lora_up.weight", "dora_scale"): torch.ones(len(tensors[name]), 1) for name in ups}
    save_file({**tensors, **lengths}, tmp_path / "dora.safetensors")
    for name, target, told in (
        ("dora", ["other"], "ComfyUI divides the rows of a DoRA by their lengths before"),
        ("dora", ["diffusers"], ""),
        ("one", ["other", "--keep_alpha"], ""),
        ("one", ["diffusers", "--keep_alpha"], "diffusers and PEFT do not read alpha"),
    ):
        line = ["lora", "convert", "--input", str(tmp_path / f"{name}.safetensors"), "--dit", str(dit), "--output"]
        assert main([*line, str(tmp_path / "out.safetensors"), "--target", *target]) == 0
        shown = capfd.readouterr().err
        assert ("warning" in shown) == bool(told) and told in shown


def test_averaging_goes_by_the_training_step(tmp_path: Path, capfd) -> None:
    dit, _ = tiny("wan")
    late = lora_of("wan", dit, tmp_path / "a.safetensors", seed=1, steps=20)
    early = lora_of("wan", dit, tmp_path / "b.safetensors", seed=2, steps=10)
    out = tmp_path / "ema.safetensors"
    line = ["lora_post_hoc_ema.py", str(late), str(early), "--output_file", str(out), "--beta", "0.75"]
    assert main(line) == 0
    assert "In order of training step: b.safetensors, a.safetensors" in capfd.readouterr().err
    name = next(key for key in load_file(early) if key.endswith("lora_up.weight"))
    wanted = 0.75 * load_file(early)[name] + 0.25 * load_file(late)[name]
    assert torch.allclose(load_file(out)[name], wanted, atol=1e-6) and metadata_of(out)["ss_steps"] == "20"
    assert main([*line, "--no_sort"]) == 0
    other = 0.75 * load_file(late)[name] + 0.25 * load_file(early)[name]
    assert torch.allclose(load_file(out)[name], other, atol=1e-6) and metadata_of(out)["ss_steps"] == "10"


def test_info_tells_a_person_and_a_program(workshop, capfd) -> None:
    family, _, lora, _ = workshop
    assert main(["lora", "info", str(lora)]) == 0
    shown = capfd.readouterr().err
    assert f"loads into {family}" in shown and "kind" in shown and "LoRA" in shown and "█" in shown
    assert main(["lora", "info", str(lora), "--events"]) == 0
    events = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    (metric,) = [event for event in events if event["event"] == "metric"]
    assert metric["values"]["modules"] == len(load_file(lora)) // 3 and metric["values"]["norm"] > 0
    assert events[-1]["event"] == "done"


def test_a_hunyuan_lora_also_loads_into_framepack(tmp_path: Path, capfd) -> None:
    tensors = {
        "transformer.double_blocks.0.img_attn_qkv.lora_A.weight": torch.ones(2, 3072),
        "transformer.double_blocks.0.img_attn_qkv.lora_B.weight": torch.ones(9216, 2),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    assert main(["lora", "info", str(tmp_path / "a.safetensors")]) == 0
    shown = capfd.readouterr().err
    assert "loads into hunyuan_video: 1 of 1" in shown and "loads into framepack: 1 of 1" in shown
    out = tmp_path / "b.safetensors"
    line = ["lora", "convert", "--input", str(tmp_path / "a.safetensors"), "--output", str(out), "--target", "default"]
    assert main([*line, "--family", "framepack"]) == 0
    assert load_file(out)["lora_unet_transformer_blocks_0_attn_to_k.lora_up.weight"].shape == (3072, 2)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("convert --input none.safetensors --output b --target other", "no such file"),
        ("convert --input odd.safetensors --output b --target other", "none of its 1 tensors"),
        ("info odd.safetensors", "none of its 1 tensors"),
        ("merge --lora_weight odd.safetensors --save_merged_model m", "--save_merged_model needs the model"),
        ("merge --lora_weight odd.safetensors", "One of --save_merged_model and --save_merged_lora"),
        ("merge --dit odd.safetensors --lora_weight odd.safetensors --save_merged_model m.safetensors", "no DiT of"),
        ("merge --lora_weight odd.safetensors --save_merged_model m --dit d --new_rank 3", "--new_rank and --energy"),
        ("ema odd.safetensors --output_file e.safetensors", "two LoRA files"),
        ("ema odd.safetensors odd.safetensors --output_file e --sigma_rel 0.3", "--sigma_rel must be"),
    ],
)
def test_mistakes_are_one_line_and_status_2(line: str, told: str, tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"encoder.layer.lora_A.weight": torch.ones(1, 1)}, "odd.safetensors")
    assert main(["lora", *line.split()]) == 2
    shown = capfd.readouterr().err
    assert told in shown and "Traceback" not in shown
    assert [path.name for path in tmp_path.iterdir()] == ["odd.safetensors"]


def test_a_missing_lora_is_answered_with_the_nearest_name(tmp_path: Path, capfd) -> None:
    (tmp_path / "cat-lora.safetensors").touch()
    assert main(["lora", "info", str(tmp_path / "cat_lora.safetensors")]) == 2
    assert "Did you mean cat-lora.safetensors?" in capfd.readouterr().err
