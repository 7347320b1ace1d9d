"""Moving where there is no GPU: what is staged, with stand-ins for CUDA; with one: tests/gpu/test_staging.py."""

from __future__ import annotations

import pytest
import torch

from engine.ops import staging
from engine.ops.staging import STAGE_BYTES, moved, to_gpu, to_host
from engine.parts import reading


def test_what_is_there_already_stays_and_the_order_is_kept() -> None:
    given = [torch.full((size,), float(size)) for size in (3, 1, 2)]
    there = list(moved((tensor, torch.device("cpu")) for tensor in given))
    assert all(one is other for one, other in zip(given, there, strict=True))


class _Copied:
    """A copy between main memory and a GPU that is over only when it is waited for."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> None:
    buffers = [(torch.zeros(STAGE_BYTES, dtype=torch.uint8), _Copied()) for _ in range(2)]
    monkeypatch.setattr(staging, "stages", lambda: buffers)
    monkeypatch.setattr(torch.cuda, "current_stream", _Copied)


@pytest.mark.parametrize("size", [1, STAGE_BYTES, STAGE_BYTES + 1, 7 * STAGE_BYTES // 2 + 3])
def test_pieces_make_the_whole(staged: None, tmp_path, size: int) -> None:
    given = torch.randint(0, 256, (size,), dtype=torch.uint8)
    back = torch.zeros_like(given)
    to_host(given, back)
    assert torch.equal(back, given)
    there = torch.zeros_like(given)
    assert to_gpu(there, lambda piece, start: bool(piece.copy_(given[start : start + len(piece)]).numel()))
    assert torch.equal(there, given)
    path = tmp_path / "weights"
    path.write_bytes(b"head" + given.numpy().tobytes())
    assert torch.equal(reading._staged(path, 4, size, torch.device("cpu")), given)
    assert reading._staged(path, 5, size, torch.device("cpu")) is None
