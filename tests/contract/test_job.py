"""A job can be written down and gives the identical job again."""

from __future__ import annotations

import os
import shlex
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.contract import cli, toml
from engine.contract.commands import find, sections_of
from engine.contract.errors import OptionError
from engine.contract.job import Job, load_job, make_job
from engine.contract.options import Data, Memory, Models, Network, Prompting, Run, TrainingMemory
from engine.contract.schema import Option, listed

TRAIN = "train wan --dit d.safetensors --dataset_config data.toml"
BASES: dict[str, dict[str, Any]] = {
    "cache-latents": {"dataset_config": "c", "vae": "v"},
    "cache-text": {"dataset_config": "c", "t5": "t"},
    "train": {"dataset_config": "c", "dit": "d"},
    "generate": {"dit": "d", "vae": "v", "t5": "t", "save_path": "o", "prompt": "p", "lora_weight": ["a"]},
}


def another(option: Option) -> Any:
    """A valid value that is not the default."""
    if option.choices:
        one: Any = next(choice for choice in option.choices if choice != option.default)
    else:
        low = 1 if option.low is None else option.low
        number = min(low + 16, low + 1 if option.high is None else option.high)
        one = {"str": f"some {option.name} \\ \"text\"", "bool": not option.default, "int": int(number),
               "float": number * 0.75 + 0.1, "number": 0.25}[option.kind]  # fmt: skip
    if option.key_values:
        one = "key=value"
    return [one] * (option.count or 1) if option.many else one


SPECIAL = {
    "video_size": [480, 832], "video_length": 17, "network_module": "networks.loha", "lr_scheduler": "cosine",
    "output_name": "x", "compile_args": ["a", "default", "True", "False"],
}  # fmt: skip
CASES = [
    (verb, name)
    for verb in BASES
    for name, option in listed(sections_of(find(verb), "wan")).items()
    if not option.transient
]


@pytest.mark.parametrize(("verb", "name"), CASES, ids=lambda value: str(value))
def test_each_option_survives_being_written_down(verb: str, name: str) -> None:
    command = find(verb)
    option = listed(sections_of(command, "wan"))[name]
    value = SPECIAL[name] if name in SPECIAL else another(option)
    try:
        job = make_job(command, "wan", {**BASES[verb], name: value})
    except OptionError as error:
        assert error.names, error.message  # a rule between options, which says which ones
        return
    data = toml.flat(_parsed(job.to_toml()), "job.toml")
    assert (data.pop("command"), data.pop("family")) == (verb, "wan")
    again = make_job(command, "wan", data)
    assert again == job and again.to_toml() == job.to_toml()
    if not option.pending and name != "compile_args":
        assert name in data


def _parsed(text: str) -> dict[str, Any]:
    return dict(toml._parser().loads(text))


TEXTS = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cs"]))


@given(
    st.one_of(
        TEXTS,
        st.booleans(),
        st.integers(-(2**63), 2**64),
        st.lists(TEXTS),
        st.floats(allow_nan=False, allow_infinity=False),
    )
)
def test_any_value_survives_toml(value: Any) -> None:
    assert _parsed(toml.line("key", value))["key"] == value


@given(TEXTS)
def test_a_prompt_of_any_signs_survives_the_job_file(prompt: str) -> None:
    job = make_job(find("generate"), "wan", {**BASES["generate"], "prompt": prompt})
    assert _parsed(job.to_toml())["prompt"] == job[Prompting].prompt == prompt


def test_a_section_is_found_by_its_shared_base() -> None:
    job = cli.parse([*shlex.split(TRAIN), "--blocks_to_swap", "3"])
    assert job is not None
    assert job[Memory].blocks_to_swap == 3 and job[Memory] is job[TrainingMemory]
    assert job[Network].network_module == "networks.lora_wan" and Models in job and Prompting not in job
    with pytest.raises(KeyError, match="`train wan` has no options Prompting"):
        job[Prompting]


def test_a_job_file_tells_its_own_command(tmp_path: Path) -> None:
    job = cli.parse([*shlex.split(TRAIN), "--learning_rate", "1e-4"])
    assert job is not None
    (tmp_path / "job.toml").write_text(job.to_toml(), encoding="utf-8")
    loaded = load_job(tmp_path / "job.toml")
    assert loaded == job and loaded.name == "train wan"
    assert cli.parse(["train", "--config_file", str(tmp_path / "job")]) == job


def test_load_job_refuses_what_it_cannot_know_or_do(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    for text, message in (
        ("dit = 'd'", "does not say which command"),
        ("command = 'train'\ndit = 'd'", "does not say which model family"),
        (
            "command = 'train'\nfamily = 'wan'\ndit = 'd'\ndataset_config = 'c'\ndit_high_noise = 'x'",
            "Not available yet: --dit_high",
        ),
        ("command = 'train'\nfamily = 'wan'\nevents = true", "events is about one run"),
        ("command = 3", "command in .* needs text"),
    ):
        path.write_text(text + "\n", encoding="utf-8")
        with pytest.raises(OptionError, match=message):
            load_job(path)


def test_what_is_about_one_run_is_not_part_of_the_job() -> None:
    plain = cli.parse(shlex.split(TRAIN))
    talking = cli.parse([*shlex.split(TRAIN), "--events"])
    assert isinstance(plain, Job) and isinstance(talking, Job)
    assert talking[Run].events and talking == plain and "events" not in talking.to_toml()


def test_commands_with_a_family_among_their_options() -> None:
    job = cli.parse(["dataset", "check", "--dataset_config", "d.toml"])
    assert job is not None and (job.family, job.name, job[Data].dataset_config) == ("wan", "dataset check", "d.toml")
    again = make_job(job.command, None, {"dataset_config": "d.toml", "family": "wan"})
    assert again == job and 'family = "wan"' in job.to_toml()


def test_a_printed_job_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    words = [*shlex.split("generate wan --dit d --vae v --t5 t --save_path o --print_config --prompt"), "猫 läuft"]
    code = f"from engine.__main__ import main; main({words!r})"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    pack = Path(cli.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=pack, env=environment, capture_output=True, check=True)
    assert _parsed(done.stdout.decode("utf-8"))["prompt"] == "猫 läuft"


def test_a_python_without_a_toml_reader_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tomllib", None)
    monkeypatch.setitem(sys.modules, "tomli", None)
    with pytest.raises(OptionError, match="cannot read TOML") as caught:
        toml.load(tmp_path / "job.toml")
    assert "tomli" in caught.value.hint


def test_musubi_s_table_headings_mean_nothing() -> None:
    assert toml.flat({"a": 1, "t": {"b": 2}, "u": {"c": [3]}}, "x") == {"a": 1, "b": 2, "c": [3]}
    assert all(sign in string.printable for sign in toml.line("k", "é\n\x01").replace("é", "e"))
