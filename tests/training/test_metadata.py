"""Metadata keys of LoRA files."""

from __future__ import annotations

import datetime
import json

from engine.training.metadata import ModelSpec, TrainingFacts, lora_metadata

REFERENCE_KEYS = """ss_session_id, ss_training_started_at, ss_training_finished_at, ss_output_name, ss_learning_rate,
ss_num_train_items, ss_num_batches_per_epoch, ss_num_epochs, ss_epoch, ss_steps, ss_gradient_checkpointing,
ss_gradient_checkpointing_cpu_offload, ss_gradient_accumulation_steps, ss_max_train_steps, ss_lr_warmup_steps,
ss_lr_scheduler, ss_base_model_version, ss_network_module, ss_network_dim, ss_network_alpha, ss_network_dropout,
ss_network_args, ss_mixed_precision, ss_seed, ss_training_comment, ss_optimizer, ss_max_grad_norm, ss_fp8_base,
ss_full_fp16, ss_full_bf16, ss_weighting_scheme, ss_logit_mean, ss_logit_std, ss_mode_scale, ss_guidance_scale,
ss_timestep_sampling, ss_sigmoid_scale, ss_discrete_flow_shift, ss_datasets, ss_sd_model_name, ss_vae_name"""


def facts(**values) -> TrainingFacts:
    given = {name: 1 for name in TrainingFacts.__dataclass_fields__} | {
        "base_model_version": "wan",
        "network_module": "networks.lora_wan",
        "network_args": json.dumps({"conv_dim": "4"}),
        "datasets": json.dumps([{"batch_size": 1}]),
    }
    return TrainingFacts(**{**given, **values})


SPEC = ModelSpec(
    architecture="wan2.1", implementation="https://github.com/Wan-Video/Wan2.1", title="mine", resolution=(832, 480)
)


def test_all_keys_of_the_reference_as_text() -> None:
    metadata = lora_metadata(facts(), SPEC, steps=120, epoch=3, now_s=1_700_000_000.5)
    expected = {key.strip() for key in REFERENCE_KEYS.replace("\n", " ").split(",")}
    assert {key for key in metadata if key.startswith("ss_")} == expected | {"ss_ema_decay"}  # which it has not
    assert all(isinstance(value, str) for value in metadata.values())
    assert (metadata["ss_steps"], metadata["ss_epoch"]) == ("120", "3")
    assert metadata["ss_training_finished_at"] == "1700000000.5"
    assert "ss_network_args" not in lora_metadata(facts(network_args=""), SPEC, steps=1, epoch=1)


def test_model_specification() -> None:
    metadata = lora_metadata(facts(), SPEC, steps=1, epoch=1, now_s=1_700_000_000.5)
    assert {key: value for key, value in metadata.items() if key.startswith("modelspec.")} == {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "wan2.1/lora",
        "modelspec.implementation": "https://github.com/Wan-Video/Wan2.1",
        "modelspec.title": "mine",
        "modelspec.resolution": "832x480",
        "modelspec.date": datetime.datetime.fromtimestamp(1_700_000_000).isoformat(),
    }
    spec = ModelSpec(
        architecture="wan2.1", implementation="", title="t", custom_architecture="mine", author="a", tags="x,y",
        resolution=(480, 832), timesteps=(0, 900),
    )  # fmt: skip
    metadata = lora_metadata(facts(), spec, steps=1, epoch=1)
    assert metadata["modelspec.architecture"] == "mine/lora"
    assert metadata["modelspec.resolution"] == "480x832" and metadata["modelspec.timestep_range"] == "0,900"
    assert metadata["modelspec.author"] == "a" and "modelspec.license" not in metadata


def test_no_metadata_keeps_what_a_reader_needs() -> None:
    metadata = lora_metadata(facts(), SPEC, steps=1, epoch=1, no_metadata=True)
    assert {key for key in metadata if key.startswith("ss_")} == {
        "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args"
    }  # fmt: skip
