"""One value: words to types, steps or shares, key=value pairs."""

from __future__ import annotations

import pytest

from engine.contract.errors import OptionError
from engine.contract.schema import Option
from engine.contract.values import Place, checked, from_words, limits, pairs, span

STEPS = Option("lr_warmup_steps", "number", 0, "Warm up.", low=0)
PLACE = Place("lr_warmup_steps")


@pytest.mark.parametrize(
    ("word", "value"), [("100", 100), ("0.05", 0.05), ("5%", 0.05), ("0", 0), ("12.5%", 0.125), ("1", 1)]
)
def test_steps_may_be_a_number_a_share_or_a_percentage(word: str, value: float) -> None:
    found = checked(STEPS, from_words(STEPS, [word], PLACE), PLACE)
    assert found == value and type(found) is type(value)
    assert checked(STEPS, word if word.endswith("%") else found, PLACE) == value


@pytest.mark.parametrize("word", ["1.5", "100%", "ten", "-3"])
def test_steps_that_are_neither_are_refused(word: str) -> None:
    with pytest.raises(OptionError, match="lr_warmup_steps"):
        checked(STEPS, from_words(STEPS, [word], PLACE), PLACE)


def test_pairs_are_read_as_python_literals_or_text() -> None:
    given = ["weight_decay=0.01", "betas=(0.9,0.95)", "b=0.9,0.999", "name=adam", "x=[r'.*a\\.\\d{2}.*']", "t=True"]
    assert pairs(given) == {
        "weight_decay": 0.01, "betas": (0.9, 0.95), "b": (0.9, 0.999), "name": "adam", "x": [r".*a\.\d{2}.*"],
        "t": True,
    }  # fmt: skip


def test_a_pair_needs_its_sign() -> None:
    option = Option("network_args", "str", (), "Args.", many=True, key_values=True)
    with pytest.raises(OptionError, match=r"takes key=value pairs, but was given 'loraplus'"):
        checked(option, ["a=1", "loraplus"], Place("network_args"))


def test_a_windows_path_eaten_by_toml_escapes_is_noticed() -> None:
    option = Option("dit", "str", None, "File.", nullable=True, file_kind="dit")
    with pytest.raises(OptionError, match="control character") as caught:
        checked(option, "C:\foo", Place("dit", "job.toml"))
    assert "single quotes" in caught.value.hint


def test_a_path_that_no_job_file_can_hold_is_refused() -> None:
    option = Option("dit", "str", None, "File.", nullable=True, file_kind="dit")
    with pytest.raises(OptionError, match=r"--dit holds bytes that are not UTF-8.*caf\\udce9") as caught:
        checked(option, b"caf\xe9/dit.safetensors".decode("utf-8", "surrogateescape"), Place("dit"))
    assert "Rename" in caught.value.hint


def test_words_of_a_flag_are_counted() -> None:
    text = Option("prompt", "str", None, "Text.", nullable=True)
    with pytest.raises(OptionError, match="needs one value, but none follows"):
        from_words(text, [], Place("prompt"))
    flag = Option("dry", "bool", False, "Dry.")
    assert from_words(flag, [], Place("dry")) is True and from_words(flag, ["false"], Place("dry")) is False


def test_limits_as_a_person_reads_them() -> None:
    seed = Option("seed", "int", None, "Seed.", low=0, high=2**64 - 1)
    assert limits(seed) == "from 0 to 18446744073709551615" and span(seed) == ""
