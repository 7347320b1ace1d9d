"""What the machine has: asked without torch, and nothing at all is an answer too."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

from engine.contract.errors import OptionError
from engine.memory import machine


class Nvml:
    """NVIDIA's library as far as it is asked: two cards of 24 and 12 GB."""

    capability_status = 0
    TOTALS = {0: 24 << 30, 1: 12 << 30, "GPU-b": 12 << 30}

    def __init__(self, status=0):
        self.status, self.asked, self.closed = status, None, False

    def nvmlInit_v2(self):
        return self.status

    def nvmlShutdown(self):
        self.closed = True

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):
        self.asked = index
        return 0 if index in self.TOTALS else 2

    def nvmlDeviceGetHandleByUUID(self, name, handle):
        self.asked = name.decode()
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle, memory):
        found = ctypes.cast(memory, ctypes.POINTER(machine._Memory)).contents
        found.total, found.free = self.TOTALS[self.asked], 10 << 30
        return 0

    def nvmlDeviceGetName(self, handle, name, length):
        name.value = b"a card"
        return 0

    def nvmlDeviceGetCudaComputeCapability(self, handle, major, minor):
        major._obj.value, minor._obj.value = 8, 6
        return self.capability_status


@pytest.fixture
def nvml(monkeypatch):
    library = Nvml()
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: library)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return library


@pytest.mark.parametrize(("device", "visible", "total"), [
    (None, "", 24), ("cuda", "", 24), ("cuda:1", "", 12), ("cuda", "1,0", 12), ("cuda:1", "1,0", 24),
    (None, "GPU-b", 12),
])  # fmt: skip
def test_the_card_that_cuda_means(nvml, monkeypatch, device, visible, total):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    card = machine.find_card(device)
    assert card is not None and (card.name, card.total, card.free) == ("a card", total << 30, 10 << 30) and nvml.closed
    assert card.capability == (8, 6)


def test_a_card_without_a_number_is_an_error(nvml):
    with pytest.raises(OptionError, match="--device cuda:x: there is no such device"):
        machine.find_card("cuda:x")


def test_a_driver_that_does_not_tell_the_kind_of_card(nvml):
    nvml.capability_status = 1
    card = machine.find_card(None)
    assert card is not None and card.capability is None


def test_what_is_read_of_files_is_nobody_s_own_memory(monkeypatch):
    told = SimpleNamespace(rss=5 << 30, shared=2 << 30)
    monkeypatch.setattr(machine.psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: told))
    assert machine.own_memory() == 3 << 30
    del told.shared
    assert machine.own_memory() == 5 << 30


def test_no_card(nvml, monkeypatch):
    assert machine.find_card("cpu") is None and machine.find_card("cuda:7") is None
    nvml.status = 9
    assert machine.find_card(None) is None

    def none(name):
        raise OSError(name)

    monkeypatch.setattr(machine.ctypes, "CDLL", none)
    assert machine.find_card(None) is None


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("2000000\n")
    (tmp_path / "memory.current").write_text("500000\n")
    monkeypatch.setattr(machine, "_CONTAINER", tmp_path)
    assert machine.main_memory() == 1_500_000
    (tmp_path / "memory.stat").write_text("anon 100000\ninactive_file 300000\nactive_file 100000\n")
    assert machine.main_memory() == 1_800_000
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.main_memory() > 1_500_000
