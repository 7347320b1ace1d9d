"""Optional packages: what there is and where, adding, keeping, taking out, and what a failure leaves."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from engine.contract.packages import OPTIONAL
from env_bootstrap import extras, maker, plan, stamp
from env_bootstrap.extras import BY_NAME, EXTRAS
from env_bootstrap.home import REQUIREMENTS, Home
from env_bootstrap.problems import Problem

from .conftest import NVIDIA_SMI, World

NETWORK = ["ERROR: host='x.example', port=443): Failed to establish a new connection"]
Say = pytest.CaptureFixture[str]


def optional(world: World, capsys: Say) -> dict[str, dict[str, Any]]:
    """The optional packages as `status` has them."""
    capsys.readouterr()
    world.main("status", "--json", "--quick")
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)["extras"]}


# ------------------------------------------------------------------------------------------------ the declaration


@pytest.mark.parametrize("extra", EXTRAS, ids=lambda extra: extra.name)
def test_each_has_a_pinned_line_and_says_what_it_is_for(extra: extras.Extra) -> None:
    assert extra.requirement.startswith(extra.name) and extra.purpose and extra.wanted_by
    for builder in extra.builders:
        assert f"\n{builder}==" in (REQUIREMENTS / "extras.txt").read_text()


def test_the_engine_names_exactly_these() -> None:
    assert {extra.module: extra.name for extra in EXTRAS} == OPTIONAL


def test_package_and_module_name_the_same() -> None:
    assert extras.named(["Flash_Attn", "prodigyplus", "flash-attn"]) == [
        BY_NAME["flash-attn"],
        BY_NAME["prodigy-plus-schedule-free"],
    ]


def test_an_unknown_name_is_answered_with_all_of_them() -> None:
    with pytest.raises(Problem, match="no optional package wandv") as caught:
        extras.named(["wandb", "wandv"])
    assert caught.value.hint.startswith("Did you mean wandb? There are: bitsandbytes, ")


@pytest.mark.parametrize(
    ("name", "build", "system", "machine", "why"),
    [
        ("wandb", "cpu", "darwin", "arm64", ""),
        ("bitsandbytes", "cpu", "linux", "aarch64", ""),
        ("xformers", "cu130", "linux", "x86_64", ""),
        ("xformers", "cu130", "linux", "aarch64", "there is none for aarch64 processors"),
        ("xformers", "default", "darwin", "arm64", "there is none for macOS"),
        ("sageattention", "cpu", "win32", "AMD64", "it needs an NVIDIA GPU, and PyTorch here is the cpu build"),
        ("triton-windows", "cu130", "linux", "x86_64", "there is none for Linux"),
        ("triton-windows", "cu130", "win32", "AMD64", ""),
        ("flash-attn", "cu126", "win32", "AMD64", "there is none for Windows"),
    ],
)
def test_where_each_can_be_had(name: str, build: str, system: str, machine: str, why: str) -> None:
    assert BY_NAME[name].obstacle(build, system=system, machine=machine) == why


def test_what_is_compiled_here_needs_the_compiler(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    variables = {"PATH": "", "CUDA_HOME": str(tmp_path)}
    with pytest.raises(Problem, match="nvcc, which compiles it"):
        extras.refuse_impossible([BY_NAME["flash-attn"]], "cu130", variables)
    (tmp_path / "bin" / "nvcc").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "nvcc").chmod(0o755)
    extras.refuse_impossible([BY_NAME["flash-attn"]], "cu130", variables)


# ---------------------------------------------------------------------------------------------------------- adding


def test_added_recorded_and_listed(world: World, capsys: Say) -> None:
    world.main("create")
    made = world.stamp()["made"]
    assert optional(world, capsys)["wandb"]["add"] == "python -m env_bootstrap add wandb"
    assert world.main("add", "wandb", "bitsandbytes") == 0
    said = capsys.readouterr().err
    assert "[1/2] wandb==" in said and "[2/2] bitsandbytes==" in said and "added: wandb 0." in said
    assert world.stamp()["ready"] and world.stamp()["extras"] == ["wandb", "bitsandbytes"]
    assert world.stamp()["made"] == made
    row = optional(world, capsys)["wandb"]
    assert row["version"] == world.stamp()["versions"]["wandb"] and row["add"] == row["obstacle"] == ""
    world.main("status", "--quick")
    table = capsys.readouterr().out
    assert "optional  add one with: python -m env_bootstrap add NAME\n" in table
    assert sum(line.split()[:1] == ["wandb"] for line in table.splitlines()) == 1


def test_all_other_versions_are_held_fast(world: World) -> None:
    """Adding something must not bring another numpy or protobuf into an environment that works."""
    world.main("create")
    world.main("add", "wandb")
    words = world.installs()[-1]
    held = {Path(words[index + 1]).stem for index, word in enumerate(words) if word == "-c"}
    assert held == {"torch", "base", "constraints", "extras"}


def test_adding_again_starts_nothing(world: World, capsys: Say) -> None:
    world.main("add", "wandb")
    world.forget_calls()
    assert world.main("add", "wandb") == 0 and world.calls() == []
    assert "already there: wandb" in capsys.readouterr().err


def test_for_a_program_it_speaks_the_engine_s_protocol(world: World, capsys: Say) -> None:
    world.main("create")
    capsys.readouterr()
    assert world.main("add", "wandb", "--events") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[0]["event"] == "hello" and events[-1]["event"] == "done"
    assert [event["name"] for event in events if event["event"] == "stage"] == ["add wandb"]


def test_an_environment_with_the_test_packages_keeps_them(world: World) -> None:
    world.main("create", "--with_tests")
    world.forget_calls()
    assert world.main("add", "wandb") == 0 and len(world.installs()) == 1
    world.forget_calls()
    assert world.main("create", "--with_tests") == 0 and world.calls() == []


def test_what_is_compiled_here_is_compiled_anew_for_another_torch(world: World) -> None:
    world.script("nvidia-smi", NVIDIA_SMI)
    world.script("nvcc", "exit 0\n")
    world.set(device="NVIDIA X")
    world.environment["MUSUBI_TORCH"] = "cu130"
    assert world.main("add", "flash-attn") == 0
    first, second = world.installs()[-2:]
    assert {"wheel", "ninja"} <= set(first)
    assert {"flash-attn==2.8.3.post2", "--no-build-isolation", "--no-cache-dir", "--force-reinstall"} <= set(second)
    world.forget_calls()
    world.environment["MUSUBI_TORCH"] = "cu126"
    assert world.main("create") == 0
    assert any("--no-build-isolation" in words for words in world.installs())


def test_without_an_environment_it_is_made_first(world: World, capsys: Say) -> None:
    assert world.main("add", "wandb") == 0
    assert world.stamp()["ready"] and "wandb" in world.stamp()["versions"]
    assert "[5/5] wandb==" in capsys.readouterr().err


def test_what_cannot_be_had_here_is_refused_before_anything_is_made(world: World, capsys: Say) -> None:
    assert world.main("add", "wandb", "xformers") == 2
    assert "error: xformers cannot be had here: " in capsys.readouterr().err
    assert not world.home.env.exists() and world.installs() == []


def test_a_failure_leaves_an_environment_that_works(world: World, capsys: Say) -> None:
    world.main("create")
    world.set(install=[{"match": "wandb==", "lines": NETWORK, "status": 1}])
    assert world.main("add", "bitsandbytes", "wandb", "schedulefree") == 1
    assert "no connection to x.example" in capsys.readouterr().err
    assert world.stamp()["extras"] == ["bitsandbytes"] and world.main("status", "--quick") == 0
    world.forget_calls()
    assert world.main("create") == 0 and world.calls() == []


def test_what_cannot_be_imported_is_taken_out_again(world: World, capsys: Say) -> None:
    world.main("create")
    world.set(imports_failed=["wandb"])
    assert world.main("add", "wandb") == 1
    assert "cannot be imported: ModuleNotFoundError: gone. It is out again." in capsys.readouterr().err
    assert "wandb" not in world.stamp()["versions"] and world.main("status", "--quick") == 0


def test_killed_while_adding_the_environment_works_and_create_goes_on(world: World) -> None:
    world.main("create")
    world.set(install=[{"match": "wandb==", "half": "wandb", "sleep": 20, "once": True}])
    child = world.start("add", "wandb")
    world.wait_for(world.folder / "busy")
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert world.main("status", "--quick") == 0
    assert world.main("create", "--timeout", "5") == 0
    assert world.stamp()["versions"]["wandb"] != "0.0" and world.stamp()["extras"] == ["wandb"]


# --------------------------------------------------------------------------------------------------------- keeping


def test_a_changed_pin_installs_it_anew_with_the_next_create(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.main("add", "wandb")
    world.forget_calls()
    real = extras._lines
    monkeypatch.setattr(extras, "_lines", lambda: [line.replace("wandb==0", "wandb==9") for line in real()])
    assert world.main("create") == 0
    assert [words for words in world.installs() if any(word.startswith("wandb==9") for word in words)]
    assert world.stamp()["versions"]["wandb"].startswith("9")


def test_an_environment_built_anew_has_it_again(world: World) -> None:
    world.main("add", "wandb")
    assert world.main("repair", "--rebuild") == 0
    assert "wandb" in world.stamp()["versions"] and world.stamp()["extras"] == ["wandb"]


def test_killed_while_building_anew_it_is_still_known(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.main("add", "wandb")

    def killed(home: Home) -> None:
        if list(home.path.glob(f"{maker.GRAVE}*")):
            raise SystemExit(9)

    monkeypatch.setattr(maker, "_bury", killed)
    with pytest.raises(SystemExit):
        world.main("repair", "--rebuild")
    monkeypatch.undo()
    assert world.main("create") == 0
    assert "wandb" in world.stamp()["versions"]


def test_what_can_no_longer_be_had_is_a_warning_once(world: World, capsys: Say) -> None:
    world.main("add", "wandb")
    world.set(install=[{"match": "wandb==", "lines": NETWORK, "status": 1}])
    assert world.main("repair", "--rebuild") == 0
    assert "warning: wandb is left out" in capsys.readouterr().err
    world.forget_calls()
    assert world.main("create") == 0 and world.calls() == []
    assert optional(world, capsys)["wandb"]["add"]
    world.set(install=[])
    assert world.main("repair") == 0
    assert "wandb" in world.stamp()["versions"]


def test_a_name_that_the_pack_no_longer_knows_is_no_matter(world: World) -> None:
    world.main("create")
    have = stamp.load(world.home.stamp)
    assert have
    have.extras = ["of_old"]
    stamp.save(have, world.home.stamp)
    assert world.main("create") == 0 and world.main("status", "--quick") == 0


def test_a_gpu_s_own_come_unasked_and_are_not_recorded(world: World) -> None:
    world.script("nvidia-smi", NVIDIA_SMI)
    world.set(device="NVIDIA X")
    assert world.main("create") == 0
    assert {"bitsandbytes", "sageattention"} <= set(world.stamp()["versions"]) and world.stamp()["extras"] == []
    assert not plan.to_add(stamp.load(world.home.stamp) or stamp.Stamp())


# --------------------------------------------------------------------------------------------------------- removing


def test_taken_out_and_forgotten(world: World, capsys: Say) -> None:
    world.main("add", "wandb")
    assert world.main("remove", "wandb") == 0
    assert "removed: wandb" in capsys.readouterr().err
    assert world.stamp()["extras"] == [] and "wandb" not in world.stamp()["versions"]
    assert world.main("status", "--quick") == 0
    world.forget_calls()
    assert world.main("create") == 0 and world.calls() == []


def test_removing_from_nothing_is_one_line(world: World, capsys: Say) -> None:
    assert world.main("remove", "wandb") == 2
    assert "There is no environment at" in capsys.readouterr().err
