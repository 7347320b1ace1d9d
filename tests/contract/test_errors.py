"""Every exception ends as one event and one exit status."""

from __future__ import annotations

import errno

import pytest

from engine.contract.errors import (
    STATUS,
    DataError,
    DiskError,
    EngineError,
    OptionError,
    OutOfMemoryError,
    Stopped,
    WeightsError,
    as_failed,
)  # fmt: skip


class TorchOutOfMemory(RuntimeError):
    pass


TorchOutOfMemory.__name__ = "OutOfMemoryError"


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


CASES = [
    (OptionError("m", "h"), "option", 2),
    (DataError("m"), "data", 2),
    (WeightsError("m"), "weights", 2),
    (OutOfMemoryError("m"), "memory", 3),
    (DiskError("m"), "disk", 4),
    (Stopped("m"), "stopped", 0),
    (TorchOutOfMemory("CUDA out of memory. Tried to allocate 2 GiB"), "memory", 3),
    (RuntimeError("CUDA error: out of memory"), "memory", 3),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "memory", 3),
    (MemoryError(), "memory", 3),
    (OSError(errno.ENOSPC, "No space left on device"), "disk", 4),
    (PermissionError(errno.EACCES, "Permission denied", "/out/x"), "disk", 4),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "/in/x"), "disk", 4),
    (RuntimeError("Error while serializing: IoError(Os { code: 28, message: No space left on device })"), "disk", 4),
    (ValueError("odd"), "bug", 70),
    (OSError("no number"), "bug", 70),
    (RuntimeError("The size of tensor a (3) must match"), "bug", 70),
    (caused(RuntimeError("worker died"), DataError("bad clip")), "data", 2),
    (KeyboardInterrupt(), "stopped", 130),
]


@pytest.mark.parametrize(("error", "kind", "status"), CASES, ids=lambda value: repr(value)[:60])
def test_kind_and_status(error: BaseException, kind: str, status: int) -> None:
    failed, found = as_failed(error)
    assert (failed.kind, found) == (kind, status) and failed.message and "\n" not in failed.message


def test_message_and_hint_are_kept() -> None:
    failed, _ = as_failed(OptionError("--x is wrong.", "Change --x."))
    assert (failed.message, failed.hint) == ("--x is wrong.", "Change --x.")


def test_out_of_memory_comes_with_advice_that_names_options() -> None:
    failed, _ = as_failed(TorchOutOfMemory("CUDA out of memory.\nmore"))
    assert failed.message == "Out of memory: CUDA out of memory." and "--blocks_to_swap" in failed.hint


def test_a_disk_error_names_the_file() -> None:
    failed, _ = as_failed(OSError(errno.ENOSPC, "No space left on device", "/out/lora.safetensors"))
    assert failed.message == "No space left on device: /out/lora.safetensors" and "space" in failed.hint


def test_the_statuses_of_the_classes_are_those_of_the_table() -> None:
    for error in EngineError.__subclasses__():
        assert error.exit_status == STATUS[error.kind]
    assert sorted(set(STATUS.values())) == [0, 2, 3, 4, 70]


def test_another_python_is_told_of_the_environment() -> None:
    """`python -m engine train …` in a Python without torch is no bug of ours."""
    failed, status = as_failed(ModuleNotFoundError("No module named 'torch'", name="torch"))
    assert status == 2 and "lacks the package torch" in failed.message
    assert "python -m env_bootstrap run --" in failed.hint and "repair" in failed.hint
    assert as_failed(ModuleNotFoundError("No module named 'engine.colours'", name="engine.colours"))[1] == 70
