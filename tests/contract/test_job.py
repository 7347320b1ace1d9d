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
from engine.families.wan.variants import TASKS

from .lines import job_of

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
    if name != "compile_args":
        assert (name in data) == (not option.secret)


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
        ("command = 'train'\nfamily = 'wan'\nevents = true", "events applies to a single run"),
        ("command = 3", "command in .* needs text"),
    ):
        path.write_text(text + "\n", encoding="utf-8")
        with pytest.raises(OptionError, match=message):
            load_job(path)


FAMILIES = {
    "wan": "--t5 t",
    "hunyuan-video": "--text_encoder1 a --text_encoder2 b",
    "framepack": "--text_encoder1 a --text_encoder2 b --image_encoder i",
}
GENERATIONS = [
    *(("wan", f"--task {task} --prompt p") for task in TASKS),
    ("wan", "--task i2v-14B --video_size 480 832 --prompt p"),
    ("wan", "--task i2v-14B --one_frame_inference target_index=1 --prompt p"),
    ("wan", "--from_file p.txt"),
    ("wan", "--interactive --infer_steps 7"),
    ("wan", "--latent_path l --prompt p"),
    ("hunyuan-video", "--prompt p"),
    ("hunyuan-video", "--prompt p --image_path i.png"),
    ("hunyuan-video", "--from_file p.txt"),
    ("framepack", "--prompt p --image_path i.png"),
    ("framepack", "--prompt p --video_sections 3"),
    ("framepack", "--prompt p --video_length 73 --f1"),
    ("framepack", "--prompt p --one_frame_inference default"),
    ("framepack", "--from_file p.txt"),
]


def generation(family: str, more: str) -> Job:
    words = shlex.split(f"generate {family} --dit d --vae v --save_path o {FAMILIES[family]} {more}")
    return job_of(words)


@pytest.mark.parametrize(("family", "more"), GENERATIONS, ids=[f"{family} {more}" for family, more in GENERATIONS])
def test_a_generation_is_written_down_with_what_was_left_open(family: str, more: str, tmp_path: Path) -> None:
    job = generation(family, more)
    written = _parsed(job.to_toml())
    assert {"infer_steps", "guidance_scale", "negative_prompt"} <= written.keys()
    (tmp_path / "job.toml").write_text(job.to_toml(), encoding="utf-8")
    again = job_of(["generate", "--config_file", str(tmp_path / "job.toml")])
    assert again == job and again.to_toml() == job.to_toml()


def test_what_a_task_decides_stands_in_the_job() -> None:
    def of(more: str, *names: str) -> tuple[Any, ...]:
        values = generation("wan", more).values()
        return tuple(values[name] for name in names)

    four = ("infer_steps", "guidance_scale", "flow_shift", "video_length")
    assert of("--task t2v-14B --prompt p", *four) == (50, 5.0, 5.0, 81)
    assert of("--task i2v-14B --prompt p", *four) == (40, 5.0, 5.0, 81)
    assert of("--task i2v-14B --prompt p --video_size 480 832", *four) == (40, 5.0, 3.0, 81)
    assert of("--task t2i-14B --prompt p", *four) == (50, 5.0, 5.0, 1)
    assert of("--task i2v-14B --one_frame_inference target_index=1 --prompt p", "video_length") == (1,)
    assert of("--prompt p --infer_steps 7 --negative_prompt ''", "infer_steps", "negative_prompt") == (7, "")
    (plain,), (two,) = of("--prompt p", "negative_prompt"), of("--task flf2v-14B --prompt p", "negative_prompt")
    assert two.endswith(plain) and len(two) > len(plain) > 100
    # a line of a prompt file may have another size or be a single frame, and then another shift or length
    assert of("--from_file p.txt", *four) == (50, 5.0, None, None)


def test_what_the_other_families_decide_stands_in_the_job() -> None:
    values = generation("framepack", "--prompt p").values()
    assert (values["infer_steps"], values["guidance_scale"], values["negative_prompt"]) == (25, 1.0, "")
    assert (values["video_length"], values["video_seconds"], values["flow_shift"]) == (None, 5.0, None)
    assert generation("framepack", "--prompt p --one_frame_inference default").values()["video_length"] == 1
    assert generation("hunyuan-video", "--prompt p").values()["dit_in_channels"] is None  # the file says
    assert generation("hunyuan-video", "--prompt p --image_path i.png").values()["dit_in_channels"] == 32


def test_what_a_training_leaves_open_stands_in_the_job() -> None:
    job = job_of([*shlex.split(TRAIN), *"--logging_dir l --output_name cat".split()])
    written = _parsed(job.to_toml())
    assert (written["network_dim"], written["log_with"], written["metadata_title"]) == (4, "tensorboard", "cat")
    kept = job_of([*shlex.split(TRAIN), *"--save_every_n_steps 5 --save_last_n_steps 9".split()])
    assert _parsed(kept.to_toml())["save_last_n_steps_state"] == 9
    ranks = job_of([*shlex.split(TRAIN), *"--network_weights w --dim_from_weights".split()])
    assert ranks.values()["network_dim"] is None and ranks[Network].rank == 4


def test_a_secret_is_known_to_the_job_and_stands_nowhere() -> None:
    plain = [*shlex.split(TRAIN), *"--huggingface_repo_id a/b --log_with wandb".split()]
    job = job_of([*plain, *"--huggingface_token hf_x --wandb_api_key wb_x".split()])
    assert job.values()["huggingface_token"] == "hf_x" and job.values()["wandb_api_key"] == "wb_x"
    assert "_x" not in job.to_toml() and "_x" not in str(job.shown()) and job == job_of(plain)


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
    (tmp_path / "job.toml").touch()
    with pytest.raises(OptionError, match="cannot read TOML") as caught:
        toml.load(tmp_path / "job.toml")
    assert "tomli" in caught.value.hint


def test_musubi_s_table_headings_mean_nothing() -> None:
    assert toml.flat({"a": 1, "t": {"b": 2}, "u": {"c": [3]}}, "x") == {"a": 1, "b": 2, "c": [3]}
    assert all(sign in string.printable for sign in toml.line("k", "é\n\x01").replace("é", "e"))
