"""`plan` where main memory is short: streamed blocks on disk, and what of them goes to a scratch file."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from engine.contract import cli
from engine.contract.events import Control
from engine.contract.options import Memory
from engine.memory.estimate import GIB
from engine.parts.scratch_place import scratch_free
from engine.tasks import fitting, plan
from tests.tasks.planned_jobs import generation_line, planned, training_line, worst

pytestmark = pytest.mark.usefixtures("machine")
FROM_DISK = ("--blocks_to_swap", "40", "--block_swap_from_disk")


def test_too_little_main_memory_is_said(headers, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "main_memory", lambda: 3.5 * GIB)
    found = planned([*training_line(headers, tmp_path, "wan-14b", (480, 832, 33)), "--vram", "12GB"])
    assert not found.fits and "GiB of main memory free it would fit" in plan.verdict(found)


@pytest.mark.parametrize("main", [48, 32, 16, 8])
def test_where_main_memory_is_short_streamed_blocks_stay_on_disk(headers, tmp_path, monkeypatch, main):
    """A 14B in 16 bits takes 27 GiB there, in fp8 14."""
    line = [*training_line(headers, tmp_path, "wan-14b", (480, 832, 33)), "--vram", "12GB"]
    much = planned(line).options
    monkeypatch.setattr(fitting, "main_memory", lambda: main * GIB)
    found = planned(line)
    assert found.fits and max(stage.main_bytes for stage in found.planned) <= main * GIB
    assert ("block_swap_from_disk" in found.options) == (main < 17) == ("read from disk" in plan.verdict(found))
    assert "block_swap_from_disk" not in much and (found.options == much) == (main == 48)
    videos = planned([*generation_line(headers, tmp_path, "wan-14b", (480, 832, 33)), "--vram", "6GB"])
    assert videos.fits and ("block_swap_from_disk" in videos.options) == (main < 17)


def test_an_expert_that_waits_leaves_its_streamed_blocks_on_disk(headers, tmp_path):
    line = training_line(
        headers, tmp_path, "wan-14b", (480, 832, 33), "--blocks_to_swap", "20", "--block_swap_from_disk"
    )
    line[line.index("t2v-14B")] = "t2v-A14B"
    line += ["--dit_high_noise", f"{headers}/wan21_t2v_14b.safetensors"]
    both, one = worst(line), worst([*line, "--offload_inactive_dit"])
    assert "idle expert" not in both.main and one.main["idle expert"] == both.device["idle expert"] < 14 * GIB
    assert both.main["buffers of streamed blocks"] == pytest.approx(2 * 0.65 * GIB, rel=0.02)


def test_from_disk_without_a_number_of_blocks(headers, tmp_path):
    """The plan chooses how many, without main memory being short; none where all fits."""
    for line in (training_line, generation_line):
        words = [*line(headers, tmp_path, "wan-14b", (480, 832, 33)), "--block_swap_from_disk", "--memory", "auto"]
        found = planned([*words, "--vram", "12GB"])
        assert found.fits and found.options["blocks_to_swap"] and found.job[Memory].streams_from_disk
        assert not {"block_swap_from_disk", "use_pinned_memory_for_block_swap"} & found.options.keys()
        assert not any("weights of streamed blocks" in stage.main for stage in found.planned)
        assert not planned([*words, "--vram", "80GB"]).job[Memory].streams_from_disk


# ---------------------------------------------------------------------------------------------------- the scratch file


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """A folder for scratch files that is still to be made, and how much its disk has free."""
    monkeypatch.setenv("MUSUBI_SCRATCH", str(tmp_path / "not" / "yet"))
    return lambda free: monkeypatch.setattr(fitting, "scratch_free", lambda: free)


def test_what_goes_to_a_scratch_file_is_told_and_where(headers, tmp_path, capsys, scratch):
    scratch(100 * GIB)
    line = training_line(headers, tmp_path, "wan-14b", (480, 832, 33), *FROM_DISK)
    assert not planned([*line, "--vram", "16GB"]).scratch, "an unchanged checkpoint is read where it lies"
    job = cli.parse(["plan", *line, "--fp8_scaled", "--vram", "16GB"])
    plan.run(job, lambda event: None, Control())
    printed = capsys.readouterr().out
    assert f"take 13.1 GiB in a scratch file in {tmp_path / 'not' / 'yet'}." in printed
    assert "scratch file on disk" in printed and not (tmp_path / "not").exists()
    event = plan.event_of(fitting.plan(job))
    assert event.scratch_mib == pytest.approx(13.1 * 1024, rel=0.01) and event.scratch_free_mib == 100 * 1024
    assert event.scratch_folder == str(tmp_path / "not" / "yet") and event.fits


@pytest.mark.parametrize("vram", [("--vram", "16GB"), ()])
def test_a_disk_that_is_too_small_is_told(headers, tmp_path, scratch, vram):
    scratch(3 * GIB)
    line = training_line(headers, tmp_path, "wan-14b", (480, 832, 33), *FROM_DISK, "--fp8_scaled", *vram)
    found = planned(line)
    told = plan.verdict(found)
    assert not found.fits and found.only_disk_is_short and not found.options.keys() & {"ffn_chunks"}
    assert "which has 3.0 GiB free" in told and "MUSUBI_SCRATCH" in told and "main memory free" not in told
    assert not plan.event_of(found).fits


def test_where_the_disk_is_too_small_for_fp8_the_checkpoint_is_read_as_it_is(headers, tmp_path, monkeypatch, scratch):
    scratch(GIB)
    monkeypatch.setattr(fitting, "main_memory", lambda: 8 * GIB)
    found = planned([*training_line(headers, tmp_path, "wan-14b", (480, 832, 33)), "--vram", "12GB"])
    assert found.fits and found.options["block_swap_from_disk"] and not found.scratch


def test_each_of_several_processes_writes_a_file_of_its_own(headers, tmp_path, capsys, monkeypatch, scratch):
    scratch(20 * GIB)
    line = training_line(headers, tmp_path, "wan-14b", (480, 832, 33), *FROM_DISK, "--fp8_scaled", "--vram", "16GB")
    together = [*line, "--num_processes", "4"]
    one, four = planned(line), planned(together)
    assert one.fits and not four.fits and four.only_disk_is_short and four.scratch == 4 * one.scratch
    assert "take 52.4 GiB in scratch files of 4 processes in" in plan.verdict(four)
    assert plan.event_of(four).scratch_mib == 4 * plan.event_of(one).scratch_mib
    plan.run(cli.parse(["plan", *together]), lambda event: None, Control())
    printed = capsys.readouterr().out
    assert "scratch files of 4 processes on disk" in printed and "main memory of 4 processes" in printed
    for name, value in (("LOCAL_RANK", "1"), ("WORLD_SIZE", "8"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    assert planned(line).scratch == four.scratch, "under an outer launcher on two machines"


def test_each_of_several_processes_keeps_its_own_weights_in_main_memory(headers, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "main_memory", lambda: 64 * GIB)
    line = [*training_line(headers, tmp_path, "wan-14b", (480, 832, 33)), "--vram", "12GB"]
    one, four = planned(line), planned([*line, "--num_processes", "4"])
    assert one.fits and four.fits and one.main <= 64 * GIB and four.main <= 64 * GIB
    assert "block_swap_from_disk" in four.options and "block_swap_from_disk" not in one.options
    assert plan.event_of(four).ram_mib == 4 * max(stage.main_bytes for stage in four.planned) / (1 << 20)


def test_next_to_nothing_in_a_scratch_file_is_not_told(headers, tmp_path):
    line = training_line(headers, tmp_path, "wan-14b", (480, 832, 33), *FROM_DISK, "--fp8_scaled", "--vram", "16GB")
    found = planned(line)
    little = [replace(stage, scratch=GIB // 100) for stage in found.planned]
    assert "scratch" in plan.verdict(found) and "scratch" not in plan.verdict(replace(found, planned=little))


def test_the_free_space_of_a_folder_that_is_still_to_be_made(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSUBI_SCRATCH", str(tmp_path / "not" / "yet"))
    assert scratch_free() == pytest.approx(shutil.disk_usage(tmp_path).free, abs=1 << 30)
