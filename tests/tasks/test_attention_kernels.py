from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from engine.bench.files import Input, command_line, config_of, training_options
from engine.contract.cli import parse
from engine.contract.errors import OptionError
from engine.contract.events import Control
from engine.families import names, part
from engine.families.values import BenchSize
from engine.ops.attention_choice import Choice
from engine.tasks import attention_kernels, generate, studio, train
from engine.tasks.attention_kernels import settle_attention

DIT = SimpleNamespace(config=SimpleNamespace(head_dim=128))
GPU = torch.device("cuda", 0)


@pytest.fixture
def told(monkeypatch):
    """What is said for a backend, and what was tried out for it."""
    asked = []
    times = {False: {"cudnn": 0.4, "flash": 0.6, "efficient": 1.2}, True: {"cudnn": 2.0, "flash": 1.0}}

    def choose_kernel(device, dtype, head_dim, *, learning, file, clock):
        asked.append((dtype, head_dim, learning, file))
        return Choice("flash" if learning else "cudnn", times[learning], remembered=learning)

    monkeypatch.setattr(attention_kernels, "choose_kernel", choose_kernel)

    def tell(device=GPU, backend="auto", learning=False):
        said = []
        settle_attention(DIT, device, dtype=torch.bfloat16, backend=backend, learning=learning, say=said.append)
        return [event.message for event in said], asked

    return tell


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("MUSUBI_HOME", str(tmp_path))
    return tmp_path


def test_a_training_hears_of_both_ways(told, home):
    said, asked = told(learning=True)
    assert said == [
        "Attention: cuDNN, as just tried (0.40 ms; PyTorch's FlashAttention 0.60, "
        "PyTorch's memory-efficient attention 1.20).",
        "Attention and its gradients: PyTorch's FlashAttention, as tried here before (1.00 ms; cuDNN 2.00).",
    ]
    file = home / "attention.json"
    assert asked == [(torch.bfloat16, 128, False, file), (torch.bfloat16, 128, True, file)]


def test_a_generation_needs_no_gradients(told):
    said, asked = told()
    assert len(said) == len(asked) == 1


def test_a_kernel_that_was_asked_for_is_named_and_not_tried_out(told):
    assert told(backend="flash2", learning=True) == (["Attention: flash2."], [])


def test_8_bits_leave_short_texts_to_the_others(told):
    said, _ = told(backend="8bit")
    assert said[0] == "Attention: 8bit." and said[1].startswith("Attention to short texts: cuDNN")


def test_so_do_gradients_in_8_bits(told):
    said, _ = told(backend="8bit", learning=True)
    assert [message.partition(":")[0] for message in said] == [
        "Attention", "Attention to short texts", "Attention to short texts and its gradients",
    ]  # fmt: skip


def test_trying_out_8_bits_is_said_since_it_may_take_long(monkeypatch):
    said = []
    monkeypatch.setattr(attention_kernels, "check_backend", lambda *_, **how: said.append(how))
    for backend, device in (("8bit", "cuda"), ("8bit", "cpu"), ("auto", "cuda")):
        attention_kernels.check_attention(backend, torch.device(device), learning=True, say=said.append)
    first, *others = said
    assert first.message.startswith("Trying out attention in 8 bits") and others == [{"learning": True}] * 3


def test_a_device_without_the_gradients_is_refused_before_a_file_is_looked_at(tmp_path, monkeypatch):
    asked = []

    def check_backend(backend, device, *, learning):
        asked.append((backend, device.type, learning))
        raise OptionError("no kernels")

    monkeypatch.setattr(attention_kernels, "check_backend", check_backend)
    files = f"--dit {tmp_path}/no.safetensors --dataset_config {tmp_path}/no.toml --output_dir {tmp_path}"
    with pytest.raises(OptionError, match="no kernels"):
        run(train, f"train wan {files} --output_name x --attn_8bit --device cpu".split())
    assert asked == [("8bit", "cpu", True)]


def test_a_run_is_timed_in_milliseconds():
    assert 10 <= attention_kernels.milliseconds(lambda: time.sleep(0.01), torch.device("cpu")) < 1000


def test_a_cpu_has_no_choice(told):
    assert told(device=torch.device("cpu")) == ([], [])


def test_where_nothing_can_be_remembered_the_usual_kernel_stays(told, monkeypatch):
    monkeypatch.setattr(attention_kernels, "engine_home", lambda: None)
    assert told(learning=True) == ([], [])


@pytest.mark.parametrize("family", names(extra=False))
def test_trainings_and_generations_settle_it_before_their_first_step(family, tmp_path, monkeypatch):
    asked = []

    def settle(dit, device, *, dtype, backend, learning, say):
        asked.append((type(dit).__name__, dit.config.head_dim > 0, device.type, dtype, backend, learning))

    for module in (studio, train):
        monkeypatch.setattr(module, "settle_attention", settle)
    tiny = part(family, "tiny")
    tiny.write_tiny_models(tmp_path / "models")
    models = tiny.tiny_model_options(tmp_path / "models")
    given = Input(BenchSize(height=48, width=64, frames=9), window=2)
    config = config_of(family, models["train"]["dit"])
    options = training_options(family, tmp_path / "training", given, config, steps=1, on_gpu=False)
    bf16 = ("--mixed_precision", "bf16", "--sdpa", "--device", "cpu")
    run(train, command_line("train", family, {**options, **models["train"]}, bf16))
    own = "--prompt a --video_size 48 64 --infer_steps 1 --output_type latent --device cpu".split()
    run(generate, command_line("generate", family, {**models["generate"], "save_path": tmp_path / "out"}, own))
    name = asked[0][0]
    assert asked == [
        (name, True, "cpu", torch.bfloat16, "sdpa", True),
        (name, True, "cpu", torch.float32, "auto", False),
    ]


def run(task, words):
    job = parse([*map(str, words)])
    assert job is not None
    task.run(job, lambda event: None, Control())
