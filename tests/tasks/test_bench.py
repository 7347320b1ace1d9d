"""`bench`, as far as it goes without a GPU: every group on small models, resuming, and what goes wrong.

Cases run in this process here, except for one; a real run gives each a process of its own.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

from engine.bench import files
from engine.bench.cases import KERNELS, all_cases
from engine.contract import events
from engine.contract.cli import parse
from engine.contract.errors import Stopped
from engine.contract.events import Control
from engine.contract.options import Bench
from engine.families import names, part
from engine.memory.estimate import GIB
from engine.tasks import bench, bench_case, bench_measuring, fitting, planned_weights
from engine.tasks.bench_case import Order, rates
from engine.tasks.bench_measuring import Measuring

SMALL = "train-wan-1.3b-480x832x33"


@pytest.fixture
def in_process(monkeypatch):
    """Orders are carried out here; gives the list of those that were."""
    orders = []

    def child(self, path, log):
        orders.append(Order.from_json(path.read_text()))
        return bench_case.carry_out(orders[-1], self._control)

    monkeypatch.setattr(Measuring, "_child", child)
    monkeypatch.setattr(bench_case, "say", lambda event: None)
    monkeypatch.setattr(events, "PROGRESS_INTERVAL_S", 0.0)
    return orders


@pytest.fixture
def measured(engine, in_process, tmp_path):
    """Run `bench --tiny`; gives the rows of its cases by (case, mode), the last one of each."""

    def run(*words):
        result = engine("bench", "--tiny", "--steps", 2, "--out", tmp_path / "out", *words)
        rows = [row for path in (tmp_path / "out").glob("*.json") for row in json.loads(path.read_text())]
        return result, {(row["case"], row["mode"]): row for row in rows}

    return run


def test_training_is_measured_against_plain_pytorch(measured, tmp_path):
    result, rows = measured("train", "wan", "--case", SMALL, "--mode", "plain", "fp8")
    assert result.status == 0, result.err
    plain, fp8 = rows[SMALL, "plain"], rows[SMALL, "fp8"]
    for row in (plain, fp8):
        assert row["n"] == 2 and row["seconds"] > 0 and len(row["losses"]) == 5  # three more to warm up
        assert row["baseline_seconds"] == plain["seconds"] and row["tflop"] > 0 and 0 < row["utilisation"] < 1
        assert row["peak_ram_gib"] > 0.1 and row["first_step_after_s"] > 0 and row["device"] == "cpu" and row["tiny"]
    assert "--fp8_scaled" in fp8["flags"] and "--fp8_scaled" not in plain["flags"] and "--sdpa" in plain["flags"]
    assert fp8["losses"] == pytest.approx(plain["losses"], rel=0.01) and fp8["losses"] != plain["losses"]
    table = (tmp_path / "out" / "table.txt").read_text()
    assert result.out == table and SMALL in table and "1.00x" in table
    assert not (tmp_path / "out" / "scratch").exists()


@pytest.mark.parametrize(
    ("case", "mode"),
    [
        ("denoise-wan-14b-480x832x33", "plain"),
        ("denoise-hunyuan-13b-544x960x33", "fp8"),
        ("denoise-framepack-640x640", "magcache"),
    ],
)
def test_denoising_is_measured(measured, case, mode):
    result, rows = measured("generate", "--case", case, "--mode", mode)
    row = rows[case, mode]
    assert result.status == 0 and row["n"] == 2 and row["seconds"] > 0 and row["tflop"] > 0 and "losses" not in row


def test_streaming_is_measured_against_none(measured):
    case = "stream-denoise-wan-1.3b-480x832x81"
    result, rows = measured("stream", "--case", case)
    none, every = rows[case, "none"], rows[case, "all"]
    assert result.status == 0, result.err
    assert "--blocks_to_swap 4" in every["flags"] and "--blocks_to_swap" not in none["flags"]
    assert every["baseline_mode"] == "none" and every["baseline_seconds"] == none["seconds"]


@pytest.mark.parametrize("name", ["wan-480x832x81", "hunyuan-544x960x33"])
def test_the_vae_is_measured_alone_and_in_its_pipeline(measured, name):
    result, rows = measured("cache", "--case", f"vae-encode-{name}", f"vae-decode-{name}", "--mode", "engine")
    assert result.status == 0, result.err
    assert all(row["seconds"] > 0 and row["tflop"] > 0 and row["n"] == 2 for row in rows.values()) and len(rows) == 2
    assert all(row["predicted_gib"] > 0 for row in rows.values())
    result, rows = measured("cache", "--case", f"vae-encode-{name}", "--mode", "pipeline")
    row = rows[f"vae-encode-{name}", "pipeline"]
    assert result.status == 0 and row["seconds"] > 0 and row["tflop"] is None


def test_without_diffusers_there_is_nothing_to_compare_with(measured, monkeypatch):
    case = "vae-decode-wan-480x832x81"
    monkeypatch.setitem(sys.modules, "diffusers", None)
    result, rows = measured("--case", case, "--mode", "diffusers")
    assert result.status == 0 and "diffusers" in rows[case, "diffusers"]["skipped"]
    assert f"{case}  diffusers" in result.out and "skipped: import of diffusers" in result.out


@pytest.mark.parametrize(
    ("group", "modes"), [("attention", {"sdpa", "auto"}), ("linear", {"bf16", "fp8_row", "fp8_tensor"})]
)
def test_kernels_are_measured_in_one_process(measured, in_process, group, modes):
    result, rows = measured(group, "framepack")
    assert result.status == 0 and len(in_process) == 1 and {mode for _, mode in rows} >= modes
    assert all(row["baseline_seconds"] > 0 and row["error"] < 0.05 for row in rows.values())


def test_a_process_of_its_own_says_what_it_measured(engine, tmp_path):
    result = engine("bench", "attention", "framepack", "--tiny", "--steps", 1, "--out", tmp_path)
    rows = json.loads((tmp_path / "attention-framepack-640x640.json").read_text())
    assert result.status == 0, result.err + (tmp_path / bench_measuring.LOG).read_text()
    assert {"sdpa", "auto"} <= {row["mode"] for row in rows}


# ------------------------------------------------------------------------------------------------------ going on


def test_what_is_finished_is_not_measured_again_unless_asked_to(measured, in_process):
    words = ("linear", "framepack", "--mode", "bf16")
    measured(*words)
    result, _ = measured(*words)
    assert len(in_process) == 1 and "already finished" in result.err
    measured("linear", "framepack")
    assert in_process[-1].modes == ("fp8_row", "fp8_tensor")
    _, rows = measured(*words, "--again")
    assert len(in_process) == 3 and [mode for _, mode in rows] == ["bf16", "fp8_row", "fp8_tensor"]


def test_a_trial_is_not_taken_for_a_measurement(tmp_path):
    job = parse(["bench", "--out", str(tmp_path)])
    for_real = Measuring(job, tmp_path, "cpu", lambda event: None, Control())
    case = next(case for case in _cases() if case.name == SMALL)
    for_real._keep(case, [{"mode": "plain", "seconds": 1.0, "tiny": True}, {"mode": "free", "seconds": 1.0}])
    assert for_real._finished(case) == {"free"}


def test_out_of_memory_is_a_row_and_the_next_case_goes_on(measured, in_process, monkeypatch):
    def full(order, job, control):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setitem(bench_case._WAYS, "train", full)
    words = ("train", "linear", "wan", "--case", SMALL, "linear-wan-1.3b-480x832x33", "--mode", "plain", "bf16")
    result, rows = measured(*words)
    assert result.status == 0 and "out of memory" in result.out
    assert rows[SMALL, "plain"]["failed"]["kind"] == "memory" and rows[SMALL, "plain"]["peak_ram_gib"] > 0
    assert rows["linear-wan-1.3b-480x832x33", "bf16"]["seconds"] > 0
    measured(*words)
    assert len(in_process) == 2  # it would run out again


def test_a_failure_of_ours_is_told_at_the_end_and_tried_again(measured, in_process, monkeypatch):
    def broken(order, job, control):
        raise KeyError("surprise")

    monkeypatch.setitem(bench_case._WAYS, "train", broken)
    words = ("train", "--case", SMALL, "--mode", "plain")
    result, rows = measured(*words)
    assert result.status == 70 and "1 measurement failed" in result.err and bench_measuring.LOG in result.err
    assert "surprise" in rows[SMALL, "plain"]["failed"]["message"]
    measured(*words)
    assert len(in_process) == 2


def test_a_process_that_was_killed_leaves_a_row(measured, monkeypatch):
    monkeypatch.setattr(Measuring, "_child", lambda self, path, log: -9)
    result, rows = measured("train", "--case", SMALL, "--mode", "plain")
    assert result.status == 70 and rows[SMALL, "plain"]["failed"]["kind"] == "killed" and "-9" in result.out


def test_a_stop_ends_before_the_next_case_and_removes_the_models(tmp_path, monkeypatch):
    control = Control()
    monkeypatch.setattr(Measuring, "_child", lambda self, path, log: control.request_stop() or 0)
    job = parse(["bench", "train", "--case", SMALL, "--tiny", "--out", str(tmp_path)])
    with pytest.raises(Stopped, match="resumes"):
        bench.run(job, lambda event: None, control)
    assert not (tmp_path / "scratch").exists() and not (tmp_path / f"{SMALL}.json").exists()


# ------------------------------------------------------------------------------------------------------ what is asked


def test_full_size_models_are_refused_on_a_cpu(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = engine("bench", "train", "--out", tmp_path / "out")
    assert result.status == 2 and "--tiny" in result.err and not list(tmp_path.glob("out/*.json"))


def test_the_list_writes_nothing(engine, tmp_path):
    result = engine("bench", "generate", "wan", "--list", "--out", tmp_path / "out")
    assert result.status == 0 and not (tmp_path / "out").exists()
    assert "denoise-wan-14b-480x832x81" in result.out and "hunyuan" not in result.out


def test_a_word_that_means_nothing_is_one_clear_error(engine):
    result = engine("bench", "trian", "--list")
    assert result.status == 2 and "Did you mean train?" in result.err


# --------------------------------------------------------------------------------------------------- full-size cases


def _cases():
    return list(all_cases(names(extra=False), lambda family: part(family, "bench"), backends=["sdpa", "auto"]))


def narrow(write_encoders):
    """Encoders of the real width take seconds to draw, and their width plays no part here."""

    def write(folder, config):
        widths = ("text_dim", "pooled_dim", "image_dim")
        small = {name: 48 for name in widths if getattr(config, name, None) is not None}
        return write_encoders(folder, dataclasses.replace(config, **small))

    return write


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    """A `Measuring` whose checkpoints of full size are holes in their files."""

    def write_hole(path, shapes):
        header, end = {}, 0
        for name, shape in shapes.items():
            start, end = end, end + 2 * torch.Size(shape).numel()
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
        yield end

    folder = tmp_path_factory.mktemp("full size")
    job = parse(["bench", "--out", str(folder)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "write_random", write_hole)
        for family in names(extra=False):
            patch.setattr(part(family, "bench"), "write_encoders", narrow(part(family, "bench").write_encoders))
        yield Measuring(job, folder, "cpu", lambda event: None, Control())


COMMANDS = [case for case in _cases() if case.kind not in KERNELS]


@pytest.mark.parametrize("case", COMMANDS, ids=lambda case: case.name)
def test_every_mode_is_a_command_that_can_be_planned(full_size, tmp_path, monkeypatch, case):
    monkeypatch.setattr(fitting, "find_card", lambda device: None)
    monkeypatch.setattr(fitting, "main_memory", lambda: 128 * GIB)
    monkeypatch.setattr(planned_weights, "has_triton", lambda: True)
    jobs = {mode: parse(list(full_size._order(case, (mode,), tmp_path).words)) for mode in case.modes}
    if case.kind not in ("train", "denoise"):
        return
    expected = {
        mode: bench_case._expected(jobs[mode])["predicted_gib"]
        for mode in (case.baseline, "least", "12gb", "all")
        if mode in jobs
    }
    limits = {"least": float(case.size.vram.removesuffix("GB")), "12gb": 12.0, "all": expected[case.baseline]}
    assert all(gib < limits[mode] for mode, gib in expected.items() if mode in limits), expected
    if case.name == "train-wan-14b-480x832x33":
        assert expected["plain"] == pytest.approx(38.1, rel=0.05)  # measured on an H100


def test_kernels_have_the_sizes_of_the_blocks(full_size, tmp_path):
    order = next(full_size._order(c, ("sdpa",), tmp_path) for c in _cases() if c.name == "attention-wan-14b-480x832x81")
    assert (order.tokens, order.heads, order.times) == (32760, (40, 128), bench_measuring.CALLS)
    assert Order.from_json(order.to_json()).heads == (40, 128)
    assert (13824, 5120) in order.layers


def test_a_row_has_the_prediction_as_a_share_of_what_was_measured():
    assert bench_case._compared({"predicted_gib": 3.0, "peak_alloc_gib": 4.0}) == {"predicted_to_measured": 0.75}
    assert bench_case._compared({"predicted_gib": 3.0}) == {} == bench_case._compared({"peak_alloc_gib": 4.0})


def test_rates_are_shares_of_what_the_device_sustains():
    row = {"seconds": 2.0, "tflop": 100.0, "backward_seconds": 4.0, "backward_tflop": 100.0}
    assert rates(row, 200.0) == {
        "tflop_per_s": 50.0, "utilisation": 0.25, "backward_tflop_per_s": 25.0, "backward_utilisation": 0.125,
        "bf16_tflop_per_s": 200.0,
    }  # fmt: skip
    assert rates({"seconds": None, "tflop": 1.0}, 200.0) == {}


def test_results_lie_beside_the_environment(monkeypatch):
    monkeypatch.setenv("MUSUBI_HOME", "/somewhere")
    job = parse(["bench"])
    assert bench.home(job) == Path("/somewhere/bench") and job[Bench].steps is None
