"""LoRA files: every naming is understood, what is written is what others expect."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from engine.contract.errors import DiskError, WeightsError
from engine.lora.files import hashes, read_lora, write_lora
from engine.lora.formats import to_default, to_other
from engine.lora.merge import merger
from engine.lora.names import LoraTarget
from engine.lora.network import create, create_like
from engine.lora.weights import LoraWeights
from tests.lora.toy import EXCLUDE, toy

DIT = toy()
TARGET = LoraTarget.of(DIT)


def weights(rank: int = 3, alpha: float = 1.5) -> dict[str, LoraWeights]:
    torch.manual_seed(1)
    return {
        path: LoraWeights(torch.randn(rank, size), torch.randn(out, rank), alpha)
        for path, size, out in (("blocks.0.attn.to_out.0", 8, 8), ("blocks.1.proj_mlp", 8, 16))
    }


def same(one: dict[str, LoraWeights], two: dict[str, LoraWeights]) -> bool:
    return one.keys() == two.keys() and all(
        torch.allclose(one[path].change(), two[path].change(), atol=1e-5) for path in one
    )


def test_musubi_names_round_trip(tmp_path: Path) -> None:
    write_lora(tmp_path / "a.safetensors", to_default(weights()), metadata={"ss_steps": "1"})
    read = read_lora(tmp_path / "a.safetensors", TARGET)
    assert same(read.modules, weights())
    assert read.modules["blocks.1.proj_mlp"].alpha == 1.5
    assert read.unmatched == () and read.metadata["ss_steps"] == "1"
    stored = load_file(tmp_path / "a.safetensors")
    assert stored["lora_unet_blocks_0_attn_to_out_0.alpha"].shape == ()


@pytest.mark.parametrize(
    "prefix", ["diffusion_model.", "transformer.", "base_model.model.", "", "model.diffusion_model."]
)
@pytest.mark.parametrize(
    "halves", [("lora_A", "lora_B"), ("lora_down", "lora_up"), ("lora_A.default", "lora_B.default")]
)
def test_every_dotted_naming_is_read(tmp_path: Path, prefix: str, halves: tuple[str, str]) -> None:
    tensors = {}
    for path, entry in weights(alpha=3.0).items():
        tensors[f"{prefix}{path}.{halves[0]}.weight"] = entry.down
        tensors[f"{prefix}{path}.{halves[1]}.weight"] = entry.up
    save_file(tensors, tmp_path / "a.safetensors")
    assert same(read_lora(tmp_path / "a.safetensors", TARGET).modules, weights(alpha=3.0))


def test_double_underscore_prefix_of_wan_fun_loras(tmp_path: Path) -> None:
    save_file(to_default(weights(), prefix="lora_unet__"), tmp_path / "a.safetensors")
    assert same(read_lora(tmp_path / "a.safetensors", TARGET).modules, weights())


def test_names_come_from_the_model_not_from_underscores(tmp_path: Path) -> None:
    """The reference turns every `_` into `.` and loses proj_mlp and to_out.0."""
    save_file(to_default(weights()), tmp_path / "a.safetensors")
    read = read_lora(tmp_path / "a.safetensors", TARGET)
    assert set(to_other(read.modules)) == {
        f"diffusion_model.{path}.lora_{half}.weight" for path in weights() for half in "AB"
    }


def test_diffusers_names_go_through_rename(tmp_path: Path) -> None:
    def rename(name: str) -> str | None:
        return name.replace("layers.", "blocks.").replace("mlp_in", "proj_mlp") if name.startswith("layers.") else None

    entry = weights()["blocks.1.proj_mlp"]
    save_file(
        {
            "transformer.layers.1.mlp_in.lora_A.weight": entry.down,
            "transformer.layers.1.mlp_in.lora_B.weight": entry.up,
        },
        tmp_path / "a.safetensors",
    )
    read = read_lora(tmp_path / "a.safetensors", LoraTarget.of(DIT, rename=rename))
    assert list(read.modules) == ["blocks.1.proj_mlp"] and read.modules["blocks.1.proj_mlp"].alpha == 3.0


def test_other_format_folds_alpha_into_both_halves(tmp_path: Path) -> None:
    other = to_other(weights(), prefix="diffusion_model")
    down = weights()["blocks.1.proj_mlp"].down
    assert torch.allclose(other["diffusion_model.blocks.1.proj_mlp.lora_A.weight"], down * math.sqrt(0.5))
    assert not any("alpha" in name for name in other)
    write_lora(tmp_path / "a.safetensors", other, metadata={})
    assert same(read_lora(tmp_path / "a.safetensors", TARGET).modules, weights())


def test_hashes_are_those_of_the_file_without_foreign_metadata(tmp_path: Path) -> None:
    tensors = {"lora_unet_x.lora_down.weight": torch.randn(600, 600), "lora_unet_x.alpha": torch.tensor(1.0)}
    model_hash, legacy_hash = hashes(tensors, {"ss_a": "1", "modelspec.title": "not counted"})
    save_file(tensors, tmp_path / "plain.safetensors", metadata={"ss_a": "1"})
    content = (tmp_path / "plain.safetensors").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    assert model_hash == hashlib.sha256(content[start:]).hexdigest()
    assert legacy_hash == hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    write_lora(tmp_path / "a.safetensors", tensors, metadata={"ss_a": "1", "modelspec.title": "t"})
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.metadata()["sshs_model_hash"] == model_hash
        assert file.metadata()["sshs_legacy_hash"] == legacy_hash


def test_save_precision_and_no_temporary_left(tmp_path: Path) -> None:
    write_lora(tmp_path / "sub" / "a.safetensors", to_default(weights()), metadata={}, dtype=torch.bfloat16)
    assert {value.dtype for value in load_file(tmp_path / "sub" / "a.safetensors").values()} == {torch.bfloat16}
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a.safetensors"]


def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    write_lora(path, to_default(weights()), metadata={})
    before = path.read_bytes()

    def full(stream) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskError, match="No space left"):
        write_lora(path, to_default(weights(alpha=3.0)), metadata={})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


def test_unusable_files_are_named_with_a_reason(tmp_path: Path) -> None:
    def told(tensors: dict[str, torch.Tensor] | bytes | None, name: str = "a.safetensors") -> str:
        path = tmp_path / name
        path.unlink(missing_ok=True)
        if isinstance(tensors, bytes):
            path.write_bytes(tensors)
        elif tensors is not None:
            save_file(tensors, path)
        with pytest.raises(WeightsError) as caught:
            read_lora(path, TARGET)
        assert name in caught.value.message
        return caught.value.message + " " + caught.value.hint

    one = torch.ones(2, 2)
    assert "no such file" in told(None)
    assert "readable" in told(b"<html>not found</html>")
    assert "is a text file, not weights" in told(b"garbage", "a.pt")
    assert "another model family" in told({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": one})
    assert "lacks w1_b, w2_a, w2_b of its LoHa" in told({"lora_unet_blocks_0_down.hada_w1_a": one})
    assert "lacks w2_a, w2_b of its LoKr" in told({"lora_unet_blocks_0_down.lokr_w1": one})
    assert "OFT" in told({"lora_unet_blocks_0_down.oft_blocks": one})
    assert "one half" in told({"lora_unet_blocks_0_down.lora_down.weight": one})
    ranks = {
        "lora_unet_blocks_0_down.lora_down.weight": one,
        "lora_unet_blocks_0_down.lora_up.weight": torch.ones(2, 3),
    }
    assert "ranks 2 and 3" in told(ranks)


def test_keys_without_a_module_are_reported_not_fatal(tmp_path: Path) -> None:
    tensors = to_default(weights()) | {"lora_te_text_model.lora_down.weight": torch.ones(1, 1)}
    save_file(tensors, tmp_path / "a.safetensors")
    read = read_lora(tmp_path / "a.safetensors", TARGET)
    assert read.unmatched == ("lora_te_text_model.lora_down.weight",) and same(read.modules, weights())


def test_a_network_is_written_and_read_back(tmp_path: Path) -> None:
    lora = create(toy(), block_classes=["Block"], exclude=EXCLUDE, dim=2, alpha=4, conv_dim=2, seed=0)
    write_lora(tmp_path / "a.safetensors", lora.state(), metadata={"note": json.dumps([1])})
    read = read_lora(tmp_path / "a.safetensors", TARGET)
    again = create_like(toy(), read.modules, seed=7)
    again.load_state(to_default(read.modules))
    assert all(torch.equal(value, again.state()[name]) for name, value in lora.state().items())


def test_parameters_that_are_no_weights_are_changed_too(tmp_path: Path) -> None:
    """Distilled LoRAs of Wan change the modulation of each block: `.diff_m` of the block, or `.diff` of itself."""
    target = LoraTarget({"blocks.0": (), "blocks.0.q": (2, 2)}, bare=["blocks.0.modulation", "head.modulation"])
    tensors = {
        "diffusion_model.blocks.0.diff_m": torch.ones(6),
        "diffusion_model.head.modulation.diff": torch.ones(2),
        "lora_unet_blocks_0_q.w_norm": torch.ones(2, 2),
        "lora_unet_blocks_0_q.b_norm": torch.ones(2),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    read = read_lora(tmp_path / "a.safetensors", target)
    assert {name: tuple(value.shape) for name, value in read.differences.items()} == {
        "blocks.0.modulation": (6,), "head.modulation": (2,), "blocks.0.q.weight": (2, 2), "blocks.0.q.bias": (2,)
    }  # fmt: skip
    assert read.unmatched == () and not read.modules


def test_one_module_under_two_names_counts_once(tmp_path: Path) -> None:
    tensors = to_default(weights()) | to_other(weights(alpha=3.0))
    write_lora(tmp_path / "a.safetensors", tensors, metadata={})
    read = read_lora(tmp_path / "a.safetensors", TARGET)
    assert read.modules.keys() == weights().keys() and len(read.unmatched) in (4, 6)


@pytest.mark.parametrize("told", [{}, {"use_rslora": True}, {"alpha_pattern": {"proj_mlp": 9}}])
def test_peft_bias_of_the_up_half_counts_as_the_product_does(tmp_path: Path, told: dict) -> None:
    """PEFT 0.14 and newer, LoraConfig(lora_bias=True): result + scaling * lora_B(lora_A(x)), where B has a bias."""
    tensors, biases = {}, {path: torch.randn(entry.up.shape[0]) for path, entry in weights().items()}
    for path, entry in weights(rank=4).items():
        tensors |= {f"base_model.model.{path}.lora_A.weight": entry.down}
        tensors |= {f"base_model.model.{path}.lora_B.weight": entry.up}
        tensors |= {f"base_model.model.{path}.lora_B.bias": biases[path]}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6, **told}))
    read = read_lora(tmp_path, TARGET)
    assert read.unmatched == ()
    scales = {path: 6 / 2 if "use_rslora" in told else 6 / 4 for path in biases}
    scales |= {"blocks.1.proj_mlp": 9 / 4} if "alpha_pattern" in told else {}
    changed, before = toy(), toy()
    changed.load_state_dict({name: merger([(read, 0.5)])(name, value) for name, value in before.state_dict().items()})
    for path, entry in weights(rank=4).items():
        x = torch.randn(3, entry.down.shape[1])
        theirs = scales[path] * torch.nn.functional.linear(x @ entry.down.T, entry.up, biases[path])
        ours = changed.get_submodule(path)(x) - before.get_submodule(path)(x)
        assert torch.allclose(ours, 0.5 * theirs, atol=1e-4), path


@pytest.mark.parametrize("stabilised", [False, True])
def test_blissful_tuner_s_dora_and_rank_stabilised_lora(tmp_path: Path, stabilised: bool) -> None:
    """Two tensors about the whole file, in the number format of all others, and lengths under a name of its own."""
    told = {"use_rslora_flag": torch.tensor(stabilised).bfloat16(), "use_dora_flag": torch.tensor(True).bfloat16()}
    lengths = {path: torch.rand(entry.up.shape[0]) for path, entry in weights().items()}
    tensors = to_default(weights(rank=4, alpha=6.0))
    for path, length in lengths.items():
        tensors[f"lora_unet_{path.replace('.', '_')}.dora_layer.weight"] = length
    save_file(tensors | told, tmp_path / "a.safetensors")
    read = read_lora(tmp_path / "a.safetensors", TARGET)
    assert read.unmatched == ()
    for path, entry in weights(rank=4).items():
        found = read.modules[path]
        assert torch.allclose(found.change(), 6 / (2 if stabilised else 4) * entry.up @ entry.down, atol=1e-5)
        assert torch.equal(found.dora, lengths[path].unsqueeze(1))


def test_a_change_of_a_bias_that_the_model_lacks_is_told(tmp_path: Path) -> None:
    target = LoraTarget.of(torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False), torch.nn.Linear(2, 2, bias=False)))
    save_file(
        {"0.lora_A.weight": torch.ones(1, 3), "0.lora_B.weight": torch.ones(2, 1), "0.lora_B.bias": torch.ones(2),
         "1.diff_b": torch.ones(2)},
        tmp_path / "a.safetensors",
    )  # fmt: skip
    read = read_lora(tmp_path / "a.safetensors", target)
    assert read.modules.keys() == {"0"} and not read.differences
    assert set(read.unmatched) == {"0.lora_B.bias", "1.diff_b"}
