"""Options as widgets and back: types, limits, the value that means "not given", and what comes over a link."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from .conftest import part

schema, widgets, words = part("engine.contract.schema"), part("nodes.widgets"), part("nodes.words")
opt = schema.opt


@dataclass(frozen=True, kw_only=True)
class Sample(schema.Section, title="Sample", accepted={"later": "nothing needs it"}):
    """Options of every kind."""

    steps: int = opt(20, "Steps.", low=1, high=100, unit="steps")
    rank: int | None = opt(None, "Rank. Default: 4.", low=1)
    blocks: int | None = opt(None, "Blocks to swap.", low=0, unit="blocks")
    rate: float = opt(2e-6, "Rate.", low=0)
    decay: float = opt(0.999, "Decay.", low=0, high=1)
    shift: float | None = opt(None, "Shift. Default: the task's.", low=0.0001, high=1000)
    warmup: int | float = opt(0, "Warmup.", low=0)
    quick: bool = opt(False, "Quick.")
    mode: Literal["a", "b"] = opt("b", "Mode.")
    way: Literal["x", "y"] | None = opt(None, "Way. Needs --steps.", advanced=True)
    video_size: tuple[int, int] = opt((256, 512), "Size.", low=16, metavar=("HEIGHT", "WIDTH"))
    negative_prompt: str | None = opt(None, 'Not this. Default: the family\'s own text; "" for none.')
    output_name: str = opt("lora", "Name.")
    vae: str | None = opt(None, "VAE.", file_kind="vae")
    anything: str | None = opt(None, "A class path.")
    later: int = opt(1, "Later.", low=0)


OPTIONS = {option.name: option for option in schema.options(Sample)}
MADE = {widget.id: widget for widget in widgets.of_options(OPTIONS.values())}


def options_of(**values: Any) -> dict[str, Any]:
    return widgets.to_options(MADE.values(), widgets.read(MADE.values(), values))


def test_kinds_and_limits() -> None:
    steps = MADE["steps"]
    assert (steps.kind, steps.default, steps.low, steps.high) == ("int", 20, 1, 100)
    assert (MADE["rate"].kind, MADE["rate"].step) == ("float", 1e-7)
    assert MADE["mode"].choices == ("a", "b") and MADE["mode"].default == "b"
    assert MADE["video_size_height"].step == 16


def test_common_ones_come_before_advanced_ones() -> None:
    assert list(MADE)[-1] == "way"


@pytest.mark.parametrize(
    ("name", "unset", "note"),
    [("rank", 0, "0: the default."), ("blocks", -1, "-1: off."), ("shift", 0.0, "0: the default.")],
)
def test_a_number_that_need_not_be_given(name: str, unset: float, note: str) -> None:
    assert MADE[name].default == MADE[name].unset == MADE[name].low == unset
    assert MADE[name].help.endswith(note)
    assert name not in options_of()


def test_a_default_is_shown_with_all_its_digits() -> None:
    assert MADE["decay"].step == pytest.approx(0.001)


def test_defaults_give_the_engines_defaults() -> None:
    found = options_of()
    assert schema.build((Sample,), found)[Sample] == Sample()
    assert found == {
        "steps": 20, "rate": 2e-6, "decay": 0.999, "warmup": 0.0, "quick": False, "mode": "b", "video_size": [256, 512],
        "output_name": "lora",
    }  # fmt: skip


def test_values_come_back_as_options(comfy: Path) -> None:
    (comfy / "models/vae/v.safetensors").write_text("v")
    found = options_of(rank=8, blocks=0, way="x", negative_prompt=" ", video_size_width=64, vae="v.safetensors")
    assert (found["rank"], found["blocks"], found["way"], found["negative_prompt"]) == (8, 0, "x", "")
    assert found["video_size"] == [256, 64]
    assert found["vae"] == str(comfy / "models/vae/v.safetensors")


def test_free_text_and_what_is_still_to_come_have_no_widget() -> None:
    assert "anything" not in MADE and "later" not in MADE
    assert widgets.unplaced(OPTIONS["anything"]) == "free text"
    assert widgets.left_out(OPTIONS["later"]) == "nothing needs it"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0), ("steps", 101), ("steps", 1.5), ("steps", "20"), ("steps", True), ("steps", [1]),
        ("rate", float("nan")), ("rate", float("inf")), ("rate", -1), ("quick", 1), ("mode", "c"), ("mode", 0),
        ("output_name", 5), ("output_name", "a\0b"), ("vae", "../x"),
    ],
)  # fmt: skip
def test_what_a_widget_could_not_have_given_is_refused(comfy: Path, name: str, value: Any) -> None:
    with pytest.raises(widgets.Refused) as caught:
        options_of(**{name: value})
    assert name in caught.value.message and caught.value.hint


def test_help_is_in_the_words_of_a_node() -> None:
    assert MADE["way"].help == "Way. Needs steps."
    assert MADE["blocks"].help == "Blocks to swap. -1: off."
    assert words.of_node("Give --image_path, not --lora_weight_high_noise.") == "Give image, not loras_high_noise."
    assert words.of_node("low-rank -- a dash") == "low-rank -- a dash"
    command = "Run `python -m env_bootstrap run -- cache-text wan --dataset_config a.toml …`."
    assert words.of_node(f"{command} Or leave out `--image_path`.") == f"{command} Or leave out `image`."


def test_a_switch_takes_its_own_cases_only() -> None:
    switch = part("nodes.dataset").config_node().inputs[0]
    read = widgets.read((switch,), {"source": {"source": "text", "text": "x", "folder": "ignored"}})
    assert read == {"source": {"source": "text", "text": "x"}}
    for value in (None, "text", {"source": "nothing"}, {}):
        with pytest.raises(widgets.Refused):
            widgets.read((switch,), {"source": value})
